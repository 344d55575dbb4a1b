"""The arms of every validation, in the words that people read."""

ARMS = {
    "before": "old base alone",
    "old": "old base + patch",
    "new": "new base alone",
    "port": "new base + ported patch",
    "refit": "new base + refit",
}
