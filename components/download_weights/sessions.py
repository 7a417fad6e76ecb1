"""What a killed transfer must remember to go on where it stopped: its open upload sessions.

A session's address is as good as a password, so it lies in objects of its own under the pipeline root, never beside the
weights, and is never shown. One object a file: `{"path", "session", "owner"}`. `owner` is one process; whoever takes a
session over writes itself in, and the one that it was taken from starts anew rather than fight for it.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from serving import names
from serving.clients import storage
from serving.clients.storage import PreconditionError
from serving.clients.upload import Upload
from serving.clients.wire import Wire
from serving.settings import Settings


@dataclass
class _Entry:
    session: str
    generation: int
    """Of the object that remembers it."""


class Sessions:
    """The remembered sessions of one deployment's transfer of one set of weights."""

    def __init__(self, settings: Settings, weights_key: str):
        self._root = f"{settings.pipeline_root}/transfers/{names.place(settings)}"
        self._prefix = f"{self._root}/{weights_key}"
        self._owner = secrets.token_hex(8)
        self._entries: dict[str, _Entry] = {}

    def load(self) -> None:
        """Reads what a run before this one has left, and ends its sessions for other weights: nobody goes on there."""
        wire = Wire()
        try:
            for found in storage.list_objects(f"{self._root}/"):
                value, generation = storage.read_json_with_generation(found.uri)
                if value is None:
                    continue
                if found.uri.startswith(f"{self._prefix}/"):
                    self._entries[value["path"]] = _Entry(value["session"], generation)
                else:
                    Upload(wire, found.uri, value["session"], 0).cancel()
                    storage.delete(found.uri, generation)
        finally:
            wire.close()

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def take_over(self, path: str) -> str | None:
        """The file's session if one is remembered, which is ours from now on; None when there is none to be had."""
        entry = self._entries.get(path)
        if entry is None or not self._write(path, entry.session, entry.generation):
            return None
        return entry.session

    def remember(self, path: str, session: str) -> None:
        """Notes a new session of ours. Where another process has noted its own, that one stays."""
        entry = self._entries.get(path)
        self._write(path, session, entry.generation if entry else 0)

    def is_ours(self, path: str) -> bool:
        """Whether the file's session is still this process's to write to."""
        entry = self._entries.get(path)
        found = storage.stat(self._uri(path)) if entry else None
        return found is not None and entry is not None and found.generation == entry.generation

    def forget(self, path: str) -> None:
        """The file is in the bucket and verified, or its session is gone."""
        entry = self._entries.pop(path, None)
        if entry:
            storage.delete(self._uri(path), entry.generation)

    def _write(self, path: str, session: str, generation: int) -> bool:
        value = {"path": path, "session": session, "owner": self._owner}
        try:
            written = storage.write_json(self._uri(path), value, if_generation_match=generation)
        except PreconditionError:
            self._entries.pop(path, None)
            return False
        self._entries[path] = _Entry(session, written)
        return True

    def _uri(self, path: str) -> str:
        return f"{self._prefix}/{hashlib.sha256(path.encode()).hexdigest()[:32]}.json"
