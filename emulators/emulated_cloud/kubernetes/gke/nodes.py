"""Nodes: their registration, their conditions and the Lease that says that they live.

All state is in the API server: a process that starts adopts the nodes that are there.
"""

from __future__ import annotations

import asyncio
import datetime

import aiohttp

from emulated_cloud.kubernetes.client import ApiError, Client, Informers, Object, timestamp
from emulated_cloud.kubernetes.events import EventRecorder
from emulated_cloud.kubernetes.gke.pd import ATTACH_LIMIT, DRIVER, ZONE_KEY
from emulated_cloud.kubernetes.resources import CSI_NODES, LEASES, NODES

LEASE_NAMESPACE = "kube-node-lease"
LEASE_SECONDS = 40
RENEW_SECONDS = 10.0
"""How often a node's kubelet renews its Lease and reports its status. By default a kubelet reports a status that has
not changed every five minutes (nodeStatusReportFrequency); whoever waits for it, waits less here."""
KUBELET_VERSION = "v1.35.4-gke.1000000"


class NodeKeeper:
    def __init__(self, client: Client, informers: Informers, address: str):
        self._client, self._address = client, address
        self._nodes = informers.of(NODES)
        self._events = EventRecorder(client, "kubelet")
        self.kubelet_port = 0

    async def adopt(self) -> None:
        """Takes over the nodes that an earlier process registered: their kubelet is at this process's port now."""
        for node in list(self._nodes.items.values()):
            await self._report(node)
            await self._register_driver(node)
            await self._renew(node["metadata"]["name"])

    async def register(self, node: Object) -> Object:
        """Creates the Node, then says that it is ready."""
        status = node["status"]
        try:
            made = await self._client.create(NODES, node)
        except ApiError as error:
            if error.status != 409:
                raise
            made = await self._client.get(NODES, node["metadata"]["name"])
        made = {**made, "status": {**(made.get("status") or {}), **status}}
        await self._renew(node["metadata"]["name"])
        await self._register_driver(made)
        made = await self._report(made)
        self._events.event(made, "Normal", "NodeReady", f"Node {made['metadata']['name']} status is now: NodeReady")
        return made

    async def _register_driver(self, node: Object) -> None:
        """Says how many disks the scheduler may count on, as the driver's registrar on the node does."""
        meta = node["metadata"]
        driver = {
            "name": DRIVER,
            "nodeID": node["spec"]["providerID"].removeprefix("gce://"),
            "topologyKeys": [ZONE_KEY],
            "allocatable": {"count": ATTACH_LIMIT},
        }
        owner = {"apiVersion": "v1", "kind": "Node", "name": meta["name"], "uid": meta["uid"]}
        body = {"metadata": {"name": meta["name"], "ownerReferences": [owner]}, "spec": {"drivers": [driver]}}
        try:
            await self._client.create(CSI_NODES, body)
        except ApiError as error:
            if error.status != 409:
                raise

    async def remove(self, node: Object) -> None:
        await self._client.delete(NODES, node["metadata"]["name"], uid=node["metadata"]["uid"])
        await self._client.delete(LEASES, node["metadata"]["name"], LEASE_NAMESPACE)

    async def run(self) -> None:
        """Renews the Leases and reports the statuses for ever."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            for name, node in list(self._nodes.items.items()):
                try:
                    await self._renew(name)
                    await self._beat(node)
                except (ApiError, aiohttp.ClientError, TimeoutError):
                    # It may be gone, and else the next round is soon enough: a Lease holds for four of them.
                    continue

    async def _report(self, node: Object) -> Object:
        name = node["metadata"]["name"]
        status = {
            "capacity": node["status"].get("capacity"),
            "allocatable": node["status"].get("allocatable"),
            "conditions": _conditions(),
            # Whoever uses one mounts it again.
            "volumesInUse": [],
            "addresses": [
                {"type": "InternalIP", "address": self._address},
                {"type": "Hostname", "address": name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.kubelet_port}},
            "nodeInfo": {
                "architecture": "amd64",
                "bootID": "",
                "containerRuntimeVersion": "processes://1",
                "kernelVersion": "6.12.0",
                "kubeProxyVersion": "",
                "kubeletVersion": KUBELET_VERSION,
                "machineID": name,
                "operatingSystem": "linux",
                "osImage": "Container-Optimized OS from Google",
                "systemUUID": "",
            },
        }
        return await self._client.patch(NODES, name, "", {"status": status}, "strategic", "status")

    async def _beat(self, node: Object) -> None:
        """Reports that nothing has changed. It is news to some: the attach/detach controller takes a volume that it
        could not attach for mounted, until a report of the node's says otherwise (`volumesInUse`)."""
        known = (node.get("status") or {}).get("conditions") or []
        conditions = [{"type": each["type"], "lastHeartbeatTime": timestamp()} for each in known]
        status = {"status": {"conditions": conditions}}
        await self._client.patch(NODES, node["metadata"]["name"], "", status, "strategic", "status")

    async def _renew(self, name: str) -> None:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now}
        try:
            await self._client.patch(LEASES, name, LEASE_NAMESPACE, {"spec": {"renewTime": now}})
        except ApiError as error:
            if error.status != 404:
                raise
            await self._client.create(LEASES, {"metadata": {"name": name}, "spec": spec}, LEASE_NAMESPACE)


def _conditions() -> list[Object]:
    now = timestamp()
    healthy = {
        "MemoryPressure": ("False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        "DiskPressure": ("False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        "PIDPressure": ("False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        "Ready": ("True", "KubeletReady", "kubelet is posting ready status"),
    }
    return [
        {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        for kind, (status, reason, message) in healthy.items()
    ]
