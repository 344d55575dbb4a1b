"""The files that say what a port is: card and chart for people, the lock for `portllm verify`."""

from collections.abc import Sequence
from typing import Any

from bot.context import ENGINE, Context, Job
from bot.hub import Hub, HubRepo
from bot.trust import signing
from judging.evidence import Evidence
from judging.spec import AnySpec, HubFile
from judging.task import read_spec
from patch_cards import card, chart, lock
from patch_cards.account import account, is_served
from patch_cards.licences import combine
from porting import Source, read_adapter
from registry.history import Moment, history
from registry.models import Port

CARD = "README.md"


def describe(
    hub: Hub,
    job: Job,
    patch: Source,
    target: HubRepo,
    files: dict[str, str],
    verdict: dict[str, Any],
    evidence: Evidence | None,
    moments: Sequence[Moment] = (),
) -> dict[str, bytes]:
    """README.md and the lock of the port that consists of `files` (sha256 by path in the repo).

    And the chart, where anything was measured.

    Args:
        target: the repo it goes to, whose card's own words are kept.
        verdict: `action` and `reason`.
        evidence: what the verdict rests on, where there is one.
        moments: this port and those to earlier releases, for the chart.

    Raises:
        Refused: the licences of base and patch can't both hold.
    """
    drawn = chart.draw(moments) if evidence and evidence.own else None
    facts = card_facts(hub, job, patch, files, verdict, evidence, drawn is not None)
    existing = None
    if CARD in target.files():
        written = target.read(CARD, 0, target.files()[CARD].size)
        existing = written.decode(errors="surrogateescape")
    locked = lock.Lock(
        key=job.key,
        engine=ENGINE,
        to_repo=job.to_repo,
        patch=lock.Input(repo=job.patch_repo, sha=job.patch_sha),
        old_base=lock.Input(repo=job.old_repo, sha=job.old_sha),
        new_base=lock.Input(repo=job.new_repo, sha=job.new_sha),
        form=job.form,
        policy=job.policy,
        files=files,
        verdict=verdict,
        verdict_policy=job.judged_by.model_dump() if evidence else None,
        scale=evidence.scale if evidence else 1.0,
        evidence=facts.evidence,
    )
    readme = card.render(facts, existing).encode(errors="surrogateescape")
    charts = {chart.NAME: drawn.encode()} if drawn else {}
    return {CARD: readme, lock.NAME: locked.render(), **charts}


def card_facts(
    hub: Hub,
    job: Job,
    patch: Source,
    files: dict[str, str],
    verdict: dict[str, Any],
    evidence: Evidence | None,
    has_chart: bool,
    engine: str = ENGINE,
) -> card.CardFacts:
    """What the card of the port that `engine` made shows. Raises Refused as `describe`."""
    new = hub.facts(job.new_repo, job.new_sha)
    trained = hub.facts(job.patch_repo, job.patch_sha)
    adapter = read_adapter(patch)
    spec = read_spec(patch) if evidence else None
    # The lock names the forecast's totals; the registry keeps those of every tensor.
    proof = evidence.model_dump(exclude={"forecast": {"modules"}}) if evidence else None
    return card.CardFacts(
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
        terms=combine(new.licence, trained.licence, job.form),
        pipeline_tag=trained.pipeline_tag or new.pipeline_tag,
        engine=engine,
        files=files,
        verdict=verdict,
        findings=_findings(evidence, job) if evidence and evidence.own else None,
        evidence=proof,
        prompt=getattr(spec, "prompt", None),  # plain text and lm-eval's tasks have none
        languages=trained.languages,
        datasets=trained.datasets,
        dataset=_dataset(spec),
        home=hub.endpoint,
        is_served=is_served(adapter),
        is_asked=verdict["action"] == "ask" or job.delivery == "request",
        has_chart=has_chart,
    )


def draft(hub: Hub, job: Job, patch: Source, target: HubRepo) -> bytes:
    """The card as it would be before anything is known of the port, for the Hub to look at."""
    unknown = {"action": "ask", "reason": "It is not judged yet."}
    return describe(hub, job, patch, target, {}, unknown, None)[CARD]


def past(context: Context, job: Job) -> list[Moment]:
    """What is recorded of the ports to the same repo; nothing of a port made by hand."""
    with context.database.session() as session:
        port = session.get(Port, job.key)
        known = history(session, port.subscription_id, chart.MOST) if port else []
    return [each for each in known if each.to == job.to_repo]


def _dataset(spec: AnySpec | None) -> tuple[str, str] | None:
    items = getattr(spec, "items", None)
    return (items.repo, items.revision) if isinstance(items, HubFile) else None


def _findings(evidence: Evidence, job: Job) -> dict[str, Any]:
    """The numbers of the card: what was measured, weighed by the policy that the verdict is of."""
    from judging.verdict import weigh_all  # SciPy takes a second to import

    return weigh_all(evidence, job.judged_by).model_dump()


def left_over(target: HubRepo, files: set[str]) -> list[str]:
    """What the port before this one wrote to `target`, and this one of `files` does not."""
    if lock.NAME not in target.files():
        return []
    before = {*lock.read(target).files, signing.NAME, chart.NAME}
    return sorted((before & set(target.files())) - files)
