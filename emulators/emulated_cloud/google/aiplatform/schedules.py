"""Schedules: what can be asked of them, and their ticks."""

from __future__ import annotations

import threading
from datetime import datetime
from typing import TYPE_CHECKING, Any

from emulated_cloud.google.aiplatform import checks, cron, errors, jobs, resources
from emulated_cloud.http import HttpError

if TYPE_CHECKING:
    from emulated_cloud.google.aiplatform.service import AiPlatform

KIND = "Schedule"
_LONGEST_WAIT = 3600.0
"""Seconds. A machine that sleeps does not notice how long."""


def create(service: AiPlatform, location: str, body: dict[str, Any]) -> dict[str, Any]:
    given = resources.fields(body, checks.SCHEDULE_FIELDS)
    for name in ("displayName", "cron", "maxConcurrentRunCount", "createPipelineJobRequest"):
        if not given.get(name):
            raise errors.invalid((f"schedule.{resources.snake(name)}", "Required field is not set."))
    asked = checks.schedule(service.config, service.iam, location, given)
    path = f"{location}/schedules/{resources.new_id()}"
    now = resources.timestamp(service.clock.now())
    schedule = {
        "name": service.name(path),
        "startTime": now,
        **asked,
        "state": "ACTIVE",
        "createTime": now,
        "updateTime": now,
    }
    _set_next(schedule, schedule["startTime"])
    service.store.put(path, schedule)
    service.ticking.look()
    return service.existing(KIND, path)


def update(service: AiPlatform, path: str, body: dict[str, Any], mask: str) -> dict[str, Any]:
    """Changes the fields that a mask names, in place: ticks that wait are dropped, the next are as it says now."""
    schedule = service.existing(KIND, path)
    given = resources.fields(body, checks.SCHEDULE_FIELDS)
    named = {resources.camel(name.strip()).partition(".")[0] for name in mask.split(",") if name.strip()}
    if not named:
        raise errors.invalid(("update_mask", "Required field is not set."))
    if unknown := named - checks.SCHEDULE_FIELDS:
        raise errors.invalid(("update_mask", f"Unknown field: {', '.join(sorted(unknown))}."))
    if schedule["state"] not in ("ACTIVE", "PAUSED"):
        raise errors.wrong_state(KIND, schedule["name"], schedule["state"], "updated")
    named &= checks.GIVEN_FIELDS  # The others are the service's to say, and ignored.
    given.setdefault("allowQueueing", False)  # Clients do not send what is false.
    for name in named:
        if name != "allowQueueing" and not given.get(name) and schedule.get(name):
            raise errors.invalid((f"schedule.{resources.snake(name)}", "A field that is set cannot be unset."))
    location = path.partition("/")[0]
    changes = checks.schedule(
        service.config, service.iam, location, {name: given[name] for name in named if name in given}
    )
    now = resources.timestamp(service.clock.now())
    changed = {**schedule, **changes, "updateTime": now}
    service.ticking.drop(path)
    if changed["state"] == "ACTIVE":
        _set_next(changed, max(now, changed["startTime"]))
    service.store.put(path, changed)
    service.ticking.look()
    return service.existing(KIND, path)


def pause(service: AiPlatform, path: str) -> dict[str, Any]:
    schedule = service.existing(KIND, path)
    if schedule["state"] != "ACTIVE":
        raise errors.wrong_state(KIND, schedule["name"], schedule["state"], "paused")
    now = resources.timestamp(service.clock.now())
    paused = {**schedule, "state": "PAUSED", "lastPauseTime": now, "updateTime": now}
    paused.pop("nextRunTime", None)
    service.store.put(path, paused)
    return {}


def resume(service: AiPlatform, path: str, catch_up: bool) -> dict[str, Any]:
    """Its ticks go on; with `catch_up`, first those that the pause has missed."""
    schedule = service.existing(KIND, path)
    if schedule["state"] != "PAUSED":
        raise errors.wrong_state(KIND, schedule["name"], schedule["state"], "resumed")
    now = resources.timestamp(service.clock.now())
    resumed = {**schedule, "state": "ACTIVE", "catchUp": catch_up, "lastResumeTime": now, "updateTime": now}
    _set_next(resumed, max(schedule["lastPauseTime"] if catch_up else now, schedule["startTime"]))
    service.store.put(path, resumed)
    service.ticking.look()
    return {}


def delete(service: AiPlatform, path: str) -> dict[str, Any]:
    """Its runs stay."""
    service.existing(KIND, path)
    service.store.remove(path)
    service.ticking.drop(path)
    return service.operations.done(path)


def recover(service: AiPlatform) -> None:
    """The ticks that nobody was there for are dropped."""
    now = resources.timestamp(service.clock.now())
    for path, schedule in service.store.of_kind("schedules"):
        if schedule["state"] == "ACTIVE":
            _set_next(schedule, max(now, schedule["startTime"]))
        service.store.put(path, schedule)


def _set_next(schedule: dict[str, Any], after: str) -> None:
    """Notes the first tick after a time."""
    tick = cron.parse(schedule["cron"]).after(_time(after))
    assert tick, "an expression without ticks was refused"
    schedule["nextRunTime"] = resources.timestamp(tick)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


# -- ticks ----------------------------------------------------------------------------------------------------------


class Ticking(threading.Thread):
    """Starts what is due, as soon as it is."""

    def __init__(self, service: AiPlatform):
        super().__init__(daemon=True)
        self._service = service
        self._changed = threading.Condition(service.lock)
        self._stopped = False
        self._queued: dict[str, list[datetime]] = {}
        """The ticks of schedules that wait for an earlier run to end."""

    def drop(self, path: str) -> None:
        """The ticks of a schedule that wait are no more."""
        self._queued.pop(path, None)

    def look(self) -> None:
        """Something has changed: does what is due by now. The service's lock is held."""
        self._do_what_is_due(self._service.clock.now())
        self._changed.notify_all()

    def move_to(self, time: datetime) -> None:
        """Moves the clock, past what is due on the way, each at its time."""
        with self._service.lock:
            self._do_what_is_due(time, moving=True)
            self._service.clock.set(time)
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def run(self) -> None:
        with self._changed:
            while not self._stopped:
                self._do_what_is_due(self._service.clock.now())
                due = min((time for time, _ in self._due()), default=None)
                wait = (due - self._service.clock.now()).total_seconds() if due else _LONGEST_WAIT
                self._changed.wait(min(max(wait, 0.0), _LONGEST_WAIT))

    def _due(self) -> list[tuple[datetime, str]]:
        """What comes next of every schedule that is active, and when: a tick or its end."""
        found = []
        for path, schedule in self._service.store.of_kind("schedules"):
            if schedule["state"] == "ACTIVE":
                comes = min(schedule["nextRunTime"], schedule.get("endTime", schedule["nextRunTime"]))
                found.append((_time(comes), path))
        return found

    def _do_what_is_due(self, until: datetime, moving: bool = False) -> None:
        for path, _ in self._service.store.of_kind("schedules"):
            self._start_queued(path)
        while (due := min(self._due(), default=None)) and due[0] <= until:
            time, path = due
            if moving and time > self._service.clock.now():
                self._service.clock.set(time)
            self._tick(path, time)

    def _tick(self, path: str, time: datetime) -> None:
        schedule = dict(self._service.existing(KIND, path))
        if "endTime" in schedule and time >= _time(schedule["endTime"]):
            return self._complete(path, schedule)
        _set_next(schedule, schedule["nextRunTime"])
        self._service.store.put(path, schedule)
        if self._may_start(schedule):
            self._start(path, time)
        elif schedule.get("allowQueueing"):
            self._queued.setdefault(path, []).append(time)
        return None

    def _start_queued(self, path: str) -> None:
        while self._queued.get(path):
            schedule = self._service.existing(KIND, path)
            if schedule["state"] != "ACTIVE" or not self._may_start(schedule):
                return
            self._start(path, self._queued[path].pop(0))

    def _may_start(self, schedule: dict[str, Any]) -> bool:
        """Whether another run may be active. That only so many start at once is of no account here: starting takes no
        time."""
        if "maxConcurrentActiveRunCount" not in schedule:
            return True
        active = [
            job
            for _, job in self._service.store.of_kind("pipelineJobs")
            if job.get("scheduleName") == schedule["name"] and job["state"] not in resources.TERMINAL
        ]
        return len(active) < int(schedule["maxConcurrentActiveRunCount"])

    def _start(self, path: str, tick: datetime) -> None:
        """Makes the request of the template, as it was frozen."""
        schedule = dict(self._service.existing(KIND, path))
        location = path.partition("/")[0]
        request = schedule["createPipelineJobRequest"]["pipelineJob"]
        try:
            job = checks.job(self._service.config, self._service.iam, location, request)
            job_id = jobs.job_id_of(path, job, tick)
            jobs.begin(self._service, location, job, job_id, schedule["name"], tick)
            said = "OK"
        except HttpError as error:
            said = error.body["error"]["message"]
        started = int(schedule.get("startedRunCount", "0")) + (said == "OK")
        schedule |= {
            "lastScheduledRunResponse": {"scheduledRunTime": resources.timestamp(tick), "runResponse": said},
            "startedRunCount": str(started),
        }
        if "maxRunCount" in schedule and started >= int(schedule["maxRunCount"]):
            return self._complete(path, schedule)
        self._service.store.put(path, schedule)
        return None

    def _complete(self, path: str, schedule: dict[str, Any]) -> None:
        now = resources.timestamp(self._service.clock.now())
        done = {**schedule, "state": "COMPLETED", "updateTime": now}
        done.pop("nextRunTime", None)
        self.drop(path)
        self._service.store.put(path, done)
