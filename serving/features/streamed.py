"""Weights streamed from the bucket into the cards' memory by vLLM itself, with the Run:ai Model Streamer.

The engine is started on the `gs://` address of the weights: vLLM 0.33 has no flag that keeps another path for a model
whose weights it streams (vllm/config/model.py: `model_weights` is set by its own code alone, and is part of the compile
cache's key as the path is). An init container brings the rest to the pod.

Sources: the source of vLLM 0.33.0 and of runai-model-streamer 0.17.1, both run against a bucket, and
https://docs.cloud.google.com/kubernetes-engine/docs/how-to/persistent-volumes/run-ai-model-streamer
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

from pydantic import Field

from serving.clients import storage
from serving.errors import AccessError, InconclusiveError, RequestError
from serving.features import Binding, Explanation, Principal, Symptom, far_from_bucket
from serving.values import Quantity, in_bytes, in_seconds
from serving.values import Section as BaseSection
from serving.weights import manifest

if TYPE_CHECKING:
    from serving.settings import Settings
    from serving.weights.release import Release

FOLDER = "/model"
"""Where a pod has what is not streamed."""
CONTAINER = "weights"
"""The init container that brings it."""
_RESOURCES = {"cpu": "1", "memory": "512Mi"}
"""What comparing and bringing needs: less than the engine, which runs after it, so a pod is no larger for it."""

_TOLD = 3
"""Differences that are told."""
_USUAL, _GIB = "4Gi", 1 << 30
"""What the streamer may hold at least, unless the settings say less."""

_MEANINGS = (
    (
        r"does not have (storage\.[\w.]+) access|\bForbidden: 403\b",
        AccessError,
        "{pod} may not read gs://{bucket}: its service account {account} needs {viewer} and {bucket_role} on it (the "
        "streamer looks at the bucket itself, too). Run again with access: manage, or `gcloud storage buckets "
        "add-iam-policy-binding gs://{bucket} --member=principal://…/subject/ns/{namespace}/sa/{account} --role=…`. A "
        "new binding may take minutes to count",
    ),
    (
        r"The specified bucket does not exist",
        RequestError,
        "gs://{bucket} is not there any more. `gcloud storage buckets list` shows those that are; correct `bucket`",
    ),
    (
        r"No module named 'runai_model_streamer|runai_model_streamer\S* (is not|not) installed|vllm\[runai\]",
        RequestError,
        "the image of {pod} has no Run:ai Model Streamer for Cloud Storage, without which it cannot stream. Set "
        "engine.image to one that has it (vllm/vllm-openai does), or features: [gcs-fuse]",
    ),
    (
        r"Memory limit supplied: \d+ cannot be smaller than",
        RequestError,
        "a tensor of the weights is larger than what the streamer of {pod} may hold. Raise streamed.memory, and "
        "accelerator.memory with it",
    ),
    (
        r"DefaultCredentialsError|Failed to retrieve \S*metadata|TransportError",
        InconclusiveError,
        "{pod} got no identity from its node. Run again; if it stays, the cluster, or the node pool, has no Workload "
        "Identity Federation for GKE",
    ),
    (
        # The C++ library says of everything, a refusal or an object that is gone, no more than this.
        r"due to: b'|libstreamer|Streamer failed to read|Cannot find any safetensors model weights with `gs://"
        r"|RetryError: Timeout|is truncated or empty|Corrupted (File|Header|Offset|Tensor)",
        InconclusiveError,
        "{pod} could not stream its weights, though they were whole when it began: Cloud Storage did not give an "
        "object, or somebody deleted it or wrote it meanwhile. Run again; `gemma-pipelines verify-weights --read` says "
        "whether they are whole",
    ),
)
"""Pattern in the words of the engine, or of the init container → whose it is, and the cure."""


class Section(BaseSection):
    """How the engine streams."""

    concurrency: int = Field(16, ge=1, le=256)
    """Reads at once, of each of the engine's processes."""
    memory: Quantity | None = None
    """Memory of a pod that the streamer may hold weights in on their way to the cards, a part of accelerator.memory.
    With several cards they share it. Null is 4Gi, or as much as the largest tensor takes (5.3 GiB in Gemma 4 E4B), and
    less than that is refused."""


def check(settings: Settings) -> None:
    """Raises RequestError for weights that cannot be streamed, and for more memory than the pod has."""
    if settings.hub.allow_pickles:
        raise RequestError(
            "hub.allow_pickles: only safetensors are streamed. Leave it out, or take features: [gcs-fuse]"
        )
    from serving import sizing

    memory = _section(settings).memory or _USUAL
    of_pod = settings.accelerator.memory or sizing.host(settings.model, None).memory
    if in_bytes(memory) >= in_bytes(of_pod):
        raise RequestError(
            f"streamed.memory: {memory} is all that a pod has (accelerator.memory: {of_pod}), and the engine needs "
            "some of it"
        )


def values(settings: Settings, release: Release | None) -> dict[str, Any]:
    """Of the pods: the model's address, and what their init container brings."""
    if release is None:
        return {}
    plan = {
        "weights_uri": release.weights_uri,
        "folder": FOLDER,
        "patience_seconds": in_seconds(settings.patience),
    }
    return {"model_path": release.weights_uri, "bring_plan": json.dumps(plan), "bring_resources": dict(_RESOURCES)}


def flags(settings: Settings, release: Release) -> list[str]:
    """Streams the weights; all else is read where the init container has put it. Raises RequestError for less memory
    than the largest tensor takes."""
    section = _section(settings)
    loader: dict[str, Any] = {"concurrency": section.concurrency, "memory_limit": _limit(settings, release)}
    if settings.accelerator.count > 1:
        # Every card's process reads a part and has the others' from them: else each reads everything.
        loader = {"distributed": True, **loader}
    return [
        *("--tokenizer", FOLDER),
        *("--hf-config-path", FOLDER),
        *("--load-format", "runai_streamer"),
        *("--model-loader-extra-config", json.dumps(loader, separators=(",", ":"))),
    ]


def identity(settings: Settings) -> dict[str, str]:
    """The bucket: with another one the pods read elsewhere."""
    return {"bucket": settings.bucket}


def bindings(settings: Settings, principal: Principal) -> list[Binding]:
    """Pods read the bucket as their own service account, and the streamer looks at the bucket before it lists it."""
    account = principal(settings.namespace, settings.serving.service_account)
    return [Binding(storage.READER_ROLE, account), Binding(storage.BUCKET_ROLE, account)]


def arrived(settings: Settings, release: Release) -> None:
    """Raises InconclusiveError unless the objects in the bucket are still those of the manifest.

    They were when the pods' init containers ended. An object that is written again has another generation for ever, so
    where they are the same now, nothing else was there to be streamed in between.
    """
    known, _ = manifest.read(release.weights_uri)
    there = manifest.listing(release.weights_uri)
    if known is None:
        raise InconclusiveError(f"{manifest.uri(release.weights_uri)} was deleted while the weights were streamed")
    if wrong := manifest.mismatch(known, there, _TOLD):
        raise InconclusiveError(
            f"{release.weights_uri} was changed while pods streamed it, so nobody knows what they have: "
            f"{wrong}. Run again: download_weights brings it back"
        )


def explain(settings: Settings, symptom: Symptom) -> Explanation | None:
    """What the streamer, Cloud Storage and the init container mean."""
    if symptom.kind == "out-of-memory":
        if symptom.container == CONTAINER:
            return Explanation(InconclusiveError, "`patches` in the settings can raise it")
        return Explanation(
            InconclusiveError,
            f"accelerator.memory sets it, of which the streamer takes "
            f"{_section(settings).memory or f'{_USUAL} or what the largest tensor does'} (streamed.memory)",
        )
    if symptom.kind == "slow":
        return far_from_bucket(settings)
    if symptom.kind != "words":
        return None
    for pattern, error, meaning in _MEANINGS:
        if re.search(pattern, symptom.words):
            return Explanation(
                error,
                meaning.format(
                    pod=symptom.pod,
                    bucket=settings.bucket,
                    namespace=settings.namespace,
                    account=settings.serving.service_account,
                    viewer=storage.READER_ROLE,
                    bucket_role=storage.BUCKET_ROLE,
                ),
            )
    return None


def _limit(settings: Settings, release: Release) -> int:
    """Bytes that the streamer may hold: it takes no tensor in parts."""
    asked, largest = _section(settings).memory, release.sizing.largest_tensor
    if asked is None:
        return max(in_bytes(_USUAL), math.ceil(largest / _GIB) * _GIB)
    if in_bytes(asked) < largest:
        raise RequestError(
            f"streamed.memory: {asked} is less than the largest tensor of {settings.model} takes "
            f"({largest / _GIB:.1f} GiB), which is streamed whole. Leave it out, or raise it, and accelerator.memory "
            "with it"
        )
    return in_bytes(asked)


def _section(settings: Settings) -> Section:
    section: Section = settings.section("streamed")
    return section
