"""The Kubernetes objects of a deployment: base, then its features, filled in, patched and labelled."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving import features, names, scenarios
from serving.clients.kubernetes import kinds
from serving.clients.kubernetes.kinds import Object
from serving.errors import RequestError
from serving.rendering import access, engine, manifests, patches
from serving.rendering.manifests import Scope
from serving.settings import Settings
from serving.values import in_seconds
from serving.weights.release import Release

APP = "app.kubernetes.io/name"
_OF_OTHERS_TOO = ("Namespace", "ServiceAccount")
"""What other deployments may use too: no deployment's label is on it."""

_ORIGIN = {"model", "commit", "weights_key", "weights_uri", "adapters_key", "disk_image"}
"""What a generation's Deployment says of its release (serving/deployment/record.py: Known)."""
ENTRIES = ("Service", "HTTPRoute")
"""The kinds of an entry, of which a deployment has one."""
STOP_DELAY_SECONDS = 10
"""How long a pod that goes still serves: load balancers need that long to hear of it."""
_TEARDOWN_SECONDS = 20
_STARTUP_PERIOD_SECONDS = 2


@dataclass(frozen=True)
class Rendered:
    """What deploy applies: `shared` first, then `generation`, each in order."""

    shared: list[Object]
    generation: list[Object]
    digest: str
    """Digest over all of it and the replicas, the run, the commit and the component image left out; the Deployment
    carries it as the annotation names.SETTINGS."""


def render(settings: Settings, release: Release) -> Rendered:
    """The objects of the release's generation and those that all generations share.

    Raises RequestError for a patch that matches no object or takes away what the project finds its objects by.
    """
    common, own = shared(settings), generation(settings, release)
    named = ("Deployment", names.server(release.generation))
    (server,) = (item for item in own if (item["kind"], item["metadata"]["name"]) == named)
    if release.api_key_version:
        # A container reads its key when it starts: with another version the pods are replaced, in place.
        pods = server["spec"]["template"]["metadata"]
        pods.setdefault("annotations", {})[names.KEY_VERSION] = release.api_key_version
    others = [*admin(settings), *temporary(settings, release), *entry_objects(settings, release.generation)]
    _refuse_idle_patches(settings, [*own, *common], others)
    # Replicas are in no object (serving/deployment/replicas.py), and a change of them alone is one to apply.
    ageless = [_of_any_version(settings, item) for item in own]
    digest = digest_of([*common, *ageless, {"replicas": settings.serving.replicas}])
    for item in own:
        item["metadata"]["labels"][names.RUN] = release.run_id
    server["metadata"].setdefault("annotations", {}).update(
        {
            names.SETTINGS: digest,
            names.RELEASE: release.model_dump_json(include=_ORIGIN, exclude_defaults=True),
        }
    )
    return Rendered(shared=common, generation=own, digest=digest)


def rendered_for(settings: Settings, release: Release) -> str:
    """The YAML documents that a run applies, for a reader and for `kubectl diff -f -`."""
    rendered = render(settings, release)
    return as_yaml([namespace(settings), *rendered.shared, *rendered.generation])


def as_yaml(documents: list[Object]) -> str:
    """Objects as kubectl reads them."""
    import yaml

    return yaml.safe_dump_all(documents, allow_unicode=True, sort_keys=False, width=120)


def digest_of(items: list[Object]) -> str:
    """16 hex digits by which a change of rendered objects is seen."""
    text = json.dumps(items, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _of_any_version(settings: Settings, item: Object) -> Object:
    """The object without saying which component image its init containers are of: a new version of this tool rolls no
    server by itself, and goes along with the next change."""
    text = json.dumps(item).replace(json.dumps(engine.component_image(settings)), '"components"')
    found: Object = json.loads(text)
    return found


# -- the scopes ---------------------------------------------------------------------------------------------


def admin(settings: Settings) -> list[Object]:
    """What an administrator applies before the first run: the namespace, and the rights of the pipeline's identity,
    which are those that its steps use and no others."""
    rights = {
        "record": names.record(settings),
        "pipeline_service_account": settings.pipeline_service_account,
        "api_key_rules": access.api_key_rules(settings),
        # Which generation the entry selects does not matter to who may write it.
        "object_rules": access.rules(settings, shared(settings), entry_objects(settings, "")),
        "cluster_rules": access.cluster_rules(settings, shared(settings)),
        "cluster_resources": access.cluster_resources(),
    }
    return _scope(settings, "admin", _values(settings) | rights)


def namespace(settings: Settings) -> Object:
    """The namespace, as it is made where there is none."""
    return next(item for item in admin(settings) if item["kind"] == "Namespace")


def shared(settings: Settings) -> list[Object]:
    """What all generations of the deployment share."""
    return _scope(settings, "shared", _values(settings))


def generation(settings: Settings, release: Release) -> list[Object]:
    """What the release's generation alone owns, what a pod needs before it."""
    return _scope(settings, "generation", _values(settings, release), release.generation)


def scaling(settings: Settings, generation: str) -> list[Object]:
    """What scales a generation, whatever it serves: those of its objects that are a scaling feature's. Empty where the
    settings alone say how many pods there are."""
    values = _values(settings) | _scaling_values(settings, generation)
    items = [
        manifests.fill(manifest, values, path)
        for feature in settings.chosen_features
        if feature in scenarios.COLUMNS["scaling"]
        for path, manifest in manifests.of(feature, "generation", features.variant(settings, feature)).items()
    ]
    return [patched(settings, _labelled(settings, item, generation)) for item in kinds.in_order(items)]


def temporary(settings: Settings, release: Release) -> list[Object]:
    """What is there while the release's generation is made, and goes when it is, of the run that makes it."""
    values = _values(settings, release) | _entered(settings, release.generation)
    items = _scope(settings, "temporary", values, release.generation)
    for item in items:
        item["metadata"]["labels"][names.RUN] = release.run_id
    return items


def entry(settings: Settings, shares: Mapping[str, int]) -> Object:
    """The one object that says who is live, by the `shares` that generations have of the requests: 100 for one alone.
    A Service sends them all to one. Promote alone applies it."""
    each = {generation: _entry(settings, generation) for generation in shares}
    item = next(iter(each.values()))
    if item["kind"] != "HTTPRoute":
        if len(each) != 1:
            raise ValueError(f"a {item['kind']} sends requests to one generation, not to {', '.join(shares)}")
        return item
    for number, rule in enumerate(item["spec"]["rules"]):
        rule["backendRefs"] = [
            {**backend, "weight": shares[generation]}
            for generation, own in each.items()
            for backend in copy.deepcopy(own["spec"]["rules"][number].get("backendRefs", []))
        ]
    return item


def _entry(settings: Settings, generation: str) -> Object:
    (item,) = (item for item in entry_objects(settings, generation) if item["kind"] in ENTRIES)
    return item


def followers(settings: Settings, generation: str) -> list[Object]:
    """What goes along with the entry: objects of one generation alone that clients know by a name that stays."""
    return [item for item in entry_objects(settings, generation) if item["kind"] not in ENTRIES]


def entry_objects(settings: Settings, generation: str) -> list[Object]:
    """What clients come in by."""
    values = _values(settings) | {"generation": generation} | _entered(settings, generation)
    return _scope(settings, "entry", values)


def _entered(settings: Settings, generation: str) -> dict[str, Any]:
    """Where an entry sends a generation's requests."""
    return {key: value for _, own in features.answers(settings, "entered", generation) for key, value in own.items()}


def patched(settings: Settings, item: Object, *, by_name: bool = False) -> Object:
    """The object with the settings' patches for it merged in, or those alone that name it. Raises RequestError for one
    that takes away what the project finds its objects by."""
    for patch in settings.patches:
        if _matches(patch, item) and (not by_name or "name" in patch.get("metadata", {})):
            item = _patched(item, _naming(item, patch))
    return item


# -- putting together ---------------------------------------------------------------------------------------


def _scope(settings: Settings, scope: Scope, values: dict[str, Any], generation: str = "") -> list[Object]:
    """The objects of a scope: base's with the features' patches, then the features' own; labelled, with the settings'
    patches, in the order in which they are applied."""
    items: list[Object] = []
    for path, manifest in manifests.of(manifests.BASE, scope).items():
        item = manifests.fill(manifest, values, path)
        for feature in settings.chosen_features:
            if item["kind"] == "Deployment":
                _add_copies(item, feature)
            for where, patch in manifests.of(feature, "patch", features.variant(settings, feature)).items():
                if where.endswith(f"/{_file_name(item['kind'])}"):
                    item = patches.apply(item, manifests.fill(patch, values, where))
        items.append(item)
    items = [patched(settings, _labelled(settings, item, generation)) for item in items]
    of_base = {item["kind"] for item in items}
    copies = {kind: own for _, found in features.answers(settings, "each") for kind, own in found.items()}
    for feature in settings.chosen_features:
        for path, manifest in manifests.of(feature, scope, features.variant(settings, feature)).items():
            for own in copies.get(manifest["kind"], [{}]):
                item = manifests.fill(manifest, values | own, path)
                if scope == "admin":
                    # What an administrator makes for a feature is not the deployment's to take away.
                    items.append(patched(settings, _marked(settings, item, {}), by_name=True))
                else:
                    # A patch for a kind is for the server's own object of it; another of the kind is named.
                    item = _labelled(settings, item, generation)
                    items.append(patched(settings, item, by_name=item["kind"] in of_base))
    return kinds.in_order(items)


def _add_copies(item: Object, feature: str) -> None:
    """Gives the server's pods the containers that the feature's patch makes others of."""
    containers = item["spec"]["template"]["spec"]["containers"]
    for name, copied in getattr(features.module(feature), "COPIES", {}).items():
        (found,) = (each for each in containers if each["name"] == name)
        containers.append({**copy.deepcopy(found), "name": copied})


def _file_name(kind: str) -> str:
    """PodDisruptionBudget → pod-disruption-budget.yaml."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", kind).lower() + ".yaml"


def _labelled(settings: Settings, item: Object, generation: str) -> Object:
    labels: dict[str, str] = {}
    if generation or item["kind"] not in _OF_OTHERS_TOO:
        labels |= {APP: "vllm", names.DEPLOYMENT: settings.name}
        if not kinds.find(item["kind"]).namespaced:
            labels[names.NAMESPACE] = settings.namespace
    if generation:
        labels[names.GENERATION] = generation
    return _marked(settings, item, labels)


def _marked(settings: Settings, item: Object, own: dict[str, str]) -> Object:
    """The object with its `own` labels, the project's and the settings', and their annotations. Pods whose manifest
    says what they are, another program's than the server's, have the labels that it gives them."""
    labels = {**settings.labels, "app.kubernetes.io/managed-by": "gemma-gke-pipelines", **own}
    for metadata in _metadata(item):
        given = metadata.get("labels", {})
        metadata["labels"] = given | {key: value for key, value in labels.items() if APP not in given or key not in own}
        if settings.annotations:
            metadata["annotations"] = {**settings.annotations, **metadata.get("annotations", {})}
    return item


def _metadata(item: Object) -> list[Object]:
    """The metadata of the object, and of its pods."""
    template = item.get("spec", {}).get("template")
    return [item["metadata"], *([template.setdefault("metadata", {})] if isinstance(template, dict) else [])]


# -- the settings' patches ----------------------------------------------------------------------------------


def _refuse_idle_patches(settings: Settings, applied: list[Object], others: list[Object]) -> None:
    for patch in settings.patches:
        # Jobs are made as they are needed (serving/deployment/job.py).
        if patch["kind"] != "Job" and not any(_matches(patch, item) for item in [*applied, *others]):
            there = ", ".join(f"{item['kind']} {item['metadata']['name']}" for item in [*applied, *others])
            raise RequestError(f"patches: {_called(patch)} matches no object. There are: {there}")


def _matches(patch: Object, item: Object) -> bool:
    whole = item["metadata"]["name"]
    name = patch.get("metadata", {}).get("name", whole)
    return bool(patch["kind"] == item["kind"] and name in (whole, _nameless(item)))


def _nameless(item: Object) -> str:
    """What an object is called whatever its generation, which nobody can foresee: vllm-g0123456789 is vllm."""
    generation = (item["metadata"].get("labels") or {}).get(names.GENERATION, "")
    return str(item["metadata"]["name"]).removesuffix(f"-{generation}") if generation else ""


def _naming(item: Object, patch: Object) -> Object:
    """The patch with the object's own name, where it says it without the generation."""
    if patch.get("metadata", {}).get("name") in (None, item["metadata"]["name"]):
        return patch
    return {**patch, "metadata": {**patch["metadata"], "name": item["metadata"]["name"]}}


def _called(patch: Object) -> str:
    return " ".join(filter(None, [patch["kind"], patch.get("metadata", {}).get("name", "")]))


def _patched(item: Object, patch: Object) -> Object:
    """The object with the patch merged in. What the project finds it by has to stay."""
    if item["kind"] == "Deployment" and "replicas" in (patch.get("spec") or {}):
        raise RequestError(f"patches: {_called(patch)} sets spec.replicas: set serving.replicas instead")
    if item["kind"] == "HTTPRoute" and "rules" in (patch.get("spec") or {}):
        # Server-side apply knows the rules as one value alone: whoever writes a part of them owns the weights too.
        raise RequestError(
            f"patches: {_called(patch)} changes spec.rules, which say who is live: promotion alone writes them. What "
            "else a route is to do belongs into a policy, or a route of your own"
        )
    merged = patches.apply(item, patch)
    for before, after in zip(_metadata(item), _metadata(merged), strict=True):
        for field in ("name", "namespace"):
            if before.get(field) != after.get(field):
                raise RequestError(f"patches: {_called(patch)} changes metadata.{field}, by which the project finds it")
        kept = {key: value for key, value in before["labels"].items() if key in (APP, *names.LABELS)}
        if kept.items() - (after.get("labels") or {}).items():
            raise RequestError(
                f"patches: {_called(patch)} changes the labels {', '.join(kept)}, which are the project's"
            )
    if _is_open_to_all(merged):
        raise RequestError(
            f"patches: {_called(patch)} opens the engine's port to anybody, whose key guards /v1 alone. In your own "
            f"network it may be: annotate it with {_BALANCER}: Internal"
        )
    return merged


_BALANCER = "networking.gke.io/load-balancer-type"
"""The annotation that says whether a load balancer has an address of the network's own.
https://cloud.google.com/kubernetes-engine/docs/how-to/internal-load-balancing"""


def _is_open_to_all(item: Object) -> bool:
    balanced = item["kind"] == "Service" and (item.get("spec") or {}).get("type") == "LoadBalancer"
    return balanced and (item["metadata"].get("annotations") or {}).get(_BALANCER) != "Internal"


# -- what the placeholders stand for ------------------------------------------------------------------------


def _values(settings: Settings, release: Release | None = None) -> dict[str, Any]:
    """Base's values, and those of the deployment's features. Those of a generation are there only with its release."""
    values: dict[str, Any] = {
        "name": settings.name,
        "namespace": settings.namespace,
        "service_account": settings.serving.service_account,
        "port": names.PORT,
        "clients": _clients(settings),
    }
    if release:
        values |= _generation_values(settings, release)
    for _, own in features.answers(settings, "values", release):
        values |= own
    return values


def _generation_values(settings: Settings, release: Release) -> dict[str, Any]:
    serving, machine = settings.serving, engine.accelerator(settings, release)
    ready_seconds = in_seconds(serving.ready_timeout)
    other = engine.beside(settings, release)
    on_another = (
        {"beside_image": engine.pod_image(*other), "beside_flags": engine.engine_flags(*other)} if other else {}
    )
    return {
        **on_another,
        **_scaling_values(settings, release.generation),
        "cluster_wide_name": names.cluster_wide(settings, release.generation),
        "bucket": settings.bucket,
        # With accelerators for one generation alone, a pod goes before its successor comes.
        "max_surge": 1 if settings.rollout == "beside" else 0,
        "max_unavailable": 0 if settings.rollout == "beside" else 1,
        "min_available": max(1, serving.replicas - 1),
        "image": engine.pod_image(settings, release),
        "component_image": engine.component_image(settings),
        "model_path": engine.MODEL_PATH,
        "engine_flags": engine.engine_flags(settings, release),
        "port_text": str(names.PORT),
        "api_key": engine.api_key(settings),
        "host": {
            "cpu": machine["cpu"],
            "memory": machine["memory"],
            "ephemeral-storage": machine["ephemeral_storage"],
        },
        "shared_memory": engine.shared_memory(settings),
        "startup_failures": math.ceil(ready_seconds / _STARTUP_PERIOD_SECONDS),
        "deadline_seconds": math.ceil(in_seconds(serving.capacity_timeout) + ready_seconds) + 60,
        "stop_delay_seconds": STOP_DELAY_SECONDS,
        "grace_seconds": STOP_DELAY_SECONDS + math.ceil(in_seconds(serving.request_timeout)) + _TEARDOWN_SECONDS,
    }


def _scaling_values(settings: Settings, generation: str) -> dict[str, Any]:
    """A generation's names, and what scales its server."""
    server = names.server(generation)
    values: dict[str, Any] = {"generation": generation, "server": server}
    for _, own in features.answers(settings, "scaled", server):
        values |= own
    return values


def _clients(settings: Settings) -> list[Object]:
    """Who may call the server, as peers of a NetworkPolicy."""
    # Managed Prometheus reads metrics from gmp-system; on Autopilot from gke-gmp-system.
    namespaces = ["gmp-system", "gke-gmp-system", *settings.serving.client_namespaces]
    return [
        {"podSelector": {}},
        {
            "namespaceSelector": {
                "matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": namespaces}]
            }
        },
    ]
