"""`python -m tests.killed_bot STEP`: the bot, killed after the step and before its checkpoint."""

import os
import signal
import sys
from typing import Any

from bot.cli.sources import open_context
from bot.running import workflow
from bot.running.run import run_once


def main(step: str) -> None:
    original = getattr(workflow, step)

    def then_die(*args: Any, **kwargs: Any) -> Any:
        original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(workflow, step, then_die)
    run_once(open_context())


if __name__ == "__main__":
    main(sys.argv[1])
