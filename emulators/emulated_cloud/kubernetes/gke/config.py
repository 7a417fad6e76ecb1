"""The configuration of the GKE process: one JSON file.

zones                ["us-central1-a", …]: where nodes come up, in turn
accelerators         {"nvidia-l4": 4, "tpu-v6e-slice": 4, …}: quota in cards or chips; absent is not sold here
machine_types        ["g2-standard-8", …]: the machine types to be had; all known ones if absent
cpu_quota            vCPUs of all nodes together
scale_up_seconds     from the announcement of a scale-up to the node
decline              {accelerator, "cpu", or a node pool's name: words}: scale-ups fail with these words ("GCE out
                     of resources"). Read again at each scale-up, so that a test can take it away
backoff_seconds      how long the autoscaler leaves a failed scale-up alone (GKE: 300)
cluster              name of the cluster, in node names
location             its region or zone; the zones' region if left out
project              {"id", "number"}
storage              {"endpoint": URL of the GCS emulator, "root": its folder,
                     "gcsfuse": true for real mounts (emulated_cloud/real/gcsfuse.py) instead of links to that folder}
disks                folder of Compute Engine's disks (gke/disks.py), which outlive the cluster
disk_faults          what goes wrong with them (gke/disk_faults.py); read again each time
gateway              false: somebody else serves Gateways
gateway_faults       what goes wrong with them (emulated_cloud/gateway/__init__.py); read again each time
tls                  folder of the authority that signs certificates (tls.py)
compute              folder of the emulated Compute Engine (google/compute/store.py), which has the disk images
logs                 file to which LogEntry objects are appended, a line each, for Cloud Logging (google/logging.py)
private_roots        true: containers have a root and a user of their own (emulated_cloud/real/runtime.py)
show                 [absolute paths]: folders of this machine that containers with a root of their own see, read-only,
                     beside what this Python needs
pools                the file of the node pools that were made by the container API (google/container.py), read again at
                     each scale-up
node_pools           [{"name", "disk_images": ["projects/P/global/images/NAME"]}]: pools that somebody made, with disks
registry             URL of the registry that says what pulled images are made of
uncached_layers      that many layers of each image a node does not find on its disk. Read again at each pull
metrics              file that Cloud Monitoring's points are written to (gke/prometheus.py)
scrape_seconds       pods are scraped at least so often; left out, as often as PodMonitoring says
images               [{"match": regex on the whole image name, "argv0": {"vllm": ["/venv/bin/python", "-m", "x"]},
                     "entrypoint": […] for a container without a command, "env": {…}}]; the first match counts;
                     $(POD_IP) in values is the pod's address, $(SERVICE_ACCOUNT) the folder of its service account's
                     token. An image that nothing matches cannot be pulled
pods                 folder for the pods' files and logs
crash_backoff_seconds  first wait of CrashLoopBackOff and ImagePullBackOff, doubled each time (a kubelet: 10)
pod_network, load_balancer_network   CIDR of addresses that are local here; left out: a part of 127.0.0.0/8
                     that no other cluster on this machine uses
node_address         address of the kubelet's server, the nodes' InternalIP
expose               [{"namespace", "service", "port", "address": "127.0.0.1:0", "file": where its URL is written
                     as soon as the Service has a ready endpoint}]; with "gateway" for "service", a Gateway's port, as
                     soon as one of its backends answers
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class ConfigError(Exception):
    """The configuration cannot be used: which file, which key, what is wrong."""


@dataclass(frozen=True)
class Image:
    """What stands for a container image here."""

    match: str
    argv0: dict[str, list[str]] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Expose:
    """A Service's or a Gateway's port as this machine reaches it."""

    namespace: str
    port: int
    service: str = ""
    gateway: str = ""
    address: str = "127.0.0.1:0"
    file: Path | None = None


@dataclass(frozen=True)
class Project:
    id: str
    number: str


@dataclass(frozen=True)
class Storage:
    endpoint: str
    root: Path
    gcsfuse: bool = False


@dataclass(frozen=True)
class Config:
    """See the module's docstring."""

    zones: list[str]
    project: Project
    pods: Path
    path: Path
    accelerators: dict[str, int] = field(default_factory=dict)
    machine_types: list[str] = field(default_factory=list)
    cpu_quota: int = 1000
    scale_up_seconds: float = 0.3
    backoff_seconds: float = 5.0
    cluster: str = "gemma"
    storage: Storage | None = None
    disks: Path | None = None
    gateway: bool = True
    tls: Path | None = None
    pools: Path | None = None
    node_pools: list[dict[str, Any]] = field(default_factory=list)
    compute: Path | None = None
    registry: str = ""
    logs: Path | None = None
    metrics: Path | None = None
    scrape_seconds: float = 60.0
    location: str = ""
    private_roots: bool = False
    show: list[Path] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    crash_backoff_seconds: float = 1.0
    pod_network: str = ""
    load_balancer_network: str = ""
    node_address: str = "127.0.0.1"
    expose: list[Expose] = field(default_factory=list)

    @property
    def region(self) -> str:
        return self.zones[0].rsplit("-", 1)[0]

    def declined(self, pool: str) -> str:
        """The words with which a scale-up of `pool` (an accelerator, `cpu`, or a node pool's name) fails; empty when it
        does not."""
        words: str = self._now().get("decline", {}).get(pool, "")
        return words

    def uncached_layers(self) -> int:
        """How many layers of an image nodes do not find on their disks."""
        return int(self._now().get("uncached_layers", 0))

    def _now(self) -> dict[str, Any]:
        """What the file says now."""
        found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return found

    def image(self, name: str) -> Image | None:
        return next((image for image in self.images if re.fullmatch(image.match, name)), None)


def load(path: Path) -> Config:
    """Raises ConfigError."""
    try:
        given: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for changeable in ("decline", "disk_faults", "gateway_faults", "uncached_layers"):
            given.pop(changeable, None)
        storage = given.get("storage")
        return Config(
            **{
                **given,
                "path": path,
                "pods": Path(given["pods"]).absolute(),
                "project": Project(**given["project"]),
                "storage": Storage(storage["endpoint"].rstrip("/"), Path(storage["root"]), bool(storage.get("gcsfuse")))
                if storage
                else None,
                "disks": Path(given["disks"]).absolute() if given.get("disks") else None,
                "compute": Path(given["compute"]) if given.get("compute") else None,
                "tls": Path(given["tls"]).absolute() if given.get("tls") else None,
                "pools": Path(given["pools"]) if given.get("pools") else None,
                "logs": Path(given["logs"]) if given.get("logs") else None,
                "metrics": Path(given["metrics"]) if given.get("metrics") else None,
                "show": [Path(folder) for folder in given.get("show", [])],
                "images": [Image(**image) for image in given.get("images", [])],
                "expose": [
                    Expose(**{**entry, "file": Path(entry["file"]) if entry.get("file") else None})
                    for entry in given.get("expose", [])
                ],
            }
        )
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except KeyError as error:
        raise ConfigError(f"{path}: {error.args[0]} is missing") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
