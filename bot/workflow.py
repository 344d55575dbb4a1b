"""The durable workflows: a release is classified, and each of its ports made, judged, published.

DBOS checkpoints every step in a database, so a bot that is killed goes on where it was. A step may
run twice (when it dies after its work and before its checkpoint), so each step is idempotent. The
id of a port's workflow is the port's key: however often a release is seen, it is ported once.
"""

import logging
import shutil
import time
from typing import Any

from dbos import DBOS, DBOSConfig, DBOSConfiguredInstance, SetWorkflowID
from dbos import error as dbos_error

from bot.classify import classify_release
from bot.context import Context, Job, job_of, load_job
from bot.judge import Evidence, Verdict, judge, unjudged
from bot.plan import plan_port
from bot.port import make
from bot.publish import publish
from bot.validate import measure
from porting.errors import HubError, Refused
from registry.models import PortState, Release
from registry.records import (
    active_subscriptions,
    create_port,
    unclassified_releases,
    update_port,
)

log = logging.getLogger("portllm")

EVERY = 2.0  # seconds between two lines of progress
RETRIES: dict[str, Any] = {  # only for what may pass: the Hub or the network. About two minutes.
    "retries_allowed": True,
    "interval_seconds": 1.0,
    "max_attempts": 8,
    "backoff_rate": 2.0,
    "should_retry": lambda error: isinstance(error, HubError),
}
END_STATES = {"publish": PortState.PUBLISHED, "ask": PortState.ASKED, "reject": PortState.REJECTED}

QUEUE = "ports"


def configure(context: Context) -> None:
    """Prepare DBOS on the context's database. Call once per process, before `Bot` and `launch`."""
    DBOS(
        config=DBOSConfig(
            name="portllm",
            system_database_url=context.settings.memory_url,
            # Unfinished work is taken up by any later version: steps are named, not numbered.
            application_version="1",
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

    def dispatch(self) -> None:
        """Start the workflow of every release that has none. Safe to call at any time."""
        with self.context.database.session() as session:
            waiting = [release.id for release in unclassified_releases(session)]
        for release_id in waiting:
            with SetWorkflowID(f"release-{release_id}"):
                DBOS.start_workflow(self.release, release_id)

    @DBOS.workflow(name="release")
    def release(self, release_id: int) -> None:
        try:
            if not self.classify(release_id):
                return
        except (Refused, HubError, dbos_error.DBOSMaxStepRetriesExceeded) as error:
            self.give_up(release_id, _sentence(error))
            return
        for key in self.create_ports(release_id):
            with SetWorkflowID(key):
                DBOS.enqueue_workflow(QUEUE, self.port, key)

    @DBOS.step(name="classify", **RETRIES)
    def classify(self, release_id: int) -> bool:
        moves = classify_release(self.context, release_id)
        with self.context.database.session() as session:
            release = session.get_one(Release, release_id)
            log.info("%s@%s: %s", release.base.repo, release.sha[:7], release.reason)
        return moves

    @DBOS.step(name="give up")
    def give_up(self, release_id: int, reason: str) -> None:
        log.error("%s", reason)
        with self.context.database.session() as session:
            release = session.get_one(Release, release_id)
            release.change, release.reason = "unreadable", reason

    @DBOS.step(name="create ports")
    def create_ports(self, release_id: int) -> list[str]:
        with self.context.database.session() as session:
            release = session.get_one(Release, release_id)
            keys = []
            for subscription in active_subscriptions(session, release.base_id):
                key = job_of(subscription, release).key
                create_port(session, key, subscription.id, release_id)
                keys.append(key)
        return keys

    @DBOS.workflow(name="port")
    def port(self, key: str) -> None:
        try:
            self.plan(key)
            digests = self.make(key)
            evidence = self.validate(key)
            verdict = self.judge(key, evidence)
            if verdict["action"] != "reject":
                self.publish(key, digests, evidence, verdict)
            self.tidy(key)
        except Refused as error:
            self.end(key, PortState.REFUSED, str(error))
        except Exception as error:
            # Whatever it was, the subscription says so; then it is DBOS's to record.
            self.end(key, PortState.FAILED, _sentence(error))
            if not isinstance(error, HubError | dbos_error.DBOSMaxStepRetriesExceeded):
                raise

    @DBOS.step(name="plan", **RETRIES)
    def plan(self, key: str) -> None:
        job = self._begin(key, "plan", "Checking that the patch fits.")
        log.info("%s: %s", key, plan_port(self.context, job))

    @DBOS.step(name="make", **RETRIES)
    def make(self, key: str) -> dict[str, str]:
        job = self._begin(key, "make", f"Adding the patch to {_new(self.job(key))}.")
        return make(self.context, job, _reporter(key))

    @DBOS.step(name="validate", **RETRIES)
    def validate(self, key: str) -> dict[str, Any] | None:
        job = self._begin(key, "validate", "Judging it on the patch's own items.")
        evidence = measure(self.context, job, _reporter(key))
        return evidence.model_dump() if evidence else None

    @DBOS.step(name="judge")
    def judge(self, key: str, evidence: dict[str, Any] | None) -> dict[str, Any]:
        verdict = judge(Evidence.model_validate(evidence)) if evidence else unjudged()
        log.info("%s: %s: %s", key, verdict.action, verdict.reason)
        changes: dict[str, Any] = {"evidence": evidence, "reason": verdict.reason}
        if verdict.action == "reject":
            changes["state"] = PortState.REJECTED
        self._update(key, **changes)
        return verdict.model_dump()

    @DBOS.step(name="publish", **RETRIES)
    def publish(
        self,
        key: str,
        digests: dict[str, str],
        evidence: dict[str, Any] | None,
        verdict: dict[str, Any],
    ) -> None:
        self._update(key, step="publish")
        judged = Evidence.model_validate(evidence) if evidence else None
        published = publish(
            self.context, self.job(key), digests, judged, Verdict.model_validate(verdict)
        )
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
        log.info("%s: %s", key, reason)
        self._update(key, state=PortState.RUNNING, step=step, reason=reason)
        return job

    def _update(self, key: str, **changes: Any) -> None:
        with self.context.database.session() as session:
            update_port(session, key, **changes)


def remove_work(context: Context, key: str) -> None:
    shutil.rmtree(context.settings.work(key), ignore_errors=True)


def _new(job: Job) -> str:
    return f"{job.new_repo}@{job.new_sha[:7]}"


def _sentence(error: Exception) -> str:
    if isinstance(error, dbos_error.DBOSMaxStepRetriesExceeded):
        return f"Gave up after {error.max_retries} attempts: {error.errors[-1]}"
    return str(error)


def _reporter(key: str) -> Any:
    """Progress as log lines: the first and the last of every stage, and one in two seconds."""
    stage, last = "", 0.0

    def report(what: str, done: int, total: int) -> None:
        nonlocal stage, last
        if what == stage and done < total and time.monotonic() - last < EVERY:
            return
        stage, last = what, time.monotonic()
        log.info("%s: %s: %d of %d", key, what, done, total)

    return report
