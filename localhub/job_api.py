"""The endpoints below `/api/jobs` and `/api/scheduled-jobs`."""

import re
from collections.abc import Callable
from typing import Any

from starlette.routing import BaseRoute

from localhub.errors import HubError
from localhub.hub import Call, route
from localhub.jobs import JOBS, SCHEDULED, Job, show_spec

_SCHEDULE = re.compile(r"@(annually|yearly|monthly|weekly|daily|hourly)|\S+( \S+){4}")


def _owner(call: Call) -> dict[str, str]:
    """The namespace in the path, which must be the user's own or of their organisations."""
    user, name = call.user if call.request.method == "GET" else call.writer, call.param("ns")
    if user is None or not user.owns(name):
        raise HubError(403, f"You don't have the rights to the jobs of {name}")
    return {"id": name, "name": name, "type": "user" if name == user.name else "org"}


def _find(call: Call) -> Job:
    owner, wanted = _owner(call), call.param("id")
    for job in call.hub.jobs.of(call.kind):
        if job["id"] == wanted and job["owner"]["name"] == owner["name"]:
            return job
    raise HubError(404, f"There is no job {wanted} of {owner['name']}")


def _check_spec(spec: Any) -> None:
    if not isinstance(spec, dict) or len({"dockerImage", "spaceId"} & spec.keys()) != 1:
        raise HubError(400, "A job needs a 'dockerImage' or a 'spaceId'")
    command = spec.get("command")
    if not isinstance(command, list) or not all(isinstance(part, str) for part in command):
        raise HubError(400, "A job needs a 'command', a list of strings")
    for name in ("environment", "secrets", "labels"):
        values = spec.get(name) or {}
        if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
            raise HubError(400, f"{name!r} of a job must map names to strings")


def _check_schedule(schedule: str) -> str:
    if not _SCHEDULE.fullmatch(schedule):
        raise HubError(400, f"A schedule is @hourly, @daily... or five fields, not {schedule!r}")
    return schedule


def _show(job: Job) -> dict[str, Any]:
    shown = {key: job[key] for key in ("id", "createdAt", "owner", "initiator")}
    if job["kind"] == JOBS:
        return {**show_spec(job["body"]), **shown, "status": {"stage": job["stage"]}}
    body = {key: job[key] for key in ("schedule", "suspend")}
    status = {"lastJob": job.get("lastJob"), "nextJobRunAt": None}
    spec = show_spec(job["body"]["jobSpec"])
    concurrency = bool(job["body"].get("concurrency"))
    return {**shown, **body, "jobSpec": spec, "concurrency": concurrency, "status": status}


def create(call: Call) -> dict[str, Any]:
    """POST {ns}: the specification of a job, or `{jobSpec, schedule, suspend?, concurrency?}`"""
    owner, body = _owner(call), call.json()
    initiator = {"type": "user", "id": call.writer.name, "name": call.writer.name}
    if call.kind == JOBS:
        _check_spec(body)
        return _show(call.hub.jobs.add(JOBS, owner, body, initiator))
    _check_spec(body.get("jobSpec"))
    schedule = _check_schedule(call.field("schedule"))
    job = call.hub.jobs.add(SCHEDULED, owner, body, initiator)
    suspend = bool(body.get("suspend"))
    return _show(call.hub.jobs.update(job, schedule=schedule, suspend=suspend))


def list_all(call: Call) -> list[dict[str, Any]]:
    """GET {ns}?stage=&label=name%3Dvalue, newest first"""
    owner, stages = _owner(call), call.queries("stage")
    labels = {tuple(text.split("=", 1)) for text in call.queries("label")}

    def wanted(job: Job) -> bool:
        spec = job["body"].get("jobSpec", job["body"])
        found = set((spec.get("labels") or {}).items())
        return labels <= found and (not stages or job["stage"] in stages)

    mine = [job for job in call.hub.jobs.of(call.kind) if job["owner"]["name"] == owner["name"]]
    return [_show(job) for job in reversed(mine) if wanted(job)]


def get(call: Call) -> dict[str, Any]:
    return _show(_find(call))


def delete(call: Call) -> dict[str, Any]:
    call.hub.jobs.delete(_find(call))
    return {}


def _change(**changes: Any) -> Callable[[Call], dict[str, Any]]:
    return lambda call: _show(call.hub.jobs.update(_find(call), **changes))


def reschedule(call: Call) -> dict[str, Any]:
    """POST {id}/schedule `{schedule}`"""
    schedule = _check_schedule(call.field("schedule"))
    return _show(call.hub.jobs.update(_find(call), schedule=schedule))


def trigger(call: Call) -> dict[str, Any]:
    """POST {id}/run: one job of the schedule's specification, now."""
    scheduled = _find(call)
    initiator = {"type": "scheduled-job", "id": scheduled["id"]}
    job = call.hub.jobs.add(JOBS, scheduled["owner"], scheduled["body"]["jobSpec"], initiator)
    call.hub.jobs.update(scheduled, lastJob={"id": job["id"], "at": job["createdAt"]})
    return _show(job)


def job_routes() -> list[BaseRoute]:
    routes: list[BaseRoute] = []
    for kind in (JOBS, SCHEDULED):
        routes += [
            route(f"/api/{kind}/{{ns}}", create, "POST", kind=kind),
            route(f"/api/{kind}/{{ns}}", list_all, "GET", kind=kind),
            route(f"/api/{kind}/{{ns}}/{{id}}", get, "GET", kind=kind),
        ]
    one = f"/api/{SCHEDULED}/{{ns}}/{{id}}"
    return [
        *routes,
        route(f"/api/{JOBS}/{{ns}}/{{id}}/cancel", _change(stage="CANCELED"), "POST", kind=JOBS),
        route(one, delete, "DELETE", kind=SCHEDULED),
        route(f"{one}/suspend", _change(suspend=True), "POST", kind=SCHEDULED),
        route(f"{one}/resume", _change(suspend=False), "POST", kind=SCHEDULED),
        route(f"{one}/schedule", reschedule, "POST", kind=SCHEDULED),
        route(f"{one}/run", trigger, "POST", kind=SCHEDULED),
    ]
