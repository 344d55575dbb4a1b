"""Asking by a pull request: one per target, kept up to date; a closed one is a no.

What was asked is in the registry: a port that asks is ASKED; one whose pull request went on to a
newer port is SUPERSEDED before anything on the Hub says so, so that only a person's closing counts.
"""

import logging
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from bot.context import PORT_TITLE, Context, Job
from bot.hub import PULL_REQUEST, HubRepo, Published, PullRequest
from bot.publishing.content import Content
from bot.publishing.targets import check_order, newer, ports_to
from judging.arms import ARMS, figure
from judging.evidence import Evidence
from porting.errors import PortllmError
from registry.models import Port, PortState, now
from registry.ports import note, update_port

log = logging.getLogger("portllm")

SOONEST, LATEST = timedelta(minutes=10), timedelta(hours=6)  # between two looks at a pull request
PATIENCE = 24  # one that has been open for a day is looked at every hour
MOST = 100  # pull requests that are looked at in one go
# From what stands somewhere: what is added, and what is deleted.
Changes = Callable[[HubRepo], tuple[dict[str, Content], list[str]]]


def ask(context: Context, job: Job, why: str, target: HubRepo, changes: Changes) -> Published:
    """Ask for the port by a pull request: the one that is open, or a new one. Done once.

    Args:
        target: what stands on main.
    """
    hub, publisher = context.hub, context.publisher
    requests = _ours(context, job, target)
    asked = next((each for each in requests if _title(each) == job.key), None)
    standing = next((each for each in requests if each.is_open), None)
    if asked is None and standing is not None:
        asked = standing
        there = HubRepo(hub, job.to_repo, hub.head(job.to_repo, standing.ref))
        check_order(context, job, there)
        if hub.commit_with(job.to_repo, job.trailer, there.sha) is None:
            add, delete = changes(there)
            description = f"{why}\n\n{job.trailer}"
            publisher.commit(
                job.to_repo, add, delete, job.title, description, there.sha, standing.ref
            )
        _supersede(context, job, f"Its pull request went on to {job.new_repo}@{job.new_sha[:7]}.")
        said = f"There is a newer release, so this now holds the port to it.\n\n{_about(job, why)}"
        publisher.retitle(job.to_repo, standing.number, job.title, said)
    if asked is not None:
        url = asked.url
    else:
        add, delete = changes(target)
        description = f"{_about(job, why)}\n\n{job.trailer}"
        url = publisher.commit(
            job.to_repo, add, delete, job.title, description, target.sha, PULL_REQUEST
        ).url
    close_open(context, job, publisher.state(job.to_repo), f"{url} took its place.", but=url)
    return Published(sha="", url=url)


def close_open(
    context: Context, job: Job, target: HubRepo, comment: str, but: str | None = None
) -> None:
    """Close what is open of ours, but for the one at `but`. That is no no."""
    others = [each for each in _ours(context, job, target) if each.is_open and each.url != but]
    with context.database.session() as session:  # a late one leaves those to newer releases alone
        others = [each for each in others if newer(session, job, _title(each)) is None]
    if others:
        _supersede(context, job, f"{job.new_repo}@{job.new_sha[:7]} took its place.")
    for each in others:
        context.publisher.close_request(job.to_repo, each.number, comment)


def follow_up(context: Context, repo: str | None = None, *, whenever: bool = False) -> None:
    """Record what became of the pull requests whose time to be looked at has come.

    Args:
        repo: look at those to this target instead, whenever they were looked at last.
        whenever: look at all of them, whenever they were looked at last.
    """
    if context.is_paused:
        return
    with context.database.session() as session:
        if repo is not None:
            keys = [port.key for port in ports_to(session, repo, PortState.ASKED)]
        else:
            due = select(Port.key).where(Port.state == PortState.ASKED)
            due = due if whenever else due.where(Port.due_at <= now())
            keys = list(session.scalars(due.order_by(Port.due_at, Port.key).limit(MOST)))
    for key in keys:
        try:
            _look(context, key)
        except PortllmError as error:
            log.warning("%s: its pull request can't be looked at: %s", key, error)
            with context.database.session() as session:
                update_port(session, key, due_at=now() + LATEST)


def _look(context: Context, key: str) -> None:
    hub = context.hub
    with context.database.session() as session:
        port = session.get_one(Port, key)
        job, asked_at, why = Job(**port.job), port.published_at or port.updated_at, port.reason
        number = int((port.url or "").rpartition("/")[2])
    request = hub.pull_request(job.to_repo, number)
    if request.is_open:
        _close_twins(context, job, request)
        age = now() - asked_at
        due = now() + min(max(age / PATIENCE, SOONEST), LATEST)
        with context.database.session() as session:
            update_port(session, key, due_at=due)
    elif request.merged_as is not None:
        at = request.merged_as
        if hub.may_write(job.to_repo):
            context.publisher.tag(job.to_repo, job.tag, at)
            at = job.tag
        url = hub.url(job.to_repo, at)
        _answered(
            context,
            key,
            state=PortState.PUBLISHED,
            reason=f"{why} Its pull request was merged.",
            url=url,
            published_sha=request.merged_as,
            published_at=now(),
        )
    else:
        said = (
            f"Its pull request was closed: that is a no, and {job.new_repo}@{job.new_sha[:7]} is "
            f"not asked about again. A later release may be. To ask again: portllm retry {key}"
        )
        _answered(context, key, state=PortState.DECLINED, reason=said)


def _close_twins(context: Context, job: Job, request: PullRequest) -> None:
    """The Hub may have opened one, lost the answer, and told of none when it was asked again."""
    for each in context.hub.pull_requests(job.to_repo):
        if each.is_open and each.number != request.number and _title(each) == job.key:
            said = f"It asks what {request.url} asks."
            context.publisher.close_request(job.to_repo, each.number, said)


def _answered(context: Context, key: str, **changes: object) -> None:
    with context.database.session() as session:
        port = session.get_one(Port, key)
        if port.state != PortState.ASKED:
            return  # a newer port took its pull request over meanwhile
        update_port(session, key, **changes)
        note(session, key, str(changes["reason"]))
    log.info("%s: %s", key, changes["reason"])


def _ours(context: Context, job: Job, target: HubRepo) -> list[PullRequest]:
    """Our pull requests that are about a port to this target, the newest first.

    Not the one that the port's own no was said by: if it is asked for again, then anew.
    """
    if not target.sha:
        return []
    with context.database.session() as session:
        known = {port.url for port in _asked(session, job)}
        port = session.get(Port, job.key)
        declined = port.url if port else None
    return [
        each
        for each in context.hub.pull_requests(job.to_repo)
        if each.url != declined and (_title(each) is not None or each.url in known)
    ]


def _title(request: PullRequest) -> str | None:
    """The key of the port in its title."""
    match = PORT_TITLE.fullmatch(request.title)
    return match[1] if match else None


def _asked(session: Session, job: Job) -> list[Port]:
    """The other ports that ask to be merged into this target."""
    asked = ports_to(session, job.to_repo, PortState.ASKED)
    return [port for port in asked if port.key != job.key]


def _supersede(context: Context, job: Job, reason: str) -> None:
    with context.database.session() as session:
        for port in _asked(session, job):
            if newer(session, job, port.key) is not None:
                continue
            update_port(session, port.key, state=PortState.SUPERSEDED, reason=reason)
            note(session, port.key, reason)


def grounds(job: Job, reason: str, evidence: Evidence) -> str:
    """Why the port is as good as it is said to be: the verdict, and what was measured."""
    if evidence.own is None:
        return reason
    from judging.verdict import weigh_all  # SciPy takes a second to import

    own = weigh_all(evidence, job.judged_by).own
    rows = ["| arm | mean | from | to |", "|---|---:|---:|---:|"]
    for arm, name in ARMS.items():
        if found := own.arms.get(arm):
            numbers = (figure(each, own.metric) for each in (found.mean, found.low, found.high))
            rows.append(f"| {name} | {' | '.join(numbers)} |")
    unit = "accuracy in %" if own.metric == "accuracy" else own.metric
    measured = f"Measured on {own.items} items of `{own.task}`, {unit}, with intervals:"
    return "\n".join([reason, "", measured, "", *rows])


def _about(job: Job, why: str) -> str:
    """What a person who is asked wants to know."""
    always = "Every port of this subscription comes so. " if job.delivery == "request" else ""
    what = f"[{job.patch_repo}](/{job.patch_repo})"
    base = f"[{job.new_repo}](/{job.new_repo}) at revision `{job.new_sha[:7]}`"
    return (
        f"**What.** The patch {what}, ported to {base} without training.\n\n"
        f"**Why you are asked.** {always}{why}\n\n"
        f"**To say yes**, merge this. The revision is then tagged `{job.tag}`, if PortLLM may "
        "write here; otherwise use the merge commit as the revision.\n\n"
        "**To say no**, close this. This port is not asked about again; a port to a later release "
        "may be.\n\n"
        "**To change this, or to never be asked again**, edit or delete `portllm.yaml` in the "
        "patch's repo, if there is one; otherwise have whoever runs the bot change or end the "
        f"subscription: `portllm subscribe {job.patch_repo} ... --by commit` (or `branch`, "
        f"`request`), `portllm unsubscribe {job.patch_repo}`"
    )
