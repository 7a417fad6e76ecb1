"""The subnet out of which a Gateway's proxies call pods: a network has one in a region, for all its load balancers.

Without it no load balancer is made, and pods whose policies do not admit it answer nobody.
Source: https://cloud.google.com/load-balancing/docs/proxy-only-subnets
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving.clients import google
from serving.clients.compute import Compute, ProxySubnet, TakenError, carry_out
from serving.errors import RequestError
from serving.values import in_seconds

if TYPE_CHECKING:
    from serving.features.gateway import Section
    from serving.log import Say
    from serving.settings import Settings

SUBNET = "gemma-proxies"
"""What one that is made is called."""


def ranges(settings: Settings) -> list[str]:
    """The ranges that proxies call from: those that the settings name, else those of the network's subnet, else of the
    one that ensure_access is going to make. Empty without a Gateway.

    Raises RequestError, with the command that makes one, where there is none.
    """
    if not settings.has_gateway:
        return []
    section = _section(settings)
    if section.proxy_ranges:
        return list(section.proxy_ranges)
    network = google.cluster_traits(settings).network
    if found := _find(settings, network):
        return [subnet.range for subnet in found]
    if _makes(settings):
        return [section.proxy_subnet_range]
    left = "access: check leaves it to you" if section.proxy_subnet_range else "its range is yours to choose"
    raise RequestError(
        f"{network} has no proxy-only subnet in {settings.region}, without which no Gateway is made; {left}: "
        f"`{command(settings, network)}`. Or set gateway.proxy_subnet_range, and access: manage, and a run makes it"
    )


def ensure(settings: Settings, say: Say) -> list[str]:
    """Makes the subnet where there is none and the settings give it a range. Returns what was changed."""
    if not settings.has_gateway or not _makes(settings) or _section(settings).proxy_ranges:
        return []
    network = google.cluster_traits(settings).network
    if _find(settings, network):
        return []
    compute, region = Compute(_project(network)), settings.region
    subnet = ProxySubnet(SUBNET, _section(settings).proxy_subnet_range)
    try:
        carry_out(
            lambda request_id: compute.make_proxy_subnet(region, network, subnet, request_id),
            *("proxy-only subnet", network, region, subnet.range),
            seconds=in_seconds(_section(settings).timeout),
            found=lambda: _find(settings, network),
        )
    except TakenError as error:
        if not _find(settings, network):
            raise RequestError(
                f"{error}. Another subnet has that name: make one by hand, `{command(settings, network)}`"
            ) from error
    say(f"made the proxy-only subnet {SUBNET} ({subnet.range}) in {region} of {network}")
    return [f"subnet {SUBNET}"]


def command(settings: Settings, network: str = "") -> str:
    """What a person types to make it. Without a network, the cluster's is asked for."""
    asked = (
        f"$(gcloud container clusters describe {settings.cluster} --location={settings.location} "
        f"--project={settings.project} --format='value(networkConfig.network)')"
    )
    return (
        f"gcloud compute networks subnets create {SUBNET} --project={_project(network) or settings.project} "
        f"--region={settings.region} --network={network or asked} "
        f"--range={_section(settings).proxy_subnet_range or 'RANGE'} --purpose=REGIONAL_MANAGED_PROXY --role=ACTIVE"
    )


def _find(settings: Settings, network: str) -> list[ProxySubnet]:
    return Compute(_project(network)).proxy_subnets(settings.region, network)


def _project(network: str) -> str:
    """Whose network it is: of a Shared VPC another project's than the cluster's."""
    return network.split("/")[1] if network else ""


def _makes(settings: Settings) -> bool:
    return settings.access == "manage" and bool(_section(settings).proxy_subnet_range)


def _section(settings: Settings) -> Section:
    section: Section = settings.section("gateway")
    return section
