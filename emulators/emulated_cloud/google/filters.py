"""The filters of lists (AIP-160), as far as the lists of Google's services share them.

    labels.run="r1" AND status!=READY          logName="projects/p/logs/x" AND timestamp>="2026-01-01T00:00:00Z"

Comparisons (`=`, `!=`, `:`, `<`, `<=`, `>`, `>=`) of a field with a value, joined by AND (which may be left out), OR
and NOT, in parentheses. `field:value` is "has": a text holds it (or is like it, where it has a `*`), an object or a
list has it; `*` is anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

Filter = Callable[[dict[str, Any]], bool]

_TOKEN = re.compile(r"""\s*(?:([()])|(!=|<=|>=|=|<|>|:)|((?:"(?:\\.|[^"\\])*"|[^\s()"=<>!:])+))""")
_ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


class BadFilter(ValueError):
    """A filter that cannot be read: what is wrong with it."""


def parse(text: str) -> Filter:
    """What the filter says of a resource; an empty one lets all through. Raises BadFilter."""
    reader = _Reader(_tokens(text))
    if not reader.tokens:
        return lambda _: True
    found = reader.either()
    if reader.tokens:
        raise BadFilter(f"unexpected {reader.tokens[0]!r}")
    return found


def _tokens(text: str) -> list[str]:
    tokens, position, text = [], 0, text.rstrip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if not found:
            raise BadFilter(f"cannot be read from {text[position:].strip()!r} on")
        tokens.append(found[1] or found[2] or found[3])
        position = found.end()
    return tokens


class _Reader:
    """What is left to read, and a method for each level of the grammar."""

    def __init__(self, tokens: list[str]):
        self.tokens = tokens

    def either(self) -> Filter:
        parts = [self.both()]
        while self._next_is("OR"):
            parts.append(self.both())
        return lambda resource: any(part(resource) for part in parts)

    def both(self) -> Filter:
        parts = [self.term()]
        while self.tokens and self.tokens[0] not in ("OR", ")"):
            self._next_is("AND")
            parts.append(self.term())
        return lambda resource: all(part(resource) for part in parts)

    def term(self) -> Filter:
        if self._next_is("NOT"):
            inner = self.term()
            return lambda resource: not inner(resource)
        if self._next_is("("):
            inner = self.either()
            if not self._next_is(")"):
                raise BadFilter("a parenthesis is not closed")
            return inner
        return self.comparison()

    def comparison(self) -> Filter:
        field = self._word()
        operator = self.tokens.pop(0) if self.tokens else ""
        if operator not in ("=", "!=", ":", *_ORDERED):
            raise BadFilter(f"{field!r} is compared with nothing")
        value, path = _unquoted(self._word()), _path(field)
        return lambda resource: _holds(_field(resource, path), operator, value)

    def _word(self) -> str:
        if not self.tokens or self.tokens[0] in ("(", ")", "=", "!=", ":", *_ORDERED):
            raise BadFilter(f"a word is missing before {self.tokens[0]!r}" if self.tokens else "it ends too early")
        return self.tokens.pop(0)

    def _next_is(self, token: str) -> bool:
        if self.tokens and self.tokens[0] == token:
            self.tokens.pop(0)
            return True
        return False


def _path(field: str) -> list[str]:
    return [_unquoted(part) for part in re.findall(r'"(?:\\.|[^"\\])*"|[^."]+', field)]


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if len(text) > 1 and text[0] == text[-1] == '"' else text


def _field(resource: Any, path: list[str]) -> Any:
    for name in path:
        if not isinstance(resource, dict) or name not in resource:
            return None
        resource = resource[name]
    return resource


def _holds(found: Any, operator: str, value: str) -> bool:
    if operator == "!=":
        return not _holds(found, "=", value)
    if found is None:
        return False
    if value == "*" and operator in ("=", ":"):
        return True
    if (operator == ":" and isinstance(found, (dict, list))) or (operator == "=" and isinstance(found, list)):
        # As of Cloud Build's tags, a list is equal to each that it has.
        return value in found
    text = str(found).lower() if isinstance(found, bool) else str(found)
    if operator == ":" and "*" in value:
        pattern = ".*".join(re.escape(part) for part in value.split("*"))
        return re.fullmatch(pattern, text, re.IGNORECASE | re.DOTALL) is not None
    if operator == ":":
        return value.lower() in text.lower()
    if operator == "=":
        return text == value
    left, right = _comparable(text), _comparable(value)
    return type(left) is type(right) and _ORDERED[operator](left, right)


def _comparable(text: str) -> datetime | float | str:
    """A time, else a number, else the text."""
    if re.match(r"\d{4}-\d\d-\d\dT", text):
        # Nanoseconds are more than a datetime holds.
        return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
    try:
        return float(text)
    except ValueError:
        return text
