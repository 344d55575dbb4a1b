"""What the showcase asks of the Hub: data sets and Spaces in one commit, and Collections."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import (
    Collection,
    CommitOperationAdd,
    CommitOperationDelete,
    hf_hub_download,
)
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from bot.hub.client import Hub
from bot.hub.errors import translated

log = logging.getLogger("portllm")

README = "README.md"
MOST_CHANGES = 300  # of Collections at once; the rest is done the next time
Kind = Literal["dataset", "space"]


@dataclass(frozen=True)
class Standing:
    """A repo as it stands: its commit, the hash of each file, and its card."""

    repo: str
    kind: Kind
    sha: str
    files: Mapping[str, str]
    card: str


@dataclass(frozen=True)
class Item:
    """A model in a Collection. `note` begins with one of `Shelf.ours`."""

    repo: str
    note: str


@dataclass(frozen=True)
class Shelf:
    """What a Collection is to hold. Whose note does not begin with one of `ours` is its owner's.

    `description` changes with whatever else does: where it is on the Hub, all of it is.
    """

    title: str
    description: str
    items: Sequence[Item]
    ours: tuple[str, ...]


def private_models(hub: Hub) -> frozenset[str]:
    """All private models that this account may see: they are its own, or its organisations'."""
    with translated("the account's models"):
        said = hub.api.whoami()
        return frozenset(
            model.id
            for namespace in (said["name"], *(org["name"] for org in said.get("orgs", [])))
            for model in hub.api.list_models(author=namespace, expand=["private"])
            if model.private
        )


def standing(hub: Hub, repo: str, kind: Kind) -> Standing:
    """`repo` as it stands; it is made, public, where it is not there yet."""
    with translated(f"{kind} {repo}"):
        if not hub.api.repo_exists(repo, repo_type=kind):
            sdk = "static" if kind == "space" else None
            hub.api.create_repo(repo, repo_type=kind, space_sdk=sdk, private=False, exist_ok=True)
        sha = hub.api.repo_info(repo, repo_type=kind).sha or ""
        tree = hub.api.list_repo_tree(repo, repo_type=kind, revision=sha, recursive=True)
        files = {
            entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
            for entry in tree
            if isinstance(entry, RepoFile)
        }
        card = ""
        if README in files:
            file = hf_hub_download(
                repo, README, repo_type=kind, revision=sha, endpoint=hub.endpoint, token=hub.token
            )
            card = Path(file).read_text(encoding="utf-8", errors="surrogateescape")
    return Standing(repo, kind, sha, files, card)


def push(hub: Hub, before: Standing, folder: Path, title: str, ours: str | None = None) -> int:
    """One commit of what is other in `folder`. Returns how many files that are: 0, no commit.

    Args:
        ours: the folder of the repo whose other files go.
    """
    files = {
        path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()
    }
    changed = [name for name, path in files.items() if not _is(path, before.files.get(name))]
    gone = [name for name in before.files if ours and name.startswith(ours) and name not in files]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=files[name])
        for name in sorted(changed)
    ]
    operations += [CommitOperationDelete(path_in_repo=name) for name in gone]
    if operations:
        with translated(f"{before.kind} {before.repo}"):
            hub.api.create_commit(
                before.repo,
                operations,
                commit_message=title,
                repo_type=before.kind,
                parent_commit=before.sha,
            )
    return len(operations)


def _is(path: Path, known: str | None) -> bool:
    """Whether the file has this hash: the sha256 of a large one, else that of its git blob."""
    if known is None:
        return False
    if len(known) == 40:
        return git_hash(path.read_bytes()) == known
    with path.open("rb") as file:
        return sha_fileobj(file).hex() == known


def arrange(hub: Hub, namespace: str, shelves: Sequence[Shelf]) -> Iterator[tuple[str, str, int]]:
    """Let each of `shelves` be a Collection of `namespace`: its title, address, and changes made.

    Done twice, or by two at once, it is done once: a title is there once. What is as it was costs
    no request.
    """
    with translated(f"the Collections of {namespace}"):
        known = {found.title: found for found in hub.api.list_collections(owner=namespace)}
    left = MOST_CHANGES
    for shelf in shelves:
        there = known.get(shelf.title)
        if there.description == shelf.description if there else not shelf.items:
            continue
        with translated(f"the Collection {shelf.title}"):
            if there is None:
                there = hub.api.create_collection(shelf.title, namespace=namespace, exists_ok=True)
            else:
                there = hub.api.get_collection(there.slug)
            made = _rearrange(hub, there, shelf, left)
            left -= made
            if left > 0:  # all of it was done
                hub.api.update_collection_metadata(there.slug, description=shelf.description)
        yield shelf.title, there.url, made
        if left <= 0:
            log.info("The other changes of Collections come the next time.")
            return


def _rearrange(hub: Hub, there: Collection, shelf: Shelf, most: int) -> int:
    """Change what is other than in `shelf`, `most` items of it. Returns how many were."""
    held = {item.item_id: item for item in there.items if item.item_type == "model"}
    wanted = {item.repo: item.note for item in shelf.items}
    made = 0
    for repo, item in held.items():
        is_ours = (item.note or "").startswith(shelf.ours)
        if made == most or not is_ours or item.note == wanted.get(repo):
            continue
        if repo in wanted:
            id, note = item.item_object_id, wanted[repo]
            hub.api.update_collection_item(there.slug, id, note=note)
        else:
            hub.api.delete_collection_item(there.slug, item.item_object_id, missing_ok=True)
        made += 1
    for repo, note in wanted.items():
        if made < most and repo not in held:
            made += _add(hub, there.slug, repo, note)
    return made


def _add(hub: Hub, slug: str, repo: str, note: str) -> bool:
    """Whether it was added: a repo that is gone, or that the Hub does not show, is not."""
    try:
        hub.api.add_collection_item(slug, repo, "model", note=note, exists_ok=True)
    except HfHubHTTPError as error:
        if error.response.status_code != 404:
            raise
        return False
    return True
