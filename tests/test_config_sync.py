"""portllm.yaml on a Hub: found by tag, obeyed at every edit, and harmless to everybody else."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bot.config import discovery, onboarding
from bot.config.discovery import AGAIN, look_for_configs
from bot.config.schema import FILE
from bot.context import job_of
from bot.making.plan import check_asker
from bot.making.scale import Choice
from bot.making.validate import measure
from judging.verdict import judge
from localhub.server import Server
from patch_cards import lock
from porting.errors import Refused
from registry import configs
from registry.models import Config, Patch, Port, Release, Subscription, now
from registry.status import shown, status
from tests.configured import CARD, UNTAGGED, Files, Killed, one
from tests.world import BASE


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    folder = tmp_path_factory.mktemp("files")
    with Server(folder / "hub") as server:
        made = Files(server, folder)
        yield made
        made.records.close()


def test_a_file_is_found_by_its_tag_and_says_all_that_a_subscription_is(files: Files) -> None:
    says = {
        "as": "both", "by": "branch", "eval": False, "verdict": {"margin": 0.2},
        "schedule": "* 22 * * *", "minimum_release_age": "24h", "group": "night",
        "notify": {"discussion": True, "json": ["https://example.org/x"]},
    }  # fmt: skip
    repo = files.repo()
    files.push(repo, file=one(f"{repo}-ported", **says))
    before = files.context.hub.head(repo)
    files.look()
    (found,) = files.subscribed(repo)
    assert (found.managed, found.patch.sha, shown(found.base)) == (True, before, f"{BASE}@main")
    assert (found.form, found.delivery, found.group_name) == ("both", "branch", "owner/night")
    assert found.notify == {"receivers": ["discussion", "json:https://example.org/x"]}
    assert found.manners == {
        "schedule": "* 22 * * *", "minimum_release_age": "P1D", "group": "owner/night"
    }  # fmt: skip
    assert found.verdict_policy is not None
    assert (found.verdict_policy["evaluate"], found.verdict_policy["margin"]) == (False, 0.2)
    assert files.problem(repo) is None and files.said(repo) == []


def test_one_listing_is_all_that_quiet_repos_cost(files: Files) -> None:
    files.repo(file=one("owner/quiet"))
    files.look()
    with mock.patch.object(files.context.hub.api, "model_info") as told:
        files.look()
    assert told.call_args_list == []


TARGETS = ("a", "b", "c")
WISHES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.fixed_dictionaries(
                {"follow": st.sampled_from([BASE, f"{BASE}@v*", f"tree:{BASE}"])},
                optional={
                    "as": st.sampled_from(["adapter", "merged"]),
                    "enabled": st.booleans(),
                    "schedule": st.sampled_from(["* 1 * * *", "* 2 * * *"]),
                },
            )
            for name in TARGETS
        },
    ),
    min_size=2,
    max_size=4,
)


@settings(
    max_examples=4,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(wishes=WISHES, lives=st.lists(st.integers(0, 14), min_size=4, max_size=4))
def test_whatever_is_edited_and_whenever_it_is_killed_the_subscriptions_are_the_file(
    files: Files, wishes: list[dict[str, dict[str, Any]]], lives: list[int]
) -> None:
    if "v1" not in files.context.hub.tags(BASE):
        files.api.create_tag(BASE, tag="v1")
    repo = files.repo()
    for wish, killed_after in zip(wishes, lives, strict=False):
        entries = []
        for name, entry in wish.items():
            fork = "-on-{name}" if entry["follow"].startswith("tree:") else ""
            entries.append(entry | {"to": f"{repo}-{name}{fork}"})
        sha = files.push(repo, {} if entries else {FILE: b""}, file=entries or None)
        if not entries:
            sha = files.push(repo, {FILE: None})
        files.until_done(killed_after)
        found = files.subscribed(repo)
        assert {each.to_repo: _of(each) for each in found} == {
            entry["to"]: (
                entry["follow"] if "@" in entry["follow"] or ":" in entry["follow"] else
                f"{entry['follow']}@main",
                entry.get("as", "adapter"),
                entry.get("enabled", True),
                entry.get("schedule"),
            )
            for entry in entries
        }  # fmt: skip
        assert all(each.managed and each.patch.sha == sha for each in found)
        assert files.problem(repo) is None


def _of(each: Subscription) -> tuple[str, str, bool, str | None]:
    schedule = (each.manners or {}).get("schedule")
    return shown(each.base), each.form, each.paused_at is None, schedule


@pytest.mark.parametrize(
    "broken",
    [
        b"folow: x",
        one("somebody/else"),
        one("robot/its-own"),
        one("vendor/base-ported"),
        [one("owner/x"), one("owner/x")],
        one("owner/x", follow="theirs/base"),
        one("owner/x", base=f"{BASE}@main"),
        one("owner/x", policy="reapply"),
    ],
)
def test_a_broken_file_changes_nothing_and_is_told_of_once(files: Files, broken: Any) -> None:
    repo = files.repo(file=one("owner/ported-" + str(files.count)))
    files.look()
    before = [vars(each) for each in files.subscribed(repo)]
    files.push(repo, file=broken)
    files.until_done(lives=4)  # killed after it was said, and before that was recorded
    files.look()
    files.push(repo, {"NOTES.md": "A commit that mends nothing"})
    files.look()
    (after,) = files.subscribed(repo)
    same = ("patch_id", "to_repo", "form", "policy", "manners", "created_at", "ended_at")
    assert {key: before[0][key] for key in same} == {key: getattr(after, key) for key in same}
    (problem,) = [files.problem(repo)]
    assert problem
    with files.records.session() as session:
        reason = status(session, session.get_one(Subscription, after.id)).reason
    assert "can't be obeyed, so what it said before holds" in reason
    assert problem.splitlines()[0] in reason
    (said,) = files.said(repo)
    assert problem.replace("`", "'") in said and "validate-config" in said

    files.push(repo, file=one(after.to_repo, **{"as": "both"}))
    files.look()
    assert files.subscribed(repo)[0].form == "both" and files.problem(repo) is None
    assert len(files.said(repo)) == 2


def test_a_private_base_of_others_is_not_told_from_one_that_is_not_there(files: Files) -> None:
    assert files.context.hub.facts("theirs/base").private  # to the bot it is there
    told = []
    for base in ("theirs/base", "theirs/none"):
        repo = files.repo(file=one("owner/x", follow=base))
        files.look()
        told.append((files.problem(repo) or "").replace(base, "BASE"))
    assert told[0] == told[1] and "may not see it" in told[0]


@pytest.mark.parametrize("revision", [None, "main", "v1"])
def test_nor_is_one_that_only_the_patchs_config_names(files: Files, revision: str | None) -> None:
    told = []
    for base in ("theirs/base", "theirs/none"):
        named = {"base_model_name_or_path": base, "revision": revision}
        config = json.loads(files.patch["adapter_config.json"]) | named
        repo = files.repo()
        files.push(repo, {"adapter_config.json": json.dumps(config)}, file=one(f"{repo}-x"))
        files.look()
        told.append((files.problem(repo) or "").replace(base, "BASE"))
        with pytest.raises(Refused):
            files.push(repo, {FILE: None})
            onboarding.propose(files.context, repo)
        with files.records.session() as session:
            assert session.query(Patch).filter_by(repo=repo).count() == 0
    assert told[0] == told[1] and "may not see it" in told[0]


def test_nor_is_one_that_a_pattern_finds(files: Files) -> None:
    files.other.create_repo("theirs/hidden-1.0", private=True, exist_ok=True)
    told = []
    for base in ("theirs/hidden-*", "theirs/nothing-*"):
        repo = files.repo()
        files.push(repo, file=one(f"{repo}-x", follow=base))
        files.look()
        told.append((files.problem(repo) or "").replace(base, "BASE").replace(repo, "REPO"))
        assert files.subscribed(repo, ended=True) == []
    assert told[0] == told[1] and "There is no repo BASE" in told[0]


def test_what_nobody_else_may_see_is_not_ported_to_either(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = files.repo(file=one("owner/seen"))
    files.look()
    (into,) = files.subscribed(repo)
    with files.records.session() as session:
        into = session.get_one(Subscription, into.id)
        release = Release(base=into.base, from_repo=BASE, from_ref="main", from_sha="0" * 40,
                          repo=BASE, ref="main", sha=files.world.base_sha)  # fmt: skip
        session.add(release)
        session.flush()
        job = job_of(into, release)
        session.add(Port(key=job.key, subscription=into, release=release, job=vars(job), reason=""))
    check_asker(files.context, job)
    facts = files.context.hub.facts(BASE)
    monkeypatch.setattr(files.context.hub, "facts", lambda *_: replace(facts, private=True))
    with pytest.raises(Refused, match="may not see it"):
        check_asker(files.context, job)
    with files.records.session() as session:
        session.get_one(Subscription, into.id).managed = False
    check_asker(files.context, job)  # whoever runs the bot may


def test_without_a_target_ports_go_to_the_bots_account(files: Files) -> None:
    repo = files.repo("other", file={"follow": BASE})
    files.look()
    assert files.follows(repo) == {f"robot/{repo.partition('/')[2]}-on-base": f"{BASE}@main"}


def test_only_the_accounts_that_are_served_are_obeyed(files: Files) -> None:
    repo = files.repo("other", file=one("other/served"))
    narrow = files.context.settings.model_copy(update={"owners": ""})
    look_for_configs(replace(files.context, settings=narrow))
    assert files.follows(repo) == {}
    wide = files.context.settings.model_copy(update={"owners": "*"})
    look_for_configs(replace(files.context, settings=wide))
    assert files.follows(repo) == {"other/served": f"{BASE}@main"}
    files.push(repo, {FILE: None})
    look_for_configs(replace(files.context, settings=narrow))
    assert len(files.subscribed(repo)) == 1  # nobody looks
    files.look()
    assert files.subscribed(repo) == []


def test_one_that_can_not_be_had_leaves_the_others_and_is_tried_again(files: Files) -> None:
    repo = files.repo()
    target = f"{repo}-tags"
    files.push(repo, file=[one(f"{repo}-main"), one(target, follow=f"{BASE}@next-v*")])
    files.look()
    assert files.follows(repo) == {f"{repo}-main": f"{BASE}@main"}
    assert "no tag next-v*" in (files.problem(repo) or "")
    files.api.create_tag(BASE, tag="next-v1")
    files.look()
    assert len(files.follows(repo)) == 1
    with files.records.session() as session:
        session.get_one(Config, repo).read_at = now() - AGAIN * 2
    files.look()
    assert len(files.follows(repo)) == 2 and files.problem(repo) is None
    files.api.delete_tag(BASE, tag="next-v1")


@pytest.mark.parametrize("how", ["file", "tag", "repo"])
def test_what_asks_no_more_is_ended_and_a_hub_that_fails_ends_nothing(
    files: Files, how: str
) -> None:
    repo = files.repo(file=one(f"owner/gone-{how}"))
    files.look()
    if how == "repo":
        files.api.delete_repo(repo)
    else:
        files.push(repo, {FILE: None} if how == "file" else {"README.md": UNTAGGED})
    for path in (rf"/api/models/{repo}", r"/api/models$"):
        files.server.faults.add(path, status=501, times=100)
        files.look()
        files.server.faults.clear()
        assert len(files.subscribed(repo)) == 1
    files.look()
    assert files.subscribed(repo) == [] and len(files.subscribed(repo, ended=True)) == 1
    if how == "repo":
        return
    files.push(repo, {"README.md": CARD}, file=one(f"owner/gone-{how}"))
    files.look()
    assert len(files.subscribed(repo)) == 1


def test_an_answer_that_lags_behind_changes_nothing(files: Files) -> None:
    repo = files.repo(file=one("owner/lag-1"))
    files.look()
    files.push(repo, file=one("owner/lag-2"))
    files.look()
    files.server.faults.add(r"/api/models", stale=1, times=100)
    files.look()
    files.server.faults.clear()
    assert files.follows(repo) == {"owner/lag-2": f"{BASE}@main"}


def test_a_commit_that_was_taken_back_is_so_a_while_later(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = files.repo(file=one("owner/back"))
    before = files.context.hub.head(repo)
    files.push(repo, file=one("owner/back", **{"as": "both"}))
    files.look()
    with files.records.session() as session:
        known = session.get_one(Config, repo)
    assert discovery._is_back(files.context, known, before)
    monkeypatch.setattr(discovery, "now", lambda: now() + AGAIN * 2)
    assert not discovery._is_back(files.context, known, before)  # it was a forced push


def test_a_history_that_was_written_anew_is_obeyed(files: Files) -> None:
    repo = files.repo(file=one("owner/anew"))
    files.look()
    files.push(repo, file=one("owner/anew", **{"as": "both"}))
    files.api.super_squash_history(repo)
    with files.records.session() as session:
        session.get_one(Config, repo).read_at -= AGAIN  # commits are dated to the second
    files.look()
    assert files.subscribed(repo)[0].form == "both"


def test_a_listing_that_leaves_one_out_is_not_believed(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = files.repo(file=one("owner/late"))
    files.look()
    monkeypatch.setattr("bot.config.discovery.tagged", lambda *_: {})
    files.look()
    assert len(files.subscribed(repo)) == 1


def test_a_repo_of_ports_is_no_patch(files: Files) -> None:
    repo = files.repo(file=one("owner/of-a-port"))
    files.push(repo, {lock.NAME: "{}"})
    files.look()
    assert files.subscribed(repo) == [] and files.problem(repo) is None


def test_a_new_commit_of_the_patch_moves_its_subscription_and_nothing_else(files: Files) -> None:
    repo = files.repo(file=one("owner/moving"))
    files.look()
    (before,) = files.subscribed(repo)
    sha = files.push(repo, {"NOTES.md": "Better"})
    files.look()
    (after,) = files.subscribed(repo)
    assert (after.id, after.patch.sha, after.created_at) == (before.id, sha, before.created_at)
    assert before.patch.sha != sha


def test_by_hand_stays_by_hand(files: Files) -> None:
    repo = files.repo(file=one("owner/by-hand"))
    files.look()
    (found,) = files.subscribed(repo)
    with files.records.session() as session:
        session.get_one(Subscription, found.id).managed = False
    files.push(repo, file=one("owner/by-hand", **{"as": "both"}))
    files.look()
    assert files.subscribed(repo)[0].form == "adapter"
    assert "by hand" in (files.problem(repo) or "")
    files.push(repo, {FILE: None})
    files.look()
    assert len(files.subscribed(repo)) == 1


def test_a_person_who_paused_is_not_overruled_by_the_file(files: Files) -> None:
    repo = files.repo(file=one("owner/paused"))
    files.look()

    def paused() -> bool:
        return files.subscribed(repo)[0].paused_at is not None

    with files.records.session() as session:
        (mine,) = configs.managed(session, repo)
        mine.paused_at = now()
    files.push(repo, file=one("owner/paused", schedule="* 1 * * *"))
    files.look()
    assert paused()
    with files.records.session() as session:
        (mine,) = configs.managed(session, repo)
        mine.paused_at = None
    for enabled in (False, True):
        files.push(repo, file=one("owner/paused", enabled=enabled))
        files.look()
        assert paused() is not enabled


def test_from_counts_at_the_beginning_only(files: Files) -> None:
    first = files.api.list_repo_commits(BASE)[-1].commit_id
    repo = files.repo(file=one("owner/since", **{"from": first}))
    files.until_done(lives=6)
    (found,) = files.subscribed(repo)
    assert found.from_sha == first

    def releases() -> int:
        with files.records.session() as session:
            return session.query(Release).filter_by(base_id=found.base_id).count()

    before = releases()
    files.push(repo, file=one("owner/since", **{"from": first, "as": "both"}))
    files.look()
    assert files.subscribed(repo)[0].form == "both" and releases() == before


def test_without_eval_nothing_is_measured_and_the_port_asks(files: Files) -> None:
    repo = files.repo(file=one("owner/unjudged", eval=False))
    files.look()
    (found,) = files.subscribed(repo)
    release = SimpleNamespace(repo=BASE, sha=files.world.base_sha)
    job = job_of(found, release)
    evidence = measure(files.context, job, Choice(), lambda *_: None)
    verdict = judge(evidence, job.judged_by)
    assert verdict.action == "ask" and "asks for no evaluation" in verdict.reason


def proposed(files: Files, repo: str) -> list[Any]:
    rows = files.api.get_repo_discussions(repo, discussion_type="pull_request")
    return [row for row in rows if row.title == onboarding.TITLE]


@pytest.mark.parametrize("lives", [2, 3, None])
def test_it_is_proposed_once_with_what_would_happen(files: Files, lives: int | None) -> None:
    repo, moved = files.repo(), files.world.drift(files.count)
    asks = files.context.settings.model_copy(update={"onboard": True})
    asking = replace(files.context, settings=asks)
    files.records.lives = lives
    with suppress(Killed):
        look_for_configs(asking)
    files.records.lives = None
    look_for_configs(asking)
    files.push(repo, {"NOTES.md": "Still no file"})
    look_for_configs(asking)
    (request,) = proposed(files, repo)
    (said,) = [
        event.content
        for event in files.api.get_discussion_details(repo, request.num).events
        if event.type == "comment"
    ]
    to = f"robot/{repo.partition('/')[2]}-on-base"
    shas = (moved[:7], files.world.base_sha[:7])
    for each in (
        *shas,
        "weights",
        "commits on",
        f"follow: {BASE}",
        "by: request",
        to,
        "close this",
    ):
        assert each in said
    assert files.subscribed(repo) == []

    if lives is None:  # yes: the tag is not needed any more
        files.api.merge_pull_request(repo, request.num)
        files.push(repo, {"README.md": UNTAGGED})
        files.look()
        (found,) = files.subscribed(repo)
        assert (found.delivery, found.managed) == ("request", True)
    else:  # no
        files.api.change_discussion_status(repo, request.num, "closed")
        files.push(repo, {"NOTES.md": "No"})
        look_for_configs(asking)
        with pytest.raises(Refused, match="not again"):
            onboarding.propose(asking, repo)
        assert len(proposed(files, repo)) == 1 and files.subscribed(repo) == []


def test_what_can_not_be_proposed_is_said(files: Files) -> None:
    has = files.repo(file=one("owner/has-one"))
    with pytest.raises(Refused, match="it has one"):
        onboarding.propose(files.context, has)
    unpinned = json.loads(files.patch["adapter_config.json"]) | {"revision": None}
    repo = files.repo()
    files.push(repo, {"adapter_config.json": json.dumps(unpinned)})
    with pytest.raises(Refused, match="--base"):
        onboarding.propose(files.context, repo)
    assert proposed(files, repo) == []


def test_the_bot_and_the_command_do_it_too(files: Files) -> None:
    repo = files.repo("other", file=one("other/end-to-end"))
    bare = files.repo("other")
    world = files.world
    own = {"HF_TOKEN": str(files.other.token), "PORTLLM_HOME": str(world.folder / "others-home")}
    with mock.patch.dict(world.environment, own):
        world.portllm("bot", "run", "--once")  # its own account's are obeyed
        rows = world.json("status", "--patch", repo)
        assert [row["to"] for row in rows] == ["other/end-to-end"]
        told = world.json("config", "propose", bare, "--dry-run")
        assert yaml.safe_load(told["file"])["follow"] == BASE
        assert told["file"] in told["description"] and proposed(files, bare) == []
        opened = world.json("config", "propose", bare)
        assert opened["status"] == "open" and len(proposed(files, bare)) == 1
