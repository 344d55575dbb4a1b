"""Repos that ask for PortLLM by a tag, and what their history says. Nothing comes from a cache."""

from datetime import datetime

from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from bot.hub.client import Hub
from bot.hub.errors import translated
from bot.hub.limiter import polling
from porting.errors import HubError

TAG = "portllm-patch"  # of a patch; what the bot makes has the tag `portllm`


def tagged(hub: Hub, owner: str | None) -> dict[str, str]:
    """The head commit of each model with the tag: of `owner`, or of everybody."""
    with polling(), translated(f"the list of models with the tag {TAG}"):
        found = hub.api.list_models(author=owner, filter=TAG, expand=["sha"])
        return {each.id: each.sha for each in found if each.sha}


def stands(hub: Hub, repo: str) -> tuple[str, bool] | None:
    """The head commit of `repo`, and whether it has the tag; None where there surely is none."""
    with translated(repo):
        try:
            info = hub.api.model_info(repo)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None
    if info.sha is None:
        raise HubError(f"The Hub names no commit for {repo}.")
    return info.sha, TAG in (info.tags or [])


def commits(hub: Hub, repo: str, sha: str) -> dict[str, datetime]:
    """The commits up to `sha` and when each was made, the newest first."""
    with translated(f"{repo}@{sha[:7]}"):
        found = hub.api.list_repo_commits(repo, revision=sha)
        return {each.commit_id: each.created_at for each in found}
