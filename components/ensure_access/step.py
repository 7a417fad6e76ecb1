"""The step that takes the Lease, so that this run alone changes things, and lets serving pods read the bucket."""

from __future__ import annotations

import functools
from typing import Any

from serving import features, names
from serving.clients import google, kubernetes, proxies, storage
from serving.clients.kubernetes import Cluster, ConflictError, Object
from serving.deployment import bindings as grants
from serving.deployment import caches, canary, leftovers, record, replacement
from serving.deployment.record import Record
from serving.errors import AccessError, PipelineError, RequestError
from serving.features import Binding
from serving.log import Say
from serving.rendering import render
from serving.settings import Settings
from serving.step import opened
from serving.weights.release import Release


def run(settings: dict[str, Any], release: dict[str, Any]) -> None:
    """Takes the Lease, removes what dead runs left, and sees to namespace, API key and bucket bindings."""
    with opened("ensure_access", settings, release) as step:
        outcome, config, target = step.outcome, step.settings, step.release
        features.demand(config, "suits", functools.partial(google.cluster_traits, config))
        cluster = kubernetes.connect(config)
        features.demand(config, "served", cluster.has_group)
        others = functools.partial(other_deployments, cluster, config)
        features.demand(config, "houses", cluster.get("Namespace", config.namespace), others)
        changed = ensure_namespace(cluster, render.namespace(config), config)
        with step.holding_lease(cluster, take=True):
            known = ensure_record(cluster, config, outcome.say)
            changed += end_canary(cluster, config, target.run_id, outcome.say)
            changed += bring_back(cluster, config, known, target.run_id, outcome.say)
            changed += leftovers.remove(cluster, config, known, target.run_id, target.generation, outcome.say)
            if config.engine.api_key_secret:
                changed += ensure_api_key(cluster, config, target)
            changed += ensure_bindings(config, bindings(config), outcome.say)
            changed += proxies.ensure(config, outcome.say)
            # They take minutes to be made, in which the weights come; deploy_server waits for them.
            changed += caches.ensure(config, outcome.say)
        outcome.details["changed"] = changed
        if changed:
            outcome.succeeded(f"changed: {', '.join(changed)}")
        else:
            outcome.skipped("namespace and bindings were there")


def ensure_record(cluster: Cluster, settings: Settings, say: Say) -> Record:
    """The deployment's record, written before anything else is made: where there is none later on, one was lost."""
    known = record.read(cluster, settings)
    if known.was_lost:
        say(
            f"the record {settings.namespace}/{names.record(settings)} is gone: made again of what is in the cluster "
            f"({', '.join(sorted(known.named))}). What was rejected or pinned before is not known any more"
        )
    known.write(cluster, settings)
    return known


def other_deployments(cluster: Cluster, settings: Settings) -> list[str]:
    """The other deployments with servers in the namespace, by their names."""
    servers = cluster.list("Deployment", settings.namespace, labels=names.DEPLOYMENT)
    return sorted({str(server["metadata"]["labels"][names.DEPLOYMENT]) for server in servers} - {settings.name})


def end_canary(cluster: Cluster, settings: Settings, run_id: str, say: Say) -> list[str]:
    """Gives the live generation all requests again where a run died that had given another a share of them. Returns
    what was changed."""
    try:
        candidate = canary.put_back(cluster, settings, run_id=run_id, say=say)
    except PipelineError as error:
        say(f"a canary that a run left stays as it is: {error}. This run goes on")
        return []
    return [f"the share of {candidate}"] if candidate else []


def bring_back(cluster: Cluster, settings: Settings, known: Record, run_id: str, say: Say) -> list[str]:
    """Brings back the live generation where a run died that had taken it down. Returns what was changed."""
    try:
        back = replacement.bring_back(cluster, settings, known, run_id=run_id, say=say)
    except PipelineError as error:
        # What this run brings may serve all the same.
        say(f"the live generation is down since a run died, and does not come back: {error}. This run goes on")
        return []
    return [f"Deployment/{names.server(back)}"] if back else []


def ensure_namespace(cluster: Cluster, namespace: Object, settings: Settings) -> list[str]:
    """Makes the namespace if it is not there; one that is stays as its owner made it. Returns what was changed."""
    name = settings.namespace
    there = cluster.get("Namespace", name)
    if there is None:
        try:
            cluster.create(namespace)
        except ConflictError:
            return []  # Somebody made it meanwhile.
        return [f"Namespace/{name}"]
    if there["metadata"].get("deletionTimestamp"):
        raise RequestError(
            f"namespace {name} is being deleted: wait until it is gone (`kubectl get namespace {name} --watch`), or "
            "name another"
        )
    return []


def ensure_api_key(cluster: Cluster, settings: Settings, release: Release) -> list[str]:
    """Copies the server's API key from Secret Manager to where pods can read it. Returns what was changed.

    It is the version that the run has resolved, whatever has become the latest since: the pods carry its name, and with
    another they are replaced.
    """
    import base64

    key = google.secret(release.api_key_version)
    name = names.api_key(settings)
    secret: Object = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": settings.namespace, "labels": {names.DEPLOYMENT: settings.name}},
        "type": "Opaque",
        "data": {names.API_KEY: base64.b64encode(key.encode()).decode()},
    }
    there = cluster.get("Secret", name, settings.namespace)
    if there and _holds(there, secret):
        return []
    cluster.apply(secret)
    return [f"Secret/{name}"]


def bindings(settings: Settings) -> list[Binding]:
    """The roles on the bucket that serving needs, by workload identity: no key, and no role on the whole project."""
    address = google.cluster_address(settings.project, settings.location, settings.cluster, settings.endpoint)
    pool = (
        f"principal://iam.googleapis.com/projects/{google.project_number(settings.project)}/locations/global/"
        f"workloadIdentityPools/{address.workload_pool}/subject"
    )

    def principal(namespace: str, service_account: str) -> str:
        return f"{pool}/ns/{namespace}/sa/{service_account}"

    return [binding for _, own in features.answers(settings, "bindings", principal) for binding in own]


def ensure_bindings(settings: Settings, wanted: list[Binding], say: Say) -> list[str]:
    """Gives the bucket's roles, or with `access: check` looks whether they are given. Returns what was changed.

    Raises AccessError with the commands that are left to do.
    """
    if settings.access == "check":
        missing = [b for b in wanted if not storage.has_bucket_binding(settings.bucket, b.role, b.member)]
        if missing:
            raise AccessError(
                f"gs://{settings.bucket} lacks {len(missing)} of {len(wanted)} bindings, and access: check leaves "
                "them to you:\n" + "\n".join(commands(settings, missing))
            )
        return []
    changed = []
    for binding in wanted:
        try:
            given = grants.give(settings, binding)
        except AccessError:
            raise
        except RequestError as error:
            if not binding.make_role:
                raise
            # Not one of Google's own: whoever asks for it first finds that it is not there.
            raise RequestError(f"{error}. The role is made once in a project: `{binding.make_role}`") from error
        if given:
            changed.append(f"{binding.role} on gs://{settings.bucket}")
            say(f"gave {binding.role} on gs://{settings.bucket} to {binding.member.partition('/subject/')[2]}")
    return changed


def commands(settings: Settings, missing: list[Binding]) -> list[str]:
    """What a person types, what happens once in a project included."""
    commands = []
    for binding in missing:
        if binding.make_role:
            commands.append(binding.make_role)
        commands.append(
            f"gcloud storage buckets add-iam-policy-binding gs://{settings.bucket} --member={binding.member} "
            f"--role={binding.role}"
        )
    return commands


def _holds(there: Object, wanted: Object) -> bool:
    """Whether an object has everything that is wanted of it, and maybe more."""
    for key, value in wanted.items():
        given = there.get(key)
        if isinstance(value, dict) and isinstance(given, dict):
            if not _holds(given, value):
                return False
        elif given != value:
            return False
    return True
