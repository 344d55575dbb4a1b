"""Pull requests, discussions and webhooks."""

import http.server
import json
import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session

from localhub.server import Server


@pytest.fixture
def api(hub: Server) -> HfApi:
    api = HfApi(endpoint=hub.endpoint, token=hub.add_user("alice"))
    api.create_repo("alice/m")
    return api


@pytest.fixture
def bob(hub: Server) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.add_user("bob"))


def commit(api: HfApi, path: str, content: bytes = b"content\n", **more) -> Any:
    operations = [CommitOperationAdd(path, content)]
    return api.create_commit("alice/m", operations, commit_message=f"Add {path}", **more)


def test_life_of_a_strangers_pull_request(api: HfApi, bob: HfApi) -> None:
    head = api.model_info("alice/m").sha
    info = commit(bob, "a.safetensors", b"\0" * 5000, create_pr=True, commit_description="Why")
    assert (info.pr_num, info.pr_revision) == (1, "refs/pr/1")
    assert api.model_info("alice/m").sha == head
    assert api.model_info("alice/m", revision="refs/pr/1").sha == info.oid
    refs = api.list_repo_refs("alice/m", include_pull_requests=True)
    assert [(ref.ref, ref.target_commit) for ref in refs.pull_requests] == [("refs/pr/1", info.oid)]
    commit(bob, "b.txt", revision="refs/pr/1")
    pull = api.get_discussion_details("alice/m", 1)
    assert (pull.title, pull.status, pull.author) == ("Add a.safetensors", "open", "bob")
    assert pull.is_pull_request and pull.target_branch == "refs/heads/main"
    assert "+oid sha256:" in pull.diff and "+++ b/b.txt" in pull.diff
    assert pull.conflicting_files == []
    assert [event.type for event in pull.events] == ["comment", "commit", "commit"]
    with pytest.raises(HfHubHTTPError, match="403"):
        bob.merge_pull_request("alice/m", 1)
    with pytest.raises(HfHubHTTPError, match="403"):
        commit(bob, "c.txt")
    commit(api, "main.txt")  # the base moves on, without a conflict
    api.merge_pull_request("alice/m", 1, comment="Thanks")
    merged = api.get_discussion_details("alice/m", 1)
    assert merged.status == "merged" and "+++ b/b.txt" in merged.diff
    assert merged.merge_commit_oid == api.model_info("alice/m").sha
    expected = {".gitattributes", "a.safetensors", "b.txt", "main.txt"}
    assert set(api.list_repo_files("alice/m")) == expected
    assert api.list_repo_commits("alice/m")[0].title == "Add a.safetensors (#1)"
    with pytest.raises(HfHubHTTPError, match="Only an open pull request"):
        api.merge_pull_request("alice/m", 1)


def test_conflict_is_409(api: HfApi) -> None:
    commit(api, "a.txt", b"one\n")
    commit(api, "a.txt", b"two\n", create_pr=True)
    commit(api, "a.txt", b"three\n")
    assert api.get_discussion_details("alice/m", 1).conflicting_files == ["a.txt"]
    with pytest.raises(HfHubHTTPError, match=r"Merge conflict in a\.txt") as caught:
        api.merge_pull_request("alice/m", 1)
    assert caught.value.response.status_code == 409


def test_draft_pull_request_and_upload_to_it(api: HfApi) -> None:
    pull = api.create_pull_request("alice/m", "  A title ", description="d")
    assert (pull.title, pull.status) == ("A title", "draft")
    commit(api, "a.txt", revision=pull.git_reference)
    with pytest.raises(HfHubHTTPError):
        api.merge_pull_request("alice/m", pull.num)
    api.change_discussion_status("alice/m", pull.num, "open")
    api.merge_pull_request("alice/m", pull.num)
    assert api.file_exists("alice/m", "a.txt")


def test_discussions(api: HfApi, bob: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bob.create_discussion("alice/m", "A question", description="*Why?*")
    assert first.events[0].rendered.strip() == "<p><em>Why?</em></p>"
    comment = api.comment_discussion("alice/m", first.num, "Because <script>x</script> ![i](i.png)")
    assert 'src="/alice/m/resolve/main/i.png"' in comment.rendered
    assert comment.content.startswith("Because <script>") and "script" not in comment.rendered
    assert bob.rename_discussion("alice/m", first.num, "A better question").new_title
    closed = api.change_discussion_status("alice/m", first.num, "closed", comment="done")
    assert closed.new_status == "closed"
    commit(api, "x", create_pr=True)
    listed = api.get_repo_discussions
    assert [d.num for d in listed("alice/m")] == [2, 1]
    assert [d.num for d in listed("alice/m", discussion_type="pull_request")] == [2]
    assert [d.num for d in listed("alice/m", discussion_status="closed")] == [1]
    assert [d.title for d in listed("alice/m", author="bob")] == ["A better question"]
    monkeypatch.setattr("localhub.discussions.PAGE", 1)
    assert [d.num for d in listed("alice/m")] == [2, 1]
    with pytest.raises(HfHubHTTPError, match="403"):
        bob.change_discussion_status("alice/m", 2, "closed")
    with pytest.raises(HfHubHTTPError, match="404"):
        api.get_discussion_details("alice/m", 99)


class Receiver(http.server.ThreadingHTTPServer):
    """Takes webhooks; the first `failures` deliveries are answered with 500."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: queue.Queue[tuple[str | None, dict[str, Any]]] = queue.Queue()
        self.failures = 0
        self.url = f"http://127.0.0.1:{self.server_port}/hook"

    def next(self) -> dict[str, Any]:
        return self.got.get(timeout=20)[1]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.failures:
            self.server.failures -= 1
            self.send_error(500)
            return
        self.server.got.put((self.headers.get("X-Webhook-Secret"), body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


WATCH = [{"type": "model", "name": "alice/m"}]


def test_webhook_tells_which_refs_moved(
    hub: Server, api: HfApi, bob: HfApi, receiver: Receiver
) -> None:
    hook = bob.create_webhook(url=receiver.url, watched=WATCH, domains=["repo"], secret="s3cret")
    old = api.model_info("alice/m").sha
    new = commit(api, "a").oid
    secret, payload = receiver.got.get(timeout=20)
    assert secret == "s3cret"
    assert payload["event"] == {"action": "update", "scope": "repo.content"}
    assert payload["updatedRefs"] == [{"ref": "refs/heads/main", "oldSha": old, "newSha": new}]
    assert payload["webhook"] == {"id": hook.id, "version": 3}
    repo = payload["repo"]
    assert (repo["type"], repo["name"], repo["headSha"]) == ("model", "alice/m", new)
    assert repo["url"]["web"] == f"{hub.endpoint}/alice/m"
    assert get_session().get(repo["url"]["api"]).json()["sha"] == new
    api.create_tag("alice/m", tag="v1")
    assert receiver.next()["updatedRefs"] == [
        {"ref": "refs/tags/v1", "oldSha": None, "newSha": new}
    ]


def test_webhook_is_tried_again(api: HfApi, receiver: Receiver) -> None:
    receiver.failures = 1
    api.create_webhook(url=receiver.url, watched=WATCH)
    new = commit(api, "a").oid
    assert receiver.next()["updatedRefs"][0]["newSha"] == new


def test_webhooks_for_discussions_and_private_repos(
    api: HfApi, bob: HfApi, receiver: Receiver
) -> None:
    watched = [{"type": "user", "name": "alice"}]
    bob.create_webhook(url=receiver.url, watched=watched, domains=["discussion", "repo"])
    api.update_repo_settings("alice/m", private=True)
    commit(api, "hidden")  # bob may not see this one
    api.update_repo_settings("alice/m", private=False)
    assert receiver.next()["updatedConfig"] == {"private": False}
    api.create_discussion("alice/m", "Hello", description="d")
    payload = receiver.next()
    assert payload["event"] == {"action": "create", "scope": "discussion"}
    assert (payload["discussion"]["num"], payload["discussion"]["title"]) == (1, "Hello")
    api.comment_discussion("alice/m", 1, "There")
    payload = receiver.next()
    assert payload["event"]["scope"] == "discussion.comment"
    assert payload["comment"]["content"] == "There"
    api.create_repo("alice/new")
    assert receiver.next()["event"] == {"action": "create", "scope": "repo"}
    api.move_repo("alice/new", "alice/newer")
    assert receiver.next()["movedTo"]["name"] == "alice/newer"
    api.delete_repo("alice/newer")
    assert receiver.next()["event"] == {"action": "delete", "scope": "repo"}


def test_managing_webhooks(api: HfApi, bob: HfApi, receiver: Receiver) -> None:
    hook = api.create_webhook(url="http://127.0.0.1:9/x", watched=WATCH, secret="s")
    assert hook.domains == ["repo", "discussion"] and not hook.disabled
    assert api.get_webhook(hook.id) == hook
    assert [each.id for each in api.list_webhooks()] == [hook.id]
    assert bob.list_webhooks() == []
    with pytest.raises(HfHubHTTPError, match="404"):
        bob.delete_webhook(hook.id)
    assert api.disable_webhook(hook.id).disabled
    updated = api.update_webhook(hook.id, url=receiver.url)
    assert (updated.url, updated.watched, updated.secret) == (receiver.url, hook.watched, "s")
    commit(api, "not delivered")
    assert not api.enable_webhook(hook.id).disabled
    new = commit(api, "delivered").oid
    assert receiver.next()["updatedRefs"][0]["newSha"] == new
    api.delete_webhook(hook.id)
    assert api.list_webhooks() == []
    with pytest.raises(HfHubHTTPError, match=r"http\(s\)"):
        api.create_webhook(url="file:///etc/passwd", watched=WATCH)
