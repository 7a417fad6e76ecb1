"""An Envoy that does not come up: whoever waits for it is told, and nothing is left running."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from emulated_cloud.gateway import envoy


@pytest.mark.parametrize("command", [["sh", "-c", "echo broken; exit 1"], ["/no/such/program"], ["sleep", "60"]])
def test_an_envoy_that_does_not_start_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setattr(envoy, "START_SECONDS", 0.5)
    monkeypatch.setattr(envoy, "_command", lambda _folder, _address: command)

    async def run() -> None:
        started = envoy.Envoy(tmp_path, "front")
        with pytest.raises(TimeoutError, match="Envoy does not answer"):
            await started.start()
        if started.pid:
            assert not Path(f"/proc/{started.pid}").exists()

    asyncio.run(run())
    if command[0] == "sh":
        assert (tmp_path / "log").read_text().startswith("broken\n")
