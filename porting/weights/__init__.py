"""The numbers: blocks of rows read, changed, measured and written."""
