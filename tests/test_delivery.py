"""How a port comes into its repo: by commit, by branch or by request, as open as its inputs."""

from dataclasses import replace
from typing import Any

import pytest
from huggingface_hub import HfApi

from bot.address import RepoAddress
from bot.context import Delivery, Job, job_of, made_job
from bot.hub import HubRepo
from bot.publishing.publish import GATES, Access, access
from bot.publishing.requests import follow_up
from bot.running.manners import Manners
from bot.subscribing import Wanted, begin, default_target
from bot.trust import takeback
from bot.watching.follow import parse_follow
from judging.evidence import Evidence, Measured
from patch_cards import lock
from porting.errors import Refused
from registry.models import PortState, Subscription
from tests.judged import BASE, PATCH, Judged, Killed
from tests.judged import judged as judged  # the fixture
from tests.judged import target as target
from tests.test_requests import comments, requests


def by(judged: Judged, target: str, delivery: Delivery) -> int:
    id = judged.subscribe(target)
    with judged.context.database.session() as session:
        session.get_one(Subscription, id).delivery = delivery
    return id


def files(judged: Judged, repo: str, revision: str) -> dict[str, str]:
    there = HubRepo(judged.context.hub, repo, judged.context.hub.head(repo, revision))
    return {name: entry.digest for name, entry in there.files().items()}


def key_on(judged: Judged, repo: str, revision: str) -> str:
    hub = judged.context.hub
    return lock.read(HubRepo(hub, repo, hub.head(repo, revision))).key


def card(judged: Judged, repo: str, revision: str) -> str:
    there = HubRepo(judged.context.hub, repo, judged.context.hub.head(repo, revision))
    return there.read("README.md", 0, there.files()["README.md"].size).decode()


@pytest.mark.parametrize("lives", range(3))
def test_each_release_has_a_branch_of_its_own_and_main_stays(
    judged: Judged, target: str, lives: int
) -> None:
    judged.push(target, {"NOTES.md": b"Mine", "README.md": b"# My words\n"})
    main = judged.api.model_info(target).sha
    into = by(judged, target, "branch")
    keys = [judged.judge(into, "publish") for _ in range(2)]
    for key in keys:
        judged.publish(key, lives)
    ports = [judged.read(key) for key in keys]
    names = [Job(**port.job).tag for port in ports]
    hub = judged.context.hub
    assert hub.branches(target) == {"main", *names} and hub.tags(target) == {}
    assert hub.head(target) == main
    for port, name in zip(ports, names, strict=True):
        assert (port.state, port.published_sha) == (PortState.PUBLISHED, hub.head(target, name))
        assert key_on(judged, target, name) == port.key
        assert files(judged, target, name)["NOTES.md"] == files(judged, target, "main")["NOTES.md"]
        assert "# My words" in card(judged, target, name) and port.url.endswith(f"/tree/{name}")
        made = [each for each in judged.api.list_repo_commits(target, revision=name)]
        assert ["Port to" in each.title for each in made].count(True) == 1


def test_what_is_on_branches_is_taken_back_on_branches(judged: Judged, target: str) -> None:
    into = by(judged, target, "branch")
    first, second = (judged.judge(into, "publish") for _ in range(2))
    for key in (first, second):
        judged.publish(key)
    before, after = (Job(**judged.read(key).job).tag for key in (first, second))
    main, was = files(judged, target, "main"), files(judged, target, before)
    judged.publisher.lives = 1
    with pytest.raises(Killed):
        takeback.rollback(judged.context, target)
    assert takeback.rollback(judged.context, target) == (second, first)
    assert judged.read(second).state == PortState.ROLLED_BACK
    said = card(judged, target, after)
    assert said.count("**Rolled back:**") == 1 and f"use revision `{before}`" in said
    takeback.withdraw(judged.context, first, "It leaks.")
    assert "**Withdrawn:**" in card(judged, target, before)
    now = files(judged, target, before)
    assert now.pop("README.md") != was.pop("README.md") and now == was
    assert files(judged, target, "main") == main


def test_a_branch_is_never_named_as_a_tag(judged: Judged, target: str) -> None:
    into = by(judged, target, "branch")
    key = judged.judge(into, "publish")
    judged.push(target, {"NOTES.md": b"Mine"})
    name = Job(**judged.read(key).job).tag
    judged.api.create_tag(target, tag=name)
    with pytest.raises(Refused, match=f"has a tag {name}"):
        judged.publish(key)
    assert judged.context.hub.branches(target) == {"main"}


def measured(judged: Judged, key: str) -> None:
    """Let the new base alone be right about half of its items, and the others about all."""
    right, half = [1.0] * 40, [float(number % 2) for number in range(40)]
    results = {"before": half, "old": right, "new": half, "port": right}
    own = Measured(task="sides", digest="0" * 64, total=40, metric="accuracy",
                   items=list(range(40)), results=results)  # fmt: skip
    judged.change(key, evidence=Evidence(own=own).model_dump())


def test_by_request_every_port_is_asked_for_and_merging_publishes_it(
    judged: Judged, target: str
) -> None:
    into = by(judged, target, "request")
    keys = [judged.judge(into, "publish") for _ in range(2)]
    for key in keys:
        measured(judged, key)
        judged.publish(key)
    assert requests(judged, target) == [(1, "open")]
    first, second = map(judged.read, keys)
    assert (first.state, second.state) == (PortState.SUPERSEDED, PortState.ASKED)
    assert lock.NAME not in files(judged, target, "main")
    said = comments(judged, target, 1)[-1]
    for words in ("Every port of this subscription", "The evidence says publish", "close this",
                  f"portllm unsubscribe {PATCH}", "portllm.yaml"):  # fmt: skip
        assert words in said
    assert "| new base alone | 50.0 |" in said and "| new base + ported patch | 100.0 |" in said
    judged.api.merge_pull_request(target, 1)
    follow_up(judged.context, target)
    port = judged.read(keys[1])
    assert port.state == PortState.PUBLISHED
    assert judged.context.hub.tags(target) == {Job(**port.job).tag: port.published_sha}


def test_where_the_bot_may_not_write_the_owner_is_asked(judged: Judged) -> None:
    other = HfApi(endpoint=judged.server.endpoint, token=judged.server.add_user("other"))
    target = "other/ported"
    other.create_repo(target)
    into = judged.subscribe(target)
    key = judged.judge(into, "publish")
    judged.publish(key)
    port = judged.read(key)
    assert port.state == PortState.ASKED
    assert "may not write to other/ported" in port.reason
    said = comments(judged, target, 1)[0]
    assert "may not write to other/ported" in said
    assert "if PortLLM may write here; otherwise use the merge commit" in said
    assert lock.NAME not in files(judged, target, "main")
    other.merge_pull_request(target, 1)
    follow_up(judged.context, target)
    port = judged.read(key)
    assert (port.state, port.published_sha) == (PortState.PUBLISHED, other.model_info(target).sha)
    assert (port.url or "").endswith(f"/tree/{port.published_sha}")
    assert judged.context.hub.tags(target) == {}
    takeback.withdraw(judged.context, key, "It leaks.")
    port = judged.read(key)
    assert port.state == PortState.WITHDRAWN and "may not write to other/ported" in port.reason


OPEN, AUTO, MANUAL, PRIVATE = (False, False), (False, "auto"), (False, "manual"), (True, False)


@pytest.mark.parametrize(
    ("base", "patch"),
    [(OPEN, OPEN), (AUTO, OPEN), (AUTO, MANUAL), (PRIVATE, OPEN), ((True, "auto"), MANUAL)],
)
def test_a_new_repo_is_as_closed_as_the_strictest_input(
    judged: Judged, target: str, base: tuple[bool, Any], patch: tuple[bool, Any]
) -> None:
    key = judged.judge(judged.subscribe(target), "publish")
    hub = judged.context.hub
    try:
        for repo, (private, gated) in ((BASE, base), (PATCH, patch)):
            judged.api.update_repo_settings(repo, private=private, gated=gated)
        judged.publish(key, lives=0)  # killed right after it was created
        wanted = access(hub, Job(**judged.read(key).job))
    finally:
        for repo in (BASE, PATCH):
            judged.api.update_repo_settings(repo, private=False, gated=False)
    made = hub.facts(target)
    assert (made.private, made.gated) == (
        base[0] or patch[0], max((base[1], patch[1]), key=GATES.index)
    )  # fmt: skip
    assert Access(made.private, made.gated) == wanted


@pytest.mark.parametrize("there", [OPEN, AUTO])
def test_what_more_people_can_read_than_an_input_is_refused(
    judged: Judged, target: str, there: tuple[bool, Any]
) -> None:
    judged.api.create_repo(target)
    judged.api.update_repo_settings(target, gated=there[1])
    key = judged.judge(judged.subscribe(target), "publish")
    try:
        judged.api.update_repo_settings(BASE, gated="manual")
        with pytest.raises(Refused, match=r"private or gated \(manual\) on the Hub"):
            judged.publish(key)
        judged.api.update_repo_settings(target, gated="manual")
        judged.publish(key)
    finally:
        judged.api.update_repo_settings(BASE, gated=False)
    assert judged.read(key).state == PortState.PUBLISHED


LATER = ("key", "again", "delivery")  # fields that a usual port's key is not made of


def test_only_another_delivery_makes_another_key(judged: Judged, target: str) -> None:
    into, release, jobs = judged.subscribe(target), judged.releases()[-1], []
    with judged.context.database.session() as session:
        subscription = session.get_one(Subscription, into)
        for delivery in ("commit", "branch", "request"):
            subscription.delivery = delivery
            jobs.append(job_of(subscription, release))
    assert len({job.key for job in jobs}) == 3
    assert {replace(job, key="", delivery="commit").tag for job in jobs} == {jobs[0].tag}
    before = {name: value for name, value in vars(jobs[0]).items() if name not in LATER}
    assert made_job("bot", **before).key == jobs[0].key  # as an earlier version named it


def test_without_a_target_ports_go_to_the_account_of_the_token(judged: Judged) -> None:
    judged.subscribe(judged.target())  # which records the patch
    hub = judged.context.hub
    for follow, expected in (
        (BASE, "owner/patch-on-base"),
        (f"{BASE}@v*", "owner/patch-on-base"),
        ("vendor/Model-v0.*", "owner/patch-on-Model-v0"),
        (f"tree:{BASE}", "owner/patch-on-{name}"),
    ):
        assert default_target(hub, PATCH, parse_follow(follow)) == expected
    wanted = Wanted(RepoAddress(PATCH), parse_follow(BASE), None, "adapter", None, None, Manners(),
                    None, delivery="request", notify=("discussion",))  # fmt: skip
    with judged.context.database.session() as session:
        made = session.get_one(Subscription, begin(judged.context, wanted))
        assert (made.to_repo, made.delivery) == ("owner/patch-on-base", "request")
        assert made.notify == {"receivers": ["discussion"]}
    judged.push(BASE, {"README.md": b"---\nlicense: cc-by-nd-4.0\n---\n"})
    refused = replace(wanted, to="owner/merged", form="merged")
    with pytest.raises(Refused, match="no derivatives"):
        begin(judged.context, refused)
    begin(judged.context, replace(refused, form="adapter"))
    judged.push(BASE, {"README.md": b"---\nlicense: mit\n---\n"})


def test_facts_name_a_licence_of_its_own(judged: Judged) -> None:
    text = "---\nlicense: other\nlicense_name: my-terms\nlicense_link: LICENSE\n---\n"
    sha = judged.push("owner/own-terms", {"README.md": text.encode()})
    licence = judged.context.hub.facts("owner/own-terms").licence
    assert (licence.id, licence.name, str(licence)) == ("other", "my-terms", "my-terms")
    assert licence.link == f"{judged.server.endpoint}/owner/own-terms/blob/{sha}/LICENSE"
