"""Judges ports: every arm on the same items, look by look, with as few loads of a base as can be.

Runs in the computing process only: it loads models.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

from pydantic import BaseModel

from judging.arms import ARMS
from judging.device import DEVICE
from judging.evidence import Evidence, Measured, Results, Slice
from judging.model import Models
from judging.policy import VerdictPolicy
from judging.probe import faults, probe
from judging.score import score, total
from judging.slice import take_slice
from judging.task import Task, order
from judging.verdict import is_settled

Report = Callable[[str, int, int], None]
RECORDED = ("before", "old")  # arms on a base that stays: judged on all items at once, then known


class Arm(BaseModel):
    """A model: a base's folder and the folder of the adapter on it, if any.

    `known` has what is already known of it, by task digest.
    """

    base: Path
    adapter: Path | None = None
    known: dict[str, Results] = {}


class Case(BaseModel):
    """One port to judge. `own` is the patch's task; `merged` the checkpoint to hold against `pair`.

    `skipped` items were used to choose the scale, so they say nothing about it any more.
    """

    own: Task
    guard: list[Task]
    arms: dict[str, Arm]
    policy: VerdictPolicy
    skipped: int = 0
    merged: Path | None = None
    pair: Arm | None = None

    def tasks(self) -> list[Task]:
        return [self.own, *self.guard]


Key = tuple[Path, Path | None, str, int]  # base, adapter, task digest, items skipped
Known = dict[Key, list[float]]  # results in the order of asking


@dataclass
class _Question:
    arm: str
    task: Task
    is_own: bool
    count: int


def run(cases: list[Case], report: Report) -> list[Evidence]:
    """The evidence on every case. Bases that cases share are loaded once, their results shared."""
    models, known = Models(), Known()
    for case in cases:
        for arm in case.arms.values():
            for task in case.tasks():
                known[_key(case, arm, task)] = list(arm.known.get(task.digest, []))
    looks = [case.policy.looks(total(case.own) - case.skipped) for case in cases]
    found = [Evidence(device=DEVICE, looks=len(counts)) for counts in looks]
    undecided = list(range(len(cases)))
    while undecided:
        asked: dict[Key, _Question] = {}
        for n in undecided:
            _ask(asked, cases[n], looks[n][found[n].look - 1], looks[n][-1])
        _answer(models, asked, known, report)
        for n in list(undecided):
            case, evidence, counts = cases[n], found[n], looks[n]
            evidence.own = _measured(case, case.own, known, counts[evidence.look - 1])
            evidence.guard = [_measured(case, task, known, total(task)) for task in case.guard]
            if evidence.look == len(counts) or is_settled(evidence, case.policy):
                undecided.remove(n)
            else:
                evidence.look += 1
    for case, evidence in zip(cases, found, strict=True):
        _look_closer(models, case, evidence, report)
    return found


def _key(case: Case, arm: Arm, task: Task) -> Key:
    return arm.base, arm.adapter, task.digest, case.skipped if task is case.own else 0


def _ask(asked: dict[Key, _Question], case: Case, now: int, most: int) -> None:
    """What this look of `case` needs to know: `now` items, or `most` of what will be recorded."""
    for name, arm in case.arms.items():
        for task in case.tasks():
            is_own = task is case.own
            count = (most if name in RECORDED else now) if is_own else total(task)
            question = asked.setdefault(_key(case, arm, task), _Question(name, task, is_own, count))
            question.count = max(question.count, count)


def _answer(models: Models, asked: dict[Key, _Question], known: Known, report: Report) -> None:
    """Extend `known` to what is asked, one model after the other.

    The one that is loaded comes first, those that no later look asks again before the others.
    """
    missing = [key for key, question in asked.items() if len(known[key]) < question.count]
    missing.sort(
        key=lambda key: (
            key[0] != models.base, asked[key].arm not in RECORDED, str(key[0]), str(key[1])
        )
    )  # fmt: skip
    for (base, adapter), keys in groupby(missing, key=lambda key: key[:2]):
        with models.on(base, adapter) as loaded:
            for key in keys:
                question, done, skipped = asked[key], known[key], key[3]
                arm = replace(loaded, name=ARMS[question.arm])
                told = partial(report, f"judging {arm.name} on {question.task.name}, items")
                first, last = skipped + len(done), skipped + question.count
                done += score(arm, question.task, first, last, told, question.is_own)


def _measured(case: Case, task: Task, known: Known, count: int) -> Measured:
    size, skipped = total(task), case.skipped if task is case.own else 0
    return Measured(
        task=task.name,
        digest=task.digest,
        total=size,
        metric=task.metric,
        items=order(task.digest, size)[skipped : skipped + count],
        results={name: list(known[_key(case, arm, task)]) for name, arm in case.arms.items()},
    )


def _look_closer(models: Models, case: Case, evidence: Evidence, report: Report) -> None:
    """The slice, and whether the merged model is what it says."""
    new = case.arms["new"].base
    if case.pair is not None:
        assert case.pair.adapter is not None
        if not case.skipped:
            with models.on(case.pair.base, case.pair.adapter) as loaded:
                evidence.slice = take_slice(loaded, case.own, report)
        if case.merged is not None:
            evidence.probe = probe(models, new, case.pair.adapter, case.merged)
    if case.merged is not None:
        evidence.faults = faults(models, new, case.merged)


def slice_of(base: Path, adapter: Path, task: Task, report: Report) -> Slice | None:
    """The slice alone, before a port is made: for `scale: auto`, on items that are then skipped."""
    with Models().on(base, adapter) as loaded:
        return take_slice(loaded, task, report, "choosing the scale, items")
