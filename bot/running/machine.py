"""What this machine may fail at, and nobody's code is to blame: its disk, memory, database."""

import errno

from porting.errors import PortllmError

TROUBLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM,
    errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN,
}  # fmt: skip


class MachineError(PortllmError):
    """This machine did not do its part. Once it does, trying again helps."""


def trouble(error: BaseException) -> str | None:
    """What is wrong with this machine, if that is what `error` says."""
    from sqlalchemy.exc import OperationalError  # the computing process has no use for it else

    if isinstance(error, MachineError):
        return str(error)
    if isinstance(error, MemoryError):
        return "This machine has too little memory free."
    if isinstance(error, OperationalError):
        return f"The database can't be used: {error.orig}."
    if isinstance(error, OSError) and error.errno in TROUBLE:
        where = f" ({error.filename})" if error.filename else ""
        return f"This machine can't go on: {error.strerror}{where}."
    return None
