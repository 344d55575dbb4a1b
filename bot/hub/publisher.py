"""Writing to the Hub: the publishing interface, and the implementation that means it.

`bot.publishing.dry_run` has the other one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    DiscussionComment,
    DiscussionWithDetails,
)
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info
from huggingface_hub.utils import build_hf_headers
from huggingface_hub.utils._runtime import is_xet_available

from bot.hub.client import Gated, Hub
from bot.hub.errors import StaleParent, translated
from bot.hub.repo import HubRepo, Nothing
from bot.publishing.content import Content, Copied, Uploaded
from porting.errors import HubError

MAIN, PULL_REQUEST = "main", "new pull request"


@dataclass(frozen=True)
class Published:
    sha: str
    url: str


class Publisher(Protocol):
    """What publishing does to a Hub. Done twice with the same arguments, each is done once."""

    hub: Hub

    def state(self, repo: str) -> HubRepo:
        """What stands in `repo` now; it has no files where there is no such repo."""

    def create(self, repo: str, private: bool, gated: Gated = False) -> None:
        """Let there be `repo`; what was there before stays as open as it was."""

    def branch(self, start: HubRepo, name: str) -> HubRepo:
        """What stands on branch `name`, which begins at `start` where there was none."""

    def upload(self, repo: str, path: Path, uploaded: Uploaded) -> None:
        """Send the bytes of a large file, which a later commit of `uploaded` refers to."""

    def commit(
        self,
        repo: str,
        add: Mapping[str, Content],
        delete: list[str],
        title: str,
        description: str,
        parent: str,
        to: str = MAIN,
    ) -> Published:
        """All of it in one commit on top of `parent`, or StaleParent, NotCopied or Forgotten.

        Args:
            to: MAIN, PULL_REQUEST for a new one, or a ref, such as that of an open one.
        """

    def tag(self, repo: str, name: str, sha: str) -> None:
        """Let tag `name` stand for `sha`, wherever it stood before."""

    def retitle(self, repo: str, number: int, title: str, comment: str) -> None:
        """Give pull request `number` another title, and say why."""

    def close_request(self, repo: str, number: int, comment: str) -> None:
        """Close pull request `number`, if it is open, and say why."""

    def discuss(self, repo: str, title: str, comment: str) -> None:
        """Say it in our discussion of this title, unless that was closed."""


class HubPublisher:
    """Writes to the Hub that `hub` reads."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def state(self, repo: str) -> HubRepo:
        if not self.hub.exists(repo):
            return Nothing(self.hub, repo)
        return HubRepo(self.hub, repo, self.hub.head(repo))

    def upload(self, repo: str, path: Path, uploaded: Uploaded) -> None:
        """Its sha256 is taken as given, not computed again. `traffic.sent` counts what went over
        the line: through Xet, the chunks that the Hub had not, compressed; else none or all of it.
        """
        self.hub.traffic.uploaded += uploaded.size
        with translated(repo):
            if is_xet_available():
                # By hand, as `preupload_lfs_files` does it but keeps the count to itself.
                commit = self._xet.new_upload_commit(
                    token_refresh_url=self._write_token(repo),
                    token_refresh_headers=build_hf_headers(token=self.hub.token),
                )
                commit.start_upload_file(str(path), sha256=uploaded.sha256)
                self.hub.traffic.sent += commit.wait_to_finish().dedup_metrics.total_bytes_uploaded
                return
            addition = CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path)
            addition.upload_info.sha256 = bytes.fromhex(uploaded.sha256)
            todo, _, _ = post_lfs_batch_info(
                [addition.upload_info],
                token=None,  # in the headers
                headers=build_hf_headers(token=self.hub.token),
                repo_type="model",
                repo_id=repo,
                endpoint=self.hub.endpoint,
            )
            self.hub.api.preupload_lfs_files(repo, [addition])
        if any("actions" in each for each in todo):
            self.hub.traffic.sent += uploaded.size

    def _write_token(self, repo: str) -> str:
        only_asks = "" if self.hub.may_write(repo) else "?create_pr=1"
        return f"{self.hub.endpoint}/api/models/{repo}/xet-write-token/main{only_asks}"

    @cached_property
    def _xet(self) -> Any:
        from hf_xet import XetSession  # not on every platform

        return XetSession()

    def create(self, repo: str, private: bool, gated: Gated = False) -> None:
        if self.hub.exists(repo):
            return
        with translated(repo):
            try:  # never open to all, not even for a moment
                self.hub.api.create_repo(repo, private=private or bool(gated))
            except HfHubHTTPError as error:
                if error.response.status_code != 409:
                    raise
                return  # it was there, though the Hub did not tell
            if gated:
                self.hub.api.update_repo_settings(repo, gated=gated, private=private)

    def branch(self, start: HubRepo, name: str) -> HubRepo:
        if not start.sha:
            raise StaleParent(f"{start.repo} is not to be seen yet.")
        with translated(f"{start.repo}, branch {name}"):
            self.hub.api.create_branch(start.repo, branch=name, revision=start.sha, exist_ok=True)
        return HubRepo(self.hub, start.repo, self.hub.head(start.repo, name))

    def commit(
        self,
        repo: str,
        add: Mapping[str, Content],
        delete: list[str],
        title: str,
        description: str,
        parent: str,
        to: str = MAIN,
    ) -> Published:
        if not parent:  # without one, the Hub would not look whether anybody was quicker
            raise StaleParent(f"{repo} is not to be seen yet.")
        operations = [_operation(repo, name, content) for name, content in add.items()]
        operations += [CommitOperationDelete(path_in_repo=name) for name in delete]
        with translated(repo):
            info = self.hub.api.create_commit(
                repo,
                operations=operations,
                commit_message=title,
                commit_description=description,
                parent_commit=parent,
                create_pr=to == PULL_REQUEST,
                revision=MAIN if to == PULL_REQUEST else to,
            )
        return Published(sha=info.oid, url=info.pr_url or self.hub.url(repo))

    def tag(self, repo: str, name: str, sha: str) -> None:
        with translated(f"{repo}@{name}"):
            tags = self.hub.tags(repo)
            if tags.get(name) == sha:
                return
            if name in tags:
                self.hub.api.delete_tag(repo, tag=name)
            try:
                self.hub.api.create_tag(repo, tag=name, revision=sha)
            except HfHubHTTPError as error:
                if error.response.status_code != 409:
                    raise
                raise HubError(f"The Hub did not tell of tag {name} of {repo} yet.") from error

    def retitle(self, repo: str, number: int, title: str, comment: str) -> None:
        with translated(f"{repo}, pull request {number}"):
            before = self.hub.api.get_discussion_details(repo, number)
            if not _says(before, comment):
                self.hub.api.comment_discussion(repo, number, comment)
            if before.title != title:
                self.hub.api.rename_discussion(repo, number, new_title=title)

    def close_request(self, repo: str, number: int, comment: str) -> None:
        with translated(f"{repo}, pull request {number}"):
            if self.hub.api.get_discussion_details(repo, number).status in ("open", "draft"):
                self.hub.api.change_discussion_status(repo, number, "closed", comment=comment)

    def discuss(self, repo: str, title: str, comment: str) -> None:
        with translated(f"{repo}, discussion {title!r}"):
            api = self.hub.api
            ours = api.get_repo_discussions(
                repo, author=self.hub.user, discussion_type="discussion"
            )
            number = next((each.num for each in ours if each.title == title), None)
            if number is None:
                api.create_discussion(repo, title, description=comment)
                return
            before = api.get_discussion_details(repo, number)
            if before.status == "open" and not _says(before, comment):
                api.comment_discussion(repo, number, comment)


def _says(request: DiscussionWithDetails, comment: str) -> bool:
    return any(
        isinstance(event, DiscussionComment) and event.content == comment
        for event in request.events
    )


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
