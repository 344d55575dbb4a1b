"""The bot as Jobs on the Hub: a scheduled Job is its clock, a webhook runs it when a base moves.

A Job keeps nothing, so the registry is a Postgres database elsewhere. What the Hub must not show
goes into `secrets` only, which it keeps encrypted.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bot.hub.client import Hub
from bot.hub.errors import translated

COMMAND = ["portllm", "bot", "run", "--once"]
LABEL = "portllm"


@dataclass(frozen=True)
class Deployment:
    """What is asked of the Hub, but for the secrets."""

    namespace: str
    image: str
    schedule: str
    flavor: str
    timeout: str
    watched: Sequence[str]

    @property
    def labels(self) -> dict[str, str]:
        """By which a later deployment knows what it replaces."""
        return {LABEL: re.sub(r"[^A-Za-z0-9_-]", "-", self.namespace)}

    def scheduled_job(self, secrets: Mapping[str, str]) -> dict[str, Any]:
        """The arguments of `create_scheduled_job`."""
        return {
            "namespace": self.namespace,
            "image": self.image,
            "command": COMMAND,
            "schedule": self.schedule,
            "concurrency": False,
            "flavor": self.flavor,
            "timeout": self.timeout,
            "name": LABEL,
            "labels": self.labels,
            "secrets": dict(secrets),
        }

    def webhook(self, job_id: str, secrets: Mapping[str, str]) -> dict[str, Any]:
        """The arguments of `create_webhook`. A Job's secrets are not copied to its webhook."""
        return {
            "job_id": job_id,
            "watched": [{"type": "model", "name": repo} for repo in self.watched],
            "domains": ["repo"],
            "secrets": dict(secrets),
        }


@dataclass(frozen=True)
class Deployed:
    """Ids on the Hub; `webhook` is None where nothing is watched."""

    scheduled_job: str
    first_job: str
    webhook: str | None
    replaced: list[str]


def deploy(hub: Hub, wanted: Deployment, secrets: Mapping[str, str]) -> Deployed:
    """Create the scheduled Job, its first run and the webhook, then delete those they replace.

    Done again after a failure, it leaves one of each.
    """
    api, namespace = hub.api, wanted.namespace
    with translated(f"the Jobs of {namespace}"):
        old_jobs = [
            job.id for job in api.list_scheduled_jobs(labels=wanted.labels, namespace=namespace)
        ]
        old_hooks = [
            hook.id
            for hook in api.list_webhooks()
            if hook.job and wanted.labels.items() <= (hook.job.labels or {}).items()
        ]
        scheduled = api.create_scheduled_job(**wanted.scheduled_job(secrets))
        # A webhook repeats a Job that was run, and that the bot runs is seen at once.
        first = api.trigger_scheduled_job(scheduled_job_id=scheduled.id, namespace=namespace)
        hook = api.create_webhook(**wanted.webhook(first.id, secrets)) if wanted.watched else None
        for job_id in old_jobs:
            api.delete_scheduled_job(scheduled_job_id=job_id, namespace=namespace)
        for hook_id in old_hooks:
            api.delete_webhook(hook_id)
    return Deployed(scheduled.id, first.id, hook.id if hook else None, old_jobs + old_hooks)
