"""Cloud Logging, version 2: entries to list.

What they are, others write: a file of LogEntry objects, one JSON line each, which may grow meanwhile (config: `logs`).
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from emulated_cloud.google import filters
from emulated_cloud.google.call import Call
from emulated_cloud.google.errors import permission_denied, refusal

PAGE_SIZE, MOST_IN_A_PAGE = 50, 1000
_LOG_ID = re.compile(r'log_id\(\s*"([^"]*)"\s*\)')
ORDERS = {"": False, "timestamp asc": False, "timestamp desc": True}


def answer(call: Call) -> dict[str, Any] | None:
    match call.version, call.method, call.path, call.verb:
        case "v2", "POST", ["entries"], "list":
            return entries(call, call.body)
    return None


def entries(call: Call, asked: dict[str, Any]) -> dict[str, Any]:
    """Those of our project that the filter lets through, by time, a page of them."""
    names = asked.get("resourceNames") or []
    if not names:
        raise refusal("INVALID_ARGUMENT", "At least one resource name must be specified")
    for name in names:
        if not call.config.is_project(name.removeprefix("projects/")) or call.config.is_denied(f"{name}/logs"):
            raise permission_denied("logging.logEntries.list", name)
    order = asked.get("orderBy", "")
    if order not in ORDERS:
        raise refusal("INVALID_ARGUMENT", f"Invalid order_by: {order}")
    try:
        wanted = filters.parse(_LOG_ID.sub(lambda found: _log_name(call, found[1]), asked.get("filter", "")))
    except filters.BadFilter as error:
        raise refusal("INVALID_ARGUMENT", f"Unparseable filter: {error}") from None
    found = [entry for entry in _written(call.config.logs) if wanted(entry)]
    found.sort(key=lambda entry: entry["timestamp"], reverse=ORDERS[order])
    size = min(int(asked.get("pageSize") or PAGE_SIZE), MOST_IN_A_PAGE)
    token = asked.get("pageToken") or "0"
    if not token.isdecimal():
        raise refusal("INVALID_ARGUMENT", "page_token: invalid")
    first = int(token)
    page: dict[str, Any] = {"entries": found[first : first + size]} if found[first:] else {}
    return page | ({"nextPageToken": str(first + size)} if found[first + size :] else {})


def _log_name(call: Call, log: str) -> str:
    """What `log_id("…")` in a filter stands for: the name has the id as it is in a path."""
    return f'logName="projects/{call.config.project_id}/logs/{quote(log, safe="")}"'


def _written(logs: str) -> list[dict[str, Any]]:
    """All entries, with what Logging adds to each; the last line may be one that is still being written."""
    if not logs or not Path(logs).exists():
        return []
    lines = Path(logs).read_text(encoding="utf-8").split("\n")[:-1]
    return [
        {
            "insertId": hashlib.sha256(f"{number} {line}".encode()).hexdigest()[:16],
            "receiveTimestamp": (entry := json.loads(line))["timestamp"],
            **entry,
        }
        for number, line in enumerate(lines)
        if line
    ]
