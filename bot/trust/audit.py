"""The audit: what published ports stand on is looked for again, slowly; what lost it is withdrawn.

A Hub that fails, or lets us in no longer, is no loss. And a loss is believed when it was found
twice, a day apart: of a repo that one may not see, the Hub says that there is none.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session, defer

from bot.context import Context, Job
from bot.hub import Facts, Hub, Missing, NoRepo
from bot.hub.limiter import polling
from bot.trust.takeback import withdraw
from patch_cards.licences import combine
from porting.errors import PortllmError, Refused
from registry.models import Event, Patch, Port, PortState, Subscription, now

log = logging.getLogger("portllm")

MOST = 3  # patches that are looked at in one go
APART = timedelta(days=1)  # two looks at one
AUDIT = "audit"  # the step of the events that say what was found
THERE = "What it stands on is there again."

# What a repo says of itself at a revision; None where the Hub is sure that there is none.
Look = Callable[[str, str], Facts | None]


@dataclass(frozen=True)
class Loss:
    """Why a port is not to be used any more; `of_all`: nor any later one of its subscription."""

    said: str
    of_all: bool


def audit(context: Context, at: datetime | None = None) -> None:
    """Look at the patches with published ports that were not looked at for the longest time."""
    if context.is_paused:
        return
    at = at or now()
    look = cache(lambda repo, revision: _look(context.hub, repo, revision))
    for patch_id, ports in _due(context, at).items():
        for port in ports:
            try:
                with polling():
                    loss = _loss(look, Job(**port.job))
                _heed(context, port.key, loss, at)
            except PortllmError as error:
                log.warning("%s: what it stands on can't be looked at: %s", port.key, error)
        with context.database.session() as session:
            session.get_one(Patch, patch_id).checked_at = at


def _due(context: Context, at: datetime) -> dict[int, list[Port]]:
    """The published ports of each patch whose turn it is."""
    published = (
        select(Port)
        .join(Subscription, Subscription.id == Port.subscription_id)
        .where(Port.state == PortState.PUBLISHED)
        .options(defer(Port.evidence))
    )
    with context.database.session() as session:
        patches = session.scalars(
            select(Patch.id)
            .where(
                or_(Patch.checked_at.is_(None), Patch.checked_at <= at - APART),
                exists(
                    published.where(Subscription.patch_id == Patch.id).with_only_columns(Port.key)
                ),
            )
            .order_by(Patch.checked_at.nulls_first(), Patch.id)
            .limit(MOST)
        )
        return {
            id: list(session.scalars(published.where(Subscription.patch_id == id)))
            for id in list(patches)
        }


def _look(hub: Hub, repo: str, revision: str) -> Facts | None:
    try:
        return hub.facts(repo, revision)
    except (Missing, NoRepo):
        return None


def _loss(look: Look, job: Job) -> Loss | None:
    """What the port has lost. Raises PortllmError where that can't be told."""
    patch, base = f"{job.patch_repo}@{job.patch_sha[:7]}", f"{job.new_repo}@{job.new_sha[:7]}"
    if look(job.patch_repo, job.patch_sha) is None:
        return Loss(f"The patch, {patch}, is no longer on the Hub.", of_all=True)
    if look(job.new_repo, job.new_sha) is None:
        return Loss(f"The base that it is for, {base}, is no longer on the Hub.", of_all=False)
    of_patch, of_base = look(job.patch_repo, "main"), look(job.new_repo, "main")
    if of_patch is not None and of_base is not None:
        try:
            combine(of_base.licence, of_patch.licence, job.form)
        except Refused as error:
            return Loss(f"A licence has changed. {error}", of_all=True)
    return None


def _heed(context: Context, key: str, loss: Loss | None, at: datetime) -> None:
    """Note what was found; withdraw the port where it was found before."""
    with context.database.session() as session:
        port = session.get_one(Port, key)
        doubt = _doubt(session, key)
        said = THERE if loss is None else f"{loss.said} If that is so in a day, it is withdrawn."
        if doubt is None and loss is None:
            return
        if loss is None or doubt is None or doubt.text != said:
            session.add(Event(port_key=key, attempt=port.attempt, step=AUDIT, text=said, at=at))
            log.warning("%s: %s", key, said)
            return
        if doubt.at > at - APART:
            return  # killed before it recorded that it had looked
        if loss.of_all:  # first: the withdrawal may fail, and is tried again
            port.subscription.paused_at = port.subscription.paused_at or at
    withdraw(context, key, loss.said)
    log.warning("%s: withdrawn: %s", key, loss.said)


def _doubt(session: Session, key: str) -> Event | None:
    """What was last found to be lost, unless it was there again since."""
    mine = select(Event).where(Event.port_key == key, Event.step == AUDIT)
    last = session.scalars(mine.order_by(Event.id.desc()).limit(1)).first()
    return None if last is None or last.text == THERE else last
