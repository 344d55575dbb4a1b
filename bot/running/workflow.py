"""The durable workflows: a release is classified; a port made and judged; a judged port published.

DBOS checkpoints every step in a database, so that what is killed goes on where it was, here or in
another process. A step may run twice (when it dies after its work and before its checkpoint), so
each step is idempotent. A workflow's id is the key of what it does and the number of the attempt:
however often it is started, it runs once.
"""

import logging
from dataclasses import asdict
from typing import Any

from dbos import DBOS, DBOSConfig, DBOSConfiguredInstance, SetEnqueueOptions, SetWorkflowID

from bot.context import Context, Job, job_of, load_job
from bot.hub import NotCopied
from bot.logs import tell
from bot.making.make import have_judged, make, remove_work
from bot.making.plan import plan_port
from bot.making.progress import reporter
from bot.making.scale import Choice, choose
from bot.making.validate import measure
from bot.notify import announcement, deliver
from bot.publishing.content import Uploaded
from bot.publishing.publish import publish
from bot.publishing.spread import Assembly, Unsent, send
from bot.running.controls import held
from bot.running.failure import STEP, Blame, fail_port, fail_release, failure, is_expected
from bot.running.stops import Cancelled, Held, Overtaken
from bot.running.workers import known_here, pushing
from bot.watching.classify import classify_release, subscriptions_to_port
from judging.evidence import Evidence
from judging.verdict import Verdict, judge
from registry.following import times_before
from registry.models import Port, PortState, Release, Rule, now
from registry.ports import (
    create_ports,
    locked,
    note,
    taken_keys,
    update_port,
    with_patches,
    without_port,
)
from registry.scene import paused

log = logging.getLogger("portllm")

# DBOS numbers the steps of a workflow: raise this when their order changes. What is unfinished then
# is begun anew; otherwise a later version of ours goes on with it.
VERSION = "5"
SHARDS, NOTICES = "shards", "notices"
STOPPED = (PortState.CANCELLED, PortState.WITHDRAWN)


def configure(context: Context) -> DBOS:
    """Prepare DBOS on the context's database. Call once per process, before `Bot` and `launch`."""
    return DBOS(
        config=DBOSConfig(
            name="portllm",
            system_database_url=context.settings.memory_url,
            application_version=VERSION,
            executor_id=context.settings.worker,
            log_level="ERROR",
        )
    )


@DBOS.dbos_class()
class Bot(DBOSConfiguredInstance):
    """The workflows, bound to a Hub and a registry."""

    def __init__(self, context: Context) -> None:
        super().__init__("bot")
        self.context = context

    @DBOS.workflow(name="release")
    @known_here
    def release(self, release_id: int, attempt: int) -> None:
        try:
            facts = self.classify(release_id)
            self.begin_ports(release_id, facts)
        except Exception as error:
            # Whatever it was, the subscriptions say so; a bug is DBOS's to record as well.
            self.give_up(release_id, attempt, *failure(error))
            if not is_expected(error):
                raise

    @DBOS.step(name="classify", **STEP)
    def classify(self, release_id: int) -> dict[str, str]:
        found = classify_release(self.context, release_id)
        with self.context.database.session() as session:
            log.info("%s: %s", session.get_one(Release, release_id).name, found.reason)
        return asdict(found)

    @DBOS.step(name="create ports", **STEP)
    def begin_ports(self, release_id: int, facts: dict[str, str]) -> None:
        wanted = subscriptions_to_port(self.context, release_id, facts["change"])
        with self.context.database.session() as session:
            release = session.get_one(Release, release_id)
            jobs: dict[int, dict[str, Any]] = {}
            if (again := times_before(session, release)) > 0 and release.base.rule != Rule.TREE:
                wanted = without_port(session, release, wanted)
            while wanted:
                found = with_patches(session, wanted)
                jobs |= {each.id: vars(job_of(each, release, again)) for each in found}
                keys = {str(jobs[id]["key"]): id for id in wanted}
                wanted, again = taken_keys(session, release_id, keys), again + 1
            # Together with its ports: what is said to be classified has them all. Only from here on
            # others who write have to wait.
            for name, value in facts.items():
                setattr(release, name, value)
            create_ports(session, release_id, jobs)

    @DBOS.step(name="give up", **STEP)
    def give_up(self, release_id: int, attempt: int, blame: Blame, sentence: str) -> None:
        fail_release(self.context, release_id, attempt, blame, sentence)

    @DBOS.workflow(name="port")
    @known_here
    def port(self, key: str, attempt: int) -> None:
        """Everything up to the verdict."""
        try:
            self.plan(key, attempt)
            choice = self.choose(key, attempt)
            self.make(key, attempt, choice["scale"])
            evidence = self.validate(key, attempt, choice)
            self.judge(key, attempt, evidence)
        except Exception as error:
            self._ended(key, attempt, error)
        self._announce(key, attempt)

    @DBOS.workflow(name="publication")
    @known_here
    def publication(self, key: str, attempt: int) -> None:
        """What follows a verdict that is not to reject."""
        try:
            sent: dict[str, dict[str, Any]] = {}
            while files := self.publish(key, attempt, sent):
                begun = {
                    file: DBOS.enqueue_workflow(SHARDS, self.shard, key, attempt, file)
                    for file in files
                }
                sent |= {file: shard.get_result() for file, shard in begun.items()}
            self.tidy(key)
        except Exception as error:
            self._ended(key, attempt, error)
        self._announce(key, attempt)

    @DBOS.workflow(name="shard")
    @known_here
    def shard(self, key: str, attempt: int, file: str) -> dict[str, Any]:
        """One file of a publication, sent; returns an `Uploaded`. Its failure is the whole's."""
        return self.send(key, attempt, file)

    def _ended(self, key: str, attempt: int, error: Exception) -> None:
        if isinstance(error, Held):
            self.hand_back(key, attempt)
        elif isinstance(error, Cancelled):
            overtaken = isinstance(error, Overtaken)
            end = PortState.SUPERSEDED if overtaken else PortState.CANCELLED
            self.stop(key, attempt, str(error), end)
        else:
            self.fail(key, attempt, *failure(error))
        if not is_expected(error):
            self._announce(key, attempt)
            raise error

    def _announce(self, key: str, attempt: int) -> None:
        said, receivers = self.announce(key, attempt)
        for number in range(receivers):
            with SetWorkflowID(f"{said['id']}.{number}.0"):
                DBOS.enqueue_workflow(NOTICES, self.notice, said, number, 0)

    @DBOS.workflow(name="notice")
    @known_here
    def notice(self, said: dict[str, Any], number: int, times: int) -> None:
        """One receiver told, or told again later: by a workflow of its own, so nothing waits."""
        later = self.deliver(said, number, times)
        if later is not None:
            name = f"{said['id']}.{number}.{times + 1}"
            with SetWorkflowID(name), SetEnqueueOptions(delay_seconds=later):
                DBOS.enqueue_workflow(NOTICES, self.notice, said, number, times + 1)

    @DBOS.step(name="plan", **STEP)
    def plan(self, key: str, attempt: int) -> None:
        self._check_time(key)
        job = self._begin(key, attempt, "plan", "Checking that the patch fits.")
        log.info("%s: %s", key, plan_port(self.context, job))

    @DBOS.step(name="choose scale", **STEP)
    def choose(self, key: str, attempt: int) -> dict[str, Any]:
        job = self._begin(key, attempt, "choose scale", "Looking at how much of the patch to add.")
        return asdict(choose(self.context, job, reporter(key)))

    @DBOS.step(name="make", **STEP)
    def make(self, key: str, attempt: int, scale: float) -> None:
        job = self.job(key)
        where = f"{job.new_repo}@{job.new_sha[:7]}"
        self._begin(key, attempt, "make", f"Adding the patch to {where}.")
        self._update(key, made=make(self.context, job, scale, reporter(key)))

    @DBOS.step(name="validate", **STEP)
    def validate(self, key: str, attempt: int, choice: dict[str, Any]) -> dict[str, Any]:
        doing = "Judging it on the patch's own items and the guard's."
        job = self._begin(key, attempt, "validate", doing)
        with self.context.database.session() as session:
            made = session.get_one(Port, key).made
        have_judged(self.context, job, choice["scale"], made, reporter(key))
        return measure(self.context, job, Choice(**choice), reporter(key)).model_dump()

    @DBOS.step(name="judge", **STEP)
    def judge(self, key: str, attempt: int, evidence: dict[str, Any]) -> None:
        tell(step="judge")
        verdict = judge(Evidence.model_validate(evidence), self.job(key).judged_by)
        rejected = verdict.action == "reject"
        with self.context.database.session() as session:
            port = locked(session, key)
            if port.attempt != attempt or port.verdict is not None or port.state in STOPPED:
                return  # judged, and maybe published, before this step's end was recorded
            update_port(
                session,
                key,
                state=PortState.REJECTED if rejected else PortState.JUDGED,
                step=None,
                due_at=now(),
                reason=verdict.reason,
                evidence=evidence,
                verdict=verdict.model_dump(),
            )
        log.info("%s: %s: %s", key, verdict.action, verdict.reason)
        if rejected:
            remove_work(self.context, key)

    @DBOS.step(name="publish", **STEP)
    def publish(self, key: str, attempt: int, sent: dict[str, dict[str, Any]]) -> list[str]:
        """Returns the files that have to be sent first; none once it is published."""
        with self.context.database.session() as session:
            port = session.get_one(Port, key)
            if port.attempt == attempt and port.published_at is not None:
                return []  # before this step's end was recorded; and maybe answered since
            evidence = Evidence.model_validate(port.evidence)
            decided = Verdict.model_validate(port.verdict)
            judged = port.made
        self._check_time(key, is_begun=bool(sent))
        job = self._begin(key, attempt, "publish", decided.reason)
        uploaded = {file: Uploaded(**each) for file, each in sent.items()}
        assembly = Assembly(self.context, job, evidence.scale, judged, uploaded, reporter(key))
        try:
            with pushing:
                delivered = publish(self.context, job, assembly.contents, evidence, decided)
        except Unsent as unsent:
            return unsent.files
        except NotCopied:
            return assembly.not_copied()
        log.info("%s: %s at %s", key, delivered.state, delivered.published.url)
        self._update(
            key,
            state=delivered.state,
            step=None,
            reason=delivered.reason,
            url=delivered.published.url,
            published_sha=delivered.published.sha or None,
            published_at=now(),
            made=assembly.made or judged,
        )
        return []

    @DBOS.step(name="send", **STEP)
    def send(self, key: str, attempt: int, file: str) -> dict[str, Any]:
        self._check_time(key, is_begun=True)
        with self.context.database.session() as session:
            port = session.get_one(Port, key)
            if (port.attempt, port.state) != (attempt, PortState.RUNNING):
                raise Cancelled(port.reason)
            scale, judged = Evidence.model_validate(port.evidence).scale, port.made
            note(session, key, f"Sending {file}.")
        log.info("%s: sending %s", key, file)
        return asdict(send(self.context, self.job(key), scale, judged, file, reporter(key)))

    @DBOS.step(name="tidy", **STEP)
    def tidy(self, key: str) -> None:
        remove_work(self.context, key)

    @DBOS.step(name="fail", **STEP)
    def fail(self, key: str, attempt: int, blame: Blame, sentence: str) -> None:
        if not fail_port(self.context, key, attempt, blame, sentence):
            remove_work(self.context, key)

    @DBOS.step(name="stop", **STEP)
    def stop(self, key: str, attempt: int, reason: str, end: PortState) -> None:
        with self.context.database.session() as session:
            port = locked(session, key)
            if port.attempt != attempt:
                return
            if port.state not in STOPPED:
                update_port(session, key, state=end, step=None, reason=reason)
        remove_work(self.context, key)

    @DBOS.step(name="hand back", **STEP)
    def hand_back(self, key: str, attempt: int) -> None:
        """Its time passed in the queue, so it waits for the next one."""
        with self.context.database.session() as session:
            port = locked(session, key)
            if port.attempt == attempt and port.state not in STOPPED:
                state = PortState.JUDGED if port.verdict else PortState.WAITING
                # A workflow that is over is not begun again under its name.
                update_port(session, key, state=state, attempt=attempt + 1, due_at=now())

    @DBOS.step(name="announce", **STEP)
    def announce(self, key: str, attempt: int) -> tuple[dict[str, Any], int]:
        return announcement(self.context, key, attempt)

    @DBOS.step(name="deliver", **STEP)
    def deliver(self, said: dict[str, Any], number: int, times: int) -> float | None:
        return deliver(self.context, said, number, times)

    def _check_time(self, key: str, is_begun: bool = False) -> None:
        """Raises Held where it may not be begun any more, or, begun, published: a pause came."""
        with self.context.database.session() as session:
            found = held(session.get_one(Port, key), now(), paused(session), is_begun)
        if found is not None:
            raise Held(found.reason)

    def job(self, key: str) -> Job:
        return load_job(self.context.database, key)

    def _begin(self, key: str, attempt: int, step: str, reason: str) -> Job:
        tell(step=step)
        with self.context.database.session() as session:
            port = locked(session, key)
            if port.attempt != attempt:
                raise Cancelled(f"Attempt {port.attempt} took its place.")
            if port.state in STOPPED:
                raise Cancelled(port.reason)
            if port.subscription.ended_at is not None:
                raise Cancelled("The subscription was ended before the port was done.")
            update_port(session, key, state=PortState.RUNNING, step=step, reason=reason)
            note(session, key, reason)
        log.info("%s: %s", key, reason)
        return self.job(key)

    def _update(self, key: str, **changes: Any) -> None:
        with self.context.database.session() as session:
            update_port(session, key, **changes)
