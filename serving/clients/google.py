"""Google's APIs other than storage: credentials, secrets, project numbers, and the way to a cluster.

All clients use Application Default Credentials and REST, whose errors are named after HTTP codes, not after gRPC's.
`GEMMA_PIPELINES_API_ENDPOINT` (scheme and host, for a private endpoint or another implementation of the APIs) replaces
the host of every one of them.
"""

from __future__ import annotations

import base64
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from serving.clients.patience import Interrupted, Patience
from serving.errors import AccessError, PipelineError, RequestError

if TYPE_CHECKING:
    from serving.settings import Settings

API_ENDPOINT = "GEMMA_PIPELINES_API_ENDPOINT"
SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]
_CALL_SECONDS = 60
_FIRST_LOOK_SECONDS, _LAST_LOOK_SECONDS = 0.2, 5.0
"""Between two looks at an operation."""
NO_CREDENTIALS = "no Google credentials: run `gcloud auth application-default login`, or give the job a service account"


class ApiOffError(AccessError):
    """An API that the project has not switched on: `api` is its name, `aiplatform.googleapis.com`."""

    def __init__(self, error: Any):
        about = error.metadata or {}
        self.api = str(about.get("service", "API"))
        project = str(about.get("consumer", "projects/PROJECT")).removeprefix("projects/")
        super().__init__(
            f"{self.api} is not enabled in project {project}: `gcloud services enable {self.api} --project={project}`, "
            "or `gemma-pipelines bootstrap -f FILE`"
        )


def credentials() -> Any:
    """Application Default Credentials. Raises AccessError when there are none."""
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    try:
        found, _ = google.auth.default(scopes=SCOPES)
    except DefaultCredentialsError as error:
        # Another place to ask than Google's own, set and forgotten.
        host = os.environ.get("GCE_METADATA_HOST")
        raise AccessError(
            f"{NO_CREDENTIALS}. (GCE_METADATA_HOST is {host}, where nobody answers.)" if host else NO_CREDENTIALS
        ) from error
    return found


def refreshed(credentials: Any) -> str:
    """A token that is valid now. Raises Interrupted for what may heal, AccessError when nobody will give us one."""
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import Request

    try:
        if not credentials.valid:
            credentials.refresh(Request())
    except GoogleAuthError as error:
        raise _without_token(error) from error
    return str(credentials.token)


def check_credentials() -> None:
    """Raises AccessError when there are no credentials, or none that somebody takes for good; InconclusiveError when
    nobody says."""
    found = credentials()
    Patience().until_it_works("a token for Google's APIs", lambda: refreshed(found))


def _without_token(error: Any) -> Interrupted | PipelineError:
    """Our error for credentials that give no token."""
    from google.auth.exceptions import TransportError

    # The metadata server's client wraps what the connection met.
    if error.retryable or isinstance(error, TransportError) or isinstance(error.__cause__, TransportError):
        return Interrupted(f"no token is to be had ({said(error)})")
    return AccessError(
        f"these Google credentials are not renewed ({said(error)}). See `gcloud auth application-default login`, or "
        "the job's service account"
    )


def asked(what: str, ask: Callable[[], Any]) -> Any:
    """The answer of one of Google's APIs, asked again while it is away or busy. Raises InconclusiveError when it stays
    so, ApiOffError for an API that is off, AccessError without a token, and the client's own exceptions for a refusal.

    ask: the request, which is not to be tried again by the client itself.
    """
    return Patience().until_it_works(what, lambda: once(ask))


def once(ask: Callable[[], Any]) -> Any:
    """The answer to asking once. Raises Interrupted while the API is away or busy, and what `asked` raises."""
    import requests
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    try:
        return ask()
    except (exceptions.ServerError, exceptions.TooManyRequests, requests.RequestException) as error:
        raise Interrupted(f"no answer ({said(error)})") from error
    except exceptions.Forbidden as error:
        # Compute Engine says so to who asks too often.
        if "rateLimitExceeded" in {each.get("reason") for each in error.errors}:
            raise Interrupted(f"asked too often ({said(error)})") from error
        if error.reason == "SERVICE_DISABLED":
            raise ApiOffError(error) from error
        raise
    except GoogleAuthError as error:
        raise _without_token(error) from error


def client_of(client_class: Any, host: str = "") -> Any:
    """A client of one of Google's APIs; `host` is the API's, where it is not the one that the client knows."""
    endpoint = os.environ.get(API_ENDPOINT) or host
    options = {"api_endpoint": endpoint} if endpoint else None
    return client_class(credentials=credentials(), transport="rest", client_options=options)


def said(error: Any) -> str:
    """What the API said, without the client's wrapping and without a full stop: a sentence of ours goes on after it."""
    return re.sub(r"^[A-Z]+ https?://\S+: ", "", str(getattr(error, "message", error))).rstrip(" .")


def secret(name: str) -> str:
    """The value of a Secret Manager version (`projects/P/secrets/S/versions/V`), stripped of white space.

    Raises AccessError naming the role that is missing, RequestError when there is no such version.
    """
    value: str = _secret_version(name).payload.data.decode().strip()
    return value


def secret_version(name: str) -> str:
    """The version that `…/versions/latest` means now, by its number: `projects/NUMBER/secrets/S/versions/N`.

    Only to read a version says it with the role that the pipeline has anyhow. Raises what `secret` raises.
    """
    return str(_secret_version(name).name)


def _secret_version(name: str) -> Any:
    from google.api_core import exceptions
    from google.cloud import secretmanager

    try:
        client = client_of(secretmanager.SecretManagerServiceClient)
        return asked(f"{name}: Secret Manager", lambda: client.access_secret_version(name=name, retry=None))
    except exceptions.NotFound as error:
        secret_id = name.split("/")[3]
        raise RequestError(
            f"{name} does not exist. Create it: `gcloud secrets create {secret_id} --data-file=-`, then paste the token"
        ) from error
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        secret_id = name.split("/")[3]
        raise AccessError(
            f"{name}: {said(error)}. Grant the pipeline's service account roles/secretmanager.secretAccessor: `gcloud "
            f"secrets add-iam-policy-binding {secret_id} --member=serviceAccount:… "
            "--role=roles/secretmanager.secretAccessor`"
        ) from error
    except exceptions.ClientError as error:
        raise RequestError(f"{name}: {said(error)}. Enable that version, or name another") from error


def project_number(project: str) -> str:
    """The number of a project, which workload identity principals are named by."""
    from google.api_core import exceptions
    from google.cloud import resourcemanager_v3

    try:
        client = client_of(resourcemanager_v3.ProjectsClient)
        found = asked(
            f"project {project}: Resource Manager",
            lambda: client.get_project(name=f"projects/{project}", retry=None),
        )
    except (exceptions.Forbidden, exceptions.NotFound, exceptions.Unauthorized) as error:
        raise AccessError(
            f"project {project}: {said(error)}. Check its id (`gcloud projects list`); the pipeline needs "
            "roles/browser on it"
        ) from error
    except exceptions.ClientError as error:
        raise RequestError(f"project {project}: {said(error)}") from error
    return found.name.removeprefix("projects/")


def _described(project: str, location: str, cluster: str) -> tuple[str, Any]:
    """The cluster's whole name, and what the container API says of it."""
    from google.api_core import exceptions
    from google.cloud import container_v1

    name = f"projects/{project}/locations/{location}/clusters/{cluster}"
    try:
        client = client_of(container_v1.ClusterManagerClient)
        found = asked(f"{name}: the container API", lambda: client.get_cluster(name=name, retry=None))
    except exceptions.NotFound as error:
        raise RequestError(
            f"{name} does not exist. Create it: `gcloud container clusters create-auto {cluster} --project {project} "
            f"--location {location}`, or name another: see `gcloud container clusters list --project {project}`"
        ) from error
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise AccessError(
            f"{name}: {said(error)}. Grant the pipeline's service account roles/container.clusterViewer on {project}"
        ) from error
    except exceptions.ClientError as error:
        raise RequestError(f"{name}: {said(error)}") from error

    return name, found


@dataclass(frozen=True)
class ClusterAddress:
    """Where a cluster's API server is, and how to know it."""

    url: str
    ca_certificate: bytes | None
    """PEM; None where the certificate comes from a public authority (the DNS endpoint)."""
    workload_pool: str
    version: str


def cluster_address(
    project: str, location: str, cluster: str, endpoint: Literal["dns", "ip", "private"]
) -> ClusterAddress:
    """Asks the container API where the cluster's API server is.

    Raises RequestError when there is no such cluster or it lacks that endpoint, AccessError without the role.
    """
    name, found = _described(project, location, cluster)
    config = found.control_plane_endpoints_config
    hosts = {
        "dns": config.dns_endpoint_config.endpoint,
        "ip": config.ip_endpoints_config.public_endpoint or found.endpoint,
        "private": config.ip_endpoints_config.private_endpoint or found.private_cluster_config.private_endpoint,
    }
    if not hosts[endpoint]:
        there = ", ".join(kind for kind, host in hosts.items() if host) or "none"
        raise RequestError(f"{name} has no {endpoint} endpoint (it has: {there}). Set `endpoint` in the settings")
    certificate = base64.b64decode(found.master_auth.cluster_ca_certificate) if endpoint != "dns" else None
    return ClusterAddress(
        url=f"https://{hosts[endpoint]}",
        ca_certificate=certificate or None,
        workload_pool=found.workload_identity_config.workload_pool or f"{project}.svc.id.goog",
        version=found.current_master_version,
    )


@dataclass(frozen=True)
class NodePool:
    """A node pool, as far as features look at one."""

    name: str
    image_streaming: bool
    disk_images: tuple[str, ...]
    """Resource paths of the images that its nodes have secondary boot disks of."""


@dataclass(frozen=True)
class ClusterTraits:
    """What a cluster is, as far as features depend on it."""

    name: str
    autopilot: bool
    version: str
    """Of its control plane: `1.35.3-gke.1389000`."""
    node_pools: tuple[NodePool, ...] = ()
    zones: tuple[str, ...] = ()
    """Those that its nodes may be in."""
    network: str = ""
    """Its VPC: `projects/PROJECT/global/networks/NAME`."""

    def is_at_least(self, version: str) -> bool:
        return _numbers(self.version) >= _numbers(version)


def cluster_traits(settings: Settings) -> ClusterTraits:
    """Asks the container API what the deployment's cluster is. Raises what cluster_address raises."""
    name, found = _described(settings.project, settings.location, settings.cluster)
    pools = [
        NodePool(
            pool.name,
            pool.config.gcfs_config.enabled,
            tuple(disk.disk_image for disk in pool.config.secondary_boot_disks),
        )
        for pool in found.node_pools
    ]
    zones = sorted({*found.locations, *(zone for pool in found.node_pools for zone in pool.locations)})
    # Of a Shared VPC the first says whose it is.
    network = found.network_config.network or f"projects/{settings.project}/global/networks/{found.network}"
    return ClusterTraits(
        name, found.autopilot.enabled, found.current_master_version, tuple(pools), tuple(zones), network
    )


def _numbers(version: str) -> list[int]:
    """A GKE version as what it is compared by."""
    return [int(number) for number in re.findall(r"\d+", version)]


def session() -> Any:
    """A requests session with our credentials."""
    from google.auth.transport.requests import AuthorizedSession

    return AuthorizedSession(credentials())


def call(
    service: str, method: str, path: str, body: dict[str, Any] | None = None, *, again: bool = True
) -> dict[str, Any]:
    """The answer of one of Google's APIs (`service`, like `logging`) that needs no client library of its own.

    again: whether to ask once more after a failure that may heal; else that is Interrupted. Raises what `asked` raises:
    exceptions of google.api_core, by HTTP codes, for a refusal.
    """
    from google.api_core import exceptions

    host = os.environ.get(API_ENDPOINT) or f"https://{service}.googleapis.com"

    def ask() -> dict[str, Any]:
        response = connection.request(method, f"{host}/{path}", json=body, timeout=_CALL_SECONDS)
        if not response.ok:
            raise exceptions.from_http_response(response)
        found: dict[str, Any] = response.json()
        return found

    with session() as connection:
        return cast(dict[str, Any], asked(f"{host}/{path}", ask) if again else once(ask))


def finished(service: str, operation: dict[str, Any]) -> dict[str, Any]:
    """The response of a long-running operation (https://google.aip.dev/151), waited for: nobody tells us when it is
    done. Raises what `call` raises, RequestError with the operation's own words when it failed."""
    pause = _FIRST_LOOK_SECONDS
    while not operation.get("done"):
        time.sleep(pause)
        pause = min(pause * 1.5, _LAST_LOOK_SECONDS)
        operation = call(service, "GET", f"v1/{operation['name']}")
    if error := operation.get("error"):
        raise RequestError(f"{service}: {error.get('message') or error}")
    return dict(operation.get("response", {}))


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Says in our words what an API refuses. Raises AccessError with the permission that is missing, or the API that is
    off; RequestError for the rest."""
    from google.api_core import exceptions

    try:
        yield
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise AccessError(f"{what}: {said(error)}. {_cure(error)}") from error
    except exceptions.ClientError as error:
        raise RequestError(f"{what}: {said(error)}") from error


def _cure(error: Any) -> str:
    """What a person does about a refusal."""
    about = error.metadata or {}
    if "act as service account" in said(error):
        return (
            "Have somebody give you roles/iam.serviceAccountUser on it: `gcloud iam service-accounts "
            "add-iam-policy-binding ACCOUNT --member=user:… --role=roles/iam.serviceAccountUser`"
        )
    if permission := about.get("permission"):
        return f"Have somebody give you a role with {permission}"
    return "Have somebody give you a role that permits it"


def is_settling(error: BaseException) -> bool:
    """Whether a refusal may be of something that was made a moment ago, an API switched on or an account made, and that
    not every server of Google's knows yet."""
    from google.api_core import exceptions

    cause = error.__cause__
    if isinstance(cause, exceptions.Forbidden):
        return cause.reason == "SERVICE_DISABLED"
    words = said(cause)
    return isinstance(cause, exceptions.BadRequest) and "ervice account" in words and "does not exist" in words
