"""Node pools of a Standard cluster, and the order in which a ComputeClass takes them (`nodepools` rules).

They were made by the container API, in whose file they are read (google/container.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from emulated_cloud.kubernetes.client import Informers, Object
from emulated_cloud.kubernetes.gke.config import Config
from emulated_cloud.kubernetes.gke.image_cache import POOL_LABEL
from emulated_cloud.kubernetes.gke.machines import (
    COMPUTE_CLASS,
    DRIVER_LABEL,
    MACHINE_TYPES,
    MachineType,
    compute_class_of,
    node_template,
)
from emulated_cloud.kubernetes.resources import COMPUTE_CLASSES

_EFFECTS = {"NO_SCHEDULE": "NoSchedule", "PREFER_NO_SCHEDULE": "PreferNoSchedule", "NO_EXECUTE": "NoExecute"}


@dataclass(frozen=True)
class Pool:
    """A node pool that runs, as the container API has it."""

    name: str
    machine: MachineType
    spot: bool
    driver: str
    labels: dict[str, str]
    taints: list[dict[str, str]]
    largest: int
    """Nodes that the autoscaler may give it, in all zones; 0 without autoscaling."""

    def node(self, config: Config, zone: str, name: str = "") -> Object:
        """A node of the pool; without a name, the template that the autoscaler simulates."""
        made = node_template(self.machine, zone, config.cluster, config.project.id, self.spot, self.driver, name)
        made["metadata"]["labels"] |= {POOL_LABEL: self.name, **self.labels}
        if self.machine.resource and not self.machine.accelerator.startswith("tpu"):
            made["metadata"]["labels"][DRIVER_LABEL] = self.driver or "default"
        if self.taints:
            made["spec"]["taints"] = [*made["spec"].get("taints", []), *self.taints]
        return made


class NodePools:
    def __init__(self, informers: Informers, config: Config):
        self._config = config
        self._classes = informers.of(COMPUTE_CLASSES)

    def in_order(self, pod: Object) -> list[Pool] | None:
        """The node pools that the pod's ComputeClass takes, the first choice first; None when it selects none that
        says so."""
        found = self._classes.items.get(compute_class_of(pod)) or {"spec": {"priorities": []}}
        names = [name for rule in found["spec"]["priorities"] for name in rule.get("nodepools") or []]
        if not names:
            return None
        there = {pool.name: pool for pool in map(_read, self._made()) if pool}
        # GKE takes a pool for the class whose label it has.
        return [there[name] for name in names if name in there and compute_class_of(pod) == _class_of(there[name])]

    def _made(self) -> list[dict[str, Any]]:
        file = self._config.pools
        if not file or not file.exists():
            return []
        pools = json.loads(file.read_bytes())
        return [pool for name, pool in pools.items() if f"/clusters/{self._config.cluster}/" in name]


def _class_of(pool: Pool) -> str:
    return pool.labels.get(COMPUTE_CLASS, "")


def _read(pool: dict[str, Any]) -> Pool | None:
    config, scaled = pool["config"], pool.get("autoscaling") or {}
    machine = next((each for each in MACHINE_TYPES if each.name == config["machineType"]), None)
    if machine is None or pool["status"] != "RUNNING":
        return None
    drivers = [card.get("gpuDriverInstallationConfig", {}) for card in config.get("accelerators", [])]
    driver = next((str(each.get("gpuDriverVersion", "")) for each in drivers), "")
    return Pool(
        pool["name"],
        machine,
        bool(config.get("spot")),
        driver.lower(),
        dict(config.get("labels") or {}),
        [
            {"key": taint["key"], "value": taint.get("value", ""), "effect": _EFFECTS[taint["effect"]]}
            for taint in config.get("taints") or []
        ],
        int(scaled.get("totalMaxNodeCount") or scaled.get("maxNodeCount") or 0) if scaled.get("enabled") else 0,
    )
