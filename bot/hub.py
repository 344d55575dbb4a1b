"""The one module that talks to the Hub.

Refs become commit shas here, once; errors become `Refused` (asking again won't help) or `HubError`
(it may). Reads of the state of a repo never come from a cache, so that a Hub that is down is not
taken for a base that has not moved.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileDuplicationError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info
from huggingface_hub.utils import (
    build_hf_headers,
    disable_progress_bars,
    hf_raise_for_status,
    http_backoff,
    httpx,
)
from huggingface_hub.utils._runtime import is_xet_available

from bot.content import Content, Copied, Traffic, Uploaded
from judging.spec import HubFile
from judging.task import LARGEST
from porting import FileEntry, Folder
from porting.errors import HubError, Refused

disable_progress_bars()  # steps are shown by who runs them

MOST_PATHS = 500  # that the Hub tells of in one answer


class StaleParent(HubError):
    """Somebody else committed first; look again and plan anew."""


class NotCopied(HubError):
    """The Hub can't copy a file between these repos; its bytes have to be sent. Nothing changed."""


class Forgotten(HubError):
    """A file that was uploaded, but never committed, is no longer on the Hub. Nothing changed."""


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn the client's errors into ours; `what` names the repo and revision they are about."""
    try:
        yield
    except GatedRepoError as error:
        raise Refused(f"{what} is gated: accept its terms on the Hub with this account.") from error
    except RepositoryNotFoundError as error:
        raise Refused(f"{what} does not exist, or this token may not see it.") from error
    except RevisionNotFoundError as error:
        raise Refused(
            f"{what} does not exist: the repo has no such revision (any more)."
        ) from error
    except LocalEntryNotFoundError as error:
        raise HubError(f"{what} could not be fetched: the Hub did not answer.") from error
    except EntryNotFoundError as error:
        raise Refused(f"{what}: the file does not exist.") from error
    except FileDuplicationError as error:
        raise NotCopied(f"The Hub does not copy to {what}: {_first_line(error)}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if error.response.url.path.endswith("/lfs-files/duplicate"):
            raise NotCopied(f"The Hub does not copy to {what} (HTTP {status}).") from error
        if status == 412:
            raise StaleParent(f"{what} was changed by somebody else meanwhile.") from error
        if status == 400 and "pointed to a file that does not exist" in str(error):
            raise Forgotten(f"The Hub no longer has a file that was sent to {what}.") from error
        if status in (400, 401, 403, 409, 413, 422):
            raise Refused(
                f"The Hub refuses {what} (HTTP {status}): {_first_line(error)}"
            ) from error
        raise HubError(f"The Hub failed on {what} (HTTP {status}): {_first_line(error)}") from error
    except (httpx.HTTPError, ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
        # No answer, half of one, something that is no answer of a Hub, or hf_xet giving up.
        raise HubError(f"The Hub can't be reached for {what}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@dataclass(frozen=True)
class Facts:
    """What a repo says of itself, at one commit."""

    sha: str
    private: bool
    gated: bool
    license: str | None
    pipeline_tag: str | None


@dataclass(frozen=True)
class Published:
    sha: str
    url: str


class Hub:
    """A Hub at `endpoint` (HF_ENDPOINT if not given), seen with `token` (the user's own if not)."""

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        self.endpoint = endpoint or constants.ENDPOINT
        self.token = token or get_token() or False
        self.api = HfApi(endpoint=self.endpoint, token=self.token)
        self.traffic = Traffic()

    def head(self, repo: str, revision: str = "main") -> str:
        """The commit sha that `revision` stands for now."""
        return self.facts(repo, revision).sha

    def facts(self, repo: str, revision: str = "main") -> Facts:
        with translated(f"{repo}@{revision}"):
            info = self.api.model_info(repo, revision=revision)
        if info.sha is None:
            raise HubError(f"The Hub names no commit for {repo}@{revision}.")
        license = info.card_data.get("license") if info.card_data else None
        return Facts(
            sha=info.sha,
            private=bool(info.private),
            gated=bool(info.gated),
            license=license if isinstance(license, str) else None,
            pipeline_tag=info.pipeline_tag,
        )

    def is_tag(self, repo: str, name: str) -> bool:
        with translated(repo):
            return any(tag.name == name for tag in self.api.list_repo_refs(repo).tags)

    def snapshot(self, repo: str, sha: str, files: Mapping[str, FileEntry]) -> Path:
        """Download `files` of `repo` at `sha`; every one is there and of its size, or HubError."""
        with translated(f"{repo}@{sha[:7]}"):
            folder = Path(
                snapshot_download(
                    repo,
                    revision=sha,
                    allow_patterns=[_literal(name) for name in files],
                    endpoint=self.endpoint,
                    token=self.token,
                )
            )
        for name, entry in files.items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != entry.size:
                raise HubError(f"{repo}@{sha[:7]}: {name} did not arrive whole.")
        return folder

    def download(self, repo: str, sha: str, file: str, folder: Path) -> Path:
        """Download one whole file into `folder`, past the cache."""
        with translated(f"{repo}@{sha[:7]}: {file}"):
            downloaded = hf_hub_download(
                repo,
                file,
                revision=sha,
                local_dir=folder,
                endpoint=self.endpoint,
                token=self.token,
            )
        self.traffic.downloaded += Path(downloaded).stat().st_size
        return Path(downloaded)

    def upload(self, repo: str, path: Path, uploaded: Uploaded) -> None:
        """Send the bytes of a large file, which a later commit of `uploaded` to `repo` refers to.

        Its sha256 is taken as given, not computed again. `traffic.sent` counts what went over the
        line: through Xet, the chunks that the Hub had not, compressed; else none or all of it.
        """
        self.traffic.uploaded += uploaded.size
        with translated(repo):
            if is_xet_available():
                # By hand, as `preupload_lfs_files` does it but keeps the count to itself.
                commit = self._xet.new_upload_commit(
                    token_refresh_url=f"{self.endpoint}/api/models/{repo}/xet-write-token/main",
                    token_refresh_headers=build_hf_headers(token=self.token),
                )
                commit.start_upload_file(str(path), sha256=uploaded.sha256)
                self.traffic.sent += commit.wait_to_finish().dedup_metrics.total_bytes_uploaded
                return
            addition = CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path)
            addition.upload_info.sha256 = bytes.fromhex(uploaded.sha256)
            todo, _, _ = post_lfs_batch_info(
                [addition.upload_info],
                token=None,  # in the headers
                headers=build_hf_headers(token=self.token),
                repo_type="model",
                repo_id=repo,
                endpoint=self.endpoint,
            )
            self.api.preupload_lfs_files(repo, [addition])
        if any("actions" in each for each in todo):
            self.traffic.sent += uploaded.size

    @cached_property
    def _xet(self) -> Any:
        from hf_xet import XetSession  # not on every platform

        return XetSession()

    def copyable(self, repo: str, sha: str, files: list[str]) -> set[str]:
        """Which large files of `repo` at `sha` the Hub can copy to another repo: those in Xet."""
        with translated(f"{repo}@{sha[:7]}"):
            found = [
                each
                for start in range(0, len(files), MOST_PATHS)
                for each in self.api.get_paths_info(
                    repo, files[start : start + MOST_PATHS], revision=sha
                )
            ]
        return {each.path for each in found if isinstance(each, RepoFile) and each.xet_hash}

    def exists(self, repo: str) -> bool:
        with translated(repo):
            return self.api.repo_exists(repo)

    def create(self, repo: str, private: bool) -> None:
        with translated(repo):
            self.api.create_repo(repo, private=private, exist_ok=True)

    def commit_with(self, repo: str, trailer: str) -> str | None:
        """The sha of the commit on main whose message carries `trailer`, if there is one."""
        with translated(repo):
            for commit in self.api.list_repo_commits(repo):
                if trailer in commit.message.splitlines():
                    return commit.commit_id
        return None

    def pull_request_with(self, repo: str, title: str) -> str | None:
        """The address of our own pull request called `title`, open or not, if there is one."""
        with translated(repo):
            me = self.api.whoami()["name"]
            for discussion in self.api.get_repo_discussions(repo, author=me):
                if discussion.is_pull_request and discussion.title == title:
                    return discussion.url
        return None

    def commit(
        self,
        repo: str,
        add: Mapping[str, Content],
        delete: list[str],
        title: str,
        description: str,
        parent: str,
        as_pull_request: bool,
    ) -> Published:
        """All of it in one commit on top of `parent`, or StaleParent, NotCopied or Forgotten."""
        operations = [_operation(repo, name, content) for name, content in add.items()]
        operations += [CommitOperationDelete(path_in_repo=name) for name in delete]
        with translated(repo):
            info = self.api.create_commit(
                repo,
                operations=operations,
                commit_message=title,
                commit_description=description,
                parent_commit=parent,
                create_pr=as_pull_request,
            )
        return Published(sha=info.oid, url=info.pr_url or self.url(repo))

    def tag(self, repo: str, name: str, sha: str) -> None:
        """Let tag `name` stand for `sha`, wherever it stood before."""
        with translated(f"{repo}@{name}"):
            tags = {tag.name: tag.target_commit for tag in self.api.list_repo_refs(repo).tags}
            if tags.get(name) == sha:
                return
            if name in tags:
                self.api.delete_tag(repo, tag=name)
            self.api.create_tag(repo, tag=name, revision=sha)

    def url(self, repo: str, revision: str | None = None) -> str:
        page = f"{self.endpoint}/{repo}"
        return page if revision is None else f"{page}/tree/{revision}"

    def data(self, named: HubFile) -> Folder:
        """The folder of a data set at a commit with the one file that is asked for."""
        what = f"{named.repo}@{named.revision[:7]}: {named.file}"
        with translated(what):
            found = self.api.get_paths_info(
                named.repo, named.file, revision=named.revision, repo_type="dataset"
            )
        if any(isinstance(each, RepoFile) and each.size > LARGEST for each in found):
            raise Refused(f"{what} is larger than the {LARGEST} bytes that are read of items.")
        with translated(what):
            folder = snapshot_download(
                named.repo,
                repo_type="dataset",
                revision=named.revision,
                allow_patterns=[_literal(named.file)],
                endpoint=self.endpoint,
                token=self.token,
            )
        return Folder(Path(folder))


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


Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete


def _operation(repo: str, name: str, content: Content) -> Operation:
    if isinstance(content, Copied):
        elsewhere = content.repo != repo
        return CommitOperationCopy(
            src_path_in_repo=content.file,
            path_in_repo=name,
            src_revision=content.sha,
            src_repo_id=content.repo if elsewhere else None,
            src_repo_type="model" if elsewhere else None,
        )
    if not isinstance(content, Uploaded):
        return CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
    # What `preupload_lfs_files` leaves of an addition; another process may have called it.
    addition = CommitOperationAdd(path_in_repo=name, path_or_fileobj=b"")
    digest = bytes.fromhex(content.sha256)
    addition.upload_info = UploadInfo(size=content.size, sample=b"", sha256=digest)
    addition._upload_mode, addition._is_uploaded = "lfs", True
    return addition


def _literal(name: str) -> str:
    """`name` as an fnmatch pattern that matches just itself."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
