"""One pod on a node, from its binding to its end: volumes, init containers, containers, status, termination.

PODS/<uid>/volumes/   the volumes
PODS/<uid>/work/      HOME and working directory of each container
PODS/<uid>/tmp/       TMPDIR
PODS/<uid>/logs/      the containers' logs
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path
from typing import Literal

from emulated_cloud.kubernetes.client import ApiError, Object, seconds_since, timestamp
from emulated_cloud.kubernetes.kubelet.container import Container, Kind
from emulated_cloud.kubernetes.kubelet.environment import ConfigurationError, Surroundings
from emulated_cloud.kubernetes.kubelet.node import Node
from emulated_cloud.kubernetes.kubelet.status import pod_status
from emulated_cloud.kubernetes.kubelet.volumes import VolumeError
from emulated_cloud.kubernetes.resources import PODS

MOUNT_RETRY_SECONDS = 0.5
MAX_MOUNT_RETRY_SECONDS = 122.0
# A kubelet looks at ConfigMaps about once a minute; nobody here waits that long.
REFRESH_SECONDS = 1.0
# What is left of a container when its pod was deleted by force.
FORCED_GRACE_SECONDS = 2.0


class PodWorker:
    """`run()` lives as long as the pod does."""

    def __init__(self, node: Node, pod: Object):
        self.node, self.pod = node, pod
        self.uid: str = pod["metadata"]["uid"]
        self.folder: Path = node.pods / self.uid
        spec = pod["spec"]
        self.has_init = bool(spec.get("initContainers"))
        self.init = [Container(self, entry, _init_kind(entry)) for entry in spec.get("initContainers") or []]
        self.main = [Container(self, entry, "main") for entry in spec["containers"]]
        self.around = Surroundings("", node.host_ip)
        self.initialized = False
        self.sandbox = False
        self.start_time = (pod.get("status") or {}).get("startTime") or timestamp()
        self.verdict: tuple[str, str] | None = None
        """(reason, message) of a pod that the kubelet itself has failed."""
        self.lost = False
        self._ending = asyncio.Event()
        self._gone = False
        self._leaving = False
        self._written: Object | None = None
        self._conditions = list((pod.get("status") or {}).get("conditions") or [])
        self._restore()

    # -- what the world tells it ----------------------------------------------------------------------------

    def update(self, pod: Object) -> None:
        self.pod = pod
        if pod["metadata"].get("deletionTimestamp"):
            self._ending.set()

    def forget(self) -> None:
        """The pod has been deleted by force: nobody waits for it any more."""
        self._gone = True
        self._ending.set()

    def leave(self) -> None:
        """This process ends: its pods' processes with it, while the pods stay."""
        self._leaving = True
        self._ending.set()

    # -- what its containers ask ----------------------------------------------------------------------------

    def restarts(self, kind: Kind, code: int) -> bool:
        if self._ending.is_set() or self.verdict:
            return False
        if kind == "sidecar":
            return True
        policy = self.pod["spec"].get("restartPolicy", "Always")
        if kind == "init":
            return code != 0 and policy != "Never"
        return policy == "Always" or (policy == "OnFailure" and code != 0)

    def mounts(self, container: Object) -> dict[str, Path]:
        """Mount paths of a container, each with the folder or file that stands for it."""
        volumes = self.folder / "volumes"
        found = {
            mount["mountPath"]: volumes / mount["name"] / (mount.get("subPath") or "")
            for mount in container.get("volumeMounts") or []
        }
        path = container.get("terminationMessagePath") or "/dev/termination-log"
        return {**found, path: self.termination_log(container)}

    def make_sub_paths(self, container: Object) -> None:
        """The folders of `subPath`s that are not in their volumes yet, with the volume's own rights. Raises
        ConfigurationError where they cannot be made."""
        read_only = {volume["name"] for volume in self.pod["spec"].get("volumes") or [] if _is_read_only(volume)}
        for mount in container.get("volumeMounts") or []:
            volume = self.folder / "volumes" / mount["name"]
            folder = volume / (mount.get("subPath") or "")
            missing = [path for path in (folder, *folder.parents) if path.is_relative_to(volume) and not path.exists()]
            try:
                if missing and mount["name"] in read_only:
                    raise OSError("read-only file system")
                for path in reversed(missing):
                    path.mkdir()
                    path.chmod(volume.stat().st_mode & 0o7777)
            except OSError as error:
                raise ConfigurationError(
                    f'failed to create subPath directory for volumeMount "{mount["name"]}" of container '
                    f'"{container["name"]}"'
                ) from error

    def termination_log(self, container: Object) -> Path:
        return self.folder / "work" / f"{container['name']}.termination-log"

    def grace_seconds(self) -> float:
        meta = self.pod["metadata"]
        if meta.get("deletionTimestamp"):
            return meta.get("deletionGracePeriodSeconds", 30)
        return self.pod["spec"].get("terminationGracePeriodSeconds", 30)

    def changed(self) -> None:
        self.node.status_changed(self.uid)

    def event(self, kind: Literal["Normal", "Warning"], reason: str, message: str, container: str = "") -> None:
        if not self._leaving:
            self.node.event(self.pod, kind, reason, message)

    # -- life -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From volumes to the end of the pod, whoever ends it."""
        work = asyncio.create_task(self._work(), name=f"pod {self.pod['metadata']['name']}")
        ending = asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait([work, ending], return_when=asyncio.FIRST_COMPLETED)
            if not self._ending.is_set():
                work.result()
                await self.node.volumes.release(self.pod, self.folder / "volumes")
                self.changed()
                await ending
            await self._terminate(work)
            if not self._leaving:
                await self._clean_up()
        finally:
            work.cancel()
            ending.cancel()

    async def _work(self) -> None:
        if self.pod["metadata"].get("deletionTimestamp") or self.finished_before() or self.lost:
            return
        for name in ("volumes", "work", "tmp"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.changed()
        await self._mount()
        address = await self.node.address_for(self.pod)
        self.around = Surroundings(address, self.node.host_ip, self.node.variables_for(self.pod))
        self.sandbox = True
        self.changed()
        refreshing = asyncio.create_task(self._refresh())
        try:
            await self._run_until_deadline()
        finally:
            refreshing.cancel()

    async def _run_until_deadline(self) -> None:
        deadline = self.pod["spec"].get("activeDeadlineSeconds")
        if deadline is None:
            await self._run_containers()
            return
        try:
            await asyncio.wait_for(self._run_containers(), max(0.0, deadline - seconds_since(self.start_time)))
        except TimeoutError:
            self.verdict = ("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
            await self._stop_containers(self.grace_seconds())

    async def _mount(self) -> None:
        """Mounts every volume, again and again with backoff, as long as one cannot be mounted."""
        delay = MOUNT_RETRY_SECONDS
        left = {volume["name"]: volume for volume in self.pod["spec"].get("volumes") or []}
        while left:
            for name, volume in list(left.items()):
                try:
                    await self.node.volumes.mount(self.pod, volume, self.folder / "volumes" / name)
                    del left[name]
                except VolumeError as error:
                    self.event("Warning", "FailedMount", str(error))
            if left:
                await asyncio.sleep(delay)
                delay = min(delay * 2, MAX_MOUNT_RETRY_SECONDS)

    async def _refresh(self) -> None:
        """Gives the volumes of ConfigMaps their new content, as long as the pod runs."""
        volumes = [volume for volume in self.pod["spec"].get("volumes") or [] if "configMap" in volume]
        while volumes:
            await asyncio.sleep(REFRESH_SECONDS)
            for volume in volumes:
                # One that is gone, or an API that is away: the content stays as it was.
                with contextlib.suppress(VolumeError, ApiError, OSError):
                    await self.node.volumes.mount(self.pod, volume, self.folder / "volumes" / volume["name"])

    async def _run_containers(self) -> None:
        """Init containers one after another, then the others together; returns when none will run again."""
        sidecars: list[asyncio.Task[int | None]] = []
        try:
            for container in self.init:
                if container.kind == "sidecar":
                    sidecars.append(asyncio.create_task(container.run()))
                    await self._started(container)
                elif await container.run() != 0:
                    return
            self.initialized = True
            for container in self.main:
                if "waiting" in container.state:
                    container.state = {"waiting": {"reason": "ContainerCreating"}}
            self.changed()
            await asyncio.gather(*(container.run() for container in self.main if not self._is_done(container)))
        finally:
            for container in reversed(self.init):
                if container.kind == "sidecar":
                    await container.terminate(self.grace_seconds())
            await asyncio.gather(*sidecars, return_exceptions=True)

    async def _started(self, container: Container) -> None:
        """The next container comes when a sidecar has started."""
        while not container.started:
            await self.node.next_change(self.uid)

    def _is_done(self, container: Container) -> bool:
        """Ended for good before a restart of this process."""
        terminated = container.state.get("terminated")
        return terminated is not None and not self.restarts(container.kind, terminated["exitCode"])

    # -- end ------------------------------------------------------------------------------------------------

    async def _terminate(self, work: asyncio.Task[None]) -> None:
        grace = FORCED_GRACE_SECONDS if self._gone or self._leaving else self.grace_seconds()
        await self._stop_containers(grace)
        if not work.done():
            # The containers have stopped, so their coroutines end by themselves; a mount that is waited for does not.
            await asyncio.wait([work], timeout=0.5)
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work

    async def _stop_containers(self, grace: float) -> None:
        """Containers together, then the sidecars, the last one first."""
        hooks = not self._leaving
        await asyncio.gather(*(container.terminate(grace, hooks) for container in self.main))
        for container in reversed(self.init):
            await container.terminate(grace, hooks)

    async def _clean_up(self) -> None:
        """Reports the end, lets the API server forget the pod, and removes its folder."""
        meta = self.pod["metadata"]
        if not self._gone:
            await self.write_status()
        await self.node.volumes.unmount(self.pod, self.folder / "volumes")
        if not self._gone:
            await self.node.client.delete(PODS, meta["name"], meta["namespace"], uid=self.uid, grace_seconds=0)
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    # -- status ---------------------------------------------------------------------------------------------

    async def write_status(self) -> None:
        """Writes what changed since the last time."""
        if self._gone or self._leaving:
            return
        status = pod_status(self, self._conditions)
        if status == self._written:
            return
        meta = self.pod["metadata"]
        patch = {"metadata": {"uid": self.uid}, "status": status}
        try:
            answer = await self.node.client.patch(
                PODS, meta["name"], meta["namespace"], patch, "strategic", subresource="status"
            )
        except ApiError as error:
            # Gone, or another pod of the same name by now.
            if error.status in (404, 409):
                return
            raise
        self._written, self._conditions = status, status["conditions"]
        self.node.observe(answer)

    def finished_before(self) -> bool:
        """It had run to its end before this process started."""
        return (self.pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")

    def _restore(self) -> None:
        """What an earlier process has reported of this pod, seen after the node's reboot."""
        status = self.pod.get("status") or {}
        if status.get("podIP"):
            self.around = Surroundings(status["podIP"], self.node.host_ip)
        restarts = self.pod["spec"].get("restartPolicy", "Always") != "Never" and not self.finished_before()
        reported = {
            entry["name"]: entry
            for entry in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
        }
        for container in [*self.init, *self.main]:
            if container.name in reported:
                container.restore(reported[container.name], restarts)
        if not restarts and not self.finished_before():
            self.lost = any(container.has_run for container in [*self.init, *self.main])
            for container in self.main if self.lost else []:
                if "terminated" not in container.state:
                    container.state = {
                        "terminated": {
                            "exitCode": 137,
                            "reason": "ContainerStatusUnknown",
                            "message": "The container could not be located when the pod was terminated",
                        }
                    }
        if self.pod["metadata"].get("deletionTimestamp"):
            self._ending.set()


def _is_read_only(volume: Object) -> bool:
    return any((volume.get(kind) or {}).get("readOnly") for kind in ("csi", "persistentVolumeClaim"))


def _init_kind(spec: Object) -> Kind:
    return "sidecar" if spec.get("restartPolicy") == "Always" else "init"
