"""`portllm.lock.json`: what a port was made of, and what came out, to the byte."""

import json
from typing import Any

from porting.errors import Refused

NAME = "portllm.lock.json"


def render(
    *,
    key: str,
    engine: str,
    patch: dict[str, str],
    old_base: dict[str, str],
    new_base: dict[str, str],
    form: str,
    files: dict[str, str],
    verdict: dict[str, Any],
    evidence: dict[str, Any] | None,
) -> bytes:
    """The lock file. `patch` and the bases are `{"repo", "sha"}`; `files` maps path to sha256."""
    lock = {
        "key": key,
        "engine": engine,
        "patch": patch,
        "old_base": old_base,
        "new_base": new_base,
        "form": form,
        "files": dict(sorted(files.items())),
        "verdict": verdict,
        "evidence": evidence,
    }
    return (json.dumps(lock, indent=2, ensure_ascii=False) + "\n").encode()


def patch_repo(content: bytes) -> str:
    """The patch that the port behind this lock file is of. Raises Refused if it is none."""
    return str(_field(content, "patch", "repo"))


def locked_files(content: bytes) -> list[str]:
    """The files that the port behind this lock file wrote. Raises Refused if it is none."""
    files = _field(content, "files")
    if not isinstance(files, dict):
        raise Refused(f"{NAME} is damaged (files): restore it, or choose another repo.")
    return list(files)


def _field(content: bytes, *path: str) -> Any:
    try:
        value = json.loads(content)
        for name in path:
            value = value[name]
        return value
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused(
            f"{NAME} is damaged ({error}): restore it, or choose another repo."
        ) from error
