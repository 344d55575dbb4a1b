"""The three arms of every validation, in the words that people read."""

ARMS = {"old": "old base + patch", "new": "new base alone", "port": "new base + ported patch"}
