"""Subnetworks of the region: ranges of a network, one of which may be the proxies' of its load balancers."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from emulated_cloud.google.call import Call
from emulated_cloud.google.compute import errors, resources

if TYPE_CHECKING:
    from emulated_cloud.google.compute.service import Compute

PROXIES = "REGIONAL_MANAGED_PROXY"
_SMALLEST = 26
_PATTERN = "Must be a CIDR address range"


def seed(compute: Compute) -> None:
    """What a new project has: the network `default` with its own range, and what the configuration says."""
    if any(True for _ in compute.store.of_kind("subnetworks")):
        return
    own = {"name": "default", "ipCidrRange": "10.128.0.0/20", "privateIpGoogleAccess": True}
    for body in (own, *compute.compute.subnetworks):
        path = f"{_scope(compute)}/subnetworks/{body['name']}"
        compute.store.put(path, _made(compute, path, {"network": "global/networks/default", **body}))


def insert(compute: Compute, call: Call, region: str) -> dict[str, Any]:
    body = call.body
    path = f"regions/{region}/subnetworks/{resources.check_name(body)}"
    compute.check_new(path)
    if not body.get("network"):
        raise errors.invalid("resource.network", "", "A subnetwork is of a network.")
    _check(compute, body)
    made = _made(compute, path, body)
    compute.store.put(path, made)
    return compute.operations.begin(
        call, "insert", path, made["id"], lambda _: None, lambda _: compute.store.remove(path)
    )


def _check(compute: Compute, body: dict[str, Any]) -> None:
    """Raises HttpError for a subnetwork that the network has no place for."""
    text = body.get("ipCidrRange", "")
    try:
        wanted = ipaddress.IPv4Network(text)
    except ValueError:
        raise errors.invalid("resource.ipCidrRange", text, _PATTERN) from None
    proxies = body.get("purpose") == PROXIES
    if proxies and body.get("role") not in ("ACTIVE", "BACKUP"):
        why = f"Role is required for subnetworks with purpose {PROXIES}."
        raise errors.invalid("resource.role", body.get("role", ""), why)
    if proxies and wanted.prefixlen > _SMALLEST:
        why = f"The range of a subnetwork with purpose {PROXIES} must be /{_SMALLEST} or larger."
        raise errors.invalid("resource.ipCidrRange", text, why)
    network = _network(compute, body)
    for _, there in compute.store.of_kind("subnetworks"):
        if there["network"] != network:
            continue
        if ipaddress.IPv4Network(there["ipCidrRange"]).overlaps(wanted):
            why = f"Invalid IPCidrRange: {text} conflicts with existing subnetwork '{there['name']}' in region "
            raise errors.invalid("resource.ipCidrRange", text, f"{why}'{compute.compute.region}'.")
        if proxies and (there["purpose"], there.get("role"), body["role"]) == (PROXIES, "ACTIVE", "ACTIVE"):
            why = f"There is an active subnetwork with purpose {PROXIES} in the region already: '{there['name']}'."
            raise errors.invalid("resource.role", body["role"], why)


def _made(compute: Compute, path: str, body: dict[str, Any]) -> dict[str, Any]:
    purpose = body.get("purpose", "PRIVATE")
    made = resources.new(
        compute.project,
        path,
        "subnetwork",
        body,
        network=_network(compute, body),
        region=resources.link(compute.project, _scope(compute)),
        purpose=purpose,
        gatewayAddress=str(ipaddress.IPv4Network(body["ipCidrRange"])[1]),
        privateIpGoogleAccess=body.get("privateIpGoogleAccess", False),
        stackType="IPV4_ONLY",
        fingerprint=resources.fingerprint(body),
        **({"state": "READY"} if purpose == PROXIES else {}),
    )
    del made["labelFingerprint"]  # These have no labels.
    return made


def _network(compute: Compute, body: dict[str, Any]) -> str:
    return resources.link(*resources.path_of(body["network"], compute.project))


def _scope(compute: Compute) -> str:
    return f"regions/{compute.compute.region}"
