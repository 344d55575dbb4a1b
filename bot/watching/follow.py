"""Follow rules: what of the Hub is followed, in what order, and where it stands.

org/base            the commits of main
org/base@branch     the commits of a branch
org/base@v*         the tags that match, the highest version
org/Model-v0.*      the repos that match, the highest version
tree:org/base@a,b   every fine-tune of the repo (with the Hub's tags a and b)
"""

import re
from dataclasses import dataclass

from packaging.version import InvalidVersion, Version

from bot.address import parse_repo, plain
from bot.hub import Hub
from porting.errors import Refused, UsageError
from registry.following import Head
from registry.models import Rule

TREE = "tree:"
PATTERN = re.compile(r"[\w.-]*(\*[\w.-]*){1,2}")  # no other magic than the star
OWNER = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Follow:
    rule: Rule
    repo: str
    ref: str


def parse_follow(text: str) -> Follow:
    """What `--follow` says. Raises UsageError where it says nothing that can be followed."""
    is_tree = text.startswith(TREE)
    name, _, ref = plain(text.removeprefix(TREE)).partition("@")
    if is_tree:
        return Follow(
            Rule.TREE, parse_repo(name).repo, ",".join(sorted(filter(None, ref.split(","))))
        )
    if "*" in name:
        owner, _, pattern = name.partition("/")
        if ref or not OWNER.fullmatch(owner) or not PATTERN.fullmatch(pattern):
            raise UsageError(f"--follow {text}: a pattern is org/name*, and has no revision.")
        return Follow(Rule.REPOS, name, "main")
    if "*" in ref:
        if not PATTERN.fullmatch(ref):
            raise UsageError(f"--follow {text}: a pattern of tags is letters, digits, . - _ and *.")
        return Follow(Rule.TAGS, parse_repo(name).repo, ref)
    return Follow(Rule.REF, parse_repo(name).repo, ref or "main")


def heads(hub: Hub, follow: Follow) -> list[Head]:
    """Where it stands: at one head; a tree at as many as it has fine-tunes.

    Raises:
        Refused: there is nothing that matches.
        HubError: the Hub did not say.
    """
    if follow.rule == Rule.REF:
        return [Head(follow.repo, follow.ref, hub.head(follow.repo, follow.ref))]
    if follow.rule == Rule.TAGS:
        tags = hub.tags(follow.repo)
        newest = highest(follow.ref, list(tags))
        if newest is None:
            raise Refused(f"{follow.repo} has no tag {follow.ref} with a version in its name.")
        return [Head(follow.repo, newest, tags[newest])]
    if follow.rule == Rule.REPOS:
        found = hub.repos_of(follow.repo.partition("/")[0])
        newest = highest(follow.repo, list(found))
        if newest is None:
            raise Refused(f"There is no repo {follow.repo} with a version in its name.")
        return [Head(newest, "main", found[newest])]
    members = hub.fine_tunes(follow.repo, follow.ref.split(",") if follow.ref else [])
    return [Head(repo, "main", sha) for repo, sha in sorted(members.items())]


def highest(pattern: str, names: list[str]) -> str | None:
    """The name whose part under the stars is the highest version; a pre-release is below its own.

    Names that don't match, or hold no version there, are passed over.
    """
    versions = {name: found for name in names if (found := version(pattern, name)) is not None}
    return max(versions, key=lambda name: (versions[name], name), default=None)


def version(pattern: str, name: str) -> Version | None:
    """What stands for the stars of `pattern` in `name`, as a version (PEP 440, dates too)."""
    matched = re.fullmatch(re.escape(pattern).replace(r"\*", "(.*)"), name)
    if matched is None:
        return None
    text = ".".join(matched.groups())
    try:
        return Version(re.sub(r"(?<=\d)[-_](?=\d)", ".", text))
    except InvalidVersion:
        return None


def is_step_back(follow: Follow, was: Head, head: Head) -> bool:
    """Whether a higher version stood there, which is gone by now."""
    if follow.rule == Rule.TAGS:
        before, after = version(follow.ref, was.ref), version(follow.ref, head.ref)
    elif follow.rule == Rule.REPOS:
        before, after = version(follow.repo, was.repo), version(follow.repo, head.repo)
    else:
        return False
    return before is not None and after is not None and after < before
