"""Objects on disk and their history in memory.

Every write goes to SQLite before it is answered, in one transaction with the revision counter, so that a cluster
survives `kill -9` and its resourceVersions go on rising. Objects are kept in memory too, and are never changed in
place. The history that watches read from is in memory only: a watch from before a restart is told 410.
"""

from __future__ import annotations

import json
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

StorageKey = tuple[str, str]
"""Group and plural."""

HISTORY = 20_000


@dataclass(frozen=True)
class Event:
    """One change. `before` is the object as it was (of MODIFIED, DELETED), for watches whose selector it left."""

    revision: int
    type: str
    key: StorageKey
    object: dict[str, Any]
    before: dict[str, Any] | None


class Store:
    """All objects of the cluster, by kind, namespace and name."""

    def __init__(self, path: Path):
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        # Safe against the death of the process, which is what happens here; not against a power cut.
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS objects (grp TEXT, plural TEXT, namespace TEXT, name TEXT, object TEXT,"
            " PRIMARY KEY (grp, plural, namespace, name)) WITHOUT ROWID"
        )
        self._db.execute("CREATE TABLE IF NOT EXISTS revision (only INTEGER PRIMARY KEY, value INTEGER)")
        self._objects: dict[StorageKey, dict[tuple[str, str], dict[str, Any]]] = {}
        for group, plural, namespace, name, text in self._db.execute("SELECT * FROM objects"):
            self._objects.setdefault((group, plural), {})[(namespace, name)] = json.loads(text)
        row = self._db.execute("SELECT value FROM revision").fetchone()
        self.revision: int = row[0] if row else 1
        self._history: deque[Event] = deque(maxlen=HISTORY)
        self._oldest = self.revision
        self._listeners: set[Callable[[Event], None]] = set()

    def close(self) -> None:
        self._db.close()

    def get(self, key: StorageKey, namespace: str, name: str) -> dict[str, Any] | None:
        """The object, not to be changed; None when there is none."""
        return self._objects.get(key, {}).get((namespace, name))

    def list(self, key: StorageKey, namespace: str = "") -> list[dict[str, Any]]:
        """Objects of one kind in the order of their keys, of one namespace or of all."""
        found = self._objects.get(key, {})
        return [found[where] for where in sorted(found) if not namespace or where[0] == namespace]

    def put(self, key: StorageKey, item: dict[str, Any]) -> dict[str, Any]:
        """Keeps a new or changed object (which becomes the store's), with the next resourceVersion."""
        where = _where(item)
        before = self._objects.get(key, {}).get(where)
        revision = self.revision + 1
        item["metadata"]["resourceVersion"] = str(revision)
        with self._transaction(revision):
            self._db.execute("REPLACE INTO objects VALUES (?, ?, ?, ?, ?)", (*key, *where, json.dumps(item)))
        self._objects.setdefault(key, {})[where] = item
        self._tell(Event(revision, "MODIFIED" if before else "ADDED", key, item, before))
        return item

    def delete(self, key: StorageKey, item: dict[str, Any]) -> dict[str, Any]:
        """Removes an object; the one returned has the resourceVersion of its deletion."""
        where = _where(item)
        revision = self.revision + 1
        with self._transaction(revision):
            self._db.execute("DELETE FROM objects WHERE (grp, plural, namespace, name) = (?, ?, ?, ?)", (*key, *where))
        before = self._objects[key].pop(where)
        last = {**item, "metadata": {**item["metadata"], "resourceVersion": str(revision)}}
        self._tell(Event(revision, "DELETED", key, last, before))
        return last

    def since(self, revision: int) -> Iterator[Event] | None:
        """The changes after `revision`; None when they are no longer known."""
        if revision < self._oldest:
            return None
        return iter([event for event in self._history if event.revision > revision])

    @property
    def oldest(self) -> int:
        return self._oldest

    def listen(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Calls `listener` at every change until the function that is returned is called."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def _tell(self, event: Event) -> None:
        self.revision = event.revision
        if len(self._history) == HISTORY:
            self._oldest = self._history[0].revision
        self._history.append(event)
        for listener in list(self._listeners):
            listener(event)

    def _transaction(self, revision: int) -> _Transaction:
        return _Transaction(self._db, revision)


class _Transaction:
    """One write together with the revision that it makes."""

    def __init__(self, db: sqlite3.Connection, revision: int):
        self.db, self.revision = db, revision

    def __enter__(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind:
            self.db.execute("ROLLBACK")
            return
        self.db.execute("REPLACE INTO revision VALUES (1, ?)", (self.revision,))
        self.db.execute("COMMIT")


def _where(item: dict[str, Any]) -> tuple[str, str]:
    metadata = item["metadata"]
    return metadata.get("namespace", ""), metadata["name"]
