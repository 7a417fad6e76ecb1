"""API groups that a server of somebody else's answers: what APIService objects with a Service say.

A request goes to a ready endpoint of the Service, as with `--enable-aggregator-routing`; who asks is said in headers.
The certificate is not looked at, which is what `insecureSkipTLSVerify` asks for: an APIService with a `caBundle` is
served likewise. Discovery lists the groups, but not (in its aggregated form) what is in them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import aiohttp

from emulated_cloud.kubernetes.apiserver import errors
from emulated_cloud.kubernetes.apiserver.store import Store

Object = dict[str, Any]
_KEY = ("apiregistration.k8s.io", "apiservices")


def groups(store: Store) -> list[Object]:
    """The groups as /apis lists them, the preferred version first."""
    found: dict[str, list[Object]] = {}
    for item in store.list(_KEY):
        if item["spec"].get("service"):
            found.setdefault(item["spec"]["group"], []).append(item["spec"])
    listed = []
    for name, specs in sorted(found.items()):
        specs.sort(key=lambda spec: -spec["versionPriority"])
        versions = [{"groupVersion": f"{name}/{spec['version']}", "version": spec["version"]} for spec in specs]
        listed.append({"name": name, "versions": versions, "preferredVersion": versions[0]})
    return listed


def service_of(store: Store, segments: list[str]) -> Object | None:
    """The Service (APIService.spec.service) that answers a path; None for a path of this server's own."""
    if len(segments) < 3 or segments[0] != "apis":
        return None
    found = store.get(_KEY, "", f"{segments[2]}.{segments[1]}")
    return (found or {}).get("spec", {}).get("service")


async def ask(
    store: Store,
    session: aiohttp.ClientSession,
    service: Object,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
    user: str,
) -> tuple[Any, int, str]:
    """What the Service's server answers: body (parsed, if it is JSON), status, content type. Raises ApiError 503 when
    there is none."""
    address = _endpoint(store, service)
    passed = {name: headers[name] for name in ("Accept", "Content-Type") if name in headers}
    try:
        async with session.request(
            method,
            f"https://{address}{path}",
            data=body or None,
            headers={**passed, "X-Remote-User": user},
            timeout=aiohttp.ClientTimeout(total=30, connect=5),
        ) as answer:
            text = await answer.text()
            said = json.loads(text) if "json" in answer.content_type and text else text
            return said, answer.status, answer.headers.get("Content-Type", "text/plain")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise _unavailable(f"error trying to reach service: {error or type(error).__name__}") from error


def _endpoint(store: Store, service: Object) -> str:
    """HOST:PORT of a ready endpoint."""
    name, namespace = service["name"], service["namespace"]
    found = store.get(("", "services"), namespace, name)
    wanted = service.get("port", 443)
    ports = (found or {}).get("spec", {}).get("ports") or []
    named = next((entry.get("name", "") for entry in ports if entry["port"] == wanted), None)
    if named is None:
        raise _unavailable(
            f'service "{name}" in "{namespace}" has no port {wanted}' if found else f'service "{name}" not found'
        )
    for item in store.list(("discovery.k8s.io", "endpointslices"), namespace):
        if (item["metadata"].get("labels") or {}).get("kubernetes.io/service-name") != name:
            continue
        number = next((entry["port"] for entry in item.get("ports") or [] if entry.get("name", "") == named), None)
        for endpoint in item.get("endpoints") or []:
            if number and (endpoint.get("conditions") or {}).get("ready", True):
                return f"{endpoint['addresses'][0]}:{number}"
    raise _unavailable(f'endpoints for service/{name} in "{namespace}" have no addresses')


def _unavailable(why: str) -> errors.ApiError:
    return errors.ApiError(503, "ServiceUnavailable", why)
