"""`portllm judge` and `rejudge`: is a port worth having, before there is one and after."""

import json
import tempfile
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from bot.cli.evidence import print_evidence
from bot.cli.output import (
    WHERE,
    Json,
    PolicyOption,
    VerdictPolicyOption,
    message,
    print_json,
)
from bot.cli.progress import progress
from bot.cli.sources import old_base, open_context, open_source, read_policy, read_settings
from bot.context import Job
from bot.hub import Hub
from bot.making import trial
from bot.making.inputs import Inputs, Place, base_folder, patch_folder
from bot.making.make import scaled
from bot.making.plan import check_change
from bot.making.sandbox import Report
from judging.evidence import Evidence
from judging.guard import guard
from judging.policy import VerdictPolicy, parse_policy
from judging.task import SPEC, Task, read_task
from porting import read_adapter
from porting.errors import Refused, UsageError
from registry.models import Port

Row = tuple[str, Evidence, VerdictPolicy]  # what it is about
Stored = tuple[str, Evidence, VerdictPolicy | None]  # the policy where one is kept with it
PANEL = "Look at a patch, port it by hand"


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=PANEL, no_args_is_help=True)(judge)
    app.command(rich_help_panel=PANEL, no_args_is_help=True)(rejudge)


def judge(
    patches: Annotated[list[str], typer.Argument(help=f"A folder or {WHERE}; one or more.")],
    new: Annotated[str, typer.Option(help=f"The new base: a folder or {WHERE}.")],
    old: Annotated[
        str | None,
        typer.Option(help="The base it was trained on, if the patch's config does not say."),
    ] = None,
    refit: Annotated[
        str | None, typer.Option(help="An adapter trained on the new base, to compare with.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help=f"Where to take {SPEC} from, if not from the patch.")
    ] = None,
    policy: PolicyOption = None,
    verdict_policy: VerdictPolicyOption = None,
    json_: Json = False,
) -> None:
    """Judge patches on a new base: every arm on the same items, and the verdict that follows.

    Each base is loaded once for all patches. Nothing is pushed or recorded.

    Example: portllm judge me/tickets-lora --new HuggingFaceTB/SmolLM2-135M-Instruct
    """
    from bot.making.validate import SCORER  # SciPy takes a second to import

    hub, judged_by = Hub(), read_policy(verdict_policy)
    cache = read_settings().lm_eval
    places = [open_source(patch, hub) for patch in patches]
    base = open_source(new, hub)
    if judged_by.scale == "auto":
        raise UsageError(
            "The bot chooses a scale for each port; `judge` says which one the loss asks for. "
            "Give that number in place of `auto`."
        )
    trained = [old_base(hub, patch, old) for patch in places]
    for before in trained:
        check_change(before, base)
    read = [_task(place, hub) for place in ([open_source(task, hub)] if task else places)]
    with tempfile.TemporaryDirectory(prefix="portllm-judge-") as folder, progress() as report:
        tasks = [trial.with_data(each, cache, report) for each in read]
        cases = []
        for number, (patch, before, own) in enumerate(zip(places, trained, cycle(tasks))):
            inputs = Inputs(base, patch, before, "adapter", policy)
            case = _case(inputs, before, own, judged_by, Path(folder) / str(number), report)
            if refit is not None:
                place, work = open_source(refit, hub), Path(folder) / "refit"
                case["arms"]["refit"] = trial.as_trained(base, place, work, report)
            cases.append(case)
        found = trial.judge_cases(cases, Path(folder), report, cache)
    for evidence in found:
        evidence.engine, evidence.scale = SCORER, judged_by.scale
    names = [f"{patch.name} on {base.name}" for patch in places]
    _show([(name, each, judged_by) for name, each in zip(names, found, strict=True)], json_)


def _task(place: Place, hub: Hub) -> Task:
    found = read_task(place, hub.data)
    if found is None:
        raise Refused(
            f"{place.name} has no {SPEC}, so there is nothing to judge by. Write one "
            "(docs/evaluation.md); if it is not in the patch, name its folder with --task."
        )
    return found


def _case(
    inputs: Inputs, old: Place, own: Task, judged_by: VerdictPolicy, work: Path, report: Report
) -> dict[str, Any]:
    arms = {
        "before": {"base": str(base_folder(old))},
        "old": trial.as_trained(old, inputs.patch, work, report),
        "new": {"base": str(base_folder(inputs.new))},
    }
    assert judged_by.scale != "auto"
    inputs = scaled(inputs, judged_by.scale, work)
    extra: dict[str, Any] = {"forecast": trial.forecast_order(inputs, report)}
    if trial.means_the_same(inputs.patch) or read_adapter(inputs.patch).portability == "D":
        extra["pair"] = arms["port"] = trial.beside(inputs.new, patch_folder(inputs.patch))
    else:
        arms["port"] = trial.merged(inputs, work / "on-new", report)
    return trial.case(own, guard(), arms, judged_by) | extra


def rejudge(
    port: Annotated[
        str | None,
        typer.Argument(help="A port's key, a lock file, or what `judge --json` printed."),
    ] = None,
    verdict_policy: VerdictPolicyOption = None,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Only print the default policy, to start from.")
    ] = False,
    json_: Json = False,
) -> None:
    """Judge stored evidence again, by the policy stored with it or another one.

    No model runs, and no Hub is asked.

    Example: portllm rejudge port-0123456789abcdef --verdict-policy strict.json
    """
    if defaults:
        print_json(VerdictPolicy().model_dump())
        return
    if port is None:
        raise UsageError("Name a port or a file, or ask for --defaults.")
    given = read_policy(verdict_policy) if verdict_policy else None
    rows = []
    for name, evidence, stored in _stored(port):
        message(f"{name} is judged by {_by(verdict_policy, stored)}.")
        rows.append((name, evidence, given or stored or VerdictPolicy()))
    _show(rows, json_)


def _by(given: Path | None, stored: VerdictPolicy | None) -> str:
    if given is not None:
        return f"the policy in {given}"
    return "the policy stored with it" if stored else "the defaults, as no policy is stored with it"


def _show(found: list[Row], json_: bool) -> None:
    if json_:
        print_json([_data(*row) for row in found])
        return
    for name, evidence, judged_by in found:
        message(f"\n{name}")
        print_evidence(evidence, judged_by)


def _data(name: str, evidence: Evidence, judged_by: VerdictPolicy) -> dict[str, Any]:
    from judging.verdict import decide, weigh_all  # SciPy takes a second to import

    weighed = weigh_all(evidence, judged_by) if evidence.own else None
    return {
        "port": name,
        "verdict": decide(evidence, weighed, judged_by).model_dump(),
        "policy": judged_by.model_dump(),
        "findings": weighed.model_dump() if weighed else None,
        "evidence": evidence.model_dump(),
    }


def _stored(port: str) -> list[Stored]:
    """The evidence in a file, or of a port in the registry."""
    if Path(port).is_file():
        try:
            found = json.loads(Path(port).read_text(encoding="utf-8"))
            rows = found if isinstance(found, list) and found else [found]
            return [_of_row(row, port) for row in rows]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = error.errors()[0]["loc"] if isinstance(error, ValidationError) else error
            raise Refused(f"{port} holds no evidence that can be judged ({what}).") from error
    with open_context().database.session() as session:
        record = session.get(Port, port)
        if record is None:
            raise UsageError(f"There is no port {port} and no such file; see: portllm ports")
        if record.evidence is None:
            raise UsageError(f"{port} is {record.state} and has no evidence yet: {record.reason}")
        evidence, job = Evidence.model_validate(record.evidence), Job(**record.job)
        return [(port, evidence, job.judged_by if job.verdict_policy else None)]


def _of_row(row: dict[str, Any], file: str) -> Stored:
    """What a lock holds, or one of what `judge --json` printed."""
    if row["evidence"] is None:
        raise Refused(f"{file} is of a port that was published unjudged: it holds no evidence.")
    # In a lock, `policy` is what the patch means in a merged model.
    stored = row.get("verdict_policy", row.get("policy"))
    policy = None
    if isinstance(stored, dict):
        policy = parse_policy(json.dumps(stored), f"{file}: the policy in it")
    return str(row.get("port", file)), Evidence.model_validate(row["evidence"]), policy
