"""Cards or TPU chips, whichever node is to be had: one Deployment whose pods serve on both.

Node pools of either kind belong to one ComputeClass, which says in which order they are tried. A pod has a container
for each kind of accelerator, and the one whose accelerator the node has serves (manifests/gpu-or-tpu/serve_on.sh).
Source: https://cloud.google.com/kubernetes-engine/docs/concepts/about-custom-compute-classes and Google's recipe for
fungible accelerators.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from serving import catalog, names
from serving.errors import InconclusiveError, RequestError
from serving.features import Beside, Explanation, Symptom, gpu, nodes, tpu
from serving.values import Duration, Image, MachineType, NodePoolName, ServiceAccount, Zone
from serving.values import Section as BaseSection

if TYPE_CHECKING:
    from serving.catalog import Host
    from serving.clients.google import ClusterTraits
    from serving.settings import Settings
    from serving.weights.release import Release

DEFAULT_TYPE = gpu.DEFAULT_TYPE
COPIES = {names.SERVER_CONTAINER: names.TPU_CONTAINER}
"""Containers of the server's pods → the copies of them that the feature's patch makes others of."""
COMPUTE_CLASS = "cloud.google.com/compute-class"
"""Label and taint of the nodes of a ComputeClass."""
ENFORCED = "pod-security.kubernetes.io/enforce"
"""The label of a namespace that says what its pods may be."""
_SINCE = "1.31.4-gke.1256000"
"""The first GKE version with TPU v6e, as Google's recipe has it."""
_SLICES = {"tpu-v6e-slice": "v6e"}
"""What GKE calls TPUs → what libtpu calls them."""


class Pool(BaseSection):
    """A node pool, one of the choices."""

    name: NodePoolName
    """Its name in the cluster."""
    accelerator: Literal["gpu", "tpu"]
    """What its nodes have: the cards of accelerator.type, or TPU chips."""
    machine_type: MachineType
    """Its machines: accelerator.count cards each, or tpu_chips."""
    spot: bool = False
    """Spot nodes: cheaper, and taken away at half a minute's notice."""
    max_nodes: int = Field(3, ge=1, le=1000)
    """Nodes that it may have, in all zones."""
    zones: list[Zone] = Field([])
    """Where it is made; empty takes the cluster's zones."""


class Section(BaseSection):
    """The node pools, in the order in which they are tried, and the TPU of a pod."""

    nodes: Literal["check", "create"] = "check"
    """check: the node pools are yours, and a run says what is not as it has to be; create: it makes those that are not
    there, and leaves those that are."""
    pools: list[Pool] = Field(
        [
            Pool(name="l4-spot", accelerator="gpu", machine_type="g2-standard-8", spot=True),
            Pool(name="l4", accelerator="gpu", machine_type="g2-standard-8"),
            Pool(name="v6e-1", accelerator="tpu", machine_type="ct6e-standard-1t"),
        ],
        min_length=2,
        max_length=16,
    )
    """The node pools, the first choice first: [{name: l4, accelerator: gpu, machine_type: g2-standard-8, spot: false,
    max_nodes: 3, zones: []}]. TPUs are best last: after one that is out of stock, the next choice can take hours."""
    tpu_type: Literal["tpu-v6e-slice"] = "tpu-v6e-slice"
    """The TPU of a pod."""
    tpu_chips: Literal[1, 4, 8] = 1
    """Chips of a node, all of which its pod has."""
    tpu_image: Image | None = None
    """The vLLM image on TPUs, if not the catalog's. (engine.image is that on cards.)"""
    node_service_account: ServiceAccount = ""
    """The Google service account of the nodes that `create` makes; empty takes the project's default."""
    timeout: Duration = "30m"
    """How long the node pools may take to be made."""
    placement_pods: int = Field(3, ge=1, le=100)
    """As many pods as verify_placement asks for, to see which accelerators come; 1 asks for no more."""

    @model_validator(mode="after")
    def _each_kind_has_a_pool(self) -> Section:
        taken = [pool.name for pool in self.pools]
        if twice := sorted({name for name in taken if taken.count(name) > 1}):
            raise ValueError(f"pools: {', '.join(twice)} is there twice")
        for kind in ("gpu", "tpu"):
            if kind not in {pool.accelerator for pool in self.pools}:
                raise ValueError(f"pools: none has accelerator: {kind}. For one kind alone take the feature {kind}")
        return self


def values(settings: Settings, release: Release | None) -> dict[str, Any]:
    """Of the class of its nodes, and of the pods."""
    section, own = _section(settings), names.pool_class(settings)
    of_class = {"pool_class": own, "pool_priorities": [{"nodepools": [pool.name]} for pool in section.pools]}
    if release is None:
        return of_class
    resources = [catalog.kind(kind).resource for kind in ("gpu", "tpu")]
    taints = [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in resources]
    taints += [
        {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
        for key, value in ((nodes.SPOT, "true"), (COMPUTE_CLASS, own))
    ]
    return {
        **of_class,
        "tolerations": taints,
        "entrypoint": entrypoint(),
        "tpu_environment": [{"name": name, "value": value} for name, value in _tpu_environment(section).items()],
    }


def beside(settings: Settings) -> Beside:
    """The accelerator that its pods may find in place of the settings' own."""
    section = _section(settings)
    return Beside(section.tpu_type, section.tpu_chips, section.tpu_image)


def rights(settings: Settings) -> dict[str, set[str]]:
    """What verify_placement reads in the cluster: what the nodes under the pods have."""
    return {"Node": {"get"}}


def identity(settings: Settings) -> dict[str, Any]:
    """Pods that start in another way are other pods. (Which nodes they come to, and in which order, changes in
    place.)"""
    return {"entrypoint": hashlib.sha256(entrypoint().encode()).hexdigest()[:16]}


def check(settings: Settings) -> None:
    """Raises RequestError for what does not go with nodes of two kinds."""
    if "secondary-boot-disk" in settings.chosen_features:
        raise RequestError(
            "gpu-or-tpu and secondary-boot-disk do not go together: its pods take their nodes from the node pools of "
            "gpu_or_tpu.pools, and pull two engines' images. Leave one of them out"
        )
    if settings.capacity != "on-demand":
        raise RequestError(
            f"capacity: {settings.capacity} is for one kind of nodes; with gpu-or-tpu each node pool of "
            "gpu_or_tpu.pools says whether its nodes are Spot nodes. Leave capacity out"
        )
    nodes.check(settings, "gpu")
    section = _section(settings)
    family = nodes.card(settings).machine_family
    with_chips = catalog.card(section.tpu_type).machines_with(section.tpu_chips)[0].name
    for pool in section.pools:
        if pool.accelerator == "gpu" and not pool.machine_type.startswith(f"{family}-"):
            raise RequestError(
                f"gpu_or_tpu.pools: {pool.name} is of {pool.machine_type}; {settings.accelerator.type} is in machines "
                f"of the family {family} alone ({family}-…)"
            )
        # The engine is told how many chips there are and how they are wired, whatever its node has.
        if pool.accelerator == "tpu" and pool.machine_type != with_chips:
            raise RequestError(
                f"gpu_or_tpu.pools: {pool.name} is of {pool.machine_type}; gpu_or_tpu.tpu_chips is "
                f"{section.tpu_chips}, which is a {with_chips}. Change the one or the other"
            )


def holds(settings: Settings, asked: Host) -> None:
    """Raises RequestError for a pod that is more than a machine of one of the node pools: none would come there. (A
    machine type that the catalog does not know is left to the scheduler.)"""
    section = _section(settings)
    cards = (nodes.card(settings), catalog.card(section.tpu_type))
    known = {machine.name: machine for card in cards for machine in card.machines}
    for pool in section.pools:
        machine = known.get(pool.machine_type)
        if machine and not nodes.has_room(machine, asked):
            raise RequestError(
                f"gpu_or_tpu.pools: {pool.name}: {nodes.too_much(machine, asked)}. Take larger machines there, or set "
                "accelerator.cpu or accelerator.memory to less"
            )


def suits(settings: Settings, look: Callable[[], ClusterTraits]) -> None:
    """Raises RequestError for a cluster that has no such node pools, before anything is spent."""
    cluster = look()
    if cluster.autopilot:
        raise RequestError(
            f"{cluster.name} is an Autopilot cluster, where a pod cannot be privileged, nor take its node from a node "
            "pool of yours: gpu-or-tpu needs a Standard cluster (docs/scenarios.md)"
        )
    if not cluster.is_at_least(_SINCE):
        raise RequestError(
            f"{cluster.name} is GKE {cluster.version}; TPU v6e needs {_SINCE}. Upgrade it: `gcloud container clusters "
            f"upgrade {settings.cluster} --master --location {settings.location}`"
        )


def houses(settings: Settings, namespace: dict[str, Any] | None, others: Callable[[], list[str]]) -> None:
    """Raises RequestError for a namespace that is not an administrator's gift to privileged pods, and theirs alone."""
    name = settings.namespace
    labels = ((namespace or {}).get("metadata") or {}).get("labels") or {}
    if labels.get(ENFORCED) != "privileged":
        has = f"is labelled {labels[ENFORCED]}" if ENFORCED in labels else "is not labelled so"
        raise RequestError(
            f"the pods of gpu-or-tpu are privileged (docs/security.md says why), and the namespace {name} "
            f"{has if namespace else 'is not there'}. An administrator makes one for them alone: `gemma-pipelines "
            f"render {settings.scenario} -f FILE --access | kubectl apply --server-side -f -`, or labels it: `kubectl "
            f"label namespace {name} {ENFORCED}=privileged --overwrite`"
        )
    if there := others():
        raise RequestError(
            f"the namespace {name} lets privileged pods in, and {', '.join(there)} is deployed there too: give this "
            "deployment a namespace of its own (`namespace` in the settings)"
        )


def explain(settings: Settings, symptom: Symptom) -> Explanation | None:
    """No node of any pool; and what cards and chips do to an engine."""
    if symptom.kind != "no-node":
        return gpu.explain(settings, symptom) or tpu.explain(settings, symptom)
    order = ", then ".join(pool.name for pool in _section(settings).pools)
    return Explanation(
        InconclusiveError,
        f"no node for {symptom.pod} in any node pool of the order ({order}): {symptom.words}. Look at the class "
        f"(`kubectl describe computeclass {names.pool_class(settings)}`) and the pools (`gcloud container node-pools "
        f"list --cluster {settings.cluster} --location {settings.location}`). If those are as they should be, it is "
        "capacity: add a node pool to gpu_or_tpu.pools, ask for quota, or wait longer (serving.capacity_timeout)",
    )


@functools.cache
def entrypoint() -> str:
    """What both containers start with: a shell's program."""
    return importlib.resources.files("manifests").joinpath("gpu-or-tpu/serve_on.sh").read_text(encoding="utf-8")


def _tpu_environment(section: Section) -> dict[str, str]:
    """What GKE tells who asks for chips, for a slice that is one node; Google's recipe has the same for one chip."""
    topology = catalog.card(section.tpu_type, section.tpu_chips).topologies[section.tpu_chips]
    bounds = ",".join([*topology.split("x"), "1", "1"][:3])
    return {
        # What XLA has compiled: a container that starts again in its pod need not do it again.
        "VLLM_XLA_CACHE_PATH": "/cache/xla",
        "TPU_SKIP_MDS_QUERY": "true",
        "TPU_ACCELERATOR_TYPE": f"{_SLICES[section.tpu_type]}-{section.tpu_chips}",
        "TPU_TOPOLOGY": topology,
        "TPU_TOPOLOGY_ALT": "false",
        "TPU_TOPOLOGY_WRAP": "false,false,false",
        "TPU_CHIPS_PER_HOST_BOUNDS": bounds,
        "CHIPS_PER_HOST_BOUNDS": bounds,
        "TPU_HOST_BOUNDS": "1,1,1",
        "HOST_BOUNDS": "1,1,1",
        "TPU_WORKER_ID": "0",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }


def _section(settings: Settings) -> Section:
    section: Section = settings.section("gpu-or-tpu")
    return section
