"""Schemas of kinds: the OpenAPI definitions that kubernetes_validate carries, and those of custom resources.

One class answers what the rest of the server asks of a schema: which fields exist, how lists are merged
(`x-kubernetes-list-type`, `x-kubernetes-patch-merge-key`), what is required. `decode` does to an object what the real
server's decoder does: it refuses wrong types, drops nulls and reports unknown fields.
"""

from __future__ import annotations

import json
import re
from functools import cache, cached_property
from importlib import resources as package_files
from typing import Any

from emulated_cloud.kubernetes.apiserver.errors import ApiError, bad_request
from emulated_cloud.kubernetes.quantity import QUANTITY_WORDS, is_quantity

DEFINITIONS_VERSION = "1.35.0"

_OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"


@cache
def definitions() -> dict[str, dict[str, Any]]:
    """All OpenAPI definitions of the built-in kinds, by name."""
    folder = package_files.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{DEFINITIONS_VERSION}-local"
    found: dict[str, dict[str, Any]] = json.loads((folder / "_definitions.json").read_bytes())["$defs"]
    # The published definitions leave defaults out; these two are parts of list-map keys, so merging needs them.
    for port in ("ContainerPort", "ServicePort"):
        found[f"io.k8s.api.core.v1.{port}"]["properties"]["protocol"]["default"] = "TCP"
    return found


@cache
def builtin(name: str) -> Schema:
    return Schema(definitions()[name], name.rpartition(".")[2])


class Schema:
    """One node of a schema.

    `kind` is `map`, `list`, `scalar`, or `any` where the schema says nothing (merging then goes by the value).
    """

    def __init__(self, raw: dict[str, Any], name: str = ""):
        self.name = name
        """Go's name of the struct, for messages; empty where the schema is inline."""
        while "$ref" in raw:
            self.name = raw["$ref"].rpartition(".")[2]
            beside = {key: value for key, value in raw.items() if key not in ("$ref", "description")}
            raw = {**definitions()[raw["$ref"].rpartition("/")[2]], **beside}
        self.raw = raw

    @classmethod
    def of_custom(cls, raw: dict[str, Any]) -> Schema:
        """The root schema of a custom resource: its own, with the fields that every object has."""
        common = {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"$ref": f"#/$defs/{_OBJECT_META}"},
        }
        if not raw:
            return cls({"type": "object", "properties": common, "x-kubernetes-preserve-unknown-fields": True})
        return cls({**raw, "type": "object", "properties": {**raw.get("properties", {}), **common}})

    @cached_property
    def types(self) -> list[str]:
        """JSON types that the schema allows; empty where it allows any."""
        if self.raw.get("x-kubernetes-int-or-string"):
            return ["integer", "string"]
        found = self.raw.get("type", [])
        found = [found] if isinstance(found, str) else list(found)
        for choice in self.raw.get("oneOf", []) if not found else []:
            found += choice.get("type", [])
        return found

    @cached_property
    def kind(self) -> str:
        if self.raw.get("properties") or isinstance(self.raw.get("additionalProperties"), dict):
            return "map"
        if "array" in self.types:
            return "list"
        return "any" if not self.types or "object" in self.types else "scalar"

    @cached_property
    def keeps_unknown(self) -> bool:
        return self.kind == "any" or bool(self.raw.get("x-kubernetes-preserve-unknown-fields"))

    @cached_property
    def atomic(self) -> bool:
        """Whether the value is owned and replaced as a whole."""
        if self.kind == "map":
            return self.raw.get("x-kubernetes-map-type") == "atomic"
        return self.kind == "list" and self.raw.get("x-kubernetes-list-type", "atomic") == "atomic"

    @cached_property
    def list_keys(self) -> list[str]:
        """Fields that name an item of a `map` list; empty for a `set` or an atomic list."""
        return self.raw.get("x-kubernetes-list-map-keys", [])

    @cached_property
    def fields(self) -> dict[str, Schema]:
        return {name: Schema(raw) for name, raw in self.raw.get("properties", {}).items()}

    @cached_property
    def element(self) -> Schema:
        """Of a list's items, or of a map's values; of anything where neither is declared."""
        raw = self.raw.get("items") if self.kind == "list" else self.raw.get("additionalProperties")
        return Schema(raw) if isinstance(raw, dict) else ANY

    def of(self, field: str) -> Schema:
        """The schema of a map's value."""
        return self.fields.get(field) or self.element

    @property
    def patch_merge_key(self) -> str | None:
        return self.raw.get("x-kubernetes-patch-merge-key")

    @cached_property
    def patch_strategies(self) -> list[str]:
        strategy = self.raw.get("x-kubernetes-patch-strategy")
        return strategy.split(",") if strategy else []


ANY = Schema({})

_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}


def fits(value: Any, types: list[str]) -> bool:
    if not types:
        return True
    if isinstance(value, bool):
        return "boolean" in types
    if isinstance(value, float) and value.is_integer() and "integer" in types:
        return True
    return any(isinstance(value, _PYTHON_TYPES.get(name, ())) for name in types)


def json_type(value: Any) -> str:
    """A value's JSON type as Go's decoder names it."""
    if isinstance(value, bool):
        return "bool"
    return {str: "string", int: "number", float: "number", list: "array", dict: "object"}.get(type(value), "null")


class WrongType(Exception):
    """A value that the schema of a field cannot hold."""

    def __init__(self, path: str, value: Any, schema: Schema, owner: str):
        super().__init__(path)
        self.path, self.value, self.types = path, value, schema.types
        self._schema, self._owner = schema, owner

    def as_bad_request(self, kind: str, version: str) -> ApiError:
        """As the decoder of built-in kinds words it."""
        return bad_request(
            f'{kind} in version "{version}" cannot be handled as a {kind}: json: cannot unmarshal '
            f"{json_type(self.value)} into Go struct field {self._owner}.{self.path} of type {_go_type(self._schema)}"
        )


def _go_type(schema: Schema) -> str:
    wanted = next((name for name in schema.types if name != "null"), "")
    if wanted == "array":
        return "[]" + _go_type(schema.element)
    if schema.kind == "map" and not schema.fields:
        return "map[string]" + _go_type(schema.element)
    if wanted == "object":
        return f"v1.{schema.name}"
    return {"boolean": "bool", "integer": schema.raw.get("format", "int32")}.get(wanted, wanted)


class Undecodable(Exception):
    """A text that is not what its Go type reads: a quantity, base64, a time."""

    def as_bad_request(self, kind: str, version: str) -> ApiError:
        return bad_request(f'{kind} in version "{version}" cannot be handled as a {kind}: {self}')


_SECONDS = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"
_TIMES = {
    # Reads fractions that its layout does not have; a MicroTime reads exactly six digits of them.
    "Time": ("2006-01-02T15:04:05Z07:00", _SECONDS + r"(\.\d+)?(Z|[+-]\d\d:\d\d)"),
    "MicroTime": ("2006-01-02T15:04:05.000000Z07:00", _SECONDS + r"\.\d{6}(Z|[+-]\d\d:\d\d)"),
}


def _check_text(schema: Schema, value: Any) -> None:
    if schema.name == "Quantity" and not is_quantity(value):
        raise Undecodable(QUANTITY_WORDS)
    if schema.raw.get("format") == "byte" and isinstance(value, str):
        bad = re.search(r"[^A-Za-z0-9+/=\r\n]", value)
        if bad or len(re.sub(r"\s", "", value)) % 4:
            raise Undecodable(f"illegal base64 data at input byte {bad.start() if bad else len(value)}")
    if schema.name in _TIMES and isinstance(value, str):
        layout, pattern = _TIMES[schema.name]
        if not re.fullmatch(pattern, value):
            raise Undecodable(f'parsing time "{value}" as "{layout}": cannot parse "{value}"')


def decode(
    schema: Schema,
    value: Any,
    unknown: list[str],
    path: str = "",
    owner: str = "",
    *,
    check_types: bool = True,
    keep_empty: bool = False,
) -> Any:
    """`value` without the fields that the schema does not have, whose paths go to `unknown`; built-in kinds also
    without nulls and without what Go leaves out, unless `keep_empty` (what is applied is owned, empty or not).

    Raises WrongType and Undecodable for a value that Go could not decode into the field. Without `check_types` only
    the built-in parts of a custom resource are checked so: the rest is its own schema's to judge.
    """
    if (check_types or owner) and not fits(value, schema.types):
        raise WrongType(path, value, schema, owner)
    _check_text(schema, value)
    if isinstance(value, list) and schema.kind == "list":
        return [
            decode(
                schema.element,
                item,
                unknown,
                f"{path}[{index}]",
                owner,
                check_types=check_types,
                keep_empty=keep_empty,
            )
            for index, item in enumerate(value)
        ]
    if not isinstance(value, dict) or schema.kind != "map":
        return value
    decoded: dict[str, Any] = {}
    open_ended = "additionalProperties" in schema.raw or schema.keeps_unknown
    for name, item in value.items():
        field = f"{path}.{name}" if path else name
        of = schema.of(name)
        if name not in schema.fields and not open_ended:
            unknown.append(field)
        elif keep_empty and item is None:
            decoded[name] = None
        elif item is None and (schema.name or owner):
            # A null value of an open map decodes to the element's zero value: "" for labels and their like.
            if name not in schema.fields:
                decoded[name] = "" if "string" in of.types else None
        elif not (
            (item is None and not of.raw.get("nullable") and ("default" in of.raw or of.name))
            or (not keep_empty and item in ([], {}, "") and schema.name and _is_left_out(schema, name, item))
        ):
            decoded[name] = decode(
                of, item, unknown, field, schema.name or owner, check_types=check_types, keep_empty=keep_empty
            )
    return decoded


_POINTERS = {
    "CSIPersistentVolumeSource": {"fsType"},
    "CustomResourceColumnDefinition": {"format"},
    "EndpointPort": {"appProtocol", "name", "protocol"},
    "LeaseSpec": {"holderIdentity", "preferredHolder", "strategy"},
    "PersistentVolumeClaimSpec": {"storageClassName", "volumeAttributesClassName", "volumeMode"},
    "PersistentVolumeSpec": {"volumeAttributesClassName", "volumeMode"},
    "ServicePort": {"appProtocol"},
    "TypedLocalObjectReference": {"apiGroup"},
    "TypedObjectReference": {"apiGroup", "namespace"},
}
"""Optional texts that are pointers in Go, where empty is not the same as absent: those of the kinds in use."""


def _is_left_out(schema: Schema, name: str, value: Any) -> bool:
    """Whether Go leaves an empty value of the field out when it encodes (`omitempty`): lists, maps and texts, not
    structs."""
    field = schema.of(name)
    if name in schema.raw.get("required", []):
        return False
    if value == "":
        return "string" in field.types and name in schema.fields and name not in _POINTERS.get(schema.name, ())
    return field.kind == "list" or (field.kind == "map" and not field.fields)


def fill_required(schema: Schema, value: Any) -> Any:
    """Gives required scalars that are absent their zero value, as Go structs have it in what they encode."""
    if isinstance(value, list):
        return [fill_required(schema.element, item) for item in value]
    if not isinstance(value, dict) or schema.kind != "map":
        return value
    filled = {name: fill_required(schema.of(name), item) for name, item in value.items()}
    zeros: dict[str, Any] = {"string": "", "integer": 0, "boolean": False}
    for name in schema.raw.get("required", []):
        if name not in filled:
            zero = next((zeros[kind] for kind in schema.of(name).types if kind in zeros), None)
            if zero is not None and schema.of(name).raw.get("format") != "date-time":
                filled[name] = zero
    return filled


def copied(value: Any) -> Any:
    """A deep copy of a JSON value (several times faster than copy.deepcopy)."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copied(item) for item in value]
    return value
