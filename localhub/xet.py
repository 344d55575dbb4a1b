"""The write side of Xet, the protocol that a stock `huggingface_hub` uploads large files with.

The client asks the Hub for a token (`xet_token`), posts xorbs with the new chunks, then a shard
that says which chunks of which xorbs each file consists of. The server assembles the files there
and then, checks their sha256 and puts them into the `BlobStore`, where the commit finds them.
Downloads need nothing of this: no answer carries `X-Xet-Hash`, so clients read over plain HTTP.
Only `paths-info` shows a file's `xetHash`, which clients ask for before they copy a file between
repositories; the Hub's tree shows it as well, and clients would then read through Xet.

Source: "CAS API Documentation" of the Xet protocol specification (huggingface.co/docs/xet). The
newer endpoints (upload grants, `v2/shards`) answer 404, which makes clients take these.
"""

import asyncio
import functools
import hashlib
import hmac
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from localhub.hub import Call, Hub
from localhub.xet_format import (
    MAX_XORB_BYTES,
    FileEntry,
    XetFormatError,
    index_xorb,
    parse_shard,
    read_segment,
)

_log = logging.getLogger(__name__)

TOKEN_SECONDS = 900
_MAX_BODY_BYTES = MAX_XORB_BYTES + 1024**2  # headers of incompressible chunks come on top
_HASH = re.compile(r"[0-9a-f]{64}")
_MOUNT = "xet-cas"
_KEY = secrets.token_bytes(32)  # tokens live for minutes and need not survive the process


def xet_token(call: Call, kind: str) -> Response:
    """Answer `GET /api/.../xet-{kind}-token/{rev}`, where `kind` is "read" or "write".

    The route has checked that the user may read or write. The token is for this repository.
    """
    expiry = int(time.time()) + TOKEN_SECONDS
    claim = f"{expiry}.{kind}.{f'{call.kind}/{call.repo.id}'.encode().hex()}"
    token = f"{claim}.{_mac(claim)}"
    cas_url = str(call.request.url_for(_MOUNT, path="")).rstrip("/")
    return JSONResponse(
        {"casUrl": cas_url, "exp": expiry, "accessToken": token},
        headers={
            "X-Xet-Cas-Url": cas_url,
            "X-Xet-Access-Token": token,
            "X-Xet-Token-Expiration": str(expiry),
        },
    )


def xet_hash(hub: Hub, sha256: str) -> str | None:
    """What Xet calls a large file; None for one that came another way."""
    name = hub.xet / "files" / sha256
    return name.read_text() if name.exists() else None


def xet_routes(hub: Hub) -> list[BaseRoute]:
    """The CAS endpoints.

    The path contains a random id of this store: the client remembers per CAS URL which xorbs it
    has uploaded, and would not send them again to a new store behind an old address.
    """
    cas = _Cas(hub)
    routes = [
        Route("/v1/xorbs/default/{hash}", cas.post_xorb, methods=["POST"]),
        Route("/v1/shards", cas.post_shard, methods=["POST"]),
        Route("/{path:path}", _not_here, methods=["GET", "POST"]),
    ]
    return [Mount(f"/xet-cas/{cas.store_id()}", routes=routes, name=_MOUNT)]


class _Cas:
    """Xorbs on disk. They are kept for good: later shards refer to the chunks of earlier ones.

    A xorb's own hash is not recomputed. One stored under a false name cannot do more than make
    files that refer to it fail their sha256.
    """

    def __init__(self, hub: Hub) -> None:
        self._repos, self._blobs = hub.repos, hub.blobs
        self._root, self._names = hub.xet / "xorbs", hub.xet / "files"
        self._root.mkdir(parents=True, exist_ok=True)
        self._names.mkdir(exist_ok=True)

    def store_id(self) -> str:
        file = self._root / "store-id"
        if not file.exists():
            file.write_text(secrets.token_hex(8))
        return file.read_text()

    async def post_xorb(self, request: Request) -> Response:
        _require_write_token(request)
        path = self._path(request.path_params["hash"])
        tmp = self._blobs.tmp()
        try:
            with tmp.open("wb") as file:
                async for piece in _body(request):
                    file.write(piece)
            inserted = await asyncio.to_thread(_keep_xorb, tmp, path)
        except XetFormatError as error:
            raise _refusal(request, error) from error
        finally:
            tmp.unlink(missing_ok=True)
        return JSONResponse({"was_inserted": inserted})

    async def post_shard(self, request: Request) -> Response:
        kind, _, repo_id = _require_write_token(request).partition("/")
        shard = b"".join([piece async for piece in _body(request)])
        repo = self._repos.find(kind, repo_id)
        if repo is None:
            raise HTTPException(404, f"the repository {repo_id} is gone")
        try:
            for entry in await asyncio.to_thread(parse_shard, shard):
                # Also where another repository has the bytes: knowing a sha256 is not having them.
                if not repo.holds(entry.sha256):
                    await asyncio.to_thread(self._assemble, entry)
                    (self._names / entry.sha256).write_text(entry.xet_hash)
                    repo.hold(entry.sha256)
        except XetFormatError as error:
            raise _refusal(request, error) from error
        return JSONResponse({"result": 1})

    def _path(self, xorb: str) -> Path:
        if not _HASH.fullmatch(xorb):
            raise HTTPException(400, f"not a xorb hash: {xorb!r}")
        return self._root / xorb[:2] / xorb

    def _assemble(self, entry: FileEntry) -> None:
        """Write the file out of its xorbs, and adopt it when it hashes to what the shard says."""
        # A small shard can name the same chunks over and over: refuse what cannot fit.
        if entry.size > shutil.disk_usage(self._root).free:
            raise XetFormatError(f"no room for the {entry.size} bytes of {entry.sha256}")
        tmp = self._blobs.tmp()
        digest = hashlib.sha256()
        try:
            index = functools.lru_cache(maxsize=64)(index_xorb)  # segments take turns in xorbs
            with tmp.open("wb") as target:
                for segment in entry.segments:
                    path = self._path(segment.xorb)
                    if not path.exists():
                        raise XetFormatError(
                            f"xorb {segment.xorb} was never uploaded to this store: delete the "
                            "client's Xet cache ($HF_HOME/xet) and upload again"
                        )
                    for chunk in read_segment(path, index(path), segment):
                        digest.update(chunk)
                        target.write(chunk)
            if digest.hexdigest() != entry.sha256:
                raise XetFormatError(
                    f"the chunks hash to {digest.hexdigest()}, announced as {entry.sha256}"
                )
            self._blobs.adopt(tmp, entry.sha256)
        finally:
            tmp.unlink(missing_ok=True)


def _keep_xorb(tmp: Path, path: Path) -> bool:
    """Check the structure of an uploaded xorb and move it in. False when it was there already."""
    index_xorb(tmp)
    with tmp.open("rb") as file:
        os.fsync(file.fileno())
    if path.exists():
        return False
    path.parent.mkdir(exist_ok=True)
    tmp.replace(path)
    return True


async def _body(request: Request) -> AsyncIterator[bytes]:
    left = _MAX_BODY_BYTES
    async for piece in request.stream():
        left -= len(piece)
        if left < 0:
            raise HTTPException(413, f"more than {_MAX_BODY_BYTES} bytes")
        yield piece


async def _not_here(request: Request) -> Response:
    # Read the body first: a client still sending would see a broken connection, not the 404.
    async for _ in request.stream():
        pass
    return Response(status_code=404)


def _refusal(request: Request, error: XetFormatError) -> HTTPException:
    # The client reports the status only, so the reason goes to the server's log as well.
    _log.warning("%s refused: %s", request.url.path, error)
    return HTTPException(400, str(error))


def _require_write_token(request: Request) -> str:
    """The `kind/namespace/name` that the token of this request may write to."""
    _, _, token = request.headers.get("authorization", "").partition(" ")
    claim, _, mac = token.rpartition(".")
    if not hmac.compare_digest(mac.encode(), _mac(claim).encode()):
        raise HTTPException(401, "not a Xet access token of this server")
    expiry, kind, repo = claim.split(".")
    if int(expiry) <= time.time():
        raise HTTPException(401, "the Xet access token has expired")
    if kind != "write":
        raise HTTPException(403, "a write token is needed")
    return bytes.fromhex(repo).decode()


def _mac(claim: str) -> str:
    return hmac.new(_KEY, claim.encode(), "sha256").hexdigest()
