"""The filters of Google's lists."""

from __future__ import annotations

from typing import Any

import pytest
from emulated_cloud.google.filters import BadFilter, parse

RESOURCE: dict[str, Any] = {
    "name": "builder-1",
    "status": "RUNNING",
    "sizeGb": "20",
    "deletionProtection": False,
    "labels": {"run": "r1", "made-by": "us", "a/b": "c"},
    "tags": ["x", "y"],
    "timestamp": "2026-11-29T10:00:00.123456789Z",
}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "labels.run=r1",
        'labels.run = "r1"',
        "labels.run=r1 AND status=RUNNING",
        "labels.run=r1 status=RUNNING",
        "(labels.run=r2) OR (labels.made-by=us AND NOT status=TERMINATED)",
        "labels.run=r2 OR labels.run=r1",
        "labels.run!=r2",
        "labels.absent!=r2",
        "labels.run:*",
        "labels:run",
        "tags:x",
        "name:BUILDER",
        'labels."a/b"=c',
        "sizeGb>9",
        "sizeGb<=20",
        "deletionProtection=false",
        'timestamp>="2026-11-29T10:00:00Z" AND timestamp<"2026-11-29T11:00:01+01:00"',
    ],
)
def test_what_it_lets_through(text):
    assert parse(text)(RESOURCE)


@pytest.mark.parametrize(
    "text",
    [
        "labels.run=r2",
        "labels.run=r1 AND status=STOPPED",
        "NOT labels.run=r1",
        "labels.absent=r1",
        "labels.absent:*",
        "labels:absent",
        "name:other",
        "sizeGb>20",
        "sizeGb<x",
        'timestamp>"2026-11-29T10:00:01Z"',
    ],
)
def test_what_it_keeps_back(text):
    assert not parse(text)(RESOURCE)


@pytest.mark.parametrize(
    "text", ["labels.run=", "=r1", "labels.run", "(labels.run=r1", "labels.run=r1)", 'a="b', "NOT"]
)
def test_what_it_is_not(text):
    with pytest.raises(BadFilter):
        parse(text)
