"""Every error PortLLM raises on purpose.

PortllmError            exit code 1: our bug, unless a subclass says otherwise
├── UsageError          2: the caller asked for something that makes no sense
├── Refused             3: the inputs can't be ported, published or trusted; the message says why
└── HubError            4: the Hub or the network did not do its part; trying again may help
"""


class PortllmError(Exception):
    """Base of all errors raised on purpose. The message is one sentence for a user."""

    exit_code = 1


class UsageError(PortllmError):
    """The request itself is wrong: an unknown name, a malformed address, a contradiction."""

    exit_code = 2


class Refused(PortllmError):
    """The inputs can't be ported. The message names the file, the field and the way out."""

    exit_code = 3


class HubError(PortllmError):
    """The Hub or the network failed. Nothing was changed; trying again may help."""

    exit_code = 4
