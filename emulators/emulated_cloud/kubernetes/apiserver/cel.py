"""Rules of definitions (`x-kubernetes-validations`): as much of the Common Expression Language as GKE's kinds are
judged by, compiled to functions.

The language: https://github.com/google/cel-spec/blob/master/doc/langdef.md; functions of Kubernetes:
https://kubernetes.io/docs/reference/using-api/cel/. Operators, `? :`, `in`, indices, `has` and the macros of lists, and
the functions of _METHODS and _FUNCTIONS; no arithmetic but sums, no types. As there, `||` and `&&` take no notice of an
error on one side when the other decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import urlsplit

Scope = dict[str, Any]
Expression = Callable[[Scope], Any]


class CelError(Exception):
    """A rule that came to no verdict: the words of the real evaluator."""


class UnknownRule(Exception):
    """A rule that says something this does not know: which, and where."""


_TOKEN = re.compile(
    r"""\s*(?:(?P<raw>r\"\"\".*?\"\"\"|r'[^']*'|r"[^"]*")|(?P<text>'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")"""
    r"""|(?P<number>\d+(?:\.\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<sign>\|\||&&|[=!<>]=|[-+!<>?:.,()\[\]]))""",
    re.DOTALL,
)
_MACROS = ("all", "exists", "exists_one", "filter", "map")
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
    "in": lambda left, right: left in right,
}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|ms|us|ns|m|s)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def _duration(text: str) -> float:
    """Seconds of a Go duration."""
    if not re.fullmatch(rf"(?:{_DURATION.pattern})+", text):
        raise CelError(f"type conversion error from 'string' to 'google.protobuf.Duration': {text}")
    return sum(float(amount) * _SECONDS[unit] for amount, unit in _DURATION.findall(text))


def _is_url(text: str) -> bool:
    try:
        return bool(urlsplit(text).scheme)
    except ValueError:
        return False


_METHODS: dict[str, Callable[..., Any]] = {
    "contains": lambda text, part: part in text,
    "endsWith": lambda text, end: text.endswith(end),
    "matches": lambda text, pattern: re.search(pattern, text) is not None,
    "size": len,
    "split": lambda text, separator: text.split(separator),
    "startsWith": lambda text, start: text.startswith(start),
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"duration": _duration, "isURL": _is_url, "size": len}


@cache
def compiled(rule: str) -> Expression:
    """Raises UnknownRule."""
    return _Parser(rule).whole()


def holds(rule: str, self_: Any, old: Any = None) -> bool:
    """Whether `self_` (and what it was, `oldSelf`) is as the rule wants it. Raises CelError and UnknownRule."""
    try:
        return bool(compiled(rule)({"self": self_, "oldSelf": old}))
    except TypeError as error:
        raise CelError("no such overload") from error


class _Parser:
    """Recursive descent; each method reads what its name says and returns what evaluates it."""

    def __init__(self, rule: str):
        self._rule = rule
        self._tokens: list[tuple[str, str]] = []
        self._selected: tuple[Expression, str] | None = None
        """The field that was read last, and of what."""
        position, end = 0, len(rule.rstrip())
        while position < end:
            found = _TOKEN.match(rule, position)
            if found is None or found.lastgroup is None:
                raise UnknownRule(f"{rule}: {rule[position:]}")
            self._tokens.append((found.lastgroup, found[found.lastgroup]))
            position = found.end()
        self._tokens.append(("end", ""))
        self._at = 0

    def whole(self) -> Expression:
        found = self._choice()
        self._expect("")
        return found

    def _peek(self) -> str:
        kind, text = self._tokens[self._at]
        return text if kind in ("sign", "name", "end") else ""

    def _take(self, *texts: str) -> str:
        """The next token, if it is one of these; empty if not."""
        text = self._peek()
        if self._tokens[self._at][0] != "end" and text in texts:
            self._at += 1
            return text
        return ""

    def _expect(self, text: str) -> None:
        kind, found = self._tokens[self._at]
        if (kind == "end") != (text == "") or found != text:
            raise UnknownRule(f"{self._rule}: {found or 'its end'} where {text or 'its end'} is due")
        self._at += 1

    def _choice(self) -> Expression:
        condition = self._any()
        if not self._take("?"):
            return condition
        yes = self._choice()
        self._expect(":")
        no = self._choice()
        return lambda scope: yes(scope) if condition(scope) else no(scope)

    def _any(self) -> Expression:
        found = self._every()
        while self._take("||"):
            found = _either(found, self._every(), decisive=True)
        return found

    def _every(self) -> Expression:
        found = self._relation()
        while self._take("&&"):
            found = _either(found, self._relation(), decisive=False)
        return found

    def _relation(self) -> Expression:
        found = self._sum()
        while sign := self._take(*_COMPARE):
            found = _applied(_COMPARE[sign], found, self._sum())
        return found

    def _sum(self) -> Expression:
        found = self._unary()
        while self._take("+"):
            found = _applied(lambda left, right: left + right, found, self._unary())
        return found

    def _unary(self) -> Expression:
        if self._take("!"):
            return _applied(lambda value: not value, self._unary())
        if self._take("-"):
            return _applied(lambda value: -value, self._unary())
        return self._member()

    def _member(self) -> Expression:
        found = self._primary()
        while sign := self._take(".", "["):
            if sign == "[":
                found = _applied(_item, found, self._choice())
                self._expect("]")
                continue
            name = self._name()
            if not self._take("("):
                self._selected = found, name
                found = _field(found, name)
            elif name in _MACROS:
                found = self._macro(found, name)
            elif name in _METHODS:
                found = _applied(_METHODS[name], found, *self._arguments(")"))
            else:
                raise UnknownRule(f"{self._rule}: {name}()")
        return found

    def _primary(self) -> Expression:
        kind, text = self._tokens[self._at]
        self._at += 1
        if kind == "raw":
            value: Any = text[4:-3] if text.startswith('r"""') else text[2:-1]
            return lambda _: value
        if kind == "text":
            unescaped = re.sub(r"\\(.)", r"\1", text[1:-1])
            return lambda _: unescaped
        if kind == "number":
            number = float(text) if "." in text else int(text)
            return lambda _: number
        if text == "(":
            found = self._choice()
            self._expect(")")
            return found
        if text == "[":
            items = self._arguments("]")
            return lambda scope: [item(scope) for item in items]
        if kind == "name" and text in ("true", "false"):
            return lambda _: text == "true"
        if kind == "name" and self._take("("):
            if text == "has":
                return self._has()
            if text in _FUNCTIONS:
                return _applied(_FUNCTIONS[text], *self._arguments(")"))
        elif kind == "name":
            return lambda scope: scope[text]
        raise UnknownRule(f"{self._rule}: {text}")

    def _has(self) -> Expression:
        """`has(e.f)`: e must be there, its field may be."""
        self._member()
        if self._selected is None:
            raise UnknownRule(f"{self._rule}: has() of what is no field")
        owner, name = self._selected
        self._expect(")")
        return lambda scope: name in owner(scope)

    def _macro(self, over: Expression, macro: str) -> Expression:
        variable = self._name()
        self._expect(",")
        body = self._choice()
        self._expect(")")

        def each(scope: Scope) -> list[tuple[Any, Any]]:
            return [(item, body({**scope, variable: item})) for item in over(scope)]

        results: dict[str, Expression] = {
            "all": lambda scope: all(result for _, result in each(scope)),
            "exists": lambda scope: any(result for _, result in each(scope)),
            "exists_one": lambda scope: sum(bool(result) for _, result in each(scope)) == 1,
            "filter": lambda scope: [item for item, result in each(scope) if result],
            "map": lambda scope: [result for _, result in each(scope)],
        }
        return results[macro]

    def _arguments(self, end: str) -> list[Expression]:
        found: list[Expression] = []
        while not self._take(end):
            if found:
                self._expect(",")
            found.append(self._choice())
        return found

    def _name(self) -> str:
        kind, text = self._tokens[self._at]
        if kind != "name":
            raise UnknownRule(f"{self._rule}: {text} where a name is due")
        self._at += 1
        # Fields that are words of the language are written so.
        return re.sub(r"^__(\w+)__$", r"\1", text)


def _applied(function: Callable[..., Any], *arguments: Expression) -> Expression:
    return lambda scope: function(*(argument(scope) for argument in arguments))


def _field(owner: Expression, name: str) -> Expression:
    def found(scope: Scope) -> Any:
        value = owner(scope)
        if not isinstance(value, dict) or name not in value:
            raise CelError(f"no such key: {name}")
        return value[name]

    return found


def _item(value: Any, index: Any) -> Any:
    try:
        return value[index]
    except LookupError:
        words = "no such key" if isinstance(value, dict) else "index out of bounds"
        raise CelError(f"{words}: {index}") from None


def _either(left: Expression, right: Expression, decisive: bool) -> Expression:
    """`||` (decided by true) and `&&` (by false)."""

    def found(scope: Scope) -> bool:
        errors = []
        for side in (left, right):
            try:
                if bool(side(scope)) is decisive:
                    return decisive
            except CelError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return not decisive

    return found
