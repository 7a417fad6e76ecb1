"""What a run would do now, and whether all is there that it needs, before anything is spent. Reads only."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

from components.resolve_model import step as resolve
from components.resolve_model.decision import decide
from pipelines.oversight import needs as checks
from pipelines.oversight import objects, runs
from pipelines.oversight.needs import Needs
from pipelines.vertex import preflight, schedule
from serving import features, names
from serving.clients import google, kubernetes, proxies
from serving.clients.compute import Compute
from serving.clients.google import ClusterTraits
from serving.clients.kubernetes import Cluster, Object
from serving.deployment import leftovers, record, replacement
from serving.deployment.record import Record
from serving.progress import size
from serving.rendering import render
from serving.settings import Settings
from serving.weights.release import Release

Change = dict[str, Any]
"""`{"what", "change", "details"}`: exists, create, change, delete, uses or unknown."""

_RUN = "plan"


def plan(settings: Settings, now: datetime.datetime) -> dict[str, Any]:
    """`{"ready", "changes": [{"what", "change", "details"}], "missing": [{"what", "why", "command"}]}`.

    Raises AccessError without credentials, with which nobody can tell anything.
    """
    google.check_credentials()
    needs, changes = Needs(settings.project), list[Change]()
    if checks.of_place(needs, settings):
        has_bucket = checks.of_project(needs, settings)
        if has_bucket:
            changes.append(_is_there(f"gs://{settings.bucket}"))
        if traits := checks.of_cluster(needs, settings):
            changes += _of_cluster(needs, settings, traits, has_bucket=has_bucket)
        changes += _of_schedule(needs, settings, now)
    return {"ready": not needs.missing, "changes": [*changes, *needs.unknown], "missing": needs.missing}


def _is_there(what: str, *details: str) -> Change:
    return {"what": what, "change": "exists", "details": list(details)}


def _of_cluster(needs: Needs, settings: Settings, traits: ClusterTraits, *, has_bucket: bool) -> Iterator[Change]:
    kind = "Autopilot" if traits.autopilot else "Standard"
    yield _is_there(f"cluster {settings.cluster}", f"{kind}, GKE {traits.version}, {', '.join(traits.zones)}")
    for pool in traits.node_pools:
        yield _is_there(f"node pool {pool.name}", *(f"disk of {image}" for image in pool.disk_images))
    needs.look("GKE version", lambda: features.demand(settings, "suits", lambda: traits))
    if has_bucket:
        yield from checks.of_pods(needs, settings)
    cluster = needs.look("cluster", lambda: kubernetes.connect(settings))
    if cluster:
        needs.look("kinds of the cluster", lambda: features.demand(settings, "served", cluster.has_group))
    known = needs.look("record", lambda: record.read(cluster, settings)) if cluster else None
    serves = bool(known and known.live)
    lines = checks.of_accelerators(needs, settings, traits, serves=serves)
    yield {"what": "accelerators", "change": "uses", "details": lines}
    release = _release(needs, settings, known)
    if cluster and known:
        checks.of_rights(needs, cluster, settings)
    if release:
        yield from _of_release(needs, settings, release, traits, has_bucket=has_bucket)
    if cluster and known and release and has_bucket:
        yield from needs.look("cluster", lambda: list(_of_objects(needs, cluster, settings, known, release))) or []


def _release(needs: Needs, settings: Settings, known: Record | None) -> Release | None:
    """What a run would deploy, as far as that can be known before: the model's licence is one of the gates."""
    found = needs.look(f"model {settings.model}", lambda: resolve.look_up(settings))
    if found is None:
        return None
    needs.look(f"model {settings.model}", lambda: resolve.check_architecture(settings, found.architecture))
    key = needs.look_if_allowed("API key", lambda: resolve.key_version(settings)) or ""
    zones = needs.look("zones", lambda: resolve.zones(settings))
    ranges = needs.look("proxy-only subnet", lambda: proxies.ranges(settings))
    if zones is None or ranges is None:
        return None
    live = known.live if known else ""
    return needs.look(
        f"engine of {settings.model}",
        lambda: resolve.name_release(
            settings, _RUN, found, live=live, key_version=key, zones=zones, proxy_ranges=ranges
        ),
    )


def _of_release(
    needs: Needs, settings: Settings, release: Release, traits: ClusterTraits, *, has_bucket: bool
) -> Iterator[Change]:
    """Weights and disk image."""
    damage = needs.look("bucket", lambda: resolve.damage(*release.weights_uris)) if has_bucket else None
    if damage is not None:
        brings = size(release.weights_bytes) if release.weights_bytes else "all of it"
        details = [f"a run brings {brings}"] if damage else []
        yield {"what": release.weights_uri, "change": "create" if damage else "exists", "details": details}
    if release.disk_image:
        image = needs.look_if_allowed("disk image", lambda: Compute(settings.project).image(release.disk_image))
        baked = image is not None and image.status == "READY"
        word, details = ("exists", []) if baked else ("create", ["a run bakes it"])
        yield {"what": f"disk image {release.disk_image}", "change": word, "details": details}
        if not baked:
            checks.of_baking(needs, settings, release)
        else:
            needs.look("node pool", lambda: features.demand(settings, "prepared", release, lambda: traits))


# -- in the cluster -------------------------------------------------------------------------------------------


def _of_objects(
    needs: Needs, cluster: Cluster, settings: Settings, known: Record, release: Release
) -> Iterator[Change]:
    """What a run would write in the cluster, as the API server says it, and what it would take away."""
    situation = resolve.look_around(cluster, settings, release, known)
    deployment = cluster.get("Deployment", names.server(release.generation), settings.namespace)
    labels = (deployment or {}).get("metadata", {}).get("labels") or {}
    as_made = release.model_copy(update={"run_id": labels.get(names.RUN, _RUN)})
    rendered = needs.look("settings", lambda: render.render(settings, as_made))
    if rendered is None:
        return
    decision = needs.look("release", lambda: decide(settings, release, known, situation, rendered.digest))
    if decision is None:
        return
    verdict = ("change" if deployment else "create") if decision.proceed else "exists"
    yield {"what": f"generation {release.generation}", "change": verdict, "details": [decision.reason]}
    if not decision.proceed:
        return  # What else is not as it was made, `status` tells: no run changes it.
    if settings.rollout == "replace" and known.live not in ("", release.generation):
        nothing_serves = replacement.announcement(known, release.generation)
        yield {"what": f"generation {known.live}", "change": "change", "details": [nothing_serves]}
    there = cluster.get("Namespace", settings.namespace) is not None
    yield objects.change(render.namespace(settings), "exists" if there else "create")
    temporary = render.temporary(settings, release) if deployment is None else []
    for body in [*rendered.shared, *temporary, *rendered.generation]:
        in_place = settings.rollout == "replace" and body["kind"] == "Deployment"
        yield from _compared(needs, cluster, body, namespace_is_there=there, in_place=in_place)
    entry = render.entry(settings, {release.generation: 100})
    now = record.serving_generation(record.entry(cluster, settings))
    words = [f"sends requests to {release.generation}" + (f" instead of {now}" if now else "")]
    if settings.has_gateway and settings.canary.steps and now not in ("", release.generation):
        shares = ", ".join(f"{percent} %" for percent in settings.canary.steps)
        words.append(f"in steps ({shares}), each held for {settings.canary.hold}: both have their pods that long")
    yield objects.change(entry, "change" if now else "create", words if now != release.generation else [])
    yield from _what_goes(cluster, settings, known, release)


def _compared(
    needs: Needs, cluster: Cluster, body: Object, *, namespace_is_there: bool, in_place: bool
) -> Iterator[Change]:
    what = f"{body['kind']}/{body['metadata']['name']}"
    found = needs.look(what, lambda: objects.compare(cluster, body))
    if found is None:
        return
    if found["change"] == "create" and (namespace_is_there or "namespace" not in body["metadata"]):
        # Whether the API server would take it, admission included.
        needs.look(what, lambda: cluster.would_be(body))
    if in_place and any(field.startswith("spec.template") for field in found["details"]):
        found["details"].append("rollout: replace: a pod goes before its successor comes, and serves nothing meanwhile")
    yield found


def _what_goes(cluster: Cluster, settings: Settings, known: Record, release: Release) -> Iterator[Change]:
    for item in leftovers.find(cluster, settings, known, _RUN, release.generation):
        yield objects.change(item, "delete", ["a dead run left it"])
    if known.live and known.live != release.generation:
        kept = [known.live, *(name for name in known.kept if name != release.generation)]
        for name in kept[: settings.keep_previous]:
            yield {"what": f"generation {name}", "change": "change", "details": ["is kept at zero replicas"]}
        for name in kept[settings.keep_previous :]:
            yield {"what": f"generation {name}", "change": "delete", "details": ["beyond keep_previous"]}


# -- the schedule ---------------------------------------------------------------------------------------------


def _of_schedule(needs: Needs, settings: Settings, now: datetime.datetime) -> Iterator[Change]:
    vertex = needs.look("Vertex AI", lambda: runs.reached(settings))
    if vertex is None:
        return
    found = needs.look("schedule", lambda: schedule.find(vertex, settings))
    if not settings.schedule.cron:
        if found:
            words = "the settings have none: `gemma-pipelines schedule delete -f FILE` ends it"
            yield _is_there(f"schedule {found['name']}", words)
        return
    image = schedule.image_of(found) if found else ""
    if not any(each["what"] == "component image" for each in needs.missing):
        image = needs.look("component image", lambda: preflight.digest_of(settings)) or image
    if found is None or not image:
        yield {"what": f"schedule {settings.schedule.cron}", "change": "create", "details": [_APPLY]}
        return
    asked = schedule.wanted(settings, preflight.job_with(settings, image), vertex.parent, now)
    differs = [f"{each['field']}: {schedule.in_words(each)}" for each in schedule.drift(asked, found)]
    details = [*differs, _APPLY] if differs else []
    yield {"what": f"schedule {found['name']}", "change": "change" if differs else "exists", "details": details}


_APPLY = "by `gemma-pipelines schedule apply -f FILE`"
