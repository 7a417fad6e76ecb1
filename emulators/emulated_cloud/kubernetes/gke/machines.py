"""Machine types of Compute Engine, and the nodes that GKE makes of them: labels, taints, capacity, allocatable.

Figures: Compute Engine's machine family pages; allocatable: "Plan GKE node sizes" in GKE's documentation.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from emulated_cloud.kubernetes.client import Object

GPU, TPU = "nvidia.com/gpu", "google.com/tpu"
ACCELERATOR_LABEL = "cloud.google.com/gke-accelerator"
ACCELERATOR_COUNT_LABEL = "cloud.google.com/gke-accelerator-count"
DRIVER_LABEL = "cloud.google.com/gke-gpu-driver-version"
TPU_LABEL = "cloud.google.com/gke-tpu-accelerator"
TPU_TOPOLOGY_LABEL = "cloud.google.com/gke-tpu-topology"
SPOT_LABEL = "cloud.google.com/gke-spot"
RESERVATION = "cloud.google.com/reservation-"
"""What the labels of nodes begin with that come out of a reservation."""
GPU_TAINT = {"key": GPU, "value": "present", "effect": "NoSchedule"}
TPU_TAINT = {"key": TPU, "value": "present", "effect": "NoSchedule"}
SPOT_TAINT = {"key": SPOT_LABEL, "value": "true", "effect": "NoSchedule"}
FAMILY_LABEL = "cloud.google.com/machine-family"
COMPUTE_CLASS = "cloud.google.com/compute-class"
"""Label and taint of the nodes of a compute class."""
EPHEMERAL_BYTES = 1000 * 2**30
MAX_PODS = 110


@dataclass(frozen=True)
class MachineType:
    """`cpu` in vCPUs, `memory_gb` in GiB, `count` accelerators (cards or chips); `topology` of a TPU slice."""

    name: str
    cpu: int
    memory_gb: int
    accelerator: str = ""
    count: int = 0
    topology: str = ""

    @property
    def resource(self) -> str:
        """The extended resource that its accelerators are."""
        if not self.accelerator:
            return ""
        return TPU if self.accelerator.startswith("tpu") else GPU


def _machine_types() -> list[MachineType]:
    """All that are known, smallest first within a family."""
    general = [
        MachineType(f"{family}-standard-{cpu}", cpu, cpu * 4)
        for family, sizes in {
            "e2": (2, 4, 8, 16, 32),
            "n2": (2, 4, 8, 16, 32, 48, 64, 80, 96, 128),
            "c3": (4, 8, 22, 44, 88, 176),
            "c3d": (4, 8, 16, 30, 60, 90, 180, 360),
            "c4": (2, 4, 8, 16, 24, 32, 48, 96, 144, 192, 288),
            "c4d": (2, 4, 8, 16, 32, 48, 64, 96, 192, 384),
            "n4": (2, 4, 8, 16, 32, 48, 64, 80),
        }.items()
        for cpu in sizes
    ]
    cards = {4: 1, 8: 1, 12: 1, 16: 1, 32: 1, 24: 2, 48: 4, 96: 8}
    l4 = [MachineType(f"g2-standard-{cpu}", cpu, cpu * 4, "nvidia-l4", count) for cpu, count in cards.items()]
    a100 = [MachineType(f"a2-highgpu-{n}g", 12 * n, 85 * n, "nvidia-tesla-a100", n) for n in (1, 2, 4, 8)]
    a100_80 = [MachineType(f"a2-ultragpu-{n}g", 12 * n, 170 * n, "nvidia-a100-80gb", n) for n in (1, 2, 4, 8)]
    h100 = [MachineType(f"a3-highgpu-{n}g", 26 * n, 234 * n, "nvidia-h100-80gb", n) for n in (1, 2, 4, 8)]
    tpus = [
        MachineType("ct6e-standard-1t", 44, 176, "tpu-v6e-slice", 1, "1x1"),
        MachineType("ct6e-standard-4t", 180, 720, "tpu-v6e-slice", 4, "2x2"),
        MachineType("ct6e-standard-8t", 180, 1440, "tpu-v6e-slice", 8, "2x4"),
        MachineType("tpu7x-standard-1t", 56, 240, "tpu7x", 1, "1x1x1"),
        MachineType("tpu7x-standard-4t", 224, 960, "tpu7x", 4, "2x2x1"),
    ]
    return [*general, *l4, *a100, *a100_80, *h100, *tpus]


MACHINE_TYPES = _machine_types()
DEFAULT_FAMILIES = {"e2", "n2"}
"""Machines without accelerators that a pod gets which asks for none in particular."""
BUILT_IN_CLASSES = {"Accelerator", "Balanced", "Performance", "Scale-Out"}
"""Compute classes that every Autopilot cluster has; others are ComputeClass objects."""

_HYPERDISK_ML = {"a2", "a3", "a4", "a4x", "c3", "c3d", "c4", "c4a", "c4d", "g2", "g4", "n4", "n4a", "n4d"} | {
    "ct5e",
    "ct5lp",
    "ct5p",
    "ct6e",
    "tpu7x",
}
_DISK_FAMILIES = {
    "hyperdisk-ml": _HYPERDISK_ML,
    "hyperdisk-balanced": _HYPERDISK_ML - {"a2", "g2"} | {"h3", "m1", "m2", "m3", "x4", "z3"},
}
"""Which machines attach which Hyperdisk: "Machine series support" in Compute Engine's documentation, 2026."""
_WITHOUT_PERSISTENT_DISK = {"a4", "a4x", "c4", "c4a", "c4d", "g4", "n4", "n4a", "n4d", "tpu7x", "x4"}


def family_of(machine: str) -> str:
    return machine.split("-")[0]


def attaches(machine: str, disk: str) -> bool:
    """Whether a machine type can have a disk of this type."""
    family = family_of(machine)
    if disk.startswith("pd-"):
        return family not in _WITHOUT_PERSISTENT_DISK
    return family in _DISK_FAMILIES.get(disk, ())


def node_template(
    machine: MachineType,
    zone: str,
    cluster: str,
    project: str,
    spot: bool,
    driver: str,
    name: str = "",
    compute_class: str = "",
) -> Object:
    """The Node that a machine of this type becomes; without a name, the template that the autoscaler simulates.
    `compute_class` is one that every Autopilot cluster has."""
    pool = pool_name(machine, spot, driver, compute_class)
    region = zone.rsplit("-", 1)[0]
    labels = {
        "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/instance-type": machine.name,
        "beta.kubernetes.io/os": "linux",
        "cloud.google.com/gke-boot-disk": "pd-balanced",
        "cloud.google.com/gke-container-runtime": "containerd",
        "cloud.google.com/gke-nodepool": pool,
        "cloud.google.com/gke-os-distribution": "cos",
        "cloud.google.com/gke-provisioning": "spot" if spot else "standard",
        FAMILY_LABEL: family_of(machine.name),
        "failure-domain.beta.kubernetes.io/region": region,
        "failure-domain.beta.kubernetes.io/zone": zone,
        "iam.gke.io/gke-metadata-server-enabled": "true",
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": name or f"template-{machine.name}",
        "kubernetes.io/os": "linux",
        "node.kubernetes.io/instance-type": machine.name,
        "topology.gke.io/zone": zone,
        "topology.kubernetes.io/region": region,
        "topology.kubernetes.io/zone": zone,
    }
    taints = []
    if machine.resource == GPU:
        labels[ACCELERATOR_LABEL] = machine.accelerator
        labels[ACCELERATOR_COUNT_LABEL] = str(machine.count)
        labels[DRIVER_LABEL] = driver or "default"
        taints.append(GPU_TAINT)
    elif machine.resource == TPU:
        labels[TPU_LABEL] = machine.accelerator
        labels[TPU_TOPOLOGY_LABEL] = machine.topology
        labels["cloud.google.com/gke-accelerator-count"] = str(machine.count)
        taints.append(TPU_TAINT)
    if spot:
        labels[SPOT_LABEL] = "true"
        taints.append(SPOT_TAINT)
    if compute_class:
        labels[COMPUTE_CLASS] = compute_class
        taints.append(class_taint(compute_class))
    meta: Object = {"name": name or f"template-{machine.name}", "labels": labels}
    # Its volumes are attached by the control plane.
    meta["annotations"] = {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}
    node: Object = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": meta,
        "spec": {"providerID": f"gce://{project}/{zone}/{name}"},
        "status": {"capacity": _capacity(machine), "allocatable": _allocatable(machine)},
    }
    if taints:
        node["spec"]["taints"] = taints
    return node


def reserve(node: Object, pod: Object) -> None:
    """Takes the node out of the reservation that the pod selects: any that is named is there, and has room."""
    selector = pod["spec"].get("nodeSelector") or {}
    labels = {key: value for key, value in selector.items() if key.startswith(RESERVATION)}
    if labels and node["metadata"]["labels"].get(SPOT_LABEL) != "true":
        node["metadata"]["labels"] |= {**labels, "cloud.google.com/gke-provisioning": "reservation"}


def accelerator_of(pod: Object) -> str | None:
    """The extended resource for accelerators that a pod requests, or that its selector asks for."""
    for container in [*pod["spec"]["containers"], *(pod["spec"].get("initContainers") or [])]:
        resources = container.get("resources") or {}
        for name in (GPU, TPU):
            if name in (resources.get("limits") or {}) or name in (resources.get("requests") or {}):
                return name
    selector = pod["spec"].get("nodeSelector") or {}
    return GPU if ACCELERATOR_LABEL in selector else TPU if TPU_LABEL in selector else None


def compute_class_of(pod: Object) -> str:
    """The compute class that a pod selects; empty when it selects none."""
    return str((pod["spec"].get("nodeSelector") or {}).get(COMPUTE_CLASS, ""))


def class_taint(compute_class: str) -> dict[str, str]:
    return {"key": COMPUTE_CLASS, "value": compute_class, "effect": "NoSchedule"}


def pool_name(machine: MachineType, spot: bool, driver: str, compute_class: str = "") -> str:
    """The name that node auto-provisioning gives a pool of such machines."""
    digest = hashlib.sha256(f"{machine.name}{spot}{driver}{compute_class}".encode()).hexdigest()[:8]
    return f"nap-{machine.name}-{'spot-' if spot else ''}{digest}"


def _capacity(machine: MachineType) -> dict[str, str]:
    capacity = {
        "cpu": str(machine.cpu),
        "memory": f"{machine.memory_gb * 2**20}Ki",
        "ephemeral-storage": f"{EPHEMERAL_BYTES // 1024}Ki",
        "pods": str(MAX_PODS),
    }
    if machine.resource:
        capacity[machine.resource] = str(machine.count)
    return capacity


def _allocatable(machine: MachineType) -> dict[str, str]:
    """What GKE leaves to pods: reservations grow with the machine, and 100 MiB stay for eviction."""
    reserved_cpu = _tiers(machine.cpu * 1000, [(1000, 0.06), (1000, 0.01), (2000, 0.005)], 0.0025)
    reserved_mib = _tiers(machine.memory_gb * 1024, [(4096, 0.25), (4096, 0.2), (8192, 0.1), (114688, 0.06)], 0.02)
    return {
        **_capacity(machine),
        "cpu": f"{int(machine.cpu * 1000 - reserved_cpu)}m",
        "memory": f"{int(machine.memory_gb * 1024 - reserved_mib - 100) * 1024}Ki",
        "ephemeral-storage": str(int(EPHEMERAL_BYTES * 0.9) - 30 * 2**30),
    }


def _tiers(amount: float, tiers: list[tuple[float, float]], rest: float) -> float:
    reserved = 0.0
    for size, share in tiers:
        reserved += min(amount, size) * share
        amount = max(0.0, amount - size)
    return reserved + amount * rest
