"""A bot's pull request through its whole life, and the events it causes."""

import queue
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from localhub.server import Server
from localhub.webhooks import Delivery
from tests.test_localhub_community import Receiver, receiver

__all__ = ["receiver"]  # a fixture
MODEL = "alice/m"
WATCH = [{"type": "model", "name": MODEL}]


@pytest.fixture
def api(hub: Server) -> HfApi:
    api = HfApi(endpoint=hub.endpoint, token=hub.add_user("alice"))
    api.create_repo(MODEL)
    return api


@pytest.fixture
def bot(hub: Server) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.add_user("bot"))


def commit(api: HfApi, path: str, content: str = "content", **more: Any) -> Any:
    operations = [CommitOperationAdd(path, content.encode())]
    return api.create_commit(MODEL, operations, commit_message=f"Add {path}", **more)


@pytest.fixture
def told(hub: Server, api: HfApi) -> Iterator[list[Delivery]]:
    """Every event of the model, in order; none is sent."""
    found: list[Delivery] = []
    hub.webhooks.plan = lambda delivery: found.append(delivery) or ()
    api.create_webhook(url=hub.endpoint, watched=WATCH)
    yield found


def events(told: list[Delivery]) -> list[tuple[str, str]]:
    """What happened since the last look."""
    seen = [each.payload["event"] for each in told]
    told.clear()
    return [(event["scope"], event["action"]) for event in seen]


def test_a_bot_keeps_its_pull_request_up_to_date(api: HfApi, bot: HfApi) -> None:
    first = commit(bot, "port", "1", create_pr=True, commit_description="The first release")
    ref, num = first.pr_revision, first.pr_num
    with pytest.raises(HfHubHTTPError, match="412"):
        parent = api.model_info(MODEL).sha
        commit(bot, "port", "2", revision=ref, parent_commit=parent)
    second = commit(bot, "port", "2", revision=ref, parent_commit=first.oid)
    assert bot.model_info(MODEL, revision=ref).sha == second.oid
    assert bot.list_repo_commits(MODEL, revision=ref)[1].commit_id == first.oid
    bot.rename_discussion(MODEL, num, "Port to the second release")
    bot.comment_discussion(MODEL, num, "A second release came out")
    opening = bot.get_discussion_details(MODEL, num).events[0]
    edited = bot.edit_discussion_comment(MODEL, num, opening.id, "The **second** release")
    assert edited.edited and "<strong>second</strong>" in edited.rendered
    with pytest.raises(HfHubHTTPError, match="by its author only"):
        api.edit_discussion_comment(MODEL, num, opening.id, "x")
    with pytest.raises(HfHubHTTPError, match="404"):
        bot.edit_discussion_comment(MODEL, num, "0" * 24, "x")
    pull = api.get_discussion_details(MODEL, num)
    assert (pull.title, pull.status, pull.num) == ("Port to the second release", "open", num)
    assert [e.content for e in pull.events if e.type == "comment"] == [
        "The **second** release",
        "A second release came out",
    ]
    assert pull.events[0].edit_history[0]["raw"] == "The first release"
    assert [e.oid for e in pull.events if e.type == "commit"] == [first.oid, second.oid]
    api.merge_pull_request(MODEL, num)
    path = api.hf_hub_download(MODEL, "port", revision=api.model_info(MODEL).sha)
    assert Path(path).read_text() == "2"


def test_a_closed_pull_request_is_not_merged_and_stays_closed(api: HfApi, bot: HfApi) -> None:
    head = api.model_info(MODEL).sha
    opened = commit(bot, "port", create_pr=True)
    api.change_discussion_status(MODEL, opened.pr_num, "closed", comment="No, thanks")
    pull = bot.get_discussion_details(MODEL, opened.pr_num)
    assert (pull.status, pull.merge_commit_oid) == ("closed", None)
    assert [(e.type, e.author) for e in pull.events[-2:]] == [
        ("comment", "alice"),
        ("status-change", "alice"),
    ]
    assert api.model_info(MODEL).sha == head
    with pytest.raises(HfHubHTTPError, match="Only an open pull request"):
        api.merge_pull_request(MODEL, opened.pr_num)
    listed = list(bot.get_repo_discussions(MODEL, author="bot", discussion_status="closed"))
    assert [(each.num, each.status) for each in listed] == [(opened.pr_num, "closed")]
    assert list(bot.get_repo_discussions(MODEL, author="bot", discussion_status="open")) == []
    api.change_discussion_status(MODEL, opened.pr_num, "open")
    api.merge_pull_request(MODEL, opened.pr_num)
    merged = bot.get_discussion_details(MODEL, opened.pr_num)
    assert merged.merge_commit_oid == api.model_info(MODEL).sha
    with pytest.raises(HfHubHTTPError, match="unless it is merged"):
        api.change_discussion_status(MODEL, opened.pr_num, "closed")


def test_the_events_of_refs(api: HfApi, told: list[Delivery]) -> None:
    head = str(api.model_info(MODEL).sha)

    def moved() -> list[tuple[str, str | None, str | None]]:
        assert {d.payload["event"]["scope"] for d in told} <= {"repo.content"}
        refs = [ref for delivery in told for ref in delivery.payload["updatedRefs"]]
        told.clear()
        return [(ref["ref"], ref["oldSha"], ref["newSha"]) for ref in refs]

    api.create_branch(MODEL, branch="next")
    assert moved() == [("refs/heads/next", None, head)]
    new = commit(api, "a", revision="next").oid
    assert moved() == [("refs/heads/next", head, new)]
    api.delete_branch(MODEL, branch="next")
    assert moved() == [("refs/heads/next", new, None)]
    api.create_tag(MODEL, tag="v1", revision=new)
    api.create_tag(MODEL, tag="v2", tag_message="annotated")
    assert moved() == [("refs/tags/v1", None, new), ("refs/tags/v2", None, head)]
    api.delete_tag(MODEL, tag="v2")
    assert moved() == [("refs/tags/v2", head, None)]
    api.super_squash_history(MODEL)
    assert moved() == [("refs/heads/main", head, api.model_info(MODEL).sha)]


def test_the_events_of_a_pull_request(api: HfApi, bot: HfApi, told: list[Delivery]) -> None:
    opened = commit(bot, "a", create_pr=True)
    assert events(told) == [("discussion", "create"), ("repo.content", "update")]
    commit(bot, "b", revision=opened.pr_revision)
    assert told[0].payload["updatedRefs"][0]["ref"] == opened.pr_revision
    assert told[0].payload["repo"]["headSha"] == api.model_info(MODEL).sha
    assert events(told) == [("repo.content", "update")]
    comment = bot.comment_discussion(MODEL, 1, "c")
    bot.edit_discussion_comment(MODEL, 1, comment.id, "d")
    assert events(told) == [("discussion.comment", "create"), ("discussion.comment", "update")]
    bot.rename_discussion(MODEL, 1, "e")
    for status in ("closed", "open"):
        api.change_discussion_status(MODEL, 1, status)
    api.merge_pull_request(MODEL, 1)
    shown = [d.payload["discussion"] for d in told if "discussion" in d.payload]
    assert [each["status"] for each in shown] == ["open", "closed", "open", "merged"]
    assert all("headSha" not in d.payload["repo"] for d in told if "discussion" in d.payload)
    assert told[-1].payload["updatedRefs"][0]["ref"] == "refs/heads/main"
    assert events(told) == [("discussion", "update")] * 4 + [("repo.content", "update")]


def test_deliveries_dropped_doubled_delayed_and_in_another_order(
    hub: Server, api: HfApi, receiver: Receiver
) -> None:
    """Each commit is told as often as the plan says, however the copies are spread in time."""
    draw = random.Random(5)
    planned: list[tuple[str, int]] = []
    events: list[Delivery] = []

    def plan(delivery: Delivery) -> list[float]:
        waits = [draw.choice((0.0, 0.05)) for _ in range(draw.randrange(4))]
        planned.append((delivery.payload["updatedRefs"][0]["newSha"], len(waits)))
        events.append(delivery)
        return waits

    hub.webhooks.plan = plan
    api.create_webhook(url=receiver.url, watched=WATCH, domains=["repo"])
    shas = [commit(api, f"{n}").oid for n in range(8)]
    assert [sha for sha, _ in planned] == shas
    assert {times for _, times in planned} == {0, 1, 2, 3}
    expected = sorted(sha for sha, times in planned for _ in range(times))
    got = [receiver.next()["updatedRefs"][0]["newSha"] for _ in expected]
    assert sorted(got) == expected
    for delivery in reversed(events):  # a replay, in an order of one's own
        hub.webhooks.deliver(delivery)
    assert [receiver.next()["updatedRefs"][0]["newSha"] for _ in shas] == shas[::-1]
    with pytest.raises(queue.Empty):
        receiver.got.get_nowait()
