"""Why a port goes no further, though nobody failed."""

from porting.errors import PortllmError


class Cancelled(PortllmError):
    """The port was stopped, or nobody wants it any more."""


class Overtaken(Cancelled):
    """A port to a newer release stands where it would go."""


class Held(Cancelled):
    """Its time is not now, though it was when it was put into the queue."""
