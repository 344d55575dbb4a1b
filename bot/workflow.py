"""The durable workflows: a release is classified; a port made and judged; a judged port published.

DBOS checkpoints every step in a database, so that what is killed goes on where it was, here or in
another process. A step may run twice (when it dies after its work and before its checkpoint), so
each step is idempotent. A workflow's id is the key of what it does and the number of the attempt:
however often it is started, it runs once.
"""

import logging
from dataclasses import asdict
from typing import Any

from dbos import DBOS, DBOSConfig, DBOSConfiguredInstance

from bot.classify import classify_release, subscriptions_to_port
from bot.context import Context, Job, job_of, load_job
from bot.failure import STEP, Blame, Cancelled, fail_port, fail_release, failure, is_expected
from bot.plan import plan_port
from bot.port import make, remove_work
from bot.progress import reporter
from bot.publish import publish
from bot.scale import Choice, choose
from bot.validate import measure
from judging.evidence import Evidence
from judging.verdict import Verdict, judge
from registry.following import times_before
from registry.models import Port, PortState, Release, Subscription, now
from registry.ports import create_ports, note, update_port

log = logging.getLogger("portllm")

END_STATES = {"publish": PortState.PUBLISHED, "ask": PortState.ASKED}
STOPPED = (PortState.CANCELLED, PortState.WITHDRAWN)


def configure(context: Context) -> None:
    """Prepare DBOS on the context's database. Call once per process, before `Bot` and `launch`."""
    DBOS(
        config=DBOSConfig(
            name="portllm",
            system_database_url=context.settings.memory_url,
            # Unfinished work is taken up by a later version too. DBOS numbers the steps of a
            # workflow: raise this when their order changes.
            application_version="3",
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
    def release(self, release_id: int, attempt: int) -> None:
        try:
            self.classify(release_id)
            self.begin_ports(release_id)
        except Exception as error:
            # Whatever it was, the subscriptions say so; a bug is DBOS's to record as well.
            self.give_up(release_id, attempt, *failure(error))
            if not is_expected(error):
                raise

    @DBOS.step(name="classify", **STEP)
    def classify(self, release_id: int) -> None:
        classify_release(self.context, release_id)
        with self.context.database.session() as session:
            release = session.get_one(Release, release_id)
            log.info("%s: %s", release.name, release.reason)

    @DBOS.step(name="create ports", **STEP)
    def begin_ports(self, release_id: int) -> None:
        wanted = subscriptions_to_port(self.context, release_id)
        with self.context.database.session() as session:
            release = session.get_one(Release, release_id)
            again = times_before(session, release)
            jobs = {
                id: asdict(job_of(session.get_one(Subscription, id), release, again))
                for id in wanted
            }
            create_ports(session, release_id, jobs)

    @DBOS.step(name="give up")
    def give_up(self, release_id: int, attempt: int, blame: Blame, sentence: str) -> None:
        fail_release(self.context, release_id, attempt, blame, sentence)

    @DBOS.workflow(name="port")
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

    @DBOS.workflow(name="publication")
    def publication(self, key: str, attempt: int) -> None:
        """What follows a verdict that is not to reject."""
        try:
            self.publish(key, attempt)
            self.tidy(key)
        except Exception as error:
            self._ended(key, attempt, error)

    def _ended(self, key: str, attempt: int, error: Exception) -> None:
        if isinstance(error, Cancelled):
            self.stop(key, attempt, str(error))
        else:
            self.fail(key, attempt, *failure(error))
        if not is_expected(error):
            raise error

    @DBOS.step(name="plan", **STEP)
    def plan(self, key: str, attempt: int) -> None:
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
        return measure(self.context, job, Choice(**choice), reporter(key)).model_dump()

    @DBOS.step(name="judge")
    def judge(self, key: str, attempt: int, evidence: dict[str, Any]) -> None:
        with self.context.database.session() as session:
            port = session.get_one(Port, key)
            if port.attempt != attempt or port.verdict is not None:
                return  # judged, and maybe published, before this step's end was recorded
        verdict = judge(Evidence.model_validate(evidence), self.job(key).judged_by)
        log.info("%s: %s: %s", key, verdict.action, verdict.reason)
        rejected = verdict.action == "reject"
        self._update(
            key,
            state=PortState.REJECTED if rejected else PortState.JUDGED,
            step=None,
            due_at=now(),
            reason=verdict.reason,
            evidence=evidence,
            verdict=verdict.model_dump(),
        )
        if rejected:
            remove_work(self.context, key)

    @DBOS.step(name="publish", **STEP)
    def publish(self, key: str, attempt: int) -> None:
        with self.context.database.session() as session:
            port = session.get_one(Port, key)
            judged, decided = port.evidence, Verdict.model_validate(port.verdict)
            made = port.made
        job = self._begin(key, attempt, "publish", decided.reason)
        evidence = Evidence.model_validate(judged)
        published = publish(self.context, job, made or {}, evidence, decided)
        log.info("%s: published at %s", key, published.url)
        self._update(
            key,
            state=END_STATES[decided.action],
            step=None,
            url=published.url,
            published_sha=published.sha or None,
            published_at=now(),
        )

    @DBOS.step(name="tidy")
    def tidy(self, key: str) -> None:
        remove_work(self.context, key)

    @DBOS.step(name="fail")
    def fail(self, key: str, attempt: int, blame: Blame, sentence: str) -> None:
        if not fail_port(self.context, key, attempt, blame, sentence):
            remove_work(self.context, key)

    @DBOS.step(name="stop")
    def stop(self, key: str, attempt: int, reason: str) -> None:
        with self.context.database.session() as session:
            port = session.get_one(Port, key)
            if port.attempt != attempt:
                return
            if port.state not in STOPPED:
                update_port(session, key, state=PortState.CANCELLED, step=None, reason=reason)
        remove_work(self.context, key)

    def job(self, key: str) -> Job:
        return load_job(self.context.database, key)

    def _begin(self, key: str, attempt: int, step: str, reason: str) -> Job:
        with self.context.database.session() as session:
            port = session.get_one(Port, key)
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
