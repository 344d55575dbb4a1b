"""Git LFS: the batch API with basic and multipart uploads (git-lfs specification, docs/api).

The client sends file contents without its token, so the addresses it is given carry a signature
over everything they allow, valid for a day in this process.

Contents are stored once, but a repository has only what was uploaded or copied to it
(`Repo.holds`).
"""

import asyncio
import hashlib
import hmac
import math
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from localhub.auth import Access, authorize
from localhub.blobs import DigestError
from localhub.errors import HubError, repo_not_found
from localhub.hub import Call, Hub, file_chunks
from localhub.repos import Repo
from localhub.xet import xet_hash

PART_SIZE = 64 << 20  # bytes
MAX_SIZE = 1 << 40  # bytes of one object
_VALID = 24 * 3600  # seconds
_FIELDS = ("kind", "repo", "oid", "size", "part", "upload", "expires")
_MEDIA_TYPE = "application/vnd.git-lfs+json"


def _sign(key: bytes, grant: dict[str, str]) -> str:
    text = "\n".join(grant[name] for name in _FIELDS)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _objects(call: Call) -> list[tuple[str, int]]:
    try:
        found = [
            (call.hub.blobs.path(o["oid"]).name, int(o["size"])) for o in call.json()["objects"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise HubError(400, f"'objects' needs items {{oid, size}} of sha256: {error!r}") from error
    if not all(0 <= size <= MAX_SIZE for _, size in found):
        raise HubError(400, f"The size of an object must be from 0 to {MAX_SIZE} bytes")
    return found


def batch(call: Call) -> Response:
    """POST {repo}.git/info/lfs/objects/batch"""
    body = call.json()
    objects = _objects(call)
    if body.get("operation") == "upload":
        authorize(call.user, call.repo, Access.CONTRIBUTE)
        multipart = "multipart" in body.get("transfers", [])
        shown = [_upload(call, oid, size, multipart) for oid, size in objects]
        parted = any("chunk_size" in str(each.get("actions")) for each in shown)
    else:
        authorize(call.user, call.repo, Access.CONTENT)
        shown = [_download(call, oid, size) for oid, size in objects]
        parted = False
    answer = {"transfer": "multipart" if parted else "basic", "objects": shown}
    return JSONResponse({**answer, "hash_algo": "sha256"}, media_type=_MEDIA_TYPE)


def _upload(call: Call, oid: str, size: int, multipart: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
    if call.repo.holds(oid):
        return shown
    upload = secrets.token_hex(16)
    expires = str(int(time.time()) + _VALID)

    def address(part: int) -> str:
        values = (call.kind, call.repo.id, oid, str(size), str(part), upload, expires)
        grant = dict(zip(_FIELDS, values, strict=True))
        return (
            f"{call.base}/api/lfs?{urlencode({**grant, 'signature': _sign(call.hub.key, grant)})}"
        )

    action: dict[str, Any] = {"href": address(0)}
    if multipart and size > PART_SIZE:
        parts = range(1, math.ceil(size / PART_SIZE) + 1)
        action["header"] = {"chunk_size": str(PART_SIZE), **{str(n): address(n) for n in parts}}
    verify = f"{call.base}/{call.repo.web_path}.git/info/lfs/verify"
    return {**shown, "actions": {"upload": action, "verify": {"href": verify}}}


def _download(call: Call, oid: str, size: int) -> dict[str, Any]:
    if not call.repo.holds(oid):
        return {
            "oid": oid,
            "size": size,
            "error": {"code": 404, "message": "Object does not exist"},
        }
    action: dict[str, Any] = {
        "href": f"{call.base}/{call.repo.web_path}.git/info/lfs/objects/{oid}"
    }
    authorization = call.request.headers.get("authorization")
    if authorization:
        action["header"] = {"Authorization": authorization}
    return {"oid": oid, "size": size, "authenticated": True, "actions": {"download": action}}


def verify(call: Call) -> dict[str, Any]:
    """POST {repo}.git/info/lfs/verify `{oid, size}`"""
    body = call.json()
    oid = call.field("oid")
    path = call.hub.blobs.path(oid)
    if not call.repo.holds(oid) or path.stat().st_size != body.get("size"):
        raise HubError(404, f"LFS object {oid} with this size has not been uploaded")
    return {}


def download(call: Call) -> Response:
    """GET {repo}.git/info/lfs/objects/{oid}, for git-lfs"""
    try:
        path = call.hub.blobs.path(call.param("oid"))
    except ValueError as error:
        raise HubError(404, "Object does not exist") from error
    if not call.repo.holds(path.name):
        raise HubError(404, "Object does not exist")
    size = path.stat().st_size
    headers = {"Content-Length": str(size)}
    return StreamingResponse(
        file_chunks(path, 0, size), media_type="application/octet-stream", headers=headers
    )


def duplicate(call: Call) -> dict[str, Any]:
    """POST lfs-files/duplicate `{target: {type, name}, files: [{xetHash, sha256, filename}]}`

    Gives `target` large files of this repository without their bytes; a commit must follow. As on
    the Hub, only files that were uploaded through Xet can be.
    """
    target: Any = call.json().get("target")
    try:
        found = call.hub.repos.find(str(target["type"]), str(target["name"]))
        files = [
            (call.hub.blobs.path(f["sha256"]).name, str(f["xetHash"])) for f in call.items("files")
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise HubError(400, f"It needs a target and files by sha256: {error!r}") from error
    into = authorize(call.user, found, Access.WRITE)
    failed = []
    for sha256, name in files:
        if call.repo.holds(sha256) and xet_hash(call.hub, sha256) == name:
            into.hold(sha256)
        else:
            failed.append({"sha256": sha256, "error": "no such file in the source repository"})
    done = len(files) - len(failed)
    return {"success": not failed, "processed": len(files), "succeeded": done, "failed": failed}


def _grant(request: Request) -> dict[str, str]:
    """What a signed address allows. Raises `HubError` 403 unless it is ours and still valid."""
    query = request.query_params
    grant = {name: query.get(name, "") for name in _FIELDS}
    signature = query.get("signature", "")
    hub: Hub = request.app.state.hub
    genuine = hmac.compare_digest(_sign(hub.key, grant).encode(), signature.encode())
    if not genuine or int(grant["expires"]) < time.time():
        raise HubError(403, "The upload address is invalid or has expired: start the upload again")
    return grant


def _granted(hub: Hub, grant: dict[str, str]) -> Repo:
    """The repository that an address allows to upload to."""
    repo = hub.repos.find(grant["kind"], grant["repo"])
    if repo is None:
        raise repo_not_found()
    return repo


async def _at_most(stream: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    async for piece in stream:
        size -= len(piece)
        if size < 0:
            raise HubError(400, "The body is longer than announced")
        yield piece


def _partial(hub: Hub, upload: str) -> Path:
    return hub.blobs.tmp().with_name(f"upload-{upload}")


async def put(request: Request) -> Response:
    """PUT /api/lfs: a whole object (part 0), or one part written at its place in the file."""
    grant, hub = _grant(request), request.app.state.hub
    size, part = int(grant["size"]), int(grant["part"])
    if part == 0:
        try:
            await hub.blobs.receive(_at_most(request.stream(), size), grant["oid"])
        except DigestError as error:
            raise HubError(400, str(error)) from error
        _granted(hub, grant).hold(grant["oid"])
        return Response()
    start = (part - 1) * PART_SIZE
    length = min(PART_SIZE, size - start)
    path = _partial(hub, grant["upload"])
    path.touch()
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("r+b") as file:
        file.seek(start)
        async for piece in _at_most(request.stream(), length):
            await asyncio.to_thread(file.write, piece)
            digest.update(piece)
            length -= len(piece)
    if length:
        raise HubError(400, f"Part {part} is {length} bytes too short")
    return Response(headers={"ETag": f'"{digest.hexdigest()}"'})


async def complete(request: Request) -> Response:
    """POST /api/lfs: all parts are there; check the whole."""
    grant, hub = _grant(request), request.app.state.hub
    path = _partial(hub, grant["upload"])

    def adopt() -> None:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != grant["oid"]:
            path.unlink()
            raise HubError(400, f"The parts make {sha256}, announced was {grant['oid']}")
        hub.blobs.adopt(path, sha256)
        repo.hold(sha256)

    repo = _granted(hub, grant)
    if not repo.holds(grant["oid"]):  # a retried completion finds its work done
        if not path.exists():
            raise HubError(404, "No part of this upload has arrived")
        await asyncio.to_thread(adopt)
    return JSONResponse({"success": True})


ROUTES = [Route("/api/lfs", put, methods=["PUT"]), Route("/api/lfs", complete, methods=["POST"])]
