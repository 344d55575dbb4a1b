"""The arms of every validation, and their figures, as people read them."""

ARMS = {
    "before": "old base alone",
    "old": "old base + patch",
    "new": "new base alone",
    "port": "new base + ported patch",
    "refit": "new base + refit",
}


def figure(value: float, metric: str, sign: str = "") -> str:
    """Accuracy in points of a hundred, else in the metric's unit; `sign` "+" shows a plus."""
    scale, digits = (100, 1) if metric == "accuracy" else (1, 3)
    return f"{scale * value:{sign}.{digits}f}"
