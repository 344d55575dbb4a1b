"""Finding the repos that ask for PortLLM, and doing what their files say.

A repo is looked at while it has the tag, or once its file was proposed by us. Only a commit that
was not read yet costs more than its line in a listing; what can't be told changes nothing.
"""

import logging
import random
from datetime import timedelta

from bot.config.onboarding import complaint, propose
from bot.config.schema import FILE, check
from bot.config.sync import end, obey
from bot.context import Context
from bot.hub import HubRepo
from bot.hub.limiter import polling
from bot.hub.tagged import commits, stands, tagged
from patch_cards import lock
from patch_cards.harmless import LONGEST
from porting.errors import PortllmError, Refused, UsageError
from registry import configs
from registry.models import Config, now

log = logging.getLogger("portllm")

SHOWN = 10  # faults of one file
MOST = 50  # repos that are looked at in one go, with the tag and without
AGAIN = timedelta(hours=6)  # until what could not be obeyed is tried again
TITLE = "portllm.yaml can't be obeyed"
EVERYBODY = "*"


def look_for_configs(context: Context) -> None:
    """Look once at every repo that may have said something new."""
    if context.is_paused:
        return
    hub = context.hub
    try:
        owners = _served(context)
        found = {repo: sha for owner in owners for repo, sha in tagged(hub, owner).items()}
    except PortllmError as error:
        log.warning("The patches that ask for PortLLM can't be listed: %s", error)
        return
    with context.database.session() as session:
        known = configs.read(session)
    untagged = [
        repo
        for repo, row in known.items()
        if repo not in found
        and (row.request is not None or not {None, repo.partition("/")[0]}.isdisjoint(owners))
    ]
    news = [repo for repo, sha in found.items() if _is_due(known.get(repo), sha)]
    for repo in _some(untagged) + _some(news):
        try:
            with polling():
                _look(context, repo, known.get(repo))
        except PortllmError as error:
            log.warning("%s: its %s can't be looked at: %s", repo, FILE, error)


def _some(repos: list[str]) -> list[str]:
    """As many as one go takes, by chance: those that always fail keep no others waiting."""
    return random.sample(repos, min(MOST, len(repos)))


def _served(context: Context) -> list[str | None]:
    """Whose files are obeyed; None stands for everybody."""
    owners = context.settings.served
    if not owners and context.hub.token:
        return [context.hub.user]
    return [None] if EVERYBODY in owners else [*owners]


def _is_due(known: Config | None, sha: str) -> bool:
    if known is None or known.sha != sha:
        return True
    return known.problem is not None and now() - known.read_at > AGAIN


def _look(context: Context, repo: str, known: Config | None) -> None:
    """Do what `repo` says. Raises HubError where that can't be told: nothing is changed then."""
    hub = context.hub
    request = known.request if known else None
    found = stands(hub, repo)
    if found is not None and known is not None and _is_back(context, known, found[0]):
        return
    if found is None or not (found[1] or request is not None):
        _forget(context, repo)
        return
    sha = found[0]
    if known is not None and not _is_due(known, sha):
        if known.problem is None:
            _note(context, repo, sha, None)  # the others have their turn first
        return
    source, problem = HubRepo(hub, repo, sha), None
    if lock.NAME in source.files():
        pass  # a port, which took the tag over from the card that it goes with
    elif FILE in source.files():
        problem = _obey(context, source)
    else:
        if end(context, repo):
            log.info("%s has no %s any more: what it asked for is ended.", repo, FILE)
        if context.settings.onboard and request is None:
            _propose(context, repo)
    _tell(context, repo, sha, known, problem)
    _note(context, repo, sha, problem)


def _note(context: Context, repo: str, sha: str, problem: str | None) -> None:
    with context.database.session() as session:
        configs.note(session, repo, sha, problem)


def _obey(context: Context, source: HubRepo) -> str | None:
    """What the owner has to mend, if anything."""
    try:
        size = source.files()[FILE].size
        if size > LONGEST:
            raise Refused(f"it is longer than {LONGEST} bytes")
        entries, faults = check(source.read(FILE, 0, size))
        said = [str(fault) for fault in faults]
        if entries:
            said = obey(context, source.repo, source.sha, entries)
            log.info("%s: its %s is obeyed.", source.name, FILE)
    except (Refused, UsageError) as error:
        said = [str(error)]
    if said:
        log.warning("%s: its %s can't be obeyed: %s", source.name, FILE, said[0])
    # The same fault in the next commit is the same problem.
    return "\n".join(said[:SHOWN]).replace(f"{source.repo}@{source.sha[:7]}", source.repo) or None


def _is_back(context: Context, known: Config, sha: str) -> bool:
    """Whether the Hub answered with what was: an older commit, which does not come after.

    That passes; an owner who takes a commit back, by a forced push, is obeyed a while later.
    """
    if known.sha == sha or now() - known.read_at > AGAIN:
        return False
    history = commits(context.hub, known.repo, sha)
    return known.sha not in history and history[sha] <= known.read_at


def _forget(context: Context, repo: str) -> None:
    """The repo is gone, or took the tag off."""
    if end(context, repo):
        log.info("%s is gone, or asks no more: what it asked for is ended.", repo)
    with context.database.session() as session:
        configs.forget(session, repo)


def _propose(context: Context, repo: str) -> None:
    try:
        propose(context, repo)
    except (Refused, UsageError) as error:
        log.info("%s: no %s can be proposed: %s", repo, FILE, error)


def _tell(context: Context, repo: str, sha: str, known: Config | None, problem: str | None) -> None:
    """Say to the owner what is wrong, once; and that it is mended."""
    if problem == (known.problem if known else None):
        return
    said = f"`{FILE}` is obeyed, as of {sha[:7]}." if problem is None else complaint(sha, problem)
    try:
        context.publisher.discuss(repo, TITLE, said)
    except Refused as error:  # such as a repo without discussions
        log.info("%s: its owner can't be told: %s", repo, error)
