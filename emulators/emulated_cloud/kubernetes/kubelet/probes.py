"""Probes: is a container started, ready, alive? httpGet, tcpSocket, grpc and exec, with all thresholds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from emulated_cloud.kubernetes import grpc_health

Object = dict[str, Any]
RunCommand = Callable[[list[str], float], Awaitable[tuple[int, str]]]
"""(argv, timeout) → (exit code, output); the timeout raises TimeoutError."""


class ProbeFailed(Exception):
    """Why, in the kubelet's words."""


@dataclass
class Probe:
    """One probe of one container, at `host`."""

    spec: Object
    host: str
    ports: dict[str, int]
    run_command: RunCommand
    on_failure: Callable[[str], None] = lambda words: None
    """Told of every failure, also of those that do not reach the threshold yet."""

    async def watch(self, on_result: Callable[[bool, str], bool]) -> None:
        """Probes until cancelled, or until `on_result(success, words)`, which is told when a threshold is reached,
        returns False."""
        spec = self.spec
        await asyncio.sleep(spec.get("initialDelaySeconds", 0))
        successes = failures = 0
        while True:
            try:
                await asyncio.wait_for(self._once(), spec.get("timeoutSeconds", 1))
                successes, failures, words = successes + 1, 0, ""
            except TimeoutError:
                successes, failures, words = 0, failures + 1, self._timeout_words()
            except ProbeFailed as failure:
                successes, failures, words = 0, failures + 1, str(failure)
            if words:
                self.on_failure(words)
            if successes >= spec.get("successThreshold", 1) and not on_result(True, ""):
                return
            if failures >= spec.get("failureThreshold", 3) and not on_result(False, words):
                return
            await asyncio.sleep(spec.get("periodSeconds", 10))

    async def once_ignoring_failure(self) -> None:
        """For a lifecycle hook, which asks the same way and cares less."""
        with contextlib.suppress(ProbeFailed):
            await self._once()

    async def _once(self) -> None:
        if http := self.spec.get("httpGet"):
            await self._http_get(http)
        elif tcp := self.spec.get("tcpSocket"):
            _, writer = await self._connect(tcp.get("host") or self.host, self._port(tcp["port"]), "")
            writer.close()
        elif grpc := self.spec.get("grpc"):
            seconds = self.spec.get("timeoutSeconds", 1)
            try:
                await grpc_health.check(self.host, grpc["port"], grpc.get("service") or "", seconds)
            except grpc_health.Unhealthy as error:
                raise ProbeFailed(str(error)) from error
        elif command := self.spec.get("exec"):
            code, output = await self.run_command(command["command"], self.spec.get("timeoutSeconds", 1))
            if code:
                raise ProbeFailed(output.strip() or f"command exited with code {code}")
        else:
            raise ProbeFailed("missing probe handler")

    def _port(self, port: int | str) -> int:
        return port if isinstance(port, int) else self.ports[port]

    async def _connect(self, host: str, port: int, prefix: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await asyncio.open_connection(host, port)
        except OSError as error:
            cause = "connect: connection refused" if isinstance(error, ConnectionRefusedError) else str(error)
            raise ProbeFailed(f"{prefix}dial tcp {host}:{port}: {cause}") from error

    async def _http_get(self, http: Object) -> None:
        host, port = http.get("host") or self.host, self._port(http["port"])
        path = "/" + (http.get("path") or "/").lstrip("/")
        url = f'Get "{http.get("scheme", "HTTP").lower()}://{host}:{port}{path}": '
        reader, writer = await self._connect(host, port, url)
        try:
            headers = {
                "Host": f"{host}:{port}",
                "User-Agent": "kube-probe/1.35",
                "Accept": "*/*",
                "Connection": "close",
            }
            headers |= {header["name"]: header["value"] for header in http.get("httpHeaders") or []}
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            writer.write(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
            answer = await reader.readline()
            parts = answer.split(b" ", 2)
            if len(parts) < 2 or not parts[1].isdigit():
                raise ProbeFailed(f"{url}EOF")
            if not 200 <= int(parts[1]) < 400:
                raise ProbeFailed(f"HTTP probe failed with statuscode: {int(parts[1])}")
            # An answer cut off would show as an error in the server's log.
            await reader.read(10240)
        except ConnectionError as error:
            raise ProbeFailed(f"{url}read: connection reset by peer") from error
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def _timeout_words(self) -> str:
        if http := self.spec.get("httpGet"):
            url = f"http://{http.get('host') or self.host}:{self._port(http['port'])}{http.get('path', '/')}"
            return f'Get "{url}": context deadline exceeded (Client.Timeout exceeded while awaiting headers)'
        if grpc := self.spec.get("grpc"):
            seconds = self.spec.get("timeoutSeconds", 1)
            where = f"{self.host}:{grpc['port']}"
            return f'timeout: failed to connect service "{where}" within {seconds}s: context deadline exceeded'
        if "tcpSocket" in self.spec:
            return f"dial tcp {self.host}:{self._port(self.spec['tcpSocket']['port'])}: i/o timeout"
        return f"command timed out after {self.spec.get('timeoutSeconds', 1)}s"
