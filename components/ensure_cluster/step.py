"""The step that sees to the node pools of gpu_or_tpu.pools: each there, of the class, and scaled by the autoscaler.

With `nodes: check` it says what is not so, with the command that mends each. With `create` it makes those that are not
there, one after another as GKE wants it; one that an earlier attempt began is waited for. It changes none that is
there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from serving import names
from serving.clients.kubernetes import Cluster
from serving.clients.node_pools import NodePool, NodePools
from serving.errors import InconclusiveError, RequestError
from serving.features import nodes
from serving.features.gpu_or_tpu import COMPUTE_CLASS, Pool, Section
from serving.log import Say
from serving.settings import Settings, in_seconds
from serving.step import opened

_KIND = "ComputeClass"
_LOOK_SECONDS = 2.0
_USABLE = ("RUNNING", "RECONCILING", "RUNNING_WITH_ERROR")


def run(settings: dict[str, Any], release: dict[str, Any]) -> None:
    """Sees to the node pools, then waits until the cluster knows the kind of object that puts them in order."""
    with opened("ensure_cluster", settings, release) as step:
        outcome, config = step.outcome, step.settings
        with step.cluster() as cluster:
            made = ensure_pools(config, outcome.say)
            wait_for_the_kind(cluster, config, outcome.say)
        outcome.details["changed"] = made
        if made:
            outcome.succeeded(f"made the node pools {', '.join(made)}")
        else:
            pools = ", ".join(pool.name for pool in _section(config).pools)
            outcome.skipped(f"the node pools {pools} are there, as they have to be")


def ensure_pools(settings: Settings, say: Say) -> list[str]:
    """Makes the node pools that are wanted and not there, where the settings say so. Returns their names.

    Raises RequestError with what is not as it has to be, and the command that mends each.
    """
    section, there = _section(settings), NodePools(settings)
    known = {pool["name"]: pool for pool in there.list()}
    begun = [pool for pool in section.pools if known.get(pool.name, {}).get("status", "PROVISIONING") == "PROVISIONING"]
    if section.nodes == "check":
        begun = []
    # First what no making mends: then nothing is made.
    _refuse(settings, {name: pool for name, pool in known.items() if name not in {each.name for each in begun}}, begun)
    for pool in begun:
        there.make(wanted(settings, pool), in_seconds(section.timeout), say)
    if begun:
        _refuse(settings, {pool["name"]: pool for pool in there.list()}, [])
    return [pool.name for pool in begun]


def wanted(settings: Settings, pool: Pool) -> NodePool:
    """A node pool as it is asked for: it begins without a node, and the autoscaler gives it some."""
    section, own = _section(settings), names.pool_class(settings)
    config: dict[str, Any] = {
        "machineType": pool.machine_type,
        "spot": pool.spot,
        "labels": {COMPUTE_CLASS: own},
        "taints": [{"key": COMPUTE_CLASS, "value": own, "effect": "NO_SCHEDULE"}],
        # What a node may do is its account's to say.
        "oauthScopes": ["https://www.googleapis.com/auth/cloud-platform"],
        "workloadMetadataConfig": {"mode": "GKE_METADATA"},
        "gcfsConfig": {"enabled": True},
    }
    if section.node_service_account:
        config["serviceAccount"] = section.node_service_account
    if pool.accelerator == "gpu":
        config["accelerators"] = [
            {
                "acceleratorType": nodes.card(settings).gke_name,
                "acceleratorCount": str(settings.accelerator.count),
                "gpuDriverInstallationConfig": {"gpuDriverVersion": "LATEST"},
            }
        ]
    return {
        "name": pool.name,
        "initialNodeCount": 0,
        "config": config,
        "autoscaling": {
            "enabled": True,
            "totalMinNodeCount": 0,
            "totalMaxNodeCount": pool.max_nodes,
            "locationPolicy": "ANY",
        },
        "management": {"autoRepair": True, "autoUpgrade": True},
        **({"locations": list(pool.zones)} if pool.zones else {}),
    }


def lacking(settings: Settings, pool: Pool, there: NodePool | None) -> Iterator[str]:
    """What is not as it has to be with a node pool, each with what mends it."""
    where = f"--cluster {settings.cluster} --location {settings.location} --project {settings.project}"
    change = f"gcloud container node-pools update {pool.name} {where}"
    own = names.pool_class(settings)
    if there is None:
        yield f"it is not there: `{command(settings, pool)}`, or set gpu_or_tpu.nodes: create"
        return
    if there["status"] not in _USABLE:
        again = f"gcloud container node-pools delete {pool.name} {where}"
        words = {"PROVISIONING": "wait until it is made", "STOPPING": "wait until it is gone"}
        yield f"it is {there['status']}: {words.get(there['status'], f'`{again}`, then make it anew')}"
        return
    config, scaled = there.get("config") or {}, there.get("autoscaling") or {}
    labels, taints = config.get("labels") or {}, config.get("taints") or []
    if labels.get(COMPUTE_CLASS) != own:
        # The command sets all labels of the pool.
        all_labels = ",".join(f"{key}={value}" for key, value in {**labels, COMPUTE_CLASS: own}.items())
        yield f"its nodes have no label {COMPUTE_CLASS}={own}: `{change} --node-labels={all_labels}`"
    if (COMPUTE_CLASS, own, "NO_SCHEDULE") not in {(t["key"], t.get("value", ""), t["effect"]) for t in taints}:
        kept = [taint for taint in taints if taint["key"] != COMPUTE_CLASS]
        all_taints = [{"key": COMPUTE_CLASS, "value": own, "effect": "NO_SCHEDULE"}, *kept]
        said = ",".join(f"{t['key']}={t.get('value', '')}:{_effect(t['effect'])}" for t in all_taints)
        yield f"its nodes have no taint {COMPUTE_CLASS}={own}:NoSchedule: `{change} --node-taints={said}`"
    if not scaled.get("enabled"):
        bounds = f"--total-min-nodes 0 --total-max-nodes {pool.max_nodes}"
        yield f"it is not scaled by the autoscaler: `{change} --enable-autoscaling {bounds}`"
    if config.get("machineType") != pool.machine_type:
        yield (
            f"its machines are {config.get('machineType')}, not {pool.machine_type}: change machine_type of the pool "
            "in gpu_or_tpu.pools"
        )
    if bool(config.get("spot")) != pool.spot:
        is_spot = "are" if config.get("spot") else "are no"
        yield f"its nodes {is_spot} Spot nodes: set spot: {str(not pool.spot).lower()} of the pool in gpu_or_tpu.pools"
    yield from _cards_lacking(settings, pool, config)


def command(settings: Settings, pool: Pool) -> str:
    """What a person types to make a node pool."""
    own = names.pool_class(settings)
    words = [
        f"gcloud container node-pools create {pool.name} --cluster {settings.cluster}",
        f"--location {settings.location} --project {settings.project} --machine-type {pool.machine_type}",
    ]
    if pool.accelerator == "gpu":
        words.append(
            f"--accelerator type={nodes.card(settings).gke_name},count={settings.accelerator.count},"
            "gpu-driver-version=latest"
        )
    if pool.spot:
        words.append("--spot")
    if pool.zones:
        words.append(f"--node-locations {','.join(pool.zones)}")
    if account := _section(settings).node_service_account:
        words.append(f"--service-account {account}")
    return " ".join(
        [
            *words,
            f"--node-labels={COMPUTE_CLASS}={own} --node-taints={COMPUTE_CLASS}={own}:NoSchedule",
            "--workload-metadata=GKE_METADATA --enable-image-streaming --enable-autoscaling --num-nodes 0",
            f"--total-min-nodes 0 --total-max-nodes {pool.max_nodes} --location-policy ANY",
        ]
    )


def wait_for_the_kind(cluster: Cluster, settings: Settings, say: Say) -> None:
    """A new cluster learns of ComputeClasses a while after it is there, and nothing tells when. Raises
    InconclusiveError."""
    deadline, told = time.monotonic() + in_seconds(_section(settings).timeout), False
    while not cluster.serves(_KIND):
        if time.monotonic() > deadline:
            raise InconclusiveError(
                f"{settings.cluster} does not know the kind {_KIND} after gpu_or_tpu.timeout "
                f"({_section(settings).timeout}): `kubectl get crd computeclasses.cloud.google.com`. GKE makes it by "
                "itself, on a new cluster late; run again"
            )
        if not told:
            say(f"waiting until the cluster knows the kind {_KIND}, which GKE makes on a new cluster late")
            told = True
        time.sleep(_LOOK_SECONDS)


def _refuse(settings: Settings, there: dict[str, NodePool], begun: list[Pool]) -> None:
    """Raises RequestError for node pools that are not as they have to be, but for those that are about to be made."""
    found = [
        f"{pool.name}: {words}"
        for pool in _section(settings).pools
        if pool not in begun
        for words in lacking(settings, pool, there.get(pool.name))
    ]
    if found:
        raise RequestError(
            f"the node pools of {settings.cluster} are not as gpu_or_tpu.pools has them:\n" + "\n".join(found)
        )


def _cards_lacking(settings: Settings, pool: Pool, config: dict[str, Any]) -> Iterator[str]:
    if pool.accelerator != "gpu":
        return
    cards = [
        (each.get("acceleratorType"), int(each.get("acceleratorCount", 0))) for each in config.get("accelerators", [])
    ]
    asked = (nodes.card(settings).gke_name, settings.accelerator.count)
    if cards != [asked]:
        has = ", ".join(f"{count} × {kind}" for kind, count in cards) or "no cards"
        yield (
            f"its nodes have {has}, not {asked[1]} × {asked[0]}: change accelerator.type and accelerator.count, or "
            "take another node pool"
        )


def _effect(effect: str) -> str:
    """NO_SCHEDULE → NoSchedule."""
    return effect.title().replace("_", "")


def _section(settings: Settings) -> Section:
    section: Section = settings.section("gpu-or-tpu")
    return section
