"""What a person can tell the bot: again, stop, wait, go on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.running import controls
from bot.running.failure import AGAIN, fail_port, fail_release
from bot.running.stops import Held
from porting.errors import UsageError
from registry import following
from registry.models import Port, PortState, Release, Subscription, now
from registry.ports import update_port
from tests.judged import BASE, Judged
from tests.judged import judged as judged  # the fixture
from tests.records import Records


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Records]:
    made = Records(tmp_path)
    yield made
    made.database.close()


def in_every_state(kept: Records) -> Iterator[tuple[int, PortState, str]]:
    """A subscription each, with a port in this state."""
    for number, state in enumerate(PortState):
        into = kept.subscribe(f"owner/to-{number}", f"vendor/{number}")
        facts = {"evidence": {"own": None}, "verdict": {"action": "ask"}, "made": {"a": "b"}}
        yield into, state, kept.port(into, state, f"port-{number:02}ab", **facts)


def test_it_is_tried_again_and_by_hand_from_the_start(kept: Records) -> None:
    into = kept.subscribe()
    key = kept.port(into, PortState.RUNNING, "port-1")
    for _ in AGAIN:
        assert fail_port(kept.context, key, kept.read(key).attempt, "theirs", "The Hub is down.")
        assert "It is tried again at 20" in kept.status(into).reason
        kept.change(Port, key, state=PortState.RUNNING)
    assert not fail_port(kept.context, key, kept.read(key).attempt, "theirs", "The Hub is down.")
    assert kept.status(into).state == "failed"
    assert f"It was tried {len(AGAIN) + 1} times" in kept.status(into).reason
    kept.do(controls.retry, key)
    kept.change(Port, key, state=PortState.RUNNING)
    assert fail_port(kept.context, key, kept.read(key).attempt, "theirs", "The Hub is down.")


def test_each_fault_has_tries_of_its_own(kept: Records) -> None:
    into = kept.subscribe()
    key = kept.port(into, PortState.RUNNING, "port-1")
    for blame in ("theirs", "theirs", "theirs", "gone", "gone"):
        assert fail_port(kept.context, key, kept.read(key).attempt, blame, "It failed.")
        kept.change(Port, key, state=PortState.RUNNING)
    assert not fail_port(kept.context, key, kept.read(key).attempt, "gone", "It is not there.")
    assert "It was looked for 3 times" in kept.status(into).reason


def test_every_state_can_be_begun_again_or_says_what_can_be_done(kept: Records) -> None:
    for _, state, key in in_every_state(kept):
        try:
            port = kept.do(controls.retry, key[5:7])
        except UsageError as refused:
            ways = ("portllm ", "pull request", "next release")
            assert state in str(refused) and any(way in str(refused) for way in ways)
            assert kept.read(key).attempt == 1
            continue
        assert port.due_at <= now()
        if state in (PortState.WAITING, PortState.JUDGED):
            assert (port.state, port.attempt) == (state, 1)
        else:
            assert (port.state, port.attempt) == (PortState.WAITING, 2)
            assert port.evidence is port.verdict is port.made is None


def test_every_state_can_be_stopped_or_says_what_can_be_done(kept: Records) -> None:
    for into, state, key in in_every_state(kept):
        try:
            kept.do(controls.cancel, key)
        except UsageError as refused:
            assert state in str(refused)
            continue
        port = kept.read(key)
        assert port.state == PortState.CANCELLED and f"portllm retry {key}" in port.reason
        with kept.database.session() as session:  # the same weights are not ported after all
            subscription = session.get_one(Subscription, into)
            assert subscription.settled_sha == session.get_one(Release, port.release_id).sha
        kept.change(Port, key, verdict=None)
        kept.bot.judge(key, 1, {})  # the step that it was at comes to its end
        assert kept.read(key).state == PortState.CANCELLED


def test_a_port_is_named_by_what_is_enough(kept: Records) -> None:
    into = kept.subscribe()
    for key in ("port-12ab", "port-12cd", "port-3"):
        kept.port(into, PortState.FAILED, key)
    for name, key in (("port-3", "port-3"), ("3", "port-3"), ("12a", "port-12ab")):
        assert kept.do(controls.find_port, name).key == key
    with pytest.raises(UsageError, match="port-12ab, port-12cd and others"):
        kept.do(controls.find_port, "12")
    for name in ("4", "ort-3", "%", "port_3"):
        with pytest.raises(UsageError, match="There is no port"):
            kept.do(controls.find_port, name)


def test_what_is_overtaken_is_not_begun_again(kept: Records) -> None:
    into = kept.subscribe()
    older = kept.port(into, PortState.FAILED, "port-1")
    kept.port(into, PortState.FAILED, "port-2")
    kept.do(controls.retry, older)
    kept.change(Port, older, state=PortState.FAILED)
    kept.change(Port, "port-2", state=PortState.ASKED)
    with pytest.raises(UsageError, match="came since, and has a port"):
        kept.do(controls.retry, older)


def test_a_release_that_could_not_be_read_is_looked_at_again(kept: Records) -> None:
    into = kept.subscribe()
    with pytest.raises(UsageError, match="No release of vendor/base is known"):
        kept.do(controls.retry_release, BASE)
    release = kept.release(into, None)
    fail_release(kept.context, release, 1, "yours", "config.json is missing.")
    assert kept.status(into).state == "skipped"
    assert f"portllm retry {BASE}" in kept.status(into).reason
    kept.do(controls.retry_release, BASE)
    assert kept.status(into).state == "classifying"
    with kept.database.session() as session:
        assert [each.attempt for each in following.unclassified_releases(session, now())] == [2]
    kept.change(Release, release, change="metadata", reason="Only README.md changed.")
    with pytest.raises(UsageError, match=r"could be read: Only README.md"):
        kept.do(controls.retry_release, BASE)


def test_a_pause_reaches_what_is_in_the_queue_already(judged: Judged) -> None:
    into = judged.subscribe(target := judged.target())
    key = judged.judge(into, "publish")
    judged.change(key, state=PortState.QUEUED)
    for stop, go_on in (
        ((controls.pause_all, "Moving"), (controls.resume_all,)),
        ((controls.pause, target), (controls.resume, target)),
    ):
        judged.control(*stop)
        attempt = judged.read(key).attempt
        with pytest.raises(Held):
            judged.publish(key)
        judged.bot.hand_back(key, attempt)
        judged.bot.hand_back(key, attempt)  # killed before its end was recorded
        port = judged.read(key)
        assert (port.state, port.attempt) == (PortState.JUDGED, attempt + 1)
        judged.control(*go_on)
    assert not judged.context.hub.exists(target)
    judged.publish(key)
    assert judged.read(key).state == PortState.PUBLISHED


def test_a_window_that_closes_in_the_queue_is_waited_for_again(judged: Judged) -> None:
    into = judged.subscribe(judged.target(), schedule="0 0 29 feb *")
    key = judged.judge(into, "publish")
    with pytest.raises(Held, match="Outside of its schedule"):
        judged.publish(key)


def test_an_answer_to_an_older_port_does_not_move_what_is_settled(kept: Records) -> None:
    into = kept.subscribe()
    older = kept.port(into, PortState.ASKED, "port-1")
    newer = kept.port(into, PortState.PUBLISHED, "port-2")
    with kept.database.session() as session:
        update_port(session, older, state=PortState.PUBLISHED)
    with kept.database.session() as session:
        settled = session.get_one(Subscription, into).settled_sha
        assert settled == session.get_one(Port, newer).release.sha
