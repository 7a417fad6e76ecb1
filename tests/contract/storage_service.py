"""What the storage contract tests run against: the emulator, or the service that GCS_CONTRACT_ENDPOINT names.

    GCS_CONTRACT_ENDPOINT   address of a GCS; Application Default Credentials are used for one over https. One over http
                            is a server of tests, as Google's storage-testbench is: it begins empty, and the bucket is
                            made there
    GCS_CONTRACT_BUCKET     a bucket there that may be written to: tests leave nothing behind in it
    GCS_CONTRACT_PROJECT    a project there in which buckets may be made; without it those tests skip

Every exchange of the client is held against the API's discovery document.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from emulated_cloud import process

from tests.contract.discovery import Conformance


@dataclass
class Gcs:
    """A service under test. `client` is the real one; `bucket` one of its buckets."""

    endpoint: str
    client: Any
    bucket: Any
    project: str | None
    emulated: bool
    conformance: Conformance = field(default_factory=lambda: Conformance("storage", "v1"))

    @property
    def session(self) -> Any:
        """The client's own requests session, for what the client has no call for."""
        return self.client._http

    def url(self, path: str) -> str:
        return self.endpoint + path

    def open_session(self, name: str, size: int | None = None, query: str = "", **resource: Any) -> str:
        """Opens a resumable session, and returns its URI."""
        headers = {"X-Upload-Content-Length": str(size)} if size is not None else {}
        path = f"/upload/storage/v1/b/{self.bucket.name}/o?uploadType=resumable{query}"
        response = self.session.post(self.url(path), json={"name": name, **resource}, headers=headers)
        assert response.status_code == 200, response.text
        return response.headers["Location"]

    # -- of the emulator alone -------------------------------------------------------------------------------

    def script(self, *faults: dict[str, Any]) -> None:
        requests.post(self.url("/_emulator/faults"), json=list(faults), timeout=60).raise_for_status()

    def consumed(self) -> list[int]:
        """How often each scripted fault has happened."""
        found = requests.get(self.url("/_emulator/faults"), timeout=60).json()
        return [fault["consumed"] for fault in found]

    def requests(self) -> list[dict[str, Any]]:
        return requests.get(self.url("/_emulator/requests"), timeout=60).json()


def connect(endpoint: str, bucket: str, project: str | None, emulated: bool) -> Gcs:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    client = storage.Client(
        project=project or "contract",
        credentials=None if endpoint.startswith("https:") else AnonymousCredentials(),
        client_options={"api_endpoint": endpoint},
    )
    service = Gcs(endpoint, client, client.bucket(bucket), project, emulated)
    # The XML API and batches are in no document.
    service.conformance.watch(service.session, where="/storage/v1/")
    return service


@pytest.fixture(scope="session")
def gcs_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gcs]:
    if endpoint := os.environ.get("GCS_CONTRACT_ENDPOINT"):
        service = connect(endpoint, os.environ["GCS_CONTRACT_BUCKET"], os.environ.get("GCS_CONTRACT_PROJECT"), False)
        if endpoint.startswith("http:") and not service.bucket.exists():
            service.bucket.create()
        yield service
        return
    folder = tmp_path_factory.mktemp("storage")
    log = folder / "storage.log"
    emulator = process.start("emulated_cloud.storage", "--root", str(folder / "root"), "--bucket", "contract", log=log)
    try:
        service = connect(emulator.url, "contract", "contract", True)
        yield service
        service.client.close()
    finally:
        emulator.stop()
    assert Path(log).read_text() == ""


@pytest.fixture
def gcs(gcs_service: Gcs) -> Gcs:
    if gcs_service.emulated:
        gcs_service.script()
    return gcs_service


@pytest.fixture
def prefix(gcs: Gcs) -> Iterator[str]:
    """Objects of a test lie below this name, and go with the test."""
    prefix = f"test-{uuid.uuid4().hex[:12]}/"
    yield prefix
    for blob in gcs.bucket.list_blobs(prefix=prefix):
        blob.delete()


@pytest.fixture
def emulator(gcs: Gcs) -> Gcs:
    """For tests of what only the emulator can do."""
    if not gcs.emulated:
        pytest.skip("a real service fails when it wants to, not when it is told to")
    return gcs
