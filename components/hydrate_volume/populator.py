"""Filling a volume by GKE's populator: a transfer from the bucket to the disk of every zone.

Source: https://cloud.google.com/kubernetes-engine/docs/how-to/persistent-volumes/volume-populator. It verifies nothing,
and tries a zone that fails again for as long as the claim is there.
"""

from __future__ import annotations

import re
import time

from components.hydrate_volume.hydration import Hydration, wait_until_bound
from serving.clients.kubernetes import Object
from serving.errors import RequestError

COMPUTE_CLASS = "gcs-to-hdml-compute-class"
_QUIET_SECONDS = 300
"""A transfer tells of itself once a minute: of a volume that is bound and silent for so long, the last word was told
more than an hour ago, when the cluster still knew it. What is on it, the reading says."""
_ALL_ZONES = "all zones"
_STAGE = re.compile(r".*(waiting for|still active|failed: |Populate operation started)", re.DOTALL)
"""Where an event says how a transfer stands, after it has said whose it is."""


def fill(hydration: Hydration, *, quiet_seconds: float = _QUIET_SECONDS) -> Object:
    """Fills the generation's volume, and returns its claim. Raises InconclusiveError that names the zones whose
    transfer does not end in time, RequestError where the populator can have no machines."""
    if hydration.cluster.get("ComputeClass", COMPUTE_CLASS) is None:
        raise RequestError(
            f"the cluster has no ComputeClass {COMPUTE_CLASS}, by which GKE's populator finds machines for its "
            "transfers. An administrator makes it: `gemma-pipelines render "
            f"{hydration.settings.scenario} -f FILE --access | kubectl apply --server-side -f -`"
        )
    transfers = _Transfers(hydration.release.zones, quiet_seconds)
    return wait_until_bound(
        hydration,
        hydration.put_claim(),
        # The populator's own pods wait for machines too.
        hydration.capacity_seconds + hydration.seconds,
        hear=transfers.hear,
        is_filled=lambda: transfers.finished,
        words=transfers.words,
    )


class _Transfers:
    """What the populator has said."""

    def __init__(self, zones: list[str], quiet_seconds: float):
        self._said = dict.fromkeys(zones, "nothing heard of it yet")
        self._quiet_seconds = quiet_seconds
        self._heard_at = time.monotonic()
        self._is_finished = False

    def hear(self, event: Object) -> None:
        reason, message = event.get("reason", ""), event.get("message", "")
        if not reason.startswith(("Populat", "Transfer")):
            return
        self._heard_at = time.monotonic()
        if reason == "PopulatorFinished":
            self._is_finished = True
        elif reason == "TransferJobCompleted":
            done = list(self._said) if _ALL_ZONES in message else self._named(message)
            for zone in done:
                self._said.pop(zone, None)
        else:
            for zone in self._named(message):
                if zone in self._said:
                    stage = _STAGE.match(message)
                    self._said[zone] = message[stage.start(1) :] if stage else message

    @property
    def finished(self) -> bool:
        return self._is_finished or time.monotonic() - self._heard_at > self._quiet_seconds

    def words(self) -> str:
        zones = ", ".join(f"{zone} ({said})" for zone, said in self._said.items())
        return f"the transfer to {zones}" if zones else "the populator to finish"

    @staticmethod
    def _named(message: str) -> list[str]:
        return re.findall(r"\b[a-z]+-[a-z]+\d+-[a-z]\b", message)
