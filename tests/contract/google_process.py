"""The emulated Google APIs as a process of a test's own, whose state lies in a folder: started anew, it goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from emulated_cloud import process

TOKEN = "a-token-that-nobody-guesses"
ACCOUNT = "runner@demo.iam.gserviceaccount.com"


@dataclass
class GoogleProcess:
    """`options` are further keys of the configuration of the API that a test is about (`config`)."""

    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    _started: process.Process | None = None

    def config(self) -> dict[str, Any]:
        """What the configuration has beside project, account and log."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Variables that the process has beside those of every emulator."""
        return {}

    def start(self) -> None:
        config = {
            "project": {"id": "demo", "number": "123456789012"},
            "service_account": ACCOUNT,
            "token": TOKEN,
            "logs": str(self.folder / "logging.jsonl"),
            **self.config(),
        }
        path = self.folder / "config.json"
        path.write_text(json.dumps(config))
        self._started = process.start(
            "emulated_cloud.google", "--config", str(path), log=self.log, env=self.environment()
        )

    @property
    def process(self) -> process.Process:
        assert self._started
        return self._started

    @property
    def log(self) -> Path:
        return self.folder / "google.log"

    def stop(self) -> None:
        self.process.stop()

    def stop_in_peace(self) -> None:
        """Stops it, which has had nothing to complain of."""
        self.stop()
        assert self.log.read_text() == ""

    def set_faults(self, *faults: dict[str, Any]) -> None:
        requests.post(f"{self.process.url}/_emulator/faults", json=list(faults), timeout=60).raise_for_status()

    def consumed(self) -> list[int]:
        found = requests.get(f"{self.process.url}/_emulator/faults", timeout=60).json()
        return [fault["consumed"] for fault in found]


def until(found: Callable[[], Any], seconds: float = 120) -> Any:
    """What is found, as soon as something is."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)
    return value
