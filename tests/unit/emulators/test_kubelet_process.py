"""A process that somebody begins to start, and does not want any more."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud.kubernetes.kubelet import process


@pytest.mark.parametrize("program", ["/bin/sleep", "/no/such/program"])
def test_who_is_cancelled_while_it_starts_leaves_no_process_and_no_pipe(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins, may_go_on = threading.Event(), threading.Event()
    started: list[subprocess.Popen[bytes]] = []
    popen = process._popen

    def slowly(*args: Any) -> subprocess.Popen[bytes]:
        begins.set()
        may_go_on.wait(60)
        started.append(popen(*args))
        return started[-1]

    monkeypatch.setattr(process, "_popen", slowly)

    async def run() -> None:
        before = len(os.listdir("/proc/self/fd"))
        starting = asyncio.create_task(process.start([program, "600"], {}, tmp_path, lambda data: None))
        await asyncio.to_thread(begins.wait, 60)
        starting.cancel()
        await asyncio.sleep(0)  # It has heard of that, and waits.
        assert not starting.done()
        may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(run())
    assert [each.returncode for each in started] == ([-9] if program == "/bin/sleep" else [])
