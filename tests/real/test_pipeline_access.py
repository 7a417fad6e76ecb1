"""The rights of the pipeline's identity on a real API server: its runs need each of them, and use them all.

manifests/base/admin is what is granted, with rules derived from the other folders; only the set-up is an
administrator's.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from emulated_cloud.cloud import Cloud
from emulated_cloud.hub import models

from pipelines import child, local
from pipelines.local import state
from serving import names
from serving.clients.kubernetes import kinds
from serving.rendering import access, render
from serving.scenarios import find
from serving.settings import Settings
from tests.unit.deployment import RELEASE

from .kube import kubectl

SCENARIO = find("03")
PARTS = ["control-plane", "gcsfuse"]
EVERY_KIND = {"gemma": ["secondary-boot-disk"], "on-volume": ["hyperdisk-ml"]}
"""Namespace → features of a deployment there: together they make every kind that generations own."""
API_KEY = "projects/demo-project/secrets/hf-token/versions/latest"
"""A secret that the local cloud has; what is in it does not matter."""


LOAD = {"concurrencies": [1], "requests_per_concurrency": 1}
"""Enough: rights are asked for by steps, not by requests."""


def settings_for(**values: Any) -> Settings:
    values["validation"] = {**LOAD, **values.get("validation", {})}
    return local.settings_for({**local.DEFAULTS, "scenario": "gcs-fuse", **values}, None)


@dataclass
class Site:
    """A cloud with a real control plane that stays up for many runs."""

    cloud: Cloud
    folder: Path
    weights: Path

    def run(self, settings: Settings) -> dict[str, Any]:
        """A whole pipeline run: its summary."""
        found = child.execute(SCENARIO, settings, self.folder, self.cloud.environment, lambda entry: None)
        return found["summary"]


@pytest.fixture(scope="module")
def site(parts: None, tmp_path_factory: pytest.TempPathFactory, tiny_gemma3: Path) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("access")
    weights = folder / "weights"
    models.write_gemma3(weights)
    settings = settings_for()
    with local.site(settings, folder / "state", weights, PARTS, print) as up:
        yield Site(up.cloud, up.folder, weights)


# -- nothing is granted that is not used ----------------------------------------------------------------------------


def used(requests: list[dict[str, Any]], user: str) -> set[tuple[str, str, str]]:
    """(API group, resource, verb) of every request that a user made and was allowed."""
    found = set()
    for entry in requests:
        path = urlsplit(entry["path"]).path.split("/")
        if entry["user"] == user and entry["status"] != 403 and entry["resource"]:
            # A patch that makes its object (server-side apply) needs both.
            verbs = {entry["verb"], "create"} if entry["status"] == 201 else {entry["verb"]}
            found |= {(path[2] if path[1] == "apis" else "", entry["resource"], verb) for verb in verbs}
    return found


def granted(settings: Settings) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for item in render.admin(settings)
        # What an administrator installs for a feature has roles of its own.
        if item["metadata"]["name"].startswith("gemma-pipelines:")
        for rule in item.get("rules", [])
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def left_by_others(settings: Settings) -> set[tuple[str, str, str]]:
    """What takes away the kinds that other features make: needed only after those are changed for these."""
    release = RELEASE.model_copy(update={"zones": ["us-central1-a"]})
    own = {item["kind"] for item in [*render.generation(settings, release), *render.temporary(settings, release)]}
    return {(kind.group, kind.plural, "delete") for kind in access.owned_kinds() if kind.kind not in own}


@pytest.mark.parametrize("namespace", EVERY_KIND)
def test_the_runs_of_a_deployment_use_every_right_that_is_granted(site: Site, namespace: str) -> None:
    """From a first run to the collection of the oldest generation, a run that waits for a dead one, a rejected release
    and a rollback."""
    common: dict[str, Any] = {"namespace": namespace, "features": EVERY_KIND[namespace]}
    before = len(site.cloud.requests("apiserver"))
    first = settings_for(**common, engine={"api_key_secret": API_KEY})
    apply_access(site, first)
    for length in (2048, 1024, 512):
        settings = settings_for(**common, engine={"api_key_secret": API_KEY, "max_model_len": length})
        assert site.run(settings)["status"] == "succeeded"
        if length == 2048:
            # Longer than a busy machine takes to the step that waits for it.
            hold_lease(site, settings, seconds=30)
    unwanted = settings_for(
        **common,
        engine={"api_key_secret": API_KEY, "max_model_len": 256},
        validation={"prompts": [{"content": "Hello", "pattern": "no answer ever says this"}]},
    )
    rejected = site.run(unwanted)
    assert (rejected["status"], rejected["error"]["step"]) == ("failed", "validate_server")
    state.remember(site.folder, first)
    rolled = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "rollback", "--state", str(site.folder)],
        env={**os.environ, **site.cloud.environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert rolled.returncode == 0, rolled.stderr

    requests = site.cloud.requests("apiserver")[before:]
    refused = [e for e in requests if e["status"] == 403 and e["user"] == first.pipeline_service_account]
    assert refused == []
    did, may = used(requests, first.pipeline_service_account), granted(first)
    assert (did - may, may - did) == (set(), left_by_others(first))


def hold_lease(site: Site, settings: Settings, seconds: int) -> None:
    """Leaves the Lease as a run does that dies now."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    spec = {"holderIdentity": "dead-run", "acquireTime": now, "renewTime": now, "leaseDurationSeconds": seconds}
    kubectl(
        site.cloud,
        "-n",
        settings.namespace,
        "patch",
        "lease",
        settings.name,
        "--type=merge",
        "-p",
        json.dumps({"spec": spec}),
    )


# -- nothing that is used is missing --------------------------------------------------------------------------------


def apply_access(site: Site, settings: Settings, without: int | None = None) -> None:
    """Gives the pipeline its rights, as an administrator does it; one rule can be left out."""
    objects = render.admin(settings)
    if without is not None:
        (role,) = (item for item in objects if item["kind"] == "Role")
        del role["rules"][without]
    kubectl(site.cloud, "apply", "--server-side", "--force-conflicts", "-f", "-", objects=objects)


RULES = next(item for item in render.admin(settings_for(engine={"api_key_secret": API_KEY})) if item["kind"] == "Role")[
    "rules"
]


def called(rule: dict[str, Any]) -> str:
    return f"{','.join(rule['verbs'])} {','.join(rule['resources'])}"


@pytest.mark.long
@pytest.mark.parametrize("number", range(len(RULES)), ids=[called(rule) for rule in RULES])
def test_without_a_rule_the_run_fails_and_names_it(site: Site, number: int) -> None:
    settings = settings_for(namespace=f"without-{number}", engine={"api_key_secret": API_KEY})
    apply_access(site, settings, without=number)
    result = site.run(settings)
    assert result["status"] == "failed"
    message = result["error"]["message"]
    assert result["error"]["type"] == "AccessError", message
    assert any(
        f'cannot {verb} resource "{resource}" in API group "{group}" in the namespace "{settings.namespace}"' in message
        for group in RULES[number]["apiGroups"]
        for resource in RULES[number]["resources"]
        for verb in RULES[number]["verbs"]
    ), message
    assert "`gemma-pipelines render gcs-fuse -f FILE --access | kubectl apply --server-side -f -`" in message


def test_without_the_right_to_volumes_the_run_fails_and_names_it(site: Site) -> None:
    settings = settings_for(namespace="without-volumes")
    objects = [item for item in render.admin(settings) if not item["kind"].startswith("Cluster")]
    kubectl(site.cloud, "apply", "--server-side", "-f", "-", objects=objects)
    # The same identity has the rights of other deployments.
    ours = ["--selector", "app.kubernetes.io/managed-by=gemma-gke-pipelines"]
    kubectl(site.cloud, "delete", "clusterrolebinding", *ours)
    result = site.run(settings)
    kubectl(site.cloud, "apply", "--server-side", "--force-conflicts", "-f", "-", objects=render.admin(settings_for()))
    assert result["status"] == "failed"
    assert re.search(r'resource "\w+" in API group "[\w.]*" at the cluster scope', result["error"]["message"])
    assert "--access" in result["error"]["message"]


# -- what has no namespace ------------------------------------------------------------------------------------------


def test_the_pipeline_touches_volumes_of_its_own_deployments_alone(site: Site) -> None:
    settings = settings_for()
    apply_access(site, settings)
    as_pipeline = f"--as={settings.pipeline_service_account}"
    ours = {names.NAMESPACE: settings.namespace, names.DEPLOYMENT: settings.name}
    for name, labels in (
        ("somebody-elses", {}),
        ("half-labelled", {names.DEPLOYMENT: settings.name}),
        ("of-another-deployment", {**ours, names.NAMESPACE: "kube-system"}),
    ):
        refused = kubectl(site.cloud, "create", "-f", "-", as_pipeline, objects=[a_volume(name, labels)], fails=True)
        assert "it belongs to no deployment of this pipeline" in refused
        kubectl(site.cloud, "create", "-f", "-", objects=[a_volume(name, labels)])
        refused = kubectl(site.cloud, "delete", "pv", name, "--wait=false", as_pipeline, fails=True)
        assert "it belongs to no deployment of this pipeline" in refused
        kubectl(site.cloud, "delete", "pv", name)
    kubectl(site.cloud, "create", "-f", "-", as_pipeline, objects=[a_volume("of-this-deployment", ours)])
    kubectl(site.cloud, "delete", "pv", "of-this-deployment", "--wait=false", as_pipeline)


def a_volume(name: str, labels: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadOnlyMany"],
            "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeHandle": name},
        },
    }


def test_kinds_are_where_a_real_server_has_them(site: Site) -> None:
    for kind in kinds.known():
        group = f"/apis/{kind.api_version}" if kind.group else f"/api/{kind.version}"
        served = json.loads(kubectl(site.cloud, "get", "--raw", group))["resources"]
        found = {
            (resource["name"], resource["namespaced"])
            for resource in served
            if resource["kind"] == kind.kind and "/" not in resource["name"]
        }
        assert found == {(kind.plural, kind.namespaced)}, kind


# -- pods -----------------------------------------------------------------------------------------------------------


def test_namespaces_enforce_the_restricted_standard_and_every_pod_of_ours_passed(site: Site) -> None:
    settings = settings_for()
    level = kubectl(site.cloud, "get", "namespace", settings.namespace, "-o", "json")
    assert json.loads(level)["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    refused = kubectl(
        site.cloud, "-n", settings.namespace, "run", "careless", "--image=python:3", "--restart=Never", fails=True
    )
    assert 'violates PodSecurity "restricted:latest"' in refused
    events = kubectl(site.cloud, "-n", settings.namespace, "get", "events", "-o", "jsonpath={.items[*].message}")
    assert "PodSecurity" not in events


def test_pods_of_ours_have_no_rights_in_the_api_and_no_token(site: Site) -> None:
    settings = settings_for()
    pods = json.loads(kubectl(site.cloud, "-n", settings.namespace, "get", "pods", "-o", "json"))["items"]
    assert [pod for pod in pods if pod["metadata"]["labels"].get(names.DEPLOYMENT) == settings.name]
    for pod in pods:
        sources = [s for v in pod["spec"]["volumes"] for s in v.get("projected", {}).get("sources", [])]
        assert [source for source in sources if "serviceAccountToken" in source] == []
        subject = f"--as=system:serviceaccount:{settings.namespace}:{pod['spec']['serviceAccountName']}"
        for right in ("get pods", "list secrets", "get configmaps", "create jobs"):
            said = kubectl(site.cloud, "auth", "can-i", *right.split(), "-n", settings.namespace, subject, fails=True)
            assert said.startswith("no")
