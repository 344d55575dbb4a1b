"""What a person can tell the bot: again, stop, wait, go on."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from bot.config.discovery import look_for_configs
from bot.hub import Hub
from bot.publishing.requests import follow_up
from bot.running import controls
from bot.running.failure import AGAIN, fail_port, fail_release
from bot.running.stops import Held
from bot.showcase.show import keep_current
from bot.trust.audit import audit
from judging.verdict import Verdict
from porting.errors import UsageError
from registry import following, records
from registry.models import Port, PortState, Release, Rule, Subscription, now
from registry.ports import update_port
from registry.setback import mend
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


GOOD = Verdict(action="publish", reason="It is good.")


def judging(kept: Records, monkeypatch: pytest.MonkeyPatch, judge: Callable[..., Verdict]) -> None:
    """From here on this is how ports are judged."""
    monkeypatch.setattr("bot.running.workflow.judge", judge)
    monkeypatch.setattr(kept.bot, "job", lambda _: SimpleNamespace(judged_by=None), raising=False)


def test_every_state_can_be_stopped_or_says_what_can_be_done(
    kept: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    judging(kept, monkeypatch, lambda *_: GOOD)
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


def test_what_was_superseded_is_begun_again_once_what_took_its_place_is_lost(kept: Records) -> None:
    into = kept.subscribe()
    older = kept.port(into, PortState.SUPERSEDED, "port-1")
    kept.port(into, PortState.RUNNING, "port-2")
    with pytest.raises(UsageError, match="came since, and has a port"):
        kept.do(controls.retry, older)
    kept.change(Port, "port-2", state=PortState.REFUSED)
    assert kept.do(controls.retry, older).state == PortState.WAITING


def test_who_stops_it_while_it_is_judged_is_heeded(
    kept: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = kept.port(kept.subscribe(), PortState.RUNNING, "port-1")

    def judge(*_: object) -> Verdict:
        kept.do(controls.cancel, key)
        return GOOD

    judging(kept, monkeypatch, judge)
    kept.bot.judge(key, 1, {"engine": "any"})
    assert kept.read(key).state == PortState.CANCELLED and kept.read(key).verdict is None


def begin(kept: Records, monkeypatch: pytest.MonkeyPatch, release: int, *wanted: int) -> None:
    monkeypatch.setattr("bot.running.workflow.subscriptions_to_port", lambda *_: [*wanted])
    kept.bot.begin_ports(release, {"change": "weights"})


def states(kept: Records) -> dict[tuple[int, int], PortState]:
    """Of all ports, by subscription and release."""
    with kept.database.session() as session:
        found = session.query(Port)
        return {(port.subscription_id, port.release_id): port.state for port in found}


def test_the_same_inputs_by_another_rule_are_a_port_of_its_own(
    kept: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = kept.subscribe()
    begin(kept, monkeypatch, release := kept.release(first), first)
    with kept.database.session() as session:
        (port,) = session.query(Port)
        moved = session.get_one(Release, release)
        controls.cancel(session, port.key)
        patch = session.get_one(Subscription, first).patch
        records.unsubscribe(session, patch.repo, None)
        stood = following.Head(BASE, "v1", "a" * 40)
        base = following.follow(session, Rule.TAGS, BASE, "v*", [stood])
        second = records.subscribe(session, patch, base, "owner/ported", "adapter", None).id
        (tagged,) = following.observe(session, base.id, [following.Head(BASE, "v2", moved.sha)])
        again = tagged.id
    for _ in range(2):  # killed before its end was recorded, the step runs again
        begin(kept, monkeypatch, again, second)
    waiting, cancelled = PortState.WAITING, PortState.CANCELLED
    assert states(kept) == {(first, release): cancelled, (second, again): waiting}


def test_where_others_start_from_makes_no_second_port(
    kept: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = kept.subscribe(), kept.subscribe("other/ported")
    begin(kept, monkeypatch, release := kept.release(first), first)
    with kept.database.session() as session:
        moved = session.get_one(Release, release)
        facts = {name: getattr(moved, name) for name in ("base_id", "repo", "ref", "sha")}
        asked = Release(from_repo=BASE, from_ref="v0", from_sha="0" * 40, **facts)
        session.add(asked)
        session.flush()
        again = asked.id
    begin(kept, monkeypatch, again, first, second)
    assert set(states(kept)) == {(first, release), (second, again)}
    back = kept.release(first)
    begin(kept, monkeypatch, back, first)
    with kept.database.session() as session:  # to where it was: that is news
        left = session.get_one(Release, back)
        facts |= {"from_repo": BASE, "from_ref": "main", "from_sha": left.sha}
        returned = Release(**facts)
        session.add(returned)
        session.flush()
        there = returned.id
    begin(kept, monkeypatch, there, first)
    assert (first, there) in states(kept)


def test_a_clock_that_was_ahead_keeps_nothing_waiting(kept: Records) -> None:
    into = kept.subscribe()
    ahead, soon = now() + timedelta(hours=12), now() + timedelta(hours=1)
    kept.port(into, PortState.WAITING, "port-1", due_at=ahead, updated_at=ahead)
    kept.port(into, PortState.WAITING, "port-2", due_at=soon)
    kept.do(mend, at := now(), timedelta(hours=24))
    assert kept.read("port-1").due_at == at and kept.read("port-2").due_at == soon


def test_while_everything_is_paused_nothing_is_asked_of_the_hub(judged: Judged) -> None:
    settings = judged.context.settings.model_copy(update={"showcase": "owner"})
    context = replace(judged.context, hub=cast(Hub, None), settings=settings)
    with judged.context.database.session() as session:
        controls.pause_all(session, "A look.")
    for job in (audit, look_for_configs, follow_up, keep_current):
        job(context)
    judged.control(controls.resume_all)
    with pytest.raises(AttributeError):
        look_for_configs(context)


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
