"""Where a generation's pods are asked for their own figures: by address, since a Service would choose one of them."""

from __future__ import annotations

from serving import names
from serving.clients.kubernetes import Cluster
from serving.settings import Settings


def addresses(cluster: Cluster, settings: Settings, generation: str, *, ending: bool = False) -> list[str]:
    """The addresses of a generation's pods, sorted; with `ending`, also of those that are being deleted: they get no
    new requests, and finish what they have.

    Never of one that has ended: an evicted pod stays in the cluster with its address, which another pod has by then.
    """
    return sorted(
        pod["status"]["podIP"]
        for pod in cluster.list("Pod", settings.namespace, labels=names.selector(settings, generation))
        if (pod.get("status") or {}).get("podIP")
        and pod["status"].get("phase") not in ("Succeeded", "Failed")
        and (ending or not pod["metadata"].get("deletionTimestamp"))
    )
