"""`meta.k8s.io/v1 Table` answers: rows of what `kubectl get` prints.

Columns of built-in kinds are in printers.py; those of custom resources are their definition's
`additionalPrinterColumns`. Kinds without columns of their own show name and age.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from emulated_cloud.kubernetes.apiserver.printers import AGE, COLUMNS, NAME, Column, age, get
from emulated_cloud.kubernetes.apiserver.resources import Resource

Object = dict[str, Any]


def _custom_columns(resource: Resource) -> list[Column]:
    declared = (resource.crd or {}).get("additionalPrinterColumns") or []
    if not declared:
        return [NAME, AGE]
    return [
        NAME,
        *(
            (column["name"], column["type"], column.get("priority", 0), _json_path(column["jsonPath"], column["type"]))
            for column in declared
        ),
    ]


def _json_path(path: str, kind: str) -> Callable[[Object], Any]:
    """The simple JSONPath of printer columns: fields, `[?(@.key=="value")]` filters, indexes, `[*]`."""
    steps = re.findall(
        r"\[\?\(@\.([\w.]+)\s*==\s*[\"']([^\"']*)[\"']\)\]|\[['\"](.*?)['\"]\]|\[(\d+|\*)\]|\.((?:\\.|[^.\[])+)", path
    )

    def read(item: Object) -> Any:
        values: list[Any] = [item]
        for key, wanted, quoted_name, index, name in steps:
            following: list[Any] = []
            for value in values:
                if key and isinstance(value, list):
                    following += [each for each in value if str(get(key)(each)) == wanted]
                elif index and isinstance(value, list):
                    following += value if index == "*" else value[int(index) : int(index) + 1]
                elif (name or quoted_name) and isinstance(value, dict):
                    field = quoted_name or name.replace("\\.", ".")
                    following += [value[field]] if field in value else []
            values = following
        if not values or values[0] is None:
            return None
        if kind == "date":
            return age(str(values[0]))
        return values[0] if len(values) == 1 else ",".join(str(value) for value in values)

    return read


def table(
    resource: Resource,
    items: list[tuple[Object, Object]],
    metadata: Object,
    *,
    with_headers: bool = True,
    include: str = "Metadata",
) -> Object:
    """A Table of `items`: each as it is stored (which columns read) and as it is served (which rows carry)."""
    columns = COLUMNS.get(resource.kind, [NAME, AGE]) if resource.crd is None else _custom_columns(resource)
    made: Object = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
    made["columnDefinitions"] = (
        [
            {
                "name": name,
                "type": kind,
                "format": "name" if name == "Name" else "",
                "description": "",
                "priority": priority,
            }
            for name, kind, priority, _ in columns
        ]
        if with_headers
        else None
    )
    made["rows"] = []
    for item, shown in items:
        row: Object = {"cells": [read(item) for *_, read in columns]}
        if include == "Object":
            row["object"] = shown
        elif include == "Metadata":
            row["object"] = partial(shown)
        made["rows"].append(row)
    return made


def partial(item: Object) -> Object:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}
