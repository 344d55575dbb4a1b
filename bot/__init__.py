"""What is done: watch -> classify -> plan -> port -> validate -> judge -> publish.

One module per step; `workflow` strings them together durably, `hub` is the only one that talks to
the Hub, and `sandbox` runs what reads strangers' files in a process that has no token.

For programs there are the few functions of `bot.api`: `from bot import port`.
"""

import sys
from types import ModuleType
from typing import Any

from bot.api import add_patch, plan, port, status, subscribe, verify

__all__ = ["add_patch", "plan", "port", "status", "subscribe", "verify"]


class _Package(ModuleType):
    """Some steps are named as their functions; importing such a module does not hide the function.

    `from bot.port import ...` and `importlib.import_module("bot.port")` get the module.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
