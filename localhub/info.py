"""What the Hub tells about a repository, most of it derived from the README's metadata."""

import json
import re
import zlib
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from localhub import cards
from localhub.files import timestamp
from localhub.git import git, read_blobs
from localhub.hub import Call
from localhub.repos import Repo
from localhub.tree import entries, resolve

_KNOWN = 1 << 14  # commits whose description is kept: a list shows thousands of repositories
_SOURCES = ("README.md", "config.json", "adapter_config.json")
_FROM_FILES = frozenset(
    ("cardData", "config", "library_name", "pipeline_tag", "baseModels", "tags")
)
_COMMITTER = re.compile(rb"^committer .*> (\d+)", re.MULTILINE)


def _strings(value: object) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str) and item]


def _json(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


@lru_cache(_KNOWN)
def last_modified(git_dir: Path, commit: str) -> str:
    """The date of a commit, read without a process unless git has packed it."""
    loose = git_dir / "objects" / commit[:2] / commit[2:]
    packed = not loose.exists()
    text = read_blobs(git_dir, [commit])[0] if packed else zlib.decompress(loose.read_bytes())
    found = _COMMITTER.search(text)
    assert found, f"{commit} is no commit"
    return timestamp(int(found[1]))


@lru_cache(_KNOWN)
def _described(git_dir: Path, commit: str) -> dict[str, Any]:
    """The part of the answer that the commit's files tell. Do not change it."""
    names = git(git_dir, "ls-tree", "-r", "-z", "--name-only", commit).decode().split("\0")
    sources = [name for name in _SOURCES if name in names]
    contents = read_blobs(git_dir, [f"{commit}:{name}" for name in sources]) if sources else []
    content = dict(zip(sources, contents, strict=True))
    try:
        card = cards.metadata(content.get("README.md", b"").decode(errors="replace"))
    except ValueError:
        card = {}  # pushed past the validation: the Hub shows such a card without metadata
    config, adapter = (_json(content.get(name, b"{}")) for name in _SOURCES[1:])
    shown: dict[str, Any] = {
        key: config[key] for key in ("architectures", "model_type") if key in config
    }
    if adapter:
        keys = ("base_model_name_or_path", "task_type", "peft_type")
        shown["peft"] = {key: adapter[key] for key in keys if key in adapter}
    library = card.get("library_name")
    if not isinstance(library, str):
        library = "peft" if adapter else "transformers" if "model_type" in config else None
    pipeline = card.get("pipeline_tag")
    bases = _strings(card.get("base_model"))
    relation = _relation(card, bool(adapter), bases, names)
    return {
        "cardData": card,
        "config": shown,
        "library_name": library,
        "pipeline_tag": pipeline if isinstance(pipeline, str) else None,
        "baseModels": {"relation": relation, "models": [{"id": base} for base in bases]}
        if bases
        else None,
        "tags": list(dict.fromkeys(_tags(card, library, shown, names, relation))),
    }


def _relation(card: dict[str, Any], adapter: bool, bases: list[str], names: list[str]) -> str:
    given = card.get("base_model_relation")
    if isinstance(given, str):
        return given
    if adapter:
        return "adapter"
    if len(bases) > 1:
        return "merge"
    return "quantized" if any(name.endswith(".gguf") for name in names) else "finetune"


def _tags(
    card: dict[str, Any],
    library: str | None,
    config: dict[str, Any],
    names: list[str],
    relation: str,
) -> Iterator[str]:
    yield from _strings(library)
    yield from (
        form for form in ("safetensors", "gguf") if any(n.endswith(f".{form}") for n in names)
    )
    for key in ("model_type", "pipeline_tag"):
        yield from _strings(config.get(key) or card.get(key))
    yield from _strings(card.get("tags"))
    yield from _strings(card.get("language"))
    yield from (f"dataset:{name}" for name in _strings(card.get("datasets")))
    for base in _strings(card.get("base_model")):
        yield f"base_model:{base}"
        yield f"base_model:{relation}:{base}"
    yield from (f"license:{name}" for name in _strings(card.get("license")))
    yield "region:us"


def describe(
    repo: Repo, commit: str, keys: Collection[str] | None = None, *, blobs: bool = False
) -> dict[str, Any]:
    """What is known about a revision of a repository, under the Hub's names.

    With `keys` only those and the id; what they do not need is not read.
    """
    settings = repo.settings
    described: dict[str, Any] = {
        "_id": settings["_id"],
        "id": repo.id,
        "author": repo.namespace,
        "sha": commit,
        "createdAt": settings["createdAt"],
        "private": settings["private"],
        "gated": settings["gated"],
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        **({"sdk": settings["sdk"]} if repo.kind == "space" else {}),
        **({"modelId": repo.id} if repo.kind == "model" else {}),
    }
    if keys is None or "lastModified" in keys:
        described["lastModified"] = last_modified(repo.path, commit)
    if keys is None or not _FROM_FILES.isdisjoint(keys):
        described |= _described(repo.path, commit)
    if keys is None or "siblings" in keys:
        described["siblings"] = _siblings(repo, commit, blobs)
    if keys is None:
        return described
    return {key: value for key, value in described.items() if key in {"_id", "id", *keys}}


def _siblings(repo: Repo, commit: str, blobs: bool) -> list[dict[str, Any]]:
    rows = []
    for entry in entries(repo.path, commit).values():
        if entry.folder:
            continue
        row: dict[str, Any] = {"rfilename": entry.path}
        if blobs:
            row |= {"size": entry.size, "blobId": entry.oid}
        if blobs and entry.lfs:
            lfs = entry.lfs
            row["lfs"] = {"sha256": lfs.sha256, "size": lfs.size, "pointerSize": lfs.pointer_size}
        rows.append(row)
    return rows


def info(call: Call) -> dict[str, Any]:
    """GET /api/{T}/{id}[/revision/{rev}]?blobs=&expand="""
    revision = call.param("rev") if "rev" in call.request.path_params else "main"
    commit = resolve(call.repo.path, revision, call.stale)
    return describe(call.repo, commit, call.queries("expand") or None, blobs=call.flag("blobs"))
