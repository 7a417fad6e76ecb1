"""Cloud Monitoring, version 3: which metrics there are, and their points.

What they are, others write: a file with TimeSeries objects as one JSON list, written anew at each scrape
(kubernetes/gke/prometheus.py; config: `metrics`).
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from emulated_cloud.google import filters
from emulated_cloud.google.access import allow
from emulated_cloud.google.call import Call
from emulated_cloud.google.errors import refusal

PAGE_SIZE = 1000
_ONE_OF = re.compile(r"([\w.\"]+)\s*=\s*one_of\(([^)]*)\)")
ALIGNERS = ("ALIGN_NONE", "ALIGN_NEXT_OLDER", "ALIGN_MEAN")
"""Of a gauge's points: all of them, the newest of a period, or their mean."""


def answer(call: Call) -> dict[str, Any] | None:
    match call.version, call.method, call.path, call.verb:
        case "v3", "GET", ["projects", project, "metricDescriptors", *kind], _ if kind:
            # A metric's name may have a colon in its last part, which is no verb.
            return descriptor(call, project, "/".join(kind) + (f":{call.verb}" if call.verb else ""))
        case "v3", "GET", ["projects", project, "timeSeries"], "":
            return time_series(call, project)
    return None


def descriptor(call: Call, project: str, kind: str) -> dict[str, Any]:
    """A metric that somebody has written once."""
    allow(call, "monitoring.metricDescriptors.get", f"projects/{project}", project)
    found = next((series for series in _written(call.config.metrics) if series["metric"]["type"] == kind), None)
    if found is None:
        raise refusal("NOT_FOUND", f"Could not find descriptor for metric '{kind}'.")
    return {
        "name": f"projects/{call.config.project_id}/metricDescriptors/{kind}",
        "type": kind,
        "metricKind": found["metricKind"],
        "valueType": found["valueType"],
        "labels": [{"key": name} for name in sorted(found["metric"]["labels"])],
    }


def time_series(call: Call, project: str) -> dict[str, Any]:
    """The series that the filter lets through, with their points in the interval, the newest first."""
    allow(call, "monitoring.timeSeries.list", f"projects/{project}", project)
    query = call.query
    try:
        wanted = filters.parse(_ONE_OF.sub(_either, query.get("filter", "")))
    except filters.BadFilter as error:
        raise refusal("INVALID_ARGUMENT", f"Field filter had an invalid value: {error}") from None
    if "metric.type" not in query.get("filter", ""):
        raise refusal("INVALID_ARGUMENT", "Field filter had an invalid value: it must restrict metric.type.")
    end, start = _time(query, "interval.endTime"), _time(query, "interval.startTime")
    if end is None:
        raise refusal("INVALID_ARGUMENT", "Field interval.endTime had an invalid value: it is required.")
    aligner = query.get("aggregation.perSeriesAligner", "ALIGN_NONE")
    if aligner not in ALIGNERS:
        raise refusal("INVALID_ARGUMENT", f"Field aggregation.perSeriesAligner had an invalid value: {aligner}")
    found = []
    for series in _written(call.config.metrics):
        points = [p for p in series["points"] if (start or end) <= _parsed(p["interval"]["endTime"]) <= end]
        if points and wanted(series):
            found.append({**series, "points": _aligned(points, aligner)})
    first = int(query.get("pageToken") or 0)
    size = min(int(query.get("pageSize") or PAGE_SIZE), PAGE_SIZE)
    page: dict[str, Any] = {"timeSeries": found[first : first + size]} if found[first:] else {}
    return page | ({"nextPageToken": str(first + size)} if found[first + size :] else {})


def _aligned(points: list[dict[str, Any]], aligner: str) -> list[dict[str, Any]]:
    if aligner == "ALIGN_NEXT_OLDER":
        return points[:1]
    if aligner == "ALIGN_MEAN":
        mean = sum(point["value"]["doubleValue"] for point in points) / len(points)
        return [{**points[0], "value": {"doubleValue": mean}}]
    return points


def _either(found: re.Match[str]) -> str:
    """`field = one_of("a", "b")` in the operators that all services have."""
    values = re.findall(r'"(?:\\.|[^"\\])*"', found[2])
    return f"({' OR '.join(f'{found[1]} = {value}' for value in values)})"


def _time(query: dict[str, str], field: str) -> datetime | None:
    text = query.get(field)
    try:
        return _parsed(text) if text else None
    except ValueError:
        raise refusal("INVALID_ARGUMENT", f"Field {field} had an invalid value: {text}") from None


def _parsed(text: str) -> datetime:
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))


def _written(path: str) -> list[dict[str, Any]]:
    if not path or not Path(path).exists():
        return []
    found: list[dict[str, Any]] = json.loads(Path(path).read_bytes())
    return found
