"""What the client asks before it commits: how to send each file, and whether the card is valid."""

import base64
import binascii
import codecs
from typing import Any

from starlette.responses import JSONResponse, Response

from localhub import cards
from localhub.card_data import faults
from localhub.errors import HubError
from localhub.hub import Call
from localhub.tree import entries, read_file, resolve
from localhub.writing import ATTRIBUTES, check_path, is_lfs, lfs_patterns

# Assumed from the Hub's documentation: files above 10 MB and binary files go to large storage.
MAX_REGULAR = 10_000_000


def _is_binary(sample: bytes) -> bool:
    """Whether the first bytes of a file are not UTF-8 text; they may end inside a character."""
    try:
        return "\0" in codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return True


def preupload(call: Call) -> dict[str, Any]:
    """POST preupload/{rev} `{files: [{path, sample, size}]}`.

    `oid` is what the path holds now, by which the client drops files that did not change.
    """
    commit = resolve(call.repo.path, call.param("rev"))
    known = entries(call.repo.path, commit)
    patterns = lfs_patterns(read_file(call.repo.path, commit, ATTRIBUTES) or b"")
    answers = []
    for file in call.items("files"):
        try:
            path, size = check_path(file["path"]), int(file["size"])
            sample = base64.b64decode(file["sample"], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise HubError(400, f"'files' needs items {{path, size, sample}}: {error!r}") from error
        large = size > MAX_REGULAR or is_lfs(path, patterns) or _is_binary(sample)
        mode = "lfs" if large and size > 0 else "regular"
        answer: dict[str, Any] = {"path": path, "uploadMode": mode, "shouldIgnore": False}
        if path in known and not known[path].folder:
            answer["oid"] = known[path].etag
        answers.append(answer)
    return {"files": answers, "commitOid": commit}


def validate_yaml(call: Call) -> Response:
    """POST /api/validate-yaml `{content, repoType}`"""
    try:
        data = cards.metadata(call.field("content"))
    except ValueError as error:
        return _refused([str(error)])
    if call.json().get("repoType") == "model" and (found := faults(data)):
        return _refused(found)
    warnings = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
    return JSONResponse({"errors": [], "warnings": warnings})


def _refused(errors: list[str]) -> Response:
    told = [{"message": message} for message in errors]
    return JSONResponse({"errors": told, "warnings": []}, status_code=400)
