"""Compute Engine of one project: what there is, what runs, and what is being done."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from emulated_cloud.faults import Faults
from emulated_cloud.google.call import Call
from emulated_cloud.google.compute import (
    catalog,
    disks,
    errors,
    images,
    instances,
    machine,
    resources,
    routes,
    subnetworks,
)
from emulated_cloud.google.compute.machine import Machine
from emulated_cloud.google.compute.operations import Operations
from emulated_cloud.google.compute.store import Store
from emulated_cloud.google.config import ComputeConfig, Config


class Compute:
    """The API, and the machines that run behind it."""

    def __init__(self, config: Config, compute: ComputeConfig, faults: Faults):
        self.config, self.compute = config, compute
        self.project, self.zones = config.project_id, compute.zones
        self.store = Store(compute.folder)
        self.operations = Operations(self.project, config.service_account, faults)
        self.machines: dict[str, Machine] = {}
        self.timers: dict[str, threading.Timer] = {}
        self.lock = threading.RLock()
        """Held while what there is changes, not while a machine boots or bytes are copied."""
        machine.sweep(compute.folder)
        subnetworks.seed(self)
        disks.recover(self)
        images.recover(self)
        instances.recover(self)

    def answer(self, call: Call) -> dict[str, Any] | None:
        return routes.answer(self, call)

    def close(self) -> None:
        """Switches every machine off; what there is stays."""
        for timer in self.timers.values():
            timer.cancel()
        for running in list(self.machines.values()):
            running.stop()

    # -- what the verbs share ---------------------------------------------------------------------------------

    def name(self, path: str) -> str:
        """A resource as it is named in errors."""
        return f"projects/{self.project}/{path}"

    def existing(self, path: str) -> dict[str, Any]:
        """Raises HttpError 404."""
        found = self.store.get(path)
        if found is None:
            raise errors.not_found(self.name(path))
        return found

    def check_new(self, path: str) -> None:
        """Raises HttpError 409."""
        if self.store.get(path) is not None:
            raise errors.already_exists(self.name(path))

    def check_zone(self, zone: str) -> None:
        if zone not in self.zones:
            raise errors.not_found(self.name(f"zones/{zone}"))

    def image(self, reference: str) -> tuple[str, dict[str, Any]]:
        """An image that can be started from, by its link or its family's: its path ("" for somebody else's), itself.
        Raises HttpError."""
        project, path = resources.path_of(reference, self.project)
        parts = path.split("/")
        found: dict[str, Any] | None = None
        if project in catalog.PUBLIC_IMAGES:
            family = parts[-1] if "family" in parts else catalog.family_of(parts[-1])
            if family in catalog.PUBLIC_IMAGES[project]:
                return "", catalog.public_image(project, family)
        elif parts[:3] == ["global", "images", "family"]:
            found = self.newest(parts[-1])
        elif parts[:2] == ["global", "images"]:
            found = self.store.get(path)
        if found is None:
            raise errors.not_found(f"projects/{project}/{path}")
        if found["status"] != "READY":
            raise errors.not_ready(f"projects/{project}/{path}")
        return f"global/images/{found['name']}", found

    def newest(self, family: str) -> dict[str, Any] | None:
        """The newest image of a family of ours that is ready."""
        ready = [
            image
            for _, image in self.store.of_kind("images")
            if image.get("family") == family and image["status"] == "READY"
        ]
        return max(ready, key=lambda image: image["creationTimestamp"], default=None)

    def set_labels(self, call: Call, path: str) -> dict[str, Any]:
        """Raises HttpError 412 when they have changed since the caller looked."""
        found = self.existing(path)
        if call.body.get("labelFingerprint") != found["labelFingerprint"]:
            raise errors.stale_fingerprint()
        labels = call.body.get("labels") or {}
        resources.check_labels(labels)

        def work(_: dict[str, Any]) -> None:
            with self.lock:
                self.store.change(path, labels=labels, labelFingerprint=resources.fingerprint(labels))

        return self.operations.begin(call, "setLabels", path, found["id"], work)

    # -- quotas -------------------------------------------------------------------------------------------------

    def used(self) -> Counter[str]:
        """What is used of every quota."""
        used: Counter[str] = Counter(IMAGES=len(list(self.store.of_kind("images"))))
        for _, instance in self.store.of_kind("instances"):
            used["INSTANCES"] += 1
            if instance["status"] != "TERMINATED":
                machine_type = instance["machineType"].rpartition("/")[2]
                cpus = int(machine_type.rpartition("-")[2])
                used[catalog.cpu_quota(machine_type)] += cpus
                used["CPUS_ALL_REGIONS"] += cpus
        for _, disk in self.store.of_kind("disks"):
            used[catalog.disk_quota(disk["type"].rpartition("/")[2])] += int(disk["sizeGb"])
        return used

    def quotas(self, limits: dict[str, float]) -> list[dict[str, Any]]:
        return catalog.quotas(limits, self.compute.quotas, {key: float(value) for key, value in self.used().items()})

    def check_quotas(self) -> None:
        """Raises OperationFailed when what there is, with what is just being made, is more than there may be."""
        region = self.compute.region
        for limits, where, dimensions in (
            (catalog.REGION_QUOTAS, f"in region {region}", {"region": region}),
            (catalog.PROJECT_QUOTAS, "globally", {}),
        ):
            for quota in self.quotas(limits):
                if quota["usage"] > quota["limit"]:
                    raise errors.quota_exceeded(quota["metric"], quota["limit"], where, dimensions)
