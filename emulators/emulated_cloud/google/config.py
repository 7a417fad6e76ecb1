"""What the emulator is told: a project, who its caller is, clusters, secrets, zones of machines, logs, what runs
pipelines."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATES = ("ENABLED", "DISABLED", "DESTROYED")


class BadConfig(Exception):
    """The configuration file is not what the emulator can use."""


@dataclass(frozen=True)
class NodePool:
    """A node pool that somebody made, beside the default one: `disk_images` are paths of the images that its nodes have
    secondary boot disks of."""

    name: str
    disk_images: list[str] = field(default_factory=list)
    image_streaming: bool = True
    machine_type: str = "g2-standard-8"


@dataclass(frozen=True)
class Cluster:
    """A GKE cluster: `endpoint` is where its API server answers, `ca_certificate` PEM text."""

    name: str
    location: str
    endpoint: str
    ca_certificate: str
    version: str
    autopilot: bool = True
    dns_endpoint: str = ""
    node_pools: list[NodePool] = field(default_factory=list)
    pools: list[dict[str, Any]] = field(default_factory=list)
    """Node pools that somebody made by the container API, in its words."""


@dataclass(frozen=True)
class SecretVersion:
    value: str
    state: str = "ENABLED"


@dataclass(frozen=True)
class ComputeConfig:
    """Compute Engine of one region: `folder` keeps what there is, `run_scripts` and `script_output` say what machines
    do (compute/machine.py), `subnetworks` are those of a new project beside `default`, in the API's words."""

    folder: Path
    zones: list[str]
    quotas: dict[str, float] = field(default_factory=dict)
    run_scripts: bool = True
    script_output: list[str] = field(default_factory=list)
    subnetworks: list[dict[str, Any]] = field(default_factory=list)

    @property
    def region(self) -> str:
        return self.zones[0].rpartition("-")[0]


@dataclass(frozen=True)
class AiPlatformConfig:
    """Vertex AI Pipelines in these locations: `folder` keeps what there is, tasks see `environment` (aiplatform/) and
    have `grace_seconds` to end when they are cancelled."""

    folder: Path
    locations: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    grace_seconds: float = 30.0


@dataclass(frozen=True)
class CloudBuildConfig:
    """Cloud Build: `storage` is where sources lie, scheme and host; `command` is run in each source, with
    `environment`, in the place of its steps (cloudbuild/)."""

    storage: str
    command: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    project_id: str
    project_number: str
    service_account: str
    token: str
    clusters: list[Cluster] = field(default_factory=list)
    secrets: dict[str, dict[str, SecretVersion]] = field(default_factory=dict)
    denied: list[str] = field(default_factory=list)
    compute: ComputeConfig | None = None
    aiplatform: AiPlatformConfig | None = None
    logs: str = ""
    metrics: str = ""
    folder: str = ""
    registry: str = ""
    services: list[str] | None = None
    denied_permissions: list[str] = field(default_factory=list)
    accounts: list[str] = field(default_factory=list)
    cloudbuild: CloudBuildConfig | None = None

    @classmethod
    def load(cls, file: Path) -> Config:
        """Raises BadConfig, OSError."""
        try:
            given = dict(json.loads(file.read_text(encoding="utf-8")))
            project = given.pop("project")
            config = cls(
                project_id=project["id"],
                project_number=str(project["number"]),
                service_account=given.pop("service_account"),
                token=given.pop("token"),
                clusters=[_cluster(cluster) for cluster in given.pop("clusters", [])],
                secrets={
                    name: {number: _version(version) for number, version in versions.items()}
                    for name, versions in given.pop("secrets", {}).items()
                },
                denied=given.pop("denied", []),
                compute=_compute(given.pop("compute", None)),
                aiplatform=_aiplatform(given.pop("aiplatform", None)),
                logs=given.pop("logs", ""),
                metrics=given.pop("metrics", ""),
                folder=given.pop("folder", ""),
                registry=given.pop("registry", ""),
                services=given.pop("services", None),
                denied_permissions=given.pop("denied_permissions", []),
                accounts=given.pop("accounts", []),
                cloudbuild=_cloudbuild(given.pop("cloudbuild", None)),
            )
        except KeyError as error:
            raise BadConfig(f"{error} is missing") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise BadConfig(str(error)) from error
        if given:
            raise BadConfig(f"unknown: {', '.join(sorted(given))}")
        return config

    def is_project(self, name: str) -> bool:
        """Whether this is our project, by id or by number."""
        return name in (self.project_id, self.project_number)

    def is_denied(self, resource: str) -> bool:
        return any(resource == name or resource.startswith(f"{name}/") for name in self.denied)


def _cluster(given: dict[str, Any]) -> Cluster:
    return Cluster(**{**given, "node_pools": [NodePool(**pool) for pool in given.get("node_pools", [])]})


def _compute(given: dict[str, Any] | None) -> ComputeConfig | None:
    if given is None:
        return None
    compute = ComputeConfig(**{**given, "folder": Path(given["folder"])})
    if len({zone.rpartition("-")[0] for zone in compute.zones}) != 1:
        raise BadConfig("compute: the zones are those of one region")
    return compute


def _aiplatform(given: dict[str, Any] | None) -> AiPlatformConfig | None:
    return None if given is None else AiPlatformConfig(**{**given, "folder": Path(given["folder"])})


def _cloudbuild(given: dict[str, Any] | None) -> CloudBuildConfig | None:
    return None if given is None else CloudBuildConfig(**given)


def _version(given: Any) -> SecretVersion:
    version = SecretVersion(given) if isinstance(given, str) else SecretVersion(**given)
    if version.state not in STATES:
        raise BadConfig(f"a secret version's state is one of {', '.join(STATES)}, not {version.state!r}")
    return version
