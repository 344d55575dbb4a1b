"""The two files that say what a port is: its card for people, its lock for `portllm verify`."""

from typing import Any

from bot.context import ENGINE, Job
from bot.hub import Hub, HubRepo
from judging.evidence import Evidence
from judging.task import read_spec
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
    evidence: Evidence | None,
) -> dict[str, bytes]:
    """README.md and the lock of the port that consists of `files` (sha256 by path in the repo).

    Args:
        target: the repo it goes to, whose card's own words are kept.
        verdict: `action` and `reason`.
        evidence: what the verdict rests on, where there is one.
    """
    new = hub.facts(job.new_repo, job.new_sha)
    trained = hub.facts(job.patch_repo, job.patch_sha)
    adapter = read_adapter(patch)
    spec = read_spec(patch) if evidence else None
    # The lock names the forecast's totals; the registry keeps those of every tensor.
    proof = evidence.model_dump(exclude={"forecast": {"modules"}}) if evidence else None
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
        findings=_findings(evidence, job) if evidence and evidence.own else None,
        evidence=proof,
        prompt=getattr(spec, "prompt", None),  # plain text and lm-eval's tasks have none
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
        scale=evidence.scale if evidence else 1.0,
        evidence=proof,
    )
    readme = card.render(facts, existing).encode(errors="surrogateescape")
    return {CARD: readme, lock.NAME: locked.render()}


def _findings(evidence: Evidence, job: Job) -> dict[str, Any]:
    """The numbers of the card: what was measured, weighed by the policy that the verdict is of."""
    from judging.verdict import weigh_all  # SciPy takes a second to import

    return weigh_all(evidence, job.judged_by).model_dump()


def left_over(target: HubRepo, files: set[str]) -> list[str]:
    """What the port before this one wrote to `target`, and this one of `files` does not."""
    before = set(lock.read(target).files) if lock.NAME in target.files() else set()
    return sorted((before & set(target.files())) - files)


def _license(form: str, base: str | None, patch: str | None) -> str | None:
    """Of a merged model, both licences hold; where they differ, the Hub's word is `other`."""
    if form == "adapter" or base is None or patch is None or base == patch:
        return patch or base
    return "other"
