"""What was made of one kind, by name: a JSON file, or memory alone without a folder."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any


class Store:
    """Resources by their names. `lock` is held by who reads one and writes it again."""

    def __init__(self, folder: str, kind: str):
        self._file = Path(folder) / f"{kind}.json" if folder else None
        self.lock = threading.RLock()
        self._resources: dict[str, dict[str, Any]] = {}
        if self._file and self._file.exists():
            self._resources = json.loads(self._file.read_bytes())

    def get(self, name: str) -> dict[str, Any] | None:
        return self._resources.get(name)

    def put(self, name: str, resource: dict[str, Any]) -> None:
        with self.lock:
            self._resources[name] = resource
            self._write()

    def below(self, parent: str) -> list[dict[str, Any]]:
        """Those whose names begin with `parent/`, by name."""
        with self.lock:
            return [found for name, found in sorted(self._resources.items()) if name.startswith(f"{parent}/")]

    def _write(self) -> None:
        if not self._file:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(self._resources), encoding="utf-8")
        part.replace(self._file)
