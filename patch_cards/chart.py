"""A patch over the successive releases of its base, as an SVG that needs nothing else.

It has a ground of its own, dark where the reader's system is: an image on a page doesn't know which
theme was chosen there. The same moments give the same bytes.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from judging.arms import figure
from registry.history import ACCURACY, Figure, Moment

NAME = "portllm-chart.svg"
MOST = 8  # releases that can be read on a card
SERIES = (("alone", "base alone"), ("patched", "base + patch"), ("refit", "base + refit"))
TRAINED = {"alone": "before", "patched": "old"}  # arms, on the base that it was trained on
MOVED = {"alone": "new", "patched": "port", "refit": "refit"}
LEFT, TOP, HEIGHT, SLOT = 56, 64, 190, 88
LEAST, LETTER = 440, 7.5  # of a whole chart, and of its title, in width
LONGEST = 13  # letters of a name that have room below the axis
UNREADABLE = re.compile(r"[^\u0020-\u007e\u00a0-\ud7ff\ue000-\ufffd]")  # XML takes no others

_templates = Environment(
    loader=PackageLoader("patch_cards"),
    undefined=StrictUndefined,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Place:
    """What was measured on one revision of a base, by series."""

    repo: str
    sha: str
    about: tuple[str, str]  # when, and the verdict
    figures: dict[str, Figure]


@dataclass(frozen=True)
class Mark:
    """A figure where it is drawn."""

    series: str
    x: float
    y: float
    low: float
    high: float
    said: str


def draw(moments: Sequence[Moment]) -> str | None:
    """The chart of these, the oldest first; None where none was measured.

    Only what was measured on the same task as the last is comparable, so only that is shown.
    """
    measured = [moment for moment in moments if {"new", "port"} <= moment.arms.keys()]
    if not measured:
        return None
    last = measured[-1]
    shown = [m for m in measured if (m.task, m.metric) == (last.task, last.metric)]
    metric, places = last.metric or ACCURACY, list(_places(shown))
    found = [value for place in places for each in place.figures.values() for value in each]
    ticks = _ticks(min(found), max(found))
    low, high = ticks[0], ticks[-1]
    times = 100 if metric == ACCURACY else 1
    unit = "accuracy in %" if metric == ACCURACY else f"{metric}, less is better"
    title = _clean(f"{last.task}: {unit}, with intervals")
    width = round(max(LEFT + SLOT * len(places) + 16, LEAST, LETTER * len(title) + 32))
    slot = (width - LEFT - 16) / len(places)
    middles = [round(LEFT + slot * (place + 0.5), 1) for place in range(len(places))]

    def level(value: float) -> float:
        return round(TOP + HEIGHT * (high - value) / (high - low), 1)

    marks = []
    for middle, each in zip(middles, places, strict=True):
        for nth, (series, name) in enumerate(SERIES):
            if (at := each.figures.get(series)) is None:
                continue
            x = round(middle + 12 * (nth - 0.5), 1)
            said = f"{_name(each)}: {name} {_said(at, metric)}"
            marks.append(Mark(series, x, level(at.mean), level(at.low), level(at.high), said))
    return _templates.get_template("chart.svg.j2").render(
        title=title,
        said="; ".join(mark.said for mark in marks),
        width=width,
        bottom=TOP + HEIGHT,
        left=LEFT,
        ticks=[(level(tick), f"{times * tick:.6g}") for tick in ticks],
        series=[(id, name) for id, name in SERIES if any(id in p.figures for p in places)],
        marks=marks,
        lines=[(id, [(mark.x, mark.y) for mark in marks if mark.series == id]) for id, _ in SERIES],
        labels=list(zip(middles, _labels(places), strict=True)),
    )


def _places(moments: list[Moment]) -> Iterator[Place]:
    """The base that the patch was trained on, and each that it was moved to."""
    last = moments[-1]
    if last.old_repo and last.old_sha and last.arms.keys() >= set(TRAINED.values()):
        figures = {series: last.arms[arm] for series, arm in TRAINED.items()}
        yield Place(last.old_repo, last.old_sha, ("trained on", ""), figures)
    for each in moments:
        figures = {series: each.arms[arm] for series, arm in MOVED.items() if arm in each.arms}
        about = (f"{each.seen_at:%Y-%m-%d}", each.action or each.state)
        yield Place(each.repo, each.sha, about, figures)


def _labels(places: list[Place]) -> Iterator[list[str]]:
    """Below the axis; the repo only where there are several, its end if there is no room: names
    of versions differ there."""
    several = len({place.repo for place in places}) > 1
    for place in places:
        name = _clean(place.repo.rpartition("/")[2])
        short = name if len(name) <= LONGEST else f"\u2026{name[1 - LONGEST :]}"
        lines = ([short] if several else []) + [place.sha[:7], *place.about]
        yield [_clean(line) for line in lines if line]


def _ticks(low: float, high: float) -> list[float]:
    """Round values around all of them, three to seven."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-6):
        low, high = low - 0.05, high + 0.05
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _name(place: Place) -> str:
    return f"{_clean(place.repo)}@{place.sha[:7]}"


def _said(at: Figure, metric: str) -> str:
    mean, low, high = (figure(value, metric) for value in at)
    return f"{mean} ({low} to {high})"


def _clean(text: str) -> str:
    return UNREADABLE.sub("\ufffd", text)
