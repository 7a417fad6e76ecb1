"""What a request over the JSON API is, and what it gets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from email.message import Message
from typing import TYPE_CHECKING, Any, NamedTuple

from emulated_cloud.storage.errors import GcsError
from emulated_cloud.storage.preconditions import Preconditions
from emulated_cloud.storage.store import Store
from emulated_cloud.storage.uploads import Uploads

if TYPE_CHECKING:
    from emulated_cloud.storage.operations import Operations


@dataclass
class Call:
    """A request whose body is a JSON document or nothing: what a batch may hold.

    `path` is what follows /storage/v1, split and unquoted; `base_url` how the client reached us.
    """

    method: str
    path: list[str]
    query: dict[str, str]
    raw_query: str
    headers: Message
    body: Any
    base_url: str
    uploads: Uploads
    operations: Operations

    @property
    def store(self) -> Store:
        return self.uploads.store

    @property
    def preconditions(self) -> Preconditions:
        """Raises GcsError 400."""
        return Preconditions.of_query(self.query, self.headers)


class Answer(NamedTuple):
    status: int
    body: dict[str, Any] | None


def parse_json(body: bytes) -> Any:
    """Raises GcsError 400."""
    try:
        return json.loads(body or b"{}")
    except ValueError:
        raise GcsError(400, "parseError", "Parse Error") from None
