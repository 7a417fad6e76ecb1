"""What things are called in the cluster and in the bucket: the one place, so that every step finds them again."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.settings import Settings

DEPLOYMENT = "gemma-pipelines/deployment"
"""Label: the settings' `name`, on everything of one deployment."""
GENERATION = "gemma-pipelines/generation"
"""Label: the generation, on everything that a generation alone owns, and on its pods."""
NAMESPACE = "gemma-pipelines/namespace"
"""Label: the deployment's namespace, on what has none itself: names of deployments repeat across namespaces."""
RUN = "gemma-pipelines/run"
"""Label: the run that made an object, on what a later run must remove if that run died."""
SETTINGS = "gemma-pipelines/settings"
"""Annotation of a generation's Deployment, and of the entry: digest of all that was rendered for it, its run left
out."""
RELEASE = "gemma-pipelines/release"
"""Annotation of a generation's Deployment: where it came from, JSON, `{"model", "commit", "weights_key",
"weights_uri", "adapters_key", "disk_image"}` (the last two where there are any). The record says it too, but a record
may be lost."""
VERIFIED = "gemma-pipelines/verified"
"""Annotation of a generation's claim: that its volume was read back, JSON, `{"volume", "zones", "at", "run"}`."""
KEY_VERSION = "gemma-pipelines/api-key"
"""Annotation of a generation's pods: the Secret Manager version that their API key is."""
PICKER = "gemma-pipelines/picker"
"""Label of an endpoint picker's pods: the generation that it picks pods of. They have no label GENERATION: a pod that
has one serves."""
CANARY = "gemma-pipelines/canary"
"""Annotation of an HTTPRoute that serves two generations: JSON, `{"live", "candidate", "step", "since", "run"}`, and
`"asked"` where a person wants it to end (serving/deployment/canary.py)."""

PLACE = "gemma-pipelines-place"
"""Label in Compute Engine: digest of the deployment's place, on everything of one deployment."""
RUN_OF_COMPUTE = "gemma-pipelines-run"
"""The same as RUN in Compute Engine."""
BAKE = "gemma-pipelines-bake"
"""Label in Compute Engine: the disk image that something was made for."""
DISK_LAYOUT = 1
"""Version of how layers lie on a disk image: one that is laid out otherwise is another."""

RUNS = "gemma-pipelines"
"""Label of a run of Vertex AI: its scenario, on every run of ours."""
RUNS_OF = "gemma-deployment"
"""Label of a run of Vertex AI: the settings' `name`."""
RUNS_AT = "gemma-place"
"""Label of a run of Vertex AI: the deployment's place, by which its runs and its schedule are found again."""
SPEC = "gemma-spec"
"""Label of a run of Vertex AI: digest of all that was asked for, labels left out."""

LABELS = (DEPLOYMENT, GENERATION, NAMESPACE)
"""By which the project finds its objects again."""

PORT = 8000
"""The engine's port, and the port of every Service."""
PICKER_PORT, PICKER_HEALTH_PORT, PICKER_METRICS_PORT = 9002, 9003, 9090
"""An endpoint picker's: where the load balancer asks it, its gRPC health service, its metrics."""
SERVER_CONTAINER = "vllm"
PICKER_CONTAINER = "epp"
TPU_CONTAINER = "vllm-tpu"
SERVER_CONTAINERS = (SERVER_CONTAINER, TPU_CONTAINER)


def region(location: str) -> str:
    """The region of a zone, or a region itself."""
    return "-".join(location.split("-")[:2])


def server(generation: str) -> str:
    """Names a generation's Deployment, Service, claim and budget."""
    return f"vllm-{generation}"


def server_url(settings: Settings, generation: str) -> str:
    """Where a generation answers in the cluster: its own Service."""
    return f"http://{server(generation)}.{settings.namespace}.svc.cluster.local:{PORT}"


def adapters(generation: str) -> str:
    """Names the ConfigMap that says which adapters a generation serves, where they change in place."""
    return f"adapters-{generation}"


def generation_of(name: str) -> str:
    """The generation whose server is called so; empty for what is none of ours."""
    prefix = server("")
    return name.removeprefix(prefix) if name.startswith(prefix) else ""


def picker(generation: str) -> str:
    """Names a generation's endpoint picker, its Deployment, Service, configuration and budget."""
    return f"epp-{generation}"


def validation(generation: str) -> str:
    """Names a generation's own route, by which it is asked before it gets anybody's requests, and begins the names of
    its own objectives."""
    return f"validate-{generation}"


def picker_account(settings: Settings) -> str:
    """Names the Kubernetes service account of a deployment's endpoint pickers, and its rights."""
    return f"{settings.name}-epp"


def picker_selector(settings: Settings, generation: str) -> str:
    """A label selector for the pods of a generation's endpoint picker."""
    return f"{DEPLOYMENT}={settings.name},{PICKER}={generation}"


def cluster_wide(settings: Settings, generation: str) -> str:
    """Names a generation's objects that have no namespace to keep them apart from others.

    No part holds a dot, so no two deployments come to one name; at most 63 + 1 + 40 + 1 + 11 characters.
    """
    return f"{settings.namespace}.{settings.name}.{generation}"


def compute_class(settings: Settings, generation: str) -> str:
    """Names a generation's ComputeClass: it is a label's value too, for which `cluster_wide` is too long."""
    digest = hashlib.sha256(cluster_wide(settings, generation).encode()).hexdigest()[:8]
    return f"{server(generation)}-{digest}"


def pool_class(settings: Settings) -> str:
    """Names the deployment's ComputeClass, whose nodes all its generations run on: a label's value, too."""
    digest = hashlib.sha256(f"{settings.namespace}.{settings.name}".encode()).hexdigest()[:8]
    return f"{settings.name}-{digest}"


def record(settings: Settings) -> str:
    """Names the ConfigMap that remembers the deployment's generations."""
    return f"{settings.name}-generations"


def selector(settings: Settings, generation: str = "", *, cluster_scoped: bool = False) -> str:
    """A label selector for the objects of the deployment, or of one generation of it.

    cluster_scoped: for a list of what has no namespace, where a deployment may have namesakes.
    """
    labels = {DEPLOYMENT: settings.name}
    if cluster_scoped:
        labels[NAMESPACE] = settings.namespace
    if generation:
        labels[GENERATION] = generation
    return ",".join(f"{label}={value}" for label, value in labels.items())


def place(settings: Settings) -> str:
    """The deployment's place in a bucket that it may share with any other: PROJECT/LOCATION/CLUSTER/NAMESPACE/NAME."""
    parts = (settings.project, settings.location, settings.cluster, settings.namespace, settings.name)
    return "/".join(parts)


def weights_in_use(settings: Settings) -> str:
    """The object that tells other deployments which weights this one uses: a `gs://` URI."""
    return f"{all_weights_in_use(settings)}{place(settings)}.json"


def all_weights_in_use(settings: Settings) -> str:
    """Where the deployments with weights in this bucket name them: a `gs://` prefix."""
    return f"gs://{settings.bucket}/deployments/"


def disk_image_name(settings: Settings, images: Iterable[str], *, architecture: str, kms_key: str = "") -> str:
    """Names the disk image that holds these images (REGISTRY/REPOSITORY@DIGEST) unpacked: at most 39 characters, since
    a node's label carries it.

    Of all that makes it another disk, and of the deployment's place, so that no two deployments own one.
    """
    parts = [place(settings), f"layout={DISK_LAYOUT}", architecture, kms_key, *sorted(set(images))]
    return f"gp-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:16]}"


def compute_labels(settings: Settings, run_id: str, disk_image: str) -> dict[str, str]:
    """The labels of what a run makes in Compute Engine, by which a later one finds it. (Keys there have no slash.)"""
    return {
        PLACE: place_label(settings),
        "gemma-pipelines-deployment": settings.name,
        RUN_OF_COMPUTE: run_id,
        BAKE: disk_image,
    }


def place_label(settings: Settings) -> str:
    """The deployment's place as a label's value."""
    return hashlib.sha256(place(settings).encode()).hexdigest()[:32]


def schedule(settings: Settings) -> str:
    """What the deployment's schedule is called in Vertex AI: not its id, but the one thing that lists are filtered by.
    Without the scenario, so that another one is no second schedule."""
    return _shown(f"gemma-pipelines {place(settings)}")


def shown_run(settings: Settings) -> str:
    """What the console of Vertex AI calls a run, beside its id."""
    where = "/".join((settings.project, settings.cluster, settings.namespace, settings.name))
    return _shown(f"gemma-pipelines {settings.scenario} {where}")


def _shown(text: str) -> str:
    """A display name of Vertex AI, which has at most 128 characters."""
    if len(text) <= 128:
        return text
    return f"{text[:117]}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def request_id(*parts: str) -> str:
    """The id of a request to Compute Engine: asked again with the same id, it is the same request."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(("gemma-gke-pipelines", *parts))))


def disk_image_record(settings: Settings, disk_image: str) -> str:
    """The object that remembers what is on a disk image: a `gs://` URI."""
    return f"{disk_image_records(settings)}{disk_image}.json"


def disk_image_records(settings: Settings) -> str:
    """Where deployments with weights in this bucket remember their disk images: a `gs://` prefix."""
    return f"gs://{settings.bucket}/disk-images/"


def cache_record(settings: Settings, zone: str) -> str:
    """The object that remembers who made the bucket's cache in a zone, and who needs it: a `gs://` URI."""
    return f"{cache_records(settings)}{zone}.json"


def cache_records(settings: Settings) -> str:
    """Where deployments with weights in this bucket remember its caches: a `gs://` prefix."""
    return f"gs://{settings.bucket}/caches/"


def binding_record(settings: Settings, role: str, member: str) -> str:
    """The object that remembers which deployments need a role on the bucket that runs gave: a `gs://` URI."""
    return f"{binding_records(settings)}{hashlib.sha256(f'{role} {member}'.encode()).hexdigest()[:32]}.json"


def binding_records(settings: Settings) -> str:
    """Where deployments with weights in this bucket remember the roles on it that runs gave: a `gs://` prefix."""
    return f"gs://{settings.bucket}/bindings/"


API_KEY = "key"
"""The entry of the Secret that holds the server's API key."""
API_KEY_VARIABLE = "VLLM_API_KEY"
"""The variable that brings the key to a server, and to a Job that asks it: the one that vLLM itself reads."""


def api_key(settings: Settings) -> str:
    """Names the Secret that holds the server's API key, where engine.api_key_secret is set."""
    return f"{settings.name}-api-key"


def run(job: str) -> str:
    """The run id of an orchestrator's job: its name, or where that is no legal label and name of an object (up to 63
    lower-case letters, digits and `-`), what is legal of it with a digest of the whole."""
    return _legal(job)


def job(step: str, run_id: str, part: str = "") -> str:
    """Names the Job that a step has in a run: `<step>-<run>`, made legal likewise. `part` tells several apart."""
    return _legal("-".join(filter(None, (step, part, run_id))))


def _legal(text: str) -> str:
    if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", text):
        return text
    legal = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return f"{legal[:52].rstrip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:10]}".lstrip("-")
