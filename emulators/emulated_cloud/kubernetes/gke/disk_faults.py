"""Scripted failures of GKE's parts: what the configuration says is to go wrong, and how often it has.

A section of the process's configuration file (config.py), read again each time, so that a test can take one away. A
test that scripts one must also assert that it was consumed: a file beside the configuration tells, FILE.consumed for
disks.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any


class ScriptedFaults:
    """The faults of one section. Each is true, a list of the names that it happens to, or for each name its words; how
    often one happened, by name, is in the configuration's FILE.`consumed`."""

    def __init__(self, config: Path, section: str, consumed: str):
        self._config, self._section = config, section
        self._consumed = config.with_name(f"{config.name}.{consumed}")
        self._counting = threading.Lock()

    def is_scripted(self, fault: str) -> bool:
        return bool(self._scripted(fault))

    def take(self, fault: str, name: str = "") -> Any:
        """What is scripted for this name (a disk's: zone), and now happens; None when all is to go well."""
        scripted = self._scripted(fault)
        if isinstance(scripted, list):
            scripted = name in scripted
        elif isinstance(scripted, dict):
            scripted = scripted.get(name)
        if not scripted:
            return None
        with self._counting:
            counts = self.consumed()
            counts.setdefault(fault, {})[name] = counts.get(fault, {}).get(name, 0) + 1
            # Whole or not at all, for whoever reads it meanwhile.
            new = self._consumed.with_name(f".{self._consumed.name}")
            new.write_text(json.dumps(counts), encoding="utf-8")
            new.replace(self._consumed)
        return scripted

    def _scripted(self, fault: str) -> Any:
        return json.loads(self._config.read_text(encoding="utf-8")).get(self._section, {}).get(fault)

    def consumed(self) -> dict[str, dict[str, int]]:
        """How often each fault has happened, by name."""
        return json.loads(self._consumed.read_text(encoding="utf-8")) if self._consumed.exists() else {}


class DiskFaults(ScriptedFaults):
    """exhausted     [zones]: no disk can be made there
    never_ready   true: snapshots stay unready
    populate      {zone: words}: the populator's transfer to this zone fails with these words
    corrupt       [zones]: one byte of each copy that is made there is another
    """

    def __init__(self, config: Path):
        super().__init__(config, "disk_faults", "consumed")
