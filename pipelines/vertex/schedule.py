"""The deployment's one schedule: found, compared with the settings, changed in place.

A schedule keeps the whole PipelineJob that it was given, component image and parameters included: a new version of this
tool, or another setting, does nothing until the schedule is applied again. `drift` tells what that would change.
"""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Iterator
from typing import Any

from pipelines.vertex.request import labels
from serving import names
from serving.clients.vertex import Body, Vertex
from serving.errors import RequestError
from serving.settings import Settings, moment

ACTIVE, PAUSED, COMPLETED = "ACTIVE", "PAUSED", "COMPLETED"
_REQUEST = "createPipelineJobRequest"
_OURS = {
    *("displayName", "pipelineSpec", "labels", "serviceAccount", "runtimeConfig"),
    *("network", "encryptionSpec", "pscInterfaceConfig"),
}
"""What a PipelineJob of ours may have (request.py): the service adds more."""
_BY_THE_SERVICE = "vertex-ai-pipelines-run-billing-id"
_JSON = ("pipelineSpec", "parameterValues")
"""Fields that hold any JSON at all, in which false and nothing differ."""


def wanted(settings: Settings, job: Body, parent: str, now: datetime.datetime) -> Body:
    """The schedule that the settings ask for, of a run (request.py), in `parent` (projects/P/locations/L). Raises
    RequestError when they ask for none.

    One run at a time, and a tick that finds one running is dropped. A start that has passed is left out: its missed
    runs would all begin at once.
    """
    asked = settings.schedule
    if not asked.cron:
        raise RequestError('the settings have no schedule: write `schedule: {cron: "0 3 * * *", timezone: Asia/Seoul}`')
    if asked.end and moment(asked.end) <= now:
        raise RequestError(f"schedule.end {asked.end} has passed: set another, or `gemma-pipelines schedule delete`")
    return {
        "displayName": names.schedule(settings),
        "cron": f"TZ={asked.timezone} {asked.cron}",
        "maxConcurrentRunCount": "1",
        "maxConcurrentActiveRunCount": "1",
        "allowQueueing": False,
        **({"startTime": _utc(asked.start)} if asked.start and moment(asked.start) > now else {}),
        **({"endTime": _utc(asked.end)} if asked.end else {}),
        _REQUEST: {"parent": parent, "pipelineJob": job},
    }


def find(vertex: Vertex, settings: Settings) -> Body | None:
    """The deployment's schedule. Raises RequestError when it has two: which one is meant nobody can say."""
    ours = [each for each in vertex.schedules(names.schedule(settings)) if is_ours(each, settings)]
    if len(ours) > 1:
        every = "\n".join(
            f"  {each['name']}: {each['state']}, {each['cron']}, since {each.get('createTime', '?')}\n"
            f"    {vertex.command('DELETE', each['name'])}"
            for each in ours
        )
        raise RequestError(
            f"there are {len(ours)} schedules called {names.schedule(settings)}, and each would run it. Delete all but "
            f"one:\n{every}"
        )
    return ours[0] if ours else None


def is_ours(schedule: Body, settings: Settings) -> bool:
    """Whether a schedule is the deployment's: its name may be anybody's, its runs' labels are not."""
    there = schedule.get(_REQUEST, {}).get("pipelineJob", {}).get("labels", {})
    return bool(there.get(names.RUNS_AT) == labels(settings)[names.RUNS_AT])


def existing(vertex: Vertex, settings: Settings) -> Body:
    """The deployment's schedule. Raises RequestError when there is none."""
    found = find(vertex, settings)
    if found is None:
        raise RequestError("this deployment has no schedule. Make one: `gemma-pipelines schedule apply -f FILE`")
    return found


def apply(vertex: Vertex, settings: Settings, asked: Body) -> tuple[Body, str]:
    """Makes the schedule what was asked (`wanted`): returns it, and `created`, `changed` or `unchanged`."""
    there = find(vertex, settings)
    if there is None:
        vertex.create_schedule(asked)
        # Somebody may have made one at the same moment.
        return existing(vertex, settings), "created"
    if there["state"] == COMPLETED:
        raise RequestError(
            f"{there['name']} has ended (its end was {there.get('endTime', 'reached')}), and cannot be changed any "
            "more. `gemma-pipelines schedule delete -f FILE`, then apply again"
        )
    if "endTime" in there and "endTime" not in asked:
        raise RequestError(
            f"{there['name']} ends {there['endTime']}, which Vertex AI lets nobody take back. Set schedule.end to a "
            "later time, or `gemma-pipelines schedule delete -f FILE` and apply again"
        )
    different = changes(asked, there)
    if not different:
        return there, "unchanged"
    return vertex.update_schedule(there["name"], different), "changed"


def changes(asked: Body, there: Body) -> Body:
    """The fields of a schedule that are to be another, as they are asked for."""
    return {
        field: value
        for field, value in asked.items()
        if list(_differences(_comparable(field, value), _comparable(field, there.get(field)), (field,)))
    }


def drift(asked: Body, there: Body) -> list[dict[str, Any]]:
    """What differs between what a schedule is and what is asked for, field by field:
    `{"field", "there", "wanted"}`, in the settings' names where they have one."""
    found = []
    for field in changes(asked, there):
        old, new = _comparable(field, there.get(field)), _comparable(field, asked[field])
        if field != _REQUEST:
            found.append({"field": field, "there": old, "wanted": new})
            continue
        old, new = (dict(each.get("pipelineJob", {})) for each in (old or {}, new))
        specifications = old.pop("pipelineSpec", {}), new.pop("pipelineSpec", {})
        found += [_shown(path, *values) for path, *values in _differences(new, old, ())]
        found += _of_pipelines(*specifications)
    return sorted(found, key=lambda each: str(each["field"]))


def in_words(differs: dict[str, Any]) -> str:
    """A difference for a person, without the field."""
    there, wanted = ("nothing" if each is None else each for each in (differs["there"], differs["wanted"]))
    return f"{there} there, {wanted} wanted"


def _shown(path: tuple[str, ...], new: Any, old: Any) -> dict[str, Any]:
    """A difference by the name that the settings have for it."""
    inside = ("runtimeConfig", "parameterValues")
    if path[:2] == inside:
        path = path[3:] if path[2:3] == ("settings",) and len(path) > 3 else path[2:]
    return {"field": ".".join(path), "there": old, "wanted": new}


def _of_pipelines(old: Body, new: Body) -> Iterator[dict[str, Any]]:
    """What differs between two compiled pipelines: what they were compiled with, and whether anything else does."""
    before, after = _compiled(old), _compiled(new)
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield {"field": f"pipeline.{key}", "there": before.get(key), "wanted": after.get(key)}
    count = sum(1 for _ in _differences(_neutral(new, after), _neutral(old, before), ()))
    if count:
        yield {"field": "pipeline.steps", "there": "the schedule's", "wanted": f"other ones, in {count} places"}


def _compiled(specification: Body) -> Body:
    """What a pipeline was compiled with (pipelines/compile.py)."""
    for component in specification.get("components", {}).values():
        for task in component.get("dag", {}).get("tasks", {}).values():
            given = task.get("inputs", {}).get("parameters", {}).get("compiled", {})
            if constant := given.get("runtimeValue", {}).get("constant"):
                return dict(constant)
    return {}


def _neutral(value: Any, compiled: Body) -> Any:
    """A pipeline without what it was compiled with, which is told apart."""
    if isinstance(value, dict):
        return {key: _neutral(each, compiled) for key, each in value.items() if each != compiled}
    if isinstance(value, list):
        return [_neutral(each, compiled) for each in value]
    return "the image" if value == compiled.get("image") else value


def _comparable(field: str, value: Any) -> Any:
    """A value as it can be compared, whoever wrote it: numbers are doubles to the service, what is not set may be there
    as an empty value or not at all, and labels and times are the service's to add and to write."""
    if isinstance(value, dict):
        items = {key: _comparable(field if field in _JSON else key, each) for key, each in value.items()}
        if field == _REQUEST:
            items.pop("parent", None)  # The service has the project's number there.
        if field == "pipelineJob":
            items = {key: each for key, each in items.items() if key in _OURS}
        if field == "labels":
            items.pop(_BY_THE_SERVICE, None)
            items.pop(names.SPEC, None)  # It is another wherever anything is.
        return {key: each for key, each in items.items() if not _is_unset(each, in_json=(field in _JSON))}
    if isinstance(value, list):
        return [_comparable(field, each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if field in ("startTime", "endTime") and isinstance(value, str):
        return _utc(value)
    return None if value is False and field not in _JSON else value


def _is_unset(value: Any, in_json: bool) -> bool:
    return value is None or value == {} or (not in_json and value in ("", []))


def _differences(new: Any, old: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """(path, new, old) of all that differs, at the innermost key."""
    if isinstance(new, dict) and isinstance(old, dict):
        for key in sorted(new.keys() | old.keys()):
            yield from _differences(new.get(key), old.get(key), (*path, key))
    elif new != old:
        # What one side alone has is told by its keys, where those say anything.
        one, other = ({} if each is None else each for each in (new, old))
        inner = list(_differences(one, other, path)) if isinstance(one, dict) and isinstance(other, dict) else []
        yield from inner or [(path, new, old)]


def _utc(text: str) -> str:
    """A time as the service writes it."""
    return moment(text).astimezone(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def image_of(schedule: Body) -> str:
    """The component image that a schedule's runs have."""
    image: str = _compiled(schedule[_REQUEST]["pipelineJob"]["pipelineSpec"]).get("image", "")
    return image


def start_error(schedule: Body) -> str:
    """Why the last run of a schedule did not even begin; empty when it did. How it ended the schedule does not say."""
    last = schedule.get("lastScheduledRunResponse", {})
    said: str = last.get("runResponse", "")
    return "" if said in ("", "OK") else f"{last.get('scheduledRunTime', '?')}: {said}"


# -- when -----------------------------------------------------------------------------------------------------------


def next_runs(schedule: Body, now: datetime.datetime, count: int = 3) -> list[datetime.datetime]:
    """When an active schedule's next runs are, in its own zone: the service's word for the first, where it has one."""
    from cronsim import CronSim

    if schedule.get("state") != ACTIVE:
        return []
    zone_name, expression = zone_and_cron(schedule["cron"])
    zone = zoneinfo.ZoneInfo(zone_name)
    found = [moment(schedule["nextRunTime"]).astimezone(zone)] if "nextRunTime" in schedule else []
    begins = max([now, *(moment(schedule[key]) for key in ("startTime",) if key in schedule), *found])
    end = moment(schedule["endTime"]) if "endTime" in schedule else None
    for tick in CronSim(expression, begins.astimezone(zone)):
        if len(found) >= count or (end and tick > end):
            break
        found.append(tick)
    return found


def zone_and_cron(text: str) -> tuple[str, str]:
    """(zone, five fields) of a schedule's cron: `TZ=Asia/Seoul 0 3 * * *`."""
    first, _, rest = text.partition(" ")
    prefix, equals, zone = first.partition("=")
    return (zone, rest) if equals and prefix in ("TZ", "CRON_TZ") else ("UTC", text)


def as_shown(schedule: Body | None, now: datetime.datetime, differs: list[dict[str, Any]]) -> dict[str, Any]:
    """What `schedule show --json` prints; with a null for all that is not there when there is no schedule."""
    if schedule is None:
        return {"state": None, "cron": None, "timezone": None, "next": [], "drift": [], "name": None}
    zone, expression = zone_and_cron(schedule["cron"])
    return {
        "state": schedule["state"],
        "cron": expression,
        "timezone": zone,
        "next": [each.isoformat() for each in next_runs(schedule, now)],
        "drift": differs,
        "name": schedule["name"],
    }
