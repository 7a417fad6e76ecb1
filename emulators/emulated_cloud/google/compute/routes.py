"""Path → handler."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from emulated_cloud.google import filters
from emulated_cloud.google.call import Call
from emulated_cloud.google.compute import catalog, disks, errors, images, instances, resources, subnetworks

if TYPE_CHECKING:
    from emulated_cloud.google.compute.service import Compute

_KINDS = {
    "disks": "Disk",
    "instances": "Instance",
    "images": "Image",
    "subnetworks": "Subnetwork",
    "machineTypes": "MachineType",
}
_GET = {
    "disks": "compute.disks.get",
    "instances": "compute.instances.get",
    "images": "compute.images.get",
    "subnetworks": "compute.subnetworks.get",
}


def answer(compute: Compute, call: Call) -> dict[str, Any] | None:
    if call.version != "compute/v1" or call.verb or call.path[0] != "projects":
        return None
    _, project, *path = call.path
    if project in catalog.PUBLIC_IMAGES:
        return _public_image(compute, call, path)
    collection = next((kind for kind in _GET if kind in path), "")
    if not call.config.is_project(project) or call.config.is_denied(call.resource):
        raise errors.forbidden(_permission(call, collection), call.resource)
    if "operations" in path:
        return _operation(compute, call, path)
    if path[:1] == ["zones"] and len(path) > 1:
        compute.check_zone(path[1])
    if path[:1] == ["regions"] and len(path) > 1 and path[1] != compute.compute.region:
        raise errors.not_found(compute.name(f"regions/{path[1]}"))
    if call.method == "GET":
        return _read(compute, call, path)
    with compute.lock:
        return compute.operations.repeated(call) or _change(compute, call, path)


def _read(compute: Compute, call: Call, path: list[str]) -> dict[str, Any] | None:
    project = compute.project
    match path:
        case []:
            return {
                "kind": "compute#project",
                "id": call.config.project_number,
                "name": project,
                "creationTimestamp": "2026-01-01T00:00:00.000-08:00",
                "quotas": compute.quotas(catalog.PROJECT_QUOTAS),
                "defaultServiceAccount": f"{call.config.project_number}-compute@developer.gserviceaccount.com",
                "selfLink": resources.link(project, ""),
            }
        case ["regions", region]:
            return catalog.region_resource(project, region, compute.zones, compute.quotas(catalog.REGION_QUOTAS))
        case ["zones"]:
            return _page(compute, call, "Zone", [catalog.zone_resource(project, zone) for zone in compute.zones])
        case ["zones", zone]:
            return catalog.zone_resource(project, zone)
        case ["zones", zone, "machineTypes"]:
            return _page(compute, call, "MachineType", catalog.machine_types(project, zone))
        case ["zones", zone, "machineTypes", name]:
            for found in catalog.machine_types(project, zone):
                if found["name"] == name:
                    return found
            raise errors.not_found(compute.name("/".join(path)))
        case ["zones", zone, "acceleratorTypes"]:
            return _page(compute, call, "AcceleratorType", catalog.accelerator_types(project, zone))
        case ["aggregated", "acceleratorTypes" as kind]:
            offered = [
                (f"zones/{zone}/{kind}/{each['name']}", each)
                for zone in compute.zones
                for each in catalog.accelerator_types(project, zone)
            ]
            return _aggregated(compute, call, kind, "acceleratorType", offered)
        case ["zones", _, "instances", _, "serialPort"]:
            return instances.serial_port(compute, call, "/".join(path[:4]))
        case ["aggregated", "disks" | "instances" as kind]:
            return _aggregated(compute, call, kind, _first_small(_KINDS[kind]), compute.store.of_kind(kind))
        case ["global", "images", "family", family]:
            return images.from_family(compute, family)
        case (
            ["zones", _, "disks" | "instances" as kind]
            | ["regions", _, "subnetworks" as kind]
            | ["global", "images" as kind]
        ):
            scope = "/".join(path)
            there = [each for at, each in compute.store.of_kind(kind) if at.rpartition("/")[0] == scope]
            return _page(compute, call, _KINDS[kind], there)
        case ["zones", _, "disks" | "instances", _] | ["regions", _, "subnetworks", _] | ["global", "images", _]:
            return compute.existing("/".join(path))
    return None


def _change(compute: Compute, call: Call, path: list[str]) -> dict[str, Any] | None:
    resource = "/".join(path[:4] if path[0] == "zones" else path[:3])
    match call.method, path:
        case "POST", ["zones", zone, "disks"]:
            return disks.insert(compute, call, zone)
        case "POST", ["zones", zone, "instances"]:
            return instances.insert(compute, call, zone)
        case "POST", ["regions", region, "subnetworks"]:
            return subnetworks.insert(compute, call, region)
        case "POST", ["global", "images"]:
            return images.insert(compute, call)
        case "DELETE", ["zones", _, "disks", _]:
            return disks.delete(compute, call, resource)
        case "DELETE", ["zones", _, "instances", _]:
            return instances.delete(compute, call, resource)
        case "DELETE", ["global", "images", _]:
            return images.delete(compute, call, resource)
        case "POST", ["zones", _, "instances", _, "stop"]:
            return instances.stop(compute, call, resource)
        case "POST", ["zones", _, "instances", _, "setDiskAutoDelete"]:
            return instances.set_disk_auto_delete(compute, call, resource)
        case "POST", ["zones", _, "disks" | "instances", _, "setLabels"] | ["global", "images", _, "setLabels"]:
            return compute.set_labels(call, resource)
    return None


def _operation(compute: Compute, call: Call, path: list[str]) -> dict[str, Any] | None:
    match call.method, path:
        case "GET", ["global", "operations"] | ["zones" | "regions", _, "operations"]:
            found = compute.operations.of_scope("/".join(path[:-1]))
            return _page(compute, call, "Operation", found)
        case "GET", [*_, "operations", _]:
            return compute.operations.get("/".join(path))
        case "POST", [*_, "operations", _, "wait"]:
            return compute.operations.wait("/".join(path[:-1]))
    return None


def _public_image(compute: Compute, call: Call, path: list[str]) -> dict[str, Any] | None:
    match call.method, path:
        case "GET", ["global", "images", "family", _] | ["global", "images", _]:
            return compute.image(call.resource)[1]
    raise errors.forbidden("compute.images.list", call.resource)


def _permission(call: Call, collection: str) -> str:
    """What a caller would need; of what is none of the three kinds, to see the project."""
    if not collection:
        return "compute.projects.get"
    verbs = {"GET": "get", "DELETE": "delete"}
    after = call.path[call.path.index(collection) + 2 :]
    verb = after[0] if after else verbs.get(call.method, "create")
    names = {"serialPort": "getSerialPortOutput", "setDiskAutoDelete": "update"}
    listing = call.method == "GET" and call.path[-1] == collection
    return f"compute.{collection}.{'list' if listing else names.get(verb, verb)}"


# -- lists ----------------------------------------------------------------------------------------------------------


def _page(compute: Compute, call: Call, kind: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    page, token = _cut(call, [each for each in found if _filter(call)(each)])
    return resources.listed(_first_small(kind), compute.project, "/".join(call.path[2:]), page, token)


def _aggregated(
    compute: Compute, call: Call, collection: str, kind: str, there: Iterable[tuple[str, dict[str, Any]]]
) -> dict[str, Any]:
    wanted = _filter(call)
    page, token = _cut(call, [(at, each) for at, each in there if wanted(each)])
    scopes = [f"zones/{zone}" for zone in compute.zones]
    return resources.aggregated(kind, compute.project, collection, scopes, page, token)


def _filter(call: Call) -> filters.Filter:
    text = call.query.get("filter", "")
    try:
        return filters.parse(text)
    except filters.BadFilter as error:
        raise errors.invalid("filter", text, f"Invalid list filter expression: {error}.") from None


def _cut(call: Call, found: list[Any]) -> tuple[list[Any], str]:
    """A page of a list, and the token of the next one."""
    size, token = int(call.query.get("maxResults", "500")), call.query.get("pageToken", "0")
    if not token.isdecimal():
        raise errors.invalid("pageToken", token, "The page token is invalid.")
    first = int(token)
    return found[first : first + size], str(first + size) if found[first + size :] else ""


def _first_small(kind: str) -> str:
    return kind[0].lower() + kind[1:]
