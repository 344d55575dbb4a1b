"""What is checked after: verified by anybody, signed, audited, taken back."""
