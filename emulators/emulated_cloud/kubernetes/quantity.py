"""Kubernetes quantities (`500m`, `10Gi`), and what a pod requests."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from typing import Any

_SUFFIXES: dict[str, Fraction | int] = {
    "": 1, "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000),
    "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60,
}  # fmt: skip
_QUANTITY = re.compile(r"([+-]?[0-9.]+)(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?[0-9]+))?")


def parse_quantity(text: Any) -> Fraction:
    """The exact value. Raises ValueError for what is not a quantity."""
    match = _QUANTITY.fullmatch(str(text))
    if not match:
        raise ValueError(f"not a quantity: {text!r}")
    number, suffix, exponent = match.groups()
    return Fraction(number) * (Fraction(10) ** int(exponent) if exponent else _SUFFIXES[suffix or ""])


def pod_requests(pod: dict[str, Any]) -> Counter[str]:
    """What the scheduler counts for a pod: containers and sidecars together, or the largest init container if that
    is more; a limit stands for a request that is absent. `pods` is 1."""
    spec = pod["spec"]
    steady: Counter[str] = Counter()
    peak: Counter[str] = Counter()
    for container in spec.get("initContainers") or []:
        requests = _requests(container)
        if container.get("restartPolicy") == "Always":
            steady.update(requests)
            continue
        for name, value in requests.items():
            peak[name] = max(peak[name], steady[name] + value)
    for container in spec["containers"]:
        steady.update(_requests(container))
    for name, value in peak.items():
        steady[name] = max(steady[name], value)
    for name, value in (spec.get("overhead") or {}).items():
        steady[name] += parse_quantity(value)  # type: ignore[assignment]
    steady["pods"] = 1
    return steady


def _requests(container: dict[str, Any]) -> dict[str, Any]:
    resources = container.get("resources") or {}
    amounts = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: parse_quantity(value) for name, value in amounts.items()}
