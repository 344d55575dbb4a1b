"""The model card of a port. What an owner wrote outside the markers survives every push.

Metadata follows the Hub's model card specification: `base_model` and `base_model_relation` are
what the Hub builds its model tree from. It names the new base and the patch, so that the port is
found below both; with more than one, the relation of a whole model is `merge`, which it is.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from judging.arms import ARMS, figure
from patch_cards import chart
from patch_cards.harmless import LONGEST, check_harmless
from patch_cards.licences import Terms
from patch_cards.model_index import divided, model_index, with_index
from porting.errors import Refused

BEGIN = "<!-- portllm:begin: generated, replaced at every port; write outside of it -->"
END = "<!-- portllm:end -->"
FENCE = "---\n"
HEAD = re.compile(r"---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
FULL = "full"  # the kind of a full-weight delta, which only PortLLM adds to a base
# The fields of the metadata that are ours, beside the tags and our part of `model-index`.
LICENCE = ("license", "license_name", "license_link")
GENERATED = ("base_model", "base_model_relation", "library_name", "pipeline_tag", *LICENCE)
NOTICES = re.compile(r"\A(?:\n> \*\*(?:Withdrawn|Rolled back):\*\*[^\n]*\n)+")
BADGES = {"publish": "\u2713", "ask": "?", "reject": "\u2717"}  # in every font, unlike emoji
NO_BADGE = "\u2013"
BASE_TAG = re.compile("base-[0-9a-f]{7}")  # what earlier ports were tagged with

Metadata = dict[str, Any]

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
_templates.globals |= {"arms": ARMS, "chart_name": chart.NAME}
_templates.filters["badge"] = lambda action: BADGES.get(action, NO_BADGE)


@dataclass(frozen=True)
class CardFacts:
    """Everything a port's card shows.

    `kind` is that of the patch, `account` says what was done to it (`patch_cards.account`);
    `languages` and `datasets` are those of its own card; `home` is the Hub's address. `evidence`
    and `findings` are `judging.evidence.Evidence` and `judging.verdict.Findings` as plain data, the
    latter None where nothing was judged; `dataset` has the items, as repo and commit, where they
    are one of the Hub's. vLLM serves it where it `is_served`; it `is_asked` for by a pull request.
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
    terms: Terms
    pipeline_tag: str | None
    engine: str
    files: dict[str, str]
    verdict: dict[str, Any]
    evidence: dict[str, Any] | None
    findings: dict[str, Any] | None
    prompt: str | None
    languages: list[str]
    datasets: list[str]
    dataset: tuple[str, str] | None
    home: str
    is_served: bool
    is_asked: bool
    has_chart: bool

    @property
    def name(self) -> str:
        return self.repo.partition("/")[2]

    @property
    def weights(self) -> dict[str, str]:
        return {
            file: sha for file, sha in sorted(self.files.items()) if file.endswith(".safetensors")
        }


def render(facts: CardFacts, existing: str | None = None) -> str:
    """The whole README.md: generated metadata and part, around what `existing` already says."""
    generated = fill("port.md.j2", facts)
    return compose(existing or "", generated, lambda owners: _metadata(facts, owners))


def fill(template: str, facts: object) -> str:
    """A generated part."""
    return _templates.get_template(template).render(facts=facts)


def compose(existing: str, generated: str, change: Callable[[Metadata], Metadata]) -> str:
    """`existing` with this generated part, and its metadata changed."""
    metadata, body = _split(existing)
    return _join(change(metadata), _insert(body, f"{BEGIN}\n{generated}{END}"))


def restore(former: str, existing: str) -> str:
    """`existing` with the generated metadata and part of the card `former`, and its own words."""
    before, then = _split(former)
    metadata, body = _split(existing)
    tags = before.get("tags") or []
    owners = metadata.get("tags")
    kept = [tag for tag in owners if not _is_base_tag(tag)] if isinstance(owners, list) else []
    metadata = {name: value for name, value in metadata.items() if name not in LICENCE}
    metadata |= {name: before[name] for name in GENERATED if name in before}
    metadata = with_index(metadata, divided(before)[0])
    metadata["tags"] = [*tags, *(tag for tag in kept if tag not in tags)]
    return _join(metadata, _insert(body, BEGIN + _generated(then) + END))


def give_notice(existing: str, notice: str) -> str:
    """The card with a sentence above everything that is generated; the same one only once."""
    metadata, body = _split(existing)
    generated, said = _generated(body), f"\n> {notice}\n"
    if said not in generated:
        body = _insert(body, f"{BEGIN}{said}{generated}{END}")
    return _join(metadata, body)


def notices(existing: str) -> list[str]:
    """What `give_notice` put there, without the marks."""
    found = NOTICES.match(_generated(_split(existing)[1]))
    return [line.removeprefix("> ") for line in found[0].splitlines() if line] if found else []


def difference(existing: str, facts: CardFacts) -> str | None:
    """What of the generated parts of `existing` is not as `facts` have it, notices aside."""
    metadata, body = _split(existing)
    right, expected = _split(render(facts, existing))
    names = [n for n in right | metadata if _unordered(metadata.get(n)) != _unordered(right.get(n))]
    if names:
        return f"its metadata ({', '.join(map(str, names))})"
    written = NOTICES.sub("", _generated(body)).split("\n")
    pairs = zip_longest(written, _generated(expected).split("\n"))
    for there, here in pairs:
        if there != here:
            return f"the line {there or ''!r:.200}, which should be {here or ''!r:.200}"
    return None


def _unordered(value: Any) -> Any:
    return sorted(map(repr, value)) if isinstance(value, list) else value


def _generated(body: str) -> str:
    """What stands between the markers."""
    return body.partition(BEGIN)[2].partition(END)[0]


def _join(metadata: dict[str, Any], body: str) -> str:
    if not metadata:
        return body
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return f"{FENCE}{head}{FENCE}{body}"


def _metadata(facts: CardFacts, owners: Metadata) -> Metadata:
    adapter = facts.form == "adapter"
    of_patch = [facts.patch_repo] if facts.patch_repo not in (facts.new_repo, facts.repo) else []
    whole = "merge" if of_patch else "finetune"
    ours = ["portllm", facts.kind, facts.tag]
    others = owners.get("tags")
    kept = [
        tag
        for tag in (others if isinstance(others, list) else [])
        if tag not in ours and not _is_base_tag(tag)
    ]
    metadata = owners | {
        "base_model": [facts.new_repo, *of_patch],
        "base_model_relation": "adapter" if adapter else whole,
        "library_name": _library(facts) if adapter else "transformers",
        "tags": ours + kept,
    }
    if (licence := facts.terms.licence).id:
        of_licence = zip(LICENCE, (licence.id, licence.name, licence.link), strict=True)
        metadata = {name: value for name, value in metadata.items() if name not in LICENCE}
        metadata |= {name: value for name, value in of_licence if value}
    if facts.pipeline_tag:
        metadata["pipeline_tag"] = facts.pipeline_tag
    for name, value in (("language", facts.languages), ("datasets", facts.datasets)):
        if value:
            metadata.setdefault(name, value)  # the owner may know better
    return with_index(metadata, model_index(facts))


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
        check_harmless(match[1])
        metadata = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError) as error:
        raise Refused(
            f"README.md: its metadata is no YAML, so it can't be kept: {error}"
        ) from error
    return (metadata if isinstance(metadata, dict) else {}), body


def _insert(body: str, generated: str) -> str:
    before, begin, rest = body.partition(BEGIN)
    if begin:
        _, end, after = rest.partition(END)
        if not end:
            raise Refused(f"README.md: {END} is missing, so what is the owner's can't be told.")
        return before + generated + after
    gap = "\n" if not body or body.endswith("\n") else "\n\n"
    return f"{body}{gap}{generated}\n"
