"""`portllm`, with what it computes in its own process: each one of its own loads libraries anew."""

import json
from typing import Any

from bot.cli import main
from bot.making import compute, sandbox


def computed(order: dict[str, Any], report: sandbox.Report = sandbox.silent, *_: Any) -> Any:
    """Stands for `bot.making.sandbox.run`."""
    compute.tell = lambda **said: report(*said["progress"])
    work = getattr(compute, {"slice": "slice_"}.get(order["do"], order["do"]))
    return json.loads(json.dumps(work(json.loads(json.dumps(order)))))


if __name__ == "__main__":
    sandbox.run = computed
    main()
