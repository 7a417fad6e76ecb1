"""A deployment whose surroundings are all as they should be, for tests of what is told of it: each test breaks one."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from components.resolve_model import step as resolve
from components.resolve_model.step import Found
from pipelines.oversight import needs, plan, runs, status
from pipelines.vertex import preflight, schedule
from serving import names
from serving.clients import google, iam, kubernetes, service_usage, storage
from serving.clients.compute import Room
from serving.clients.google import ClusterTraits
from serving.deployment import caches, record
from serving.deployment.record import Record
from serving.features import Binding
from serving.installation import bootstrap, roles
from serving.rendering import render
from serving.settings import Settings
from serving.weights.release import Release
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import lease, quick

FOUND = Found("c" * 40, "0123456789abcdef", "Gemma3ForConditionalGeneration", weights_bytes=8_600_000_000)
TRAITS = ClusterTraits("projects/p/locations/l/clusters/gemma", True, "1.35.3-gke.1389000", (), ("us-central1-a",))
IMAGE = f"us-central1-docker.pkg.dev/demo-project/gemma-pipelines/python-components@sha256:{'a' * 64}"


class Compute:
    """Compute Engine with room for everything."""

    quotas: ClassVar[dict[str, Room]] = {"NVIDIA_L4_GPUS": Room(8, 8)}
    having: ClassVar[list[str]] = ["us-central1-a", "us-central1-c"]

    def __init__(self, project: str):
        pass

    def region(self, name: str) -> tuple[list[str], dict[str, Room]]:
        return list(TRAITS.zones), self.quotas

    def project_quotas(self) -> dict[str, Room]:
        return {"GPUS_ALL_REGIONS": Room(8, 8)}

    def zones_with(self, accelerator: str) -> list[str]:
        return self.having


class World:
    """The surroundings: `settings`, the `cluster`, and what the patched clients answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, settings: Settings):
        self.patch, self.settings, self.cluster = monkeypatch.setattr, settings, MemoryCluster()
        self.patch(google, "check_credentials", lambda: None)
        self.patch(google, "project_number", lambda project: "1")
        self.patch(service_usage, "enabled", lambda project: set(bootstrap.apis(settings)))
        self.patch(iam, "account_exists", lambda email: True)
        self.patch(iam, "missing_permissions", lambda resource, permissions: [])
        self.patch(roles.Grant, "holds", lambda grant, project: True)
        self.patch(preflight, "check_buckets", lambda settings: None)
        self.patch(preflight, "digest_of", lambda settings, given=None: IMAGE)
        self.patch(google, "cluster_traits", lambda settings: TRAITS)
        self.patch(needs, "bindings", lambda settings: [Binding("roles/storage.objectViewer", "p/subject/ns/a/sa/b")])
        self.patch(storage, "has_bucket_binding", lambda bucket, role, member: True)
        self.patch(kubernetes, "connect", lambda settings: self.cluster)
        self.patch(needs, "Compute", type("Own", (Compute,), {}))
        self.patch(resolve, "look_up", lambda settings: FOUND)
        self.patch(status, "look_up", lambda settings: FOUND)
        self.patch(resolve, "damage", lambda uri: [])
        self.patch(caches, "amiss", lambda settings, release: "")
        self.patch(runs, "reached", lambda settings: SimpleNamespace(parent="projects/p/locations/l"))
        self.patch(runs, "latest", lambda vertex, settings: [])
        self.patch(runs, "validation_of", lambda settings, run_id: None)
        self.patch(schedule, "find", lambda vertex, settings: None)

    def release(self, settings: Settings | None = None) -> Release:
        settings = settings or self.settings
        return resolve.name_release(settings, "run-1", FOUND, live="")

    def live(self) -> Release:
        """Brings the release into service."""
        release, cluster = self.release(), self.cluster
        rendered = render.render(self.settings, release)
        cluster.create(render.namespace(self.settings))
        for body in [*rendered.shared, *rendered.generation]:
            cluster.apply(body)
        name = names.server(release.generation)
        counts = dict.fromkeys(("observedGeneration", "replicas", "updatedReplicas", "readyReplicas"), 1)
        cluster.set_status("Deployment", name, self.settings.namespace, **counts)
        entry = render.entry(self.settings, {release.generation: 100})
        digest = render.digest_of([entry])
        entry["metadata"].setdefault("annotations", {})[names.SETTINGS] = digest
        cluster.create(entry)
        known = Record()
        known.remember(release)
        known.put_live(release.generation)
        known.write(cluster, self.settings)  # type: ignore[arg-type]
        cluster.create(lease(""))
        return release

    def planned(self, **changes: Any) -> dict[str, Any]:
        return plan.plan(self.settings.model_copy(update=changes), record_now())


def record_now() -> Any:
    import datetime

    return datetime.datetime.fromisoformat(record.now())


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch, quick())


def room(world: World, **quotas: Room) -> None:
    """Has the region other quotas."""
    own = type("Short", (Compute,), {"quotas": {**Compute.quotas, **quotas}})
    world.patch(needs, "Compute", own)


def traits(**changes: Any) -> ClusterTraits:
    return dataclasses.replace(TRAITS, **changes)
