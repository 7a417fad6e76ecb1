"""What pods ask of their nodes, whatever their accelerator: its row of the catalog, and how capacity is paid for.

Sources: https://cloud.google.com/kubernetes-engine/docs/how-to/consuming-reservations and
https://cloud.google.com/kubernetes-engine/docs/concepts/about-custom-compute-classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from serving import catalog, sizing
from serving.catalog import Host, Machine
from serving.errors import InconclusiveError, RequestError
from serving.features import Explanation, Symptom
from serving.values import in_units

if TYPE_CHECKING:
    from serving.catalog import Card
    from serving.clients.google import ClusterTraits
    from serving.settings import Settings

SPOT = "cloud.google.com/gke-spot"
"""Label and taint of Spot nodes."""
RESERVATION = "cloud.google.com/reservation"
"""Labels of nodes that come out of a reservation begin with it."""
_SHARE_OF_MEMORY = 0.95
"""Of what GKE leaves to pods, how much a server asks for by itself at most: GKE has pods of its own on every node."""


def card(settings: Settings) -> Card:
    """The deployment's accelerator."""
    return catalog.card(settings.accelerator.type)


def check(settings: Settings, kind: str) -> None:
    """Raises RequestError for an accelerator of another kind than the deployment's feature."""
    if (found := card(settings).kind.name) != kind:
        raise RequestError(
            f"accelerator.type: {settings.accelerator.type} is none of the feature {kind}. Set features: [{found}], or "
            "leave the type out"
        )


def suits(settings: Settings, look: Callable[[], ClusterTraits]) -> None:
    """Raises RequestError for a cluster whose nodes cannot come out of whatever reservation matches."""
    if settings.capacity == "reservation" and not settings.reservation.name and look().autopilot:
        raise RequestError(
            f"{settings.cluster} is an Autopilot cluster, whose pods name the reservation that their nodes come out "
            "of. Set reservation.name"
        )


def host(settings: Settings, weights_gib: float | None = None) -> Host:
    """What a pod asks of its machine beside accelerators: the settings' word, else the catalog's for a model whose
    weights take so much of all cards together (None: nobody knows), as far as a machine has that much memory."""
    wanted, usual = settings.accelerator, sizing.host(settings.model, weights_gib)
    most = math.floor(_SHARE_OF_MEMORY * _largest(settings).memory_of_pods)
    return Host(
        cpu=wanted.cpu or usual.cpu,
        memory=wanted.memory or (usual.memory if in_units(usual.memory) <= most * 2**30 else f"{most}Gi"),
        ephemeral_storage=wanted.ephemeral_storage or usual.ephemeral_storage,
    )


def _largest(settings: Settings) -> Machine:
    machines = card(settings).machines_with(settings.accelerator.count)
    return max(machines, key=lambda machine: machine.memory_gib)


def hold(settings: Settings, asked: Host) -> None:
    """Raises RequestError for a pod that asks for more than any machine with its accelerators has."""
    wanted = settings.accelerator
    if not any(has_room(machine, asked) for machine in card(settings).machines_with(wanted.count)):
        raise RequestError(
            f"{too_much(_largest(settings), asked)}, the largest machine with {wanted.count} × {wanted.type}. "
            "Set accelerator.cpu or accelerator.memory to less, or take more of them (accelerator.count)"
        )


def has_room(machine: Machine, asked: Host) -> bool:
    """Whether a pod's part of it is there. (Of local disk a node has as much as its pool was made with.)"""
    return in_units(asked.cpu) <= machine.cpu_of_pods and in_units(asked.memory) <= machine.memory_of_pods * 2**30


def too_much(machine: Machine, asked: Host) -> str:
    """That a pod asks for more than a machine has, in words."""
    return (
        f"a pod asks for {asked.cpu} processors and {asked.memory} of memory, and GKE leaves pods "
        f"{math.floor(machine.cpu_of_pods * 10) / 10} and {math.floor(machine.memory_of_pods)}Gi on {machine.name}"
    )


def values(settings: Settings) -> dict[str, Any]:
    """Of the pods: accelerators, the labels of nodes that have them, and those nodes' taints."""
    found, count = card(settings), settings.accelerator.count
    selector = found.nodes_with(count)
    tolerations = [{"key": found.kind.resource, "operator": "Exists", "effect": "NoSchedule"}]
    if settings.capacity == "spot":
        selector[SPOT] = "true"
        tolerations.append({"key": SPOT, "operator": "Equal", "value": "true", "effect": "NoSchedule"})
    if settings.capacity == "reservation":
        selector |= _reservation_labels(settings)
    return {"accelerators": {found.kind.resource: str(count)}, "node_selector": selector, "tolerations": tolerations}


def explain(settings: Settings, symptom: Symptom) -> Explanation | None:
    """What may be wrong with the reservation when no node comes out of it."""
    if symptom.kind != "no-node" or settings.capacity != "reservation":
        return None
    asked, wanted = settings.reservation, settings.accelerator
    room = "this generation"
    if settings.rollout == "beside":
        room += " beside the one that serves (or set rollout: replace)"
    which = f" --filter name={asked.name}" if asked.name else ""
    return Explanation(
        InconclusiveError,
        f"no node for {symptom.pod}: {symptom.words}. It is to come out of {asked.name or 'a reservation'}, which has "
        f"to be of machines with {wanted.count} × {wanted.type} in a zone of the cluster, open to {settings.project}, "
        f"and with room for {room}: `gcloud compute reservations list --project "
        f"{asked.project or settings.project}{which}`",
    )


def class_rule(settings: Settings) -> dict[str, Any]:
    """The same as a priority of a ComputeClass."""
    found, count = card(settings), settings.accelerator.count
    rule: dict[str, Any] = {"gpu": {"type": found.gke_name, "count": count, "driverVersion": "latest"}}
    if found.topologies:
        rule = {"tpu": {"type": found.gke_name, "count": count, "topology": found.topologies[count]}}
    rule["spot"] = settings.capacity == "spot"
    if settings.capacity == "reservation":
        asked = settings.reservation
        whose = {"name": asked.name, **({"project": asked.project} if asked.project else {})}
        rule["reservations"] = (
            {"affinity": "Specific", "specific": [whose]} if asked.name else {"affinity": "AnyBestEffort"}
        )
    return rule


def pool_flags(settings: Settings) -> str:
    """The same as flags of `gcloud container node-pools create`."""
    found, count = card(settings), settings.accelerator.count
    flags = [f"--accelerator type={found.gke_name},count={count},gpu-driver-version=latest", "--machine-type MACHINE"]
    if found.topologies:
        flags = [f"--machine-type {found.machines_with(count)[0].name}", f"--tpu-topology {found.topologies[count]}"]
    if settings.capacity == "spot":
        flags.append("--spot")
    if settings.capacity == "reservation":
        asked = settings.reservation
        whose = f"projects/{asked.project}/reservations/{asked.name}" if asked.project else asked.name
        flags.append(
            f"--reservation-affinity specific --reservation {whose}" if whose else "--reservation-affinity any"
        )
    return " ".join(flags)


def _reservation_labels(settings: Settings) -> dict[str, str]:
    asked = settings.reservation
    if not asked.name:
        return {f"{RESERVATION}-affinity": "any"}
    labels = {f"{RESERVATION}-name": asked.name, f"{RESERVATION}-affinity": "specific"}
    return {**labels, f"{RESERVATION}-project": asked.project} if asked.project else labels
