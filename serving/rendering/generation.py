"""The name of a generation: a digest over all that makes a server a different server, and over nothing else.

What changes in place (replicas, thresholds, exposure, labels) is not in it. What cannot change once it is there, a
volume or a claim, is: so no patch, and no new version of this tool, can end up in front of a live object that it may
not change. Only validated settings are hashed, since kfp turns the integers of a struct into floats.
"""

from __future__ import annotations

import hashlib
import json

from serving import features
from serving.clients.kubernetes import kinds
from serving.rendering import engine, render
from serving.settings import Settings
from serving.weights.release import Release


def name(settings: Settings, release: Release) -> str:
    """`g` and 10 hex digits; what `release` says of its generation does not matter."""
    nameless = release.model_copy(update={"generation": "GENERATION"})
    subject = {
        "weights": release.weights_key,
        "image": engine.pod_image(settings, nameless),
        "flags": engine.engine_flags(settings, nameless),
        "accelerator": engine.accelerator(settings, nameless),
        "features": dict(features.answers(settings, "identity")),
        "created": _created_once(settings, nameless),
    }
    if release.disk_image:
        subject["disk_image"] = release.disk_image
    if other := engine.beside(settings, nameless):
        subject["beside"] = {
            "image": engine.pod_image(*other),
            "flags": engine.engine_flags(*other),
            "accelerator": [other[0].accelerator.type, other[0].accelerator.count],
        }
    text = json.dumps(subject, sort_keys=True, separators=(",", ":"))
    return "g" + hashlib.sha256(text.encode()).hexdigest()[:10]


def _created_once(settings: Settings, release: Release) -> list[kinds.Object]:
    """The generation's immutable objects without what may differ between equal servers: labels, house annotations."""
    plain = settings.model_copy(update={"labels": {}, "annotations": {}})
    items = [item for item in render.generation(plain, release) if kinds.find(item["kind"]).immutable]
    return [{**item, "metadata": {k: v for k, v in item["metadata"].items() if k != "labels"}} for item in items]
