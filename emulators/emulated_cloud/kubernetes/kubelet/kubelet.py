"""The kubelet of all nodes: a worker for each pod that is bound, its status written, its memory watched."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from emulated_cloud.kubernetes.client import Client, Informers, Object
from emulated_cloud.kubernetes.events import EventRecorder
from emulated_cloud.kubernetes.kubelet.container import Container
from emulated_cloud.kubernetes.kubelet.csi import NodeDriver
from emulated_cloud.kubernetes.kubelet.node import ImageMapping
from emulated_cloud.kubernetes.kubelet.pod import PodWorker
from emulated_cloud.kubernetes.kubelet.process import ContainerProcess, session_memory
from emulated_cloud.kubernetes.kubelet.reaper import kill_leftovers
from emulated_cloud.kubernetes.kubelet.runtime import Runtime
from emulated_cloud.kubernetes.kubelet.volumes import VolumeManager
from emulated_cloud.kubernetes.resources import PODS
from emulated_cloud.kubernetes.workqueue import WorkQueue

log = logging.getLogger(__name__)

MEMORY_PERIOD_SECONDS = 1.0


class Kubelet:
    """`image`: what stands for an image, None for one that cannot be pulled; `variables_for`: what the node and its
    network give a pod's environment; `pull`: what else a pull on a node does, and the bytes that the image is."""

    def __init__(
        self,
        client: Client,
        informers: Informers,
        pods: Path,
        image: Callable[[str], ImageMapping | None],
        variables_for: Callable[[Object], dict[str, str]],
        drivers: dict[str, NodeDriver],
        pod_network: str,
        host_ip: str,
        crash_backoff_seconds: float,
        runtime: Runtime,
        pull: Callable[[str, str], Awaitable[int]],
    ):
        self._pull = pull
        self.runtime = runtime
        self.client, self.pods, self.image, self.variables_for = client, pods, image, variables_for
        self.host_ip, self.crash_backoff_seconds = host_ip, crash_backoff_seconds
        self.volumes = VolumeManager(client, informers, drivers, pods.with_name("hosts"))
        self._informer = informers.of(PODS)
        self._events = EventRecorder(client, "kubelet")
        self._network = ipaddress.ip_network(pod_network)
        self._next_address = int(self._network.network_address) + 2
        self._workers: dict[str, PodWorker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changes: dict[str, asyncio.Event] = {}
        self._statuses = WorkQueue("pod status", self._write_status)
        self._limited = asyncio.Event()
        self._memory: asyncio.Task[None] | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._pulled: set[tuple[str, str]] = set()

    async def start(self) -> None:
        """Clears what a killed process left, then takes over the pods that are there."""
        self.pods.mkdir(parents=True, exist_ok=True)
        kill_leftovers(self.pods)
        known = {pod["metadata"]["uid"] for pod in self._informer.items.values()}
        for folder in self.pods.iterdir():
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)
        self._reaper = subprocess.Popen(
            [sys.executable, "-m", "emulated_cloud.kubernetes.kubelet.reaper", str(self.pods)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._informer.on_change(self._pod_changed)
        # Whoever waits for this start must not take yesterday's Ready for today's.
        await asyncio.gather(*(worker.write_status() for worker in self._workers.values()))
        self._memory = asyncio.create_task(self._watch_memory())

    async def stop(self) -> None:
        """Ends every pod's processes: SIGTERM, a short grace, SIGKILL."""
        if self._memory:
            self._memory.cancel()
        for worker in self._workers.values():
            worker.leave()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._statuses.stop()
        if self._reaper and self._reaper.stdin:
            self._reaper.stdin.close()
            self._reaper.wait()

    # -- pods -----------------------------------------------------------------------------------------------

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        pod = new or old or {}
        uid = pod["metadata"]["uid"]
        if old and new and old["metadata"]["uid"] != uid:
            self._forget(old["metadata"]["uid"])
        worker = self._workers.get(uid)
        if new is None:
            self._forget(uid)
        elif worker:
            worker.update(new)
        elif new["spec"].get("nodeName"):
            worker = self._workers[uid] = PodWorker(self, new)
            task = self._tasks[uid] = asyncio.create_task(self._run(worker), name=f"pod {new['metadata']['name']}")
            task.add_done_callback(lambda _: self._tasks.pop(uid, None))
            if any(container.memory_limit for container in worker.main):
                self._limited.set()

    def _forget(self, uid: str) -> None:
        if worker := self._workers.get(uid):
            worker.forget()

    async def _run(self, worker: PodWorker) -> None:
        try:
            await worker.run()
        except Exception:
            log.exception("pod %s", worker.pod["metadata"]["name"])
        finally:
            self._workers.pop(worker.uid, None)
            self._changes.pop(worker.uid, None)

    def worker_of(self, namespace: str, name: str) -> PodWorker | None:
        pod = self._informer.items.get(f"{namespace}/{name}")
        return self._workers.get(pod["metadata"]["uid"]) if pod else None

    # -- what pods ask (node.py) ----------------------------------------------------------------------------

    def event(self, pod: Object, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        self._events.event(pod, kind, reason, message, host=pod["spec"].get("nodeName", ""))

    def status_changed(self, uid: str) -> None:
        self._statuses.add(uid)
        if uid in self._changes:
            self._changes[uid].set()

    async def next_change(self, uid: str) -> None:
        """Waits until something about the pod changes."""
        event = self._changes.setdefault(uid, asyncio.Event())
        event.clear()
        await event.wait()

    async def _write_status(self, uid: str) -> None:
        if worker := self._workers.get(uid):
            await worker.write_status()

    def observe(self, pod: Object) -> None:
        self._informer.observe(pod)

    async def address_for(self, pod: Object) -> str:
        """The address that the pod has already, else the next that is free; the node's own for hostNetwork.

        A pod of a cluster that came back in another network gets a new one, as after any restart of its sandbox.
        """
        if pod["spec"].get("hostNetwork"):
            return self.host_ip
        before = (pod.get("status") or {}).get("podIP")
        if before and ipaddress.ip_address(before) in self._network:
            return before
        taken = {worker.around.pod_ip for worker in self._workers.values()}
        taken |= {(other.get("status") or {}).get("podIP", "") for other in self._informer.items.values()}
        last = int(self._network.broadcast_address) - 1
        while True:
            address = str(ipaddress.ip_address(self._next_address))
            following = self._next_address + 1
            self._next_address = following if following <= last else int(self._network.network_address) + 2
            if address not in taken:
                return address

    def pulls(self, node: str, image: str) -> bool:
        """Whether the image has to be pulled on the node: it has not been there before."""
        known = (node, image) in self._pulled
        self._pulled.add((node, image))
        return not known

    async def pull(self, node: str, image: str) -> int:
        return await self._pull(node, image)

    def kill(self, process: ContainerProcess) -> None:
        process.signal(signal.SIGKILL)

    # -- memory ---------------------------------------------------------------------------------------------

    async def _watch_memory(self) -> None:
        """Kills containers that outgrow their limit; sleeps while no container has one."""
        while True:
            limited = self._limited_containers()
            if not limited:
                self._limited.clear()
                await self._limited.wait()
            resident = session_memory(set(limited)) if limited else {}
            for session, size in resident.items():
                container = limited[session]
                if container.memory_limit and size > container.memory_limit:
                    container.kill_for_memory()
            await asyncio.sleep(MEMORY_PERIOD_SECONDS)

    def _limited_containers(self) -> dict[int, Container]:
        return {
            container.process.pid: container
            for worker in self._workers.values()
            for container in [*worker.init, *worker.main]
            if container.memory_limit and container.process
        }
