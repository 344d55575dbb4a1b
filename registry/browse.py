"""What can be read of the records: by key, a page at a time, and nothing of a private patch.

Every query walks an index and stops after a page, however many rows there are.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Select, exists, func, select, tuple_
from sqlalchemy.orm import Session, aliased, contains_eager, defer, joinedload

from judging.evidence import Evidence
from judging.policy import Action
from registry.having import all_with, such, those_with
from registry.history import ALPHA, history
from registry.models import Base, Control, Patch, Port, PortState, Release, Subscription, Worker
from registry.paging import number, values, written
from registry.ports import AT_WORK, events
from registry.scene import PENDING, SILENCE, Scene
from registry.status import shown, statuses, told
from registry.views import (
    BaseRow,
    BaseView,
    Followed,
    Line,
    Page,
    PatchRow,
    PatchView,
    PortRow,
    PortView,
    ReleaseRow,
    StatusView,
    SubscriptionRow,
    Task,
)
from registry.workers import WATCHER, living

ROWS = 20  # on a page
SECTIONS = 4  # subscriptions on a patch's page
RELEASES = MOMENTS = 8  # on a base's, and of one subscription
WORDS = 8  # of a search
WINDOW = 100  # patches that are looked at for a page of those with a common kind of port
COUNTED = 200  # ports in a state, at the most
FEW = 300  # rows that may be looked at for one page
OPEN = (*(state for state in PortState if state in PENDING), PortState.ASKED)


class Browse:
    """Reads in `session`; of private patches only if `everything` may be seen.

    `clean` is applied to every sentence that the bot wrote.
    """

    def __init__(
        self, session: Session, everything: bool = False, clean: Callable[[str], str] = str
    ) -> None:
        self._session, self._everything, self._clean = session, everything, clean
        self._scene = Scene.now(session)

    def patches(
        self,
        words: str = "",
        base: str = "",
        task: str = "",
        state: PortState | None = None,
        cursor: str | None = None,
        action: Action | None = None,
    ) -> Page[PatchRow]:
        """The newest first, each repo once: those with these words in their name, and all else.

        One port has both, the state and the verdict's `action`.
        """
        newer = aliased(Patch)
        query = self._public(select(Patch)).where(
            ~exists().where(newer.repo == Patch.repo, newer.id > Patch.id)
        )
        for word in words.split()[:WORDS]:
            query = query.where(Patch.repo.icontains(word, autoescape=True))
        if base:
            query = query.where(Patch.base_repo == base)
        if task:  # never by its index where there is the base's, which is shorter
            query = query.where((func.coalesce(Patch.task, "") if base else Patch.task) == task)
        query = query.order_by(Patch.id.desc())
        if cursor is not None:
            query = query.where(Patch.id < number(cursor))
        if state is not None or action is not None:
            return self._with_port(query, state, action)
        return self._page(query, PatchRow.of, lambda patch: str(patch.id))

    def _with_port(
        self, query: Select[Any], state: PortState | None, action: Action | None
    ) -> Page[PatchRow]:
        """Where few ports are such, from these; else of the next patches those that have one.

        Then a page may be short, and the next one still has more.
        """
        few = all_with(self._session, state, action)
        if few is not None:
            fitting = query.where(Patch.id.in_(few))
            return self._page(fitting, PatchRow.of, lambda patch: str(patch.id))
        looked_at = list(self._session.scalars(query.limit(WINDOW)))
        fit = those_with(self._session, [patch.id for patch in looked_at], state, action)
        found = [patch for patch in looked_at if patch.id in fit][:ROWS]
        last = found[-1] if len(found) == ROWS else (looked_at or [None])[-1]
        is_end = len(found) < ROWS and len(looked_at) < WINDOW
        return Page(
            items=[PatchRow.of(patch) for patch in found],
            next=None if is_end or last is None else str(last.id),
        )

    def patch(self, repo: str, cursor: str | None = None) -> PatchView | None:
        found = self._session.scalars(
            self._public(select(Patch)).where(Patch.repo == repo).order_by(Patch.id.desc())
        ).all()
        if not found:
            return None
        query = (
            select(Subscription)
            .where(Subscription.patch_id.in_([patch.id for patch in found]))
            .options(joinedload(Subscription.patch), joinedload(Subscription.base))
            .order_by(Subscription.id.desc())
        )
        page = self._subscriptions(query, cursor, SECTIONS)
        followed = [
            Followed(**dict(row), moments=history(self._session, row.id, MOMENTS))
            for row in page.items
        ]
        return PatchView(
            patch=PatchRow.of(found[0]), subscriptions=Page(items=followed, next=page.next)
        )

    def bases(self, words: str = "", cursor: str | None = None) -> Page[BaseRow]:
        """What was followed last first."""
        query = self._visible(select(Base)).order_by(Base.id.desc())
        for word in words.split()[:WORDS]:
            query = query.where(Base.repo.icontains(word, autoescape=True))
        if cursor is not None:
            query = query.where(Base.id < number(cursor))
        return self._page(query, BaseRow.following, lambda base: str(base.id))

    def base(
        self, repo: str, cursor: str | None = None, followers: str | None = None
    ) -> BaseView | None:
        """`cursor` is that of the releases, `followers` that of these."""
        query = self._visible(select(Base)).where(Base.repo == repo).order_by(Base.id)
        found = self._session.scalars(query).all()
        if not found:
            return None
        ids = [base.id for base in found]
        released = select(Release).where(Release.base_id.in_(ids)).order_by(Release.id.desc())
        following = self._public(
            select(Subscription)
            .join(Patch, Patch.id == Subscription.patch_id)
            .where(Subscription.base_id.in_(ids), Subscription.ended_at.is_(None))
            .options(contains_eager(Subscription.patch), joinedload(Subscription.base))
            .order_by(Subscription.id.desc())
        )
        return BaseView(
            repo=repo,
            followings=[BaseRow.following(base) for base in found],
            releases=self._releases(released, cursor),
            followers=self._subscriptions(following, followers, ROWS),
        )

    def newest_releases(self, cursor: str | None = None) -> Page[ReleaseRow]:
        query = self._visible(select(Release).join(Base, Base.id == Release.base_id))
        return self._releases(query.order_by(Release.id.desc()), cursor)

    def ports(
        self,
        state: PortState | None = None,
        patch: str = "",
        release: int | None = None,
        cursor: str | None = None,
        action: Action | None = None,
    ) -> Page[PortRow]:
        """Those that all of this is true of; without any of it, those published last first.

        Those with a verdict, and no more said, are ordered by their state.
        """
        query = self._ports().where(*such(state, action, by_index=not patch))
        keys: tuple[Any, ...] = (Port.due_at, Port.key)
        if patch:  # few are of it
            query, keys = query.where(Patch.repo == patch), (Port.release_id, Port.subscription_id)
            if release is not None:
                query = query.where(func.abs(Port.release_id) == release)
        elif release is not None:
            query, keys = query.where(Port.release_id == release), (Port.subscription_id,)
        elif state is None and action is not None:
            keys = (Port.state, *keys)
        elif state is None:
            query, keys = query.where(Port.published_at.is_not(None)), (Port.published_at, Port.key)
        if cursor is not None:
            query = query.where(tuple_(*keys) < tuple_(*values(keys, cursor)))
        query = query.order_by(*(key.desc() for key in keys))
        return self._page(query, self._port_row, lambda port: written(port, keys))

    def port(self, key: str) -> PortView | None:
        port = self._session.scalars(self._ports(evidence=True).where(Port.key == key)).first()
        if port is None:
            return None
        job, evidence = port.job, Evidence.model_validate(port.evidence or {})
        alpha = (job.get("verdict_policy") or {}).get("alpha", ALPHA)
        tasks = [Task.of_measured(evidence.own, alpha / evidence.looks)] if evidence.own else []
        tasks += [Task.of_measured(guard, alpha / len(evidence.guard)) for guard in evidence.guard]
        root = "adapter/" if job.get("form") == "adapter" else "merged/"  # not so in the repo
        return PortView(
            port=self._port_row(port),
            inputs={
                name: f"{job[f'{name}_repo']}@{job[f'{name}_sha']}"
                for name in ("patch", "old", "new")
                if f"{name}_repo" in job
            },
            verdict_reason=(
                self._discreet(port.verdict["reason"], port.subscription) if port.verdict else None
            ),
            policy=job.get("policy"),
            scale=evidence.scale,
            engine=evidence.engine or None,
            tasks=tasks,
            forecast=(evidence.forecast or {}).get("total"),
            files={name.removeprefix(root): sha for name, sha in (port.made or {}).items()},
            published_sha=port.published_sha,
            log=[
                Line.of(event, text=self._discreet(event.text, port.subscription))
                for event in events(self._session, key)
            ],
        )

    def status(self, queues: dict[str, int]) -> StatusView:
        """`queues` are shown only with everything else: they count what is private as well."""
        session, everything = self._session, self._everything
        alive = sorted(living(session, SILENCE))
        watcher = session.get(Control, WATCHER)
        unread = self._visible(select(Release).join(Base, Base.id == Release.base_id))
        unread = unread.where(Release.change.is_(None)).order_by(Release.id.desc())
        blocked = self._visible(select(Base)).where(Base.problem.is_not(None)).order_by(Base.id)
        late = (
            select(Port.key)
            .where(Port.state == PortState.WAITING)
            .order_by(Port.due_at.desc(), Port.key.desc())
            .limit(FEW)
        )
        again = self._ports().where(Port.key.in_(late), Port.attempt > 1)
        return StatusView(
            at=self._scene.at,
            paused=self._scene.paused,
            workers=len(alive),
            pulse_at=session.scalar(select(func.max(Worker.pulse_at))),
            watched=watcher is not None and watcher.value["worker"] in alive,
            worker_names=alive if everything else [],
            queues=queues if everything else {},
            most=COUNTED,
            counts={state: self._count(state) for state in (*OPEN, PortState.FAILED)},
            working=self._rows(self._ports().where(Port.state.in_(AT_WORK))),
            waiting=[
                row
                for state in (PortState.WAITING, PortState.JUDGED)
                for row in self._rows(
                    self._ports().where(Port.state == state).order_by(Port.due_at, Port.key)
                )
            ],
            again=self._rows(again.order_by(Port.due_at, Port.key)),
            failed=self.ports(PortState.FAILED).items,
            unread=self._releases(unread, None).items,
            blocked=[BaseRow.following(base) for base in session.scalars(blocked.limit(ROWS))],
        )

    def _count(self, state: PortState) -> int:
        """Ports in the state, up to COUNTED: what is private can't be left out of more in time."""
        mine = self._public(
            select(Port.key)
            .join(Subscription, Subscription.id == Port.subscription_id)
            .join(Patch, Patch.id == Subscription.patch_id)
            .where(Port.state == state)
            .limit(COUNTED)
        )
        return self._session.scalar(select(func.count()).select_from(mine.subquery())) or 0

    def _ports(self, evidence: bool = False) -> Select[Any]:
        query = (
            select(Port)
            .join(Subscription, Subscription.id == Port.subscription_id)
            .join(Patch, Patch.id == Subscription.patch_id)
            .options(contains_eager(Port.subscription).contains_eager(Subscription.patch))
            .options(joinedload(Port.release).joinedload(Release.base))
        )
        return self._public(query if evidence else query.options(defer(Port.evidence)))

    def _rows(self, query: Select[Any]) -> list[PortRow]:
        return [self._port_row(port) for port in self._session.scalars(query.limit(ROWS))]

    def _public(self, query: Select[Any]) -> Select[Any]:
        return query if self._everything else query.where(Patch.private.is_(False))

    def _visible(self, query: Select[Any]) -> Select[Any]:
        """Only bases that a public patch follows, or followed."""
        if self._everything:
            return query
        mine = Subscription.base_id == Base.id
        public = exists().where(mine, Patch.id == Subscription.patch_id, Patch.private.is_(False))
        return query.where(public, Base.private.is_(False))

    def _page(
        self,
        query: Select[Any],
        row: Callable[[Any], Any],
        cursor: Callable[[Any], str],
        most: int = ROWS,
    ) -> Page[Any]:
        found = self._session.scalars(query.limit(most + 1)).all()
        items = found[:most]
        more = cursor(items[-1]) if len(found) > most else None
        return Page(items=[row(each) for each in items], next=more)

    def _subscriptions(
        self, query: Select[Any], cursor: str | None, most: int
    ) -> Page[SubscriptionRow]:
        if cursor is not None:
            query = query.where(Subscription.id < number(cursor))
        page = self._page(query, lambda each: each, lambda each: str(each.id), most)
        found = statuses(self._session, page.items)
        rows = [
            SubscriptionRow.of(
                status,
                id=each.id,
                patch=each.patch.repo,
                base=each.base.repo,
                delivery=each.delivery,
                managed=each.managed,
                reason=self._discreet(status.reason, each),
            )
            for each, status in zip(page.items, found, strict=True)
        ]
        return Page(items=rows, next=page.next)

    def _releases(self, query: Select[Any], cursor: str | None) -> Page[ReleaseRow]:
        if cursor is not None:
            query = query.where(Release.id < number(cursor))
        query = query.options(joinedload(Release.base))
        page = self._page(query, lambda each: each, lambda each: str(each.id), RELEASES)
        counts = self._counts(page.items)
        rows = [
            ReleaseRow.of(
                each,
                base=each.base.repo,
                follows=shown(each.base),
                reason=each.reason and self._clean(each.reason),
                verdicts={action: n for (id, action), n in counts.items() if id == each.id and n},
            )
            for each in page.items
        ]
        return Page(items=rows, next=page.next)

    def _counts(self, releases: Sequence[Release]) -> Counter[tuple[int, str]]:
        """Ports by release and verdict: all by index, less the private ones, by patch, not base."""
        ids = [release.id for release in releases]
        columns = (Port.release_id, Port.action)
        counted = select(*columns, func.count()).where(Port.release_id.in_(ids)).group_by(*columns)
        found = Counter({(id, said or "none"): n for id, said, n in self._session.execute(counted)})
        if not self._everything and found:
            private = select(Subscription.id).where(
                Subscription.patch_id.in_(select(Patch.id).where(Patch.private)),
                func.abs(Subscription.base_id).in_({each.base_id for each in releases}),
            )
            hidden = self._session.execute(counted.where(Port.subscription_id.in_(private)))
            found.subtract({(id, said or "none"): n for id, said, n in hidden})
        return found

    def _port_row(self, port: Port) -> PortRow:
        job, subscription = port.job, port.subscription
        return PortRow.of(
            port,
            patch=subscription.patch.repo,
            base=port.release.base.repo,
            repo=port.release.repo,
            sha=port.release.sha,
            to=job.get("to_repo", subscription.to_repo),
            form=job.get("form", subscription.form),
            verdict=port.action,
            reason=self._discreet(told(self._scene, port), subscription),
            due_at=port.due_at if port.state in PENDING else None,
        )

    def _discreet(self, text: str, subscription: Subscription) -> str:
        """A port in a group tells which patches it waits for: not those that are private."""
        if subscription.group_name is not None and not self._everything:
            names = select(Patch.repo).distinct().join(Subscription).where(Patch.private)
            names = names.where(Subscription.base_id == subscription.base_id)
            names = names.where(Subscription.group_name == subscription.group_name)
            for name in sorted(self._session.scalars(names), key=len, reverse=True):
                text = text.replace(name, "a private patch")
        return self._clean(text)
