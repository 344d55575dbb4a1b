"""What the Hub tells about a repository, most of it derived from the README's metadata."""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from localhub import cards
from localhub.files import timestamp
from localhub.git import git
from localhub.hub import Call
from localhub.repos import Repo
from localhub.tree import entries, read_file, resolve


def _strings(value: object) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str) and item]


def _json(git_dir: Path, commit: str, path: str) -> dict[str, Any]:
    try:
        value = json.loads(read_file(git_dir, commit, path) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


@lru_cache(maxsize=1024)
def _described(git_dir: Path, commit: str) -> dict[str, Any]:
    """The part of the answer that depends on the commit alone. Do not change it."""
    try:
        text = (read_file(git_dir, commit, "README.md") or b"").decode(errors="replace")
        card = cards.metadata(text)
    except ValueError:
        card = {}  # pushed past the validation: the Hub shows such a card without metadata
    config, adapter = (_json(git_dir, commit, f) for f in ("config.json", "adapter_config.json"))
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
    names = list(entries(git_dir, commit))
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
        "lastModified": timestamp(int(git(git_dir, "log", "-1", "--format=%ct", commit))),
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


def describe(repo: Repo, commit: str, *, blobs: bool = False) -> dict[str, Any]:
    """Everything known about a revision of a repository, under the Hub's names."""
    settings = repo.settings
    return {
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
        **_described(repo.path, commit),
        **({"sdk": settings["sdk"]} if repo.kind == "space" else {}),
        **({"modelId": repo.id} if repo.kind == "model" else {}),
        "siblings": _siblings(repo, commit, blobs),
    }


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


def only(described: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """The fields asked for by `expand`; the id is always there."""
    return {key: value for key, value in described.items() if key in {"_id", "id", *keys}}


def info(call: Call) -> dict[str, Any]:
    """GET /api/{T}/{id}[/revision/{rev}]?blobs=&expand="""
    revision = call.param("rev") if "rev" in call.request.path_params else "main"
    commit = resolve(call.repo.path, revision)
    described = describe(call.repo, commit, blobs=call.flag("blobs"))
    expand = call.queries("expand")
    return only(described, expand) if expand else described
