"""The two files that say what a port is: its card for people, its lock for `portllm verify`."""

from typing import Any

from bot.context import ENGINE, Job
from bot.evaluation import read_evaluation
from bot.hub import Hub, HubRepo
from patch_cards import card, lock
from patch_cards.account import account
from porting import Source, read_adapter

CARD = "README.md"


def describe(
    hub: Hub,
    job: Job,
    patch: Source,
    target: HubRepo,
    files: dict[str, str],
    verdict: dict[str, Any],
    evidence: dict[str, Any] | None,
) -> dict[str, bytes]:
    """README.md and the lock of the port that consists of `files` (sha256 by path in the repo).

    Args:
        target: the repo it goes to, whose card's own words are kept.
        verdict: `action` and `reason`.
        evidence: `bot.judge.Evidence` as plain data.
    """
    new = hub.facts(job.new_repo, job.new_sha)
    trained = hub.facts(job.patch_repo, job.patch_sha)
    adapter = read_adapter(patch)
    evaluation = read_evaluation(patch) if evidence else None
    facts = card.CardFacts(
        repo=job.to_repo,
        form=job.form,
        kind=adapter.kind,
        account=account(adapter, job.form, job.policy),
        tag=job.tag,
        patch_repo=job.patch_repo,
        patch_sha=job.patch_sha,
        old_repo=job.old_repo,
        old_sha=job.old_sha,
        new_repo=job.new_repo,
        new_sha=job.new_sha,
        license=_license(job.form, new.license, trained.license),
        pipeline_tag=trained.pipeline_tag or new.pipeline_tag,
        engine=ENGINE,
        files=files,
        verdict=verdict,
        evidence=evidence,
        prompt=evaluation.spec.prompt if evaluation else None,
    )
    existing = None
    if CARD in target.files():
        written = target.read(CARD, 0, target.files()[CARD].size)
        existing = written.decode(errors="surrogateescape")
    locked = lock.Lock(
        key=job.key,
        engine=ENGINE,
        patch=lock.Input(repo=job.patch_repo, sha=job.patch_sha),
        old_base=lock.Input(repo=job.old_repo, sha=job.old_sha),
        new_base=lock.Input(repo=job.new_repo, sha=job.new_sha),
        form=job.form,
        policy=job.policy,
        files=files,
        verdict=verdict,
        evidence=evidence,
    )
    readme = card.render(facts, existing).encode(errors="surrogateescape")
    return {CARD: readme, lock.NAME: locked.render()}


def left_over(target: HubRepo, files: set[str]) -> list[str]:
    """What the port before this one wrote to `target`, and this one of `files` does not."""
    before = set(lock.read(target).files) if lock.NAME in target.files() else set()
    return sorted((before & set(target.files())) - files)


def _license(form: str, base: str | None, patch: str | None) -> str | None:
    """Of a merged model, both licences hold; where they differ, the Hub's word is `other`."""
    if form == "adapter" or base is None or patch is None or base == patch:
        return patch or base
    return "other"
