"""What is shown: cards of ports and patches, charts, the lock file, licences, pages."""
