"""What a pod and its containers ask of the node that they run on: the part of Kubelet that they know."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

from emulated_cloud.kubernetes.client import Client, Object
from emulated_cloud.kubernetes.kubelet.process import ContainerProcess
from emulated_cloud.kubernetes.kubelet.runtime import Runtime
from emulated_cloud.kubernetes.kubelet.volumes import VolumeManager


class ImageMapping(Protocol):
    """What stands for an image: commands by the first word of a container's command, a default command, variables."""

    @property
    def argv0(self) -> dict[str, list[str]]: ...
    @property
    def entrypoint(self) -> list[str]: ...
    @property
    def env(self) -> dict[str, str]: ...


class Node(Protocol):
    client: Client
    pods: Path
    """Folder of all pods' folders."""
    host_ip: str
    volumes: VolumeManager
    runtime: Runtime
    crash_backoff_seconds: float

    def image(self, name: str, /) -> ImageMapping | None:
        """What stands for an image; None for one that cannot be pulled."""

    def pulls(self, node: str, image: str) -> bool:
        """Whether the image has to be pulled on the node: it has not been there before."""

    async def pull(self, node: str, image: str, /) -> int:
        """Pulls an image to the node: the bytes that it is, where that is known."""

    def variables_for(self, pod: Object, /) -> dict[str, str]:
        """What the node and its network give a pod's environment."""

    async def address_for(self, pod: Object) -> str: ...

    def event(self, pod: Object, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None: ...

    def status_changed(self, uid: str) -> None: ...

    async def next_change(self, uid: str) -> None:
        """Waits until something about the pod changes."""

    def observe(self, pod: Object) -> None:
        """Takes in what a write of a pod was answered."""

    def kill(self, process: ContainerProcess) -> None: ...
