"""Bodies in Kubernetes' protobuf encoding, which kubectl sends when it makes objects itself (`kubectl create job …`).

`protobuf_fields.json` says which field of which message is what, taken from the generated.proto files of k8s.io/api and
apimachinery 0.35: `{"core.v1.ConfigMap": {"2": ["data", "map:string"], …}, …}`. A name is that of the JSON field, empty
where JSON has the message's fields in its parent's place; `*` marks what is a pointer in Go, whose zero value counts.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from emulated_cloud.kubernetes.apiserver.errors import bad_request

CONTENT_TYPE = "application/vnd.kubernetes.protobuf"

_MAGIC = b"k8s\x00"
_META = "apis.meta.v1."


@cache
def _messages() -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = json.loads(
        Path(__file__).with_name("protobuf_fields.json").read_text(encoding="utf-8")
    )
    return found


def decode(body: bytes) -> dict[str, Any]:
    """The object in a body, as JSON has it. Raises ApiError 400."""
    try:
        if not body.startswith(_MAGIC):
            raise ValueError("the prefix k8s is missing")
        envelope = dict(_fields(body[len(_MAGIC) :]))
        kind_of = {number: value.decode() for number, value in _fields(envelope[1])}
        version, kind = kind_of.get(1, ""), kind_of.get(2, "")
        item = _object(_message_name(version, kind), envelope.get(2, b""))
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise bad_request(f"the body is no protobuf of a kind that is served: {error}") from error
    return {"apiVersion": version, "kind": kind, **item}


def _message_name(version: str, kind: str) -> str:
    group, _, number = version.rpartition("/")
    if kind in ("DeleteOptions", "CreateOptions"):
        return _META + kind
    return f"{group.split('.')[0] or 'core'}.{number}.{kind}"


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and raw value of each field: an int, or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
        elif wire == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("it is cut short")
            yield number, data[at : at + length]
            at += length
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            yield number, data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {wire} is not used")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _object(message: str, data: bytes) -> dict[str, Any]:
    described = _messages()[message]
    item: dict[str, Any] = {}
    for number, raw in _fields(data):
        name, sort = described.get(str(number), ["", ""])
        if not sort:
            continue
        shape, _, of = sort.rpartition(":")
        if shape == "map":
            pair = dict(_fields(raw))
            item.setdefault(name, {})[pair[1].decode()] = _value(of, pair.get(2, b""))
        elif shape == "list":
            item.setdefault(name, []).append(_value(of, raw))
        elif not name:
            item |= _object(of, raw)
        else:
            value = _value(of, raw)
            # Go writes the zero values of what is no pointer; JSON leaves them out.
            if of.startswith("*") or value not in ("", 0, False, None):
                item[name] = value
    return item


def _value(sort: str, raw: Any) -> Any:
    sort = sort.lstrip("*")
    if sort in ("int32", "int64"):
        return raw - (1 << 64) if raw >> 63 else raw
    if sort == "bool":
        return bool(raw)
    if sort == "string":
        return raw.decode()
    if sort == "bytes":
        return base64.b64encode(raw).decode()
    if sort == "double":
        return struct.unpack("<d", raw)[0]
    special = _SPECIAL.get(sort)
    if special is None:
        return _object(sort, raw)
    return special(dict(_fields(raw)))


def _moment(fields: dict[int, Any], timespec: str) -> str | None:
    seconds, nanos = _value("int64", fields.get(1, 0)), fields.get(2, 0)
    # Year 1, what Go takes for no time at all, is before every time that is meant.
    if seconds <= 0:
        return None
    moment = datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=nanos // 1000)
    return moment.isoformat(timespec=timespec).replace("+00:00", "Z")


def _int_or_string(fields: dict[int, Any]) -> int | str:
    return fields.get(3, b"").decode() if fields.get(1) else _value("int32", fields.get(2, 0))


def _raw_json(fields: dict[int, Any]) -> Any:
    return json.loads(fields.get(1) or b"null")


_SPECIAL: dict[str, Any] = {
    "api.resource.Quantity": lambda fields: fields.get(1, b"0").decode(),
    "util.intstr.IntOrString": _int_or_string,
    _META + "Time": lambda fields: _moment(fields, "seconds"),
    _META + "MicroTime": lambda fields: _moment(fields, "microseconds"),
    _META + "FieldsV1": _raw_json,
    "runtime.RawExtension": _raw_json,
}
