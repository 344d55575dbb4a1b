"""The registry as Parquet, a file per table: equal records give equal bytes.

Written in row groups, so that ten million ports need not be in memory.
"""

from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Select, exists, select
from sqlalchemy.orm import Session

from registry.history import ALPHA, figure
from registry.models import Base, Patch, Port, Release, Subscription

ROWS = 10_000  # of a row group, and in memory at once
ARMS = ("old", "new", "port")
FIGURES = [f"{arm}{end}" for arm in ARMS for end in ("", "_low", "_high")]
Row = dict[str, Any]


def _select(*columns: Any) -> Select[Any]:
    return select(*columns)


_followed = (
    exists()
    .where(Subscription.base_id == Base.id, Subscription.patch_id == Patch.id)
    .where(Patch.private.is_(False), Base.private.is_(False))
    .correlate(Base)
)
# What is selected under a name that begins with _ is only looked at. In the order of time, so that
# what is new comes at the end, and the Hub's storage has most of the file already.
QUERIES: dict[str, Select[Any]] = {
    "patches": _select(
        *(Patch.id, Patch.repo, Patch.sha, Patch.owner, Patch.kind),
        Patch.portability.label("class"),
        *(Patch.base_repo, Patch.base_sha, Patch.license, Patch.pipeline_tag, Patch.task),
        Patch.added_at,
    )
    .where(Patch.private.is_(False))
    .order_by(Patch.id),
    "bases": _select(
        *(Base.id, Base.rule, Base.repo, Base.ref, Base.head_repo, Base.head_ref, Base.head_sha),
        Base.changed_at,
    )
    .where(_followed)
    .order_by(Base.id),
    "releases": _select(
        *(Release.id, Release.base_id, Release.repo, Release.ref, Release.sha),
        *(Release.from_repo, Release.from_sha, Release.change, Release.seen_at),
        *(Base.repo.label("_base"), Base.head_repo.label("_head")),
    )
    .join(Base, Base.id == Release.base_id)
    .where(_followed)
    .order_by(Release.id),
    "subscriptions": _select(
        *(Subscription.id, Subscription.patch_id, Subscription.base_id),
        *(Patch.repo.label("patch"), Base.repo.label("base"), Base.ref.label("ref")),
        *(Subscription.to_repo, Subscription.form, Subscription.delivery, Subscription.policy),
        *(Subscription.managed, Subscription.created_at, Subscription.ended_at),
        *(Patch.base_repo.label("_trained"), Base.head_repo.label("_head")),
    )
    .join(Patch, Patch.id == Subscription.patch_id)
    .join(Base, Base.id == Subscription.base_id)
    .where(Patch.private.is_(False))
    .order_by(Subscription.id),
    "ports": _select(
        *(Port.key, Port.subscription_id, Port.release_id),
        Patch.repo.label("patch"),
        Port.job["patch_sha"].as_string().label("patch_sha"),
        *(Release.repo.label("base"), Release.sha.label("base_sha")),
        Port.job["to_repo"].as_string().label("to_repo"),
        Port.state,
        Port.action.label("verdict"),
        Port.verdict["reason"].as_string().label("reason"),
        Port.evidence[("forecast", "total", "ratio")].as_float().label("moved"),
        *(Port.url, Port.published_sha, Port.created_at, Port.published_at),
        *(Port.evidence["own"].label("_own"), Port.evidence["looks"].label("_looks")),
        Port.job["verdict_policy"].label("_policy"),
        *(Patch.base_repo.label("_trained"), Base.repo.label("_base")),
        *(Base.head_repo.label("_head"), Subscription.to_repo.label("_to")),
    )
    .join(Subscription, Subscription.id == Port.subscription_id)
    .join(Patch, Patch.id == Subscription.patch_id)
    .join(Release, Release.id == Port.release_id)
    .join(Base, Base.id == Release.base_id)
    .where(Patch.private.is_(False))
    .order_by(Port.release_id, Port.subscription_id),
}


def write(session: Session, folder: Path, hidden: Set[str]) -> dict[str, int]:
    """Write all tables into `folder`. Returns the number of rows of each.

    Args:
        hidden: the repos that not everybody may see; a row that names one is left out.
    """
    counts = {}
    for name, query in QUERIES.items():
        schema = _schema(name, query)
        with pq.ParquetWriter(folder / f"{name}.parquet", schema, compression="zstd") as file:
            counts[name] = 0
            for rows in _shown(session, query, hidden):
                file.write_table(pa.Table.from_pylist(rows, schema=schema))
                counts[name] += len(rows)
    return counts


def _shown(session: Session, query: Select[Any], hidden: Set[str]) -> Iterator[list[Row]]:
    found = session.execute(query.execution_options(yield_per=ROWS))
    for part in found.mappings().partitions(ROWS):
        rows = [
            dict(row) | _figures(row.get("_own"), row.get("_looks"), row.get("_policy"))
            for row in part
            if not any(isinstance(value, str) and value in hidden for value in row.values())
        ]
        if rows:
            yield rows


def _figures(own: Row | None, looks: int | None, policy: Row | None) -> Row:
    """What each arm reached on the patch's own task, as on the card."""
    if own is None:
        return {}
    alpha = (policy or {}).get("alpha", ALPHA) / (looks or 1)
    items = len(own["items"].split())
    found: Row = {"task": own["task"], "metric": own["metric"], "items": items}
    for arm in ARMS:
        results = [float(each) for each in own["results"][arm].split()[:items]]
        mean, low, high = figure(own["metric"], results, alpha)
        found |= {arm: mean, f"{arm}_low": low, f"{arm}_high": high}
    return found


def _schema(name: str, query: Select[Any]) -> pa.Schema:
    """Of what is selected: a column's name tells its type."""
    names = [column.name for column in query.selected_columns if not column.name.startswith("_")]
    if name == "ports":
        names += ["task", "metric", "items", *FIGURES]
    return pa.schema([(name, _type(name)) for name in names])


def _type(name: str) -> pa.DataType:
    if name.endswith("_at"):
        return pa.timestamp("us", tz="UTC")
    if name in ("id", "items") or name.endswith("_id"):
        return pa.int64()
    if name in FIGURES or name == "moved":
        return pa.float64()
    return pa.bool_() if name == "managed" else pa.string()
