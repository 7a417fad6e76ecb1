"""GCS's resumable uploads at the level of bytes: one session makes one object, and may break off at any byte.

The service keeps what it has received in multiples of 256 KiB and tells how much that is; the object appears, whole,
with the last byte. The whole content's crc32c goes with the last request, so that an object with other bytes than were
sent never appears (https://cloud.google.com/storage/docs/performing-resumable-uploads).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from serving.clients.patience import Interrupted
from serving.clients.storage import OBJECTS_ROLE, PreconditionError, StoredObject, grant
from serving.clients.wire import Wire, retry_after
from serving.errors import AccessError

QUANTUM = 256 << 10
"""Bytes: every request of a session but the last holds a multiple of it."""


class SessionGone(Interrupted):
    """The session has expired, was cancelled or has failed: the upload starts over in a new one."""


class WrongBytes(Interrupted):
    """What arrived has not the digest that it was sent with. The session is gone."""


class Upload:
    """A resumable session (`storage.open_upload`) for the object `uri` of `size` bytes."""

    def __init__(self, wire: Wire, uri: str, session: str, size: int):
        self._wire, self._uri, self._session, self._size = wire, uri, session, size

    @property
    def last_part(self) -> int:
        """Where the last request starts: the one that makes the object appear."""
        return max(0, (self._size - 1) // QUANTUM * QUANTUM)

    def persisted(self) -> int | StoredObject:
        """How many bytes the service holds, or the object if it holds them all."""
        return self._put({"Content-Range": f"bytes */{self._size}", "Content-Length": "0"})

    def send(self, first: int, last: int, body: Iterable[bytes]) -> int | StoredObject:
        """Sends the bytes from `first` up to, not including, `last`. Returns as `persisted`."""
        headers = {"Content-Range": f"bytes {first}-{last - 1}/{self._size}", "Content-Length": str(last - first)}
        return self._put(headers, body)

    def finish(self, first: int, body: bytes, crc32c: str | None) -> int | StoredObject:
        """Sends the last bytes, with the base64 crc32c of the whole if it is known. Raises WrongBytes."""
        hashes = {"x-goog-hash": f"crc32c={crc32c}"} if crc32c else {}
        if not self._size:
            return self._put({"Content-Range": "bytes */0", "Content-Length": "0", **hashes})
        content_range = f"bytes {first}-{self._size - 1}/{self._size}"
        return self._put({"Content-Range": content_range, "Content-Length": str(len(body)), **hashes}, [body])

    def cancel(self) -> None:
        """Throws away what the service holds of it, as far as it can be told to."""
        try:
            self._wire.ask("DELETE", self._session, {"Content-Length": "0"})
        except Interrupted:
            pass  # It runs out by itself in a week.

    def _put(self, headers: dict[str, str], body: Iterable[bytes] = ()) -> int | StoredObject:
        status, answer, content = self._wire.ask("PUT", self._session, headers, body)
        if status == 308:
            held = answer.get("Range")  # bytes=0-N; none at all when nothing is held
            return int(held.rpartition("-")[2]) + 1 if held else 0
        if status in (200, 201):
            return _stored(json.loads(content))
        raise self._refused(status, answer, content.decode(errors="replace").strip()[:300])

    def _refused(self, status: int, headers: Any, said: str) -> Exception:
        if status in (404, 410):
            return SessionGone(f"GCS has forgotten the upload ({status})")
        if status == 412:
            return PreconditionError(f"{self._uri} was made by somebody else meanwhile")
        if status == 400:
            return WrongBytes(f"GCS refused the bytes: {said}")
        if status in (401, 403):
            return AccessError(f"{self._uri}: GCS refused the upload ({status}). {grant(self._uri, OBJECTS_ROLE)}")
        return Interrupted(f"GCS answered {status}", retry_after(headers))


def _stored(resource: dict[str, Any]) -> StoredObject:
    return StoredObject(
        f"gs://{resource['bucket']}/{resource['name']}",
        int(resource["size"]),
        resource["crc32c"],
        int(resource["generation"]),
        resource.get("metadata", {}),
        resource.get("md5Hash"),
        metageneration=int(resource["metageneration"]),
    )
