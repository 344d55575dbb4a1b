"""Whether a port is worth having. Files and numbers in, a verdict out; no Hub, no database."""
