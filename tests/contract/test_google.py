"""Google's APIs, with their real clients over REST, held against their discovery documents.

They run against the emulator, or, where these variables are set, against the real services, with Application Default
Credentials of whoever runs them:

    GOOGLE_CONTRACT_PROJECT   a project; its Resource Manager is asked
    GOOGLE_CONTRACT_CLUSTER   `projects/P/locations/L/clusters/C`, a running cluster in it
    GOOGLE_CONTRACT_SECRET    `projects/P/secrets/S`, a secret in it with an enabled newest version

What is about the metadata server, faults and configuration is the emulator's alone.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
import requests
from emulated_cloud import process
from google.api_core import exceptions
from google.api_core.client_options import ClientOptions

from tests.contract.discovery import Conformance, check_refusal

TOKEN = "a-token-that-nobody-guesses"
ACCOUNT = "runner@demo.iam.gserviceaccount.com"
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
CONFIG: dict[str, Any] = {
    "project": {"id": "demo", "number": "123456789012"},
    "service_account": ACCOUNT,
    "token": TOKEN,
    "clusters": [
        {
            "name": "main",
            "location": "us-central1",
            "endpoint": "127.0.0.1:6443",
            "ca_certificate": CERTIFICATE,
            "version": "1.35.1-gke.1396000",
        },
        {
            "name": "standard",
            "location": "europe-west4-a",
            "endpoint": "127.0.0.1:7443",
            "ca_certificate": CERTIFICATE,
            "version": "1.34.2-gke.1000000",
            "autopilot": False,
            "dns_endpoint": "gke-1.europe-west4.gke.goog",
        },
    ],
    "secrets": {
        "hf-token": {"1": "old", "2": "비밀\n", "10": "newest"},
        "states": {"1": {"value": "x", "state": "DISABLED"}, "2": {"value": "x", "state": "DESTROYED"}},
        "empty": {},
        "kept-back": {"1": "x"},
    },
    "denied": ["projects/demo/secrets/kept-back"],
}


@dataclass
class Google:
    """The services under test; `endpoint` is None for the real ones."""

    endpoint: str | None
    project: str
    cluster: str
    secret: str

    def client(self, client_class: Any, api: str, version: str) -> Any:
        from google.oauth2.credentials import Credentials

        client = client_class(
            transport="rest",
            credentials=Credentials(TOKEN) if self.endpoint else None,
            client_options=ClientOptions(api_endpoint=self.endpoint) if self.endpoint else None,
        )
        Conformance(api, version).watch(client.transport._session)
        return client

    def get(self, path: str, **headers: str) -> requests.Response:
        return requests.get(f"{self.endpoint}{path}", headers=headers, timeout=60)

    def script(self, *faults: dict[str, Any]) -> None:
        requests.post(f"{self.endpoint}/_emulator/faults", json=list(faults), timeout=60).raise_for_status()

    def consumed(self) -> list[int]:
        return [fault["consumed"] for fault in self.get("/_emulator/faults").json()]

    def requests(self) -> list[dict[str, Any]]:
        return self.get("/_emulator/requests").json()


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Google]:
    if "GOOGLE_CONTRACT_PROJECT" in os.environ:
        pytest.skip("the emulator's alone")
    folder = tmp_path_factory.mktemp("google")
    config, log = folder / "config.json", folder / "google.log"
    config.write_text(json.dumps(CONFIG))
    started = process.start("emulated_cloud.google", "--config", str(config), log=log)
    try:
        yield Google(
            started.url, "demo", "projects/demo/locations/us-central1/clusters/main", "projects/demo/secrets/hf-token"
        )
    finally:
        started.stop()
    assert log.read_text() == ""


@pytest.fixture(scope="module")
def google(request: pytest.FixtureRequest) -> Google:
    if project := os.environ.get("GOOGLE_CONTRACT_PROJECT"):
        return Google(None, project, os.environ["GOOGLE_CONTRACT_CLUSTER"], os.environ["GOOGLE_CONTRACT_SECRET"])
    return request.getfixturevalue("emulator")


@pytest.fixture(scope="module")
def clusters(google: Google) -> Any:
    from google.cloud import container_v1

    return google.client(container_v1.ClusterManagerClient, "container", "v1")


@pytest.fixture(scope="module")
def secrets(google: Google) -> Any:
    from google.cloud import secretmanager

    return google.client(secretmanager.SecretManagerServiceClient, "secretmanager", "v1")


@pytest.fixture(scope="module")
def projects(google: Google) -> Any:
    from google.cloud import resourcemanager_v3

    return google.client(resourcemanager_v3.ProjectsClient, "cloudresourcemanager", "v3")


# -- container ----------------------------------------------------------------------------------------------


def test_a_cluster(google, clusters):
    found = clusters.get_cluster(name=google.cluster)
    assert found.status.name == "RUNNING"
    assert google.cluster.endswith(f"/locations/{found.location}/clusters/{found.name}")
    assert found.endpoint == found.control_plane_endpoints_config.ip_endpoints_config.public_endpoint
    assert base64.b64decode(found.master_auth.cluster_ca_certificate).startswith(b"-----BEGIN CERTIFICATE-----\n")
    assert found.workload_identity_config.workload_pool == f"{google.project}.svc.id.goog"
    assert found.addons_config.gcs_fuse_csi_driver_config.enabled
    assert found.current_master_version.startswith("1.")
    assert found.node_pools


def test_clusters_of_a_location_and_of_all(google, clusters):
    parent = google.cluster.rpartition("/clusters/")[0]
    name = google.cluster.rpartition("/")[2]
    assert name in [found.name for found in clusters.list_clusters(parent=parent).clusters]
    everywhere = clusters.list_clusters(parent=f"projects/{google.project}/locations/-")
    assert name in [found.name for found in everywhere.clusters]
    if google.endpoint:
        assert [found.name for found in everywhere.clusters] == ["main", "standard"]
        assert not clusters.list_clusters(parent="projects/demo/locations/asia-east1").clusters


def test_a_standard_cluster_with_a_dns_endpoint(emulator, clusters):
    found = clusters.get_cluster(name="projects/123456789012/locations/europe-west4-a/clusters/standard")
    assert not found.autopilot.enabled
    dns = found.control_plane_endpoints_config.dns_endpoint_config
    assert (dns.endpoint, dns.allow_external_traffic) == ("gke-1.europe-west4.gke.goog", True)
    assert list(found.locations) == ["europe-west4-a"]


def test_a_cluster_that_is_not_there(google, clusters):
    with pytest.raises(exceptions.NotFound, match=r"Not found: projects/.*/clusters/absent"):
        clusters.get_cluster(name=google.cluster.rpartition("/")[0] + "/absent")


def test_a_project_that_is_not_ours(clusters):
    with pytest.raises(exceptions.Forbidden, match=r"container\.clusters\.get"):
        clusters.get_cluster(name="projects/somebody-elses-project/locations/us-central1/clusters/x")


def test_versions(google, clusters):
    parent = google.cluster.rpartition("/clusters/")[0]
    config = clusters.get_server_config(name=parent)
    assert config.default_cluster_version in config.valid_master_versions
    assert "REGULAR" in [channel.channel.name for channel in config.channels]


# -- Secret Manager -----------------------------------------------------------------------------------------


def test_a_secret(google, secrets):
    found = secrets.access_secret_version(name=f"{google.secret}/versions/latest")
    assert found.payload.data_crc32c == google_crc32c.value(found.payload.data)
    version = found.name.rpartition("/")[2]
    assert version.isdecimal()
    assert secrets.access_secret_version(name=f"{google.secret}/versions/{version}").payload == found.payload
    if google.endpoint:
        assert found.name == "projects/123456789012/secrets/hf-token/versions/10"
        assert found.payload.data == b"newest"
        two = secrets.access_secret_version(name="projects/123456789012/secrets/hf-token/versions/2")
        assert two.payload.data.decode() == "비밀\n"


def test_a_secret_that_is_not_there(google, secrets):
    with pytest.raises(exceptions.NotFound, match="not found"):
        secrets.access_secret_version(name=f"{google.secret}/versions/99999")
    absent = google.secret.rpartition("/")[0] + "/no-such-secret-at-all"
    with pytest.raises(exceptions.NotFound, match="not found or has no versions"):
        secrets.access_secret_version(name=f"{absent}/versions/latest")


def test_secrets_that_cannot_be_read(emulator, secrets):
    for version, state in (("1", "DISABLED"), ("2", "DESTROYED"), ("latest", "DESTROYED")):
        with pytest.raises(exceptions.BadRequest, match=f"is in {state} state") as refused:
            secrets.access_secret_version(name=f"projects/demo/secrets/states/versions/{version}")
        assert refused.value.response.json()["error"]["status"] == "FAILED_PRECONDITION"
    with pytest.raises(exceptions.NotFound, match="not found or has no versions"):
        secrets.access_secret_version(name="projects/demo/secrets/empty/versions/latest")
    for project in ("demo", "123456789012", "other"):
        with pytest.raises(exceptions.Forbidden, match=r"'secretmanager\.versions\.access' denied"):
            secrets.access_secret_version(name=f"projects/{project}/secrets/kept-back/versions/1")


# -- Resource Manager ---------------------------------------------------------------------------------------


def test_a_project(google, projects):
    found = projects.get_project(name=f"projects/{google.project}")
    assert found.project_id == google.project
    assert found.state.name == "ACTIVE"
    number = found.name.removeprefix("projects/")
    assert number.isdecimal()
    assert projects.get_project(name=found.name) == found


def test_a_project_that_is_not_there(projects):
    with pytest.raises(exceptions.Forbidden, match="permission"):
        projects.get_project(name="projects/somebody-elses-project-4711")


def test_a_project_as_older_clients_ask(emulator):
    session = requests.Session()
    Conformance("cloudresourcemanager", "v1").watch(session)
    url = f"{emulator.endpoint}/v1/projects/demo"
    found = session.get(url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60).json()
    assert (found["projectId"], found["projectNumber"], found["lifecycleState"]) == ("demo", "123456789012", "ACTIVE")


# -- credentials --------------------------------------------------------------------------------------------


CHILD = """
import google.auth, google.auth.transport.requests, json
credentials, project = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
credentials.refresh(google.auth.transport.requests.Request())
print(json.dumps([project, credentials.token, credentials.service_account_email, credentials.universe_domain]))
"""


def child(emulator: Google, tmp_path: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Python with nothing but the metadata server to find credentials with."""
    host = str(emulator.endpoint).removeprefix("http://")
    environment = {
        "GCE_METADATA_HOST": host,
        "GCE_METADATA_IP": host,
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
    }
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )


def test_default_credentials_come_from_the_metadata_server(emulator, tmp_path):
    assert json.loads(child(emulator, tmp_path, CHILD).stdout) == ["demo", TOKEN, ACCOUNT, "googleapis.com"]


def test_a_client_with_default_credentials(emulator, tmp_path):
    code = f"""
from google.cloud import secretmanager
client = secretmanager.SecretManagerServiceClient(
    transport="rest", client_options={{"api_endpoint": "{emulator.endpoint}"}}
)
print(client.access_secret_version(name="{emulator.secret}/versions/1").payload.data.decode())
"""
    assert child(emulator, tmp_path, code).stdout == "old\n"
    last = emulator.requests()[-1]
    assert (last["user"], last["status"]) == (ACCOUNT, 200)
    assert TOKEN not in json.dumps(emulator.requests())


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("project/project-id", "demo"),
        ("project/numeric-project-id", "123456789012"),
        ("universe/universe-domain", "googleapis.com"),
        ("instance/service-accounts/", f"default/\n{ACCOUNT}/\n"),
        ("instance/service-accounts/default/email", ACCOUNT),
        ("instance/service-accounts/default/aliases", "default"),
        (f"instance/service-accounts/{ACCOUNT}/scopes", "https://www.googleapis.com/auth/cloud-platform"),
        ("project/?recursive=true", {"numericProjectId": 123456789012, "projectId": "demo"}),
        (
            "instance/service-accounts/default/?recursive=true",
            {"aliases": ["default"], "email": ACCOUNT, "scopes": ["https://www.googleapis.com/auth/cloud-platform"]},
        ),
    ],
)
def test_metadata(emulator, path, expected):
    response = emulator.get(f"/computeMetadata/v1/{path}", **{"Metadata-Flavor": "Google"})
    assert (response.status_code, response.headers["Metadata-Flavor"]) == (200, "Google")
    assert (response.text if isinstance(expected, str) else response.json()) == expected


def test_metadata_is_for_those_who_mean_it(emulator):
    """A page in a browser, or a request forged by one, cannot set the header."""
    path = "/computeMetadata/v1/instance/service-accounts/default/token"
    refused = emulator.get(path)
    assert refused.status_code == 403
    assert TOKEN not in refused.text
    assert emulator.get(path, **{"Metadata-Flavor": "Google"}).json()["expires_in"] > 0
    assert emulator.get("/computeMetadata/v1/absent", **{"Metadata-Flavor": "Google"}).status_code == 404
    assert emulator.get("/").headers["Metadata-Flavor"] == "Google"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "CREDENTIALS_MISSING"),
        ({"Authorization": "Bearer wrong"}, "ACCESS_TOKEN_TYPE_UNSUPPORTED"),
        ({"Authorization": f"Basic {TOKEN}"}, "ACCESS_TOKEN_TYPE_UNSUPPORTED"),
    ],
)
def test_nobody_gets_in_without_the_token(emulator, headers, reason):
    for path in (f"/v1/{emulator.cluster}", f"/v1/{emulator.secret}/versions/1:access", "/v3/projects/demo"):
        response = emulator.get(path, **headers)
        assert response.status_code == 401
        check_refusal(response)
        error = response.json()["error"]
        assert (error["status"], error["details"][0]["reason"]) == ("UNAUTHENTICATED", reason)
    assert emulator.requests()[-1]["user"] == "anonymous"


# -- the emulator -------------------------------------------------------------------------------------------


def test_a_refusal_that_passes(emulator, clusters):
    body = json.dumps({"error": {"code": 503, "message": "later", "status": "UNAVAILABLE"}})
    headers = {"Content-Type": "application/json"}
    emulator.script({"action": "status", "path": "/clusters/", "status": 503, "body": body, "headers": headers})
    assert clusters.get_cluster(name=emulator.cluster).name == "main"
    assert emulator.consumed() == [1]


def test_what_no_api_knows(emulator):
    for path in ("/v1/projects/demo/topics", "/v1/projects/demo/secrets/hf-token/topics", "/nothing"):
        response = emulator.get(path, Authorization=f"Bearer {TOKEN}")
        assert response.status_code == 404
        check_refusal(response)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"project": {"id": "demo"}}, "'number' is missing"),
        ({"token": None}, "'token' is missing"),
        ({"tokens": "x"}, "unknown: tokens"),
        ({"clusters": [{"name": "x"}]}, "location"),
        ({"secrets": {"x": {"1": {"value": "v", "state": "GONE"}}}}, "ENABLED, DISABLED, DESTROYED"),
    ],
)
def test_a_configuration_that_is_wrong(tmp_path, change, said):
    config = {key: value for key, value in (CONFIG | change).items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(process.EmulatorFailed, match=said):
        process.start("emulated_cloud.google", "--config", str(tmp_path / "config.json"), log=tmp_path / "log")


# -- Artifact Registry --------------------------------------------------------------------------------------


def test_an_image_is_kept_warm(emulator):
    session = requests.Session()
    Conformance("artifactregistry", "v1").watch(session)
    repository = "projects/demo/locations/us-central1/repositories/images"
    version = f"{repository}/packages/team%2Fengine/versions/sha256:{'a' * 64}"

    def ask(method: str, path: str, body: Any = None) -> requests.Response:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return session.request(method, f"{emulator.endpoint}/v1/{path}", json=body, headers=headers, timeout=60)

    assert ask("POST", f"{repository}:checkPrewarmedArtifact", {"version": version}).status_code == 404
    assert ask("GET", f"{repository}/prewarmedArtifacts").json() == {}
    operation = ask("POST", f"{repository}:prewarmArtifact", {"version": version, "retentionDays": "30"}).json()
    assert operation["done"]
    assert ask("GET", operation["name"]).json() == operation
    warm = ask("POST", f"{repository}:checkPrewarmedArtifact", {"version": version}).json()["prewarmedArtifact"]
    assert warm["uri"] == f"us-central1-docker.pkg.dev/demo/images/team/engine@sha256:{'a' * 64}"
    assert (warm["state"], warm["location"]) == ("ACTIVE", "us-central1")
    assert ask("GET", f"{repository}/prewarmedArtifacts").json() == {"prewarmedArtifacts": [warm]}
    for wrong in ({"version": "latest"}, {"tag": version}, {}):
        assert ask("POST", f"{repository}:prewarmArtifact", wrong).status_code == 400
    other = ask("POST", f"{repository.replace('demo', 'other')}:prewarmArtifact", {"version": version})
    assert other.status_code == 403

    held = {"action": "outcome", "path": ":prewarmArtifact", "outcome": {"hold": True}}
    failing = {**held, "outcome": {"error": {"code": 8, "message": "no room"}}}
    emulator.script(held, failing)
    begun = ask("POST", f"{repository}:prewarmArtifact", {"version": version.replace("a" * 64, "b" * 64)}).json()
    failed = ask("POST", f"{repository}:prewarmArtifact", {"version": version.replace("a" * 64, "c" * 64)}).json()
    assert "done" not in begun
    assert (failed["done"], failed["error"]) == (True, {"code": 8, "message": "no room"})
    listed = ask("GET", f"{repository}/prewarmedArtifacts").json()["prewarmedArtifacts"]
    assert [each["state"] for each in listed] == ["ACTIVE", "CACHING", "FAILED"]
    assert emulator.consumed() == [1, 1]
    emulator.script()
    assert ask("GET", begun["name"]).json()["response"]["prewarmedArtifact"]["state"] == "ACTIVE"
