"""Running the hub: in a thread for tests and demos, or as a process of its own."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import uvicorn

from localhub.app import create_app
from localhub.auth import Tokens
from localhub.faults import Faults
from localhub.repos import check_name
from localhub.traffic import Traffic


def first_token(root: Path) -> tuple[str, str]:
    """`(user, token)` to write with. A new hub gets the user `me`."""
    return Tokens(root).first()


def _config(root: Path, faults: Faults, traffic: Traffic | None = None) -> uvicorn.Config:
    app = create_app(root, faults=faults, traffic=traffic)
    # No access log: nothing about a request is written anywhere, least of all its token.
    return uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)


def _listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A socket that takes connections from now on, and the endpoint it is."""
    listener = socket.create_server((host, port))
    # Connections inherit it: head and body of an answer must not wait for each other's ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener, f"http://{host}:{listener.getsockname()[1]}"


def serve(root: Path, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until interrupted; `ready` is called with the endpoint once connections are taken."""
    listener, endpoint = _listen(host, port)
    ready(endpoint)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(_config(root, Faults())).run(sockets=[listener])


class Server:
    """A hub in a thread, on a free port of this machine::

    with Server(tmp_path) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.add_user("alice"))
    """

    def __init__(self, root: Path, port: int = 0) -> None:
        self.root = root
        self.faults = Faults()
        self.traffic = Traffic()
        self._tokens = Tokens(root)
        self._port = port

    def add_user(self, name: str, *, orgs: Sequence[str] = (), role: str = "write") -> str:
        """A new token of the user, who also owns the namespaces `orgs`. `role`: read or write."""
        for namespace in (name, *orgs):
            check_name(namespace)
        return self._tokens.add(name, orgs=tuple(orgs), role=role)

    def __enter__(self) -> "Server":
        listener, self.endpoint = _listen("127.0.0.1", self._port)
        self._server = uvicorn.Server(_config(self.root, self.faults, self.traffic))
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, daemon=True
        )
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the hub did not start")
            time.sleep(0.01)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._thread.join()
