"""Rules of definitions: the language as far as GKE's kinds use it, and that they use no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import emulated_cloud.kubernetes
import pytest
import yaml
from emulated_cloud.kubernetes.apiserver.cel import CelError, UnknownRule, compiled, holds

CRDS = Path(emulated_cloud.kubernetes.__file__).parent / "crds"


def _rules(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return {rule for item in schema for rule in _rules(item)}
    if not isinstance(schema, dict):
        return set()
    own = schema.get("x-kubernetes-validations", [])
    return {entry["rule"] for entry in own} | {rule for value in schema.values() for rule in _rules(value)}


@pytest.mark.parametrize("path", sorted(CRDS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_rule_of_an_installed_kind_can_be_judged(path: Path) -> None:
    for rule in _rules(yaml.load(path.read_bytes(), yaml.CSafeLoader)):
        compiled(rule)


@pytest.mark.parametrize(
    ("rule", "value", "verdict"),
    [
        ("self.a + self.b == 3 && !(self.a > self.b)", {"a": 1, "b": 2}, True),
        ("has(self.a) ? self.a == 'x' : true", {}, True),
        ("has(self.a.b) || self.c", {"a": {}, "c": False}, False),
        ("self.a || true", {}, True),
        ("true || self.a", {}, True),
        ("self.a && false", {}, False),
        ("self.all(x, self.exists_one(y, x == y))", [1, 2, 1], False),
        ("self.filter(x, x.startsWith('a')).size() <= 1 && self[0].endsWith(\"b\")", ["ab", "b"], True),
        ("self in ['a', 'b']", "b", True),
        (r'self.matches(r"""^[a-z]+\.x$""") && !self.contains("..")', "ab.x", True),
        ("self.all(k, k.split('/')[0].size() < 3)", {"ab/c": "1", "abc": "2"}, False),
        ("has(self.__namespace__) && duration(self.t) > duration('1m30s')", {"namespace": "n", "t": "0.1h"}, True),
        ("!isURL(self)", "no url", True),
        ("size(self) - 1 > 0", "ab", None),
    ],
)
def test_language(rule: str, value: Any, verdict: bool | None) -> None:
    if verdict is None:
        with pytest.raises(UnknownRule):
            holds(rule, value)
    else:
        assert holds(rule, value) is verdict


def test_an_error_that_decides_is_one() -> None:
    with pytest.raises(CelError, match=r"^no such key: portSpecification$"):
        holds("self.portSpecification == 'X' ? has(self.port) : true", {"port": 1})
    with pytest.raises(CelError, match=r"^index out of bounds: 0$"):
        holds("self[0] == 1", [])
    with pytest.raises(CelError, match=r"^no such overload$"):
        holds("self > 1", "text")


def test_a_change_is_judged_by_what_was() -> None:
    assert holds("self == oldSelf", 1, 1)
    assert not holds("self == oldSelf", 1, 2)
