"""What became of a patch on the successive releases of its base: for charts and tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import sqrt
from statistics import NormalDist, fmean, stdev
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.models import Port, Release

ALPHA = 0.05  # of a verdict's policy that names none
ACCURACY = "accuracy"


class Figure(NamedTuple):
    """A mean over items, and the interval around it."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Moment:
    """One release and the port to it in `to`.

    `action` is the verdict, None without one; `arms` maps those of `judging.arms` to what they
    reached on the patch's own task, empty where nothing was measured. `published_sha` is the commit
    that holds the port. The patch was trained on `old_repo` at `old_sha`.
    """

    key: str
    to: str
    repo: str
    sha: str
    seen_at: datetime
    state: str
    action: str | None
    url: str | None
    published_sha: str | None = None
    old_repo: str | None = None
    old_sha: str | None = None
    task: str | None = None
    metric: str | None = None
    arms: dict[str, Figure] = field(default_factory=dict)


def history(session: Session, subscription_id: int, most: int = 20) -> list[Moment]:
    """The ports to the newest `most` releases, the oldest first. One query, and no long column."""
    rows = session.execute(
        select(
            Port.key,
            Port.job,
            Port.state,
            Port.url,
            Port.published_sha,
            Port.action,
            Port.evidence["looks"],
            Port.evidence["own"],
            Release.repo,
            Release.sha,
            Release.seen_at,
        )
        .join(Release, Release.id == Port.release_id)
        .where(Port.subscription_id == subscription_id)
        .order_by(Port.release_id.desc())
        .limit(most)
    )
    found = []
    for key, job, state, url, published_sha, action, looks, own, repo, sha, seen_at in rows:
        alpha = (job.get("verdict_policy") or {}).get("alpha", ALPHA) / (looks or 1)
        measured = own or {}
        found.append(
            Moment(
                key=key,
                to=job["to_repo"],
                repo=repo,
                sha=sha,
                seen_at=seen_at,
                state=state,
                action=action,
                url=url,
                published_sha=published_sha,
                old_repo=job.get("old_repo"),
                old_sha=job.get("old_sha"),
                task=measured.get("task"),
                metric=measured.get("metric"),
                arms=_figures(measured, alpha) if own else {},
            )
        )
    return found[::-1]


def _figures(own: dict[str, Any], alpha: float) -> dict[str, Figure]:
    """Of every arm; `own` is a `judging.evidence.Measured` as plain data."""
    count = len(own["items"].split())
    results = {
        arm: [float(each) for each in values.split()[:count]]
        for arm, values in own["results"].items()
    }
    return {arm: figure(own["metric"], values, alpha) for arm, values in results.items()}


def figure(metric: str, values: Sequence[float], alpha: float) -> Figure:
    """As the evidence has it, in a moment and without SciPy: Wilson's interval of a share.

    Of other means it is the normal one, where the evidence has a bootstrap's: as good as the same.
    """
    z, count, mean = NormalDist().inv_cdf(1 - alpha / 2), len(values), fmean(values)
    if metric != ACCURACY:
        half = z * stdev(values) / sqrt(count) if count > 1 else 0.0
        return Figure(mean, mean - half, mean + half)
    whole = 1 + z * z / count
    centre = (mean + z * z / (2 * count)) / whole
    half = z * sqrt(mean * (1 - mean) / count + z * z / (4 * count * count)) / whole
    return Figure(mean, max(centre - half, 0.0), min(centre + half, 1.0))
