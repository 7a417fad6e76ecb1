"""A promotion in steps: each gives the candidate a share of the requests and holds it while a Job in the cluster
compares the figures of both generations. This looks after the candidate's pods meanwhile: a dead engine counts no
errors.

Whatever ends it before the last step, the requests are the live generation's again first; the annotation on the entry
says who that is, and lets another attempt of the same run go on with the step where it was.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from components.promote_generation.plan import WORSE, Plan
from serving import names
from serving.clients.kubernetes import Cluster, Object, Subject
from serving.deployment import canary, entrance, gateway, pods, record, replicas
from serving.deployment.entrance import Note
from serving.deployment.job import Watch, argument, running_job
from serving.errors import InconclusiveError, PipelineError, ReleaseError
from serving.log import Say
from serving.rendering import engine
from serving.settings import Settings, in_seconds

LEAST_OF_A_STEP = 0.25
"""Share of a step that another attempt looks at again at least, since the figures of the first are lost."""
SETTLES_SECONDS = 10.0
"""How long a pod in trouble is looked at before the release is blamed: a node that goes away takes its readiness first,
and says why a moment later."""
_JOB_SECONDS = 600
"""How long the Job of a step may take beyond the step itself: a node has to be found for it."""
_LOOK_SECONDS = 1.0
"""How often the entry is read for what a person wants. It could be watched, but that is a right more."""


class AstrayError(InconclusiveError):
    """Requests do not reach the candidate: another attempt would lose its share of them again."""

    final = True


class EndedForCandidateError(Exception):
    """A person wants the candidate to have all requests now: no further step."""


class EndedByPersonError(InconclusiveError):
    """A person wants the requests to stay with the live generation."""

    final = True


class MovedError(InconclusiveError):
    """Somebody else wrote the shares: another attempt would take them back a moment later."""

    final = True


class TooLittleTrafficError(InconclusiveError):
    """Nobody can tell, and the settings say that the requests then stay with the live generation. A step was held for
    it: another attempt would hold the next one."""

    final = True


@dataclass
class Walk:
    """One canary, from its first step, or from where an earlier attempt of its run was, to its last."""

    cluster: Cluster
    settings: Settings
    run_id: str
    say: Say
    steps: list[dict[str, Any]] = field(default_factory=list)
    """What each step came to: the Job's result (compare.py), one that ended badly included."""
    warnings: list[str] = field(default_factory=list)

    def __call__(self, live: str, candidate: str) -> None:
        """Takes the requests from one generation to another up to the last step.

        Raises, the requests being the live one's again: ReleaseError when the candidate is worse, InconclusiveError
        when something else ended it, RequestError when another field manager owns the entry.
        """
        percents = self.settings.canary.steps
        if not percents:
            return
        without = [name for name in (live, candidate) if not entrance.has_backend(self.cluster, self.settings, name)]
        if without:
            self.say(f"{', '.join(without)} cannot be behind this entry, so the requests move at once")
            return
        try:
            begun = self._begun(live, candidate)
            for number in range(begun.step if begun else 1, len(percents) + 1):
                self._check_ready(candidate)
                self._hold(begun if begun and begun.step == number else self._begin(live, candidate, number))
        except EndedForCandidateError:
            self.say(f"a person wants {candidate} to have all requests now")
        except BaseException as error:
            # At once, whatever it was; what is told to end waits for nothing.
            self._back(patient=isinstance(error, PipelineError))
            raise

    def _begun(self, live: str, candidate: str) -> Note | None:
        """The step in which an earlier attempt of this run ended without having had the time to put anything back."""
        there = record.entry(self.cluster, self.settings)
        note = entrance.note_of(there)
        if note is None or (note.live, note.candidate, note.run) != (live, candidate, self.run_id):
            return None
        if not 1 <= note.step <= len(self.settings.canary.steps):
            return None
        if entrance.shares_of(there) != self._shares(note):
            return None
        self._obey(note)
        self.say(f"an earlier attempt began step {note.step} of the canary at {note.since}: going on with it")
        return note

    def _shares(self, note: Note) -> dict[str, int]:
        percent = self.settings.canary.steps[note.step - 1]
        return {note.live: 100 - percent, note.candidate: percent}

    def _check_ready(self, candidate: str) -> None:
        """No share for a generation that cannot answer."""
        server = self.cluster.get("Deployment", names.server(candidate), self.settings.namespace)
        if not replicas.ready(server):
            raise InconclusiveError(f"{names.server(candidate)} has no ready pod that could take requests. Run again")
        gateway.wait_for_picker(self.cluster, self.settings, candidate, self.say)

    def _begin(self, live: str, candidate: str, number: int) -> Note:
        """The write that begins a step: its shares and its note."""
        note = Note(live=live, candidate=candidate, step=number, since=record.now(), run=self.run_id)

        def check(there: Object | None) -> None:
            if record.serving_generation(there) != live:
                raise _moved(self.settings)
            self._obey(entrance.note_of(there))

        entrance.send(self.cluster, self.settings, self._shares(note), check, note)
        percent = self.settings.canary.steps[number - 1]
        self.say(f"{self.settings.name} sends {percent} % of the requests to {candidate}, the others to {live}")
        return note

    def _hold(self, note: Note) -> None:
        """One step, to its end, or until it is not to go on."""
        plan, last, is_worse = self._plan(note), [""], threading.Event()

        def hear(line: str) -> None:
            last[0] = line
            if line.startswith(WORSE):
                is_worse.set()
            self.say(line)

        health = Health(note)
        looked, told_back = 0.0, False
        deadline = time.monotonic() + plan.seconds + _JOB_SECONDS
        with self._comparing(plan, hear) as job, self._changes(job, note) as changes:
            for change in changes.until(deadline, tick=0.2):
                job.look(change)
                if trouble := health.look(change):
                    self._back(patient=False)
                    self._blame(note, trouble, last[0])
                if is_worse.is_set() and not told_back:
                    # Before the Job has ended, and its result was read.
                    self._back(patient=False)
                    told_back = True
                if job.end is not None:
                    break
                if not told_back and time.monotonic() - looked >= _LOOK_SECONDS:
                    looked = time.monotonic()
                    self._check_undisturbed(note)
            end = job.end if job.end is not None else job.unended()
        if isinstance(end, PipelineError):
            raise end
        self._take(note, end)

    def _take(self, note: Note, result: dict[str, Any]) -> None:
        """Judges what the Job of a step came to."""
        self.steps.append(result)
        reasons = "; ".join(result["reasons"])
        if result["verdict"] == "failed":
            raise ReleaseError(
                f"{note.candidate} is worse than {note.live} with {result['percent']} % of the requests: {reasons}. "
                f"They are {note.live}'s again"
            )
        if result["verdict"] == "too-little":
            words = f"too little traffic to tell with {result['percent']} % of the requests: {reasons}"
            # What a load balancer answers by itself is in nobody's figures.
            if astray := gateway.problems(self.cluster, self.settings, [note.live, note.candidate]):
                raise AstrayError(
                    f"{words}, and requests may not reach it: {'; '.join(astray)}. They are {note.live}'s again"
                )
            if self.settings.canary.little_traffic == "stop":
                raise TooLittleTrafficError(
                    f"{words}. They are {note.live}'s again, as canary.little_traffic: stop has it; hold the steps "
                    "longer (canary.hold), or ask for fewer requests (canary.min_requests)"
                )
            self.warnings.append(words)
            self.say(f"warning: {words}; going on, as canary.little_traffic has it")

    def _plan(self, note: Note) -> Plan:
        asked, held = self.settings.canary, in_seconds(self.settings.canary.hold)
        gone = (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(note.since)).total_seconds()
        return Plan(
            step=note.step,
            percent=asked.steps[note.step - 1],
            live=note.live,
            candidate=note.candidate,
            pods={name: pods.addresses(self.cluster, self.settings, name) for name in (note.live, note.candidate)},
            seconds=min(held, max(held - gone, LEAST_OF_A_STEP * held)),
            held=held,
            max_error_rate=asked.max_error_rate,
            max_p95_first_token_ratio=asked.max_p95_first_token_ratio,
            min_requests=asked.min_requests,
        )

    @contextmanager
    def _comparing(self, plan: Plan, say: Say) -> Iterator[Watch]:
        with running_job(
            self.cluster,
            self.settings,
            step="promote-generation",
            part=f"canary-{plan.step}",
            run_id=self.run_id,
            generation=plan.candidate,
            args=["-m", "components.promote_generation", "compare", argument(plan)],
            image=engine.component_image(self.settings),
            timeout=plan.seconds + _JOB_SECONDS,
            say=say,
        ) as job:
            yield job

    def _changes(self, job: Watch, note: Note) -> Any:
        namespace, candidate = self.settings.namespace, note.candidate
        return self.cluster.follow(
            Subject("Event", namespace),
            *job.subjects,
            Subject("Pod", namespace, labels=names.selector(self.settings, candidate)),
            Subject("Deployment", namespace, fields=f"metadata.name={names.picker(candidate)}"),
        )

    def _check_undisturbed(self, note: Note) -> None:
        """Raises what a person wants (`_obey`), and MovedError when somebody else moved the traffic."""
        there = record.entry(self.cluster, self.settings)
        now = entrance.note_of(there)
        if now is None or now.model_copy(update={"asked": ""}) != note:
            raise _moved(self.settings)
        if entrance.shares_of(there) != self._shares(note):
            raise _moved(self.settings)
        self._obey(now)

    def _obey(self, note: Note | None) -> None:
        """Raises EndedForCandidateError or EndedByPersonError when a person has said how this run's canary is to end.
        A step that begins looks for that too: its write would take the word away."""
        if note is None or note.run != self.run_id:
            return
        if note.asked == "promote":
            raise EndedForCandidateError
        if note.asked == "rollback":
            raise EndedByPersonError(f"a person took the requests back from {note.candidate}: they are {note.live}'s")

    def _blame(self, note: Note, trouble: Trouble, last: str) -> None:
        """Raises ReleaseError for what the candidate did, InconclusiveError for what was done to it."""
        percent = self.settings.canary.steps[note.step - 1]
        so_far = f" (so far: {last})" if last else ""
        guilty, words = trouble.guilty, trouble.words
        if guilty and trouble.pod:
            guilty, words = self._after_a_moment(trouble)
        back = f"with {percent} % of the requests{so_far}; they are {note.live}'s again"
        verdict = "failed" if guilty else "inconclusive"
        self.steps.append({"verdict": verdict, "reasons": [words], "step": note.step, "percent": percent})
        if guilty:
            raise ReleaseError(f"{note.candidate}: {words}, {back}")
        raise InconclusiveError(f"{note.candidate}: {words}, {back}. That says nothing about the release: run again")

    def _after_a_moment(self, trouble: Trouble) -> tuple[bool, str]:
        """Whether a pod's trouble is still its own when its node has had the time to say that it goes."""
        labels = f"metadata.name={trouble.pod}"
        with self.cluster.follow(Subject("Pod", self.settings.namespace, fields=labels)) as changes:
            for change in changes.until(time.monotonic() + SETTLES_SECONDS, tick=0.5):
                if change and (why := taken_away(*change)):
                    return False, f"the pod {trouble.pod} was taken away ({why})"
        return trouble.guilty, trouble.words

    def _back(self, *, patient: bool) -> None:
        """Never raises: whoever comes next (the exit task, the next run) finds the note, and does it."""
        try:
            canary.put_back(self.cluster, self.settings, run_id=self.run_id, say=self.say, patient=patient)
        except PipelineError as error:
            self.say(f"could not give the requests back ({error})")


@dataclass(frozen=True)
class Trouble:
    """What happened to a candidate while it had requests."""

    words: str
    guilty: bool
    """Whether it is the candidate's own doing, as far as can be seen at once."""
    pod: str = ""


class Health:
    """The candidate's pods and its endpoint picker, through a step."""

    def __init__(self, note: Note):
        self._since = datetime.datetime.fromisoformat(note.since)
        self._ready: dict[str, str] = {}
        """uid → name of the pods that have been ready."""
        self._picker_was_ready = False

    def look(self, change: tuple[str, Object] | None) -> Trouble | None:
        """What a change tells, if it is trouble."""
        if change is None:
            return None
        event, item = change
        if item["kind"] == "Deployment" and names.picker("") in item["metadata"]["name"]:
            return self._of_picker(event, item)
        if item["kind"] == "Pod" and names.GENERATION in (item["metadata"].get("labels") or {}):
            return self._of_pod(event, item)
        return None

    def _of_picker(self, event: str, deployment: Object) -> Trouble | None:
        answers = event != "DELETED" and replicas.answering(deployment) > 0
        was, self._picker_was_ready = self._picker_was_ready, answers
        name = deployment["metadata"]["name"]
        return Trouble(f"no pod of the endpoint picker {name} is ready", guilty=False) if was and not answers else None

    def _of_pod(self, event: str, pod: Object) -> Trouble | None:
        uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
        if why := taken_away(event, pod):
            was_ready = self._ready.pop(uid, None)
            if was_ready and not self._ready:  # An autoscaler may take one of several back.
                return Trouble(f"the pod {name} was taken away ({why})", guilty=False)
            return None
        for status in _servers(pod):
            if words := self._restarted(status):
                return Trouble(f"its pod {name} started again: {words}", guilty=not _unknown_end(status), pod=name)
        if pods.is_ready(pod):
            self._ready[uid] = name
        elif uid in self._ready:
            if all(status.get("ready") for status in _servers(pod)):
                # The kubelet said nothing: the control plane stopped hearing of the node.
                return Trouble(f"the node of its pod {name} does not answer", guilty=False, pod=name)
            return Trouble(f"its pod {name} is not ready any more", guilty=True, pod=name)
        return None

    def _restarted(self, status: Object) -> str:
        """How a container ended since the step began, in words; empty when it did not."""
        for state in (status.get("state") or {}, status.get("lastState") or {}):
            ended = state.get("terminated") or {}
            at = ended.get("finishedAt")
            if at and datetime.datetime.fromisoformat(at) >= self._since:
                return f"{status['name']} ended with exit code {ended.get('exitCode')} ({ended.get('reason')})"
        return ""


def taken_away(event: str, pod: Object) -> str:
    """Why a pod goes that somebody or something takes away, in a word; empty for one that stays."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return str(condition.get("reason") or "disrupted")
    if status.get("reason"):
        return str(status["reason"])
    return "deleted" if event == "DELETED" or pod["metadata"].get("deletionTimestamp") else ""


def _servers(pod: Object) -> list[Object]:
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return [status for status in statuses if status["name"] in names.SERVER_CONTAINERS]


def _unknown_end(status: Object) -> bool:
    """Whether nobody saw how a container ended: its node started again."""
    ended = (status.get("state") or {}).get("terminated") or (status.get("lastState") or {}).get("terminated") or {}
    return ended.get("reason") in ("Unknown", "ContainerStatusUnknown")


def _moved(settings: Settings) -> MovedError:
    return MovedError(
        f"somebody else changed the shares of {settings.namespace}/{settings.name} during the canary: they are left as "
        "they are. See `gemma-pipelines status`, then run again"
    )
