"""What the parts of a hydration share: whose volume it is, the Jobs' pods, and the wait for the claim's volume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from components.hydrate_volume.volume import Plan
from serving import names
from serving.clients import google
from serving.clients.kubernetes import Cluster, Object, Subject, kinds
from serving.deployment import objects
from serving.deployment.job import CONTAINER, USER, Work, argument, run_jobs
from serving.errors import InconclusiveError, PipelineError, RequestError
from serving.features.hyperdisk_ml import Section
from serving.log import Say
from serving.rendering import engine, render
from serving.settings import Settings, in_seconds
from serving.weights.release import Release

FOLDER = "/volume"
"""Where a Job finds the volume."""
TWO_CORES = {"cpu": "2", "memory": "512Mi"}
"""What hashing at a disk's speed needs: on Autopilot a request is a limit too."""
_SAY_EVERY_SECONDS, _SAY_CHANGES_AFTER_SECONDS = 30, 2
_HARMLESS = "the object has been modified"
"""Of a write that lost a race: whoever it was tries again at once."""
_CLAIM = "PersistentVolumeClaim"


@dataclass(frozen=True)
class Hydration:
    """One generation's volume on its way."""

    cluster: Cluster
    settings: Settings
    release: Release
    say: Say

    @property
    def name(self) -> str:
        """Of the claim, and of what it is filled from."""
        return names.server(self.release.generation)

    @property
    def section(self) -> Section:
        found: Section = self.settings.section("hyperdisk-ml")
        return found

    @property
    def seconds(self) -> float:
        """How long each part may take."""
        return in_seconds(self.section.timeout)

    @property
    def capacity_seconds(self) -> float:
        """How long a machine may be waited for."""
        return in_seconds(self.settings.serving.capacity_timeout)

    def claim(self) -> Object | None:
        """The claim of the generation's volume, as it is now."""
        return self.cluster.get(_CLAIM, self.name, self.settings.namespace)

    def put_claim(self) -> Object:
        """Makes what the generation has of its own before its server: the claim, and what that refers to."""
        for item in render.render(self.settings, self.release).generation:
            if kinds.find(item["kind"]).immutable:
                objects.put(self.cluster, item, self.say)
        claim = self.claim()
        if claim is None:
            raise InconclusiveError(
                f"{_CLAIM}/{self.name} was deleted by somebody else as soon as it was made. Run again"
            )
        return claim

    def run_jobs(self, task: str, works: Sequence[Work]) -> list[dict[str, Any] | PipelineError]:
        """How the Jobs of this volume ended that are to do `task` (`python -m components.hydrate_volume TASK`)."""
        plan = Plan(
            weights_uri=self.release.weights_uri, folder=FOLDER, patience_seconds=in_seconds(self.settings.patience)
        )
        return run_jobs(
            self.cluster,
            self.settings,
            [Work(["-m", "components.hydrate_volume", task, argument(plan)], work.part, work.pod) for work in works],
            step="hydrate-volume",
            run_id=self.release.run_id,
            generation=self.release.generation,
            image=engine.component_image(self.settings),
            timeout=self.capacity_seconds + self.seconds,
            say=self.say,
            resources=TWO_CORES,
            capacity=self.capacity_seconds,
        )

    def pod(self, claim: str, *, read_only: bool, zone: str = "") -> Object:
        """What the pod of a Job needs for a claim's volume: a machine that attaches it, and the bucket's account."""
        machine = {"cloud.google.com/machine-family": self.section.machine_family}
        if self._compute_class:
            machine["cloud.google.com/compute-class"] = self._compute_class
        if zone:
            machine["topology.kubernetes.io/zone"] = zone
        return {
            # The bucket is read as the server's account; a token of Kubernetes itself is not needed for that.
            "serviceAccountName": self.settings.serving.service_account,
            "nodeSelector": machine,
            "securityContext": {"fsGroup": USER, "fsGroupChangePolicy": "OnRootMismatch"},
            "containers": [
                {
                    "name": CONTAINER,
                    "volumeMounts": [{"name": "weights", "mountPath": FOLDER, "readOnly": read_only}],
                }
            ],
            "volumes": [
                {"name": "weights", "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}},
            ],
        }

    @cached_property
    def _compute_class(self) -> str:
        if self.section.compute_class is not None:
            return self.section.compute_class
        # Autopilot gives a pod the machines of a family in this class alone.
        return "Performance" if google.cluster_traits(self.settings).autopilot else ""

    def put_service_account(self) -> None:
        """What deploy_server puts there later, and what reads the bucket here runs as."""
        for item in render.shared(self.settings):
            if item["kind"] == "ServiceAccount":
                objects.put(self.cluster, item, self.say)

    def waited(self, subjects: Sequence[Subject], seconds: float, words: Callable[[], str]) -> Iterator[Any]:
        """Every change of the subjects, and None now and then, for so long; meanwhile says how it stands."""
        said, said_at = "", -math.inf
        started = time.monotonic()
        with self.cluster.follow(*subjects) as changes:
            for change in changes.until(started + seconds):
                yield change
                now = time.monotonic()
                if now - said_at >= (_SAY_EVERY_SECONDS if words() == said else _SAY_CHANGES_AFTER_SECONDS):
                    said, said_at = words(), now
                    self.say(f"{said} ({now - started:.0f} s)")


def is_bound(claim: Object) -> bool:
    """Whether a claim has a volume, and keeps it."""
    return (claim.get("status") or {}).get("phase") == "Bound" and not claim["metadata"].get("deletionTimestamp")


def is_warning(event: Object) -> bool:
    """Whether an event of a claim says that something is wrong with it."""
    return event.get("type") == "Warning" and _HARMLESS not in event.get("message", "")


def wait_until_bound(
    hydration: Hydration,
    claim: Object,
    seconds: float,
    *,
    hear: Callable[[Object], None] = lambda event: None,
    is_filled: Callable[[], bool] = lambda: True,
    words: Callable[[], str] = lambda: "",
) -> Object:
    """Waits until the claim has a volume, and that is filled. Returns the claim.

    `hear` is told the claim's events; `words` say what it waits for beyond a volume. Raises InconclusiveError when that
    does not come in time, with the last warning, and RequestError when the driver says that it never will.
    """
    name, namespace, uid = (claim["metadata"][key] for key in ("name", "namespace", "uid"))
    warning = ""
    subjects = (
        Subject(_CLAIM, namespace, fields=f"metadata.name={name}"),
        Subject("Event", namespace, fields=f"involvedObject.name={name}"),
    )

    def state() -> str:
        waits = words() or ("its volume" if not is_bound(claim) else "its content")
        return f"{_CLAIM}/{name} waits for {waits}" + (f"; last warning: {warning}" if warning else "")

    for change in hydration.waited(subjects, seconds, state):
        item = change[1] if change else None
        if item and item["kind"] == _CLAIM and item["metadata"]["uid"] == uid:
            if change[0] == "DELETED" or item["metadata"].get("deletionTimestamp"):
                raise InconclusiveError(f"{_CLAIM}/{name} was deleted by somebody else while it was filled. Run again")
            claim = item
        elif item and item["kind"] == "Event" and (item.get("involvedObject") or {}).get("uid") == uid:
            hear(item)
            if is_warning(item):
                warning = item.get("message", "")
                if "code = InvalidArgument" in warning:
                    raise RequestError(
                        f"{_CLAIM}/{name} can have no such volume: {warning}. See hyperdisk_ml and `patches` in the "
                        "settings"
                    )
        if is_bound(claim) and is_filled():
            return claim
    raise InconclusiveError(
        f"{state()}, after {seconds:.0f} s. See `kubectl -n {namespace} describe pvc {name}`. A zone that has no room "
        "can be left out with hyperdisk_ml.zones; hyperdisk_ml.timeout gives it more time"
    )
