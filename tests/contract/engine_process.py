"""Engines for the contract tests: the emulated one as a process of its own, or a real vLLM.

VLLM_CONTRACT_ENDPOINT   address of a real vLLM (http://127.0.0.1:8000) that test_engine_api.py is to run against; it
                         must serve a text model with a --max-model-len of 2048 or more (0.32.0 on the CPU passes)
VLLM_CONTRACT_MODEL      the name that it serves (default: the first of its /v1/models)
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.ports import free_port

EMULATED = (sys.executable, "-m", "emulated_cloud.engine")


class Engine:
    """A started engine: its address, its process, what it logged. `program`: another than the emulated one."""

    def __init__(
        self,
        *args: object,
        log: Path,
        env: dict[str, str] | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
        program: Sequence[object] = EMULATED,
    ):
        self.host, self.port, self.log = host, port or free_port(), log
        self.url = f"http://{host}:{self.port}"
        command = [*map(str, (*program, *args)), "--host", host]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("VLLM_", "EMULATED_"))}
        with open(log, "w") as stderr:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port)], stderr=stderr, env={**inherited, **(env or {})}
            )
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def answers(self) -> bool:
        try:
            return self.client.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def wait(self, seconds: float = 120) -> Engine:
        """Returns when the engine answers."""
        deadline = time.monotonic() + seconds
        while not self.answers():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)
        return self

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(f"vllm:{name}{{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def until(self, condition: Any, seconds: float = 120) -> None:
        """Waits for something to become true."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not become true"
            time.sleep(0.01)

    def chat(self, content: str = "Hello there", **more: Any) -> httpx.Response:
        messages = [{"role": "user", "content": content}]
        return self.client.post("/v1/chat/completions", json={"messages": messages, **more})

    def cpu_seconds(self) -> float:
        """What the process has used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """Ends it the short way; how it ends when it is asked to has tests of its own."""
        self.client.close()
        self.process.kill()
        self.process.wait()


@contextmanager
def running(*args: object, log: Path, env: dict[str, str] | None = None) -> Iterator[Engine]:
    """An engine that answers, for as long as the block runs."""
    engine = Engine(*args, log=log, env=env)
    try:
        yield engine.wait()
    finally:
        engine.stop()


class RealEngine(Engine):
    """A vLLM that runs already."""

    def __init__(self, url: str):
        self.url = url
        self.client = httpx.Client(base_url=url, timeout=120)

    def stop(self) -> None:
        self.client.close()
