"""Asking by a pull request: one per target, brought up to date; a person's no is remembered."""

from datetime import timedelta

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bot.hub import HubRepo
from bot.publishing.requests import follow_up
from bot.publishing.targets import ports_to
from bot.running import controls
from bot.running.dispatch import _ready
from bot.running.failure import fail_port
from bot.running.stops import Overtaken
from bot.watching.classify import classify_release
from patch_cards import lock
from porting.errors import HubError
from registry.models import PortState, Release, Subscription, now
from tests.judged import PATCH, Judged, Killed
from tests.judged import judged as judged  # the fixture
from tests.judged import target as target


def requests(judged: Judged, repo: str) -> list[tuple[int, str]]:
    return [(each.number, each.status) for each in judged.context.hub.pull_requests(repo)]


def comments(judged: Judged, repo: str, number: int) -> list[str]:
    details = judged.api.get_discussion_details(repo, number)
    return [event.content for event in details.events if event.type == "comment"]


def test_the_pull_request_says_what_why_and_how_to_say_no(judged: Judged, target: str) -> None:
    key = judged.judge(judged.subscribe(target))
    judged.publish(key)
    port = judged.read(key)
    assert (port.state, port.published_sha) == (PortState.ASKED, None)
    number = int(port.url.rpartition("/")[2])
    (said,) = comments(judged, target, number)
    assert PATCH in said and port.job["new_sha"][:7] in said and "The evidence says ask." in said
    assert "close this" in said and f"portllm unsubscribe {PATCH}" in said
    judged.publish(key)  # before the step's end was recorded
    assert requests(judged, target) == [(number, "open")]


@pytest.mark.parametrize("lives", range(3))
def test_a_newer_port_takes_the_open_pull_request_over_once(
    judged: Judged, target: str, lives: int
) -> None:
    into = judged.subscribe(target)
    first = judged.judge(into)
    judged.publish(first, lives)
    ((number, _),) = requests(judged, target)
    second = judged.judge(into)
    judged.publish(second, lives)
    assert requests(judged, target) == [(number, "open")]
    details = judged.api.get_discussion_details(target, number)
    commits = [event.summary for event in details.events if event.type == "commit"]
    assert [second in each for each in commits] == [False, True]
    assert second in details.title
    said = comments(judged, target, number)
    assert len(said) == 2 and "newer release" in said[1] and "close this" in said[1]
    there = judged.context.hub.head(target, f"refs/pr/{number}")
    assert lock.read(HubRepo(judged.context.hub, target, there)).key == second
    before, after = judged.read(first), judged.read(second)
    assert before.state == PortState.SUPERSEDED and "went on to" in before.reason
    assert after.state == PortState.ASKED and after.url == before.url


def test_one_that_the_hub_did_not_tell_of_is_closed_once_it_does(
    judged: Judged, target: str
) -> None:
    key = judged.judge(judged.subscribe(target))
    judged.publisher.lives = 1
    with pytest.raises(Killed):
        judged.bot.publish(key, 1, {})
    judged.server.faults.add(rf"{target}/discussions$", stale=1)
    judged.publish(key)
    assert requests(judged, target) == [(2, "open"), (1, "closed")]
    follow_up(judged.context, target)
    assert judged.read(key).state == PortState.ASKED


def test_a_closed_pull_request_is_a_no_until_there_is_a_later_release(
    judged: Judged, target: str
) -> None:
    into = judged.subscribe(target)
    key = judged.judge(into)
    judged.publish(key)
    follow_up(judged.context, target)
    assert judged.read(key).state == PortState.ASKED
    judged.api.change_discussion_status(target, 1, "closed", comment="No, thanks")
    follow_up(judged.context, "owner/another")
    assert judged.read(key).state == PortState.ASKED
    follow_up(judged.context, target)
    port = judged.read(key)
    assert port.state == PortState.DECLINED and f"portllm retry {key}" in port.reason
    with judged.context.database.session() as session:
        assert session.get_one(Subscription, into).settled_sha == port.job["new_sha"]
    later = judged.judge(into)
    judged.publish(later)
    assert requests(judged, target) == [(2, "open"), (1, "closed")]
    assert judged.read(key).state == PortState.DECLINED

    judged.api.change_discussion_status(target, 2, "closed")
    follow_up(judged.context, target)
    judged.control(controls.retry, later)
    judged.make(later, "ask")
    judged.publish(later, lives=1)  # killed right after the new one was opened
    assert (
        requests(judged, target)[0] == (3, "open") and judged.read(later).state == PortState.ASKED
    )


def test_a_merged_pull_request_is_a_publication(judged: Judged, target: str) -> None:
    key = judged.judge(judged.subscribe(target))
    judged.publish(key)
    judged.api.merge_pull_request(target, 1)
    judged.change(key, due_at=judged.read(key).created_at)
    follow_up(judged.context)
    port = judged.read(key)
    head = judged.context.hub.head(target)
    assert (port.state, port.published_sha) == (PortState.PUBLISHED, head)
    tag = f"base-{port.job['new_sha'][:7]}"
    assert judged.context.hub.tags(target) == {tag: head} and tag in (port.url or "")
    follow_up(judged.context)
    assert judged.read(key).updated_at == port.updated_at


def test_whoever_looks_once_does_not_wait_for_the_next_look(judged: Judged, target: str) -> None:
    key = judged.judge(judged.subscribe(target))
    judged.publish(key)
    follow_up(judged.context, whenever=True)
    judged.api.change_discussion_status(target, 1, "closed")
    follow_up(judged.context)
    assert judged.read(key).state == PortState.ASKED
    follow_up(judged.context, whenever=True)
    assert judged.read(key).state == PortState.DECLINED


def test_a_merged_port_is_ours_where_the_target_is_followed_as_a_base(
    judged: Judged, target: str
) -> None:
    judged.publish(judged.judge(judged.subscribe(target)))
    before = judged.context.hub.head(target)
    judged.api.merge_pull_request(target, 1)
    release = judged.release()
    with judged.context.database.session() as session:
        record = session.get_one(Release, release)
        record.change = record.reason = None
        record.from_repo = record.repo = target
        record.from_sha, record.sha = before, judged.context.hub.head(target)
    assert classify_release(judged.context, release).change == "ours"


@pytest.mark.parametrize("lives", range(4))
def test_a_publication_closes_what_was_asked_before_and_that_is_no_no(
    judged: Judged, target: str, lives: int
) -> None:
    into = judged.subscribe(target)
    asked = judged.judge(into)
    judged.publish(asked)
    published = judged.judge(into, "publish")
    judged.publish(published, lives)
    assert requests(judged, target) == [(1, "closed")]
    assert "newer port is on main" in comments(judged, target, 1)[-1]
    follow_up(judged.context, target)
    assert judged.read(asked).state == PortState.SUPERSEDED
    port = judged.read(published)
    assert port.state == PortState.PUBLISHED
    ours = [each for each in judged.api.list_repo_commits(target) if "Port to" in each.title]
    assert [each.commit_id for each in ours] == [port.published_sha]


def test_what_is_not_ours_is_left_alone(judged: Judged, target: str) -> None:
    into = judged.subscribe(target)
    judged.push(target, {"NOTES.md": b"Mine"})
    judged.api.create_pull_request(target, "An idea of mine")
    key = judged.judge(into)
    judged.publish(key)
    judged.api.rename_discussion(target, 2, new_title="A better name")
    second = judged.judge(into)
    judged.publish(second)  # which is known by its address, if not by its name
    judged.publish(judged.judge(into, "publish"))
    assert requests(judged, target) == [(2, "closed"), (1, "draft")]


@pytest.mark.parametrize("action", ["ask", "publish"])
def test_an_answer_counts_though_nobody_looked_before_the_next_port(
    judged: Judged, target: str, action: str
) -> None:
    into = judged.subscribe(target)
    merged, closed = judged.judge(into), judged.judge(into)
    judged.publish(merged)
    judged.api.merge_pull_request(target, 1)
    judged.publish(closed)
    judged.api.change_discussion_status(target, 2, "closed")
    judged.publish(judged.judge(into, action))
    assert judged.read(merged).state == PortState.PUBLISHED
    assert judged.read(closed).state == PortState.DECLINED


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["ask", "publish", "close", "merge", "look"]), st.integers(0, 4)),
    min_size=3,
    max_size=7,
)


@settings(max_examples=6, deadline=None, phases=[Phase.generate])
@given(actions=ACTIONS)
def test_whatever_happens_there_is_one_open_at_most_and_the_records_agree(
    judged: Judged, actions: list[tuple[str, int]]
) -> None:
    target = judged.target()
    judged.api.create_repo(target)
    into, declined = judged.subscribe(target), set()
    for action, lives in actions:
        if action in ("ask", "publish"):
            judged.publish(judged.judge(into, action), lives)
        elif action == "look":
            follow_up(judged.context, target)
        else:
            _answer(judged, target, action, declined)
        assert [status for _, status in requests(judged, target)].count("open") <= 1
    follow_up(judged.context, target)
    _check(judged, target, declined)


def _answer(judged: Judged, target: str, action: str, declined: set[str]) -> None:
    for number, status in requests(judged, target):
        if status == "open" and action == "merge":
            judged.api.merge_pull_request(target, number)
        elif status == "open":
            declined.add(judged.api.get_discussion_details(target, number).title)
            judged.api.change_discussion_status(target, number, "closed")


def _check(judged: Judged, target: str, declined: set[str]) -> None:
    hub = judged.context.hub
    found = judged.control(ports_to, target, *PortState)
    states = {port.key: port.state for port in found}
    assert {key for key, state in states.items() if state == PortState.DECLINED} == {
        key for key in states if any(key in title for title in declined)
    }
    asked = {port.url for port in found if port.state == PortState.ASKED}
    assert asked == {each.url for each in hub.pull_requests(target) if each.is_open}
    published = {port.published_sha for port in found if port.state == PortState.PUBLISHED}
    assert set(hub.tags(target).values()) == published


def test_an_older_port_that_comes_late_does_not_take_the_newer_ones_place(
    judged: Judged, target: str
) -> None:
    into = judged.subscribe(target)
    older, newer = judged.judge(into), judged.judge(into)
    judged.publish(newer)
    ((number, _),) = requests(judged, target)
    there = judged.context.hub.head(target, f"refs/pr/{number}")
    with pytest.raises(Overtaken, match=newer):
        judged.bot.publish(older, 1, {})
    assert judged.context.hub.head(target, f"refs/pr/{number}") == there
    assert judged.read(newer).state == PortState.ASKED


def test_a_tag_that_the_hub_did_not_tell_of_yet_is_no_refusal(judged: Judged, target: str) -> None:
    key = judged.judge(judged.subscribe(target), "publish")
    judged.publish(key)
    port = judged.read(key)
    tag = (port.url or "").rpartition("/")[2]
    judged.server.faults.add(rf"{target}/refs", stale=1)
    with pytest.raises(HubError, match="did not tell of tag"):
        judged.publisher.tag(target, tag, port.published_sha or "")
    judged.publisher.tag(target, tag, port.published_sha or "")
    assert judged.context.hub.tags(target) == {tag: port.published_sha}


def test_what_was_pushed_before_a_newer_port_came_is_recorded_not_superseded(
    judged: Judged, target: str
) -> None:
    into = judged.subscribe(target)
    older = judged.judge(into, "publish")
    judged.publisher.lives = 1  # it dies once it has committed
    with pytest.raises(Killed):
        judged.bot.publish(older, 1, {})
    assert fail_port(judged.context, older, 1, "theirs", "The Hub is down.")
    newer = judged.judge(into)
    judged.publish(newer)
    with judged.context.database.session() as session:
        ready = _ready(session, now() + timedelta(days=2), PortState.JUDGED)
    assert older in {key for key, _ in ready}
    judged.publish(older)
    assert judged.read(older).state == PortState.PUBLISHED
    assert judged.read(newer).state == PortState.ASKED
    assert requests(judged, target) == [(1, "open")]
    assert len(judged.context.hub.tags(target)) == 1
