"""What things are called in the cluster and in the bucket: the one place, so that every step finds them again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.settings import Settings

DEPLOYMENT = "gemma-pipelines/deployment"
"""Label: the settings' `name`, on everything of one deployment."""
GENERATION = "gemma-pipelines/generation"
"""Label: the generation, on everything that a generation alone owns, and on its pods."""
NAMESPACE = "gemma-pipelines/namespace"
"""Label: the deployment's namespace, on what has none itself."""
RUN = "gemma-pipelines/run"
"""Label: the run that made an object, on what a later run must remove if that run died."""
SETTINGS = "gemma-pipelines/settings"
"""Annotation of a generation's Deployment: digest of all that `render` made for it, its run left out."""

LABELS = (DEPLOYMENT, GENERATION, NAMESPACE)
"""By which the project finds its objects again."""

PORT = 8000
"""The engine's port, and the port of every Service."""
SERVER_CONTAINER = "vllm"


def server(generation: str) -> str:
    """Names a generation's Deployment, Service, claim and budget."""
    return f"vllm-{generation}"


def cluster_wide(settings: Settings, generation: str) -> str:
    """Names a generation's objects that have no namespace to keep them apart from others."""
    return f"{settings.namespace}-{settings.name}-{generation}"


def record(settings: Settings) -> str:
    """Names the ConfigMap that remembers the deployment's generations."""
    return f"{settings.name}-generations"


def selector(settings: Settings, generation: str = "") -> str:
    """A label selector for the objects of the deployment, or of one generation of it."""
    return f"{DEPLOYMENT}={settings.name}" + (f",{GENERATION}={generation}" if generation else "")


def cluster_wide_selector(settings: Settings) -> str:
    """A label selector for the deployment's objects that have no namespace."""
    return f"{NAMESPACE}={settings.namespace},{selector(settings)}"


def weights_in_use(settings: Settings) -> str:
    """The object that tells other deployments which weights this one uses: a `gs://` URI."""
    return f"gs://{settings.bucket}/deployments/{settings.cluster}/{settings.namespace}/{settings.name}.json"


API_KEY = "key"
"""The entry of the Secret that holds the server's API key."""


def api_key(settings: Settings) -> str:
    """Names the Secret that holds the server's API key, where engine.api_key_secret is set."""
    return f"{settings.name}-api-key"
