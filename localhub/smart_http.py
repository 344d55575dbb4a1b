"""Reading repositories with git itself: the smart HTTP protocol's fetch half (gitprotocol-http)."""

import asyncio
import zlib
from collections.abc import AsyncIterator

from starlette.responses import Response, StreamingResponse

from localhub.auth import Access, authorize
from localhub.errors import HubError
from localhub.git import CONFIG, ENVIRONMENT, git
from localhub.hub import MAX_BODY, Call
from localhub.repos import Repo

_SERVICE = "git-upload-pack"


def _repo(call: Call) -> Repo:
    """The repository; git is asked for a password where others get a 404."""
    found = call.hub.repos.find(call.kind, call.repo_id)
    try:
        return authorize(call.user, found, Access.CONTENT)
    except HubError as error:
        if call.user is None:
            challenge = {"WWW-Authenticate": 'Basic realm="localhub", charset="UTF-8"'}
            raise HubError(401, error.message, headers=challenge) from error
        raise


def _environment(call: Call) -> dict[str, str]:
    version = call.request.headers.get("git-protocol", "")
    return {"GIT_PROTOCOL": version} if version in ("version=1", "version=2") else {}


def info_refs(call: Call) -> Response:
    """GET info/refs?service=git-upload-pack"""
    repo = _repo(call)
    if call.query("service") != _SERVICE:
        raise HubError(403, "This hub is read-only through git: push through the HTTP API")
    env = _environment(call)
    args = ("upload-pack", "--stateless-rpc", "--advertise-refs", str(repo.path))
    advertised = git(repo.path, *args, env=env)
    if env.get("GIT_PROTOCOL") != "version=2":
        line = f"# service={_SERVICE}\n"
        advertised = f"{len(line) + 4:04x}{line}0000".encode() + advertised
    headers = {"Cache-Control": "no-cache"}
    return Response(advertised, 200, headers, f"application/x-{_SERVICE}-advertisement")


def upload_pack(call: Call) -> Response:
    """POST git-upload-pack"""
    repo, body = _repo(call), call.body
    if call.request.headers.get("content-encoding") == "gzip":
        body = _unzip(body)
    env = {**ENVIRONMENT, **_environment(call)}

    async def pack() -> AsyncIterator[bytes]:
        process = await asyncio.create_subprocess_exec(
            *("git", *CONFIG, "upload-pack", "--stateless-rpc", str(repo.path)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=env,
        )
        assert process.stdin and process.stdout
        try:
            process.stdin.write(body)
            process.stdin.write_eof()
            while chunk := await process.stdout.read(1 << 20):
                yield chunk
        finally:
            if process.returncode is None:  # the client went away
                process.kill()
            await process.wait()

    return StreamingResponse(
        pack(), 200, {"Cache-Control": "no-cache"}, f"application/x-{_SERVICE}-result"
    )


def _unzip(body: bytes) -> bytes:
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        plain = inflate.decompress(body, MAX_BODY)
    except zlib.error as error:
        raise HubError(400, f"The body is not gzip: {error}") from error
    if inflate.unconsumed_tail:
        raise HubError(413, f"The request is larger than {MAX_BODY} bytes")
    return plain
