"""Making, moving, deleting and configuring repositories, and who is asking."""

from typing import Any

from localhub import writing
from localhub.auth import Access, authorize
from localhub.errors import HubError
from localhub.hub import Call
from localhub.moves import MAIN, move_ref
from localhub.repos import KINDS, Repo


def _kind(call: Call) -> str:
    kind = call.json().get("type") or "model"
    if kind not in KINDS:
        raise HubError(400, f"type must be one of {', '.join(KINDS)}")
    return str(kind)


def _check_namespace(call: Call, namespace: str) -> None:
    if not call.writer.owns(namespace):
        raise HubError(403, f"You don't have the rights to create a repo under {namespace!r}")


def _visibility(body: dict[str, Any]) -> bool | None:
    """Whether the body asks for a private repository; None when it does not say."""
    if "visibility" in body:
        return bool(body["visibility"] != "public")
    return bool(body["private"]) if body.get("private") is not None else None


def create(call: Call) -> dict[str, Any]:
    """POST /api/repos/create `{name, organization?, visibility?, type?, sdk?}`"""
    body, kind, user = call.json(), _kind(call), call.writer
    repo_id = f"{body.get('organization') or user.name}/{call.field('name')}"
    _check_namespace(call, repo_id.split("/")[0])
    settings: dict[str, Any] = {
        "private": bool(_visibility(body)),
        "gated": False,
        "granted": [],
        "sdk": body.get("sdk"),
    }
    try:
        repo = call.hub.repos.create(kind, repo_id, settings, _initial_commit)
    except HubError as error:
        known = call.hub.repos.find(kind, repo_id)
        if known:  # the client reads the address out of a 409, too
            error.extra["url"] = f"{call.base}/{known.web_path}"
        raise
    call.hub.webhooks.repo_changed(repo, call.base, "create")
    return {"url": f"{call.base}/{repo.web_path}", "name": repo.id, "id": repo.settings["_id"]}


def _initial_commit(repo: Repo) -> None:
    attributes = writing.Change(writing.ATTRIBUTES, writing.default_attributes())
    sha = writing.write(repo.path, None, [attributes], "initial commit\n", None)
    move_ref(repo.path, MAIN, sha, None)


def _owned(call: Call, repo_id: str) -> Repo:
    return authorize(call.user, call.hub.repos.find(_kind(call), repo_id), Access.WRITE)


def delete(call: Call) -> dict[str, Any]:
    """DELETE /api/repos/delete `{name, organization?, type?}`"""
    organization = call.json().get("organization") or call.writer.name
    repo = _owned(call, f"{organization}/{call.field('name')}")
    call.hub.webhooks.repo_changed(repo, call.base, "delete")
    call.hub.repos.delete(repo)
    return {}


def move(call: Call) -> dict[str, Any]:
    """POST /api/repos/move `{fromRepo, toRepo, type}`"""
    repo, target = _owned(call, call.field("fromRepo")), call.field("toRepo")
    namespace = target.split("/")[0]
    _check_namespace(call, namespace)
    moved = {"movedTo": {"name": target, "owner": {"id": namespace}}}
    new = call.hub.repos.move(repo, target)
    call.hub.webhooks.repo_changed(new, call.base, "move", **moved)
    return {}


def update_settings(call: Call) -> dict[str, Any]:
    """PUT settings `{gated?, visibility?}`"""
    body = call.json()
    changes: dict[str, Any] = {}
    if body.get("gated") is not None:
        if body["gated"] not in ("auto", "manual", False):
            raise HubError(400, "gated must be auto, manual or false")
        changes["gated"] = body["gated"]
    private = _visibility(body)
    if private is not None:
        changes["private"] = private
    call.repo.update_settings(**changes)
    call.hub.webhooks.config_changed(call.repo, call.base, changes)
    return changes


def grant_access(call: Call) -> dict[str, Any]:
    """POST user-access-request/grant `{user}`: let a user into a gated repository."""
    granted = call.repo.settings["granted"]
    user = call.field("user")
    if user in granted:
        raise HubError(400, f"{user} already has access")
    call.repo.update_settings(granted=[*granted, user])
    return {}


def auth_check(call: Call) -> dict[str, Any]:
    """GET auth-check[/write]; the route has done it."""
    return {}


def whoami(call: Call) -> dict[str, Any]:
    """GET /api/whoami-v2"""
    user = call.user
    if user is None:
        raise HubError(401, "Invalid username or password.")
    return {
        "type": "user",
        "id": user.name,
        "name": user.name,
        "fullname": user.name,
        "isPro": False,
        "orgs": [{"type": "org", "name": org, "roleInOrg": user.role} for org in user.orgs],
        "auth": {
            "type": "access_token",
            "accessToken": {"displayName": "localhub", "role": user.role},
        },
    }
