"""What is done: watch -> classify -> plan -> port -> validate -> judge -> publish.

One module per step; `workflow` strings them together durably, `hub` is the only one that talks to
the Hub, and `sandbox` runs what reads strangers' files in a process that has no token.

For programs there are the few functions of `bot.api`: `from bot import port`.
"""

from bot.api import add_patch, plan, port, status, subscribe, verify

__all__ = ["add_patch", "plan", "port", "status", "subscribe", "verify"]
