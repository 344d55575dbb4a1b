"""Never lost, never twice. `benchmarks.faults` is the long version of this."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from benchmarks.faults import one_run
from bot.running.controls import retry, retry_release
from registry.models import Port, PortState
from registry.status import Status, status
from tests.faulty import BASE, PLAIN, SUBSCRIBED, FaultyWorld, Life, Template, make_template
from tests.ledger import violations
from tests.records import active_subscriptions

MERGED, ADAPTER = SUBSCRIBED[:2]
LATE = 3600.0 * 30
# The steps of a merged port: the first publication finds files that are to be sent before.
WAY = (
    "classify", "create ports", "plan", "choose scale", "make", "validate", "judge", "publish",
    "send", "publish", "tidy",
)  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return make_template(tmp_path_factory.mktemp("faults") / "template")


@pytest.fixture
def merged(template: Template, tmp_path: Path) -> Iterator[FaultyWorld]:
    """A world with a port that is judged, merged and published."""
    with template.world(tmp_path / "world", [MERGED]) as world:
        yield world


@pytest.fixture
def asked(template: Template, tmp_path: Path) -> Iterator[FaultyWorld]:
    """A world with a port that is quick: an adapter, by a pull request."""
    with template.world(tmp_path / "world", [ADAPTER]) as world:
        yield world


def ports(world: FaultyWorld) -> list[Port]:
    """In the order of their releases."""
    with world.context.database.session() as session:
        return list(session.query(Port).order_by(Port.release_id))


def told(world: FaultyWorld) -> Status:
    """What `portllm status` says of the only subscription."""
    with world.context.database.session() as session:
        [subscription] = active_subscriptions(session)
        return status(session, subscription)


def again(world: FaultyWorld) -> None:
    """`portllm retry`, and what follows."""
    with world.context.database.session() as session:
        retry(session, ports(world)[-1].key)
    peace(world)


def peace(world: FaultyWorld) -> None:
    world.server.faults.clear()
    world.until_done()
    assert violations(world) == []


def test_killed_after_every_step_and_before_it_is_recorded_it_is_done_once(
    merged: FaultyWorld,
) -> None:
    merged.release()
    for step in WAY:
        assert merged.live(Life(where=f"after step {step}")) == -9, step
        assert merged.history().endswith(f"killed after step {step}\n")
    peace(merged)
    assert [port.state for port in ports(merged)] == [PortState.PUBLISHED]


def test_nothing_is_lost_and_nothing_done_twice(template: Template, tmp_path: Path) -> None:
    outcome = one_run(template, tmp_path / "world", seed=1, lives=2)
    assert outcome.wrong == []
    assert outcome.killed


def test_a_commit_whose_answer_is_lost_is_not_made_twice_if_the_hub_tells_what_was(
    merged: FaultyWorld,
) -> None:
    merged.release()
    merged.server.faults.add("/commit/main", method="POST", cut=0)
    merged.server.faults.add(f"{MERGED.to}/commits/main", stale=1, times=9)
    merged.live()
    peace(merged)
    assert [port.attempt for port in ports(merged)] == [1]


@pytest.mark.parametrize(
    ("broken", "said"), [("full", "No space left on device"), ("read-only", "Read-only file")]
)
def test_a_broken_disk_is_told_of_and_waited_for(
    merged: FaultyWorld, broken: str, said: str
) -> None:
    merged.release()
    merged.live(Life(broken=broken, where="after step fail"))
    [port] = ports(merged)
    assert port.state == PortState.WAITING and told(merged).state == "waiting"
    assert said in port.reason and "It is tried again at" in port.reason
    peace(merged)


def test_a_full_database_loses_nothing(asked: FaultyWorld) -> None:
    asked.release()
    asked.live(Life(where="after step make"))
    assert asked.live(Life(broken="database")) == 1
    assert "OperationalError" in asked.log()
    peace(asked)
    assert [port.state for port in ports(asked)] == [PortState.ASKED]


def test_a_computing_process_that_is_killed_is_started_again(merged: FaultyWorld) -> None:
    merged.release()
    merged.live(Life(slain=1, where="after step fail"))
    [port] = ports(merged)
    assert "ended by SIGKILL" in port.reason and "tried again at" in port.reason
    peace(merged)


def test_a_commit_of_the_base_that_vanished_is_passed_over(merged: FaultyWorld) -> None:
    first = merged.release()
    merged.live(Life(where="after step plan"))
    second = merged.rewrite(first)
    peace(merged)
    gone, new = ports(merged)
    assert [gone.job["new_sha"], new.job["new_sha"]] == [first, second]
    assert (gone.state, new.state) == (PortState.SUPERSEDED, PortState.PUBLISHED)


def test_a_patch_that_was_deleted_is_told_of_and_ported_once_it_is_back(
    asked: FaultyWorld,
) -> None:
    asked.release()
    with asked.hidden(PLAIN):
        asked.live()
        [port] = ports(asked)
        assert port.state == PortState.REFUSED
        assert f"{PLAIN}@" in port.reason and f"portllm retry {port.key}" in port.reason
    again(asked)


def test_a_token_that_was_revoked_is_told_of_and_all_goes_on_with_the_next(
    asked: FaultyWorld,
) -> None:
    asked.release()
    asked.live(Life(where="after step make"))
    with asked.revoked():
        asked.live()
        [port] = ports(asked)
        assert port.state == PortState.REFUSED
        assert "token" in port.reason and f"portllm retry {port.key}" in port.reason
        assert told(asked).state == "blocked" and "token" in told(asked).reason
    again(asked)


def test_a_base_that_was_gated_is_told_of_and_ported_once_its_terms_are_accepted(
    asked: FaultyWorld,
) -> None:
    asked.api.update_repo_settings(BASE, gated="auto")
    asked.release()
    asked.live()
    assert told(asked).state == "skipped"
    assert "gated" in told(asked).reason and f"portllm retry {BASE}" in told(asked).reason
    asked.api.grant_access(BASE, "owner")
    with asked.context.database.session() as session:
        retry_release(session, BASE)
    peace(asked)
    owner = HfApi(endpoint=asked.api.endpoint, token=asked.tokens["owner"])
    assert owner.repo_info(ADAPTER.to).gated == asked.api.repo_info(BASE).gated == "auto"


def test_a_clock_that_jumps_loses_nothing(asked: FaultyWorld) -> None:
    def is_asked() -> bool:
        return len(ports(asked)) == asked.releases and ports(asked)[-1].state == PortState.ASKED

    asked.release()
    asked.live(Life(skew=LATE, where="after step plan"))
    asked.live_until(Life(skew=-LATE, forever=True), is_asked)
    assert is_asked()
    asked.release()
    asked.live_until(Life(skew=-LATE, forever=True), is_asked)
    assert is_asked()
    peace(asked)
