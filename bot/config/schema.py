"""What `portllm.yaml` may say: one subscription, or a list of them.

Every fault is found at once, with its line. `json_schema` says the same as far as a schema can;
whether a crontab line or a repo's name is one, only `check` knows.
"""

import difflib
import ipaddress
import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from bot.address import parse_repo
from bot.context import NAME, Delivery
from bot.notify import DISCUSSION, HOSTS
from bot.running.manners import SPAN, Manners, crontab
from bot.watching.follow import parse_follow
from judging.policy import VerdictPolicy
from patch_cards.harmless import LONGEST, check_harmless
from porting.errors import UsageError
from porting.plan import Policy

FILE = "portllm.yaml"
MOST = 20  # subscriptions of one file
QUOTE = "put it in quotes"
Text = Annotated[str, Field(min_length=1, max_length=300)]


def _follow(value: str) -> str:
    try:
        parse_follow(value)
    except UsageError as error:
        raise ValueError(str(error).removeprefix("--")) from error
    return value


def _repo(value: str) -> str:
    try:
        parse_repo(value.replace(NAME, "x"))
    except UsageError as error:
        raise ValueError(str(error)) from error
    return value


def _public(url: str) -> str:
    """An address that anybody may know: it stands in a file that everybody can read."""
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    if parts.username or parts.password:
        raise ValueError("it holds a password, and this file is public; leave it out")
    if any(host == each or host.endswith(f".{each}") for each in HOSTS):
        raise ValueError(
            "such an address is a secret, and this file is public; whoever runs the bot can give "
            "it to portllm subscribe instead"
        )
    try:
        reachable = ipaddress.ip_address(host).is_global
    except ValueError:
        reachable = "." in host and not host.endswith((".local", ".internal", ".localhost"))
    if not reachable:
        raise ValueError("that is no public host")
    return url


class Told(BaseModel):
    """Who hears of each port."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="notify")

    discussion: bool = Field(False, description="A discussion in this repo.")
    urls: list[Annotated[Text, Field(pattern="^https://"), AfterValidator(_public)]] = Field(
        [], alias="json", max_length=5, description="Public addresses that get JSON."
    )

    def receivers(self) -> tuple[str, ...]:
        """As `bot.notify.parse` takes them."""
        return (*[DISCUSSION] * self.discussion, *(f"json:{url}" for url in self.urls))


class Entry(BaseModel):
    """One subscription."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="subscription")

    follow: Annotated[Text, AfterValidator(_follow)] = Field(
        description="What is followed: org/base, org/base@branch, org/base@v*, org/Model-v*, "
        "tree:org/base."
    )
    to: Annotated[Text, AfterValidator(_repo)] | None = Field(
        None, description="The repo of the ports, of this repo's owner; else one of the bot's."
    )
    as_: Literal["adapter", "merged", "both"] = Field(
        "adapter", alias="as", description="What is pushed."
    )
    by: Delivery = Field(
        "commit", description="How: commits on main, a branch per release, or pull requests."
    )
    base: Annotated[Text, AfterValidator(_repo)] | None = Field(
        None,
        description="org/base@commit that the patch was trained on, where its config names none.",
    )
    policy: Policy | None = Field(
        None, description="What a merged patch of class C means on a new base."
    )
    verdict: VerdictPolicy | None = Field(
        None, description="What a port has to prove before it is published."
    )
    eval: bool | None = Field(
        None, description="Whether ports are judged by eval/ in this repo; if not, each one asks."
    )
    schedule: Annotated[Text, AfterValidator(crontab)] | None = Field(
        None, description="A crontab line (UTC): work only in minutes that match."
    )
    minimum_release_age: Annotated[str, Field(pattern=f"^{SPAN.pattern}$")] = Field(
        "0m", description="How old a release is before it is ported: 24h, 3d."
    )
    group: Text | None = Field(
        None, description="Published together with the others of this owner's group."
    )
    from_: Text | None = Field(
        None, alias="from", description="At its beginning, also port what came since this revision."
    )
    notify: Told | None = Field(None, description="Who hears of each port.")
    enabled: bool = Field(True, description="false: paused.")

    def verdict_policy(self) -> dict[str, Any] | None:
        """As a subscription keeps it; None for the defaults."""
        if self.verdict is None and self.eval is None:
            return None
        judged = {} if self.eval is None else {"evaluate": self.eval}
        policy = self.verdict or VerdictPolicy()
        return policy.model_copy(update=judged).model_dump(mode="json")

    def manners(self, owner: str) -> Manners:
        """A group is among one owner's patches: nobody else can hold up theirs."""
        return Manners.model_validate(
            {
                "minimum_release_age": self.minimum_release_age,
                "schedule": self.schedule,
                "group": self.group and f"{owner}/{self.group}",
                "enabled": self.enabled,
            }
        )


Entries = TypeAdapter(Annotated[list[Entry], Field(min_length=1, max_length=MOST)])


@dataclass(frozen=True)
class Fault:
    """What is wrong where; `field` is a path such as `2.verdict.margin`."""

    line: int | None
    field: str
    said: str

    def __str__(self) -> str:
        where = [f"line {self.line}"] * (self.line is not None) + [self.field] * bool(self.field)
        return ": ".join([", ".join(where), self.said] if where else [self.said])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check(raw: bytes) -> tuple[list[Entry], list[Fault]]:
    """What the file asks for; or everything that is wrong with it."""
    try:
        text = raw.decode()
        if len(text) > LONGEST:
            raise ValueError(f"it is longer than {LONGEST} characters")
        check_harmless(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
        plain = json.dumps([data] if isinstance(data, dict) else data, default=str)
        if r"\u0000" in plain:
            raise ValueError("it holds a NUL")  # which Postgres takes for no text
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        hint = f"what begins with * or has a colon in it: {QUOTE}"
        return [], [Fault(line, "", f"it is no YAML: {error.problem} ({hint})")]
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        return [], [Fault(None, "", f"it is no YAML that is read here: {error}")]
    lines: dict[tuple[int | str, ...], int] = {}
    faults = list(_index(node, (), lines))
    start: tuple[int | str, ...] = ()
    if isinstance(data, dict):  # one subscription; `plain` is a list all the same
        lines = {(0, *path): line for path, line in lines.items()}
        start = (0,)
    try:
        entries = Entries.validate_json(plain, strict=True)
    except ValidationError as error:
        entries = []
        faults += _faults(error, lines, start)
    if len({each.base for each in entries if each.base}) > 1:
        faults.append(Fault(None, "base", "a patch was trained on one base; name the same in all"))
    return ([] if faults else entries), faults


def json_schema() -> dict[str, Any]:
    """What editors and other programs know of the file."""
    many = Entries.json_schema(ref_template="#/$defs/{model}")
    defs = many.pop("$defs")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "portllm.schema.json",
        "title": FILE,
        "description": "Subscribes the patch in whose repo it lies: docs/portllm-yaml.md.",
        "anyOf": [many["items"], many],
        "$defs": defs,
    }


def _index(
    node: yaml.Node | None, path: tuple[int | str, ...], lines: dict[tuple[int | str, ...], int]
) -> list[Fault]:
    """Fill in the line of every path; a key that is there twice is a fault."""
    if node is None:
        return []
    lines[path] = node.start_mark.line + 1
    faults = []
    if isinstance(node, yaml.SequenceNode):
        for number, below in enumerate(node.value):
            faults += _index(below, (*path, number), lines)
    if isinstance(node, yaml.MappingNode):
        for key, below in node.value:
            inner = (*path, str(key.value))
            if inner in lines:
                faults.append(Fault(key.start_mark.line + 1, _name(inner), "it is there twice"))
            faults += _index(below, inner, lines)
            lines[inner] = key.start_mark.line + 1
    return faults


# The keys that there are below a key, or at the top.
KEYS = {
    "": [field.alias or name for name, field in Entry.model_fields.items()],
    "verdict": list(VerdictPolicy.model_fields),
    "notify": [field.alias or name for name, field in Told.model_fields.items()],
}


def _faults(
    error: ValidationError, lines: dict[tuple[int | str, ...], int], start: tuple[int | str, ...]
) -> list[Fault]:
    """One for every field that is wrong, in the order of the file."""
    found: dict[tuple[int | str, ...], list[str]] = {}
    for each in error.errors():
        path = each["loc"]
        while path and path not in lines:  # which of several types it is not, or what is missing
            path = path[:-1]
        found.setdefault(path, []).append(_said(each["type"], each["loc"], each["msg"]))
    return [
        Fault(lines.get(path), _name(path[len(start) :]), ", or ".join(said))
        for path, said in sorted(found.items(), key=lambda item: lines.get(item[0], 0))
    ]


def _said(type: str, path: tuple[int | str, ...], message: str) -> str:
    key = str(path[-1]) if path else ""
    if type == "extra_forbidden":
        known = KEYS[next((str(part) for part in path[:-1] if part in KEYS), "")]
        near = difflib.get_close_matches(key, known, 1)
        return f"unknown key {key!r}; " + (
            f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        )
    if type == "missing":
        return f"{key!r} is missing"
    if type == "list_type":
        return "it has to be one subscription, or a list of them"
    if type == "string_type":
        return f"it has to be text; {QUOTE}"
    if key == "minimum_release_age":
        return "it has to be a number and m, h, d or w, such as 24h"
    if type == "string_pattern_mismatch":
        return "it has to begin with https://"
    return message.removeprefix("Value error, ")


def _name(path: tuple[int | str, ...]) -> str:
    return ".".join(str(part + 1) if isinstance(part, int) else part for part in path)
