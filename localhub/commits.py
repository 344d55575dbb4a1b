"""Committing, and the list of what was committed."""

import html
from typing import Any

from starlette.responses import JSONResponse, Response

from localhub import discussions, writing
from localhub.auth import Access, authorize
from localhub.errors import HubError, revision_not_found
from localhub.files import timestamp
from localhub.git import git
from localhub.hub import Call
from localhub.moves import STALE, move_ref
from localhub.paging import page
from localhub.repos import Repo
from localhub.tree import resolve

PAGE = 50


def branch_ref(repo: Repo, revision: str) -> tuple[str, str]:
    """The full name and the head of a branch or pull request. Raises `HubError` 404."""
    ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
    if not ref.startswith(("refs/heads/", "refs/pr/")):
        raise revision_not_found(revision)
    return ref, resolve(repo.path, ref)


def commit(call: Call) -> dict[str, Any]:
    """POST commit/{rev}[?create_pr=1], newline-delimited JSON.

    With `create_pr` the commit becomes a pull request from its `parentCommit`. Otherwise exactly
    one of several commits with the same `parentCommit` wins; the others get 412.
    """
    repo, user = call.repo, call.writer
    ref, head = branch_ref(repo, call.param("rev"))
    header, operations = writing.parse(call.body, repo, call.hub.blobs)
    if call.flag("create_pr"):
        parent = resolve(repo.path, header.parent) if header.parent else head
        changes = writing.plan(repo.path, parent, operations)
        sha = writing.write(repo.path, parent, changes, header.message, user)
        pull = discussions.create(
            call, header.summary, header.description, pull_request=sha, base=ref, status="open"
        )
        url = f"{call.base}/{repo.web_path}/discussions/{pull['num']}"
        return {**_committed(call, sha), "pullRequestUrl": url}
    number = ref.removeprefix("refs/pr/") if ref.startswith("refs/pr/") else None
    if number is None or discussions.load(repo, number)["author"]["name"] != user.name:
        authorize(user, repo, Access.WRITE)
    with repo.lock:
        head = resolve(repo.path, ref)
        if header.parent and not head.startswith(header.parent):
            raise HubError(412, STALE)
        changes = writing.plan(repo.path, head, operations)
        sha = writing.write(repo.path, head, changes, header.message, user)
        move_ref(repo.path, ref, sha, head)
        if number is not None:
            discussions.add_commit(call, number, header.summary, sha)
    call.hub.webhooks.content_changed(repo, call.base, [(ref, head, sha)])
    return _committed(call, sha)


def _committed(call: Call, sha: str) -> dict[str, Any]:
    url = f"{call.base}/{call.repo.web_path}/commit/{sha}"
    return {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""}


def history(repo: Repo, commit: str, limit: int | None = None) -> list[dict[str, Any]]:
    """The commits reachable from `commit`, children before parents (dates have 1 s resolution)."""
    number = () if limit is None else (f"--max-count={limit}",)
    fields = "--format=%H%x00%an%x00%ct%x00%s%x00%b"
    log = git(repo.path, "log", "-z", "--topo-order", *number, fields, commit)
    values = log.decode(errors="replace").split("\0")
    commits = []
    for start in range(0, len(values) - 4, 5):
        sha, author, seconds, title, body = values[start : start + 5]
        commits.append(
            {
                "id": sha,
                "title": title,
                "message": body.strip(),
                "authors": [{"user": author}],
                "date": timestamp(int(seconds)),
            }
        )
    return commits


def list_commits(call: Call) -> Response:
    """GET commits/{rev}[?expand[]=formatted]"""
    commit = resolve(call.repo.path, call.param("rev"), call.stale)
    shown, headers = page(call, history(call.repo, commit), PAGE)
    if "formatted" in call.queries("expand"):
        for each in shown:
            each["formatted"] = {key: html.escape(each[key]) for key in ("title", "message")}
    return JSONResponse(shown, headers=headers)
