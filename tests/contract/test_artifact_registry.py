"""Our client of Artifact Registry, held against the API's discovery document."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import requests
from google.oauth2.credentials import Credentials

from serving.clients import artifact_registry, google
from serving.errors import AccessError, InconclusiveError
from tests.contract.compute_service import TOKEN, Compute, compute, until
from tests.contract.discovery import Conformance

__all__ = ["compute"]

CONFORMANCE = Conformance("artifactregistry", "v1")
DIGEST = f"sha256:{'a' * 64}"
REPOSITORY = "v1/projects/demo/locations/us/repositories/images"


@pytest.fixture(autouse=True)
def checked(compute: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    send = requests.Session.send

    def watched(session: requests.Session, request: Any, **options: Any) -> Any:
        response = send(session, request, **options)
        if "/v1/projects/" in request.url:
            CONFORMANCE.check(response)
        return response

    monkeypatch.setattr(requests.Session, "send", watched)
    monkeypatch.setattr(artifact_registry, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(google, "credentials", lambda: Credentials(TOKEN))
    monkeypatch.setenv(google.API_ENDPOINT, compute.process.url)


def prewarm(name: str, project: str = "demo", seconds: float = 30) -> None:
    image = f"us-docker.pkg.dev/{project}/images/team/{name}:v1"
    artifact_registry.prewarm(image, DIGEST, "us-central1", seconds)


def warm() -> dict[str, Any]:
    found = google.call("artifactregistry", "GET", f"{REPOSITORY}/prewarmedArtifacts")
    return {each["uri"]: each for each in found.get("prewarmedArtifacts", [])}


def test_an_image_is_warm_where_the_nodes_are():
    prewarm("engine")
    found = warm()[f"us-docker.pkg.dev/demo/images/team/engine@{DIGEST}"]
    assert (found["location"], found["state"]) == ("us-central1", "ACTIVE")
    prewarm("engine")


def test_it_is_waited_for(compute: Compute):
    compute.script(("POST", ":prewarmArtifact$", {"hold": True}))
    waiting = threading.Thread(target=prewarm, args=["slow"])
    waiting.start()
    uri = f"us-docker.pkg.dev/demo/images/team/slow@{DIGEST}"
    until(lambda: warm().get(uri, {}).get("state") == "CACHING")
    assert waiting.is_alive()
    assert compute.consumed() == [1]
    compute.script()
    waiting.join(30)
    assert warm()[uri]["state"] == "ACTIVE"


def test_what_is_not_warm_in_time_or_at_all_is_inconclusive(compute: Compute):
    failed = {"code": 8, "message": "Quota exceeded for prewarm storage"}
    compute.script(("POST", ":prewarmArtifact$", {"hold": True}), ("POST", ":prewarmArtifact$", {"error": failed}))
    with pytest.raises(InconclusiveError, match="is not ready for streaming after 0 s"):
        prewarm("never", seconds=0.1)
    with pytest.raises(InconclusiveError, match="could not be prewarmed: Quota exceeded for prewarm storage"):
        prewarm("failed")
    assert compute.consumed() == [1, 1]


def test_who_may_not_is_told_the_role():
    with pytest.raises(AccessError, match=r"Grant .* roles/artifactregistry\.writer"):
        prewarm("engine", project="other")
