"""Downloading a file of a revision, whole or in part."""

import mimetypes
import re
from dataclasses import replace
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from localhub.errors import HubError, entry_not_found
from localhub.git import read_blobs
from localhub.hub import Call, file_chunks
from localhub.tree import entries, resolve

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and length of a single `Range` (RFC 9110, 14.2); None for the whole content.

    Raises `HubError` 416 when nothing of it exists.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None or match[0] == "bytes=-":
        return None
    if match[1]:
        start, end = int(match[1]), int(match[2]) if match[2] else size - 1
        if end < start < size:
            return None
    else:
        start, end = max(size - int(match[2]), 0), size - 1
    if start >= size:
        raise HubError(
            416, "The range is outside the file", headers={"Content-Range": f"bytes */{size}"}
        )
    return start, min(end, size - 1) - start + 1


def _media_type(path: str) -> str:
    """Images as such, for cards; anything else as text or bytes, so that no page is served."""
    guess = mimetypes.guess_type(path)[0] or "application/octet-stream"
    if guess.startswith(("image/", "audio/", "video/")):
        return guess
    text = guess.startswith("text/") or guess == "application/json"
    return "text/plain; charset=utf-8" if text else "application/octet-stream"


def download(call: Call) -> Response:
    """GET or HEAD resolve/{rev}/{path}"""
    return _answer(call, pointers=False)


def raw(call: Call) -> Response:
    """GET or HEAD raw/{rev}/{path}: the file as git has it, a large one as its LFS pointer."""
    return _answer(call, pointers=True)


def _answer(call: Call, *, pointers: bool) -> Response:
    commit = resolve(call.repo.path, call.param("rev"), call.stale)
    path = call.param("path")
    entry = entries(call.repo.path, commit).get(path)
    if entry is None or entry.folder:
        raise entry_not_found(path, commit)
    if entry.lfs and pointers:
        entry = replace(entry, lfs=None, size=entry.lfs.pointer_size)
    name = quote(path.rsplit("/", 1)[-1], safe="")
    headers = {
        "X-Repo-Commit": commit,
        "ETag": f'"{entry.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"inline; filename*=UTF-8''{name}",
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
        "X-Content-Type-Options": "nosniff",
    }
    if entry.lfs:
        headers |= {"X-Linked-Etag": f'"{entry.lfs.sha256}"', "X-Linked-Size": str(entry.size)}
    part = byte_range(call.request.headers.get("range"), entry.size)
    start, length = part or (0, entry.size)
    headers["Content-Length"] = str(length)
    if part:
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{entry.size}"
    status = 206 if part else 200
    media_type = _media_type(path)
    if call.request.method == "HEAD":
        return Response(None, status, headers, media_type)
    if entry.lfs is None:
        content = read_blobs(call.repo.path, [entry.oid])[0]
        return Response(content[start : start + length], status, headers, media_type)
    blob = call.hub.blobs.path(entry.lfs.sha256)
    if not blob.is_file():
        raise HubError(404, f"The content of {path} is missing from the store", "EntryNotFound")
    return StreamingResponse(file_chunks(blob, start, length), status, headers, media_type)
