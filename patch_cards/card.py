"""The model card of a port. What an owner wrote outside the markers survives every push.

Metadata follows the Hub's model card specification: `base_model` and `base_model_relation` are
what the Hub builds its model tree from.
"""

import re
from dataclasses import dataclass
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from judging.arms import ARMS, figure
from porting.errors import Refused

BEGIN = "<!-- portllm:begin: generated, replaced at every port; write outside of it -->"
END = "<!-- portllm:end -->"
FENCE = "---\n"
HEAD = re.compile(r"---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
LONGEST = 64 * 1024  # characters of metadata; a YAML parser takes hours on a hostile megabyte
DEEPEST = 50  # collections within collections
FULL = "full"  # the kind of a full-weight delta, which only PortLLM adds to a base
# The fields of the metadata that are ours, beside the tags.
GENERATED = ("base_model", "base_model_relation", "library_name", "license", "pipeline_tag")
BASE_TAG = re.compile("base-[0-9a-f]{7}")  # what earlier ports were tagged with

_templates = Environment(
    loader=PackageLoader("patch_cards"),
    undefined=StrictUndefined,
    autoescape=False,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_templates.filters["result"] = figure
_templates.filters["difference"] = lambda value, metric: (
    f"{figure(value, metric, '+')} {'points' if metric == 'accuracy' else 'bits'}"
)
_templates.globals["arms"] = ARMS


@dataclass(frozen=True)
class CardFacts:
    """Everything a port's card shows.

    `kind` is that of the patch, `account` says what was done to it (`patch_cards.account`);
    `evidence` and `findings` are `judging.evidence.Evidence` and `judging.verdict.Findings` as
    plain data, the latter None where nothing was judged.
    """

    repo: str
    form: str
    kind: str
    account: str
    tag: str
    patch_repo: str
    patch_sha: str
    old_repo: str
    old_sha: str
    new_repo: str
    new_sha: str
    license: str | None
    pipeline_tag: str | None
    engine: str
    files: dict[str, str]
    verdict: dict[str, Any]
    evidence: dict[str, Any] | None
    findings: dict[str, Any] | None
    prompt: str | None


def render(facts: CardFacts, existing: str | None = None) -> str:
    """The whole README.md: generated metadata and part, around what `existing` already says."""
    metadata, body = _split(existing or "")
    metadata |= _metadata(facts, metadata.get("tags"))
    generated = _templates.get_template("port.md.j2").render(facts=facts)
    return _join(metadata, _insert(body, f"{BEGIN}\n{generated}{END}"))


def restore(former: str, existing: str) -> str:
    """`existing` with the generated metadata and part of the card `former`, and its own words."""
    before, then = _split(former)
    metadata, body = _split(existing)
    tags = before.get("tags") or []
    owners = metadata.get("tags")
    kept = [tag for tag in owners if not _is_base_tag(tag)] if isinstance(owners, list) else []
    metadata |= {name: before[name] for name in GENERATED if name in before}
    metadata["tags"] = [*tags, *(tag for tag in kept if tag not in tags)]
    return _join(metadata, _insert(body, BEGIN + _generated(then) + END))


def give_notice(existing: str, notice: str) -> str:
    """The card with a sentence above everything that is generated; the same one only once."""
    metadata, body = _split(existing)
    generated, said = _generated(body), f"\n> {notice}\n"
    if said not in generated:
        body = _insert(body, f"{BEGIN}{said}{generated}{END}")
    return _join(metadata, body)


def _generated(body: str) -> str:
    """What stands between the markers."""
    return body.partition(BEGIN)[2].partition(END)[0]


def _join(metadata: dict[str, Any], body: str) -> str:
    if not metadata:
        return body
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return f"{FENCE}{head}{FENCE}{body}"


def _metadata(facts: CardFacts, owners_tags: Any) -> dict[str, Any]:
    adapter = facts.form == "adapter"
    ours = ["portllm", facts.kind, facts.tag]
    others = owners_tags if isinstance(owners_tags, list) else []
    kept = [tag for tag in others if tag not in ours and not _is_base_tag(tag)]
    metadata: dict[str, Any] = {
        "base_model": facts.new_repo,
        "base_model_relation": "adapter" if adapter else "finetune",
        "library_name": _library(facts) if adapter else "transformers",
        "tags": ours + kept,
    }
    if facts.license:
        metadata["license"] = facts.license
    if facts.pipeline_tag:
        metadata["pipeline_tag"] = facts.pipeline_tag
    return metadata


def _library(facts: CardFacts) -> str:
    return "portllm" if facts.kind == FULL else "peft"


def _is_base_tag(tag: Any) -> bool:
    return isinstance(tag, str) and BASE_TAG.fullmatch(tag) is not None


def _split(text: str) -> tuple[dict[str, Any], str]:
    """The YAML block of a card, and what follows it to the byte."""
    match = HEAD.match(text)
    if match is None:
        return {}, text
    if len(match[1]) > LONGEST:
        raise Refused(f"README.md: its metadata is longer than {LONGEST} characters; shorten it.")
    body = text[match.end() :]
    try:
        _check_harmless(match[1])
        metadata = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError) as error:
        raise Refused(
            f"README.md: its metadata is no YAML, so it can't be kept: {error}"
        ) from error
    return (metadata if isinstance(metadata, dict) else {}), body


def _check_harmless(source: str) -> None:
    """Refuse what takes a YAML loader endless time or stack: aliases, and nesting without end."""
    depth = 0
    for event in yaml.parse(source, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases are not allowed")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")


def _insert(body: str, generated: str) -> str:
    before, begin, rest = body.partition(BEGIN)
    if begin:
        _, end, after = rest.partition(END)
        if not end:
            raise Refused(f"README.md: {END} is missing, so what is the owner's can't be told.")
        return before + generated + after
    gap = "\n" if not body or body.endswith("\n") else "\n\n"
    return f"{body}{gap}{generated}\n"
