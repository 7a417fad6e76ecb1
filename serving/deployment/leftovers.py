"""What dead runs left in the cluster, and how a generation is taken out of it.

A generation's objects belong in the cluster while the record names the generation. A Job belongs to the run that made
it. Everything else with the deployment's label is left over from a run that died.
"""

from __future__ import annotations

import datetime
import time

from serving import names
from serving.clients.kubernetes import ApiError, Cluster, Object
from serving.deployment import gateway, replicas
from serving.deployment.record import Record
from serving.log import Say
from serving.rendering import access, render
from serving.settings import Settings
from serving.weights.release import Release

_CLAIM = "PersistentVolumeClaim"
_FILLS_A_CLAIM = "GCPDataSource"
GOES_SECONDS = 240
"""How long a claim may take to go: as long as a pod that still uses it."""


def find(cluster: Cluster, settings: Settings, record: Record, run_id: str, generation: str = "") -> list[Object]:
    """Jobs of other runs than `run_id`, and objects of generations that neither the record nor `generation` names, in
    the order in which they are to be deleted. Reads only."""
    jobs = [
        job
        for job in cluster.list("Job", settings.namespace, labels=names.selector(settings))
        if _label(job, names.RUN) != run_id
    ]
    belongs = record.named | {generation}
    return jobs + [item for item in _owned(cluster, settings) if _label(item, names.GENERATION) not in belongs]


def running_though_kept(cluster: Cluster, settings: Settings, record: Record) -> list[Object]:
    """Deployments of kept generations that a run died before scaling to zero: they cost accelerators for nothing."""
    kept = set(record.kept) - {record.live, record.validated}
    return [
        deployment
        for deployment in cluster.list("Deployment", settings.namespace, labels=names.selector(settings))
        if _label(deployment, names.GENERATION) in kept and replicas.wanted(deployment) > 0
    ]


def remove(cluster: Cluster, settings: Settings, record: Record, run_id: str, generation: str, say: Say) -> list[str]:
    """Takes away what dead runs left, but for what belongs to `generation`, which this run goes on with.

    Returns what it took away, as `Kind/name`.
    """
    removed = delete(cluster, find(cluster, settings, record, run_id, generation), say)
    for deployment in running_though_kept(cluster, settings, record):
        name = deployment["metadata"]["name"]
        cluster.patch("Deployment", name, settings.namespace, {"spec": {"replicas": 0}}, subresource="scale")
        say(f"scaled Deployment/{name} to zero: a run died before it could")
        removed.append(f"Deployment/{name}")
    return removed


def remove_run(cluster: Cluster, settings: Settings, record: Record, run_id: str, say: Say) -> list[str]:
    """Takes away what the run itself leaves: its Jobs, and its generation unless the record names it."""
    label = f"{names.selector(settings)},{names.RUN}={run_id}"
    own = cluster.list("Job", settings.namespace, labels=label) + [
        item
        for item in _owned(cluster, settings)
        if _label(item, names.RUN) == run_id and _label(item, names.GENERATION) not in record.named
    ]
    return delete(cluster, own, say)


def let_rest(cluster: Cluster, settings: Settings, record: Record, generation: str, say: Say) -> None:
    """Gives a generation's accelerators back, unless it serves or waits validated for a person. Its objects stay, for
    another attempt of the step that was told to end, or for whoever cleans up."""
    there = cluster.get("Deployment", names.server(generation), settings.namespace)
    if there and replicas.wanted(there) and generation not in (record.live, record.validated):
        replicas.scale(cluster, settings, generation, 0)
        gateway.scale_picker(cluster, settings, generation, 0)
        say(f"scaled Deployment/{names.server(generation)} to zero: nothing serves from it yet")


def remove_generation(cluster: Cluster, settings: Settings, generation: str, say: Say) -> list[str]:
    """Takes away all that a generation alone owns (never weights)."""
    return delete(cluster, [o for o in _owned(cluster, settings) if _label(o, names.GENERATION) == generation], say)


def remove_temporary(cluster: Cluster, settings: Settings, release: Release, say: Say) -> list[str]:
    """Takes away what was needed only while the release's generation was made."""
    wanted = {(item["kind"], item["metadata"]["name"]) for item in render.temporary(settings, release)}
    there = _owned(cluster, settings) if wanted else []
    return delete(cluster, [item for item in there if (item["kind"], item["metadata"]["name"]) in wanted], say)


def _owned(cluster: Cluster, settings: Settings) -> list[Object]:
    """Everything of the deployment that carries a generation's label, of whatever features, in the order in which it is
    taken away: a server first, so that its pods let go of the volume, the claim before the volume that it binds."""
    found: list[Object] = []
    for kind in reversed(access.owned_kinds()):
        deployment = names.selector(settings, cluster_scoped=not kind.namespaced)
        namespace = settings.namespace if kind.namespaced else None
        found += list_served(cluster, kind.kind, namespace, f"{deployment},{names.GENERATION}")
    return found


def list_served(cluster: Cluster, kind: str, namespace: str | None, labels: str) -> list[Object]:
    """The objects of a kind that the labels select; none where the cluster does not have the kind."""
    try:
        return cluster.list(kind, namespace, labels=labels)
    except ApiError as error:
        if error.status == 404 and not cluster.serves(kind):
            return []  # Another feature's kind, which this cluster does not have.
        raise


def delete(cluster: Cluster, items: list[Object], say: Say) -> list[str]:
    """Deletes these, in their order; what fills a claim stays while that does. Returns what went, as `Kind/name`."""
    deleted = []
    for item in items:
        what = f"{item['kind']}/{item['metadata']['name']}"
        if item["kind"] == _FILLS_A_CLAIM and _has_claim(cluster, item):
            say(f"{what} stays until the {_CLAIM} that is filled from it is gone; the next run takes it away")
        elif cluster.delete(item):
            deleted.append(what)
            say(f"deleted {what}")
    return deleted


def _has_claim(cluster: Cluster, source: Object) -> bool:
    """Whether the claim that is filled from this source is still there, after it had time to go: without its source it
    would never go. (It is listed again and again: of what another feature made, to list and to delete is our right.)"""
    name, namespace = source["metadata"]["name"], source["metadata"]["namespace"]
    give_up = time.monotonic() + GOES_SECONDS
    while cluster.list(_CLAIM, namespace, fields=f"metadata.name={name}"):
        if time.monotonic() > give_up:
            return True
        time.sleep(1)
    return False


def hanging(cluster: Cluster, settings: Settings) -> list[str]:
    """The deployment's claims that have been going for long and do not go, each in words that say what helps. Their
    disks are paid for."""
    now = datetime.datetime.now(datetime.UTC)
    found = []
    for claim in cluster.list(_CLAIM, settings.namespace, labels=names.selector(settings)):
        name, since = claim["metadata"]["name"], claim["metadata"].get("deletionTimestamp")
        if since and (now - datetime.datetime.fromisoformat(since)).total_seconds() > GOES_SECONDS:
            found.append(
                f"{_CLAIM}/{name} is being deleted since {since} and does not go ({_finalizers(claim)}). See which pod "
                f"uses it, `kubectl -n {settings.namespace} describe pvc {name}`; where none does, `kubectl -n "
                f'{settings.namespace} patch pvc {name} --type=merge -p \'{{"metadata":{{"finalizers":null}}}}\'`'
            )
    return found


def _finalizers(item: Object) -> str:
    return ", ".join(item["metadata"].get("finalizers") or ["no finalizer"])


def _label(item: Object, label: str) -> str:
    return str((item["metadata"].get("labels") or {}).get(label, ""))
