"""What things are called in the cluster and in the bucket: the one place, so that every step finds them again."""

from __future__ import annotations

import hashlib
import re

from serving.settings import Settings

DEPLOYMENT = "gemma-pipelines/deployment"
"""Label: the settings' `name`, on everything of one deployment."""
GENERATION = "gemma-pipelines/generation"
"""Label: the generation, on everything that a generation alone owns, and on its pods."""
RUN = "gemma-pipelines/run"
"""Label: the run that made an object, on what a later run must remove if that run died."""
SETTINGS = "gemma-pipelines/settings"
"""Annotation of a generation's Deployment: digest of all that `render` made for it, its run left out."""

PORT = 8000
"""The engine's port, and the port of every Service."""
SERVER_CONTAINER = "vllm"


def server(generation: str) -> str:
    """Names a generation's Deployment, Service, claim and budget."""
    return f"vllm-{generation}"


def volume(settings: Settings, generation: str) -> str:
    """Names a generation's PersistentVolume, which has no namespace to keep it apart from others."""
    return f"{settings.namespace}-{server(generation)}"


def record(settings: Settings) -> str:
    """Names the ConfigMap that remembers the deployment's generations."""
    return f"{settings.name}-generations"


def selector(settings: Settings, generation: str = "") -> str:
    """A label selector for the objects of the deployment, or of one generation of it."""
    return f"{DEPLOYMENT}={settings.name}" + (f",{GENERATION}={generation}" if generation else "")


def weights_in_use(settings: Settings) -> str:
    """The object that tells other deployments which weights this one uses: a `gs://` URI."""
    return f"gs://{settings.bucket}/deployments/{settings.cluster}/{settings.namespace}/{settings.name}.json"


API_KEY = "key"
"""The entry of the Secret that holds the server's API key."""


def api_key(settings: Settings) -> str:
    """Names the Secret that holds the server's API key, where engine.api_key_secret is set."""
    return f"{settings.name}-api-key"


def run(job: str) -> str:
    """The run id of an orchestrator's job: its name, or where that is no legal label and name of an object (up to 63
    lower-case letters, digits and `-`), what is legal of it with a digest of the whole."""
    if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", job):
        return job
    legal = re.sub(r"[^a-z0-9]+", "-", job.lower()).strip("-")
    return f"{legal[:52].rstrip('-')}-{hashlib.sha256(job.encode()).hexdigest()[:10]}".lstrip("-")
