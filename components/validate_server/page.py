"""The verdict as a page that needs nothing but itself: KFP's HTML artifact."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from serving.settings import Settings
from serving.weights.release import Release

_NOTHING: dict[str, Any] = {"chat": [], "adapters": [], "streaming": None, "load": []}


def render(settings: Settings, release: Release, verdict: dict[str, Any]) -> str:
    """The page for a verdict (checks.verdict), or for one that was given before anything was asked: then without
    figures."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))
    figures = verdict.get("figures", _NOTHING)
    verdict = {"warnings": [], "through": None, **verdict}
    return template.render(settings=settings, release=release, verdict=verdict, figures=figures)
