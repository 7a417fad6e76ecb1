"""The way to a deployment's cluster on GKE: its endpoint, its certificate, and credentials that are renewed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from serving.clients import google
from serving.clients.deferred import defer
from serving.clients.kubernetes.cluster import Cluster

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

    from serving.settings import Settings


def connect(settings: Settings) -> Cluster:
    """The deployment's cluster: project, location and name through the container API, never a kubeconfig."""
    api_client, configuration_of = official()
    address = google.cluster_address(settings.project, settings.location, settings.cluster, settings.endpoint)
    credentials = google.credentials()
    configuration = configuration_of(host=address.url)

    def refresh(configuration: Any) -> None:
        configuration.api_key["authorization"] = google.refreshed(credentials)

    configuration.refresh_api_key_hook = refresh
    configuration.api_key_prefix["authorization"] = "Bearer"
    configuration.api_key["authorization"] = ""  # Without one the client does not ask the hook.
    # Waiting for a lock of the pool would stall a request behind the open watches.
    configuration.connection_pool_maxsize = 16
    # What urllib3 tries again by itself nobody has allowed, and nobody counts.
    configuration.retries = 0
    # Who trusts another authority, a proxy's say, has the customary variable for it, which the client does not know.
    configuration.ssl_ca_cert = os.environ.get("SSL_CERT_FILE")
    client: ApiClient = api_client(configuration)
    if address.ca_certificate:
        # The client knows certificates as files alone, which would outlive a process that is killed.
        client.rest_client.pool_manager.connection_pool_kw.update(
            ca_certs=None, ca_cert_data=address.ca_certificate.decode("ascii")
        )
    return Cluster(
        client,
        f"cluster {settings.cluster} ({settings.location})",
        f"gemma-pipelines render {settings.scenario} -f FILE --access | kubectl apply --server-side -f -",
    )


def official() -> tuple[Any, Any]:
    """The official client's ApiClient and Configuration, without its models."""
    defer("kubernetes", "kubernetes.client", "kubernetes.client.models")
    from kubernetes.client.api_client import ApiClient
    from kubernetes.client.configuration import Configuration

    return ApiClient, Configuration
