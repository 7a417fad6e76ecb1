"""The container API (GKE), version 1: clusters to look at."""

from __future__ import annotations

import base64
from typing import Any

from emulated_cloud.google.call import Call
from emulated_cloud.google.config import Cluster, Config, NodePool
from emulated_cloud.google.errors import permission_denied, refusal


def answer(call: Call) -> dict[str, Any] | None:
    if call.version != "v1" or call.method != "GET" or call.verb:
        return None
    match call.path:
        case ["projects", project, "locations", location, "clusters"]:
            _allow(call, "container.clusters.list", project)
            found = [cluster for cluster in call.config.clusters if location in ("-", cluster.location)]
            return {"clusters": [cluster_resource(call.config, cluster) for cluster in found]} if found else {}
        case ["projects", project, "locations", location, "clusters", name]:
            _allow(call, "container.clusters.get", project)
            for cluster in call.config.clusters:
                if (cluster.name, cluster.location) == (name, location):
                    return cluster_resource(call.config, cluster)
            raise refusal("NOT_FOUND", f"Not found: projects/{project}/locations/{location}/clusters/{name}.")
        case ["projects", project, "locations", _, "serverConfig"]:
            _allow(call, "container.clusters.list", project)
            return server_config(call.config)
    return None


def _allow(call: Call, permission: str, project: str) -> None:
    if not call.config.is_project(project) or call.config.is_denied(call.resource):
        raise permission_denied(permission, f"projects/{project}")


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
        "nodePools": [node_pool_resource(parent, cluster, pool, zones) for pool in pools],
    }


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
