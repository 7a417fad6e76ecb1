"""What a generation has behind a gateway beside its servers: its endpoint picker."""

from __future__ import annotations

import time

from serving import names
from serving.clients.kubernetes import Cluster, Subject
from serving.deployment import replicas
from serving.errors import InconclusiveError
from serving.log import Say
from serving.settings import Settings, in_seconds

PICKERS = 2
"""Pods of a picker: without one, its generation answers nothing."""


def scale_picker(cluster: Cluster, settings: Settings, generation: str, wanted: int | None = None) -> None:
    """Sets how many pods the generation's endpoint picker is to have, where it has one."""
    if "inference-gateway" not in settings.chosen_features:
        return
    pods = PICKERS if wanted is None else wanted
    there = cluster.get("Deployment", names.picker(generation), settings.namespace)
    if there and replicas.wanted(there) != pods:
        body = {"spec": {"replicas": pods}}
        cluster.patch("Deployment", names.picker(generation), settings.namespace, body, subresource="scale")


def picker_is_ready(cluster: Cluster, settings: Settings, generation: str) -> bool:
    """Whether a pod of the generation's endpoint picker is ready; also where the generation has no picker."""
    if "inference-gateway" not in settings.chosen_features:
        return True
    there = cluster.get("Deployment", names.picker(generation), settings.namespace)
    return there is None or replicas.ready(there) >= max(1, replicas.wanted(there))


def wait_for_picker(cluster: Cluster, settings: Settings, generation: str, say: Say) -> None:
    """Waits until the generation's endpoint picker is ready. Raises InconclusiveError when it is not in time."""
    if picker_is_ready(cluster, settings, generation):
        return
    name = names.picker(generation)
    say(f"waiting for the endpoint picker {name}")
    with cluster.follow(Subject("Deployment", settings.namespace, fields=f"metadata.name={name}")) as changes:
        for change in changes.until(time.monotonic() + in_seconds(settings.serving.ready_timeout)):
            if change and replicas.ready(change[1]) >= max(1, replicas.wanted(change[1])):
                return
    raise InconclusiveError(
        f"the endpoint picker {name} is not ready after serving.ready_timeout ({settings.serving.ready_timeout}), and "
        f"without it {generation} answers nothing. See `kubectl -n {settings.namespace} describe deployment {name}`"
    )
