"""The way to a deployment's cluster on GKE: its endpoint, its certificate, and credentials that are renewed."""

from __future__ import annotations

import atexit
import os
import tempfile
from typing import TYPE_CHECKING, Any

from serving.clients import google
from serving.clients.kubernetes.cluster import Cluster

if TYPE_CHECKING:
    from serving.settings import Settings


def connect(settings: Settings) -> Cluster:
    """The deployment's cluster: project, location and name through the container API, never a kubeconfig."""
    from kubernetes.client import ApiClient, Configuration

    address = google.cluster_address(settings.project, settings.location, settings.cluster, settings.endpoint)
    credentials = google.credentials()
    configuration = Configuration(host=address.url)
    if address.ca_certificate:
        configuration.ssl_ca_cert = _certificate_file(address.ca_certificate)

    def refresh(configuration: Any) -> None:
        from google.auth.transport.requests import Request

        if not credentials.valid:
            credentials.refresh(Request())
        configuration.api_key["authorization"] = credentials.token

    configuration.refresh_api_key_hook = refresh
    configuration.api_key_prefix["authorization"] = "Bearer"
    refresh(configuration)
    # Waiting for a lock of the pool would stall a request behind the open watches.
    configuration.connection_pool_maxsize = 16
    return Cluster(
        ApiClient(configuration),
        f"cluster {settings.cluster} ({settings.location})",
        f"gemma-pipelines render {settings.scenario} -f FILE --access | kubectl apply --server-side -f -",
    )


def _certificate_file(pem: bytes) -> str:
    """urllib3 takes a CA only as a file: one that goes with this process."""
    descriptor, path = tempfile.mkstemp(suffix=".crt")
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    atexit.register(os.unlink, path)
    return path
