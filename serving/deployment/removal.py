"""All that a deployment has in its cluster, and how it is taken away: what its runs made, and nothing else.

What an administrator applied (`render --access`) is the administrator's, and a namespace or a service account that was
there before, or that anybody else uses, stays.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from serving import names
from serving.clients.kubernetes import Cluster, Object, Subject, kinds
from serving.clients.kubernetes.cluster import FIELD_MANAGER
from serving.deployment import leftovers
from serving.errors import AccessError, InconclusiveError
from serving.log import Say
from serving.rendering import access
from serving.settings import Settings

_NEVER_OURS = ("Namespace", "Event", "Node", "VolumeAttachment", "ReplicaSet", "Pod")
"""What others made, or goes with what owns it."""


def find(cluster: Cluster, settings: Settings) -> list[Object]:
    """What the deployment has in the cluster, in the order in which it is to go. Reads only.

    The record is last but for the Lease: a removal that was ended in the middle is begun again with both.
    """
    found: list[Object] = []
    for kind in reversed(kinds.known()):
        if kind.kind in _NEVER_OURS or kind.kind in access.admin_kinds():
            continue
        labels = names.selector(settings, cluster_scoped=not kind.namespaced)
        items = leftovers.list_served(cluster, kind.kind, settings.namespace if kind.namespaced else None, labels)
        found += [item for item in items if not item["metadata"].get("ownerReferences")]
    account = cluster.get("ServiceAccount", settings.serving.service_account, settings.namespace)
    if account and _is_ours_alone(account) and not others(cluster, settings):
        found.append(account)
    records = [item for item in found if _is(item, "ConfigMap", names.record(settings))]
    held = cluster.get("Lease", settings.name, settings.namespace)
    return [item for item in found if item not in records] + records + ([held] if held else [])


def others(cluster: Cluster, settings: Settings) -> list[str]:
    """The other deployments of the namespace, by their names."""
    there = leftovers.list_served(cluster, "ConfigMap", settings.namespace, names.DEPLOYMENT)
    found = {str(item["metadata"]["labels"][names.DEPLOYMENT]) for item in there}
    return sorted(found - {settings.name})


def remove(cluster: Cluster, settings: Settings, items: list[Object], say: Say) -> list[str]:
    """Takes these away, and returns when they are gone, disks of claims included. Returns what it took away, as
    `Kind/name`. Raises InconclusiveError, with what helps, for what does not go."""
    claims = [item for item in items if item["kind"] == "PersistentVolumeClaim"]
    volumes = [volume for claim in claims for volume in _made_for(cluster, claim)]
    removed = leftovers.delete(cluster, items, say)
    for item in [*items, *volumes]:
        _wait_until_gone(cluster, settings, item, say)
    return removed


def remove_namespace(cluster: Cluster, settings: Settings, say: Say) -> bool:
    """Takes the namespace away if runs made it and nobody has anything in it: returns whether it did."""
    if not (namespace := removable_namespace(cluster, settings)) or not cluster.delete(namespace):
        return False
    say(f"deleted Namespace/{settings.namespace}")
    return True


def removable_namespace(cluster: Cluster, settings: Settings, going: list[Object] | None = None) -> Object | None:
    """The namespace, if runs made it and nothing is in it but what is `going`."""
    namespace = cluster.get("Namespace", settings.namespace)
    if not namespace or not _is_ours_alone(namespace) or namespace["metadata"].get("deletionTimestamp"):
        return None
    uids = {item["metadata"]["uid"] for item in going or []}
    try:
        left = [item for item in cluster.everything_in(settings.namespace) if not _goes_with(item, uids)]
    except AccessError:
        return None  # What cannot be seen may be there.
    return None if left else namespace


def _goes_with(item: Object, uids: set[str]) -> bool:
    """Whether an object is one of those, or goes when what owns it does. (Of what is owned twice over, the owner may be
    owned itself: a pod by a ReplicaSet.) Endpoints go a moment after their Service, which does not own them."""
    if item["kind"] == "Endpoints":
        return True
    return item["metadata"].get("uid") in uids or bool(item["metadata"].get("ownerReferences"))


def _made_for(cluster: Cluster, claim: Object) -> Iterator[Object]:
    """The volume that a driver made for a claim, and deletes with its disk when the claim is gone."""
    name = claim["spec"].get("volumeName")
    volume = cluster.get("PersistentVolume", name) if name else None
    if volume and volume["spec"].get("persistentVolumeReclaimPolicy") == "Delete":
        yield volume


def _wait_until_gone(cluster: Cluster, settings: Settings, item: Object, say: Say) -> None:
    kind, name, namespace = item["kind"], item["metadata"]["name"], item["metadata"].get("namespace")

    def there() -> bool:
        found = cluster.get(kind, name, namespace)
        return found is not None and found["metadata"].get("uid") == item["metadata"].get("uid")

    if not there():
        return
    say(f"waiting for {kind}/{name} to go")
    deadline = time.monotonic() + leftovers.GOES_SECONDS
    with cluster.follow(Subject(kind, namespace, fields=f"metadata.name={name}")) as changes:
        for _ in changes.until(deadline):
            if not there():
                return
    hanging = leftovers.hanging(cluster, settings)
    where = f"kubectl {f'-n {namespace} ' if namespace else ''}get {kind.lower()} {name} -o yaml"
    raise InconclusiveError(
        "; ".join(hanging) or f"{kind}/{name} does not go. See what holds it, `{where}`, then run again"
    )


def _is_ours_alone(item: Object) -> bool:
    """Whether nobody else has ever written it."""
    metadata = item["metadata"]
    managers = {entry.get("manager") for entry in metadata.get("managedFields") or [] if not entry.get("subresource")}
    ours = (metadata.get("labels") or {}).get("app.kubernetes.io/managed-by") == FIELD_MANAGER
    return ours and managers <= {FIELD_MANAGER}


def _is(item: Object, kind: str, name: str) -> bool:
    return bool(item["kind"] == kind and item["metadata"]["name"] == name)
