"""What every step works with, and one port's particulars."""

import hashlib
import json
import re
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from bot.hub import Hub, HubRepo, Publisher
from bot.making.inputs import Inputs, Wanted
from bot.settings import Settings
from judging.policy import VerdictPolicy
from porting.plan import Policy
from registry.database import Database
from registry.models import Port, Release, Subscription
from registry.scene import paused

PORT_TITLE = re.compile(r"Port to \S+@[0-9a-f]{7} \((port-[0-9a-f]{16})\)")
Delivery = Literal["commit", "branch", "request"]
NAME = "{name}"  # in the target of a subscription to a tree: that of the fine-tune
# Everything whose version may change a byte of a port: PEFT and torch compute some kinds.
ENGINE = f"portllm {version('portllm')}, torch {version('torch')}, peft {version('peft')}"


@dataclass(frozen=True)
class Context:
    hub: Hub
    publisher: Publisher
    database: Database
    settings: Settings

    @property
    def is_paused(self) -> bool:
        """Whether everything is: then nothing is begun, and nothing is written to the Hub."""
        with self.database.session() as session:
            return paused(session) is not None


@dataclass(frozen=True)
class Job:
    """One port: patch x (old base -> new base) x recipe. Only shas, no refs.

    Kept with the port from its first moment, so that nothing that changes later changes it.
    """

    key: str
    patch_repo: str
    patch_sha: str
    old_repo: str
    old_sha: str
    new_repo: str
    new_sha: str
    form: Wanted
    to_repo: str
    policy: Policy | None = None  # neither in the jobs that an earlier version wrote
    verdict_policy: dict[str, Any] | None = None
    again: int = 0  # how often the base had been at the new commit before
    delivery: Delivery = "commit"

    @property
    def title(self) -> str:
        """Of the commit or pull request that brings the port; `PORT_TITLE` matches it."""
        return f"Port to {self.new_repo}@{self.new_sha[:7]} ({self.key})"

    @property
    def trailer(self) -> str:
        """The line of the commit's message by which a later attempt knows it."""
        return f"PortLLM-Port: {self.key}"

    @property
    def judged_by(self) -> VerdictPolicy:
        return VerdictPolicy.model_validate(self.verdict_policy or {})

    @property
    def tag(self) -> str:
        """What the port is found by in its repo; a branch, if it is delivered by one."""
        return f"base-{self.new_sha[:7]}"

    def patch(self, hub: Hub) -> HubRepo:
        return HubRepo(hub, self.patch_repo, self.patch_sha)

    def old_base(self, hub: Hub) -> HubRepo:
        return HubRepo(hub, self.old_repo, self.old_sha)

    def new_base(self, hub: Hub) -> HubRepo:
        return HubRepo(hub, self.new_repo, self.new_sha)

    def inputs(self, hub: Hub) -> Inputs:
        new, patch, old = self.new_base(hub), self.patch(hub), self.old_base(hub)
        return Inputs(new, patch, old, self.form, self.policy)


def job_of(subscription: Subscription, release: Release, again: int = 0) -> Job:
    """The job of this port, of a base that was at this commit `again` times before."""
    # Only what is not as it always was: the keys of the others stay what they were.
    unusual: dict[str, Any] = {"again": again} if again else {}
    if subscription.delivery != "commit":
        unusual["delivery"] = subscription.delivery
    return made_job(
        "bot",
        **unusual,
        patch_repo=subscription.patch.repo,
        patch_sha=subscription.patch.sha,
        old_repo=subscription.patch.base_repo,
        old_sha=subscription.patch.base_sha,
        new_repo=release.repo,
        new_sha=release.sha,
        form=subscription.form,
        to_repo=subscription.to_repo.replace(NAME, release.repo.partition("/")[2]),
        policy=subscription.policy,
        verdict_policy=subscription.verdict_policy,
    )


def made_job(maker: str, **inputs: Any) -> Job:
    """The job of these inputs. The same ones and engine give the same key, and the same bytes.

    `maker` keeps what the bot judges apart from what a person publishes unjudged.
    """
    made_of = json.dumps([maker, inputs, ENGINE], sort_keys=True)
    digest = hashlib.sha256(made_of.encode()).hexdigest()
    return Job(key=f"port-{digest[:16]}", **inputs)


def load_job(database: Database, key: str) -> Job:
    with database.session() as session:
        return Job(**session.get_one(Port, key).job)
