"""Reading the Hub. Refs become commit shas here, once.

Reads of the state of a repo never come from a cache, so that a Hub that is down is not taken for a
base that has not moved.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token, hf_hub_download, snapshot_download
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars

from bot.content import Traffic
from bot.hub.errors import translated
from judging.spec import HubFile
from judging.task import LARGEST
from porting import FileEntry, Folder
from porting.errors import HubError, Refused

disable_progress_bars()  # steps are shown by who runs them

MOST_PATHS = 500  # that the Hub tells of in one answer


@dataclass(frozen=True)
class Facts:
    """What a repo says of itself, at one commit."""

    sha: str
    private: bool
    gated: bool
    license: str | None
    pipeline_tag: str | None


@dataclass(frozen=True)
class PullRequest:
    """`status` is open, draft, closed or merged; `merged_as` the commit that brought it to main."""

    number: int
    title: str
    status: str
    url: str
    merged_as: str | None = None

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.number}"

    @property
    def is_open(self) -> bool:
        return self.status in ("open", "draft")


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
        return name in self.tags(repo)

    def message(self, repo: str, sha: str) -> str:
        """Of the commit `sha`, title and all."""
        with translated(f"{repo}@{sha[:7]}"):
            newest = next(iter(self.api.list_repo_commits(repo, revision=sha)))
        return f"{newest.title}\n{newest.message}"

    def tags(self, repo: str) -> dict[str, str]:
        """The commit of each tag."""
        with translated(repo):
            return {tag.name: tag.target_commit for tag in self.api.list_repo_refs(repo).tags}

    def branches(self, repo: str) -> set[str]:
        with translated(repo):
            return {branch.name for branch in self.api.list_repo_refs(repo).branches}

    def repos_of(self, owner: str) -> dict[str, str]:
        """The head commit of each repo of `owner` that this token may see."""
        with translated(owner):
            found = self.api.list_models(author=owner, expand=["sha"])
            return {each.id: each.sha for each in found if each.sha}

    def fine_tunes(self, base: str, tags: list[str]) -> dict[str, str]:
        """The head commit of each repo whose card says that it is a fine-tune of `base`."""
        with translated(base):
            wanted = [f"base_model:finetune:{base}", *tags]
            found = self.api.list_models(filter=wanted, expand=["sha"])
            return {each.id: each.sha for each in found if each.sha}

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

    def commit_with(self, repo: str, trailer: str, revision: str = "main") -> str | None:
        """The sha of the commit at `revision` whose message carries `trailer`, if there is one."""
        with translated(f"{repo}@{revision}"):
            for commit in self.api.list_repo_commits(repo, revision=revision):
                if trailer in commit.message.splitlines():
                    return commit.commit_id
        return None

    def pull_requests(self, repo: str) -> list[PullRequest]:
        """Our own pull requests to `repo`, the newest first, whatever became of them."""
        with translated(repo):
            found = self.api.get_repo_discussions(
                repo, author=self.user, discussion_type="pull_request"
            )
            return [PullRequest(d.num, d.title, d.status, d.url) for d in found]

    def pull_request(self, repo: str, number: int) -> PullRequest:
        with translated(f"{repo}, pull request {number}"):
            found = self.api.get_discussion_details(repo, number)
        return PullRequest(number, found.title, found.status, found.url, found.merge_commit_oid)

    @cached_property
    def user(self) -> str:
        """Whose token it is."""
        name: str = self.api.whoami()["name"]
        return name

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


def _literal(name: str) -> str:
    """`name` as an fnmatch pattern that matches just itself."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
