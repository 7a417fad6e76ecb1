"""The container API (GKE), version 1: clusters to look at, and their node pools, which are made as well.

A node pool is made in an operation, one at a time in a cluster. It is done when it has been looked at, unless a test
scripts what becomes of it (faults.py, `outcome`, for the POST): `hold` until the script is replaced, or an `error`, a
google.rpc.Status. The file in which they lie is read by the emulated cluster (kubernetes/gke/node_pools.py).
"""

from __future__ import annotations

import base64
import re
import secrets
from datetime import UTC, datetime
from typing import Any

from emulated_cloud.faults import Fault, Faults
from emulated_cloud.google.access import allow
from emulated_cloud.google.call import Call
from emulated_cloud.google.config import Cluster, Config, NodePool
from emulated_cloud.google.errors import refusal
from emulated_cloud.google.store import Store


class Container:
    """The API, the node pools that were made, and the operations that made them."""

    def __init__(self, config: Config, faults: Faults):
        self._config, self._faults = config, faults
        self._pools = Store(config.folder, "node-pools")
        self._operations = Store(config.folder, "container-operations")
        self._scripted: dict[str, Fault] = {}
        for cluster in config.clusters:
            parent = f"{self._location(cluster.location)}/clusters/{cluster.name}/nodePools"
            for pool in cluster.pools:
                if self._pools.get(f"{parent}/{pool['name']}") is None:
                    self._pools.put(f"{parent}/{pool['name']}", {**pool, "status": "RUNNING"})

    def answer(self, call: Call) -> dict[str, Any] | None:
        if call.version != "v1" or call.verb:
            return None
        match call.method, call.path:
            case "GET", ["projects", project, "locations", location, "clusters"]:
                self._allow(call, "container.clusters.list", project)
                found = [cluster for cluster in self._config.clusters if location in ("-", cluster.location)]
                return {"clusters": [self._shown(cluster) for cluster in found]} if found else {}
            case "GET", ["projects", project, "locations", location, "clusters", name]:
                self._allow(call, "container.clusters.get", project)
                return self._shown(self._cluster(location, name))
            case "GET", ["projects", project, "locations", location, "clusters", name, "nodePools"]:
                self._allow(call, "container.clusters.get", project)
                return {"nodePools": self._shown(self._cluster(location, name))["nodePools"]}
            case "GET", ["projects", project, "locations", location, "clusters", name, "nodePools", pool]:
                self._allow(call, "container.clusters.get", project)
                there = self._shown(self._cluster(location, name))["nodePools"]
                for found_pool in there:
                    if found_pool["name"] == pool:
                        return dict(found_pool)
                raise refusal("NOT_FOUND", f"Not found: {call.resource}.")
            case "POST", ["projects", project, "locations", location, "clusters", name, "nodePools"]:
                self._allow(call, "container.clusters.update", project)
                return self._create(call, self._cluster(location, name), call.body.get("nodePool") or {})
            case "GET", ["projects", project, "locations", location, "operations", name] if name.startswith(
                "operation-"
            ):
                self._allow(call, "container.operations.get", project)
                return self._looked_at(f"{self._location(location)}/operations/{name}")
            case "GET", ["projects", project, "locations", location, "operations"]:
                self._allow(call, "container.operations.list", project)
                there = self._operations.below(self._location(location))
                return {"operations": there} if there else {}
            case "GET", ["projects", project, "locations", _, "serverConfig"]:
                self._allow(call, "container.clusters.list", project)
                return server_config(self._config)
        return None

    @staticmethod
    def _allow(call: Call, permission: str, project: str) -> None:
        allow(call, permission, f"projects/{project}", project)

    def _location(self, location: str) -> str:
        return f"projects/{self._config.project_id}/locations/{location}"

    def _cluster(self, location: str, name: str) -> Cluster:
        for cluster in self._config.clusters:
            if (cluster.name, cluster.location) == (name, location):
                return cluster
        raise refusal("NOT_FOUND", f"Not found: {self._location(location)}/clusters/{name}.")

    def _shown(self, cluster: Cluster) -> dict[str, Any]:
        shown = cluster_resource(self._config, cluster)
        made = self._pools.below(f"{self._location(cluster.location)}/clusters/{cluster.name}/nodePools")
        return {**shown, "nodePools": [*shown["nodePools"], *made]}

    # -- making a node pool ---------------------------------------------------------------------------------

    def _create(self, call: Call, cluster: Cluster, asked: dict[str, Any]) -> dict[str, Any]:
        parent, name = f"{self._location(cluster.location)}/clusters/{cluster.name}", asked.get("name", "")
        whole = f"{parent}/nodePools/{name}"
        shown = self._shown(cluster)
        self._check(cluster, asked)
        with self._pools.lock:
            if name in [pool["name"] for pool in shown["nodePools"]]:
                raise refusal("ALREADY_EXISTS", f"Already exists: {whole}.")
            for running in self._operations.below(self._location(cluster.location)):
                if running["status"] == "RUNNING":
                    raise refusal(
                        "FAILED_PRECONDITION",
                        f"Operation {running['name']} is currently creating a node pool in cluster {cluster.name}. "
                        "Please wait and try again once it is done.",
                    )
            pool = {
                **asked,
                "status": "PROVISIONING",
                "version": cluster.version,
                "locations": asked.get("locations") or shown["locations"],
                "selfLink": f"https://container.googleapis.com/v1/{whole}",
            }
            self._pools.put(whole, pool)
            operation = f"operation-{int(datetime.now(UTC).timestamp() * 1000)}-{secrets.token_hex(4)}"
            described = {
                "name": operation,
                "operationType": "CREATE_NODE_POOL",
                "status": "RUNNING",
                "location": cluster.location,
                "selfLink": f"https://container.googleapis.com/v1/{self._location(cluster.location)}/operations/"
                f"{operation}",
                "targetLink": pool["selfLink"],
                "startTime": _now(),
            }
            key = f"{self._location(cluster.location)}/operations/{operation}"
            self._operations.put(key, described)
            if fault := self._faults.take_outcome(call.method, f"/v1/{call.resource}"):
                self._scripted[key] = fault
                self._faults.consume(fault)
        return described

    @staticmethod
    def _check(cluster: Cluster, asked: dict[str, Any]) -> None:
        """Raises HttpError for a node pool that is refused."""
        if cluster.autopilot:
            raise refusal("INVALID_ARGUMENT", "Autopilot clusters do not support mutating node pools.")
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", asked.get("name", "")):
            raise refusal(
                "INVALID_ARGUMENT",
                f'Invalid value for field "node_pool.name": {asked.get("name", "")!r} does not match '
                "[a-z]([-a-z0-9]{0,38}[a-z0-9])?.",
            )
        scaled = asked.get("autoscaling") or {}
        if scaled.get("enabled") and scaled.get("totalMaxNodeCount", scaled.get("maxNodeCount", 0)) < 1:
            raise refusal("INVALID_ARGUMENT", "Max node count must be at least 1 when autoscaling is enabled.")
        if not (asked.get("config") or {}).get("machineType"):
            raise refusal("INVALID_ARGUMENT", "Node config must have a machine type.")

    def _looked_at(self, key: str) -> dict[str, Any]:
        """The operation; what takes minutes on GKE has to be waited for here as well, until it is looked at again."""
        if not (operation := self._operations.get(key)):
            raise refusal("NOT_FOUND", f"Not found: {key}.")
        scripted = self._scripted.get(key)
        held = scripted and scripted.outcome.get("hold") and self._faults.is_scripted(scripted)
        if operation["status"] == "DONE" or held:
            return operation
        error = scripted.outcome.get("error") if scripted else None
        whole = operation["targetLink"].partition("/v1/")[2]
        pool = self._pools.get(whole) or {}
        self._pools.put(whole, {**pool, "status": "ERROR" if error else "RUNNING"})
        done = {**operation, "status": "DONE", "endTime": _now(), **({"error": error} if error else {})}
        self._operations.put(key, done)
        return operation


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def cluster_resource(config: Config, cluster: Cluster) -> dict[str, Any]:
    """A running cluster with what GKE switches on by itself, and the GCS FUSE driver."""
    parent = f"projects/{config.project_id}/locations/{cluster.location}"
    zones = [f"{cluster.location}-{zone}" for zone in "abc"] if cluster.location.count("-") == 1 else [cluster.location]
    endpoints: dict[str, Any] = {
        "ipEndpointsConfig": {
            "enabled": True,
            "enablePublicEndpoint": True,
            "publicEndpoint": cluster.endpoint,
            "privateEndpoint": cluster.endpoint,
        },
        "dnsEndpointConfig": {"allowExternalTraffic": bool(cluster.dns_endpoint)},
    }
    if cluster.dns_endpoint:
        endpoints["dnsEndpointConfig"]["endpoint"] = cluster.dns_endpoint
    pools = [NodePool("default-pool", image_streaming=cluster.autopilot, machine_type="e2-standard-4")]
    pools += cluster.node_pools
    return {
        "name": cluster.name,
        "selfLink": f"https://container.googleapis.com/v1/{parent}/clusters/{cluster.name}",
        "location": cluster.location,
        "locations": zones,
        "status": "RUNNING",
        "endpoint": cluster.endpoint,
        "masterAuth": {"clusterCaCertificate": base64.b64encode(cluster.ca_certificate.encode()).decode()},
        "controlPlaneEndpointsConfig": endpoints,
        "currentMasterVersion": cluster.version,
        "initialClusterVersion": cluster.version,
        "releaseChannel": {"channel": "REGULAR"},
        "autopilot": {"enabled": cluster.autopilot},
        "workloadIdentityConfig": {"workloadPool": f"{config.project_id}.svc.id.goog"},
        "addonsConfig": {
            "gcsFuseCsiDriverConfig": {"enabled": True},
            "gcePersistentDiskCsiDriverConfig": {"enabled": True},
            "horizontalPodAutoscaling": {},
            "httpLoadBalancing": {},
        },
        "network": "default",
        "subnetwork": "default",
        "networkConfig": {
            "network": f"projects/{config.project_id}/global/networks/default",
            "subnetwork": f"projects/{config.project_id}/regions/{_region(cluster.location)}/subnetworks/default",
            # What lets a cluster have Gateways: its kinds come with it.
            "gatewayApiConfig": {"channel": "CHANNEL_STANDARD"},
        },
        "nodePools": [node_pool_resource(parent, cluster, pool, zones) for pool in pools],
    }


def _region(location: str) -> str:
    return location[:-2] if location[-2] == "-" else location


def node_pool_resource(parent: str, cluster: Cluster, pool: NodePool, zones: list[str]) -> dict[str, Any]:
    """A running node pool."""
    config: dict[str, Any] = {
        "machineType": pool.machine_type,
        "diskSizeGb": 100,
        "imageType": "COS_CONTAINERD",
        "gcfsConfig": {"enabled": pool.image_streaming},
    }
    if pool.disk_images:
        mode = "CONTAINER_IMAGE_CACHE"
        config["secondaryBootDisks"] = [{"diskImage": image, "mode": mode} for image in pool.disk_images]
    return {
        "name": pool.name,
        "status": "RUNNING",
        "version": cluster.version,
        "locations": zones,
        "config": config,
        "selfLink": f"https://container.googleapis.com/v1/{parent}/clusters/{cluster.name}/nodePools/{pool.name}",
    }


def server_config(config: Config) -> dict[str, Any]:
    """The versions that there are: those of our clusters, newest first."""
    versions = sorted({cluster.version for cluster in config.clusters}, reverse=True)
    if not versions:
        return {}
    channel = {"channel": "REGULAR", "defaultVersion": versions[0], "validVersions": versions}
    return {
        "defaultClusterVersion": versions[0],
        "validMasterVersions": versions,
        "validNodeVersions": versions,
        "defaultImageType": "COS_CONTAINERD",
        "validImageTypes": ["COS_CONTAINERD", "UBUNTU_CONTAINERD"],
        "channels": [channel],
    }
