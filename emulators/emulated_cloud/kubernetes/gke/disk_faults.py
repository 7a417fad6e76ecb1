"""Scripted failures of disks: what the configuration says is to go wrong, and how often it has.

`disk_faults` in the process's configuration file (config.py), read again each time, so that a test can take one away.
A test that scripts one must also assert that it was consumed: FILE.consumed, beside the configuration, tells.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any


class DiskFaults:
    """exhausted     [zones]: no disk can be made there
    never_ready   true: snapshots stay unready
    populate      {zone: words}: the populator's transfer to this zone fails with these words
    corrupt       [zones]: one byte of each copy that is made there is another
    """

    def __init__(self, config: Path):
        self._config = config
        self._consumed = config.with_name(f"{config.name}.consumed")
        self._counting = threading.Lock()

    def is_scripted(self, fault: str) -> bool:
        return bool(self._scripted(fault))

    def take(self, fault: str, zone: str = "") -> Any:
        """What is scripted for this zone, and now happens; None when all is to go well."""
        scripted = self._scripted(fault)
        if isinstance(scripted, list):
            scripted = zone in scripted
        elif isinstance(scripted, dict):
            scripted = scripted.get(zone)
        if not scripted:
            return None
        with self._counting:
            counts = self.consumed()
            counts.setdefault(fault, {})[zone] = counts.get(fault, {}).get(zone, 0) + 1
            # Whole or not at all, for whoever reads it meanwhile.
            new = self._consumed.with_name(f".{self._consumed.name}")
            new.write_text(json.dumps(counts), encoding="utf-8")
            new.replace(self._consumed)
        return scripted

    def _scripted(self, fault: str) -> Any:
        return json.loads(self._config.read_text(encoding="utf-8")).get("disk_faults", {}).get(fault)

    def consumed(self) -> dict[str, dict[str, int]]:
        """How often each fault has happened, by zone."""
        return json.loads(self._consumed.read_text(encoding="utf-8")) if self._consumed.exists() else {}
