"""Taking back what is on the Hub: the port before it, or a notice on its card."""

import pytest

from bot.hub import HubRepo
from bot.running import controls
from bot.trust import takeback
from patch_cards import lock
from patch_cards.card import BEGIN
from porting.errors import Refused, UsageError
from registry.models import PortState
from tests.judged import Judged, Killed
from tests.judged import judged as judged  # the fixture


@pytest.fixture
def published(judged: Judged) -> tuple[str, str, str]:
    """A target, and the keys of its two ports."""
    into = judged.subscribe(target := judged.target())
    keys = [judged.judge(into, "publish") for _ in range(2)]
    for key in keys:
        judged.publish(key)
    return target, keys[0], keys[1]


def whole(repo: HubRepo) -> dict[str, str]:
    """sha256 or blob id of every file but the card."""
    return {name: entry.digest for name, entry in repo.files().items() if name != "README.md"}


def card(judged: Judged, target: str) -> str:
    repo = judged.publisher.state(target)
    return repo.read("README.md", 0, repo.files()["README.md"].size).decode()


def test_rolled_back_is_what_was_before_and_nothing_is_lost(
    judged: Judged, published: tuple[str, str, str]
) -> None:
    target, first, second = published
    hub, api = judged.context.hub, judged.api
    words = card(judged, target).replace("tags:\n", "tags:\n- mine\n") + "\nMy own words.\n"
    api.upload_file(path_or_fileobj=words.encode(), path_in_repo="README.md", repo_id=target)
    tags = hub.tags(target)
    judged.server.faults.add(r"resolve/.*/adapter_model\.safetensors", times=99, status=500)
    assert takeback.rollback(judged.context, target) == (second, first)
    judged.server.faults.clear()
    was = judged.read(first)
    restored = judged.publisher.state(target)
    assert whole(restored) == whole(HubRepo(hub, target, was.published_sha or ""))
    assert lock.read(restored).key == first
    said = card(judged, target)
    assert "My own words." in said and "- mine\n" in said
    assert was.job["new_sha"][:7] in said and judged.read(second).job["new_sha"][:7] not in said
    assert hub.tags(target) == tags and len(tags) == 2
    port = judged.read(second)
    assert port.state == PortState.ROLLED_BACK and first in port.reason
    with pytest.raises(UsageError, match=f"{first} is the first port"):
        takeback.rollback(judged.context, target)
    with pytest.raises(UsageError, match="The next release"):
        judged.control(controls.retry, second)
    judged.publish(judged.judge(port.subscription_id, "publish"))
    assert lock.read(judged.publisher.state(target)).key not in (first, second)


def test_a_rollback_that_was_killed_is_recorded_and_not_done_twice(
    judged: Judged, published: tuple[str, str, str]
) -> None:
    target, first, second = published
    judged.publisher.lives = 0
    with pytest.raises(Killed):
        takeback.rollback(judged.context, target)
    commits = judged.api.list_repo_commits(target)
    assert takeback.rollback(judged.context, target) == (second, first)
    assert judged.read(second).state == PortState.ROLLED_BACK
    assert len(judged.api.list_repo_commits(target)) == len(commits)


def test_what_is_not_known_is_not_rolled_back(
    judged: Judged, published: tuple[str, str, str]
) -> None:
    target, *_ = published
    with pytest.raises(UsageError, match="No port is published to owner/nothing"):
        takeback.rollback(judged.context, "owner/nothing")
    foreign = judged.publisher.state(target)
    found = lock.read(foreign).model_copy(update={"key": "port-of-another"})
    judged.api.upload_file(path_or_fileobj=found.render(), path_in_repo=lock.NAME, repo_id=target)
    with pytest.raises(Refused, match="port-of-another, which these records don't know"):
        takeback.rollback(judged.context, target)


def test_a_withdrawn_port_says_so_on_its_card_until_the_next_one(
    judged: Judged, published: tuple[str, str, str]
) -> None:
    target, first, second = published
    before = whole(judged.publisher.state(target))
    takeback.withdraw(judged.context, second, "It leaks\nthe prompt.")
    said = card(judged, target)
    tag = f"base-{judged.read(second).job['new_sha'][:7]}"
    notice = said.partition(BEGIN)[2].splitlines()[1]
    assert notice.startswith("> **Withdrawn:**") and "It leaks the prompt." in notice
    assert tag in notice and whole(judged.publisher.state(target)) == before
    assert judged.read(second).state == PortState.WITHDRAWN
    with pytest.raises(UsageError, match="it is withdrawn"):
        takeback.withdraw(judged.context, second, "Again.")
    assert takeback.rollback(judged.context, target) == (second, first)
    assert judged.read(second).state == PortState.WITHDRAWN
    assert "Withdrawn" not in card(judged, target)
