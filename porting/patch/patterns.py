"""PEFT's `rank_pattern` and `alpha_pattern`: expressions from strangers, matched safely."""

from collections.abc import Mapping
from typing import Any

import regex

from porting.errors import Refused

MAX_LENGTH = 256
MAX_PATTERNS = 2000
MAX_GROUPS = 8  # nested groups cost exponential memory when they are compiled
SECONDS = 1.0


class Patterns:
    """Values for modules by pattern; the first pattern that matches wins.

    As `get_pattern_key` of PEFT does, a pattern matches a whole name or its end after a dot.
    """

    def __init__(self, patterns: Mapping[str, Any], where: str) -> None:
        self._where = where
        if len(patterns) > MAX_PATTERNS:
            raise Refused(f"{where} has {len(patterns)} patterns; group the modules into fewer")
        self._values = dict(patterns)
        self._compiled = {pattern: self._compile(pattern) for pattern in patterns}

    def get(self, module: str, default: Any) -> Any:
        for pattern, compiled in self._compiled.items():
            try:
                if compiled.match(module, timeout=SECONDS):
                    return self._values[pattern]
            except TimeoutError as error:
                raise self._refused(pattern, "takes too long to match") from error
        return default

    def _compile(self, pattern: str) -> Any:
        if len(pattern) > MAX_LENGTH or pattern.count("(") > MAX_GROUPS:
            raise self._refused(pattern, "is too complex")
        if "{" in pattern or "(?" in pattern:
            raise self._refused(pattern, "uses counted repeats or extensions")
        try:
            return regex.compile(rf"(.*\.)?({pattern})$")
        except regex.error as error:
            raise self._refused(pattern, "is no regular expression") from error

    def _refused(self, pattern: str, why: str) -> Refused:
        return Refused(f"{self._where}: {pattern[:80]!r} {why}; name the modules instead")
