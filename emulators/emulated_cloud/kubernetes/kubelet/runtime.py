"""The seam between the kubelet and what a container's process is started in: one small interface."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from emulated_cloud.kubernetes.client import Object
from emulated_cloud.kubernetes.kubelet.environment import Rewriter


class Runtime(Protocol):
    """How a container's process sees its volumes, and how it is started."""

    def rewriter(self, mounts: dict[str, Path], pod_ip: str) -> Rewriter:
        """What paths inside the container are to the process."""

    def command(
        self, folder: Path, pod: Object, container: Object, mounts: dict[str, Path], argv: list[str]
    ) -> list[str]:
        """The command line that starts `argv` as a process of the container; `folder` is the pod's (pod.py)."""


class SharedRoot:
    """The machine's own root and user: paths of volumes become the folders that stand for them."""

    def rewriter(self, mounts: dict[str, Path], pod_ip: str) -> Rewriter:
        return Rewriter(mounts, pod_ip)

    def command(
        self, folder: Path, pod: Object, container: Object, mounts: dict[str, Path], argv: list[str]
    ) -> list[str]:
        return argv
