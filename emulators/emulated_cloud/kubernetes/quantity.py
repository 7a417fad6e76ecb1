"""Kubernetes quantities (`500m`, `10Gi`): their value, and the canonical form in which the real server gives them back.

Follows k8s.io/apimachinery/pkg/api/resource.
"""

from __future__ import annotations

import re
from decimal import ROUND_UP, Decimal
from typing import Any

QUANTITY_WORDS = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
"""What the real server says to a text that is no quantity."""

_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?", re.ASCII)


def parse_quantity(quantity: Any) -> Decimal:
    """The exact amount. Raises ValueError for what is not a quantity."""
    return _parsed(quantity)[0]


def is_quantity(quantity: Any) -> bool:
    return _QUANTITY.fullmatch(str(quantity)) is not None


def canonical(quantity: Any) -> str:
    """The canonical text (`1000m` is `1`, `1024Mi` is `1Gi`): the suffix family that was written stays, the mantissa
    becomes an integer and the suffix the largest that keeps it one; nothing finer than nano. Raises ValueError for
    what is not a quantity."""
    amount, suffix = _parsed(quantity)
    if suffix in _BINARY and amount == amount.to_integral_value() and abs(amount) >= 1024:
        for name, power in reversed(_BINARY.items()):
            scaled = amount / Decimal(1024) ** power
            if scaled == scaled.to_integral_value():
                return f"{int(scaled)}{name}"
        return str(int(amount))
    amount = amount.quantize(Decimal("1e-9"), rounding=ROUND_UP)
    if not amount:
        return "0"
    exponential = suffix[:1] in ("e", "E") and len(suffix) > 1
    for name, power in reversed(_DECIMAL.items()):
        scaled = amount.scaleb(-power)
        if scaled == scaled.to_integral_value():
            written = name if not exponential or not power else f"e{power}"
            return f"{int(scaled)}{written}"
    raise AssertionError("every amount has at most nine decimals")


def _parsed(quantity: Any) -> tuple[Decimal, str]:
    found = _QUANTITY.fullmatch(str(quantity))
    if not found:
        raise ValueError(f"not a quantity: {quantity!r}")
    number, suffix = Decimal(found[1]), found[2] or ""
    if suffix in _BINARY:
        return number * Decimal(1024) ** _BINARY[suffix], suffix
    return number.scaleb(_DECIMAL[suffix] if suffix in _DECIMAL else int(suffix[1:])), suffix
