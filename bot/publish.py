"""Step 5 of a port: one commit with everything in it, then the tag. Done twice, it is done once.

The commit's message carries the port's key, which is how an attempt that died right after
committing is recognised.
"""

from pathlib import Path

from bot.context import ENGINE, Context, Job
from bot.evaluation import read_evaluation
from bot.hub import Hub, HubRepo, Published
from bot.judge import Evidence, Verdict
from bot.port import artefact
from patch_cards import card, lock
from porting.errors import Refused

WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".onnx")


def check_target(hub: Hub, job: Job) -> None:
    """Refuse a target that is not this patch's: a port never replaces anything but a port of it.

    A target that everybody can read is refused where an input is private or gated.
    """
    if not hub.exists(job.to_repo):
        return
    facts = hub.facts(job.to_repo)
    target = HubRepo(hub, job.to_repo, facts.sha)
    weights = [name for name in target.files() if name.endswith(WEIGHTS)]
    if lock.NAME in target.files():
        owner = lock.patch_repo(_whole(target, lock.NAME))
        if owner != job.patch_repo:
            raise Refused(f"{job.to_repo} holds ports of {owner}: subscribe with --to a new repo.")
    elif weights:
        raise Refused(
            f"{job.to_repo} holds weights that no port wrote ({weights[0]}). "
            "Subscribe with --to a new repo instead."
        )
    if _is_closed(hub, job) and not (facts.private or facts.gated):
        raise Refused(
            f"{job.to_repo} is public, but the base or the patch is private or gated. "
            f"Make {job.to_repo} private or gated on the Hub."
        )


def _is_closed(hub: Hub, job: Job) -> bool:
    inputs = (hub.facts(job.new_repo), hub.facts(job.patch_repo))
    return any(facts.private or facts.gated for facts in inputs)


def publish(
    context: Context,
    job: Job,
    digests: dict[str, str],
    evidence: Evidence | None,
    verdict: Verdict,
) -> Published:
    """Push the artefact, its card and lock: to main, or as a pull request if the verdict asks."""
    hub, title = context.hub, f"Port to {job.new_repo}@{job.new_sha[:7]} ({job.key})"
    new = hub.facts(job.new_repo, job.new_sha)
    patch = hub.facts(job.patch_repo, job.patch_sha)
    hub.create(job.to_repo, private=_is_closed(hub, job))
    check_target(hub, job)
    trailer = f"PortLLM-Port: {job.key}"
    as_pull_request = verdict.action == "ask"
    if as_pull_request:
        if (asked := hub.pull_request_with(job.to_repo, title)) is not None:
            return Published(sha="", url=asked)
    elif (done := hub.commit_with(job.to_repo, trailer)) is not None:
        hub.tag(job.to_repo, job.tag, done)
        return Published(sha=done, url=hub.url(job.to_repo, job.tag))
    parent = hub.head(job.to_repo)
    target = HubRepo(hub, job.to_repo, parent)
    content = _content(context, job, digests)
    files = {name: digests[part] for name, part in _parts(job, digests).items()}
    before = (
        set(lock.locked_files(_whole(target, lock.NAME))) if lock.NAME in target.files() else set()
    )
    evaluation = read_evaluation(job.patch(hub)) if evidence else None
    facts = card.CardFacts(
        repo=job.to_repo,
        form=job.form,
        tag=job.tag,
        patch_repo=job.patch_repo,
        patch_sha=job.patch_sha,
        old_repo=job.old_repo,
        old_sha=job.old_sha,
        new_repo=job.new_repo,
        new_sha=job.new_sha,
        license=_license(job.form, new.license, patch.license),
        pipeline_tag=patch.pipeline_tag or new.pipeline_tag,
        engine=ENGINE,
        files=files,
        verdict=verdict.model_dump(),
        evidence=evidence.model_dump() if evidence else None,
        prompt=evaluation.spec.prompt if evaluation else None,
    )
    existing = (
        _whole(target, "README.md").decode(errors="surrogateescape")
        if "README.md" in target.files()
        else None
    )
    content["README.md"] = card.render(facts, existing).encode(errors="surrogateescape")
    content[lock.NAME] = lock.render(
        key=job.key,
        engine=ENGINE,
        patch={"repo": job.patch_repo, "sha": job.patch_sha},
        old_base={"repo": job.old_repo, "sha": job.old_sha},
        new_base={"repo": job.new_repo, "sha": job.new_sha},
        form=job.form,
        files=files,
        verdict=facts.verdict,
        evidence=facts.evidence,
    )
    published = hub.commit(
        job.to_repo,
        add=content,
        delete=sorted((before & set(target.files())) - set(content)),
        title=title,
        description=f"{verdict.reason}\n\n{trailer}",
        parent=parent,
        as_pull_request=as_pull_request,
    )
    if as_pull_request:
        return published
    hub.tag(job.to_repo, job.tag, published.sha)
    return Published(sha=published.sha, url=hub.url(job.to_repo, job.tag))


def _license(form: str, base: str | None, patch: str | None) -> str | None:
    """Of a merged model, both licences hold; where they differ, the Hub's word is `other`."""
    if form == "adapter" or base is None or patch is None or base == patch:
        return patch or base
    return "other"


def _parts(job: Job, digests: dict[str, str]) -> dict[str, str]:
    """Path in the repo -> path below the work folder. The only or the merged form is the root's."""
    root = "adapter/" if job.form == "adapter" else "merged/"
    return {part.removeprefix(root): part for part in digests}


def _content(context: Context, job: Job, digests: dict[str, str]) -> dict[str, Path | bytes]:
    folder = artefact(context, job).folder
    return {name: folder / part for name, part in _parts(job, digests).items()}


def _whole(source: HubRepo, file: str) -> bytes:
    return source.read(file, 0, source.files()[file].size)
