"""The emulated APIs of a project: Service Usage, IAM, policies, Artifact Registry, Cloud Build; what they refuse.

Every exchange is held against the APIs' discovery documents.
"""

from __future__ import annotations

import io
import tarfile
import time
from typing import Any

import pytest
import requests

from serving.clients import google
from tests.contract.project_site import BUCKET, PROJECT, REPOSITORY, TOKEN, Project, project

__all__ = ["project"]

ACCOUNT = f"builder@{PROJECT}.iam.gserviceaccount.com"
MEMBER = f"serviceAccount:{ACCOUNT}"
IMAGE = f"us-central1-docker.pkg.dev/{PROJECT}/gemma-pipelines/app"
BUILDS = f"v1/projects/{PROJECT}/locations/us-central1/builds"

all_on = pytest.mark.parametrize("project", [{"services": None}], indirect=True)


class Caller:
    """Asks the project's APIs; what is refused comes back as its status and its words."""

    def __init__(self, project: Project):
        self._url, self._session = project.url, google.session()

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._session.request(method, f"{self._url}/{path}", json=body, timeout=60)
        found = answer.json()
        if answer.ok:
            return found
        return answer.status_code, found["error"]["status"], found["error"]["message"]


@pytest.fixture
def ask(project: Project) -> Caller:
    return Caller(project)


def test_an_api_that_is_off_answers_nobody_until_it_is_on(ask: Caller):
    services = f"v1/projects/{PROJECT}/services"
    code, status, words = ask("GET", f"v1/projects/{PROJECT}/roles/any")
    assert (code, status) == (403, "PERMISSION_DENIED")
    assert "has not been used in project 123456789012 before or it is disabled" in words
    assert [each["name"] for each in ask("GET", f"{services}?filter=state:ENABLED")["services"]] == [
        "projects/123456789012/services/serviceusage.googleapis.com"
    ]
    operation = ask("POST", f"{services}:batchEnable", {"serviceIds": ["iam.googleapis.com"]})
    assert "done" not in operation
    assert ask("GET", f"v1/{operation['name']}")["done"]
    assert ask("GET", f"v1/projects/{PROJECT}/roles/any")[0] == 404
    off = ask("POST", f"{services}/iam.googleapis.com:disable", {})
    assert (off["done"], off["response"]["service"]["state"]) == (True, "DISABLED")
    assert ask("GET", f"v1/projects/{PROJECT}/roles/any")[0] == 403
    first = ask("GET", f"{services}?pageSize=3")
    rest = ask("GET", f"{services}?pageSize=200&pageToken={first['nextPageToken']}")
    assert len(first["services"]) == 3
    assert {"aiplatform.googleapis.com", "storage.googleapis.com"} <= {
        each["config"]["name"] for each in first["services"] + rest["services"]
    }
    assert ask("POST", f"{services}:batchEnable", {"serviceIds": ["nope.googleapis.com"]})[0] == 403
    assert ask("POST", f"{services}:batchEnable", {"serviceIds": []})[0] == 400


@all_on
def test_accounts_and_roles(ask: Caller):
    accounts, roles = f"v1/projects/{PROJECT}/serviceAccounts", f"v1/projects/{PROJECT}/roles"
    made = ask("POST", accounts, {"accountId": "builder", "serviceAccount": {"displayName": "Builds"}})
    assert made["email"] == ACCOUNT
    assert ask("GET", f"{accounts}/{ACCOUNT}") == made
    assert ask("POST", accounts, {"accountId": "builder"})[:2] == (409, "ALREADY_EXISTS")
    assert ask("POST", accounts, {"accountId": "x"})[:2] == (400, "INVALID_ARGUMENT")
    assert ask("GET", f"{accounts}/nobody@{PROJECT}.iam.gserviceaccount.com")[:2] == (404, "NOT_FOUND")

    role = {"roleId": "ours", "role": {"title": "Ours", "includedPermissions": ["storage.buckets.get"]}}
    assert ask("POST", roles, role)["stage"] == "ALPHA"
    assert ask("POST", roles, role)[:2] == (409, "ALREADY_EXISTS")
    assert ask("POST", roles, {"roleId": "no role", "role": {}})[0] == 400
    assert ask("POST", roles, {"roleId": "wrong", "role": {"includedPermissions": ["nonsense"]}})[0] == 400
    changed = ask("PATCH", f"{roles}/ours?updateMask=title", {"title": "New", "includedPermissions": []})
    assert (changed["title"], changed["includedPermissions"]) == ("New", ["storage.buckets.get"])
    assert ask("DELETE", f"{roles}/ours")["deleted"]
    assert ask("PATCH", f"{roles}/ours?updateMask=title", {"title": "Again"})[:2] == (400, "FAILED_PRECONDITION")
    assert "deleted" not in ask("POST", f"{roles}/ours:undelete", {})


@all_on
def test_a_policy_changes_only_for_who_has_seen_it(ask: Caller):
    path = f"v3/projects/{PROJECT}"
    seen = ask("POST", f"{path}:getIamPolicy", {})

    def give(role: str, member: str, **more: str) -> Any:
        policy = {"bindings": [{"role": role, "members": [member]}], **more}
        return ask("POST", f"{path}:setIamPolicy", {"policy": policy})

    assert give("roles/viewer", MEMBER) == (400, "INVALID_ARGUMENT", f"Service account {ACCOUNT} does not exist.")
    assert give(f"projects/{PROJECT}/roles/none", "user:a@example.com")[0] == 400
    assert give("roles/viewer", "somebody")[0] == 400
    assert give("roles/viewer", "user:a@example.com", etag=seen["etag"])["bindings"]
    assert give("roles/viewer", "user:b@example.com", etag=seen["etag"])[:2] == (409, "ABORTED")
    assert ask("GET", f"v1/{REPOSITORY}:getIamPolicy")[:2] == (404, "NOT_FOUND")
    tested = ask("POST", f"{path}:testIamPermissions", {"permissions": ["iam.roles.create"]})
    assert tested == {"permissions": ["iam.roles.create"]}
    assert ask("POST", f"{path}:testIamPermissions", {"permissions": ["iam.*"]})[0] == 400


@all_on
def test_repositories_and_what_is_in_them(ask: Caller):
    parent = REPOSITORY.rpartition("/")[0]
    assert ask("GET", f"v1/{REPOSITORY}")[:2] == (404, "NOT_FOUND")
    assert ask("POST", f"v1/{parent}?repositoryId=gemma-pipelines", {"format": "FORMAT_UNSPECIFIED"})[0] == 400
    operation = ask("POST", f"v1/{parent}?repositoryId=gemma-pipelines", {"format": "DOCKER"})
    assert ask("GET", f"v1/{operation['name']}")["response"]["name"] == REPOSITORY
    assert ask("POST", f"v1/{parent}?repositoryId=gemma-pipelines", {"format": "DOCKER"})[:2] == (409, "ALREADY_EXISTS")
    assert [each["name"] for each in ask("GET", f"v1/{parent}")["repositories"]] == [REPOSITORY]
    assert ask("GET", f"v1/{REPOSITORY}/packages/app/tags/1")[:2] == (404, "NOT_FOUND")
    assert ask("GET", f"v1/{REPOSITORY}/dockerImages") == {}


# -- builds -------------------------------------------------------------------------------------------------


def packed(**files: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content.encode()))
    return made.getvalue()


@pytest.fixture
def builder(project: Project, ask: Caller) -> None:
    """What a build needs: an account with its roles, a repository."""
    ask("POST", f"v1/projects/{PROJECT}/serviceAccounts", {"accountId": "builder"})
    ask("POST", f"v1/{REPOSITORY.rpartition('/')[0]}?repositoryId=gemma-pipelines", {"format": "DOCKER"})
    for path, role in (
        (f"v3/projects/{PROJECT}", "logging.logWriter"),
        (f"v1/{REPOSITORY}", "artifactregistry.writer"),
    ):
        policy = {"bindings": [{"role": f"roles/{role}", "members": [MEMBER]}]}
        ask("POST", f"{path}:setIamPolicy", {"policy": policy})
    policy = {"bindings": [{"role": "roles/storage.objectViewer", "members": [MEMBER]}]}
    requests.put(f"{project.storage}/storage/v1/b/{BUCKET}/iam", json=policy, timeout=60).raise_for_status()


def request_for(project: Project, source: bytes, **changes: Any) -> dict[str, Any]:
    url = f"{project.storage}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name=source.tgz"
    requests.post(url, data=source, timeout=60).raise_for_status()
    return {
        "source": {"storageSource": {"bucket": BUCKET, "object": "source.tgz"}},
        "steps": [{"name": "gcr.io/cloud-builders/docker", "args": ["build", "--tag", f"{IMAGE}:1", "."]}],
        "images": [f"{IMAGE}:1"],
        "serviceAccount": f"projects/{PROJECT}/serviceAccounts/{ACCOUNT}",
        "options": {"logging": "CLOUD_LOGGING_ONLY"},
        **changes,
    }


def ended(ask: Caller, request: dict[str, Any]) -> Any:
    """The build when it has ended."""
    build = ask("POST", BUILDS, request)["metadata"]["build"]
    deadline = time.monotonic() + 60
    while build["status"] in ("QUEUED", "WORKING"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        build = ask("GET", f"{BUILDS}/{build['id']}")
    return build


def log(ask: Caller, build: dict[str, Any]) -> str:
    condition = f'resource.type="build" AND resource.labels.build_id="{build["id"]}"'
    asked = {"resourceNames": [f"projects/{PROJECT}"], "filter": condition, "orderBy": "timestamp asc"}
    return "\n".join(entry["textPayload"] for entry in ask("POST", "v2/entries:list", asked)["entries"])


@all_on
@pytest.mark.usefixtures("builder")
def test_an_image_of_a_source_has_a_digest_of_its_own(project: Project, ask: Caller):
    one, same, other = (
        ended(ask, request_for(project, packed(Dockerfile="FROM scratch\nCOPY a a\n", a=content)))
        for content in ("1", "1", "2")
    )
    digests = [build["results"]["images"][0]["digest"] for build in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]
    assert "Step 2/2 : COPY a a" in log(ask, one)
    tag = ask("GET", f"v1/{REPOSITORY}/packages/app/tags/1")
    assert tag["version"].endswith(digests[2])
    (image,) = ask("GET", f"v1/{REPOSITORY}/dockerImages")["dockerImages"]
    assert (image["uri"], image["tags"]) == (f"{IMAGE}@{digests[2]}", ["1"])
    headers = {"Authorization": f"Bearer {TOKEN}"}
    there = f"{project.registry}/v2/{PROJECT}/gemma-pipelines/app/manifests"
    assert requests.get(f"{there}/1", headers=headers, timeout=60).headers["Docker-Content-Digest"] == digests[2]
    assert requests.get(f"{there}/2", headers=headers, timeout=60).status_code == 404
    assert ask("POST", f"{BUILDS}/{one['id']}:cancel", {})[:2] == (400, "FAILED_PRECONDITION")


@all_on
@pytest.mark.usefixtures("builder")
def test_what_docker_would_refuse_fails_the_build(project: Project, ask: Caller):
    cases = {
        "stat missing: file does not exist": packed(Dockerfile="FROM scratch\nCOPY missing /\n"),
        "unable to evaluate symlinks in Dockerfile path": packed(other="x"),
        "unknown instruction: COPPY": packed(Dockerfile="FROM scratch\nCOPPY a b\n"),
    }
    for words, source in cases.items():
        build = ended(ask, request_for(project, source))
        assert (build["status"], build["failureInfo"]["type"]) == ("FAILURE", "USER_BUILD_STEP")
        assert words in log(ask, build)


@all_on
@pytest.mark.usefixtures("builder")
def test_a_build_is_refused_that_cannot_be(project: Project, ask: Caller):
    request = request_for(project, packed(Dockerfile="FROM scratch\n"))
    assert ask("POST", BUILDS, {**request, "steps": []})[:2] == (400, "INVALID_ARGUMENT")
    assert ask("POST", BUILDS, {**request, "options": {}})[2].startswith("invalid build: if 'build.service_account'")
    nobody = f"projects/{PROJECT}/serviceAccounts/nobody@{PROJECT}.iam.gserviceaccount.com"
    assert ask("POST", BUILDS, {**request, "serviceAccount": nobody})[:2] == (403, "PERMISSION_DENIED")
    lost = ended(ask, {**request, "source": {"storageSource": {"bucket": BUCKET, "object": "nothing"}}})
    assert lost["failureInfo"]["type"] == "FETCH_SOURCE_FAILED"
    elsewhere = ended(ask, {**request, "images": [f"us-central1-docker.pkg.dev/{PROJECT}/other/app:1"]})
    assert elsewhere["failureInfo"]["type"] == "PUSH_IMAGE_NOT_FOUND"


@all_on
@pytest.mark.usefixtures("builder")
def test_a_build_needs_the_roles_of_its_account(project: Project, ask: Caller):
    request = request_for(project, packed(Dockerfile="FROM scratch\n"))
    ask("POST", f"v1/{REPOSITORY}:setIamPolicy", {"policy": {}})
    assert ended(ask, request)["failureInfo"]["type"] == "PUSH_NOT_AUTHORIZED"
    requests.put(f"{project.storage}/storage/v1/b/{BUCKET}/iam", json={"bindings": []}, timeout=60).raise_for_status()
    assert ended(ask, request)["failureInfo"]["type"] == "FETCH_SOURCE_FAILED"
    ask("POST", f"v3/projects/{PROJECT}:setIamPolicy", {"policy": {}})
    assert ended(ask, request)["failureInfo"]["type"] == "LOGGING_FAILURE"


@all_on
@pytest.mark.usefixtures("builder")
def test_a_build_that_is_held_is_found_cancelled_or_lost_with_its_service(project: Project, ask: Caller):
    request = request_for(project, packed(Dockerfile="FROM scratch\n"), tags=["mine"])
    project.script({"action": "outcome", "path": "/builds$", "outcome": {"hold": True}, "times": 2})
    build = ask("POST", BUILDS, request)["metadata"]["build"]
    condition = 'tags="mine" AND (status="QUEUED" OR status="WORKING")'
    assert [each["id"] for each in ask("GET", f"{BUILDS}?filter={condition}")["builds"]] == [build["id"]]
    assert ask("POST", f"{BUILDS}/{build['id']}:cancel", {})["status"] == "CANCELLED"
    assert ask("GET", f"{BUILDS}?filter={condition}") == {}
    ask("POST", BUILDS, request)
    project.stop()
    project.start()
    assert [each["status"] for each in Caller(project)("GET", BUILDS)["builds"]] == ["INTERNAL_ERROR", "CANCELLED"]
