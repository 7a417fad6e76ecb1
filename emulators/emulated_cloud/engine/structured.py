"""Values that satisfy a JSON schema or a regular expression: what guided decoding makes a model say."""

from __future__ import annotations

import random
import re
from typing import Any

from emulated_cloud.engine.text import ENGLISH

MAX_DEPTH = 32
FORMATS = {
    "date": "2026-11-24",
    "time": "09:30:00Z",
    "date-time": "2026-11-24T09:30:00Z",
    "email": "harbor@example.com",
    "uri": "https://example.com/harbor",
    "uuid": "6f1c8c0e-6a52-4c1c-9d0e-3f2b7a5d1e44",
    "ipv4": "192.0.2.7",
    "ipv6": "2001:db8::7",
    "hostname": "harbor.example.com",
    "duration": "P1D",
}


class UnsupportedSchema(ValueError):
    """A schema or pattern that this engine cannot follow; vLLM refuses what its grammar backend cannot."""


def instance(schema: Any, rng: random.Random, root: Any = None, depth: int = 0) -> Any:
    """A value that is valid under `schema` (JSON Schema 2020-12, the keywords that grammar backends know).

    Raises UnsupportedSchema.
    """
    root = schema if root is None else root
    if depth > MAX_DEPTH:
        raise UnsupportedSchema("The schema recurses without an end.")
    if schema is True or schema == {}:
        return "harbor"
    if not isinstance(schema, dict):
        raise UnsupportedSchema(f"Not a JSON schema: {schema!r}")

    def below(sub: Any) -> Any:
        return instance(sub, rng, root, depth + 1)

    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if "$ref" in schema:
        return below(resolve(schema["$ref"], root))
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            rest = {key: value for key, value in schema.items() if key != keyword}
            # The last alternative is tried where the first recurses too deep; `null` is the usual way out.
            return first_that_ends([merge(rest, option, root) for option in schema[keyword]], below)
    if "allOf" in schema:
        merged = {key: value for key, value in schema.items() if key != "allOf"}
        for part in schema["allOf"]:
            merged = merge(merged, part, root)
        return below(merged)
    kind = schema.get("type")
    if isinstance(kind, list):
        return first_that_ends([{**schema, "type": one} for one in kind], below)
    if kind is None:
        kind = "object" if "properties" in schema else "array" if "items" in schema else "string"
    match kind:
        case "object":
            return make_object(schema, below)
        case "array":
            return make_array(schema, below)
        case "string":
            return make_string(schema, rng)
        case "integer" | "number":
            return make_number(schema, rng, kind == "integer")
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
    raise UnsupportedSchema(f"Unsupported type: {kind!r}")


def first_that_ends(options: list[Any], below: Any) -> Any:
    """The value of the first alternative that can be followed."""
    for option in options[:-1]:
        try:
            return below(option)
        except UnsupportedSchema:
            continue
    return below(options[-1])


def resolve(reference: str, root: Any) -> Any:
    """`#/$defs/Name` in the same document."""
    target = root
    try:
        for segment in reference.removeprefix("#").strip("/").split("/"):
            if segment:
                target = target[segment.replace("~1", "/").replace("~0", "~")]
    except (KeyError, TypeError) as error:
        raise UnsupportedSchema(f"Cannot resolve {reference!r}") from error
    return target


def merge(left: Any, right: Any, root: Any) -> Any:
    """Both schemas at once: properties and required add up, the rest of the right one wins."""
    if not isinstance(right, dict):
        return left
    if "$ref" in right:
        right = {**resolve(right["$ref"], root), **{key: value for key, value in right.items() if key != "$ref"}}
    merged = {**left, **right}
    for keyword, empty in (("properties", {}), ("required", [])):
        if keyword in left and keyword in right:
            both = (left[keyword], right[keyword])
            merged[keyword] = {**both[0], **both[1]} if isinstance(empty, dict) else [*both[0], *both[1]]
    return merged


def make_object(schema: dict[str, Any], below: Any) -> dict[str, Any]:
    required = schema.get("required", [])
    value = {}
    for name, sub in schema.get("properties", {}).items():
        try:
            value[name] = below(sub)
        except UnsupportedSchema:
            # A property that recurses for ever is left out where it may be.
            if name in required:
                raise
    for name in required:
        if name not in value:
            value[name] = below(schema.get("additionalProperties", {}))
    for number in range(schema.get("minProperties", 0) - len(value)):
        value[f"key_{number + 1}"] = below(schema.get("additionalProperties", {}))
    return value


def make_array(schema: dict[str, Any], below: Any) -> list[Any]:
    fixed = [below(item) for item in schema.get("prefixItems", [])]
    wanted = schema.get("minItems", 1 if schema.get("maxItems", 1) and not fixed else 0)
    items = schema.get("items", {})
    unique = schema.get("uniqueItems", False)
    value = list(fixed)
    for _ in range(50 * max(wanted, 1)):
        if len(value) >= wanted:
            break
        item = below(items)
        if not (unique and item in value):
            value.append(item)
    if len(value) < wanted:
        raise UnsupportedSchema("Not enough unique items.")
    return value


def make_string(schema: dict[str, Any], rng: random.Random) -> str:
    if "pattern" in schema:
        return from_pattern(schema["pattern"], rng)
    if schema.get("format") in FORMATS:
        return FORMATS[schema["format"]]
    words = f"{rng.choice(ENGLISH[0])} {rng.choice(ENGLISH[1])} {rng.choice(ENGLISH[2])}".replace("_", " ")
    least, most = schema.get("minLength", 0), schema.get("maxLength", len(words))
    while len(words) < least:
        words += " " + rng.choice(ENGLISH[1])
    return words[: max(least, min(most, len(words)))]


def make_number(schema: dict[str, Any], rng: random.Random, whole: bool) -> int | float:
    step = schema.get("multipleOf", 1 if whole else 0.5)
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is None:
        low = 0 if high is None or high >= 0 else high - 100 * step
    if high is None:
        high = low + 100 * step
    first = -int(-low // step)
    first += first * step == schema.get("exclusiveMinimum")
    last = int(high // step)
    last -= last * step == schema.get("exclusiveMaximum")
    if first > last:
        if whole or first * step == low == high:
            raise UnsupportedSchema(f"No number between {low} and {high}.")
        return (low + high) / 2
    value = rng.randint(first, last) * step
    return int(value) if whole else value


def from_pattern(pattern: str, rng: random.Random) -> str:
    """A string that matches a regular expression. Raises UnsupportedSchema for back references and look-around."""
    from re import _parser  # type: ignore[attr-defined]

    try:
        value = "".join(expand(node, rng) for node in _parser.parse(pattern))
    except re.error as error:
        raise UnsupportedSchema(f"Invalid pattern {pattern!r}: {error}") from error
    if re.search(pattern, value) is None:
        raise UnsupportedSchema(f"Unsupported pattern: {pattern!r}")
    return value


CLASSES = {"CATEGORY_DIGIT": "0123456789", "CATEGORY_WORD": "abcdefghijklmnopqrstuvwxyz", "CATEGORY_SPACE": " "}
CLASSES |= {"CATEGORY_NOT_DIGIT": "abc", "CATEGORY_NOT_WORD": "-", "CATEGORY_NOT_SPACE": "abc"}
PRINTABLE = [chr(code) for code in range(32, 127)]


def expand(node: tuple[Any, Any], rng: random.Random) -> str:
    """A string for one node of a parsed regular expression."""
    operation, argument = str(node[0]), node[1]
    match operation:
        case "LITERAL":
            return chr(argument)
        case "NOT_LITERAL":
            return next(char for char in "abc" if ord(char) != argument)
        case "ANY":
            return rng.choice("abcdefghij")
        case "AT":
            return ""
        case "IN":
            allowed = [char for item in argument for char in members(item)]
            if str(argument[0][0]) == "NEGATE":
                allowed = [char for char in PRINTABLE if char not in allowed]
            if not allowed:
                raise UnsupportedSchema("A character class without a printable character.")
            return rng.choice(allowed)
        case "BRANCH":
            return "".join(expand(sub, rng) for sub in rng.choice(argument[1]))
        case "SUBPATTERN":
            return "".join(expand(sub, rng) for sub in argument[3])
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, most, body = argument
            times = rng.randint(least, min(int(most), least + 3))
            return "".join(expand(sub, rng) for _ in range(times) for sub in body)
    raise UnsupportedSchema(f"Unsupported in a pattern: {operation}")


def members(item: tuple[Any, Any]) -> list[str]:
    """The characters that one item of a class stands for."""
    kind, argument = str(item[0]), item[1]
    match kind:
        case "LITERAL":
            return [chr(argument)]
        case "RANGE":
            return [chr(code) for code in range(argument[0], min(argument[1], argument[0] + 255) + 1)]
        case "CATEGORY":
            return list(CLASSES[str(argument)])
    return []
