"""What is done: watch -> classify -> plan -> port -> validate -> judge -> publish.

`watching` finds what is new, `making` makes a port and judges it, `publishing` brings it into its
repo, `trust` is what is checked after; `running` strings their steps together durably. `hub` is the
only one that talks to the Hub; `making.sandbox` runs what reads strangers' files, in a process that
has no token. What people and programs meet: `cli`, `serve`, `showcase`, `config`, `api`.

For programs there are the few functions of `bot.api`: `from bot import port`.
"""

from bot.api import add_patch, plan, port, status, subscribe, verify

__all__ = ["add_patch", "plan", "port", "status", "subscribe", "verify"]
