"""Services: the addresses of the pods that each selects, as EndpointSlices and as the older Endpoints."""

from __future__ import annotations

import json

from emulated_cloud.kubernetes.client import ApiError, Client, Informers, Object, key_of, owner_reference
from emulated_cloud.kubernetes.pods import is_finished, is_ready
from emulated_cloud.kubernetes.resources import ENDPOINT_SLICES, ENDPOINTS, NODES, PODS, SERVICES
from emulated_cloud.kubernetes.selectors import selected
from emulated_cloud.kubernetes.workqueue import WorkQueue

SERVICE_NAME = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
SLICE_CONTROLLER = "endpointslice-controller.k8s.io"
ENDPOINTS_MANAGED_BY = "endpoints.kubernetes.io/managed-by"
MAX_ENDPOINTS = 100


class EndpointsController:
    def __init__(self, client: Client, informers: Informers):
        self._client = client
        self._services = informers.of(SERVICES)
        self._pods = informers.of(PODS)
        self._nodes = informers.of(NODES)
        self._slices = informers.of(ENDPOINT_SLICES)
        self._endpoints = informers.of(ENDPOINTS)
        self.queue = WorkQueue("endpoints", self._reconcile)
        self._services.on_change(lambda old, new: self.queue.add(key_of(new or old or {})))
        self._pods.on_change(self._pod_changed)
        self._slices.on_change(self._slice_changed)

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        """Readiness, labels, address and deletion matter; other changes of a pod's status do not."""
        if old and new and _seen_by_services(old) == _seen_by_services(new):
            return
        for pod in (old, new):
            if pod is None:
                continue
            for service in self._services.in_namespace(pod["metadata"]["namespace"]):
                if selected(service["spec"].get("selector"), pod["metadata"].get("labels")):
                    self.queue.add(key_of(service))

    def _slice_changed(self, old: Object | None, new: Object | None) -> None:
        """A slice of ours that someone deleted is made again."""
        if new is None and old and (old["metadata"].get("labels") or {}).get(MANAGED_BY) == SLICE_CONTROLLER:
            self.queue.add(f"{old['metadata']['namespace']}/{old['metadata']['labels'][SERVICE_NAME]}")

    async def _reconcile(self, key: str) -> None:
        service = self._services.items.get(key)
        if service is None:
            return await self._forget(key)
        if (
            service["metadata"].get("deletionTimestamp")
            or not service["spec"].get("selector")
            or service["spec"].get("type") == "ExternalName"
        ):
            return None
        groups = self._groups(service)
        await self._write_slices(service, groups)
        await self._write_endpoints(service, groups)
        return None

    async def _forget(self, key: str) -> None:
        """Endpoints go with their Service. (Slices are owned by it, and collected.)"""
        there = self._endpoints.items.get(key)
        if there and ENDPOINTS_MANAGED_BY in (there["metadata"].get("labels") or {}):
            meta = there["metadata"]
            await self._client.delete(ENDPOINTS, meta["name"], meta["namespace"], uid=meta["uid"])

    def _groups(self, service: Object) -> list[tuple[list[Object], list[Object]]]:
        """(ports, endpoints): pods whose named ports differ in number are in different groups."""
        groups: dict[str, tuple[list[Object], list[Object]]] = {}
        pods = sorted(self._pods.in_namespace(service["metadata"]["namespace"]), key=key_of)
        for pod in pods:
            if (
                not selected(service["spec"]["selector"], pod["metadata"].get("labels"))
                or not (pod.get("status") or {}).get("podIP")
                or is_finished(pod)
            ):
                continue
            ports = _ports(service, pod)
            group = groups.setdefault(json.dumps(ports), (ports, []))
            group[1].append(self._endpoint(service, pod))
        return list(groups.values()) or [([], [])]

    def _endpoint(self, service: Object, pod: Object) -> Object:
        meta, terminating = pod["metadata"], bool(pod["metadata"].get("deletionTimestamp"))
        serving = is_ready(pod)
        ready = (serving and not terminating) or bool(service["spec"].get("publishNotReadyAddresses"))
        endpoint = {
            "addresses": [pod["status"]["podIP"]],
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
            "nodeName": pod["spec"].get("nodeName"),
            "targetRef": {"kind": "Pod", "namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"]},
        }
        node = self._nodes.items.get(pod["spec"].get("nodeName", ""))
        if node and (zone := (node["metadata"].get("labels") or {}).get("topology.kubernetes.io/zone")):
            endpoint["zone"] = zone
        return endpoint

    async def _write_slices(self, service: Object, groups: list[tuple[list[Object], list[Object]]]) -> None:
        meta = service["metadata"]
        labels = {
            **(meta.get("labels") or {}),
            SERVICE_NAME: meta["name"],
            MANAGED_BY: SLICE_CONTROLLER,
        }
        existing = [
            item
            for item in self._slices.in_namespace(meta["namespace"])
            if (item["metadata"].get("labels") or {}).get(SERVICE_NAME) == meta["name"]
            and item["metadata"]["labels"].get(MANAGED_BY) == SLICE_CONTROLLER
        ]
        wanted = [
            {"addressType": "IPv4", "ports": ports, "endpoints": endpoints[start : start + MAX_ENDPOINTS]}
            for ports, endpoints in groups
            for start in range(0, max(1, len(endpoints)), MAX_ENDPOINTS)
        ]
        for index, body in enumerate(wanted):
            if index >= len(existing):
                made = await self._client.create(
                    ENDPOINT_SLICES,
                    {
                        "metadata": {
                            "generateName": meta["name"] + "-",
                            "namespace": meta["namespace"],
                            "labels": labels,
                            "ownerReferences": [owner_reference(SERVICES, service)],
                        },
                        **body,
                    },
                    meta["namespace"],
                )
                self._slices.observe(made)
                continue
            current = existing[index]
            same = all((current.get(name) or []) == body[name] for name in ("ports", "endpoints"))
            if not same or current["metadata"].get("labels") != labels:
                changed = {**current, **body, "metadata": {**current["metadata"], "labels": labels}}
                self._slices.observe(await self._client.update(ENDPOINT_SLICES, changed))
        for surplus in existing[len(wanted) :]:
            name = surplus["metadata"]["name"]
            self._slices.observe(await self._client.delete(ENDPOINT_SLICES, name, meta["namespace"]))

    async def _write_endpoints(self, service: Object, groups: list[tuple[list[Object], list[Object]]]) -> None:
        meta = service["metadata"]
        subsets = [
            subset for ports, endpoints in groups if endpoints for subset in [_subset(ports, endpoints)] if subset
        ]
        current = self._endpoints.items.get(key_of(service))
        labels = {**(meta.get("labels") or {}), ENDPOINTS_MANAGED_BY: "endpoint-controller"}
        if current is None:
            body: Object = {
                "metadata": {"name": meta["name"], "namespace": meta["namespace"], "labels": labels},
                "subsets": subsets,
            }
            try:
                self._endpoints.observe(await self._client.create(ENDPOINTS, body, meta["namespace"]))
            except ApiError as error:
                if error.status != 409:
                    raise
        elif (current.get("subsets") or []) != subsets:
            self._endpoints.observe(await self._client.update(ENDPOINTS, {**current, "subsets": subsets}))


def _seen_by_services(pod: Object) -> tuple[object, ...]:
    meta, status = pod["metadata"], pod.get("status") or {}
    return (
        meta.get("labels"),
        status.get("podIP"),
        is_ready(pod),
        is_finished(pod),
        bool(meta.get("deletionTimestamp")),
    )


def _ports(service: Object, pod: Object) -> list[Object]:
    """The service's ports as numbers of this pod; one that names a port which the pod has not is left out."""
    named = {
        port["name"]: port["containerPort"]
        for container in pod["spec"]["containers"]
        for port in container.get("ports") or []
        if "name" in port
    }
    ports = []
    for port in service["spec"].get("ports") or []:
        target = port.get("targetPort") or port["port"]
        number = named.get(target) if isinstance(target, str) else target
        if number:
            ports.append({"name": port.get("name", ""), "protocol": port.get("protocol", "TCP"), "port": number})
    return ports


def _subset(ports: list[Object], endpoints: list[Object]) -> Object | None:
    """Endpoints leave out pods that are being deleted."""
    subset: Object = {}
    for endpoint in endpoints:
        if endpoint["conditions"]["terminating"]:
            continue
        kind = "addresses" if endpoint["conditions"]["ready"] else "notReadyAddresses"
        address = {"ip": endpoint["addresses"][0], "nodeName": endpoint["nodeName"], "targetRef": endpoint["targetRef"]}
        subset.setdefault(kind, []).append(address)
    if not subset:
        return None
    # An unnamed port of Endpoints has no name at all.
    subset["ports"] = [{key: value for key, value in port.items() if value} for port in ports]
    return subset
