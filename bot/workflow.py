"""The durable workflows: a release is classified, and each of its ports made, judged, published.

DBOS checkpoints every step in a database, so a bot that is killed goes on where it was. A step may
run twice (when it dies after its work and before its checkpoint), so each step is idempotent. The
id of a port's workflow is the port's key: however often a release is seen, it is ported once.
"""

import logging
import shutil
import time
from dataclasses import asdict
from typing import Any

from dbos import DBOS, DBOSConfig, DBOSConfiguredInstance, SetWorkflowID
from dbos import error as dbos_error

from bot.classify import classify_release, subscriptions_to_port
from bot.context import Context, Job, job_of, load_job
from bot.plan import plan_port
from bot.port import make
from bot.publish import publish
from bot.sandbox import Report
from bot.scale import Choice, choose
from bot.validate import measure
from judging.evidence import Evidence
from judging.verdict import Verdict, judge
from porting.errors import HubError, Refused
from registry.models import Port, PortState, Release, Subscription
from registry.records import create_port, open_ports, unclassified_releases, update_port
from registry.status import UNREADABLE

log = logging.getLogger("portllm")

EVERY = 2.0  # seconds between two lines of progress
RETRIES: dict[str, Any] = {  # only for what may pass: the Hub or the network. About half an hour.
    "retries_allowed": True,
    "interval_seconds": 1.0,
    "max_attempts": 12,
    "backoff_rate": 2.0,
    "should_retry": lambda error: isinstance(error, HubError),
}
EXPECTED = (Refused, HubError, dbos_error.DBOSMaxStepRetriesExceeded)
END_STATES = {"publish": PortState.PUBLISHED, "ask": PortState.ASKED}

QUEUE = "ports"


def configure(context: Context) -> None:
    """Prepare DBOS on the context's database. Call once per process, before `Bot` and `launch`."""
    DBOS(
        config=DBOSConfig(
            name="portllm",
            system_database_url=context.settings.memory_url,
            # Unfinished work is taken up by a later version too. DBOS numbers the steps of a
            # workflow: raise this when their order changes.
            application_version="2",
            log_level="ERROR",
        )
    )


@DBOS.dbos_class()
class Bot(DBOSConfiguredInstance):
    """The workflows, bound to a Hub and a registry."""

    def __init__(self, context: Context) -> None:
        super().__init__("bot")
        self.context = context

    def launch(self) -> None:
        """Start DBOS, which takes up again whatever an earlier process left unfinished."""
        DBOS.launch()
        DBOS.register_queue(QUEUE, worker_concurrency=1)  # each port may fill the memory
        with self.context.database.session() as session:
            for port in open_ports(session):
                if _is_over(port.key):
                    port.state, port.reason = PortState.FAILED, "It ended without saying why."
            for release in unclassified_releases(session):
                if _is_over(_release_id(release.id)):
                    release.change, release.reason = UNREADABLE, "It could not be looked at."

    def is_busy(self) -> bool:
        """Whether any workflow is waiting, running or about to be started."""
        with self.context.database.session() as session:
            if unclassified_releases(session):
                return True
        return bool(DBOS.list_workflows(status=["PENDING", "ENQUEUED"], limit=1))

    def dispatch(self) -> None:
        """Start the workflow of every release that has none. Safe to call at any time."""
        with self.context.database.session() as session:
            waiting = [release.id for release in unclassified_releases(session)]
        for release_id in waiting:
            with SetWorkflowID(_release_id(release_id)):
                DBOS.start_workflow(self.release, release_id)

    @DBOS.workflow(name="release")
    def release(self, release_id: int) -> None:
        try:
            self.classify(release_id)
            keys = self.create_ports(release_id)
        except Exception as error:
            # Whatever it was, the subscriptions say so; a bug is DBOS's to record as well.
            self.give_up(release_id, _sentence(error))
            if not isinstance(error, EXPECTED):
                raise
            return
        for key in keys:
            with SetWorkflowID(key):
                DBOS.enqueue_workflow(QUEUE, self.port, key)

    @DBOS.step(name="classify", **RETRIES)
    def classify(self, release_id: int) -> None:
        classify_release(self.context, release_id)
        with self.context.database.session() as session:
            release = session.get_one(Release, release_id)
            log.info("%s@%s: %s", release.base.repo, release.sha[:7], release.reason)

    @DBOS.step(name="give up")
    def give_up(self, release_id: int, reason: str) -> None:
        log.error("%s", reason)
        with self.context.database.session() as session:
            release = session.get_one(Release, release_id)
            release.change, release.reason = UNREADABLE, reason

    @DBOS.step(name="create ports", **RETRIES)
    def create_ports(self, release_id: int) -> list[str]:
        wanted = subscriptions_to_port(self.context, release_id)
        with self.context.database.session() as session:
            release = session.get_one(Release, release_id)
            jobs = {id: job_of(session.get_one(Subscription, id), release) for id in wanted}
            for subscription_id, job in jobs.items():
                create_port(session, job.key, subscription_id, release_id, asdict(job))
        return [job.key for job in jobs.values()]

    @DBOS.workflow(name="port")
    def port(self, key: str) -> None:
        try:
            self.plan(key)
            choice = self.choose(key)
            digests = self.make(key, choice["scale"])
            evidence = self.validate(key, choice)
            verdict = self.judge(key, evidence)
            if verdict["action"] != "reject":
                self.publish(key, digests, evidence, verdict)
            self.tidy(key)
        except Refused as error:
            self.end(key, PortState.REFUSED, str(error))
        except Exception as error:
            # Whatever it was, the subscription says so; then it is DBOS's to record.
            self.end(key, PortState.FAILED, _sentence(error))
            if not isinstance(error, EXPECTED):
                raise

    @DBOS.step(name="plan", **RETRIES)
    def plan(self, key: str) -> None:
        job = self._begin(key, "plan", "Checking that the patch fits.")
        log.info("%s: %s", key, plan_port(self.context, job))

    @DBOS.step(name="choose scale", **RETRIES)
    def choose(self, key: str) -> dict[str, Any]:
        job = self._begin(key, "choose scale", "Looking at how much of the patch to add.")
        return asdict(choose(self.context, job, _reporter(key)))

    @DBOS.step(name="make", **RETRIES)
    def make(self, key: str, scale: float) -> dict[str, str]:
        job = self._begin(key, "make", f"Adding the patch to {_new(self.job(key))}.")
        return make(self.context, job, scale, _reporter(key))

    @DBOS.step(name="validate", **RETRIES)
    def validate(self, key: str, choice: dict[str, Any]) -> dict[str, Any]:
        job = self._begin(key, "validate", "Judging it on the patch's own items and the guard's.")
        return measure(self.context, job, Choice(**choice), _reporter(key)).model_dump()

    @DBOS.step(name="judge")
    def judge(self, key: str, evidence: dict[str, Any]) -> dict[str, Any]:
        verdict = judge(Evidence.model_validate(evidence), self.job(key).judged_by)
        log.info("%s: %s: %s", key, verdict.action, verdict.reason)
        self._update(key, evidence=evidence, reason=verdict.reason)
        if verdict.action == "reject":
            self._update(key, state=PortState.REJECTED, step=None)
        return verdict.model_dump()

    @DBOS.step(name="publish", **RETRIES)
    def publish(
        self,
        key: str,
        digests: dict[str, str],
        evidence: dict[str, Any],
        verdict: dict[str, Any],
    ) -> None:
        job = self._begin(key, "publish", verdict["reason"])
        judged, decided = Evidence.model_validate(evidence), Verdict.model_validate(verdict)
        published = publish(self.context, job, digests, judged, decided)
        log.info("%s: published at %s", key, published.url)
        self._update(
            key,
            state=END_STATES[verdict["action"]],
            step=None,
            url=published.url,
            published_sha=published.sha or None,
        )

    @DBOS.step(name="tidy")
    def tidy(self, key: str) -> None:
        remove_work(self.context, key)

    @DBOS.step(name="end")
    def end(self, key: str, state: str, reason: str) -> None:
        log.warning("%s: %s: %s", key, state, reason)
        self._update(key, state=PortState(state), step=None, reason=reason)
        remove_work(self.context, key)

    def job(self, key: str) -> Job:
        return load_job(self.context.database, key)

    def _begin(self, key: str, step: str, reason: str) -> Job:
        job = self.job(key)
        with self.context.database.session() as session:
            if session.get_one(Port, key).subscription.ended_at is not None:
                raise Refused("The subscription was ended before the port was done.")
        log.info("%s: %s", key, reason)
        self._update(key, state=PortState.RUNNING, step=step, reason=reason)
        return job

    def _update(self, key: str, **changes: Any) -> None:
        with self.context.database.session() as session:
            update_port(session, key, **changes)


def _release_id(release_id: int) -> str:
    return f"release-{release_id}"


def _is_over(workflow_id: str) -> bool:
    status = DBOS.get_workflow_status(workflow_id)
    return status is not None and status.status not in ("PENDING", "ENQUEUED", "DELAYED")


def remove_work(context: Context, key: str) -> None:
    shutil.rmtree(context.settings.work(key), ignore_errors=True)


def _new(job: Job) -> str:
    return f"{job.new_repo}@{job.new_sha[:7]}"


def _sentence(error: Exception) -> str:
    if isinstance(error, dbos_error.DBOSMaxStepRetriesExceeded):
        return f"Gave up after {error.max_retries} attempts: {error.errors[-1]}"
    return str(error)


def _reporter(key: str) -> Report:
    """Progress as log lines: the first and the last of every stage, and one in two seconds."""
    stage, last = "", 0.0

    def report(what: str, done: int, total: int, file: str = "") -> None:
        nonlocal stage, last
        if what == stage and done < total and time.monotonic() - last < EVERY:
            return
        stage, last = what, time.monotonic()
        log.info("%s: %s: %s of %s", key, what, f"{done:,}", f"{total:,}")

    return report
