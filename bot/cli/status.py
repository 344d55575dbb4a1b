"""`portllm status`, `ports`, `show` and `logs`: what is where, and why."""

import json
import time
from datetime import datetime
from itertools import groupby
from typing import Annotated, Any

import typer
from sqlalchemy.orm import Session, defer

from bot.address import parse_repo
from bot.cli import completing
from bot.cli.output import Json, message, print_fields, print_json, print_table
from bot.cli.sources import open_registry
from bot.running.controls import STOPPABLE, find_port, way_on
from judging.arms import ARMS, figure
from judging.evidence import Evidence
from porting.errors import UsageError
from registry.models import Event, Port, PortState
from registry.ports import events, newest_ports
from registry.scene import Scene
from registry.status import ENDED, STATES, Status, chosen, statuses, told

PANEL = "Keep patches up to date"
FOLLOW_SECONDS = 1.0
PortName = Annotated[
    str,
    typer.Argument(
        metavar="PORT",
        help="A port's key, or enough of its beginning.",
        autocompletion=completing.ports,
    ),
]
PatchOption = Annotated[
    str | None,
    typer.Option(
        "--patch",
        metavar="REPO",
        help="Only what is of this patch.",
        autocompletion=completing.patches,
    ),
]


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel=PANEL)(status)
    app.command(rich_help_panel=PANEL)(ports)
    app.command(rich_help_panel=PANEL, no_args_is_help=True)(show)
    app.command(rich_help_panel=PANEL, no_args_is_help=True)(logs)


def status(
    owner: Annotated[
        str | None, typer.Option(help="Only the patches of this user or organisation.")
    ] = None,
    patch: PatchOption = None,
    state: Annotated[
        str | None,
        typer.Option(help="Only what is in this state.", autocompletion=completing.states),
    ] = None,
    json_: Json = False,
) -> None:
    """Every subscription: its state, and one sentence why.

    One that was ended is shown with --patch or --state ended.

    Example: portllm status --owner me --state waiting
    """
    rows = read_status(owner, patch, state)
    if json_:
        print_json([row.to_dict() for row in rows])
        return
    print_table(
        ("patch", "follows", "to", "state", "why"),
        [(row.patch, row.follows, row.to, row.state, _why(row)) for row in rows],
    )
    if not rows:
        message("Nothing of that is subscribed. Next: portllm subscribe --help")
    elif any(row.port for row in rows):
        message("More about a port: portllm ports, portllm show PORT")


def _why(row: Status) -> str:
    answer = f" Merge or close {row.url}" if row.state == PortState.ASKED else ""
    return row.reason + answer


def read_status(
    owner: str | None = None, patch: str | None = None, state: str | None = None
) -> list[Status]:
    if state is not None and state not in STATES:
        raise UsageError(f"--state {state} is none of: {', '.join(STATES)}.")
    repo = parse_repo(patch).repo if patch else None
    with open_registry().session() as session:
        ended = patch is not None or state == ENDED
        found = statuses(session, chosen(session, owner, repo, ended))
    return [row for row in found if state in (None, row.state)]


def ports(
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest releases first.")] = 50,
    state: Annotated[PortState | None, typer.Option(help="Only those in this state.")] = None,
    patch: PatchOption = None,
    json_: Json = False,
) -> None:
    """The ports that were begun: patch, release, state, where it is.

    Example: portllm ports --state failed
    """
    query = newest_ports(limit, state, parse_repo(patch).repo if patch else None)
    if not json_:
        query = query.options(defer(Port.evidence))
    with open_registry().session() as session:
        scene = Scene.now(session)
        found = list(session.scalars(query))
        if json_:
            print_json([_facts(port, scene) | {"evidence": port.evidence} for port in found])
            return
        rows = [_facts(port, scene) for port in found]
    print_table(
        ("port", "patch", "release", "state", "where or why"),
        [
            (row["port"], _short(row["patch"]), _short(row["release"]), row["state"],
             row["url"] or row["reason"])
            for row in rows
        ],
    )  # fmt: skip
    if rows:
        message(f"More about one: portllm show {rows[0]['port']}")


def show(port: PortName, json_: Json = False) -> None:
    """One port: what it is made of, what was found, every attempt, and what can be done.

    Example: portllm show port-0123456789abcdef
    """
    with open_registry().session() as session:
        found = find_port(session, port)
        facts = _facts(found, Scene.now(session)) | {
            "trained_on": f"{found.job['old_repo']}@{found.job['old_sha']}",
            "verdict": found.verdict,
            "evidence": _evidence(found),
            "attempts": _attempts(session, found.key),
        }
        on = way_on(found)
    if json_:
        print_json(facts)
        return
    attempts = facts.pop("attempts")
    verdict = facts.pop("verdict")
    facts["verdict"] = f"{verdict['action']}: {verdict['reason']}" if verdict else None
    print_fields({name: value for name, value in facts.items() if value is not None})
    if attempts:
        print()
        print_table(
            ("attempt", "from", "to", "last"), [tuple(attempt.values()) for attempt in attempts]
        )
    message(on)
    message(f"Its log: portllm logs {facts['port']}")


def logs(
    port: PortName,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until it is done, or you stop it (Ctrl-C).")
    ] = False,
    json_: Json = False,
) -> None:
    """What became of a port, line by line. With --follow, --json prints one object a line.

    Example: portllm logs port-0123456789abcdef --follow
    """
    database, last = open_registry(), 0
    with database.session() as session:
        key = find_port(session, port).key
    while True:
        with database.session() as session:
            at_work = session.get_one(Port, key).state in STOPPABLE
            lines = [event for event in events(session, key) if event.id > last]
        if json_ and not follow:
            print_json([_line(event) for event in lines])
            return
        for event in lines:
            last, line = event.id, _line(event)
            shown = [value for value in line.values() if value is not None]
            print(json.dumps(line) if json_ else "\t".join(map(str, shown)), flush=True)
        if not follow or not at_work:
            return
        time.sleep(FOLLOW_SECONDS)


def _facts(port: Port, scene: Scene) -> dict[str, Any]:
    patch = port.subscription.patch  # which may have moved on since
    return {
        "port": port.key,
        "patch": f"{patch.repo}@{port.job.get('patch_sha', patch.sha)}",
        "release": f"{port.release.repo}@{port.release.sha}",
        "form": port.job.get("form"),
        "policy": port.job.get("policy"),
        "to": port.job.get("to_repo"),
        "state": port.state,
        "step": port.step,
        "reason": told(scene, port),
        "attempt": port.attempt,
        "due_at": _moment(port.due_at) if port.state in STOPPABLE else None,
        "url": port.url,
        "published_sha": port.published_sha,
        "published_at": _moment(port.published_at)
        if port.published_at and port.published_sha
        else None,
        "created_at": _moment(port.created_at),
        "updated_at": _moment(port.updated_at),
    }


def _evidence(port: Port) -> str | None:
    """The arms' means on the patch's own items; `portllm rejudge` has all of it."""
    own = Evidence.model_validate(port.evidence).own if port.evidence else None
    if own is None:
        return None
    means = {arm: sum(found) / len(found) for arm, found in own.results.items()}
    arms = ", ".join(f"{ARMS[arm]} {figure(mean, own.metric)}" for arm, mean in means.items())
    unit = "% right" if own.metric == "accuracy" else own.metric
    return f"{own.task}, {len(own.items)} items: {arms} ({unit})"


def _attempts(session: Session, key: str) -> list[dict[str, Any]]:
    """When each began, when it was heard of last, and with what."""
    found = []
    for attempt, its in groupby(events(session, key), key=lambda event: event.attempt):
        lines = list(its)
        found.append(
            {
                "attempt": attempt,
                "from": _moment(lines[0].at),
                "to": _moment(lines[-1].at),
                "last": lines[-1].text,
            }
        )
    return found


def _line(event: Event) -> dict[str, Any]:
    return {
        "at": _moment(event.at),
        "attempt": event.attempt,
        "step": event.step,
        "blame": event.blame,
        "text": event.text,
    }


def _moment(at: datetime) -> str:
    return at.isoformat(timespec="seconds")


def _short(address: object) -> str:
    repo, _, sha = str(address).partition("@")
    return f"{repo}@{sha[:7]}"
