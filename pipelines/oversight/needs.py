"""What a refresh needs and may lack: each lack with its reason and the command that mends it. Reads only."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from components.bake_disk_image import room
from components.bake_disk_image.step import Baking
from components.ensure_access.step import bindings, commands
from pipelines.vertex import preflight
from serving import catalog, sizing
from serving.clients import google, iam, service_usage, storage
from serving.clients.compute import Compute, GoneError, Room
from serving.clients.google import ApiOffError, ClusterTraits
from serving.clients.kubernetes import Cluster
from serving.errors import AccessError, PipelineError
from serving.installation import bootstrap, roles
from serving.rendering import render
from serving.settings import Settings
from serving.weights.release import Release

Answer = TypeVar("Answer")

BOOTSTRAP = "gemma-pipelines bootstrap -f FILE"
_SUBMITS = ("aiplatform.pipelineJobs.create", "aiplatform.pipelineJobs.get")
_ACTS = ("iam.serviceAccounts.actAs",)


@dataclass
class Needs:
    """What was looked at in a project: what is missing, and what nobody may see from here."""

    project: str
    missing: list[dict[str, str]] = field(default_factory=list)
    """`{"what", "why", "command"}`"""
    unknown: list[dict[str, Any]] = field(default_factory=list)
    """What could not be looked at, as changes are told."""

    def lacks(self, what: str, why: str, command: str = "") -> None:
        found = {"what": what, "why": why, "command": command}
        if found not in self.missing:
            self.missing.append(found)

    def lacks_api(self, api: str) -> None:
        """An API is off: one lack, whoever meets it."""
        why = f"it is not enabled in {self.project}"
        self.lacks(api, why, f"gcloud services enable {api} --project={self.project}")

    def is_unknown(self, what: str, *details: str) -> None:
        self.unknown.append({"what": what, "change": "unknown", "details": list(details)})

    def look(self, what: str, ask: Callable[[], Answer]) -> Answer | None:
        """The answer, or None when what keeps it from coming is missing."""
        try:
            return ask()
        except ApiOffError as error:
            self.lacks_api(error.api)
        except PipelineError as error:
            self.lacks(what, str(error), command_in(str(error)))
        return None

    def look_if_allowed(self, what: str, ask: Callable[[], Answer]) -> Answer | None:
        """The same, of what another may look at if this caller may not."""
        try:
            return ask()
        except ApiOffError as error:
            self.lacks_api(error.api)
        except AccessError as error:
            self.is_unknown(what, str(error))
        except PipelineError as error:
            self.lacks(what, str(error), command_in(str(error)))
        return None

    def is_well(self, what: str, check: Callable[[], object]) -> bool:
        """Whether a check finds nothing amiss."""
        before = len(self.missing)
        self.look(what, check)
        return len(self.missing) == before


def command_in(words: str) -> str:
    """The command that an error advises: the first that stands in it."""
    found = re.search(r"`((?:gcloud|gemma-pipelines|kubectl|pip|curl)[^`]*)`", words)
    return found[1] if found else ""


# -- the project ----------------------------------------------------------------------------------------------


def of_place(needs: Needs, settings: Settings) -> bool:
    """Project and region, without which nothing else is to be looked at: whether both are there."""
    project, region = settings.project, settings.region
    try:
        google.project_number(project)
    except ApiOffError as error:
        needs.lacks_api(error.api)
    except PipelineError as error:
        needs.lacks(f"project {project}", str(error), command_in(str(error)))
        return False
    try:
        zones, _ = Compute(project).region(region)
    except GoneError as error:
        command = f"gcloud compute regions list --project={project}"
        needs.lacks(f"region {region}", f"{error}. Correct `location` in the settings", command)
        return False
    except PipelineError:
        return True  # What keeps Compute Engine from answering is told where its quotas are looked at.
    if settings.location not in (region, *zones):
        command = f"gcloud compute zones list --project={project} --filter=region:{region}"
        needs.lacks(f"zone {settings.location}", f"{region} has {', '.join(zones)}", command)
        return False
    return True


def of_project(needs: Needs, settings: Settings) -> bool:
    """APIs, accounts and their roles, what this caller may do, bucket and component image. Returns whether the bucket
    is there."""
    project, account = settings.project, settings.pipeline_service_account
    enabled = needs.look_if_allowed("APIs", lambda: service_usage.enabled(project))
    if enabled is not None:
        for api in bootstrap.apis(settings):
            if api not in enabled:
                needs.lacks_api(api)
    has_bucket = needs.is_well("bucket", lambda: preflight.check_buckets(settings))
    needs.look("component image", lambda: preflight.digest_of(settings))
    there = needs.look_if_allowed(f"service account {account}", lambda: iam.account_exists(account))
    if there is False:
        needs.lacks(f"service account {account}", "it does not exist", BOOTSTRAP)
    elif there:
        _of_account(needs, settings, has_bucket=has_bucket)
    own = needs.look_if_allowed("your own roles", lambda: iam.missing_permissions(iam.of_project(project), _SUBMITS))
    if own:
        needs.lacks(
            "your own roles",
            f"you lack {', '.join(own)} on {project}",
            f"gcloud projects add-iam-policy-binding {project} --member=user:YOU --role=roles/aiplatform.user",
        )
    return has_bucket


def _of_account(needs: Needs, settings: Settings, *, has_bucket: bool) -> None:
    account = settings.pipeline_service_account
    acts = needs.look_if_allowed("acting as", lambda: iam.missing_permissions(iam.of_account(account), _ACTS))
    if acts:
        needs.lacks(
            f"acting as {account}",
            f"you lack {', '.join(acts)} on it, with which runs get it",
            f"gcloud iam service-accounts add-iam-policy-binding {account} --project={settings.project} "
            "--member=user:YOU --role=roles/iam.serviceAccountUser",
        )
    for grant in roles.grants(settings):
        if grant.account != account and not grant.is_of_the_cluster:
            continue
        if grant.kind == "bucket" and not has_bucket:
            continue
        given = needs.look_if_allowed(grant.words, partial(grant.holds, settings.project))
        if given is False:
            needs.lacks(grant.words, grant.why, grant.command)


# -- the cluster ----------------------------------------------------------------------------------------------


def of_pods(needs: Needs, settings: Settings) -> Iterator[dict[str, Any]]:
    """The roles on the bucket that pods need: those that a run is going to give, as changes."""
    wanted = needs.look("pods' roles", lambda: bindings(settings)) or []
    for binding in wanted:
        is_given = partial(storage.has_bucket_binding, settings.bucket, binding.role, binding.member)
        given = needs.look_if_allowed(binding.role, is_given)
        who = binding.member.partition("/subject/")[2]
        what = f"{binding.role} on gs://{settings.bucket} for {who}"
        if given:
            yield {"what": what, "change": "exists", "details": []}
        elif given is False and settings.access == "manage":
            yield {"what": what, "change": "create", "details": []}
        elif given is False:
            needs.lacks(what, "access: check leaves it to you", " && ".join(commands(settings, [binding])))


def of_rights(needs: Needs, cluster: Cluster, settings: Settings) -> None:
    """What the pipeline's account may do in the cluster, by the API server's own word. Who may not ask that of another
    is told what they may do themselves, which is the same where they are that account."""
    account = settings.pipeline_service_account
    what = f"rights of {account} in the cluster"
    try:
        denied, is_of_the_caller = _denied(cluster, settings, account), False
    except AccessError as error:
        refused = str(error)
        mine = needs.look_if_allowed(what, lambda: (cluster.caller(), _denied(cluster, settings, None)))
        if mine is None:
            return
        caller, denied = mine
        is_of_the_caller = caller != account
    except PipelineError as error:
        needs.lacks(what, str(error), command_in(str(error)))
        return
    more = f" and {len(denied) - 6} more" if len(denied) > 6 else ""
    words = f"{', '.join(denied[:6])}{more}"
    if is_of_the_caller:
        own = f"you ({caller}) may not {words}" if denied else f"you ({caller}) may do all of it yourself"
        needs.is_unknown(what, f"you may not ask what it may do: {refused}", own)
    elif denied:
        command = f"gemma-pipelines render {settings.scenario} -f FILE --access | kubectl apply --server-side -f -"
        needs.lacks(what, f"it may not {words}", command)


def _denied(cluster: Cluster, settings: Settings, user: str | None) -> list[str]:
    """What a user, or the caller, lacks of the roles that an administrator gives the pipeline."""
    return [
        f"{verb} {resource}{f' {name}' if name else ''}"
        for item in render.admin(settings)
        # A feature's roles are those of what an administrator installs for it.
        if item["kind"] in ("Role", "ClusterRole") and item["metadata"]["name"].startswith("gemma-pipelines:")
        for rule in item["rules"]
        for resource, name, verb in itertools.product(
            rule.get("resources", []), rule.get("resourceNames") or [""], rule["verbs"]
        )
        if not cluster.allows(
            user,
            settings.namespace if item["kind"] == "Role" else "",
            name,
            group=rule["apiGroups"][0],
            resource=resource,
            verb=verb,
        )
    ]


def of_accelerators(needs: Needs, settings: Settings, traits: ClusterTraits, *, serves: bool) -> list[str]:
    """Cards for two generations side by side, or with `rollout: replace` for one, by quota and by zone. Returns what
    there is to say of them.

    serves: a generation has its cards already.
    """
    if other := settings.beside:
        return _of_either(settings, other)
    asked = settings.accelerator
    one = asked.count * settings.serving.replicas
    how = "" if settings.capacity == "on-demand" else f" ({settings.capacity})"
    lines = [
        f"{one} × {asked.type}{how} serve: {one * 24} accelerator-hours a day",
        f"{2 * one} while a refresh validates the new generation beside the live one"
        if settings.rollout == "beside"
        else "no more while a refresh validates a new generation: the live one makes room for it (rollout: replace)",
    ]
    if "queue-hpa" in settings.chosen_features:
        most = asked.count * settings.section("queue-hpa").max_replicas
        again = ", and then as many again for a refresh" if settings.rollout == "beside" else ""
        lines.append(f"{most} when the queue is long{again}; one more than the least to verify")
    if warning := sizing.warning(settings.model, settings.wish()):
        lines.append(f"warning: {warning}")
    compute, region = Compute(settings.project), settings.region
    found = needs.look_if_allowed("quota", lambda: (compute.region(region)[1], compute.project_quotas()))
    if found is None:
        return lines
    card = catalog.card(asked.type)
    metric = card.quota
    metric = f"PREEMPTIBLE_{metric}" if metric and settings.capacity == "spot" else metric
    of_region, of_project = found
    quotas = [(metric, of_region, region), (card.kind.project_quota, of_project, "")]
    if settings.capacity == "reservation":
        # What is reserved has been counted.
        lines.append(f"their nodes come out of {settings.reservation.name or 'any reservation that matches'}")
        quotas = []
    elif metric not in of_region:
        lines.append(_quota_elsewhere(settings))
    for name, rooms, where in quotas:
        if name in rooms:
            _of_quota(needs, settings, name, rooms[name], where, one=one, serves=serves)
    if not card.topologies:  # TPUs are not among Compute Engine's accelerators.
        _of_zones(needs, settings, compute, traits)
    return lines


def _of_either(settings: Settings, other: Settings) -> list[str]:
    """What there is to say of pods that run on two kinds of accelerators: no quota of either is lacking, since a choice
    that has none left is followed by the next."""
    either = " or ".join(f"{own.accelerator.count} × {own.accelerator.type}" for own in (settings, other))
    replicas = settings.serving.replicas
    serve = "pod serves" if replicas == 1 else "pods serve"
    warnings = [sizing.warning(own.model, own.wish()) for own in (settings, other)]
    return [
        f"{replicas} {serve}, each on {either}: {replicas * 24} node-hours a day",
        f"{2 * replicas} while a refresh validates the new generation beside the live one",
        "a quota that is used up is a choice that is out of stock: see those of each node pool in the console",
        *(f"warning: {warning}" for warning in warnings if warning),
    ]


def _quota_elsewhere(settings: Settings) -> str:
    """Where the quota is to be seen that Compute Engine does not show."""
    asked, region = settings.accelerator, settings.region
    words = f"Compute Engine shows no quota of {asked.type} in {region}: see"
    if not (found := catalog.card(asked.type).quota_ids.get(settings.capacity)):
        return f"{words} the console's quotas page"
    dimensions = "".join(f", {key}={value}" for key, value in found.get("dimensions", {}).items())
    return (
        f"{words} `gcloud beta quotas info describe {found['id']} --service=compute.googleapis.com "
        f"--project={settings.project}` (region={region}{dimensions})"
    )


def _of_quota(
    needs: Needs, settings: Settings, metric: str, found: Room, region: str, *, one: int, serves: bool
) -> None:
    where = f"in {region}" if region else f"in all of {settings.project}"
    in_use = found.limit - found.left
    beside = settings.rollout == "beside"
    whole = 2 * one if beside else one
    # A live generation's cards are in use already.
    wanted = whole - one if serves else whole
    if found.left >= wanted:
        return
    needed = max(in_use + wanted, whole)
    who = f"two generations side by side need {whole}" if beside else f"a generation needs {whole}"
    needs.lacks(
        f"quota {metric} {where}",
        f"the limit is {found.limit:g}, {in_use:g} are in use; {who}, so {wanted} have to be free",
        _more_quota(settings.project, metric, region, needed),
    )


def of_baking(needs: Needs, settings: Settings, release: Release) -> None:
    """The machine that bakes a disk image: the images that it reads, and quotas for it and its disks."""
    compute, section = Compute(settings.project), settings.section("secondary-boot-disk")
    baking = Baking(compute, settings, release, lambda _: None)
    wanted = needs.look_if_allowed("baking the disk image", baking.planned)
    if wanted is None:
        return
    short = needs.look_if_allowed(
        "quota of baking", lambda: room.shortages(compute, section, settings.location, wanted.disk_gb)
    )
    for each in short or ():
        where = f"in {each.region}" if each.region else f"in all of {each.project}"
        needed = each.room.limit - each.room.left + each.wanted
        needs.lacks(
            f"quota {each.metric} {where}", str(each), _more_quota(each.project, each.metric, each.region, needed)
        )


def _more_quota(project: str, metric: str, region: str, value: float) -> str:
    """What asks for a larger quota, for a person. (The quotas' ids are by Google's documentation.)"""
    scope = f"per-project-region --dimensions=region={region}" if region else "per-project"
    return (
        f"gcloud beta quotas preferences create --project={project} --service=compute.googleapis.com "
        f"--preferred-value={value:g} --quota-id={metric.replace('_', '-')}-{scope}"
    )


def _of_zones(needs: Needs, settings: Settings, compute: Compute, traits: ClusterTraits) -> None:
    kind = catalog.card(settings.accelerator.type).gke_name
    having = needs.look_if_allowed("zones", lambda: compute.zones_with(kind))
    if having is None:
        return
    usable = sorted(set(having) & set(traits.zones))
    if not usable:
        near = sorted(zone for zone in having if zone.startswith(f"{settings.region}-"))
        needs.lacks(
            f"{settings.accelerator.type} in {', '.join(traits.zones) or settings.location}",
            f"no zone of the cluster has it; in {settings.region} have it: {', '.join(near) or 'none'}",
            f"gcloud container clusters update {settings.cluster} --location={settings.location} "
            f"--project={settings.project} --node-locations={','.join(near)}"
            if near
            else f"gcloud compute accelerator-types list --project={settings.project} --filter=name={kind}",
        )


def of_cluster(needs: Needs, settings: Settings) -> ClusterTraits | None:
    """What the cluster is, if it is there."""
    return needs.look("cluster", lambda: google.cluster_traits(settings))
