"""Taking back what is on the Hub: to the port before it, or by a notice on the card.

Nothing is erased: each is a commit on top, and the tags of both ports stay where they are.
"""

import logging
from datetime import datetime

from bot.context import Context, Job
from bot.hub import MAIN, HubRepo
from bot.publishing.content import Content, Copied
from bot.publishing.describe import CARD, left_over
from bot.publishing.targets import ports_to
from bot.running.controls import find_port, refusal
from bot.trust import signing
from patch_cards import card, chart, lock
from porting.errors import Refused, UsageError
from registry.models import Port, PortState
from registry.ports import note, update_port

log = logging.getLogger("portllm")

PUSHED = (PortState.PUBLISHED, PortState.ROLLED_BACK, PortState.WITHDRAWN)


def rollback(context: Context, repo: str) -> tuple[str, str]:
    """Put the port before the present one back onto main of `repo`; the keys of both.

    Large files are copied on the Hub. Where each port has a branch of its own, the present one's
    card is made to point to the one before. Killed before it is recorded, the next call records it.

    Raises:
        UsageError: there is none before it.
        Refused: what is on main is not known to these records.
        HubError: somebody else committed meanwhile, or the Hub failed; nothing was changed.
    """
    with context.database.session() as session:
        ports = ports_to(session, repo, *PUSHED)
    if not ports:
        raise UsageError(f"No port is published to {repo}; see: portllm ports")
    latest = next(iter(_published(ports)), None)
    on_main = [port for port in ports if _branch(context, port) == MAIN]
    if latest is not None and latest not in on_main:
        return _point_back(context, latest, _published(ports)[1:])
    ports, head = on_main, context.publisher.state(repo)
    key = lock.read(head).key
    present = next((port for port in ports if port.key == key), None)
    if present is None:
        raise Refused(
            f"main of {repo} holds the port {key}, which these records don't know: it can't be "
            "told what was before it. Choose a revision on the Hub, and revert to it there."
        )
    newer = [port for port in _published(ports) if _at(port) > _at(present)]
    if newer:  # it was rolled back before, which is not recorded yet
        left, former = newer[0], present
    else:
        before = [port for port in _published(ports) if _at(port) < _at(present)]
        if not before:
            raise _first(present)
        left, former = present, before[0]
        _restore(context, head, Job(**former.job), former, left.key)
    return _rolled_back(context, left, former)


def _first(port: Port) -> UsageError:
    return UsageError(
        f"{port.key} is the first port to {port.job['to_repo']}, so there is none to go back to. "
        f"To mark it as withdrawn: portllm withdraw {port.key}"
    )


def _point_back(context: Context, left: Port, before: list[Port]) -> tuple[str, str]:
    if not before:
        raise _first(left)
    where = Job(**before[0].job).tag
    said = f"**Rolled back:** use revision `{where}`, the port to `{_name(before[0])}`, instead."
    _give_notice(context, left, said, f"Roll back the port to {_name(left)} ({left.key})", said)
    return _rolled_back(context, left, before[0])


def _rolled_back(context: Context, left: Port, former: Port) -> tuple[str, str]:
    said = f"Rolled back to {_name(former)} ({former.key}). The next release gets a port again."
    with context.database.session() as session:
        if left.state == PortState.PUBLISHED:
            update_port(session, left.key, state=PortState.ROLLED_BACK, reason=said)
        note(session, left.key, said)
    log.info("%s: %s", left.key, said)
    return left.key, former.key


def _restore(context: Context, head: HubRepo, job: Job, former: Port, left: str) -> None:
    repo, sha = job.to_repo, former.published_sha or ""
    then = HubRepo(context.hub, repo, sha)
    locked = lock.read(then)
    if locked.key != former.key:
        raise Refused(f"{repo}@{sha[:7]} holds the port {locked.key}, not {former.key}.")
    content: dict[str, Content] = {name: Copied(repo, sha, name) for name in locked.files}
    for name in then.files().keys() & {lock.NAME, chart.NAME, signing.NAME}:
        content[name] = then.read(name, 0, then.files()[name].size)
    content[CARD] = _encoded(card.restore(_card(then), _card(head)))
    context.publisher.commit(
        repo,
        add=content,
        delete=left_over(head, set(content)),
        title=f"Back to the port to {_name(former)} ({former.key})",
        description=f"The port {left} is taken back.\n\n{job.trailer}",
        parent=head.sha,
    )


def withdraw(context: Context, name: str, why: str) -> str:
    """Mark a port as one not to be used, on the card and in the records; its key.

    The lock stays as it is, so that the port can still be verified.
    """
    with context.database.session() as session:
        port = find_port(session, name)
        if port.state not in (PortState.PUBLISHED, PortState.ROLLED_BACK):
            raise UsageError(refusal(port, "can't be withdrawn"))
    why, tag = " ".join(why.split()), Job(**port.job).tag
    notice = f"**Withdrawn:** the port to `{_name(port)}`, revision `{tag}`. {why}"
    said, to = f"Withdrawn: {why}", port.job["to_repo"]
    if not context.hub.exists(to) or context.hub.may_write(to):
        _give_notice(context, port, notice, f"Withdraw the port to {_name(port)} ({port.key})", why)
    else:
        said += f" Its card does not say so: this token may not write to {to}."
    with context.database.session() as session:
        update_port(session, port.key, state=PortState.WITHDRAWN, reason=said)
        note(session, port.key, said)
    return port.key


def _give_notice(context: Context, port: Port, notice: str, title: str, why: str) -> None:
    """Put it on the card of the port, where that is not gone."""
    repo, ref = port.job["to_repo"], _branch(context, port)
    head = context.publisher.state(repo)
    if not head.sha:
        return
    if ref != MAIN:
        head = context.publisher.branch(head, ref)
    before = _card(head)
    after = card.give_notice(before, notice)
    if after != before:
        added = {CARD: _encoded(after)}
        context.publisher.commit(repo, added, [], title, why, head.sha, ref)


def _branch(context: Context, port: Port) -> str:
    """What the port was pushed to; one that was asked for, and merged, is on main."""
    job = Job(**port.job)
    if job.delivery == "branch" and job.tag in context.hub.branches(job.to_repo):
        return job.tag
    return MAIN


def _published(ports: list[Port]) -> list[Port]:
    return [port for port in ports if port.state == PortState.PUBLISHED]


def _at(port: Port) -> datetime:
    return port.published_at or port.created_at


def _name(port: Port) -> str:
    return f"{port.job['new_repo']}@{port.job['new_sha'][:7]}"


def _card(repo: HubRepo) -> str:
    if CARD not in repo.files():
        return ""
    return repo.read(CARD, 0, repo.files()[CARD].size).decode(errors="surrogateescape")


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
