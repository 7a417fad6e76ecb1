"""A load balancer of GKE's as the entry: a Gateway, whose HTTPRoute gives each generation its share of the requests.

`serving.exposure: public` always is one: of the engine's port, whose key guards /v1 alone, it lets /v1 through and
nothing else. Its proxies call pods directly, out of a subnet that the network has for them alone.
Source: https://cloud.google.com/kubernetes-engine/docs/how-to/deploying-gateways
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from serving import names
from serving.errors import RequestError
from serving.values import Duration, IpRange, MaybeCertificates, MaybeHost, MaybeIpRange, MaybeResourceName, in_seconds
from serving.values import Section as BaseSection

if TYPE_CHECKING:
    from serving.settings import Settings
    from serving.weights.release import Release

CLASSES = {"internal": "gke-l7-rilb", "public": "gke-l7-regional-external-managed"}
"""Exposure → the GatewayClass of GKE."""
HEALTH_CHECKS = ("35.191.0.0/16", "130.211.0.0/22")
"""Where Google's health checks come from. https://cloud.google.com/load-balancing/docs/health-checks#fw-rule"""
GROUP = "gateway.networking.k8s.io"
CERTIFICATES = "networking.gke.io/pre-shared-certs"
"""The option of a listener that names certificates of Compute Engine, regional ones for a regional Gateway.
https://cloud.google.com/kubernetes-engine/docs/how-to/secure-gateway"""
_LONGEST_DRAIN_SECONDS = 3600


class Section(BaseSection):
    """The load balancer that clients come in by."""

    certificate: MaybeResourceName = ""
    """The regional SSL certificate of Compute Engine that it shows (`gcloud compute ssl-certificates create NAME
    --region=REGION …`): it then answers on https alone, port 443. Empty answers on http, port 80."""
    host: MaybeHost = ""
    """The name that clients call it by, gemma.example.com say, which the certificate is for and DNS has the address of:
    it answers under that name alone, and validation has the certificate show it before it sends the API key. Empty
    answers under any name and by the address."""
    authority: MaybeCertificates = ""
    """Of a certificate that not everybody trusts, who vouches for it: the certificates of your own authority, as PEM.
    They are no secret. Validation trusts them; to clients, they are yours to give."""
    plain_http: bool = False
    """With exposure public, answer on http although keys, questions and answers are then anybody's to read on the way.
    For a certificate that is somewhere in front of it."""
    address: MaybeResourceName = ""
    """The reserved address of the region that it gets (`gcloud compute addresses create NAME --region=REGION …`); empty
    takes one that goes when it goes."""
    proxy_ranges: list[IpRange] = Field([])
    """The ranges of the network's proxy-only subnet in the cluster's region, from which it calls pods; empty looks them
    up in each run."""
    proxy_subnet_range: MaybeIpRange = ""
    """Where the region has no proxy-only subnet, one of this range is made, 10.129.0.0/23 say, in a run or by
    bootstrap: a range that nothing in the network uses, a /26 at least. Empty makes none. (With access: check, none
    is made.)"""
    timeout: Duration = "10m"
    """How long the load balancer may take to be made, and what picks the pods to be ready."""


def check(settings: Settings) -> None:
    """Raises RequestError for what is public and would be anybody's."""
    if settings.serving.exposure != "public":
        return
    if not settings.engine.api_key_secret:
        raise RequestError(
            "serving.exposure public needs a key that clients have to show: set engine.api_key_secret to a version in "
            "Secret Manager (projects/P/secrets/S/versions/latest)"
        )
    section = _section(settings)
    if not section.certificate and not section.plain_http:
        raise RequestError(
            "serving.exposure public without a certificate would send keys, questions and answers over the internet, "
            "for anybody to read: set gateway.certificate to a regional SSL certificate (`gcloud compute "
            f"ssl-certificates create NAME --project={settings.project} --region={settings.region} --certificate=FILE "
            "--private-key=FILE`), or say gateway.plain_http: true"
        )


def values(settings: Settings, release: Release | None) -> dict[str, Any]:
    """The Gateway; of a generation, its load balancer's limits and whom its pods answer."""
    section, is_public = _section(settings), settings.serving.exposure == "public"
    longest = math.ceil(in_seconds(settings.serving.request_timeout))
    found: dict[str, Any] = {
        "gateway_class": CLASSES[settings.serving.exposure],
        "gateway_addresses": [{"type": "NamedAddress", "value": section.address}] if section.address else [],
        "gateway_listeners": [_listener(section.certificate)],
        "route_hosts": [section.host] if section.host else [],
        "route_path": "/v1" if is_public else "/",
        "route_timeout_seconds": longest,
        # As long as a pod that is being stopped may still answer: the load balancer cuts what is left then.
        "route_drain_seconds": min(longest, _LONGEST_DRAIN_SECONDS),
    }
    if release is not None:
        found["validation"] = names.validation(release.generation)
        found["proxies"] = _proxies(settings, release)
        found["backend_target"] = {"group": "", "kind": "Service", "name": names.server(release.generation)}
    return found


def entered(settings: Settings, generation: str) -> dict[str, Any]:
    """Where the route sends a generation's requests."""
    backend = {"group": "", "kind": "Service", "name": names.server(generation), "port": names.PORT, "weight": 100}
    return {"backend": backend}


def rights(settings: Settings) -> dict[str, set[str]]:
    """Its status is read, and waited for."""
    return {"Gateway": {"get", "list", "watch"}}


def served(settings: Settings, has_group: Callable[[str], bool]) -> None:
    """Raises RequestError for a cluster that has no Gateways, with what brings them."""
    if not has_group(GROUP):
        raise RequestError(
            f"the cluster {settings.cluster} has no Gateways ({GROUP}). Turn them on: `gcloud container clusters "
            f"update {settings.cluster} --location={settings.location} --project={settings.project} "
            "--gateway-api=standard`; it takes some minutes"
        )


def _listener(certificate: str) -> dict[str, Any]:
    """Routes of other namespaces are nobody's to attach."""
    routes = {"allowedRoutes": {"namespaces": {"from": "Same"}}}
    if not certificate:
        return {"name": "http", "protocol": "HTTP", "port": 80, **routes}
    tls = {"mode": "Terminate", "options": {CERTIFICATES: certificate}}
    return {"name": "https", "protocol": "HTTPS", "port": 443, "tls": tls, **routes}


def _proxies(settings: Settings, release: Release) -> list[dict[str, Any]]:
    """Whom the load balancer's requests and checks come from, as peers of a NetworkPolicy. Raises RequestError for a
    release that does not know."""
    ranges = _section(settings).proxy_ranges or release.proxy_ranges
    if not ranges:
        raise RequestError(
            "nobody knows from which addresses the load balancer's proxies call: name the ranges of the network's "
            "proxy-only subnet in gateway.proxy_ranges (`gcloud compute networks subnets list --project="
            f"{settings.project} --filter='purpose=REGIONAL_MANAGED_PROXY AND region:{settings.region}'`)"
        )
    return [{"ipBlock": {"cidr": cidr}} for cidr in (*ranges, *HEALTH_CHECKS)]


def _section(settings: Settings) -> Section:
    section: Section = settings.section("gateway")
    return section
