"""What published ports stand on is looked for again; what lost it is withdrawn, once and surely."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from bot.trust import audit as looks
from bot.trust.audit import APART, AUDIT, THERE, audit
from localhub.server import Server
from registry.models import Event, Patch, PortState, Subscription, now
from registry.ports import events
from registry.status import status
from tests.judged import BASE, CARD, PATCH, Judged

START = now()
HOUR = timedelta(hours=1)


@pytest.fixture
def judged(tmp_path: Path) -> Iterator[Judged]:
    with Server(tmp_path / "hub") as server:
        made = Judged(server, tmp_path)
        yield made
        made.context.database.close()


@pytest.fixture
def published(judged: Judged) -> tuple[int, str, str]:
    """A subscription, its target and the key of its port."""
    into = judged.subscribe(target := judged.target())
    judged.publish(key := judged.judge(into, "publish"))
    return into, target, key


def licensed(judged: Judged, repo: str, licence: str) -> None:
    judged.push(repo, {"README.md": f"---\nlicense: {licence}\n---\n".encode()})


def pulled(judged: Judged) -> None:
    judged.api.delete_repo(PATCH)


def pushed_anew(judged: Judged) -> None:
    judged.api.delete_repo(PATCH)
    judged.push(PATCH, judged.files | {"more.txt": b"Other commits."})


def base_gone(judged: Judged) -> None:
    judged.api.delete_repo(BASE)
    judged.push(BASE, {"README.md": CARD + b"anew"})


def licence_changed(judged: Judged) -> None:
    licensed(judged, PATCH, "cc-by-nd-4.0")


def found(judged: Judged, key: str) -> list[str]:
    with judged.context.database.session() as session:
        return [each.text for each in events(session, key) if each.step == AUDIT]


@pytest.mark.parametrize(
    ("lose", "said", "is_paused"),
    [
        (pulled, f"The patch, {PATCH}@", True),
        (pushed_anew, f"The patch, {PATCH}@", True),
        (base_gone, f"The base that it is for, {BASE}@", False),
        (licence_changed, "A licence has changed. The patch is under cc-by-nd-4.0", True),
    ],
)
def test_what_is_found_to_be_lost_twice_is_withdrawn(
    judged: Judged,
    published: tuple[int, str, str],
    lose: Callable[[Judged], None],
    said: str,
    is_paused: bool,
) -> None:
    into, target, key = published
    audit(judged.context, START)
    assert found(judged, key) == []
    lose(judged)
    for later in (HOUR, APART, APART + HOUR, 2 * APART - HOUR):
        audit(judged.context, START + later)
        assert judged.read(key).state == PortState.PUBLISHED
        assert len(found(judged, key)) == (later >= APART)
    audit(judged.context, START + 2 * APART)
    port = judged.read(key)
    assert port.state == PortState.WITHDRAWN and port.reason.startswith(f"Withdrawn: {said}")
    repo = judged.publisher.state(target)
    card = repo.read("README.md", 0, repo.files()["README.md"].size).decode()
    assert card.count("> **Withdrawn:**") == 1 and said in card
    with judged.context.database.session() as session:
        shown = status(session, session.get_one(Subscription, into))
    assert shown.state == "withdrawn" and said in shown.reason
    assert ("portllm resume" in shown.reason) == is_paused
    commits = len(judged.api.list_repo_commits(target))
    audit(judged.context, START + 9 * APART)
    assert len(judged.api.list_repo_commits(target)) == commits


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503, "cut"])
def test_a_hub_that_fails_or_lets_nobody_in_is_no_loss(
    judged: Judged, published: tuple[int, str, str], status: int | str
) -> None:
    _, _, key = published
    repo = rf"api/models/({PATCH}|{BASE})"
    if status == "cut":
        judged.server.faults.add(repo, times=999, cut=10)
    else:
        judged.server.faults.add(repo, times=999, status=int(status))
    for day in range(1, 5):
        audit(judged.context, START + day * APART)
    assert found(judged, key) == [] and judged.read(key).state == PortState.PUBLISHED


def test_what_is_there_again_is_kept(judged: Judged, published: tuple[int, str, str]) -> None:
    _, _, key = published
    licence_changed(judged)
    audit(judged.context, START)
    licensed(judged, PATCH, "mit")
    audit(judged.context, START + APART)
    assert found(judged, key)[1:] == [THERE]
    licence_changed(judged)
    audit(judged.context, START + 2 * APART)
    pulled(judged)
    audit(judged.context, START + 3 * APART)
    assert judged.read(key).state == PortState.PUBLISHED  # each loss has to be found twice
    audit(judged.context, START + 4 * APART)
    assert judged.read(key).state == PortState.WITHDRAWN


def test_killed_before_it_recorded_that_it_looked_a_day_passes_all_the_same(
    judged: Judged, published: tuple[int, str, str]
) -> None:
    _, _, key = published
    pulled(judged)
    for hour in range(3):
        audit(judged.context, START + hour * HOUR)
        with judged.context.database.session() as session:
            session.query(Patch).one().checked_at = None
    assert judged.read(key).state == PortState.PUBLISHED and len(found(judged, key)) == 1
    audit(judged.context, START + APART)
    assert judged.read(key).state == PortState.WITHDRAWN


def test_a_withdrawal_that_failed_is_done_the_next_time(
    judged: Judged, published: tuple[int, str, str]
) -> None:
    _, target, key = published
    pulled(judged)
    audit(judged.context, START)
    judged.server.faults.add(rf"api/models/{target}/commit/", times=99, status=500)
    audit(judged.context, START + APART)
    assert judged.read(key).state == PortState.PUBLISHED
    judged.server.faults.clear()
    audit(judged.context, START + 2 * APART)
    assert judged.read(key).state == PortState.WITHDRAWN


def test_few_are_looked_at_in_one_go_and_each_in_its_turn(
    judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):  # patches of their own
        judged.patch_sha = judged.push(PATCH, {"number.txt": str(number).encode()})
        into = judged.subscribe(judged.target())
        if number != 3:
            judged.change(judged.judge(into, "publish"), state=PortState.PUBLISHED)
    monkeypatch.setattr(looks, "MOST", 2)

    def checked() -> list[int]:
        with judged.context.database.session() as session:
            patches = session.query(Patch).order_by(Patch.checked_at, Patch.id)
            return [each.id for each in patches if each.checked_at is not None]

    turns = []
    for hour in range(3):
        audit(judged.context, START + hour * HOUR)
        turns.append(checked())
    assert [len(turn) for turn in turns] == [2, 4, 4]
    audit(judged.context, START + APART)
    assert checked() == [*turns[1][2:], *turns[1][:2]]
    with judged.context.database.session() as session:
        assert session.query(Event).filter(Event.step == AUDIT).count() == 0
