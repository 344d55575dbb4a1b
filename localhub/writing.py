"""Turning the operations of a commit request into a git commit, in one `git fast-import`."""

import base64
import binascii
import fnmatch
import json
import re
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localhub.auth import User
from localhub.blobs import BlobStore
from localhub.errors import HubError
from localhub.git import EMAIL, NAME, git
from localhub.repos import Repo
from localhub.tree import entries, pointer, read_file

ATTRIBUTES = ".gitattributes"
LFS_SUFFIXES = re.findall(
    r"\w+",
    "7z arrow bin bz2 ckpt ftz gguf gz h5 joblib mlmodel model msgpack npy npz onnx ot parquet pb "
    "pickle pkl pt pth rar safetensors tar tflite tgz wasm xz zip zst",
)

_BAD_PART = re.compile(
    r"\.{0,2}|\.git[ .]*|git~\d+|.*[\x00-\x1f\x7f\\\ud800-\udfff].*", re.IGNORECASE
)


def default_attributes() -> bytes:
    return "".join(
        f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES
    ).encode()


def lfs_patterns(attributes: bytes) -> list[str]:
    """The patterns of a `.gitattributes` file that go to LFS."""
    lines = (line.split() for line in attributes.decode(errors="replace").splitlines())
    return [parts[0].replace("[[:space:]]", " ") for parts in lines if "filter=lfs" in parts[1:]]


def is_lfs(path: str, patterns: list[str]) -> bool:
    """Patterns with a slash match the whole path, others the file's name, as in git."""
    name = path.rsplit("/", 1)[-1]
    return any(fnmatch.fnmatchcase(path if "/" in p else name, p) for p in patterns)


def check_path(path: object) -> str:
    """A path inside a repository. Raises `HubError` 400 for one that leaves it or names git's."""
    if not isinstance(path, str) or any(_BAD_PART.fullmatch(part) for part in path.split("/")):
        raise HubError(400, f"Invalid path in the repository: {path!r}")
    return path


@dataclass(frozen=True)
class Change:
    """One path's new content; None deletes the file or folder."""

    path: str
    content: bytes | None


@dataclass(frozen=True)
class Header:
    summary: str
    description: str
    parent: str | None

    @property
    def message(self) -> str:
        text = f"{self.summary}\n\n{self.description}".strip() + "\n"
        return text.replace("\0", "")


def parse(body: bytes, repo: Repo, blobs: BlobStore) -> tuple[Header, list[tuple[str, Change]]]:
    """The header and the `(operation, change)` pairs of an NDJSON commit request.

    Raises `HubError` 400 naming the line for a malformed one, and for a large file whose content
    has not been uploaded.
    """
    header = None
    changes = []
    for number, line in enumerate(body.splitlines(), 1):
        if not line:
            continue
        try:
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                header = Header(
                    str(value["summary"]),
                    str(value.get("description") or ""),
                    value.get("parentCommit"),
                )
            else:
                changes.append((key, _change(key, value, repo, blobs)))
        except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
            raise HubError(400, f"Line {number} of the commit is malformed: {error!r}") from error
    if header is None or not header.summary:
        raise HubError(400, "The commit has no header with a summary")
    return header, changes


def _change(key: str, value: dict[str, Any], repo: Repo, blobs: BlobStore) -> Change:
    path = check_path(value["path"].rstrip("/") if key == "deletedFolder" else value["path"])
    match key:
        case "file":
            content = value["content"]
            if value.get("encoding") == "base64":
                return Change(path, base64.b64decode(content, validate=True))
            return Change(path, content.encode())
        case "lfsFile":
            blob = blobs.path(value["oid"])
            if not repo.holds(blob.name):  # the sentence of the Hub (huggingface_hub#3829)
                raise HubError(
                    400,
                    "Your push was rejected because an LFS pointer pointed to a file that does "
                    f"not exist. Offending file: - {path}",
                )
            return Change(path, pointer(blob.name, blob.stat().st_size))
        case "deletedFile" | "deletedFolder":
            return Change(path, None)
        case _:
            raise ValueError(f"unknown operation {key!r}")


def plan(git_dir: Path, head: str, operations: list[tuple[str, Change]]) -> list[Change]:
    """The changes to write on top of `head`: deletions must hit something, and large files that
    no pattern of `.gitattributes` covers are added to it, so that git-lfs fetches them in a clone.
    """
    known = entries(git_dir, head)
    changes = [change for _, change in operations]
    for key, change in operations:
        entry = known.get(change.path)
        if change.content is None and (not entry or entry.folder != (key == "deletedFolder")):
            raise HubError(
                404, f"A file with this name doesn't exist: {change.path}", "EntryNotFound"
            )
    given = [c.content for c in changes if c.path == ATTRIBUTES]
    attributes = (given[-1] if given else read_file(git_dir, head, ATTRIBUTES)) or b""
    patterns = lfs_patterns(attributes)
    missing = [
        change.path
        for key, change in operations
        if key == "lfsFile" and not is_lfs(change.path, patterns)
    ]
    if missing:
        lines = [
            f"{p.replace(' ', '[[:space:]]')} filter=lfs diff=lfs merge=lfs -text\n"
            for p in missing
        ]
        ending = b"" if not attributes or attributes.endswith(b"\n") else b"\n"
        changes.append(Change(ATTRIBUTES, attributes + ending + "".join(lines).encode()))
    return changes


def write(
    git_dir: Path, parent: str | None, changes: list[Change], message: str, user: User | None
) -> str:
    """Create a commit on `parent` that no branch points to yet, and return its sha."""
    name = user.name if user else NAME
    staging = f"refs/localhub/{uuid.uuid4().hex}"
    text = message.encode(errors="replace")
    stream = [
        f"commit {staging}\nmark :1\n".encode(),
        f"committer {name} <{EMAIL}> {int(time.time())} +0000\n".encode(),
        b"data %d\n%s\n" % (len(text), text),
    ]
    if parent is not None:
        stream.append(f"from {parent}\n".encode())
    for change in changes:
        path = json.dumps(change.path, ensure_ascii=False).encode()
        if change.content is None:
            stream.append(b"D %s\n" % path)
        else:
            stream.append(b"M 100644 inline %s\n" % path)
            stream.append(b"data %d\n%s\n" % (len(change.content), change.content))
    stream.append(b"get-mark :1\ndone\n")
    sha = git(git_dir, "fast-import", "--quiet", "--done", stdin=b"".join(stream)).decode().strip()
    git(git_dir, "update-ref", "-d", staging)
    return sha
