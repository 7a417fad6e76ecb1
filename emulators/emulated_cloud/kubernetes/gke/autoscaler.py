"""The cluster autoscaler with node auto-provisioning: nodes for pods that fit nowhere, within quota.

A pod that the scheduler calls Unschedulable is simulated on a new node of every machine type that is to be had. The
smallest that fits is announced (TriggeredScaleUp), comes up `scale_up_seconds` later and registers. When none fits,
or quota or capacity is lacking, the pod is told in the autoscaler's words (NotTriggerScaleUp, FailedScaleUp).
An empty node whose accelerators a new one needs is given back first, as GKE's scale-down would have done by then.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from dataclasses import dataclass

import aiohttp

from emulated_cloud.kubernetes.client import ApiError, Client, Informers, Object, condition
from emulated_cloud.kubernetes.events import EventRecorder
from emulated_cloud.kubernetes.gke.admission import missing_tolerations
from emulated_cloud.kubernetes.gke.config import Config
from emulated_cloud.kubernetes.gke.image_cache import POOL_LABEL, ImageCache
from emulated_cloud.kubernetes.gke.machines import (
    ACCELERATOR_LABEL,
    BUILT_IN_CLASSES,
    DEFAULT_FAMILIES,
    DRIVER_LABEL,
    FAMILY_LABEL,
    MACHINE_TYPES,
    SPOT_LABEL,
    TPU_LABEL,
    MachineType,
    accelerator_of,
    compute_class_of,
    family_of,
    node_template,
    reserve,
)
from emulated_cloud.kubernetes.gke.node_pools import NodePools, Pool
from emulated_cloud.kubernetes.gke.nodes import NodeKeeper
from emulated_cloud.kubernetes.pods import is_finished
from emulated_cloud.kubernetes.quantity import parse_quantity
from emulated_cloud.kubernetes.resources import ALLOWLISTS, CLAIMS, COMPUTE_CLASSES, CSI_NODES, NODES, PODS, VOLUMES
from emulated_cloud.kubernetes.scheduling import NodeState, VolumeNeeds, misfit, node_states, volume_needs
from emulated_cloud.kubernetes.workqueue import WorkQueue

log = logging.getLogger(__name__)

QUOTA_EXCEEDED = "GCE quota exceeded"
NOT_READY = "node.kubernetes.io/not-ready"
# Autoscaler's words for a pool that has just failed, and for one that is at its limit.
IN_BACKOFF = "in backoff after failed scale-up"
POOL_IS_FULL = "max node group size reached"
POOL_MAXIMUM = 1000


@dataclass
class Upcoming:
    """A node that was announced and has not registered yet."""

    node: Object
    machine: MachineType
    zone: str


def started(node: Object) -> Object:
    """A node as it is once it is ready: a real control plane taints a new one until it has heard that it is, and an
    autoscaler counts on it meanwhile, or it would bring up another."""
    taints = [taint for taint in node["spec"].get("taints") or [] if taint["key"] != NOT_READY]
    return {**node, "spec": {**node["spec"], "taints": taints}}


class Autoscaler:
    def __init__(self, client: Client, informers: Informers, config: Config, nodes: NodeKeeper, cache: ImageCache):
        self._client, self._informers, self._config, self._keeper = client, informers, config, nodes
        self._cache = cache
        self._pools = NodePools(informers, config)
        self._pods = informers.of(PODS)
        self._nodes = informers.of(NODES)
        informers.of(CSI_NODES)
        self._events = EventRecorder(client, "cluster-autoscaler")
        self._upcoming: list[Upcoming] = []
        self._backoff: dict[str, float] = {}
        self._declined: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.queue = WorkQueue("autoscaler", self._scale_up)
        self._pods.on_change(self._pod_changed)
        for resource in (CLAIMS, VOLUMES, ALLOWLISTS, COMPUTE_CLASSES):
            # A pod whose claim was bound, or whose disk was allowed, may have nothing else to tell.
            informers.of(resource).on_change(lambda _old, _new: self._look_again())

    def _look_again(self) -> None:
        if any(_is_unschedulable(pod) for pod in self._pods.items.values()):
            self.queue.add("all")

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        if new is None or is_finished(new):
            # What it leaves may be given back for another.
            self._look_again()
        elif _is_unschedulable(new):
            self.queue.add("all")

    async def _scale_up(self, _: str) -> float | None:
        # A pod that admission has not seen yet will look otherwise in a moment.
        pending = [pod for pod in self._pods.items.values() if _is_unschedulable(pod) and not missing_tolerations(pod)]
        # What the scheduler will place by itself in a moment needs no node.
        nodes = [started(node) for node in self._nodes.items.values()]
        settled = node_states(nodes, self._pods.items.values(), self._informers)
        settled += [NodeState(upcoming.node) for upcoming in self._upcoming]
        for pod in sorted(pending, key=lambda pod: pod["metadata"]["creationTimestamp"]):
            needs = volume_needs(pod, self._informers)
            if needs.problem:
                continue
            home = next((state for state in settled if not misfit(pod, state, needs, settled)[0]), None)
            if home is None:
                home = await self._node_for(pod, needs, settled)
                if home is None:
                    continue
                settled.append(home)
            home.add(pod)
            home.volumes |= needs.attached
        loop = asyncio.get_running_loop()
        waits = [until - loop.time() for until in self._backoff.values() if until > loop.time()]
        return max(0.05, min(waits)) if waits and pending else None

    async def _node_for(self, pod: Object, needs: VolumeNeeds, settled: list[NodeState]) -> NodeState | None:
        """Announces a node for the pod; None when there is none to be had."""
        if (pools := self._pools.in_order(pod)) is not None:
            return await self._node_of(pools, pod, needs, settled)
        options, reasons = self._options(pod, needs, settled)
        if not options:
            self._decline(pod, reasons)
            return None
        machine, zone, template = min(options, key=lambda option: (option[0].count, option[0].cpu, option[0].name))
        pool = template["metadata"]["labels"][POOL_LABEL]
        now = asyncio.get_running_loop().time()
        if self._backoff.get(pool, 0.0) > now:
            self._decline(pod, Counter({IN_BACKOFF: 1}))
            return None
        self._declined.pop(pod["metadata"]["uid"], None)
        self._announce(pod, pool, zone)
        failure = self._config.declined(machine.accelerator or "cpu") or self._cache.failure(template)
        if not failure and not await self._within_quota(machine):
            failure = QUOTA_EXCEEDED
        if failure:
            self._fail(pod, pool, zone, failure)
            return None
        name = f"gk3-{self._config.cluster}-{pool}-{secrets.token_hex(2)}"
        node = node_template(
            machine,
            zone,
            self._config.cluster,
            self._config.project.id,
            SPOT_LABEL in template["metadata"]["labels"],
            _driver(pod),
            name,
            _built_in_class(pod),
        )
        self._cache.equip(node, machine, pod)
        reserve(node, pod)
        return self._expect(node, machine, zone)

    async def _node_of(
        self, pools: list[Pool], pod: Object, needs: VolumeNeeds, settled: list[NodeState]
    ) -> NodeState | None:
        """Announces a node of the first of these node pools that has room for one; None when none has."""
        reasons, now = Counter[str](), asyncio.get_running_loop().time()
        for pool in pools:
            if self._backoff.get(pool.name, 0.0) > now:
                reasons[IN_BACKOFF] += 1
                continue
            if self._size(pool.name) >= pool.largest:
                reasons[POOL_IS_FULL] += 1
                continue
            zone = self._zones_by_load()[0]
            template = NodeState(pool.node(self._config, zone))
            why, _ = misfit(pod, template, needs, [*settled, template])
            if why:
                reasons.update(why)
                continue
            self._announce(pod, pool.name, zone, pool.largest)
            failure = self._config.declined(pool.name) or self._config.declined(pool.machine.accelerator or "cpu")
            if not failure and not await self._within_quota(pool.machine):
                failure = QUOTA_EXCEEDED
            if failure:
                self._fail(pod, pool.name, zone, failure)
                # The next round takes the next choice.
                return None
            self._declined.pop(pod["metadata"]["uid"], None)
            name = f"gke-{self._config.cluster}-{pool.name}-{secrets.token_hex(2)}"
            return self._expect(pool.node(self._config, zone, name), pool.machine, zone)
        self._decline(pod, reasons)
        return None

    def _expect(self, node: Object, machine: MachineType, zone: str) -> NodeState:
        """Has the node come up."""
        upcoming = Upcoming(node, machine, zone)
        self._upcoming.append(upcoming)
        task = asyncio.create_task(self._bring_up(upcoming))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return NodeState(node)

    def _fail(self, pod: Object, pool: str, zone: str, failure: str) -> None:
        """Says why no node of the pool comes, and leaves it alone for a while."""
        words = f"Node scale up in zones {zone} associated with this pod failed: {failure}."
        self._events.event(pod, "Warning", "FailedScaleUp", f"{words} Pod is at risk of not being scheduled.")
        self._backoff[pool] = asyncio.get_running_loop().time() + self._config.backoff_seconds
        # The next round says that the pool is being left alone.
        self.queue.add("all", self._config.scale_up_seconds)

    async def _bring_up(self, upcoming: Upcoming) -> None:
        await asyncio.sleep(self._config.scale_up_seconds)
        try:
            self._nodes.observe(await self._keeper.register(upcoming.node))
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            log.warning("registering %s: %s", upcoming.node["metadata"]["name"], error)
        finally:
            self._upcoming.remove(upcoming)
            self.queue.add("all", 1.0)

    def _options(
        self, pod: Object, needs: VolumeNeeds, settled: list[NodeState]
    ) -> tuple[list[tuple[MachineType, str, Object]], Counter[str]]:
        """Machines and zones where the pod would fit, and why it would not elsewhere."""
        wanted = accelerator_of(pod)
        spot = (pod["spec"].get("nodeSelector") or {}).get(SPOT_LABEL) == "true"
        options, reasons = [], Counter[str]()
        for machine in self._sold():
            if wanted is not None and machine.resource != wanted:
                continue
            if wanted is None and (machine.resource or not _may_be(family_of(machine.name), pod)):
                continue
            for zone in self._zones_by_load():
                template = node_template(
                    machine,
                    zone,
                    self._config.cluster,
                    self._config.project.id,
                    spot,
                    _driver(pod),
                    compute_class=_built_in_class(pod),
                )
                self._cache.equip(template, machine, pod)
                reserve(template, pod)
                state = NodeState(template)
                why, _ = misfit(pod, state, needs, [*settled, state])
                if not why:
                    options.append((machine, zone, template))
                    break
                reasons.update(why)
        return options, reasons

    def _sold(self) -> list[MachineType]:
        """Machine types that the project can have at all: a quota above zero."""
        return [
            machine
            for machine in MACHINE_TYPES
            if (not self._config.machine_types or machine.name in self._config.machine_types)
            and (not machine.accelerator or self._config.accelerators.get(machine.accelerator, 0) > 0)
        ]

    def _zones_by_load(self) -> list[str]:
        """The zone with the fewest nodes first."""
        nodes = Counter(
            (node["metadata"].get("labels") or {}).get("topology.kubernetes.io/zone")
            for node in self._nodes.items.values()
        )
        nodes.update(upcoming.zone for upcoming in self._upcoming)
        return sorted(self._config.zones, key=lambda zone: nodes[zone])

    async def _within_quota(self, machine: MachineType) -> bool:
        """Whether another such machine may be had, once empty nodes in its way are given back."""
        if self._room_for(machine):
            return True
        for state in node_states(self._nodes.items.values(), self._pods.items.values()):
            in_the_way = not machine.accelerator or _accelerator_label(state.node) == machine.accelerator
            if not state.pods and in_the_way:
                await self._keeper.remove(state.node)
                self._nodes.items.pop(state.name, None)
                if self._room_for(machine):
                    return True
        return False

    def _room_for(self, machine: MachineType) -> bool:
        cards = sum(upcoming.machine.count for upcoming in self._of_kind(machine.accelerator))
        cpus = sum(upcoming.machine.cpu for upcoming in self._upcoming)
        for node in self._nodes.items.values():
            capacity = node["status"].get("capacity") or {}
            cpus += int(parse_quantity(capacity.get("cpu", "0")))
            if machine.accelerator and _accelerator_label(node) == machine.accelerator:
                cards += int(parse_quantity(capacity.get(machine.resource, "0")))
        if machine.accelerator and cards + machine.count > self._config.accelerators[machine.accelerator]:
            return False
        return cpus + machine.cpu <= self._config.cpu_quota

    def _of_kind(self, accelerator: str) -> list[Upcoming]:
        return [upcoming for upcoming in self._upcoming if accelerator and upcoming.machine.accelerator == accelerator]

    def _size(self, pool: str, zone: str = "") -> int:
        """Nodes of a pool, those that come included; with a zone, those in it that are there."""
        labels = [node["metadata"].get("labels") or {} for node in self._nodes.items.values()]
        if not zone:
            labels += [upcoming.node["metadata"]["labels"] for upcoming in self._upcoming]
        there = [found.get("topology.kubernetes.io/zone") for found in labels if found.get(POOL_LABEL) == pool]
        return there.count(zone) if zone else len(there)

    def _announce(self, pod: Object, pool: str, zone: str, largest: int = 0) -> None:
        size = self._size(pool, zone)
        group = (
            f"https://www.googleapis.com/compute/v1/projects/{self._config.project.id}/zones/{zone}/instanceGroups/"
            f"{'gke' if largest else 'gk3'}-{self._config.cluster}-{pool}-grp"
        )
        words = f"pod triggered scale-up: [{{{group} {size}->{size + 1} (max: {largest or POOL_MAXIMUM})}}]"
        self._events.event(pod, "Normal", "TriggeredScaleUp", words)

    def _decline(self, pod: Object, reasons: Counter[str]) -> None:
        """Says so once; the same words again would be no news."""
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        words = f"pod didn't trigger scale-up: {listed}".rstrip()
        uid = pod["metadata"]["uid"]
        if self._declined.get(uid) != words:
            self._declined[uid] = words
            self._events.event(pod, "Normal", "NotTriggerScaleUp", words)

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.queue.stop()


def _built_in_class(pod: Object) -> str:
    name = compute_class_of(pod)
    return name if name in BUILT_IN_CLASSES else ""


def _may_be(family: str, pod: Object) -> bool:
    """Whether a pod without accelerators is given such a machine: an ordinary one, or one that it asks for, itself or
    by a class of its cluster's own."""
    selector = pod["spec"].get("nodeSelector") or {}
    if family in DEFAULT_FAMILIES or selector.get(FAMILY_LABEL) == family:
        return True
    if compute_class_of(pod) and not _built_in_class(pod):
        return True
    affinity = ((pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    rules = [rule for term in affinity.get("nodeSelectorTerms") or [] for rule in term.get("matchExpressions") or []]
    return any(rule["key"] == FAMILY_LABEL and family in (rule.get("values") or []) for rule in rules)


def _driver(pod: Object) -> str:
    return (pod["spec"].get("nodeSelector") or {}).get(DRIVER_LABEL, "")


def _accelerator_label(node: Object) -> str | None:
    labels = node["metadata"].get("labels") or {}
    return labels.get(ACCELERATOR_LABEL) or labels.get(TPU_LABEL)


def _is_unschedulable(pod: Object) -> bool:
    scheduled = condition(pod, "PodScheduled")
    return (
        scheduled is not None
        and scheduled["status"] == "False"
        and scheduled.get("reason") == "Unschedulable"
        and not pod["spec"].get("nodeName")
        and not pod["metadata"].get("deletionTimestamp")
    )
