"""Discussions and pull requests: one JSON file each, beside the repository's git objects.

A pull request N is the ref `refs/pr/N`; what it would change is the diff from its merge base.
"""

import secrets
from typing import Any

from localhub import cards
from localhub.auth import Access, User, authorize
from localhub.errors import HubError
from localhub.files import now, read_json, write_json
from localhub.git import git, run
from localhub.hub import Call
from localhub.moves import move_ref
from localhub.paging import number
from localhub.repos import Repo
from localhub.tree import resolve

Discussion = dict[str, Any]
PAGE = 50
_WAY_OUT = "update the pull request to the branch's current version and merge again"


def _path(repo: Repo, num: str) -> Any:
    return repo.state / "discussions" / f"{num}.json"


def load(repo: Repo, num: str) -> Discussion:
    """The stored discussion. Raises `HubError` 404."""
    found: Discussion | None = None
    if num.isascii() and num.isdigit():
        found = read_json(_path(repo, num), None)
    if found is None:
        raise HubError(404, f"There is no discussion {num} in {repo.id}")
    return found


def _save(repo: Repo, discussion: Discussion) -> None:
    write_json(_path(repo, str(discussion["num"])), discussion)


def _event(user: User, kind: str, data: dict[str, Any]) -> dict[str, Any]:
    author = {"name": user.name, "type": "user"}
    event_id = secrets.token_hex(12)
    return {"id": event_id, "type": kind, "createdAt": now(), "author": author, "data": data}


def _comment(call: Call, text: str) -> dict[str, Any]:
    shown = cards.render(text, f"/{call.repo.web_path}")
    author = {"name": call.writer.name}
    latest = {"raw": text, "html": shown, "updatedAt": now(), "author": author}
    data = {"edited": False, "hidden": False, "latest": latest, "history": []}
    return _event(call.writer, "comment", data)


def _numbers(repo: Repo) -> list[int]:
    return [int(path.stem) for path in (repo.state / "discussions").glob("[0-9]*.json")]


def all_of(repo: Repo) -> list[Discussion]:
    """Every discussion of the repository, newest first."""
    return [load(repo, str(num)) for num in sorted(_numbers(repo), reverse=True)]


def create(
    call: Call,
    title: str,
    description: str,
    *,
    pull_request: str | None,
    base: str = "refs/heads/main",
    status: str,
) -> Discussion:
    """Open a discussion, or with the sha of its commit a pull request into `base`."""
    repo, user = call.repo, call.writer
    if not title.strip():
        raise HubError(400, "A discussion needs a title")
    with repo.lock:
        num = max(_numbers(repo), default=0) + 1
        discussion: Discussion = {
            "num": num,
            "title": title.strip(),
            "status": status,
            "author": {"name": user.name, "type": "user"},
            "createdAt": now(),
            "isPullRequest": pull_request is not None,
            "repo": {"name": repo.id, "type": repo.kind},
            "events": [_comment(call, description)] if description else [],
        }
        if pull_request is not None:
            discussion["changes"] = {"base": base}
            if status == "open":
                data = {"subject": title, "oid": pull_request}
                discussion["events"].append(_event(user, "commit", data))
            move_ref(repo.path, f"refs/pr/{num}", pull_request, None)
        _save(repo, discussion)
    call.hub.webhooks.discussed(repo, call.base, discussion, "create")
    if pull_request is not None:
        moved = (f"refs/pr/{num}", None, pull_request)
        call.hub.webhooks.content_changed(repo, call.base, [moved])
    return discussion


def add_commit(call: Call, num: str, subject: str, sha: str) -> None:
    """Note a commit pushed to a pull request. The caller holds the repository's lock."""
    discussion = load(call.repo, num)
    discussion["events"].append(_event(call.writer, "commit", {"subject": subject, "oid": sha}))
    _save(call.repo, discussion)


def post(call: Call) -> Discussion:
    """POST discussions `{title, description, pullRequest}`; such a pull request starts as draft."""
    body = call.json()
    pull = bool(body.get("pullRequest"))
    start = resolve(call.repo.path, "refs/heads/main") if pull else None
    description = str(body.get("description") or "")
    status = "draft" if pull else "open"
    return create(call, call.field("title"), description, pull_request=start, status=status)


def list_all(call: Call) -> dict[str, Any]:
    """GET discussions?type=&status=&author=&p= (closed includes merged, open includes draft)"""
    kind, status, author = call.query("type"), call.query("status"), call.query("author")
    shown = [
        each
        for each in all_of(call.repo)[call.stale :]
        if (kind in ("", "all") or (kind == "pull_request") == each["isPullRequest"])
        and (status in ("", "all") or (status == "open") == (each["status"] in ("open", "draft")))
        and (not author or each["author"]["name"] == author)
    ]
    start = number(call, "p", 0) * PAGE
    part = [
        {key: value for key, value in each.items() if key != "events"}
        for each in shown[start : start + PAGE]
    ]
    return {"discussions": part, "count": len(shown), "start": start}


def diff(repo: Repo, discussion: Discussion) -> str:
    """What a pull request changes, as a git diff."""
    heads = [discussion["changes"]["base"], f"refs/pr/{discussion['num']}"]
    base = git(repo.path, "merge-base", *heads).decode().strip()
    return git(repo.path, "diff", base, heads[1]).decode(errors="replace")


def _merged_tree(repo: Repo, head: str, num: str) -> tuple[str, list[str]]:
    """The tree of a merge into `head`, and the files in conflict."""
    args = (
        "merge-tree",
        "--write-tree",
        "--name-only",
        "--no-messages",
        "-z",
        head,
        f"refs/pr/{num}",
    )
    done = run(repo.path, *args)
    if done.returncode not in (0, 1):
        raise HubError(409, f"The pull request cannot be merged: {_WAY_OUT}")
    tree, *conflicts = done.stdout.decode().rstrip("\0").split("\0")
    return tree.strip(), conflicts


def details(call: Call) -> Discussion:
    """GET discussions/{N}[?diff=1]"""
    discussion = load(call.repo, call.param("num"))
    if discussion["isPullRequest"]:
        conflicts: list[str] = []
        if discussion["status"] in ("open", "draft"):
            head = resolve(call.repo.path, discussion["changes"]["base"])
            conflicts = _merged_tree(call.repo, head, call.param("num"))[1]
        discussion["filesWithConflicts"] = conflicts
        if call.flag("diff"):
            discussion["diff"] = diff(call.repo, discussion)
    return discussion


def comment(call: Call) -> dict[str, Any]:
    """POST discussions/{N}/comment `{comment}`"""
    event = _comment(call, call.field("comment"))
    _append(call, event)
    return {"newMessage": event}


def edit_comment(call: Call) -> dict[str, Any]:
    """POST discussions/{N}/comment/{id}/edit `{content}`, by who wrote it"""
    text = call.field("content")
    with call.repo.lock:
        discussion = load(call.repo, call.param("num"))
        comments = [event for event in discussion["events"] if event["type"] == "comment"]
        event = next((each for each in comments if each["id"] == call.param("id")), None)
        if event is None:
            raise HubError(404, f"There is no comment {call.param('id')} in this discussion")
        if event["author"]["name"] != call.writer.name:
            raise HubError(403, "A comment can be edited by its author only")
        data = event["data"]
        data["history"].append(data["latest"])
        data |= {"edited": True, "latest": _comment(call, text)["data"]["latest"]}
        _save(call.repo, discussion)
    call.hub.webhooks.commented(call.repo, call.base, discussion, event, "update")
    return {"updatedComment": event}


def _append(call: Call, *events: dict[str, Any], **changes: Any) -> Discussion:
    with call.repo.lock:
        discussion = load(call.repo, call.param("num"))
        discussion["events"].extend(events)
        discussion.update(changes)
        _save(call.repo, discussion)
    for event in events:
        if event["type"] == "comment":
            call.hub.webhooks.commented(call.repo, call.base, discussion, event, "create")
    if changes:
        call.hub.webhooks.discussed(call.repo, call.base, discussion, "update")
    return discussion


def _check_owner(call: Call) -> Discussion:
    """The discussion, when the user may change it: its author and the repository's owners."""
    discussion = load(call.repo, call.param("num"))
    if discussion["author"]["name"] != call.writer.name:
        authorize(call.user, call.repo, Access.WRITE)
    return discussion


def _remark(call: Call) -> list[dict[str, Any]]:
    text = call.json().get("comment")
    return [_comment(call, str(text))] if text else []


def change_status(call: Call) -> dict[str, Any]:
    """POST discussions/{N}/status `{status, comment?}`"""
    status = call.field("status")
    if status not in ("open", "closed") or _check_owner(call)["status"] == "merged":
        raise HubError(400, "A discussion can become open or closed, unless it is merged")
    event = _event(call.writer, "status-change", {"status": status})
    _append(call, *_remark(call), event, status=status)
    return {"newStatus": event}


def change_title(call: Call) -> dict[str, Any]:
    """POST discussions/{N}/title `{title}`"""
    title = call.field("title").strip()
    data = {"from": _check_owner(call)["title"], "to": title}
    event = _event(call.writer, "title-change", data)
    _append(call, event, title=title)
    return {"newTitle": event}


def merge(call: Call) -> dict[str, Any]:
    """POST discussions/{N}/merge `{comment?}`: one commit on the base with the merged tree.

    Raises `HubError` 409 when both sides changed the same file.
    """
    repo, num, user = call.repo, call.param("num"), call.writer
    with repo.lock:
        discussion = load(repo, num)
        if not discussion["isPullRequest"] or discussion["status"] != "open":
            raise HubError(400, f"Only an open pull request can be merged: {num} is not one")
        ref = discussion["changes"]["base"]
        head = resolve(repo.path, ref)
        tree, conflicts = _merged_tree(repo, head, num)
        if conflicts:
            raise HubError(409, f"Merge conflict in {', '.join(conflicts)}: {_WAY_OUT}")
        message = f"{discussion['title']} (#{num})".encode()
        identity = {"GIT_AUTHOR_NAME": user.name, "GIT_COMMITTER_NAME": user.name}
        args = ("commit-tree", tree, "-p", head, "-F", "-")
        sha = git(repo.path, *args, stdin=message, env=identity).decode().strip()
        move_ref(repo.path, ref, sha, head)
        event = _event(user, "status-change", {"status": "merged"})
        changes = {**discussion["changes"], "mergeCommitId": sha}
        _append(call, *_remark(call), event, status="merged", changes=changes)
    call.hub.webhooks.content_changed(repo, call.base, [(ref, head, sha)])
    return {"newStatus": event, "mergeCommitId": sha}
