"""Refusing what takes a YAML loader endless time or stack; strangers write what we load."""

import yaml

LONGEST = 64 * 1024  # characters; a YAML parser takes hours on a hostile megabyte
DEEPEST = 50  # collections within collections


def check_harmless(source: str) -> None:
    """Raises ValueError at aliases, at tags, and at nesting without end.

    A tag may be one that its value does not fit, such as `!!bool x`, which breaks the loader.
    """
    depth = 0
    for event in yaml.parse(source, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases are not allowed")
        if getattr(event, "tag", None) is not None:
            raise ValueError("tags such as !!str are not allowed")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")
