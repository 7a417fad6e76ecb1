"""Would this pod fit on that node? The scheduler's filters, which the cluster autoscaler asks about too.

The reasons are kube-scheduler's words (v1.35), in the order of its plugins: the first filter that says no speaks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from emulated_cloud.kubernetes.attachment import needs_attachment, unique_name
from emulated_cloud.kubernetes.client import Informers, Object
from emulated_cloud.kubernetes.pods import is_finished
from emulated_cloud.kubernetes.quantity import parse_quantity
from emulated_cloud.kubernetes.resources import CLAIMS, CSI_NODES, STORAGE_CLASSES, VOLUMES
from emulated_cloud.kubernetes.selectors import matches, node_selector_matches, tolerates

UNSCHEDULABLE = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
NOT_HELPFUL = "Preemption is not helpful for scheduling"
NO_VICTIMS = "No preemption victims found for incoming pod"


def pod_requests(pod: Object) -> Counter[str]:
    """What the scheduler counts for a pod: containers and sidecars together, or the largest init container if that
    is more; a limit stands for a request that is absent. `pods` is 1."""
    spec = pod["spec"]
    steady: Counter[str] = Counter()
    peak: Counter[str] = Counter()
    for container in spec.get("initContainers") or []:
        requests = _requests(container)
        if container.get("restartPolicy") == "Always":
            steady.update(requests)
            continue
        for name, value in requests.items():
            peak[name] = max(peak[name], steady[name] + value)
    for container in spec["containers"]:
        steady.update(_requests(container))
    for name, value in peak.items():
        steady[name] = max(steady[name], value)
    for name, value in (spec.get("overhead") or {}).items():
        steady[name] += parse_quantity(value)  # type: ignore[assignment]
    steady["pods"] = 1
    return steady


def _requests(container: Object) -> dict[str, Any]:
    resources = container.get("resources") or {}
    amounts = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: parse_quantity(value) for name, value in amounts.items()}


@dataclass
class NodeState:
    """A node and the pods on it; `volumes` are attached for them, `limits` says how many of a driver's may be."""

    node: Object
    pods: list[Object] = field(default_factory=list)
    volumes: set[str] = field(default_factory=set)
    limits: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        allocatable = self.node["status"].get("allocatable") or {}
        self.allocatable = {name: parse_quantity(value) for name, value in allocatable.items()}
        self.used: Counter[str] = Counter()
        for pod in self.pods:
            self.used.update(pod_requests(pod))

    @property
    def name(self) -> str:
        return self.node["metadata"]["name"]

    @property
    def labels(self) -> dict[str, str]:
        return self.node["metadata"].get("labels") or {}

    def add(self, pod: Object) -> None:
        self.pods.append(pod)
        self.used.update(pod_requests(pod))

    def free_share(self) -> float:
        """The mean share of cpu and memory that is free: the score of the least allocated node."""
        shares = [
            float(1 - self.used[name] / self.allocatable[name])
            for name in ("cpu", "memory")
            if self.allocatable.get(name)
        ]
        return sum(shares) / len(shares) if shares else 0.0


def node_states(nodes: Iterable[Object], pods: Iterable[Object], informers: Informers | None = None) -> list[NodeState]:
    """With `informers` the nodes' attached volumes count, too."""
    on: dict[str, list[Object]] = {}
    for pod in pods:
        if pod["spec"].get("nodeName") and not is_finished(pod):
            on.setdefault(pod["spec"]["nodeName"], []).append(pod)
    states = [NodeState(node, on.get(node["metadata"]["name"], [])) for node in nodes]
    if informers is None:
        return states
    for state in states:
        state.volumes = {name for pod in state.pods for name in volume_needs(pod, informers).attached}
        registered = informers.of(CSI_NODES).items.get(state.name) or {"spec": {"drivers": []}}
        drivers = registered["spec"]["drivers"]
        state.limits = {each["name"]: each["allocatable"]["count"] for each in drivers if each.get("allocatable")}
    return states


@dataclass
class VolumeNeeds:
    """What a pod's claims ask of a node: a problem that no node solves, the bound volumes' zones, those of them that
    are to be attached, and the claims that wait for a node to be chosen."""

    problem: str = ""
    attached: set[str] = field(default_factory=set)
    affinities: list[Object] = field(default_factory=list)
    topologies: list[Object] = field(default_factory=list)
    """NodeSelectors of the classes of those that wait: where their volumes may be made."""
    waiting: list[Object] = field(default_factory=list)


def volume_needs(pod: Object, informers: Informers) -> VolumeNeeds:
    needs = VolumeNeeds()
    namespace = pod["metadata"]["namespace"]
    for volume in pod["spec"].get("volumes") or []:
        if "persistentVolumeClaim" not in volume:
            continue
        name = volume["persistentVolumeClaim"]["claimName"]
        claim = informers.of(CLAIMS).items.get(f"{namespace}/{name}")
        if claim is None:
            needs.problem = f'persistentvolumeclaim "{name}" not found'
        elif claim["metadata"].get("deletionTimestamp"):
            needs.problem = f'persistentvolumeclaim "{name}" is being deleted'
        elif (claim.get("status") or {}).get("phase") == "Lost":
            needs.problem = f'persistentvolumeclaim "{name}" bound to non-existent persistentvolume'
        elif bound := _bound_volume(claim, informers):
            if needs_attachment(bound, informers):
                needs.attached.add(unique_name(bound))
            if required := (bound["spec"].get("nodeAffinity") or {}).get("required"):
                needs.affinities.append(required)
        elif waits_for_consumer(claim, informers):
            needs.waiting.append(claim)
            needs.topologies += _allowed_topologies(claim, informers)
        else:
            needs.problem = "pod has unbound immediate PersistentVolumeClaims"
        if needs.problem:
            break
    return needs


def _bound_volume(claim: Object, informers: Informers) -> Object | None:
    if (claim.get("status") or {}).get("phase") != "Bound":
        return None
    return informers.of(VOLUMES).items.get(claim["spec"].get("volumeName", ""))


def waits_for_consumer(claim: Object, informers: Informers) -> bool:
    found = informers.of(STORAGE_CLASSES).items.get(claim["spec"].get("storageClassName") or "")
    return bool(found) and found.get("volumeBindingMode") == "WaitForFirstConsumer"  # type: ignore[union-attr]


def _allowed_topologies(claim: Object, informers: Informers) -> list[Object]:
    found = informers.of(STORAGE_CLASSES).items.get(claim["spec"].get("storageClassName") or "") or {}
    terms = [
        {"matchExpressions": [{**rule, "operator": "In"} for rule in term.get("matchLabelExpressions") or []]}
        for term in found.get("allowedTopologies") or []
    ]
    return [{"nodeSelectorTerms": terms}] if terms else []


def misfit(pod: Object, state: NodeState, needs: VolumeNeeds, states: list[NodeState]) -> tuple[list[str], bool]:
    """(reasons, whether preempting others could help); no reasons when the pod fits."""
    spec, node = pod["spec"], state.node
    if node["spec"].get("unschedulable") and not tolerates(spec.get("tolerations"), UNSCHEDULABLE):
        return ["node(s) were unschedulable"], False
    for taint in node["spec"].get("taints") or []:
        if taint["effect"] != "PreferNoSchedule" and not tolerates(spec.get("tolerations"), taint):
            return ["node(s) had untolerated taint(s)"], False
    if not _node_affinity(spec, node):
        return ["node(s) didn't match Pod's node affinity/selector"], False
    if short := _insufficient(pod, state):
        # Whoever leaves makes no room for what the empty node has not.
        asked = pod_requests(pod).items()
        return short, all(value <= state.allocatable.get(name, 0) for name, value in asked if name != "pods")
    if _exceeds_volumes(state, needs):
        return ["node(s) exceed max volume count"], True
    if any(not node_selector_matches(affinity, node) for affinity in needs.affinities):
        return ["node(s) didn't match PersistentVolume's node affinity"], False
    if any(not node_selector_matches(topology, node) for topology in needs.topologies):
        return ["node(s) didn't find available persistent volumes to bind"], False
    if reason := _spread(pod, state, states):
        return [reason], True
    if reason := _anti_affinity(pod, state, states):
        return [reason], True
    return [], True


def _node_affinity(spec: Object, node: Object) -> bool:
    labels = node["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    affinity = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    return node_selector_matches(affinity, node)


def _insufficient(pod: Object, state: NodeState) -> list[str]:
    if state.used["pods"] + 1 > state.allocatable.get("pods", 110):
        return ["Too many pods"]
    return [
        f"Insufficient {name}"
        for name, value in sorted(pod_requests(pod).items())
        if name != "pods" and value > state.allocatable.get(name, 0) - state.used[name] and value > 0
    ]


def _exceeds_volumes(state: NodeState, needs: VolumeNeeds) -> bool:
    volumes = state.volumes | needs.attached
    return volumes != state.volumes and any(
        sum(name.startswith(f"kubernetes.io/csi/{driver}^") for name in volumes) > limit
        for driver, limit in state.limits.items()
    )


def _spread(pod: Object, state: NodeState, states: list[NodeState]) -> str:
    """topologySpreadConstraints with whenUnsatisfiable DoNotSchedule."""
    for rule in pod["spec"].get("topologySpreadConstraints") or []:
        if rule.get("whenUnsatisfiable") != "DoNotSchedule":
            continue
        key = rule["topologyKey"]
        if key not in state.labels:
            return "node(s) didn't match pod topology spread constraints (missing required label)"
        counts = {
            other.labels[key]: 0 for other in states if key in other.labels and _node_affinity(pod["spec"], other.node)
        }
        for other in states:
            if other.labels.get(key) in counts:
                counts[other.labels[key]] += sum(_peer(pod, mate, rule.get("labelSelector")) for mate in other.pods)
        domain = state.labels[key]
        fewest = min(counts.values(), default=0) if len(counts) >= rule.get("minDomains", 1) else 0
        if counts.get(domain, 0) + 1 - fewest > rule["maxSkew"]:
            return "node(s) didn't match pod topology spread constraints"
    return ""


def _anti_affinity(pod: Object, state: NodeState, states: list[NodeState]) -> str:
    affinity = (pod["spec"].get("affinity") or {}).get("podAntiAffinity") or {}
    for term in affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or []:
        domain = state.labels.get(term["topologyKey"])
        mates = [
            mate
            for other in states
            if domain is not None and other.labels.get(term["topologyKey"]) == domain
            for mate in other.pods
        ]
        if any(_peer(pod, mate, term.get("labelSelector")) for mate in mates):
            return "node(s) didn't match pod anti-affinity rules"
    return ""


def _peer(pod: Object, other: Object, selector: Object | None) -> bool:
    meta = other["metadata"]
    return (
        meta["namespace"] == pod["metadata"]["namespace"]
        and not meta.get("deletionTimestamp")
        and matches(selector, meta.get("labels"))
    )


def unschedulable_message(total: int, problem: str, verdicts: list[tuple[list[str], bool]]) -> str:
    """kube-scheduler's FitError for `total` nodes, each with its reasons."""
    if not total:
        return "no nodes available to schedule pods"
    head = f"0/{total} nodes are available:"
    if problem:
        # Preemption finds no node that it was told of.
        return f"{head} {problem}. not found"
    words = _histogram(Counter(reason for reasons, _ in verdicts for reason in reasons))
    helpful = Counter(NO_VICTIMS if could_help else NOT_HELPFUL for _, could_help in verdicts)
    return f"{head} {words}. no new claims to deallocate, preemption: {head} {_histogram(helpful)}."


def _histogram(reasons: dict[str, int]) -> str:
    return ", ".join(sorted(f"{count} {reason}" for reason, count in reasons.items()))
