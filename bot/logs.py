"""One line per event: for people on a terminal, JSON elsewhere; and no secret in either.

The standard library's logging, not structlog: the lines of DBOS, APScheduler, uvicorn and the Hub's
client come through it anyway, and of structlog only a formatter would be used.
"""

import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from urllib.parse import quote

# What a line may be about: by its workflow, by `telling`, or as the `extra` of a single line.
FIELDS = ("port", "attempt", "step", "release", "base")
PORT = re.compile(r"\bport-[0-9a-f]{16}\b")
# The ids that `bot.running.dispatch` gives to workflows, and DBOS to their children.
WORK = re.compile(rf"(?:(?P<port>{PORT.pattern})|release-(?P<release>\d+))\.(?P<attempt>\d+)")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # may be a stranger's, for the terminal

HIDDEN = "***"
LEAST = 6  # characters; what is shorter would be found in every other word
# The Hub's tokens, but no names such as hf_hub_download.
TOKEN = re.compile(r"hf_(?:[a-z]+_)?(?:(?=[a-z]*[A-Z0-9])\w{6}|[A-Za-z0-9]{16})[\w.~+/=-]*")
AFTER = re.compile(
    r"""
    (
        bearer\s+
        | authorization["']?[\s:=,]+b?["']?(?:basic|token)\s+
        | x-webhook-secret["']?[\s:=,]+b?["']?
        | (?:password|passwd|secret|token|api_?key)(?:=["']?|["']\s*:\s*["'])
    )
    [^\s"'&,;]+
    """,
    re.IGNORECASE | re.VERBOSE,
)
# A database's password may hold a slash.
USERINFO = re.compile(
    r"""((?:postgres|mysql|mariadb)[\w+]*://)[^\s"']*@|(://)[^\s/"']*@""", re.IGNORECASE
)

_known: set[str] = set()
# What the lines of a workflow, or of none, are about.
_told: ContextVar[tuple[str | None, dict[str, object]]] = ContextVar("told")


def hide(*secrets: str | None) -> None:
    """Let these never be seen in a line, whatever they look like."""
    for secret in secrets:
        if secret and len(secret) >= LEAST:
            _known.update((secret, quote(secret, safe=""), repr(secret)[1:-1]))


def redact(text: str) -> str:
    """`text` without what was hidden, and without whatever looks like a token or a password."""
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = AFTER.sub(rf"\1{HIDDEN}", TOKEN.sub(HIDDEN, text))
    return USERINFO.sub(rf"\1\2{HIDDEN}@", text)


@contextmanager
def telling(**fields: object) -> Iterator[None]:
    """Every line logged inside, a library's too, says that it is about these."""
    token = _told.set((_workflow(), _telling() | fields))
    try:
        yield
    finally:
        _told.reset(token)


def tell(**fields: object) -> None:
    """The same for what this thread logs from now on, to the end of its workflow."""
    _told.set((_workflow(), _telling() | fields))


def about(record: logging.LogRecord, message: str) -> dict[str, object]:
    """What a line is about: of FIELDS, those that are known."""
    known = {name: value for name, value in vars(record).items() if name in FIELDS}
    named, work = PORT.search(message), WORK.match(_workflow() or "")
    at_work = {name: value for name, value in work.groupdict().items() if value} if work else {}
    return {**({"port": named[0]} if named else {}), **at_work, **_telling(), **known}


def _telling() -> dict[str, object]:
    workflow, fields = _told.get((None, {}))
    return fields if workflow == _workflow() else {}


def _workflow() -> str | None:
    """The id of the workflow that this thread is at work on."""
    dbos = sys.modules.get("dbos")  # seconds to import, and most commands don't need it
    return dbos.DBOS.workflow_id if dbos else None


class Json(logging.Formatter):
    """`{"at": ..., "level": ..., "logger": ..., "message": ..., "port": ...}`"""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
            **about(record, message),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        shown = {
            name: value if isinstance(value, int) else redact(str(value))
            for name, value in line.items()
        }
        return json.dumps(shown)


class Human(logging.Formatter):
    """`14:03:22 port-...: what happened`"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return CONTROL.sub("?", redact(super().format(record)))


def set_up() -> None:
    """Let every line of this process, libraries' and last words included, go to stderr this way."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Human() if sys.stderr.isatty() else Json())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.captureWarnings(True)
    logging.getLogger("portllm").setLevel(logging.INFO)
    # These bring handlers of their own: one has it already, one makes it if it finds none.
    logging.getLogger("huggingface_hub").handlers.clear()
    logging.getLogger("dbos").addHandler(logging.NullHandler())
    sys.excepthook = _last_words
    threading.excepthook = lambda died: _last_words(
        died.exc_type, died.exc_value or died.exc_type(), died.exc_traceback
    )


def _last_words(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, Exception):
        said = f"{kind.__name__}: {error}"
        logging.getLogger("portllm").critical(said, exc_info=(kind, error, trace))
    else:
        sys.__excepthook__(kind, error, trace)
