"""The seam between the kubelet and the CSI drivers of a node: one small interface, publish and unpublish."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class CsiError(Exception):
    """A driver's refusal: a gRPC code and its description, as the kubelet's events show them."""

    def __init__(self, code: str, description: str):
        self.code = code
        super().__init__(f"rpc error: code = {code} desc = {description}")


@dataclass(frozen=True)
class PublishRequest:
    """NodePublishVolume. `target` does not exist yet: the driver makes it, a folder or a link to one."""

    volume_id: str
    attributes: dict[str, str]
    mount_options: list[str]
    read_only: bool
    ephemeral: bool
    pod: dict[str, Any]
    target: Path
    storage_class: str = ""
    """The PersistentVolume's, if it is one."""


class NodeDriver(Protocol):
    """A CSI driver on a node. Both calls are idempotent; `publish` raises CsiError."""

    async def publish(self, request: PublishRequest) -> None: ...

    async def unpublish(self, target: Path) -> None: ...
