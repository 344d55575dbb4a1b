"""Reading the Hub. Refs become commit shas here, once.

Reads of the state of a repo never come from a cache, so that a Hub that is down is not taken for a
base that has not moved.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, constants, get_token, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (
    build_hf_headers,
    disable_progress_bars,
    hf_raise_for_status,
    http_backoff,
)

from bot.hub.errors import translated
from bot.publishing.content import Traffic
from judging.spec import HubFile
from judging.task import LARGEST
from patch_cards.licences import Licence
from porting import FileEntry, Folder
from porting.errors import HubError, Refused

disable_progress_bars()  # steps are shown by who runs them

Gated = Literal["auto", "manual", False]
MOST_PATHS = 500  # that the Hub tells of in one answer
MOST_SAID = 300  # characters of what it has against a field: it may list all that it would take


@dataclass(frozen=True)
class Facts:
    """What a repo says of itself, at one commit.

    `gated` is how access is given: to whoever asks (auto), one by one (manual), to all (False).
    """

    sha: str
    private: bool
    gated: Gated
    licence: Licence
    pipeline_tag: str | None
    languages: list[str]
    datasets: list[str]

    @property
    def license(self) -> str | None:
        return self.licence.id


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
        card: Any = info.card_data or {}
        return Facts(
            sha=info.sha,
            private=bool(info.private),
            gated=info.gated or False,
            licence=self._licence(repo, info.sha, card),
            pipeline_tag=info.pipeline_tag,
            languages=_strings(card.get("language")),
            datasets=_strings(card.get("datasets")),
        )

    def _licence(self, repo: str, sha: str, card: Mapping[str, Any]) -> Licence:
        fields = (card.get(f"license{which}") for which in ("", "_name", "_link"))
        id, name, link = (each if isinstance(each, str) else None for each in fields)
        if link and "://" not in link:  # a file of the repo
            link = f"{self.endpoint}/{repo}/blob/{sha}/{link}"
        return Licence(id, name, link)

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
        """The head commit of each public repo whose card says that it is a fine-tune of `base`."""
        with translated(base):
            wanted = [f"base_model:finetune:{base}", *tags]
            found = self.api.list_models(filter=wanted, expand=["sha", "private"])
            return {each.id: each.sha for each in found if each.sha and not each.private}

    def snapshot(self, repo: str, sha: str, files: Mapping[str, FileEntry]) -> Path:
        """Download `files` of `repo` at `sha`; every one is there and of its size, or HubError."""
        with translated(f"{repo}@{sha[:7]}"):
            folder = Path(
                snapshot_download(
                    repo,
                    revision=sha,
                    allow_patterns=[escape(name) for name in files],
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
        """Whose token it is. Raises Refused where there is none."""
        if not self.token:
            raise Refused("There is no token for this: run `hf auth login`, or set HF_TOKEN.")
        with translated("the question whose token this is"):
            name: str = self.api.whoami()["name"]
        return name

    def may_write(self, repo: str) -> bool:
        """Whether this token may commit to `repo`; else it may only ask by a pull request."""
        with translated(repo):
            try:
                self.api.auth_check(repo, write=True)
            except HfHubHTTPError as error:
                if error.response.status_code != 403:
                    raise
                return False
        return True

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

    def check_card(self, name: str, content: bytes) -> None:
        """Raises Refused, naming the fields, where the Hub would not take this README.md."""
        url, headers = f"{self.endpoint}/api/validate-yaml", build_hf_headers(token=self.token)
        asked = {"content": content.decode(errors="replace"), "repoType": "model"}
        with translated(name):
            answer = http_backoff("POST", url, json=asked, headers=headers)
            if answer.status_code != 400:
                hf_raise_for_status(answer)
                return
            errors = [str(each.get("message"))[:MOST_SAID] for each in answer.json()["errors"]]
        raise Refused(
            f"{name}: the Hub does not take its README.md: {'; '.join(errors)}. Mend that field "
            "there, or in the card of the patch or the base that it comes from."
        )

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
                allow_patterns=[escape(named.file)],
                endpoint=self.endpoint,
                token=self.token,
            )
        return Folder(Path(folder))


def _strings(value: object) -> list[str]:
    """Of a field that may be one or several; what else a stranger put there is left out."""
    several = value if isinstance(value, list) else [value]
    return [each for each in several if isinstance(each, str)]
