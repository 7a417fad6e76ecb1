"""One object of a deployment: put into the cluster, and seen out of it."""

from __future__ import annotations

from serving.clients.kubernetes import ApiError, Cluster, ConflictError, Object, Subject, kinds
from serving.errors import InconclusiveError, RequestError
from serving.log import Say


def put(cluster: Cluster, item: Object, say: Say) -> None:
    """Applies what may change; makes what may not, unless it is there.

    Raises RequestError for what the cluster refuses, InconclusiveError for what is on its way out.
    """
    what = f"{item['kind']}/{item['metadata']['name']}"
    if item["kind"] == "PodMonitoring" and not cluster.serves(item["kind"]):
        say(f"left out {what}: the cluster has no managed Prometheus")
        return
    try:
        if not kinds.find(item["kind"]).immutable:
            cluster.apply(item)
        elif not _create(cluster, item):
            say(f"{what} is there")
            return
    except ApiError as error:
        raise _refused(item, error) from error
    say(f"applied {what}")


def would_take(cluster: Cluster, item: Object) -> None:
    """Raises RequestError for what the cluster would refuse if it were applied. Writes nothing."""
    try:
        cluster.would_be(item)
    except ApiError as error:
        raise _refused(item, error) from error


def _refused(item: Object, error: ApiError) -> RequestError:
    return RequestError(
        f"the cluster refuses {item['kind']}/{item['metadata']['name']}: {error}. `patches`, `labels` and "
        "`annotations` in the settings can meet its rules"
    )


def is_gone(cluster: Cluster, item: Object, deadline: float) -> bool:
    """Waits until this very object is no longer there, or for `deadline` (of time.monotonic)."""
    kind, name, namespace = item["kind"], item["metadata"]["name"], item["metadata"].get("namespace")
    uid = item["metadata"]["uid"]

    def is_there() -> bool:
        return any(
            found["metadata"]["uid"] == uid for found in cluster.list(kind, namespace, fields=f"metadata.name={name}")
        )

    if not is_there():
        return True
    with cluster.follow(Subject(kind, namespace, fields=f"metadata.name={name}")) as changes:
        for change in changes.until(deadline):
            if change and change[0] == "DELETED" and change[1]["metadata"]["uid"] == uid:
                return True
            if change is None and not is_there():
                return True
    return False


def _create(cluster: Cluster, item: Object) -> bool:
    """Makes an object that is never changed. Returns False when it is there: its name says that it is the same one.

    Raises InconclusiveError for one that is on its way out.
    """
    name, namespace = item["metadata"]["name"], item["metadata"].get("namespace")
    try:
        cluster.create(item)
    except ConflictError as error:
        there = next(iter(cluster.list(item["kind"], namespace, fields=f"metadata.name={name}")), None)
        if there and (there.get("status") or {}).get("phase") in ("Released", "Failed"):
            # A volume whose claim is gone: it never binds again.
            cluster.delete(there)
        elif there and not there["metadata"].get("deletionTimestamp"):
            return False
        raise InconclusiveError(
            f"{item['kind']}/{name} of an earlier attempt is being deleted. Run again; if it stays, see what holds it: "
            f"`kubectl get {item['kind'].lower()} {name}{f' -n {namespace}' if namespace else ''} -o yaml` (finalizers)"
        ) from error
    return True
