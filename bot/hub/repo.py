"""A repo at one commit, read by byte ranges."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from huggingface_hub import hf_hub_url
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

from bot.hub.client import Hub
from bot.hub.errors import translated
from porting import FileEntry
from porting.errors import HubError, Refused


class HubRepo:
    """A repo at one commit, as a `porting.Source`: reads byte ranges, downloads nothing whole."""

    def __init__(self, hub: Hub, repo: str, sha: str) -> None:
        self.hub, self.repo, self.sha = hub, repo, sha
        self.name = f"{repo}@{sha[:7]}"

    @cached_property
    def _files(self) -> dict[str, FileEntry]:
        with translated(self.name):
            tree = list(self.hub.api.list_repo_tree(self.repo, recursive=True, revision=self.sha))
        return {
            entry.path: FileEntry(entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
            for entry in tree
            if isinstance(entry, RepoFile)
        }

    def files(self) -> Mapping[str, FileEntry]:
        return self._files

    def fetch(self, files: Mapping[str, FileEntry]) -> Path:
        """The folder that `files` of this commit lie in, downloaded where they were not yet."""
        return self.hub.snapshot(self.repo, self.sha, files)

    def read(self, file: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of `file`. Refused where the file is absent or shorter."""
        what = f"{self.name}: {file}"
        if file not in self._files:
            raise Refused(f"{what} does not exist.")
        if not 0 <= start <= end <= self._files[file].size:
            raise Refused(f"{what} has {self._files[file].size} bytes, not {end}.")
        if start == end:
            return b""
        url = hf_hub_url(self.repo, file, revision=self.sha, endpoint=self.hub.endpoint)
        headers = build_hf_headers(token=self.hub.token)
        headers["Range"] = f"bytes={start}-{end - 1}"
        headers["Accept-Encoding"] = "identity"
        with translated(what):
            response = http_backoff("GET", url, headers=headers, follow_redirects=True)
            hf_raise_for_status(response)
        content: bytes = response.content
        if response.status_code == 200:
            content = content[start:end]
        if len(content) != end - start:
            raise HubError(f"{what}: {len(content)} bytes came instead of {end - start}.")
        self.hub.traffic.read += len(content)
        return content


class Nothing(HubRepo):
    """A repo that is not there."""

    def __init__(self, hub: Hub, repo: str) -> None:
        super().__init__(hub, repo, "")

    @property
    def _files(self) -> dict[str, FileEntry]:
        return {}
