"""The report as a page that needs nothing but itself."""

from __future__ import annotations

import datetime
import math
from importlib.resources import files
from typing import Any

from serving.settings import Settings


def render(settings: Settings | None, report: dict[str, Any], outcomes: list[dict[str, Any]]) -> str:
    """The page for a report (summary.summarize) and the outcomes behind it. `settings`: None for wrong parameters."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["bytes"] = readable_bytes
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    validation: dict[str, Any] = next((item for item in outcomes if item["name"] == "validate_server"), {})
    promotion: dict[str, Any] = next((item for item in outcomes if item["name"] == "promote_generation"), {})
    figures = validation.get("figures") or {}
    return template.render(
        settings=settings,
        report=report,
        outcomes=outcomes,
        began=_moment(outcomes[0]["started_at"]) if outcomes else "",
        longest=max((outcome["seconds"] for outcome in outcomes), default=0) or 1,
        answers=figures.get("chat") or [answer for answer in [validation.get("answer")] if answer],
        load=figures.get("load"),
        canary=promotion.get("canary", []),
        warnings=[*validation.get("warnings", []), *promotion.get("warnings", [])],
    )


def _moment(started_at: str) -> str:
    """A time of an outcome for a reader, to the minute."""
    return f"{datetime.datetime.fromisoformat(started_at).astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC"


def readable_bytes(count: float) -> str:
    """A number of bytes for a reader: `0 bytes`, `4.1 MB`, `23.5 GB` (powers of 1000, as transfers are counted)."""
    if count < 1000:
        return f"{count:.0f} bytes"
    power = min(4, int(math.log10(count)) // 3)
    return f"{count / 1000**power:.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"
