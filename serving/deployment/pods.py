"""A generation's pods, for who asks each of them: by address or by log, since a Service would choose one."""

from __future__ import annotations

from serving import names
from serving.clients.kubernetes import Cluster, Object
from serving.settings import Settings


def of(cluster: Cluster, settings: Settings, generation: str, *, ending: bool = False) -> list[Object]:
    """The generation's pods that serve or are going to; with `ending`, also those that are being deleted: they get no
    new requests, and finish what they have.

    Never one that has ended. An evicted pod stays in the cluster for days, with its address, which another pod has by
    then, and with nobody in it who could say anything.
    """
    return [
        pod
        for pod in cluster.list("Pod", settings.namespace, labels=names.selector(settings, generation))
        if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
        and (ending or not pod["metadata"].get("deletionTimestamp"))
    ]


def ready(cluster: Cluster, settings: Settings, generation: str) -> list[Object]:
    """Those of them that are ready."""
    return [pod for pod in of(cluster, settings, generation) if is_ready(pod)]


def addresses(cluster: Cluster, settings: Settings, generation: str, *, ending: bool = False) -> list[str]:
    """The addresses of `of`'s pods, sorted, as far as they have one yet."""
    found = of(cluster, settings, generation, ending=ending)
    return sorted(pod["status"]["podIP"] for pod in found if (pod.get("status") or {}).get("podIP"))


def is_ready(pod: Object) -> bool:
    """Whether a pod's condition Ready is True."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
