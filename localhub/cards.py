"""README cards: the YAML at the top, and the Markdown below it as HTML that can do no harm."""

import json
import posixpath
import re
from typing import Any
from urllib.parse import urlsplit

import nh3
import yaml
from markdown_it import MarkdownIt

_FRONT_MATTER = re.compile(
    r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE
)
_MAX_METADATA = 1 << 18
_MAX_DEPTH = 50
_OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
_CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
_MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def split(text: str) -> tuple[str, str]:
    """The YAML source and the Markdown of a card. The YAML is empty when there is none."""
    match = _FRONT_MATTER.match(text)
    return (match[1], text[match.end() :]) if match else ("", text)


def _check_harmless(source: str) -> None:
    """Refuse what takes a parser endless time: aliases, and nesting without end."""
    depth = 0
    for token in yaml.scan(source, Loader=yaml.CSafeLoader):
        if isinstance(token, yaml.AliasToken):
            raise ValueError("the metadata uses YAML aliases, which are not allowed")
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        if depth > _MAX_DEPTH:
            raise ValueError(f"the metadata is nested more than {_MAX_DEPTH} deep")


def metadata(text: str) -> dict[str, Any]:
    """The card's metadata as JSON values. Raises `ValueError` when it is not a YAML mapping."""
    source = split(text)[0]
    if len(source) > _MAX_METADATA:
        raise ValueError(f"the metadata is longer than {_MAX_METADATA} characters")
    try:
        _check_harmless(source)
        data = yaml.load(source, Loader=yaml.CSafeLoader)
        # YAML has dates, sets and infinities, JSON does not.
        plain = json.loads(json.dumps(data, default=str), parse_constant=lambda _: None)
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        raise ValueError(f"the metadata is not plain YAML: {error}") from error
    if plain is None:
        return {}
    if not isinstance(plain, dict):
        raise ValueError("the metadata is not a YAML mapping")
    return plain


def render(text: str, home: str) -> str:
    """Sanitised HTML of Markdown (with HTML) from a stranger.

    Relative images point below `home`/resolve/main/, relative links below `home`/blob/main/.
    """

    def point(element: str, attribute: str, value: str) -> str | None:
        target = {("img", "src"): "resolve", ("a", "href"): "blob"}.get((element, attribute))
        parts = urlsplit(value)
        if target is None or parts.scheme or parts.netloc or value.startswith(("/", "#", "\\")):
            return value
        inside = posixpath.normpath(f"/{parts.path}").lstrip("/")
        return f"{home}/{target}/main/{inside}" + (f"#{parts.fragment}" if parts.fragment else "")

    return nh3.clean(_MARKDOWN.render(split(text)[1]), attribute_filter=point)
