"""The Kubernetes objects of a deployment: manifests/<scenario>/*.yaml with their ${placeholders} filled in.

Values go into the parsed YAML, never into its text, so that none can break out of its place. A placeholder that stands
alone keeps its value's type, and in a list a list is spliced in. A placeholder that nobody fills is an error.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving import catalog, image, names
from serving.errors import RequestError
from serving.rendering import patches
from serving.settings import Settings, in_seconds
from serving.weights import repositories
from serving.weights.release import Release

Object = dict[str, Any]

APP = "app.kubernetes.io/name"
_GENERATION = (
    "persistent-volume-{profile}",
    "persistent-volume-claim",
    "service",
    "pod-disruption-budget",
    "deployment",
)
"""A generation's own objects in the order in which they are applied: what a pod needs is there before it."""
_SHARED = ("network-policy", "pod-monitoring")
_ACCESS = ("namespace", "service-account")
_PIPELINE_ACCESS = ("namespace", "role", "role-binding", "cluster-role", "cluster-role-binding")
_STABLE = "stable-service"

MODEL_PATH = "/model"
"""Where a pod finds its weights, in every generation: the path is part of the compile cache's key."""
_ADAPTERS_AT_ONCE = 8
"""Adapters that one batch may mix: each takes its own part of a card's memory."""

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
    """Digest over all of it and the replicas, the run's label left out; the Deployment carries it as the annotation
    names.SETTINGS."""


def render(settings: Settings, release: Release) -> Rendered:
    """The objects of the release's generation and those that all generations share.

    Raises RequestError for a patch that matches no object or takes away what the project finds its objects by.
    """
    values = _values(settings, release.generation, release)
    shared = [_object(settings, file, values) for file in _SHARED]
    own = [
        _object(settings, file.format(profile=settings.volume.profile), values, release.generation)
        for file in _GENERATION
    ]
    others = [*access_objects(settings), *pipeline_access(settings), entry(settings, release.generation)]
    for patch in settings.patches:
        # Jobs are made as they are needed (serving/deployment/job.py).
        if patch["kind"] != "Job" and not any(_matches(patch, item) for item in [*shared, *own, *others]):
            there = ", ".join(f"{item['kind']} {item['metadata']['name']}" for item in [*own, *shared, *others])
            raise RequestError(f"patches: {_called(patch)} matches no object. There are: {there}")
    # Replicas are in no object (serving/deployment/replicas.py), and a change of them alone is one to apply.
    digest = _digest([*shared, *own, {"replicas": settings.serving.replicas}])
    for item in own:
        item["metadata"]["labels"][names.RUN] = release.run_id
        if item["kind"] == "Deployment":
            item["metadata"].setdefault("annotations", {})[names.SETTINGS] = digest
    return Rendered(shared=shared, generation=own, digest=digest)


def rendered_for(settings: Settings, release: Release) -> str:
    """The YAML documents that a run applies, for a reader and for `kubectl diff -f -`."""
    rendered = render(settings, release)
    return as_yaml([*access_objects(settings), *rendered.shared, *rendered.generation])


def as_yaml(documents: list[Object]) -> str:
    """Objects as kubectl reads them."""
    import yaml

    return yaml.safe_dump_all(documents, allow_unicode=True, sort_keys=False, width=120)


def access_objects(settings: Settings) -> list[Object]:
    """The namespace and the service account of the serving pods: other deployments may use them too."""
    return [_object(settings, file, _values(settings), of_deployment=False) for file in _ACCESS]


def pipeline_access(settings: Settings) -> list[Object]:
    """What an administrator applies before the first run: the namespace, and the rights of the pipeline's identity in
    it and on volumes, which are those that its steps use and no others."""
    values = _values(settings)
    return [_object(settings, file, values, of_deployment=False) for file in _PIPELINE_ACCESS]


def entry(settings: Settings, generation: str) -> Object:
    """The Service that clients call, with its selector on `generation`. Promote alone applies it."""
    return _object(settings, _STABLE, _values(settings, generation))


# -- what enters a generation's name ------------------------------------------------------------------------


def sizing(settings: Settings) -> catalog.Sizing:
    """What the catalog says about the settings' model on their accelerator."""
    return catalog.entry(
        settings.sized_like,
        settings.accelerator.type,
        settings.accelerator.count,
        settings.engine.quantization,
        max_model_len=settings.engine.max_model_len,
        gpu_memory_utilization=settings.engine.gpu_memory_utilization,
    )


def engine_image(settings: Settings) -> str:
    """The engine's image as the pods pull it: from the mirror if there is one."""
    return mirrored(settings, settings.engine.image or catalog.engine_image())


def component_image(settings: Settings) -> str:
    """The image that Jobs run: the one that the pipeline was compiled with, from the mirror if there is one."""
    return mirrored(settings, settings.images.components or image.DEFAULT)


def engine_flags(settings: Settings, max_lora_rank: int = 0) -> list[str]:
    """The flags of `vllm serve` that make the server what it is; where it listens is not among them.

    `max_lora_rank` is the release's: only the adapters themselves tell it.
    """
    size = sizing(settings)
    flags = [
        *("--served-model-name", settings.model),
        *("--max-model-len", str(size.max_model_len)),
        *("--gpu-memory-utilization", str(size.gpu_memory_utilization)),
    ]
    if size.count > 1:
        flags += ["--tensor-parallel-size", str(size.count)]
    if settings.engine.quantization:
        flags += ["--quantization", settings.engine.quantization]
    flags += _adapter_flags(settings, max_lora_rank) + _assistant_flags(settings)
    return [
        *flags,
        # Reads the shards in parallel and ahead, which is what a network file system wants.
        *("--safetensors-load-strategy", "prefetch"),
        *("--shutdown-timeout", str(math.ceil(in_seconds(settings.serving.request_timeout)))),
        *settings.engine.extra_args,
    ]


def _adapter_flags(settings: Settings, max_lora_rank: int) -> list[str]:
    adapters = sorted(settings.adapters)
    if not adapters:
        return []
    at_once = min(len(adapters), _ADAPTERS_AT_ONCE)
    return [
        *("--enable-lora", "--max-lora-rank", str(max_lora_rank)),
        # vLLM's own is one: requests to another adapter would wait until all of the first's are done.
        *("--max-loras", str(at_once)),
        *(("--max-cpu-loras", str(len(adapters))) if len(adapters) > at_once else ()),
        *("--lora-modules", *(f"{name}={MODEL_PATH}/{repositories.ADAPTERS_FOLDER}/{name}" for name in adapters)),
    ]


def _assistant_flags(settings: Settings) -> list[str]:
    if not settings.assistant:
        return []
    drafted = settings.assistant.num_speculative_tokens or catalog.speculative_tokens(settings.sized_like)
    draft = {"model": f"{MODEL_PATH}/{repositories.ASSISTANT}", "num_speculative_tokens": drafted}
    return ["--speculative-config", json.dumps(draft, separators=(",", ":"))]


def accelerator(settings: Settings) -> dict[str, Any]:
    """The machine of a pod: cards, and the host's part."""
    size, wanted = sizing(settings), settings.accelerator
    return {
        "type": wanted.type,
        "count": wanted.count,
        "spot": wanted.spot,
        "cpu": wanted.cpu or size.cpu,
        "memory": wanted.memory or size.memory,
        "ephemeral_storage": wanted.ephemeral_storage or size.ephemeral_storage,
    }


def volume(settings: Settings) -> dict[str, Any]:
    """How a pod reaches its weights."""
    return {"type": settings.scenario, "bucket": settings.bucket, "profile": settings.volume.profile}


def mirrored(settings: Settings, image: str) -> str:
    """The image's name in the mirror: REGISTRY/<path of the image>, or as it is without a mirror."""
    if not settings.images.registry:
        return image
    host, slash, path = image.partition("/")
    # As docker reads names: a first part with a dot or a port is a registry, any other belongs to the path.
    has_registry = slash and ("." in host or ":" in host or host == "localhost")
    return f"{settings.images.registry}/{path if has_registry else image}"


# -- filling in ---------------------------------------------------------------------------------------------


def _values(settings: Settings, generation: str = "", release: Release | None = None) -> dict[str, Any]:
    """What the placeholders stand for. Those of a generation are there only with a generation, and those of its pods
    only with its release."""
    values: dict[str, Any] = {
        "name": settings.name,
        "namespace": settings.namespace,
        "service_account": settings.serving.service_account,
        "port": names.PORT,
        "clients": _clients(settings),
        "record": names.record(settings),
        "pipeline_service_account": settings.pipeline_service_account,
        "api_key_rules": _api_key_rules(settings),
        "service_type": "LoadBalancer" if settings.serving.exposure == "public" else "ClusterIP",
    }
    if generation:
        values |= {"generation": generation, "server": names.server(generation)}
    if release:
        weights_uri = release.weights_uri
        if not weights_uri.startswith(f"gs://{settings.bucket}/"):
            raise RequestError(f"the weights are in {weights_uri}, the volume mounts bucket {settings.bucket}")
        values |= _pod_values(settings, release) | {
            "bucket": settings.bucket,
            "prefix": weights_uri.removeprefix(f"gs://{settings.bucket}/").rstrip("/"),
            "volume": names.volume(settings, generation),
            "storage_class": "gcsfusecsi-serving" if settings.volume.profile == "serving" else "",
            "min_available": max(1, settings.serving.replicas - 1),
        }
    return values


def _pod_values(settings: Settings, release: Release) -> dict[str, Any]:
    machine, serving = accelerator(settings), settings.serving
    ready_seconds = in_seconds(serving.ready_timeout)
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    selector = {**sizing(settings).node_selector, "cloud.google.com/gke-gpu-driver-version": "latest"}
    if machine["spot"]:
        selector["cloud.google.com/gke-spot"] = "true"
        spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        tolerations.append(spot)
    secret = {"name": names.api_key(settings), "key": names.API_KEY}
    return {
        "image": engine_image(settings),
        "engine_flags": engine_flags(settings, release.max_lora_rank),
        "port_text": str(names.PORT),
        "api_key": [{"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": secret}}]
        if settings.engine.api_key_secret
        else [],
        "resources": {
            "cpu": machine["cpu"],
            "memory": machine["memory"],
            "ephemeral-storage": machine["ephemeral_storage"],
            "nvidia.com/gpu": str(machine["count"]),
        },
        "shared_memory": f"{2 * machine['count']}Gi",
        "node_selector": selector,
        "tolerations": tolerations,
        "startup_failures": math.ceil(ready_seconds / _STARTUP_PERIOD_SECONDS),
        "deadline_seconds": math.ceil(in_seconds(serving.capacity_timeout) + ready_seconds) + 60,
        "stop_delay_seconds": STOP_DELAY_SECONDS,
        "grace_seconds": STOP_DELAY_SECONDS + math.ceil(in_seconds(serving.request_timeout)) + _TEARDOWN_SECONDS,
    }


def _api_key_rules(settings: Settings) -> list[Object]:
    """What the pipeline may do with Secrets: nothing, unless it copies the server's API key into one."""
    if not settings.engine.api_key_secret:
        return []
    secrets = {"apiGroups": [""], "resources": ["secrets"]}
    return [
        {**secrets, "resourceNames": [names.api_key(settings)], "verbs": ["get", "patch"]},
        {**secrets, "verbs": ["create"]},
    ]


def _clients(settings: Settings) -> list[Object]:
    """Who may call the server, as peers of a NetworkPolicy."""
    # Managed Prometheus reads metrics from gmp-system; on Autopilot from gke-gmp-system.
    namespaces = ["gmp-system", "gke-gmp-system", *settings.serving.client_namespaces]
    peers: list[Object] = [
        {"podSelector": {}},
        {"namespaceSelector": {"matchExpressions": [_in("kubernetes.io/metadata.name", namespaces)]}},
    ]
    if settings.serving.exposure == "public":
        peers += [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]
    return peers


def _in(key: str, values: list[str]) -> Object:
    return {"key": key, "operator": "In", "values": values}


def _object(
    settings: Settings, file: str, values: Mapping[str, Any], generation: str = "", *, of_deployment: bool = True
) -> Object:
    """One manifest, filled in, labelled and patched."""
    path = f"{settings.scenario}/{file}.yaml"
    item: Object = fill(_manifest(path), values, path)
    labels = {**settings.labels, "app.kubernetes.io/managed-by": "gemma-gke-pipelines"}
    if of_deployment:
        labels |= {APP: "vllm", names.DEPLOYMENT: settings.name}
        if "namespace" not in item["metadata"]:
            labels[names.NAMESPACE] = settings.namespace
    if generation:
        labels[names.GENERATION] = generation
    for metadata in _metadata(item):
        metadata["labels"] = {**metadata.get("labels", {}), **labels}
        if settings.annotations:
            metadata["annotations"] = {**settings.annotations, **metadata.get("annotations", {})}
    return patched(settings, item)


def patched(settings: Settings, item: Object) -> Object:
    """The object with the settings' patches for it merged in. Raises RequestError for one that takes away what the
    project finds its objects by."""
    for patch in settings.patches:
        if _matches(patch, item):
            item = _patched(item, patch)
    return item


def _metadata(item: Object) -> list[Object]:
    """The metadata of the object, and of its pods."""
    template = item.get("spec", {}).get("template")
    return [item["metadata"], *([template.setdefault("metadata", {})] if template else [])]


def _matches(patch: Object, item: Object) -> bool:
    name = patch.get("metadata", {}).get("name", item["metadata"]["name"])
    return bool(patch["kind"] == item["kind"] and name == item["metadata"]["name"])


def _called(patch: Object) -> str:
    return " ".join(filter(None, [patch["kind"], patch.get("metadata", {}).get("name", "")]))


def _patched(item: Object, patch: Object) -> Object:
    """The object with the patch merged in. What the project finds it by has to stay."""
    if item["kind"] == "Deployment" and "replicas" in (patch.get("spec") or {}):
        raise RequestError(f"patches: {_called(patch)} sets spec.replicas: set serving.replicas instead")
    patched = patches.apply(item, patch)
    for before, after in zip(_metadata(item), _metadata(patched), strict=True):
        for field in ("name", "namespace"):
            if before.get(field) != after.get(field):
                raise RequestError(f"patches: {_called(patch)} changes metadata.{field}, by which the project finds it")
        kept = {
            key: value
            for key, value in before["labels"].items()
            if key in (APP, names.DEPLOYMENT, names.NAMESPACE, names.GENERATION)
        }
        if kept.items() - (after.get("labels") or {}).items():
            raise RequestError(
                f"patches: {_called(patch)} changes the labels {', '.join(kept)}, which are the project's"
            )
    return patched


@functools.cache
def _manifest(path: str) -> Any:
    import yaml

    text = importlib.resources.files("manifests").joinpath(path).read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 (both are safe)


_PLACEHOLDER = re.compile(r"\$\{([^}]*)\}")


def fill(template: Any, values: Mapping[str, Any], file: str) -> Any:
    """A copy of the parsed manifest with its placeholders filled in.

    Raises RequestError naming file and placeholder for one that has no value, and for a value that cannot stand within
    a text.
    """

    def value_of(name: str) -> Any:
        if name not in values:
            raise RequestError(f"manifests/{file}: no value for the placeholder ${{{name}}}")
        return values[name]

    def text_of(match: re.Match[str]) -> str:
        value = value_of(match[1])
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise RequestError(f"manifests/{file}: ${{{match[1]}}} is not a text, it has to stand alone")
        return str(value)

    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return {filled(key): filled(item) for key, item in node.items()}
        if isinstance(node, list):
            items: list[Any] = []
            for item in node:
                value = filled(item)
                items += value if isinstance(item, str) and isinstance(value, list) else [value]
            return items
        if not isinstance(node, str):
            return node
        alone = _PLACEHOLDER.fullmatch(node)
        return json.loads(json.dumps(value_of(alone[1]))) if alone else _PLACEHOLDER.sub(text_of, node)

    return filled(template)


def _digest(items: list[Object]) -> str:
    text = json.dumps(items, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
