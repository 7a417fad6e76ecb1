"""Path → handler."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from emulated_cloud.google import filters
from emulated_cloud.google.aiplatform import errors, jobs, resources, schedules
from emulated_cloud.google.call import Call
from emulated_cloud.google.errors import permission_denied, refusal

if TYPE_CHECKING:
    from emulated_cloud.google.aiplatform.service import AiPlatform

_KINDS = {"pipelineJobs": jobs.KIND, "schedules": schedules.KIND}
_QUERY = {
    ("GET", "pipelineJobs"): {"filter", "orderBy", "pageSize", "pageToken", "readMask"},
    ("POST", "pipelineJobs"): {"pipelineJobId"},
    ("GET", "schedules"): {"filter", "orderBy", "pageSize", "pageToken"},
    ("PATCH", "schedules"): {"updateMask"},
}
_SORTED = {
    "pipelineJobs": {"create_time", "update_time", "end_time", "start_time"},
    "schedules": {"create_time", "start_time", "end_time", "next_run_time"},
}
PAGE_SIZE, MOST_IN_A_PAGE = 100, 1000


def answer(service: AiPlatform, call: Call) -> dict[str, Any] | None:
    if call.version != "v1" and (call.version != "ui" or "operations" not in call.path):
        return None
    match call.path:
        case ["projects", _, "locations", _, "operations", _]:
            with service.lock:
                return service.operations.of_a_location(call.resource) if call.method == "GET" else None
        case ["projects", project, "locations", location, "pipelineJobs" | "schedules" as kind, *below]:
            pass
        case _:
            return None
    verbs = {"GET": "get" if below else "list", "POST": "create", "PATCH": "update", "DELETE": "delete"}
    verb = call.verb or verbs.get(call.method, "")
    if not call.config.is_project(project) or call.config.is_denied(call.resource):
        raise permission_denied(f"aiplatform.{kind}.{verb}", "/".join(call.path[:4]))
    if location not in service.aiplatform.locations:
        raise refusal("INVALID_ARGUMENT", f"The location ID {location!r} is not one of this endpoint.")
    _check_query(call, kind, below)
    with service.lock:
        found = _answer(service, call, kind, location, below)
        if found is not None and "enum-encoding=int" in call.query.get("$alt", ""):
            found = resources.numbered(found)
        # A copy, since what there is may change while it is sent.
        return copy.deepcopy(found)


def _answer(service: AiPlatform, call: Call, kind: str, location: str, below: list[str]) -> dict[str, Any] | None:
    path = "/".join((location, kind, *below))
    match call.method, kind, below, call.verb:
        case "GET", _, [*_, "operations", _], "":
            return service.operations.get(service.name(path))
        case "GET", _, [], "":
            return _page(service, call, kind, location)
        case "GET", _, [_], "":
            return service.existing(_KINDS[kind], path)
        case "POST", "pipelineJobs", [], "":
            return jobs.create(service, location, call.body, call.query.get("pipelineJobId", ""))
        case "POST", "pipelineJobs", [], "batchCancel" | "batchDelete":
            return jobs.batch(service, location, call.verb, call.body)
        case "POST", "pipelineJobs", [_], "cancel":
            return jobs.cancel(service, path)
        case "DELETE", "pipelineJobs", [_], "":
            return jobs.delete(service, path)
        case "POST", "schedules", [], "":
            return schedules.create(service, location, call.body)
        case "PATCH", "schedules", [_], "":
            return schedules.update(service, path, call.body, call.query.get("updateMask", ""))
        case "POST", "schedules", [_], "pause":
            return schedules.pause(service, path)
        case "POST", "schedules", [_], "resume":
            return schedules.resume(service, path, bool(call.body.get("catchUp")))
        case "DELETE", "schedules", [_], "":
            return schedules.delete(service, path)
    return None


def _check_query(call: Call, kind: str, below: list[str]) -> None:
    known = {"$alt", "alt", "fields", "key", "prettyPrint", "quotaUser", "$prettyPrint", "$userProject"}
    if not call.verb and (call.method != "GET" or not below):
        known |= _QUERY.get((call.method, kind), set())
    for name in call.query:
        if resources.camel(name) not in known:
            raise errors.unknown_field(name, "")


# -- lists ----------------------------------------------------------------------------------------------------------


def _page(service: AiPlatform, call: Call, kind: str, location: str) -> dict[str, Any]:
    query = {resources.camel(name): value for name, value in call.query.items()}
    try:
        wanted = filters.parse(query.get("filter", ""))
    except filters.BadFilter as error:
        raise refusal("INVALID_ARGUMENT", f"Invalid filter: {error}.") from None
    found = [each for _, each in service.store.of_kind(kind, location) if wanted(resources.searched(each))]
    for field, descending in reversed(_order(kind, query.get("orderBy", ""))):
        found.sort(key=lambda each: each.get(resources.camel(field), ""), reverse=descending)
    size, token = query.get("pageSize", "0"), query.get("pageToken", "0")
    if not token.isdecimal() or not size.isdecimal():
        raise refusal("INVALID_ARGUMENT", "Invalid page size or page token.")
    first, size_of_page = int(token), min(int(size) or PAGE_SIZE, MOST_IN_A_PAGE)
    page = [
        resources.masked({**each, "jobDetail": None}, query.get("readMask", ""))
        for each in found[first : first + size_of_page]
    ]
    answer: dict[str, Any] = {kind: page} if page else {}
    more = found[first + size_of_page :]
    return answer | ({"nextPageToken": str(first + size_of_page)} if more else {})


def _order(kind: str, text: str) -> list[tuple[str, bool]]:
    found = []
    for part in text.split(",") if text else ["create_time desc"]:
        field, _, direction = part.strip().partition(" ")
        field = resources.snake(field)
        if field not in _SORTED[kind] or direction.strip() not in ("", "asc", "desc"):
            raise refusal("INVALID_ARGUMENT", f"Invalid order_by: {text!r}.")
        found.append((field, direction.strip() == "desc"))
    return found
