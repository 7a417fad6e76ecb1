"""Which roles the accounts of a deployment need, each with the reason: the least that does.

`bootstrap` gives them, `plan` looks whether they are given, and docs/security.md has the table (`make golden`). What
pods of the cluster need on the bucket is their features' own (ensure_access gives it), and what the pipeline needs in
the cluster is manifests/base/admin/.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from serving import features, names
from serving.clients import artifact_registry, google, iam, storage
from serving.clients.iam import Guarded
from serving.clients.rapid_cache import PERMISSIONS as CACHE_PERMISSIONS
from serving.errors import RequestError
from serving.features import queue_hpa
from serving.features.gcs_fuse import PROFILE_PERMISSIONS, PROFILE_ROLE
from serving.image import REPOSITORY
from serving.rendering.engine import engine_image
from serving.weights import repositories

if TYPE_CHECKING:
    from serving.settings import Settings

BUILDER = "gemma-pipelines-build"
"""The account that builds the component image, by its name in the project."""

READER = "roles/artifactregistry.reader"

Kind = Literal["project", "bucket", "secret", "repository", "account"]


@dataclass(frozen=True)
class Grant:
    """A role that an account has on something, and why."""

    kind: Kind
    on: str
    """The project's id, the bucket's name, the secret's or the repository's resource name, the account's e-mail."""
    role: str
    account: str
    """Its e-mail; of a service account of the cluster, `ns/NAMESPACE/sa/NAME`."""
    why: str

    @property
    def is_of_the_cluster(self) -> bool:
        """Whether the account is one of the cluster's own: on the project, to which the cluster belongs."""
        return self.account.startswith("ns/")

    @property
    def member(self) -> str:
        return self._member(google.project_number) if self.is_of_the_cluster else f"serviceAccount:{self.account}"

    def _member(self, number_of: Callable[[str], str]) -> str:
        pool = f"projects/{number_of(self.on)}/locations/global/workloadIdentityPools/{self.on}.svc.id.goog"
        return f"principal://iam.googleapis.com/{pool}/subject/{self.account}"

    @property
    def words(self) -> str:
        called = f"gs://{self.on}" if self.kind == "bucket" else self.on
        return f"{self.role} on {called} for {self.account}"

    @property
    def command(self) -> str:
        """What gives it, for a person."""
        member = self._member(_number_in_a_shell) if self.is_of_the_cluster else self.member
        binding = f"--member={member} --role={self.role}"
        if self.kind == "project":
            return f"gcloud projects add-iam-policy-binding {self.on} {binding} --condition=None"
        if self.kind == "bucket":
            return f"gcloud storage buckets add-iam-policy-binding gs://{self.on} {binding}"
        if self.kind == "account":
            return f"gcloud iam service-accounts add-iam-policy-binding {self.on} {binding}"
        _, project, *_, name = self.on.split("/")
        if self.kind == "secret":
            return f"gcloud secrets add-iam-policy-binding {name} --project={project} {binding}"
        location = self.on.split("/")[3]
        return (
            f"gcloud artifacts repositories add-iam-policy-binding {name} --project={project} --location={location} "
            f"{binding}"
        )

    def is_given(self) -> bool:
        """Raises AccessError for a policy that may not be read."""
        if self.kind == "bucket":
            return storage.has_bucket_binding(self.on, self.role, self.member)
        return iam.has_binding(self._guarded, self.role, self.member)

    def holds(self, project: str) -> bool:
        """Whether it is given there, or by the project's own policy on all that the project has. Raises as is_given."""
        inherits = self.kind != "project"
        return self.is_given() or (inherits and iam.has_binding(iam.of_project(project), self.role, self.member))

    def give(self) -> bool:
        """Gives it unless it is given: returns whether that was to be done."""
        if self.kind == "bucket":
            return storage.ensure_bucket_binding(self.on, self.role, self.member)
        return iam.ensure_binding(self._guarded, self.role, self.member)

    @property
    def _guarded(self) -> Guarded:
        of = {
            "project": iam.of_project,
            "secret": iam.of_secret,
            "repository": iam.of_repository,
            "account": iam.of_account,
        }
        return of[self.kind](self.on)


def _number_in_a_shell(project: str) -> str:
    return f"$(gcloud projects describe {project} --format='value(projectNumber)')"


@dataclass(frozen=True)
class OwnRole:
    """A role of the project's own: where none of Google's is as little."""

    id: str
    title: str
    permissions: tuple[str, ...]
    is_shared: bool = False
    """Whether others may have made it, with more permissions, for themselves."""

    def in_project(self, project: str) -> str:
        return f"projects/{project}/roles/{self.id}"

    def command(self, project: str) -> str:
        return (
            f"gcloud iam roles create {self.id} --project={project} --title='{self.title}' --stage=GA "
            f"--permissions={','.join(self.permissions)}"
        )


CONNECT = OwnRole(
    "gemmaPipelinesConnect",
    "Gemma pipelines: reach the cluster",
    # What roles/container.clusterViewer has, and what the DNS endpoint asks for, which is not known to be in it.
    ("container.clusters.connect", "container.clusters.get", "container.clusters.list", "resourcemanager.projects.get"),
)
NODE_POOLS = OwnRole(
    "gemmaPipelinesNodePools",
    "Gemma pipelines: make node pools",
    ("container.clusters.update", "container.operations.get", "container.operations.list"),
)
POLICY = OwnRole(
    "gemmaPipelinesBucketPolicy",
    "Gemma pipelines: let serving pods read the bucket",
    ("storage.buckets.getIamPolicy", "storage.buckets.setIamPolicy"),
)
CACHE = OwnRole("gemmaPipelinesCache", "Gemma pipelines: Rapid Cache", tuple(CACHE_PERMISSIONS.split(",")))
PROFILE = OwnRole(PROFILE_ROLE, "GKE: GCS FUSE profiles", tuple(PROFILE_PERMISSIONS.split(",")), is_shared=True)
BAKE = OwnRole(
    "gemmaPipelinesBake",
    "Gemma pipelines: bake disk images",
    tuple(
        f"compute.{permission}"
        for permission in (
            *("disks.create", "disks.delete", "disks.list", "disks.setLabels", "disks.use", "disks.useReadOnly"),
            *("globalOperations.get", "images.create", "images.delete", "images.get", "images.getFromFamily"),
            *("images.list", "images.setLabels", "images.useReadOnly", "instances.create", "instances.delete"),
            *("instances.get", "instances.getSerialPortOutput", "instances.list", "instances.setLabels"),
            *("instances.setMetadata", "instances.setServiceAccount", "instances.setTags", "instances.stop"),
            *("projects.get", "regions.get", "subnetworks.use", "zoneOperations.get"),
        )
    ),
)
PROXIES = OwnRole(
    "gemmaPipelinesProxies",
    "Gemma pipelines: see the proxy-only subnet",
    ("compute.subnetworks.list",),
)
PROXY_SUBNET = OwnRole(
    "gemmaPipelinesProxySubnet",
    "Gemma pipelines: make the proxy-only subnet",
    ("compute.networks.updatePolicy", "compute.regionOperations.get", "compute.subnetworks.create"),
)
OWN_ROLES = (CONNECT, NODE_POOLS, POLICY, CACHE, PROFILE, BAKE, PROXIES, PROXY_SUBNET)


def own_roles(settings: Settings) -> list[OwnRole]:
    """The project's own roles that the deployment needs: those that somebody is given, and the one that ensure_access
    gives a controller of GKE."""
    given = {grant.role for grant in grants(settings)}
    found = [role for role in OWN_ROLES if role.in_project(settings.project) in given]
    return [*found, PROFILE] if _has(settings, "gcs-fuse", profile="serving") else found


def builder(settings: Settings) -> str:
    """The account that builds the component image."""
    return f"{BUILDER}@{settings.project}.iam.gserviceaccount.com"


def repository(settings: Settings) -> str:
    """The project's repository for the component image, by its resource name."""
    return f"projects/{settings.project}/locations/{names.region(settings.location)}/repositories/{REPOSITORY}"


def secrets(settings: Settings) -> list[str]:
    """The secrets that the settings name, without their versions."""
    named = (settings.hub.token_secret, settings.engine.api_key_secret)
    return list(dict.fromkeys("/".join(name.split("/")[:4]) for name in named if name))


def grants(settings: Settings) -> list[Grant]:
    """Every role that the deployment's accounts need, in the order in which they are given."""
    return [*_of_the_pipeline(settings), *_of_the_builder(settings), *_of_the_adapter(settings)]


def _of_the_pipeline(settings: Settings) -> list[Grant]:
    account, project, bucket = settings.pipeline_service_account, settings.project, settings.bucket

    def on(kind: Kind, name: str, role: str, why: str) -> Grant:
        return Grant(kind, name, role, account, why)

    found = [
        on("project", project, "roles/aiplatform.user", "Vertex AI runs the pipeline as this account"),
        on("project", project, CONNECT.in_project(project), "finds the cluster and reaches its API server"),
        on("bucket", bucket, "roles/storage.objectUser", "weights, steps and reports"),
    ]
    if settings.access == "manage":
        found.append(on("bucket", bucket, POLICY.in_project(project), "lets serving pods read the bucket"))
    if any(caching for _, caching in features.answers(settings, "caching")):
        found.append(on("bucket", bucket, CACHE.in_project(project), "Rapid Cache of the bucket"))
    root = settings.pipeline_root.split("/")[2]
    if root != bucket:
        found.append(on("bucket", root, "roles/storage.objectUser", "steps and reports"))
    for source in sorted({each.source.split("/")[2] for each in repositories.of(settings) if each.source}):
        if source != bucket:
            found.append(on("bucket", source, "roles/storage.objectViewer", "what a `source` names comes from it"))
    for secret in secrets(settings):
        found.append(on("secret", secret, "roles/secretmanager.secretAccessor", "the steps that need it read it"))
    if _has(settings, "gpu-or-tpu", nodes="create"):
        found.append(on("project", project, NODE_POOLS.in_project(project), "makes the node pools"))
        if nodes := settings.section("gpu-or-tpu").node_service_account:
            found.append(on("account", nodes, "roles/iam.serviceAccountUser", "the nodes run as this account"))
    if settings.has_gateway and not settings.section("gateway").proxy_ranges:
        why = "from where the load balancer's proxies call the pods"
        found.append(on("project", project, PROXIES.in_project(project), why))
        if settings.access == "manage" and settings.section("gateway").proxy_subnet_range:
            why = "makes the proxy-only subnet where there is none"
            found.append(on("project", project, PROXY_SUBNET.in_project(project), why))
    if _has(settings, "secondary-boot-disk"):
        found.append(on("project", project, "roles/logging.viewer", "what nodes say of the image cache"))
        if place := _place_of_the_engine(settings):
            streamed = _has(settings, "secondary-boot-disk", image="streaming")
            role = artifact_registry.WRITER_ROLE if streamed else READER
            found.append(on("repository", place, role, "what the engine's image is made of, and keeping it warm"))
    if _has(settings, "secondary-boot-disk", image="disk"):
        found.append(on("project", project, BAKE.in_project(project), "the machine that bakes the disk image"))
        if machine := settings.section("secondary-boot-disk").service_account:
            found.append(
                on("account", machine, "roles/iam.serviceAccountUser", "the machine that bakes runs as this account")
            )
    return found


def _of_the_builder(settings: Settings) -> list[Grant]:
    account, project = builder(settings), settings.project
    return [
        Grant("project", project, "roles/logging.logWriter", account, "what the build prints"),
        Grant("bucket", settings.bucket, "roles/storage.objectViewer", account, "the source that is built"),
        Grant("repository", repository(settings), "roles/artifactregistry.writer", account, "the image that is built"),
    ]


def _of_the_adapter(settings: Settings) -> list[Grant]:
    """What brings the queue's length from Cloud Monitoring to the autoscaler."""
    if not _has(settings, "queue-hpa", adapter="stackdriver"):
        return []
    namespace, name = queue_hpa.ADAPTER
    account, why = f"ns/{namespace}/sa/{name}", "the adapter in the cluster reads the queue's length"
    return [Grant("project", settings.project, "roles/monitoring.viewer", account, why)]


def _place_of_the_engine(settings: Settings) -> str:
    """The repository of Artifact Registry that the engine's image comes from; empty for another registry's."""
    try:
        place = artifact_registry.parse(engine_image(settings))
    except RequestError:
        return ""
    return f"projects/{place.project}/locations/{place.location}/repositories/{place.repository}"


def _has(settings: Settings, feature: str, **choices: str) -> bool:
    """Whether the deployment has a feature, with these choices in its section."""
    if feature not in settings.chosen_features:
        return False
    section = settings.section(feature)
    return all(getattr(section, key) == value for key, value in choices.items())
