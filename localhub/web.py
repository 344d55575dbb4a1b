"""The pages a browser sees. Nothing on them runs: no scripts, and a policy that forbids any."""

import base64
import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute

from localhub import cards, discussions
from localhub.auth import Access
from localhub.commits import history
from localhub.errors import entry_not_found
from localhub.git import git
from localhub.hub import Call, route, web
from localhub.info import describe
from localhub.listing import visible
from localhub.moves import list_refs, main_head
from localhub.repos import KINDS, Repo
from localhub.tree import entries, read_file, resolve

_MAX_TEXT = 1 << 20  # characters of a file or diff that are shown

_ENVIRONMENT = Environment(
    loader=PackageLoader("localhub"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
_ENVIRONMENT.filters["segment"] = lambda text: quote(text, safe="")
_CSS = (Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
_CSS_HASH = base64.b64encode(hashlib.sha256(_CSS.encode()).digest()).decode()
_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_CSS_HASH}'; img-src 'self' data: https:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def _page(template: str, **values: Any) -> Response:
    text = _ENVIRONMENT.get_template(f"{template}.html.j2").render(css=Markup(_CSS), **values)
    return HTMLResponse(text, headers=_HEADERS)


def _index(call: Call) -> Response:
    keys = ("private", "tags", "lastModified")
    lists = {
        plural: [
            {**describe(repo, main_head(repo.path), keys), "web_path": repo.web_path}
            for repo in visible(call, kind)
        ]
        for kind, plural in KINDS.items()
    }
    return _page("index", lists=lists)


def _readme(repo: Repo, commit: str) -> str:
    text = (read_file(repo.path, commit, "README.md") or b"").decode(errors="replace")
    return cards.render(text, f"/{repo.web_path}")


def _repo(call: Call) -> Response:
    repo = call.repo
    commit = resolve(repo.path, "refs/heads/main")
    return _page(
        "repo",
        repo=repo,
        base=call.base,
        described=describe(repo, commit),
        card=_readme(repo, commit),
        files=[entry for entry in entries(repo.path, commit).values() if not entry.folder],
        commits=history(repo, commit, limit=20),
        refs={
            ref: sha for ref, sha in list_refs(repo.path).items() if not ref.startswith("refs/pr/")
        },
    )


def _tree(call: Call) -> Response:
    rev = call.param("rev")
    folder = call.param("path").strip("/") if "path" in call.request.path_params else ""
    commit = resolve(call.repo.path, rev)
    prefix = f"{folder}/" if folder else ""
    shown = [
        entry
        for path, entry in entries(call.repo.path, commit).items()
        if path.startswith(prefix) and "/" not in path[len(prefix) :]
    ]
    if folder and not shown:
        raise entry_not_found(folder, commit)
    return _page("tree", repo=call.repo, rev=rev, folder=folder, entries=shown)


def _blob(call: Call) -> Response:
    rev, path = call.param("rev"), call.param("path")
    commit = resolve(call.repo.path, rev)
    entry = entries(call.repo.path, commit).get(path)
    if entry is None or entry.folder:
        raise entry_not_found(path, commit)
    content = read_file(call.repo.path, commit, path)
    shown = content is not None and b"\0" not in content
    text = content.decode(errors="replace")[:_MAX_TEXT] if content is not None and shown else None
    return _page("blob", repo=call.repo, rev=rev, entry=entry, text=text)


def _commit(call: Call) -> Response:
    sha = resolve(call.repo.path, call.param("rev"))
    shown = git(call.repo.path, "show", "--first-parent", "-m", "--format=", sha)
    changes = shown.decode(errors="replace")[:_MAX_TEXT]
    return _page("commit", repo=call.repo, commit=history(call.repo, sha, 1)[0], changes=changes)


def _discussions(call: Call) -> Response:
    return _page("discussions", repo=call.repo, discussions=discussions.all_of(call.repo))


def _discussion(call: Call) -> Response:
    discussion = discussions.load(call.repo, call.param("num"))
    pull = discussion["isPullRequest"]
    changes = discussions.diff(call.repo, discussion)[:_MAX_TEXT] if pull else ""
    return _page("discussion", repo=call.repo, discussion=discussion, changes=changes)


def pages() -> list[BaseRoute]:
    """The routes of all pages; the last of them catch every `/{ns}/{name}`."""
    return [
        route("/", _index, "GET"),
        *web("/tree/{rev}", _tree, "GET", Access.SEE),
        *web("/tree/{rev}/{path:path}", _tree, "GET", Access.SEE),
        *web("/blob/{rev}/{path:path}", _blob, "GET", Access.CONTENT),
        *web("/commit/{rev}", _commit, "GET", Access.CONTENT),
        *web("/discussions", _discussions, "GET", Access.SEE),
        *web("/discussions/{num}", _discussion, "GET", Access.CONTENT),
        *web("", _repo, "GET", Access.SEE),
    ]
