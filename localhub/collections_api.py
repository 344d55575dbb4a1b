"""The endpoints below `/api/collections`."""

import secrets
from collections.abc import Iterator
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from localhub.auth import Access, authorize
from localhub.collections import check_length, slug
from localhub.errors import HubError
from localhub.hub import Call, route
from localhub.info import describe
from localhub.moves import main_head
from localhub.paging import number, page
from localhub.repos import KINDS, Repo

_THEMES = ("orange", "blue", "green", "purple", "pink", "indigo")
_LISTED = 4  # items that a list shows of each collection
_PAGE = 100
_SHOWN = ("title", "description", "private", "theme", "upvotes", "lastUpdated")
_OF_A_REPO = ("author", "lastModified", "private", "gated", "likes", "downloads", "pipeline_tag")


def _seen(call: Call, type: str, id: str) -> Repo | None:
    """The repository behind an item, if who asks may know of it."""
    try:
        return authorize(call.user, call.hub.repos.find(type, id), Access.SEE)
    except HubError:
        return None


def _items(call: Call, collection: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the user may see of them: an item whose repository is gone or private is left out."""
    for position, item in enumerate(collection["items"]):
        repo = _seen(call, item["type"], item["id"])
        if repo is not None:
            about = describe(repo, main_head(repo.path), _OF_A_REPO)
            note = {"note": {"html": item["note"], "text": item["note"]}} if item["note"] else {}
            yield {**about, **item, "position": position, **note}


def _show(call: Call, collection: dict[str, Any]) -> dict[str, Any]:
    shown = {key: collection[key] for key in _SHOWN if collection[key] is not None}
    owner = {"name": collection["owner"], "fullname": collection["owner"]}
    shown |= {"slug": slug(collection), "owner": owner, "gating": False, "isUpvotedByUser": False}
    return shown | {"items": list(_items(call, collection))}


def _whole(call: Call, collection: dict[str, Any]) -> dict[str, Any]:
    return _show(call, collection) | {"position": collection["position"]}


def _owns(call: Call, collection: dict[str, Any]) -> bool:
    return call.user is not None and call.user.owns(collection["owner"])


def _find(call: Call, *, to_write: bool = False) -> dict[str, Any]:
    found = call.hub.collections.find(call.param("ns"), call.param("name"))
    if found is None or (found["private"] and not _owns(call, found)):
        raise HubError(404, "Collection not found")
    if to_write and not call.writer.owns(found["owner"]):
        raise HubError(403, f"You don't have the rights to change {slug(found)}")
    return found


def list_all(call: Call) -> Response:
    """GET ?owner&item&limit; of each collection four items at most, and no position."""
    owners, wanted = call.queries("owner"), set(call.queries("item"))

    def is_asked(collection: dict[str, Any]) -> bool:
        held = {f"{KINDS[item['type']]}/{item['id']}" for item in collection["items"]}
        mine = not owners or collection["owner"] in owners
        return mine and (not wanted or not wanted.isdisjoint(held))

    found = [
        collection
        for collection in call.hub.collections.list()
        if is_asked(collection) and (_owns(call, collection) or not collection["private"])
    ]
    shown, headers = page(call, found, min(number(call, "limit", _PAGE), _PAGE))
    rows = [_show(call, collection) for collection in shown]
    for row in rows:
        row["items"] = row["items"][:_LISTED]
    return JSONResponse(rows, headers=headers)


def get(call: Call) -> dict[str, Any]:
    return _whole(call, _find(call))


def create(call: Call) -> dict[str, Any]:
    """POST `{title, namespace, private, description?}`; 409 with the `slug` of its twin."""
    body, user = call.json(), call.writer
    namespace = str(body.get("namespace") or user.name)
    if not user.owns(namespace):
        raise HubError(403, f"You don't have the rights to create a collection in {namespace}")
    title, description = check_length("title", body.get("title")), body.get("description")
    if description is not None:
        check_length("description", description)
    private = bool(body.get("private"))
    return _whole(call, call.hub.collections.create(namespace, title, description, private))


def update(call: Call) -> dict[str, Any]:
    """PATCH `{title?, description?, position?, private?, theme?}`"""
    body = call.json()
    for name in ("title", "description"):
        if name in body:
            check_length(name, body[name])
    if body.get("theme", _THEMES[0]) not in _THEMES:
        raise HubError(400, f"theme must be one of {', '.join(_THEMES)}")
    changes = {key: body[key] for key in (*_SHOWN[:4], "position") if key in body}
    changed = call.hub.collections.change(_find(call, to_write=True), lambda c: c.update(changes))
    return {"success": True, "data": _whole(call, changed)}


def delete(call: Call) -> dict[str, Any]:
    call.hub.collections.delete(_find(call, to_write=True))
    return {"success": True}


def add_item(call: Call) -> dict[str, Any]:
    """POST items `{item: {id, type}, note?}`"""
    collection = _find(call, to_write=True)
    given, note = call.json().get("item"), call.json().get("note")
    if not isinstance(given, dict) or given.get("type") not in KINDS:
        raise HubError(400, f"'item' needs an id, and a type of {', '.join(KINDS)}")
    repo = _seen(call, given["type"], str(given.get("id")))
    if repo is None:
        raise HubError(404, f"There is no {given['type']} {given.get('id')}")
    if note is not None:
        check_length("note", note)
    item = {"_id": secrets.token_hex(12), "id": repo.id, "type": repo.kind, "note": note}

    def append(fresh: dict[str, Any]) -> None:
        if any((each["type"], each["id"]) == (repo.kind, repo.id) for each in fresh["items"]):
            raise HubError(409, "Item already in the collection", extra={"slug": slug(fresh)})
        fresh["items"].append(item)

    return _whole(call, call.hub.collections.change(collection, append))


def _place(call: Call, collection: dict[str, Any]) -> int:
    for place, item in enumerate(collection["items"]):
        if item["_id"] == call.param("item"):
            return place
    raise HubError(404, "Item not found in the collection")


def update_item(call: Call) -> dict[str, Any]:
    """PATCH items/{item} `{note?, position?}`"""
    body = call.json()
    if "note" in body:
        check_length("note", body["note"])

    def apply(fresh: dict[str, Any]) -> None:
        place = _place(call, fresh)
        item = fresh["items"].pop(place)
        item["note"] = body.get("note", item["note"])
        fresh["items"].insert(int(body.get("position", place)), item)

    call.hub.collections.change(_find(call, to_write=True), apply)
    return {"success": True}


def delete_item(call: Call) -> dict[str, Any]:
    def drop(fresh: dict[str, Any]) -> None:
        del fresh["items"][_place(call, fresh)]

    call.hub.collections.change(_find(call, to_write=True), drop)
    return {"success": True}


def collection_routes() -> list[BaseRoute]:
    one, items = "/api/collections/{ns}/{name}", "/api/collections/{ns}/{name}/items"
    return [
        route("/api/collections", list_all, "GET"),
        route("/api/collections", create, "POST"),
        route(one, get, "GET"),
        route(one, update, "PATCH"),
        route(one, delete, "DELETE"),
        route(items, add_item, "POST"),
        route(f"{items}/{{item}}", update_item, "PATCH"),
        route(f"{items}/{{item}}", delete_item, "DELETE"),
    ]
