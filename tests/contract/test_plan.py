"""`plan` over an emulated cloud: ready when all is there, and for each cause that it is not, one lack with the command
that mends it. Every test begins with a project that is as `bootstrap` and an administrator leave it."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from emulated_cloud.cloud import Cloud
from emulated_cloud.pytest_plugin import HUB_TOKEN

from pipelines.oversight import plan, status
from pipelines.vertex import preflight
from serving.clients import google, iam, kubernetes, patience, storage
from serving.errors import AccessError
from serving.installation import bootstrap as installation
from serving.installation import roles
from serving.installation.building import Pace
from serving.rendering import render
from serving.settings import Settings, validated

PROJECT, BUCKET = "demo-project", "demo-bucket"
ACCOUNT = f"gemma-pipelines@{PROJECT}.iam.gserviceaccount.com"
SETTINGS = {
    "scenario": "gcs-fuse",
    "project": PROJECT,
    "bucket": BUCKET,
    "hub": {"token_secret": f"projects/{PROJECT}/secrets/hf-token/versions/latest"},
    "schedule": {"cron": "0 3 * * *"},
}
PACE = Pace(look=0.05, log=0.2)


@pytest.fixture(scope="module")
def emulated_cloud(
    tmp_path_factory: pytest.TempPathFactory, tiny_gemma3: Path, emulated_cloud_options: dict[str, Any]
) -> Iterator[Cloud]:
    """A cloud of this file's own: what it breaks is nobody else's."""
    with Cloud(
        tmp_path_factory.mktemp("planned"),
        repositories={"google/gemma-3-4b-it": tiny_gemma3},
        gated=["google/gemma-3-4b-it"],
        secrets={"hf-token": HUB_TOKEN, "another": "hf_nobody"},
        own_images=[f"{PROJECT}/gemma-pipelines/.*"],
        quotas={"GPUS_ALL_REGIONS": 64},
        **emulated_cloud_options,
    ) as cloud:
        yield cloud


class Place:
    """The cloud, as a test breaks it."""

    def __init__(self, cloud: Cloud):
        self.cloud = cloud

    def prepare(self, settings: Settings) -> None:
        """All that is made once, by `bootstrap` and by an administrator of the cluster."""
        assert installation.bootstrap(settings, lambda _: None, pace=PACE).is_ready
        cluster = kubernetes.connect(settings)
        for body in render.admin(settings):
            cluster.apply(body)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = google.session().request(method, f"{self.cloud.url('google')}/{path}", json=body, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def script(self, emulator: str, *faults: dict[str, Any]) -> None:
        url = f"{self.cloud.url(emulator)}/_emulator/faults"
        requests.post(url, json=list(faults), timeout=60, verify=os.environ["SSL_CERT_FILE"]).raise_for_status()

    def consumed(self, emulator: str) -> list[int]:
        url = f"{self.cloud.url(emulator)}/_emulator/faults"
        return [fault["consumed"] for fault in requests.get(url, timeout=60, verify=os.environ["SSL_CERT_FILE"]).json()]


@pytest.fixture
def place(emulated_cloud: Cloud, cloud_environment: dict[str, str]) -> Place:
    found = Place(emulated_cloud)
    for emulator in ("google", "apiserver", "hub"):
        found.script(emulator)
    found.prepare(settings_for())
    return found


def settings_for(**changes: Any) -> Settings:
    return validated(Settings, {**SETTINGS, **changes})


def planned(settings: Settings) -> dict[str, Any]:
    with patience.lasting(20):
        found = plan.plan(settings, datetime.datetime.now(datetime.UTC))
    assert json.loads(json.dumps(found)) == found
    return found


def the_lack(settings: Settings) -> tuple[str, str, str]:
    """The one thing that is missing: what, why, command."""
    found = planned(settings)
    assert not found["ready"]
    assert len(found["missing"]) == 1, [each["what"] for each in found["missing"]]
    (lack,) = found["missing"]
    return lack["what"], lack["why"], lack["command"]


def test_ready_when_all_is_there(place: Place):
    before = len(place.cloud.requests("apiserver"))
    found = planned(settings_for())
    assert (found["missing"], found["ready"]) == ([], True)
    changes = {each["what"]: each["change"] for each in found["changes"]}
    assert changes[f"gs://{BUCKET}"] == "exists"
    assert changes["Namespace/gemma"] == "exists"
    assert changes["Service/gemma"] == "create"
    assert changes["schedule 0 3 * * *"] == "create"
    assert "unknown" not in changes.values()
    # Its own requests: the cluster's controllers may be at work on the new namespace still.
    asked = [each for each in place.cloud.requests("apiserver")[before:] if each["user"] == place.cloud.service_account]
    written = [each for each in asked if each["method"] != "GET" and "dryRun" not in each["path"]]
    assert written
    assert {each["path"].rpartition("/")[2] for each in written} <= {"subjectaccessreviews"}


# -- settings that do not fit the project -------------------------------------------------------------------------

OTHER_SETTINGS = {
    "somebody else's project": (
        {"project": "somebody-elses"},
        "project somebody-elses",
        "gcloud projects list",
    ),
    "a region that is none": (
        {"location": "mars-north1"},
        "region mars-north1",
        f"gcloud compute regions list --project={PROJECT}",
    ),
    "a zone that is none": (
        {"location": "us-central1-z"},
        "zone us-central1-z",
        f"gcloud compute zones list --project={PROJECT} --filter=region:us-central1",
    ),
    "a region without Vertex AI": (
        {"vertex": {"location": "mars-north1"}},
        "Vertex AI",
        f"gcloud compute regions list --project={PROJECT}",
    ),
    "a bucket that is not there": (
        {"bucket": "nobody-has-this"},
        "bucket",
        "gcloud storage buckets create gs://nobody-has-this",
    ),
    "a cluster that is not there": (
        {"cluster": "another"},
        "cluster",
        "gcloud container clusters create-auto another",
    ),
    "accelerators for both generations": (
        {"serving": {"replicas": 9}},
        "quota NVIDIA_L4_GPUS in us-central1",
        f"gcloud beta quotas preferences create --project={PROJECT} --service=compute.googleapis.com "
        "--preferred-value=18 --quota-id=NVIDIA-L4-GPUS-per-project-region --dimensions=region=us-central1",
    ),
    "a token that opens nothing": (
        {"hub": {"token_secret": f"projects/{PROJECT}/secrets/another/versions/latest"}},
        "model google/gemma-3-4b-it",
        "",
    ),
    "a model that is not there": ({"model": "google/gemma-3-1b-it"}, "model google/gemma-3-1b-it", ""),
    "processors for the machine that bakes": (
        {"scenario": "secondary-boot-disk", "secondary_boot_disk": {"machine_type": "n2-standard-96"}},
        "quota CPUS_ALL_REGIONS in all of demo-project",
        "--preferred-value=96 --quota-id=CPUS-ALL-REGIONS-per-project",
    ),
    "disks for the machine that bakes": (
        {"scenario": "secondary-boot-disk", "secondary_boot_disk": {"disk_size_gb": 9000}},
        "quota SSD_TOTAL_GB in us-central1",
        "--preferred-value=9010 --quota-id=SSD-TOTAL-GB-per-project-region --dimensions=region=us-central1",
    ),
    "a family of images that is none": (
        {"scenario": "secondary-boot-disk", "secondary_boot_disk": {"boot_image_family": "plan9"}},
        "baking the disk image",
        "gcloud compute images list --project debian-cloud",
    ),
}


@pytest.mark.parametrize("cause", OTHER_SETTINGS)
def test_settings_that_do_not_fit_are_one_lack(place: Place, cause: str):
    changes, what, command = OTHER_SETTINGS[cause]
    settings = settings_for(**changes)
    if not {"project", "bucket", "location", "cluster"} & {*changes}:
        place.prepare(settings)  # What they need beside.
    told, why, mends = the_lack(settings)
    assert told == what
    assert command in mends
    assert why


# -- what is missing in the project -------------------------------------------------------------------------------


@pytest.mark.parametrize("api", installation.apis(settings_for()))
def test_an_api_that_is_off_is_one_lack(place: Place, api: str):
    place.ask("POST", f"v1/projects/{PROJECT}/services/{api}:disable", {})
    told, _, command = the_lack(settings_for())
    assert (told, command) == (api, f"gcloud services enable {api} --project={PROJECT}")


@pytest.mark.parametrize(
    "grant",
    [each for each in roles.grants(settings_for()) if each.account == ACCOUNT],
    ids=lambda grant: f"{grant.role.rpartition('/')[2]}-on-the-{grant.kind}",
)
def test_a_role_of_the_pipeline_s_account_is_one_lack(place: Place, grant: roles.Grant):
    take_away(place, grant)
    told, why, command = the_lack(settings_for())
    assert (told, why, command) == (grant.words, grant.why, grant.command)


def test_a_role_on_the_whole_project_is_one_on_what_it_has(place: Place):
    (grant,) = (each for each in roles.grants(settings_for()) if each.role == "roles/storage.objectUser")
    take_away(place, grant)
    on_all = roles.Grant("project", PROJECT, grant.role, ACCOUNT, "")
    on_all.give()
    assert planned(settings_for())["ready"]
    take_away(place, on_all)
    assert the_lack(settings_for())[0] == grant.words


def take_away(place: Place, grant: roles.Grant) -> None:
    if grant.kind == "bucket":
        assert storage.remove_bucket_binding(grant.on, grant.role, grant.member)
        return
    path = f"v3/projects/{grant.on}" if grant.kind == "project" else f"v1/{grant.on}"
    policy = iam._policy(grant._guarded)
    for binding in policy["bindings"]:
        if binding["role"] == grant.role:
            binding["members"].remove(grant.member)
    policy["bindings"] = [each for each in policy["bindings"] if each["members"]]
    place.ask("POST", f"{path}:setIamPolicy", {"policy": policy})


def test_the_pods_roles_are_a_run_s_to_give_or_a_person_s(place: Place):
    found = planned(settings_for())
    given = [
        each["what"] for each in found["changes"] if each["change"] == "create" and each["what"].startswith("role")
    ]
    assert given == [f"roles/storage.objectViewer on gs://{BUCKET} for ns/gemma/sa/gemma-server"]
    settings = settings_for(access="check", gcs_fuse={"profile": "manual"})
    told, why, command = the_lack(settings)
    assert told == given[0]
    assert "access: check" in why
    assert command.startswith(f"gcloud storage buckets add-iam-policy-binding gs://{BUCKET} --member=principal://")


def test_an_account_that_is_not_there_is_one_lack(place: Place):
    account = f"nobody@{PROJECT}.iam.gserviceaccount.com"
    settings = settings_for(pipeline_service_account=account)
    for body in render.admin(settings):
        kubernetes.connect(settings).apply(body)
    assert the_lack(settings) == (
        f"service account {account}",
        "it does not exist",
        "gemma-pipelines bootstrap -f FILE",
    )


def test_a_component_image_that_was_not_built_is_one_lack(place: Place):
    settings = settings_for(images={"components": f"us-central1-docker.pkg.dev/{PROJECT}/gemma-pipelines/other:1"})
    told, _, _ = the_lack(settings)
    assert told == "component image"


def test_rights_in_the_cluster_are_one_lack(place: Place):
    cluster = kubernetes.connect(settings_for())
    role = cluster.get("Role", "gemma-pipelines:gemma", "gemma")
    assert role
    cluster.replace({**role, "rules": [rule for rule in role["rules"] if "pods/log" not in rule["resources"]]})
    told, why, command = the_lack(settings_for())
    assert (told, why) == (f"rights of {ACCOUNT} in the cluster", "it may not get pods/log")
    assert command == "gemma-pipelines render gcs-fuse -f FILE --access | kubectl apply --server-side -f -"


def test_who_may_not_ask_for_another_s_rights_is_told_what_they_may_do_themselves(place: Place):
    refused = {"action": "status", "status": 403, "path": "/subjectaccessreviews", "body": "you may not", "times": 9}
    place.script("apiserver", refused)
    found = planned(settings_for())
    assert found["ready"]
    (unknown,) = (each for each in found["changes"] if each["change"] == "unknown")
    assert unknown["what"] == f"rights of {ACCOUNT} in the cluster"
    assert "you may not" in unknown["details"][0]
    assert "may do all of it yourself" in unknown["details"][1]
    assert place.consumed("apiserver") == [1]


# -- a cluster, credentials ---------------------------------------------------------------------------------------


def test_an_old_cluster_is_one_lack(place: Place):
    path = f"v1/projects/{PROJECT}/locations/us-central1/clusters/gemma"
    there = {**place.ask("GET", path), "currentMasterVersion": "1.33.1-gke.1000"}
    headers = {"Content-Type": "application/json"}
    old = {"action": "status", "status": 200, "method": "GET", "path": "clusters/gemma", "headers": headers}
    place.script("google", {**old, "body": json.dumps(there), "times": 99})
    told, why, command = the_lack(settings_for())
    assert told == "GKE version"
    assert "1.33.1-gke.1000" in why
    assert command.startswith("gcloud container clusters upgrade gemma --master")
    assert place.consumed("google")[0] > 0


COMMANDS: dict[str, Callable[[Settings], object]] = {
    "plan": planned,
    "status": lambda settings: status.status(settings, datetime.datetime.now(datetime.UTC), on_vertex=False),
    "bootstrap": lambda settings: installation.bootstrap(settings, lambda _: None, pace=PACE),
    "submit": preflight.checked_job,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_credentials_that_nobody_renews_are_one_error(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
):
    gone = json.dumps({"error": "invalid_grant", "error_description": "Invalid grant: account not found"})
    answer = {"status": 400, "headers": {"Content-Type": "application/json"}, "body": gone}
    place.script("google", {"action": "status", "path": "/token-of-accounts", "times": 99, **answer})
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account",
        "client_email": ACCOUNT,
        "private_key_id": "1",
        "private_key": key.decode(),
        "token_uri": f"{place.cloud.url('google')}/token-of-accounts",
    }
    (tmp_path / "adc.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "adc.json"))
    with pytest.raises(AccessError, match=r"account not found.*gcloud auth application-default login"):
        COMMANDS[command](settings_for())
    assert place.consumed("google")[0] > 0


def test_without_credentials_there_is_one_error(place: Place, monkeypatch: pytest.MonkeyPatch):
    import google.auth

    def none(**_: Any) -> None:
        raise google.auth.exceptions.DefaultCredentialsError("none")

    monkeypatch.setattr(google.auth, "default", none)
    with pytest.raises(AccessError, match="gcloud auth application-default login"):
        planned(settings_for())
