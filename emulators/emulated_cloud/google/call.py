"""What every API gets: a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from emulated_cloud.google.config import Config


@dataclass(frozen=True)
class Call:
    """A request: `path` split and unquoted, without the version; `verb` is what follows a colon at its end, `body` the
    JSON object that came with it."""

    method: str
    version: str
    path: list[str]
    verb: str
    query: dict[str, str]
    config: Config
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def resource(self) -> str:
        return "/".join(self.path)


Api = Callable[[Call], dict[str, Any] | None]
"""Answers a call with a JSON document, None when the call is for another API. May raise HttpError."""
