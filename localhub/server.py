"""Running the hub: in a thread for tests and demos, or as a process of its own."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType

import uvicorn
from starlette.applications import Starlette

from localhub.app import create_app
from localhub.auth import Tokens
from localhub.faults import Faults
from localhub.git import git, run
from localhub.hub import open_hub
from localhub.jobs import Jobs
from localhub.limits import Limits
from localhub.moves import list_refs, move_ref
from localhub.repos import Repo, check_name
from localhub.traffic import Traffic
from localhub.tree import resolve
from localhub.webhooks import Webhooks


def first_token(root: Path) -> tuple[str, str]:
    """`(user, token)` to write with. A new hub gets the user `me`."""
    return Tokens(root).first()


def _config(app: Starlette) -> uvicorn.Config:
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
        uvicorn.Server(_config(create_app(open_hub(root)))).run(sockets=[listener])


class Server:
    """A hub in a thread, on a free port of this machine::

    with Server(tmp_path) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.add_user("alice"))
    """

    def __init__(self, root: Path, port: int = 0, *, limits: Limits | None = None) -> None:
        self.root = root
        self.limits = limits
        self.faults = Faults()
        self.traffic = Traffic()
        self._tokens = Tokens(root)
        self._port = port

    def add_user(self, name: str, *, orgs: Sequence[str] = (), role: str = "write") -> str:
        """A new token of the user, who also owns the namespaces `orgs`. `role`: read or write."""
        for namespace in (name, *orgs):
            check_name(namespace)
        return self._tokens.add(name, orgs=tuple(orgs), role=role)

    @property
    def webhooks(self) -> Webhooks:
        return self.hub.webhooks

    @property
    def jobs(self) -> Jobs:
        return self.hub.jobs

    def copy(self, repo_id: str, copies: Iterable[str]) -> None:
        """Give every id of `copies` a model repo like `repo_id`: thousands in seconds, in silence.

        They have the same commits, and thus the same shas, until they are committed to.
        """
        for copy in copies:
            self.hub.repos.copy(self._model(repo_id), copy)

    def force(self, repo_id: str, ref: str, sha: str) -> None:
        """Point a ref of a model at any commit it has, as a force-push does, and tell webhooks."""
        repo = self._model(repo_id)
        new, old = resolve(repo.path, sha), list_refs(repo.path).get(ref)
        with repo.lock:
            move_ref(repo.path, ref, new, old)
        self.webhooks.content_changed(repo, self.endpoint, [(ref, old, new)])

    def forget(self, repo_id: str, sha: str) -> None:
        """Let a commit vanish from a model: asked for, it is not found any more.

        Raises `ValueError` while a branch, a tag or a pull request still leads to it.
        """
        repo = self._model(repo_id)
        with repo.lock:
            git(repo.path, "gc", "--quiet", "--prune=now")
        if run(repo.path, "cat-file", "-e", sha).returncode == 0:
            raise ValueError(f"{repo_id} still has {sha}: move or delete the refs that lead to it")

    def _model(self, repo_id: str) -> Repo:
        repo = self.hub.repos.find("model", repo_id)
        if repo is None:
            raise ValueError(f"this hub has no model {repo_id}")
        return repo

    def __enter__(self) -> "Server":
        listener, self.endpoint = _listen("127.0.0.1", self._port)
        self.hub = open_hub(self.root)
        app = create_app(self.hub, faults=self.faults, traffic=self.traffic, limits=self.limits)
        self._server = uvicorn.Server(_config(app))
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
