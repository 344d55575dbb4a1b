"""The chart of a patch over the releases of its base, and the history that it is drawn from."""

import math
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from judging.evidence import Evidence, Measured
from judging.policy import VerdictPolicy
from judging.verdict import weigh
from patch_cards.chart import HEIGHT, TOP, draw
from registry.history import Figure, Moment, history
from registry.models import PortState
from tests.records import Records

SVG = "{http://www.w3.org/2000/svg}"
DAY = datetime(2026, 1, 1, tzinfo=UTC)


def figures(values: st.SearchStrategy[float]) -> st.SearchStrategy[Figure]:
    return (
        st.lists(values, min_size=3, max_size=3).map(sorted).map(lambda v: Figure(v[1], v[0], v[2]))
    )


def measured(metric: str) -> st.SearchStrategy[dict[str, Figure]]:
    """The arms of a port on a new base; those on the old one and the refit may be unknown."""
    share = st.floats(0, 1)
    figure = figures(share if metric == "accuracy" else st.floats(1e-6, 1e6))
    needed = {"new": figure, "port": figure}
    return st.fixed_dictionaries(needed, optional=dict.fromkeys(("before", "old", "refit"), figure))


@st.composite
def moments(draw: st.DrawFn) -> list[Moment]:
    metric = draw(st.sampled_from(["accuracy", "bits per byte"]))
    task = draw(st.text(min_size=1, max_size=40))
    repos = st.from_regex(r"[A-Za-z0-9]{1,20}/[A-Za-z0-9._-]{1,40}", fullmatch=True)
    shas = st.text("0123456789abcdef", min_size=40, max_size=40)
    return [
        Moment(
            key="port", to="owner/ported", repo=draw(repos), sha=draw(shas),
            seen_at=DAY + number * timedelta(days=9), state="published", url=None,
            action=draw(st.sampled_from(["publish", "ask", "reject", None])),
            old_repo=draw(repos), old_sha=draw(shas), task=task, metric=metric,
            arms=draw(measured(metric)),
        )
        for number in range(draw(st.integers(1, 8)))
    ]  # fmt: skip


@given(moments())
@settings(deadline=None, max_examples=60)
def test_whatever_was_measured_the_chart_is_whole(found: list[Moment]) -> None:
    drawn = draw(found)
    assert drawn is not None and drawn == draw(found)
    root = ElementTree.fromstring(drawn)
    width, height = (float(root.attrib[name]) for name in ("width", "height"))
    told = [text for element in root.iter(f"{SVG}text") if (text := element.text)]
    for each in found:
        assert each.sha[:7] in told and f"{each.seen_at:%Y-%m-%d}" in told
        assert (each.action or each.state) in told
    arms = [arm for each in found for arm in each.arms if arm in ("new", "port", "refit")]
    trained = {"before", "old"} <= found[-1].arms.keys()
    assert ("trained on" in told) == trained
    marks = [each for each in root.iter() if each.get("class") == "mark"]
    in_legend = 2 + ("refit" in arms)
    assert len(marks) == len(arms) + 2 * trained + in_legend
    for element in root.iter():
        assert not re.search("nan|inf", element.get("d", ""))
        for name, value in element.attrib.items():
            if name in ("x", "x1", "x2", "cx"):
                assert math.isfinite(float(value)) and -6 <= float(value) <= width
            if name in ("y1", "y2", "cy"):
                assert TOP - 0.2 <= float(value) <= TOP + HEIGHT + 0.2 or element.get("cy") == "0"
    assert height > TOP + HEIGHT


def moment(key: str, **changes: Any) -> Moment:
    arms = {arm: Figure(0.5, 0.4, 0.6) for arm in ("before", "old", "new", "port")}
    known: dict[str, Any] = {
        "key": key, "to": "owner/ported", "repo": "vendor/base", "sha": key * 40, "seen_at": DAY,
        "state": "published", "action": "publish", "url": None, "old_repo": "vendor/base",
        "old_sha": "0" * 40, "task": "sides", "metric": "accuracy", "arms": arms,
    }  # fmt: skip
    return Moment(**known | changes)


def test_only_what_is_comparable_is_shown() -> None:
    drawn = draw([moment("a", task="other"), moment("b", arms={}), moment("c"), moment("d")])
    assert drawn is not None
    assert [key for key in "abcd" if key * 7 in drawn] == ["c", "d"]
    assert draw([]) is None and draw([moment("a", arms={})]) is None


RIGHT = {"before": [0] * 50, "old": [1] * 48 + [0] * 2, "new": [0, 1] * 25, "port": [1] * 50}
BITS = {arm: [1 + 0.01 * (n % 7) for n in range(300)] for arm in RIGHT}


@pytest.mark.parametrize(
    ("metric", "results", "exact"), [("accuracy", RIGHT, True), ("bits per byte", BITS, False)]
)
def test_the_history_has_the_figures_of_the_evidence(
    tmp_path: Path, metric: Any, results: dict[str, Any], exact: bool
) -> None:
    world = Records(tmp_path)
    subscription = world.subscribe()
    count = len(results["new"])
    own = Measured(
        task="sides", digest="", total=count, metric=metric, items=list(range(1, count + 1)),
        results=results,
    )  # fmt: skip
    evidence = Evidence(own=own, looks=2).model_dump()
    verdict = {"action": "publish", "reason": ""}
    world.port(subscription, PortState.PUBLISHED, "port-1", evidence=evidence, verdict=verdict)
    world.port(subscription, PortState.REFUSED, "port-2")
    first, second = world.do(history, subscription)
    assert (first.key, first.action, first.task, first.state) == (
        "port-1", "publish", "sides", "published"
    )  # fmt: skip
    assert (second.key, second.action, second.arms) == ("port-2", None, {})
    weighed = weigh(own, VerdictPolicy().alpha / 2)
    for arm, estimate in weighed.arms.items():
        expected = (estimate.mean, estimate.low, estimate.high)
        assert first.arms[arm] == pytest.approx(expected, abs=1e-9 if exact else 1e-3)
    assert world.do(history, subscription, 1) == [second]


def test_the_history_is_one_query(tmp_path: Path) -> None:
    world = Records(tmp_path)
    subscription = world.subscribe()
    for number in range(3):
        world.port(subscription, PortState.PUBLISHED, f"port-{number}")
    asked: list[str] = []
    with world.database.session() as session:
        event.listen(session.get_bind(), "before_cursor_execute", lambda *a: asked.append(a[2]))
        assert [each.key for each in history(session, subscription)] == [
            "port-0",
            "port-1",
            "port-2",
        ]
    assert len(asked) == 1
