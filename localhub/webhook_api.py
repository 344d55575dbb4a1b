"""The endpoints below `/api/settings/webhooks`."""

from typing import Any
from urllib.parse import urlsplit

from localhub.errors import HubError
from localhub.hub import Call
from localhub.jobs import JOBS, show_spec
from localhub.webhooks import new_hook

_SHOWN = ("id", "url", "watched", "domains", "secret", "disabled")
_TYPES = ("model", "dataset", "space", "user", "org")
_DOMAINS = ["repo", "discussion"]


def _show(hook: dict[str, Any]) -> dict[str, Any]:
    job = show_spec(hook["job"]) if hook.get("job") else None
    return {**{key: hook[key] for key in _SHOWN}, "job": job}


def _target(call: Call, hook: dict[str, Any]) -> dict[str, Any]:
    """Whom the body tells to call: an address, or a job like the one that ran before."""
    body = call.json()
    if body.get("jobSourceId") is None:
        return {} if body.get("url") is None else {"url": body["url"], "job": None}
    for job in call.hub.jobs.of(JOBS):
        if job["id"] == body["jobSourceId"] and call.writer.owns(job["owner"]["name"]):
            # A run that a webhook starts has no volumes (hub docs, "Webhooks Automation").
            spec = {key: value for key, value in job["body"].items() if key != "volumes"}
            before = (hook.get("job") or {}).get("secrets") or {}  # none of the source job
            given = {**before, **(body.get("secrets") or {})}
            spec["secrets"] = {name: value for name, value in given.items() if value}
            return {"url": None, "job": spec, "jobOwner": job["owner"]}
    raise HubError(404, f"You have no job {body['jobSourceId']}")


def _find(call: Call) -> dict[str, Any]:
    for hook in call.hub.webhooks.of(call.writer.name):
        if hook["id"] == call.param("id"):
            return hook
    raise HubError(404, f"You have no webhook {call.param('id')}")


def _watched(items: list[Any]) -> list[dict[str, str]]:
    for item in items:
        if not isinstance(item, dict) or item.get("type") not in _TYPES or "name" not in item:
            raise HubError(400, f"'watched' needs items {{type, name}} with type in {_TYPES}")
    return [{"type": item["type"], "name": str(item["name"])} for item in items]


def _save(call: Call, hook: dict[str, Any]) -> dict[str, Any]:
    if not hook.get("job") and urlsplit(str(hook["url"])).scheme not in ("http", "https"):
        raise HubError(400, "A webhook needs an http(s) 'url' or a 'jobSourceId'")
    if not all(domain in _DOMAINS for domain in hook["domains"]):
        raise HubError(400, f"'domains' must be among {_DOMAINS}")
    call.hub.webhooks.put(hook)
    return {"webhook": _show(hook)}


def list_all(call: Call) -> list[dict[str, Any]]:
    return [_show(hook) for hook in call.hub.webhooks.of(call.writer.name)]


def get(call: Call) -> dict[str, Any]:
    return {"webhook": _show(_find(call))}


def create(call: Call) -> dict[str, Any]:
    """POST `{watched, domains?, url or jobSourceId, secret?, secrets?}`"""
    body, user = call.json(), call.writer
    hook = new_hook(user.name, [user.name, *user.orgs])
    given = {"secret": body.get("secret"), **_target(call, hook)}
    domains = call.items("domains") or _DOMAINS
    return _save(
        call, {**hook, **given, "watched": _watched(call.items("watched")), "domains": domains}
    )


def update(call: Call) -> dict[str, Any]:
    """POST {id} with the fields to change; the client sends an empty `watched` for no change."""
    body, hook = call.json(), _find(call)
    changes = _target(call, hook)
    if body.get("secret") is not None:
        changes["secret"] = body["secret"]
    watched = _watched(call.items("watched")) or hook["watched"]
    domains = call.items("domains") or hook["domains"]
    return _save(call, {**hook, **changes, "watched": watched, "domains": domains})


def enable(call: Call) -> dict[str, Any]:
    return _save(call, {**_find(call), "disabled": False})


def disable(call: Call) -> dict[str, Any]:
    return _save(call, {**_find(call), "disabled": True})


def delete(call: Call) -> dict[str, Any]:
    call.hub.webhooks.delete(_find(call)["id"])
    return {}
