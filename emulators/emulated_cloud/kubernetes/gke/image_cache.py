"""Secondary boot disks: which nodes come with one, what is on it, and what a node finds there when it pulls an image.

A pod gets a node with a disk when it selects the disk's label and a GCPResourceAllowlist lets the cluster use the
image (Autopilot), when it selects a ComputeClass that names the image, or when a node pool has it. The image has to be
READY in Compute Engine, whose folder is read here as its API would be asked (google/compute/store.py). Of what a node
finds on its disk it writes one line into Cloud Logging, for each image that it pulls.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import json
import logging
import re
import shutil
from dataclasses import dataclass
from typing import Any

import aiohttp

from emulated_cloud.kubernetes.client import Informers, Object
from emulated_cloud.kubernetes.gke.config import Config
from emulated_cloud.kubernetes.gke.machines import MachineType
from emulated_cloud.kubernetes.resources import ALLOWLISTS, COMPUTE_CLASSES, NODES

log = logging.getLogger(__name__)

DISK_LABEL = "cloud.google.com.node-restriction.kubernetes.io/gke-secondary-boot-disk-"
CLASS_LABEL = "cloud.google.com/compute-class"
POOL_LABEL = "cloud.google.com/gke-nodepool"
MODE = "CONTAINER_IMAGE_CACHE"
_MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
_REGISTRY_SECONDS = aiohttp.ClientTimeout(total=30)


@dataclass(frozen=True)
class Disk:
    """A disk that nodes are to have: of an image of a project."""

    project: str
    image: str

    @property
    def label(self) -> tuple[str, str]:
        return f"{DISK_LABEL}{self.image}", f"{MODE}.{self.project}"

    @property
    def path(self) -> str:
        return f"projects/{self.project}/global/images/{self.image}"


@dataclass(frozen=True)
class Pull:
    """An image as a registry has it."""

    size: int = 0
    """Bytes of its layers."""
    chain_ids: tuple[str, ...] = ()


class ImageCache:
    def __init__(self, informers: Informers, config: Config):
        self._config = config
        self._nodes = informers.of(NODES)
        self._allowlists = informers.of(ALLOWLISTS)
        self._classes = informers.of(COMPUTE_CLASSES)

    # -- nodes ----------------------------------------------------------------------------------------------

    def equip(self, node: Object, machine: MachineType, pod: Object) -> None:
        """Gives a node that is made for the pod what its selector asks for, as far as the cluster may have it."""
        selector = pod["spec"].get("nodeSelector") or {}
        labels = node["metadata"]["labels"]
        added: dict[str, str] = {}
        for disk in _selected(selector):
            if self._is_allowed(disk):
                added |= [disk.label]
        if rule := self._rule_for(name := selector.get(CLASS_LABEL, ""), machine):
            added[CLASS_LABEL] = name
            added |= [disk.label for disk in _of_rule(rule, self._config.project.id)]
            node["spec"].setdefault("taints", []).append({"key": CLASS_LABEL, "value": name, "effect": "NoSchedule"})
        if added:
            labels |= added
            # Other nodes than those of the machine's plain pool.
            labels[POOL_LABEL] += "-" + hashlib.sha256(json.dumps(added).encode()).hexdigest()[:4]

    def failure(self, node: Object) -> str:
        """Why Compute Engine cannot make the node's disks; empty when it can."""
        for disk in _selected(node["metadata"]["labels"]):
            if (self._image(disk) or {}).get("status") != "READY":
                why = "is not ready" if self._image(disk) else "cannot be found"
                field = "Invalid value for field 'resource.properties.disks[1].initializeParams.sourceImage'"
                return f"{field}: '{disk.path}'. The referenced image resource {why}"
        return ""

    def _is_allowed(self, disk: Disk) -> bool:
        patterns = [
            pattern
            for item in self._allowlists.items.values()
            for pattern in item["spec"].get("allowedResourcePatterns") or []
        ]
        pools = [image for pool in self._config.node_pools for image in pool.get("disk_images") or []]
        return disk.path in pools or any(re.match(pattern, disk.path) for pattern in patterns)

    def _rule_for(self, name: str, machine: MachineType) -> Object | None:
        """The first rule of a ComputeClass by which a machine may be had."""
        rules = (self._classes.items.get(name) or {"spec": {"priorities": []}})["spec"]["priorities"]
        for rule in rules:
            gpu = rule.get("gpu") or {}
            family = rule.get("machineFamily", machine.name.partition("-")[0])
            if (gpu.get("type", ""), family) != (machine.accelerator, machine.name.partition("-")[0]):
                continue
            if gpu.get("count", machine.count) == machine.count and rule.get("machineType") in (None, machine.name):
                found: Object = rule
                return found
        return None

    # -- what is on a disk ----------------------------------------------------------------------------------

    def _image(self, disk: Disk) -> dict[str, Any] | None:
        """A disk image as Compute Engine shows it."""
        if not self._config.compute or disk.project != self._config.project.id:
            return None
        file = self._config.compute / "global" / "images" / f"{disk.image}.json"
        return dict(json.loads(file.read_bytes())) if file.exists() else None

    async def _on_disk(self, disk: Disk) -> set[str] | None:
        """The chain IDs of the layers that lie on a disk; None of one without a file system, which was baked by nobody
        (a machine with scripted output)."""
        assert self._config.compute
        file = self._config.compute / "global" / "images" / f"{disk.image}.raw"
        if not file.exists() or not file.stat().st_blocks:
            return None
        debugfs = shutil.which("debugfs", path="/usr/sbin:/sbin:/usr/bin:/bin")
        if debugfs is None:
            log.warning("no debugfs here: what is on %s is not known", disk.image)
            return None
        reading = await asyncio.create_subprocess_exec(
            debugfs,
            "-R",
            "cat /snapshots.metadata",
            str(file),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        text, _ = await reading.communicate()
        return {line.split()[0] for line in text.decode(errors="replace").splitlines() if line.strip()}

    # -- pulls ----------------------------------------------------------------------------------------------

    async def pull(self, node: str, image: str) -> int:
        """A node pulls an image: returns the bytes that it is, and notes what of it the node found on its disk."""
        found = self._nodes.items.get(node) or {"metadata": {}}
        disks = _selected(found["metadata"].get("labels") or {})
        if not disks or not self._config.registry:
            return 0
        try:
            pulled = await self._ask_registry(image)
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
            log.warning("%s: the registry does not say what it is made of: %r", image, error)
            return 0
        on_disks = [await self._on_disk(disk) for disk in disks]
        cached = sum(
            any(on_disk is None or chain_id in on_disk for on_disk in on_disks) for chain_id in pulled.chain_ids
        )
        cached = max(0, cached - self._config.uncached_layers())
        self._write(node, image, cached, len(pulled.chain_ids))
        return pulled.size

    async def _ask_registry(self, image: str) -> Pull:
        """What an image is made of, asked by its digest."""
        name, _, digest = image.partition("@")
        host, _, path = name.partition("/")
        repository = path if "." in host or ":" in host else name
        root = f"{self._config.registry}/v2/{repository.partition(':')[0]}"
        async with aiohttp.ClientSession(timeout=_REGISTRY_SECONDS) as session:
            headers = {"Accept": _MANIFESTS}
            answer = await session.get(f"{root}/manifests/{digest}", headers=headers)
            if answer.status == 401:
                headers["Authorization"] = f"Bearer {await _token(session, answer.headers['WWW-Authenticate'])}"
                answer = await session.get(f"{root}/manifests/{digest}", headers=headers)
            answer.raise_for_status()
            manifest = json.loads(await answer.read())
            answer = await session.get(f"{root}/blobs/{manifest['config']['digest']}", headers=headers)
            answer.raise_for_status()
            diff_ids = json.loads(await answer.read())["rootfs"]["diff_ids"]
        return Pull(sum(layer["size"] for layer in manifest["layers"]), tuple(_chain_ids(diff_ids)))

    def _write(self, node: str, image: str, cached: int, layers: int) -> None:
        """The line of gcfs-snapshotter, as a node's logging agent sends it."""
        if not self._config.logs:
            return
        share, streamed = 100 * cached / layers, layers - cached
        words = (
            f"Image {image} is backed by secondary boot disk caching by {share:.1f}% ({cached}/{layers} layers), by "
            f"image streaming by {100 - share:.1f}% ({streamed}/{layers} layers)."
        )
        project = self._config.project.id
        where = {"location": self._config.region, "cluster_name": self._config.cluster, "node_name": node}
        entry = {
            "logName": f"projects/{project}/logs/gcfs-snapshotter",
            "resource": {"type": "k8s_node", "labels": {"project_id": project, **where}},
            "timestamp": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "severity": "INFO",
            "jsonPayload": {"MESSAGE": words, "_HOSTNAME": node, "SYSLOG_IDENTIFIER": "gcfs-snapshotter"},
        }
        with open(self._config.logs, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


async def _token(session: aiohttp.ClientSession, challenge: str) -> str:
    """What a registry gives to anybody who asks where it says."""
    said = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    async with session.get(said.pop("realm"), params=said) as answer:
        answer.raise_for_status()
        return str(json.loads(await answer.read())["token"])


def _chain_ids(diff_ids: list[str]) -> list[str]:
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append("sha256:" + hashlib.sha256(f"{chain[-1]} {diff_id}".encode()).hexdigest() if chain else diff_id)
    return chain


def _selected(labels: dict[str, str]) -> list[Disk]:
    """The disks that labels speak of, a pod's selector's or a node's."""
    found = []
    for key, value in labels.items():
        mode, _, project = value.partition(".")
        if key.startswith(DISK_LABEL) and mode == MODE:
            found.append(Disk(project, key.removeprefix(DISK_LABEL)))
    return found


def _of_rule(rule: Object, project: str) -> list[Disk]:
    disks = (rule.get("storage") or {}).get("secondaryBootDisks") or []
    return [Disk(disk.get("project", project), disk["diskImageName"]) for disk in disks if disk.get("mode") == MODE]
