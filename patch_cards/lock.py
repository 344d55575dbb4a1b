"""`portllm.lock.json`: what a port was made of, and what came out, to the byte."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from porting import Source
from porting.errors import Refused

NAME = "portllm.lock.json"
Repo = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")]
Sha = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Input(BaseModel):
    """A repo at one commit."""

    repo: Repo
    sha: Sha


class Lock(BaseModel):
    """What the file holds. `files` maps a path in the repo to its sha256.

    `policy` is what a patch of class C was taken to mean, None for every other one; `scale` how
    many times the patch was added. The verdict is of `verdict_policy`, None where nothing was
    judged. Locks of earlier engines have neither that nor `to_repo`.
    """

    key: str
    engine: str
    to_repo: Repo | None = None
    patch: Input
    old_base: Input
    new_base: Input
    form: Literal["adapter", "merged", "both"]
    policy: Literal["reapply", "freeze"] | None = None
    scale: Annotated[float, Field(gt=0, le=2)] = 1.0
    files: dict[str, Sha256]
    verdict: dict[str, Any]
    verdict_policy: dict[str, Any] | None = None
    evidence: dict[str, Any] | None

    def render(self) -> bytes:
        lock = self.model_dump() | {"files": dict(sorted(self.files.items()))}
        return (json.dumps(lock, indent=2, ensure_ascii=False) + "\n").encode()


def read(port: Source) -> Lock:
    """The lock of a port. Raises Refused where there is none, or a damaged one."""
    entry = port.files().get(NAME)
    if entry is None:
        raise Refused(f"{port.name} has no {NAME}: it is no port that PortLLM published.")
    return parse(port.read(NAME, 0, entry.size))


def parse(content: bytes) -> Lock:
    """The lock behind these bytes. Raises Refused if they are none."""
    try:
        return Lock.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise Refused(
            f"{NAME} is damaged ({field}: {first['msg']}): restore it, or choose another repo."
        ) from error
