"""Branches and tags."""

from typing import Any

from localhub.commits import branch_ref
from localhub.errors import HubError, revision_not_found
from localhub.git import git, run
from localhub.hub import Call
from localhub.moves import list_refs, move_ref, record, refs_before
from localhub.repos import Repo
from localhub.tree import is_revision, resolve


def refs(call: Call) -> dict[str, Any]:
    """GET refs[?include_prs=1]"""
    known, _ = refs_before(call.repo.path, call.stale)

    def below(prefix: str) -> list[dict[str, str]]:
        return [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": commit}
            for ref, commit in known.items()
            if ref.startswith(prefix)
        ]

    shown = {"branches": below("refs/heads/"), "tags": below("refs/tags/"), "converts": []}
    if call.flag("include_prs"):
        shown["pullRequests"] = [{**each, "name": each["ref"]} for each in below("refs/pr/")]
    return shown


def _check(repo: Repo, ref: str, name: str) -> None:
    allowed = is_revision(name) and not name.startswith("refs/")
    if not allowed or run(repo.path, "check-ref-format", ref).returncode != 0:
        raise HubError(400, f"Invalid reference name: {name}")


def _changed(call: Call, ref: str, old: str | None, new: str | None) -> dict[str, Any]:
    call.hub.webhooks.content_changed(call.repo, call.base, [(ref, old, new)])
    return {}


def create_branch(call: Call) -> dict[str, Any]:
    """POST branch/{name} `{startingPoint?}`"""
    name = call.param("ref")
    ref = f"refs/heads/{name}"
    _check(call.repo, ref, name)
    start = resolve(call.repo.path, str(call.json().get("startingPoint") or "main"))
    with call.repo.lock:
        if ref in list_refs(call.repo.path):
            raise HubError(409, f"Reference already exists: {ref}")
        move_ref(call.repo.path, ref, start, None)
    return _changed(call, ref, None, start)


def delete_branch(call: Call) -> dict[str, Any]:
    """DELETE branch/{name}"""
    name = call.param("ref")
    if name == "main":
        raise HubError(403, "The branch main cannot be deleted")
    return _delete(call, f"refs/heads/{name}", name)


def create_tag(call: Call) -> dict[str, Any]:
    """POST tag/{rev} `{tag, message?}`; a message makes it an annotated tag."""
    name = call.field("tag")
    ref = f"refs/tags/{name}"
    _check(call.repo, ref, name)
    target = resolve(call.repo.path, call.param("ref"))
    message = call.json().get("message")
    with call.repo.lock:
        if ref in list_refs(call.repo.path):
            raise HubError(409, f"Tag reference exists already: {ref}")
        if message:
            git(call.repo.path, "tag", "-a", "-F", "-", "--", name, target, stdin=message.encode())
            record(call.repo.path, ref, None, target)
        else:
            move_ref(call.repo.path, ref, target, None)
    return _changed(call, ref, None, target)


def delete_tag(call: Call) -> dict[str, Any]:
    """DELETE tag/{name}"""
    name = call.param("ref")
    return _delete(call, f"refs/tags/{name}", name)


def _delete(call: Call, ref: str, name: str) -> dict[str, Any]:
    with call.repo.lock:
        old = list_refs(call.repo.path).get(ref)
        if old is None:
            raise revision_not_found(name)
        git(call.repo.path, "update-ref", "-d", ref)
        record(call.repo.path, ref, old, None)
    return _changed(call, ref, old, None)


def super_squash(call: Call) -> dict[str, Any]:
    """POST super-squash/{branch} `{message}`: the branch becomes one commit with the same tree."""
    message = call.field("message")
    with call.repo.lock:
        ref, head = branch_ref(call.repo, call.param("rev"))
        tree = f"{head}^{{tree}}"
        sha = git(call.repo.path, "commit-tree", tree, "-F", "-", stdin=message.encode())
        new = sha.decode().strip()
        move_ref(call.repo.path, ref, new, head)
    return _changed(call, ref, head, new)
