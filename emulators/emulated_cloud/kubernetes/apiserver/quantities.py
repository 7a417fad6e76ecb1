"""Quantities in their canonical form, in which the real server gives them back (`1000m` is `1`, `1024Mi` is `1Gi`).

Follows k8s.io/apimachinery/pkg/api/resource: the suffix family that was written stays, the mantissa becomes an integer
and the suffix the largest that keeps it one; nothing finer than nano.
"""

from __future__ import annotations

import re
from decimal import ROUND_UP, Decimal
from typing import Any

QUANTITY_WORDS = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
"""What the real server says to a text that is no quantity."""

_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_QUANTITY = re.compile(r"^([+-]?(?:\d+\.?\d*|\.\d+))(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E|[eE][+-]?\d+)?$")


def parsed(quantity: Any) -> Decimal | None:
    """The amount; None when it is not a quantity."""
    found = _QUANTITY.match(str(quantity))
    if not found:
        return None
    number, suffix = Decimal(found[1]), found[2] or ""
    if suffix in _BINARY:
        return number * Decimal(1024) ** _BINARY[suffix]
    power = _DECIMAL[suffix] if suffix in _DECIMAL else int(suffix[1:])
    return number.scaleb(power)


def canonical(quantity: Any) -> str:
    """The canonical text; what is not a quantity comes back as it is, for validation to refuse."""
    amount = parsed(quantity)
    if amount is None:
        return str(quantity)
    suffix = (_QUANTITY.match(str(quantity)) or [""] * 3)[2] or ""
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
