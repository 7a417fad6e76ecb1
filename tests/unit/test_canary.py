"""A promotion behind a gateway: the shares and their note at each write, what ends it, and who goes on from there."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from components.promote_generation import canary as steps
from components.promote_generation import step
from components.promote_generation.canary import (
    AstrayError,
    EndedByPersonError,
    Health,
    MovedError,
    TooLittleTrafficError,
    Trouble,
    Walk,
)
from components.promote_generation.plan import WORSE
from components.write_report import step as write_report
from serving import names
from serving.deployment import canary, entrance, lease, record
from serving.deployment.entrance import Note
from serving.deployment.record import Record
from serving.errors import InconclusiveError, ReleaseError, RequestError, ToldToEnd
from serving.rendering import render
from serving.settings import Settings, validated
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import RELEASE, behind_a_gateway, deployment, labels, owned, quick, route
from tests.unit.test_gateway import a_gateway, attached, condition

SETTINGS = behind_a_gateway(canary={"steps": [10, 50], "hold": "1s", "settle": "0s", "min_requests": 10})
ENTRY = ("HTTPRoute", SETTINGS.namespace, SETTINGS.name)
PASSED = {"verdict": "passed", "reasons": [], "percent": 10, "candidate": {}, "live": {}}


class Killed(BaseException):
    """kill -9: no handler of ours gets to write anything."""


class Watched(MemoryCluster):
    """Remembers each write of the entry, and sees that none of them sends requests to nobody."""

    def __init__(self, *objects: dict[str, Any]):
        self.written: list[tuple[dict[str, int], Note | None]] = []
        super().__init__(*objects)

    def _store(self, body: dict[str, Any]) -> dict[str, Any]:
        found = super()._store(body)
        if body["kind"] == "HTTPRoute" and hasattr(self, "written"):
            shares = entrance.shares_of(body)
            assert sum(shares.values()) == 100, shares
            for generation in record.backends(body):
                server = self.objects.get(("Deployment", SETTINGS.namespace, names.server(generation)))
                assert server, generation
                assert server["status"]["readyReplicas"] > 0, f"a share for {generation}, which has no ready pod"
            self.written.append((shares, entrance.note_of(body)))
        return found


def said(_line: str) -> None:
    pass


def live() -> Watched:
    """g1 serves, g2 came up beside it."""
    cluster = Watched(deployment("g1"), *owned("g1"), deployment("g2"), *owned("g2"))
    Record().write(cluster, SETTINGS)  # type: ignore[arg-type]
    assert step.promote(cluster, SETTINGS, RELEASE.model_copy(update={"generation": "g1", "live": ""}), said)
    assert cluster.written == [({"g1": 100}, None)], "the first one has nobody to share with"
    cluster.written.clear()
    return cluster


def walk(cluster: MemoryCluster, run_id: str = RELEASE.run_id, settings: Settings = SETTINGS) -> Walk:
    return Walk(cluster, settings, run_id, said)  # type: ignore[arg-type]


def promote(cluster: MemoryCluster, run_id: str = RELEASE.run_id, settings: Settings = SETTINGS) -> bool:
    known = record.read(cluster, settings)  # type: ignore[arg-type]
    release = RELEASE.model_copy(update={"run_id": run_id, "live": known.live})
    return step.promote(cluster, settings, release, said, None, walk(cluster, run_id, settings))  # type: ignore[arg-type]


def now(cluster: MemoryCluster) -> tuple[dict[str, int], Note | None]:
    there = cluster.objects[ENTRY]
    return entrance.shares_of(there), entrance.note_of(there)


def pods_of(cluster: MemoryCluster, generation: str) -> int:
    return int(cluster.objects["Deployment", SETTINGS.namespace, names.server(generation)]["spec"]["replicas"])


Hold = Callable[[Walk, Note], object]


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> list[Hold]:
    """What happens while each step is held; the last one holds for all others. Without any, they pass."""
    does: list[Hold] = []

    def held(self: Walk, note: Note) -> None:
        if does:
            (does.pop(0) if len(does) > 1 else does[0])(self, note)
        self.steps.append({**PASSED, "step": note.step})

    monkeypatch.setattr(Walk, "_hold", held)
    return does


def raising(error: BaseException) -> Hold:
    def act(_walk: Walk, _note: Note) -> None:
        raise error

    return act


# -- its writes -----------------------------------------------------------------------------------------------


def test_a_promotion_takes_its_steps_and_drains_before_a_reference_goes(hold: list[Hold]) -> None:
    cluster = live()
    assert promote(cluster)
    shares = [written[0] for written in cluster.written]
    assert shares == [{"g1": 90, "g2": 10}, {"g1": 50, "g2": 50}, {"g1": 0, "g2": 100}, {"g2": 100}]
    notes = [written[1] for written in cluster.written]
    assert [(note.live, note.candidate, note.step, note.run) for note in notes if note] == [
        ("g1", "g2", 1, "run-2"),
        ("g1", "g2", 2, "run-2"),
    ]
    assert notes[2:] == [None, None]
    known = record.read(cluster, SETTINGS)  # type: ignore[arg-type]
    assert (known.live, known.previous, known.kept) == ("g2", "g1", ["g1"])
    assert (pods_of(cluster, "g1"), pods_of(cluster, "g2")) == (0, 1)
    cluster.calls.clear()
    assert not promote(cluster)
    assert cluster.calls == []


def test_while_it_goes_on_the_note_says_who_is_live(hold: list[Hold]) -> None:
    cluster, seen = live(), []

    def look(_walk: Walk, _note: Note) -> None:
        seen.append(record.read(cluster, SETTINGS).live)  # type: ignore[arg-type]

    hold.append(look)
    promote(cluster)
    assert seen == ["g1", "g1"]


def test_shares_and_note_are_one_write(hold: list[Hold]) -> None:
    cluster = live()
    cluster.calls.clear()
    promote(cluster)
    assert [call for call in cluster.calls if call[1] == "HTTPRoute"] == [("apply", "HTTPRoute", "gemma")] * 4


def test_without_steps_all_requests_move_at_once(hold: list[Hold]) -> None:
    cluster = live()
    assert promote(cluster, settings=behind_a_gateway())
    assert [shares for shares, _ in cluster.written] == [{"g1": 0, "g2": 100}, {"g2": 100}]


def test_a_live_generation_without_a_ready_pod_has_nothing_to_share(hold: list[Hold]) -> None:
    cluster = live()
    cluster.set_status("Deployment", "vllm-g1", SETTINGS.namespace, readyReplicas=0)
    assert promote(cluster)
    assert [shares for shares, _ in cluster.written] == [{"g1": 0, "g2": 100}, {"g2": 100}]


def test_a_generation_that_cannot_be_behind_the_entry_gets_no_share(hold: list[Hold]) -> None:
    """It was made when the deployment had another entry, and has no backend of this one's kind."""
    cluster = live()
    del cluster.objects["Service", SETTINGS.namespace, "vllm-g1"]
    assert promote(cluster)
    assert cluster.written[0][0] == {"g1": 0, "g2": 100}


def test_a_generation_without_a_backend_behind_the_entry_never_takes_over(hold: list[Hold]) -> None:
    cluster = live()
    del cluster.objects["Service", SETTINGS.namespace, "vllm-g2"]
    with pytest.raises(RequestError, match="g2 cannot be behind the Gateway gemma/gemma"):
        promote(cluster)
    assert cluster.written == []


def test_a_candidate_that_lost_its_pods_between_steps_gets_no_larger_share(hold: list[Hold]) -> None:
    cluster = live()

    def lose(_walk: Walk, _note: Note) -> None:
        cluster.set_status("Deployment", "vllm-g2", SETTINGS.namespace, readyReplicas=0)

    hold.append(lose)
    with pytest.raises(InconclusiveError, match="vllm-g2 has no ready pod"):
        promote(cluster)
    assert now(cluster) == ({"g1": 100}, None)


# -- what ends it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("error", [ReleaseError("worse"), InconclusiveError("a node went")])
def test_the_requests_go_back_before_anything_else(hold: list[Hold], number: int, error: Exception) -> None:
    cluster = live()
    hold += [lambda *_: None] * (number - 1) + [raising(error)]
    with pytest.raises(type(error), match=str(error)):
        promote(cluster)
    shares = [written for written in cluster.written if written[1] is None]
    assert shares == [({"g1": 100, "g2": 0}, None), ({"g1": 100}, None)]
    assert record.read(cluster, SETTINGS).live == "g1"  # type: ignore[arg-type]
    assert pods_of(cluster, "g1") == 1


@pytest.mark.parametrize("error", [ToldToEnd, KeyboardInterrupt])
def test_who_is_told_to_end_gives_the_requests_back_and_waits_for_nothing(hold: list[Hold], error: Any) -> None:
    cluster = live()
    hold += [lambda *_: None, raising(error())]
    with pytest.raises(error):
        promote(cluster)
    assert now(cluster) == ({"g1": 100, "g2": 0}, None)
    # Another attempt, and so another run, begins with the first step.
    cluster.written.clear()
    hold[:] = []
    assert promote(cluster)
    assert cluster.written[0][0] == {"g1": 90, "g2": 10}
    assert now(cluster) == ({"g2": 100}, None)


def test_another_attempt_of_the_run_goes_on_with_the_step_where_it_was(hold: list[Hold]) -> None:
    cluster = live()
    begun = Note(live="g1", candidate="g2", step=2, since="2026-11-29T10:00:00Z", run=RELEASE.run_id)
    entrance.send(cluster, SETTINGS, {"g1": 50, "g2": 50}, lambda _: None, begun)  # type: ignore[arg-type]
    held: list[Note] = []
    hold.append(lambda _walk, note: held.append(note))
    assert promote(cluster)
    assert held == [begun]


def test_another_run_begins_anew(hold: list[Hold]) -> None:
    cluster = live()
    begun = Note(live="g1", candidate="g2", step=2, since="2026-11-29T10:00:00Z", run="dead")
    entrance.send(cluster, SETTINGS, {"g1": 50, "g2": 50}, lambda _: None, begun)  # type: ignore[arg-type]
    cluster.written.clear()
    assert promote(cluster)
    assert [shares["g2"] for shares, _ in cluster.written] == [10, 50, 100, 100]


def test_another_field_manager_is_named_and_left_alone(hold: list[Hold]) -> None:
    cluster = live()
    cluster.owners["HTTPRoute", SETTINGS.name] = "argocd-controller"
    words = (
        r"the HTTPRoute gemma/gemma is also managed .*argocd-controller.*Leave its spec.rules .*ignoreDifferences: "
        r"\[{group: gateway.networking.k8s.io, kind: HTTPRoute, name: gemma, jsonPointers: \[/spec/rules\]}\].*Flux"
    )
    with pytest.raises(RequestError, match=words):
        promote(cluster)
    assert cluster.written == []
    assert record.read(cluster, SETTINGS).live == "g1"  # type: ignore[arg-type]


def test_who_is_killed_at_any_write_leaves_shares_that_add_up_and_the_next_run_completes(hold: list[Hold]) -> None:
    for after in range(50):
        cluster = live()
        writes = iter(range(1000))
        dead = []

        def kill(verb: str, kind: str, name: str) -> None:
            if dead or next(writes) == after:  # noqa: B023
                dead.append(1)  # noqa: B023
                raise Killed

        cluster.before_write = kill
        try:
            promote(cluster)
        except Killed:
            pass
        cluster.before_write = lambda *_: None
        shares, note = now(cluster)
        assert note is None or note.live == "g1"
        assert record.read(cluster, SETTINGS).live == ("g1" if note or shares.get("g1", 0) else "g2")  # type: ignore[arg-type]
        # The same run again, or the next one: it puts back, and begins anew.
        if after % 2:
            canary.put_back(cluster, SETTINGS, run_id="run-3", say=said)  # type: ignore[arg-type]
            assert entrance.note_of(cluster.objects[ENTRY]) is None
            promote(cluster, run_id="run-3")
        else:
            promote(cluster)
        assert now(cluster) == ({"g2": 100}, None)
        known = record.read(cluster, SETTINGS)  # type: ignore[arg-type]
        assert (known.live, known.previous) == ("g2", "g1")
        if not dead:
            break
    assert after == 6, "each of its writes"


def test_who_is_killed_while_the_requests_go_back_leaves_that_to_the_next_run(hold: list[Hold]) -> None:
    hold.append(raising(ReleaseError("worse")))
    for after in range(50):
        cluster = live()
        writes, dead = iter(range(1000)), []

        def kill(verb: str, kind: str, name: str) -> None:
            if dead or next(writes) == after:  # noqa: B023
                dead.append(1)  # noqa: B023
                raise Killed

        cluster.before_write = kill
        with pytest.raises((Killed, ReleaseError)):
            promote(cluster)
        cluster.before_write = lambda *_: None
        assert record.read(cluster, SETTINGS).live == "g1"  # type: ignore[arg-type]
        canary.put_back(cluster, SETTINGS, run_id="run-3", say=said)  # type: ignore[arg-type]
        assert now(cluster) == ({"g1": 100}, None)
        if not dead:
            break
    assert after == 3, "the step's write, and two that put back"


def test_what_a_dead_run_left_is_put_back_when_the_live_one_can_take_it() -> None:
    cluster = live()
    left_by("dead", cluster, alive=False)
    cluster.objects["Deployment", SETTINGS.namespace, "vllm-g1"]["status"]["readyReplicas"] = 0
    with pytest.raises(InconclusiveError, match="g1 has no ready pod that could take the requests of g2 back"):
        canary.put_back(cluster, SETTINGS, run_id="run-3", say=said)  # type: ignore[arg-type]
    assert now(cluster)[0] == {"g1": 90, "g2": 10}
    cluster.objects["Deployment", SETTINGS.namespace, "vllm-g1"]["status"]["readyReplicas"] = 1
    assert canary.put_back(cluster, SETTINGS, run_id="run-3", say=said) == "g2"  # type: ignore[arg-type]
    assert now(cluster) == ({"g1": 100}, None)
    cluster.calls.clear()
    assert canary.put_back(cluster, SETTINGS, run_id="run-3", say=said) == ""  # type: ignore[arg-type]
    assert cluster.calls == []


@pytest.mark.parametrize("holder", ["run-2", "dead"])
def test_the_exit_task_gives_the_requests_back(monkeypatch: pytest.MonkeyPatch, holder: str) -> None:
    """Of its own run, and of a dead one that it found."""
    cluster = live()
    left_by(holder, cluster, alive=holder == "run-2")
    monkeypatch.setattr(write_report.kubernetes, "connect", lambda _: cluster)
    monkeypatch.setattr(write_report.disk_images, "sweep", lambda *_: None)
    write_report.clean_up(SETTINGS, "run-2", said)
    assert now(cluster) == ({"g1": 100}, None)
    assert lease.holder(cluster.objects["Lease", SETTINGS.namespace, SETTINGS.name]) == ""


def test_the_exit_task_leaves_a_canary_that_another_run_is_at(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = live()
    note = left_by("alive", cluster, alive=True)
    monkeypatch.setattr(write_report.kubernetes, "connect", lambda _: cluster)
    write_report.clean_up(SETTINGS, "run-2", said)
    assert now(cluster) == ({"g1": 90, "g2": 10}, note)


# -- a person -------------------------------------------------------------------------------------------------


def left_by(run: str, cluster: Watched, *, alive: bool) -> Note:
    note = Note(live="g1", candidate="g2", step=1, since=record.now(), run=run)
    entrance.send(cluster, SETTINGS, {"g1": 90, "g2": 10}, lambda _: None, note)  # type: ignore[arg-type]
    lease.take(cluster, SETTINGS, run, said)  # type: ignore[arg-type]
    if not alive:
        held = cluster.objects["Lease", SETTINGS.namespace, SETTINGS.name]
        held["spec"]["renewTime"] = "2026-01-01T00:00:00.000000Z"
    cluster.written.clear()
    return note


def test_a_person_finishes_a_canary_that_a_dead_run_left(hold: list[Hold]) -> None:
    cluster = live()
    left_by("dead", cluster, alive=False)
    known = step.promote_by_hand(cluster, SETTINGS, None, said)  # type: ignore[arg-type]
    assert known.live == "g2"
    assert [shares for shares, _ in cluster.written] == [{"g1": 0, "g2": 100}, {"g2": 100}]


def test_a_person_takes_back_a_canary_that_a_dead_run_left(hold: list[Hold]) -> None:
    cluster = live()
    left_by("dead", cluster, alive=False)
    known = step.roll_back(cluster, SETTINGS, None, said)  # type: ignore[arg-type]
    assert known.live == "g1"
    assert known.pinned
    assert known.pinned.generation == "g1"
    assert [shares for shares, _ in cluster.written] == [{"g1": 100, "g2": 0}, {"g1": 100}]


@pytest.mark.parametrize(("verb", "ends"), [(step.promote_by_hand, "promote"), (step.roll_back, "rollback")])
def test_a_person_tells_a_run_that_is_at_it_how_to_end(hold: list[Hold], verb: Any, ends: str) -> None:
    cluster = live()
    note = left_by("alive", cluster, alive=True)

    def obey() -> None:
        while entrance.note_of(cluster.objects[ENTRY]) == note:
            time.sleep(0.01)
        told = entrance.note_of(cluster.objects[ENTRY])
        assert told
        assert told.asked == ends
        if ends == "rollback":
            canary.put_back(cluster, SETTINGS, run_id="alive", say=said)  # type: ignore[arg-type]
        else:
            known = record.read(cluster, SETTINGS)  # type: ignore[arg-type]
            step.traffic.move(cluster, SETTINGS, known, "g2", run_id="alive", say=said)  # type: ignore[arg-type]
        lease.give_back(cluster, SETTINGS, "alive")  # type: ignore[arg-type]

    run = threading.Thread(target=obey)
    run.start()
    known = verb(cluster, SETTINGS, None, said)
    run.join()
    assert known.live == ("g1" if ends == "rollback" else "g2")
    assert now(cluster) == ({known.live: 100}, None)
    assert (known.pinned is not None) == (ends == "rollback")


def ends_as_said(cluster: Watched, verb: str) -> None:
    """A promotion during which, or before which, a person says how it is to end."""
    if verb == "promote":
        assert promote(cluster)
        assert now(cluster) == ({"g2": 100}, None)
    else:
        with pytest.raises(EndedByPersonError):
            promote(cluster)
        assert now(cluster) == ({"g1": 100}, None)


@pytest.mark.parametrize("verb", ["promote", "rollback"])
def test_what_a_person_says_between_two_steps_counts(hold: list[Hold], verb: str) -> None:
    cluster = live()
    hold.append(lambda _walk, note: canary.ask(cluster, SETTINGS, note, verb))  # type: ignore[arg-type]
    ends_as_said(cluster, verb)
    assert 50 not in [shares["g2"] for shares, note in cluster.written if note], "no second step"


@pytest.mark.parametrize("verb", ["promote", "rollback"])
def test_what_a_person_said_to_an_attempt_that_died_counts_for_the_next(hold: list[Hold], verb: str) -> None:
    cluster = live()
    note = left_by(RELEASE.run_id, cluster, alive=True)
    canary.ask(cluster, SETTINGS, note, verb)  # type: ignore[arg-type]
    hold.append(raising(AssertionError("it is held again")))
    ends_as_said(cluster, verb)


def test_by_hand_a_validated_generation_takes_the_steps_and_a_rollback_none(hold: list[Hold]) -> None:
    cluster = live()
    step.wait_for_a_person(cluster, SETTINGS, RELEASE)  # type: ignore[arg-type]
    step.promote_by_hand(cluster, SETTINGS, None, said)  # type: ignore[arg-type]
    assert [shares["g2"] for shares, _ in cluster.written] == [10, 50, 100, 100]
    cluster.written.clear()
    cluster.before_write = lambda verb, kind, name: (
        cluster.set_status("Deployment", "vllm-g1", SETTINGS.namespace, readyReplicas=1) if verb == "scale" else None
    )
    step.roll_back(cluster, SETTINGS, None, said)  # type: ignore[arg-type]
    assert [shares["g1"] for shares, _ in cluster.written] == [100, 100]


def test_by_hand_one_that_turns_out_worse_is_rejected(hold: list[Hold]) -> None:
    cluster = live()
    step.wait_for_a_person(cluster, SETTINGS, RELEASE)  # type: ignore[arg-type]
    hold.append(raising(ReleaseError("3 of its 20 requests failed")))
    with pytest.raises(ReleaseError):
        step.promote_by_hand(cluster, SETTINGS, None, said)  # type: ignore[arg-type]
    known = record.read(cluster, SETTINGS)  # type: ignore[arg-type]
    assert (known.live, known.validated) == ("g1", "")
    assert known.rejected["g2"].reason == "3 of its 20 requests failed"
    assert "vllm-g2" not in cluster.names("Deployment")
    assert now(cluster) == ({"g1": 100}, None)


# -- a step that is held --------------------------------------------------------------------------------------


def pod(**status: Any) -> dict[str, Any]:
    """A pod of g2's, ready."""
    ready = status.pop("ready", True)
    return {
        "kind": "Pod",
        "metadata": {"name": "g2-pod", "namespace": SETTINGS.namespace, "labels": labels("g2"), "uid": "u2"},
        "spec": {},
        "status": {
            "podIP": "10.0.0.2",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}, *status.pop("conditions", [])],
            "containerStatuses": [
                {"name": "vllm", "ready": status.pop("kubelet", ready), **status.pop("container", {})}
            ],
            **status,
        },
    }


def ended(reason: str, code: int = 1) -> dict[str, Any]:
    return {"lastState": {"terminated": {"exitCode": code, "reason": reason, "finishedAt": "2100-01-01T00:00:00Z"}}}


class Held(Watched):
    """Its Job says `lines`, then what it came to; None is a Job that goes on. `on_begin` happens meanwhile."""

    def __init__(self) -> None:
        self.result: dict[str, Any] | None = None
        self.lines: list[str] = []
        self.on_begin: Callable[[], None] = lambda: None
        super().__init__(deployment("g1"), *owned("g1"), deployment("g2"), *owned("g2"), pod())

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        made = super().create(body)
        if body["kind"] == "Job":
            threading.Thread(target=self._run, args=(made,), daemon=True).start()
        return made

    def log(self, *_: Any, **__: Any) -> str:
        return "\n".join([*self.lines, json.dumps(self.result)])

    def log_followed(self, _pod: str, _namespace: str, take: Callable[[str], None]) -> Any:
        from contextlib import nullcontext

        for line in self.lines:
            take(line)
        return nullcontext()

    def _run(self, job: dict[str, Any]) -> None:
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        meta = {"name": "job-pod", "namespace": "gemma", "labels": {"batch.kubernetes.io/job-name": name}}
        state = {"terminated": {"exitCode": 0}} if self.result else {"running": {}}
        body = {"kind": "Pod", "metadata": {**meta, "ownerReferences": [{"uid": uid}]}, "spec": {"nodeName": "n"}}
        body["spec"]["containers"] = [{"name": "step", "image": "i", "command": []}]  # type: ignore[index]
        self._store({**body, "status": {"phase": "Running", "containerStatuses": [{"name": "step", "state": state}]}})
        time.sleep(0.1)
        self.on_begin()
        if self.result:
            done = [{"type": "Complete", "status": "True"}]
            self._store({**self.objects["Job", "gemma", name], "status": {"conditions": done}})


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    monkeypatch.setattr(steps, "SETTLES_SECONDS", 0.3)
    cluster = Held()
    assert step.promote(cluster, SETTINGS, RELEASE.model_copy(update={"generation": "g1", "live": ""}), said)  # type: ignore[arg-type]
    cluster.written.clear()
    return cluster


FIGURES = {
    "verdict": "passed",
    "reasons": [],
    "step": 1,
    "percent": 10,
    "seconds": 1.0,
    "candidate": {"requests": 12, "errors": 0, "first_tokens": 12, "p95_first_token_ms": 21.0},
    "live": {"requests": 100, "errors": 0, "first_tokens": 100, "p95_first_token_ms": 20.0},
}


def test_a_step_that_passed_leads_to_the_next(held: Held) -> None:
    held.result = FIGURES
    found = walk(held)
    found("g1", "g2")
    assert [each["verdict"] for each in found.steps] == ["passed", "passed"]
    assert found.warnings == []
    assert held.names("Job") == set()
    assert now(held)[0] == {"g1": 50, "g2": 50}


def test_a_worse_one_loses_its_share_before_its_job_has_ended(held: Held) -> None:
    held.lines = [WORSE + "5 of its 12 requests failed"]

    def end_late() -> None:
        deadline = time.monotonic() + 60
        while now(held)[0] != {"g1": 100, "g2": 0}:
            assert time.monotonic() < deadline, "the share is back before the Job is over"
            time.sleep(0.01)

    held.on_begin = end_late
    held.result = {**FIGURES, "verdict": "failed", "reasons": ["5 of its 12 requests failed"]}
    found = walk(held)
    with pytest.raises(ReleaseError, match=r"g2 is worse than g1 with 10 % .*: 5 of its 12 requests failed"):
        found("g1", "g2")
    assert now(held) == ({"g1": 100}, None)
    assert [each["verdict"] for each in found.steps] == ["failed"]


def reached_by_requests(cluster: Held, *said: dict[str, Any]) -> None:
    """The Gateway's controller says that all is well, or what it has against the route."""
    cluster._store(a_gateway())
    parents = attached("HTTPRoute", SETTINGS.name, *said)["status"]["parents"]
    cluster.set_status("HTTPRoute", SETTINGS.name, SETTINGS.namespace, parents=parents)


def test_a_candidate_that_requests_do_not_reach_is_not_promoted_for_want_of_them(held: Held) -> None:
    held.result = {**FIGURES, "verdict": "too-little", "reasons": ["g2 had 0 requests"]}
    wrong = condition("ResolvedRefs", "False", "BackendNotFound", "backend(vllm-g2/gemma) not found")
    held.on_begin = lambda: reached_by_requests(held, condition("Accepted"), wrong)
    words = r"g2 had 0 requests, and requests may not reach it: HTTPRoute gemma is not ResolvedRefs \(BackendNotFound"
    with pytest.raises(AstrayError, match=words) as error:
        walk(held)("g1", "g2")
    assert error.value.final
    assert now(held) == ({"g1": 100}, None)


@pytest.mark.parametrize("setting", ["go-on", "stop"])
def test_too_little_traffic_is_said_and_the_setting_decides(held: Held, setting: str) -> None:
    held.result = {**FIGURES, "verdict": "too-little", "reasons": ["g2 had 2 requests"]}
    settings = behind_a_gateway(
        canary={"steps": [10, 50], "hold": "1s", "settle": "0s", "min_requests": 10, "little_traffic": setting}
    )
    held.on_begin = lambda: reached_by_requests(held)
    found = walk(held, settings=settings)
    if setting == "stop":
        with pytest.raises(TooLittleTrafficError, match=r"too little traffic to tell .*g2 had 2 requests") as error:
            found("g1", "g2")
        assert error.value.final, "no other attempt holds the steps again"
        assert now(held) == ({"g1": 100}, None)
    else:
        found("g1", "g2")
        assert len(found.warnings) == 2


TROUBLE: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "restart": ({"container": ended("Error", 137)}, ReleaseError, "started again: vllm ended with exit code 137"),
    "out of memory": ({"container": ended("OOMKilled", 137)}, ReleaseError, "OOMKilled"),
    "the node started again": ({"container": ended("Unknown", 255)}, InconclusiveError, "exit code 255"),
    "not ready": ({"ready": False}, ReleaseError, "is not ready any more"),
    "the node is silent": ({"ready": False, "kubelet": True}, InconclusiveError, "the node of its pod"),
    "evicted": (
        {"ready": False, "phase": "Failed", "reason": "Evicted"},
        InconclusiveError,
        r"was taken away \(Evicted\)",
    ),
    "preempted": (
        {"ready": False, "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "Preemption"}]},
        InconclusiveError,
        r"was taken away \(Preemption\)",
    ),
}


@pytest.mark.parametrize("kind", TROUBLE)
def test_trouble_of_the_candidate_ends_the_step_at_once(held: Held, kind: str) -> None:
    change, error, words = TROUBLE[kind]
    held.on_begin = lambda: held._store(pod(**change)) and None
    found = walk(held)
    with pytest.raises(error, match=f"{words}.*with 10 % of the requests.*g1's again"):
        found("g1", "g2")
    assert now(held) == ({"g1": 100}, None)
    assert found.steps[0]["verdict"] == ("failed" if error is ReleaseError else "inconclusive")
    assert held.names("Job") == set()


def test_a_pod_whose_node_says_a_moment_later_that_it_goes_is_not_to_blame(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "SETTLES_SECONDS", 60)

    def go() -> None:
        held._store(pod(ready=False))
        deadline = time.monotonic() + 60
        while now(held)[1] is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        held._store(pod(ready=False, reason="NodeShutdown", phase="Failed"))

    held.on_begin = go
    with pytest.raises(InconclusiveError, match=r"was taken away \(NodeShutdown\)"):
        walk(held)("g1", "g2")


def test_a_pod_that_comes_up_during_a_step_is_no_trouble(held: Held) -> None:
    other = pod(ready=False)
    other["metadata"] |= {"name": "g2-other", "uid": "u3"}
    held.on_begin = lambda: held._store(other) and None
    held.result = FIGURES
    walk(held)("g1", "g2")


def test_an_endpoint_picker_without_a_ready_pod_is_trouble_and_not_the_releases() -> None:
    health = Health(Note(live="g1", candidate="g2", step=1, since=record.now(), run="run-2"))
    picker = deployment("g2")
    picker["metadata"]["name"] = names.picker("g2")
    assert health.look(("ADDED", {**picker, "status": {}})) is None, "it never answered: nobody gave it a share"
    assert health.look(("MODIFIED", picker)) is None
    trouble = health.look(("MODIFIED", {**picker, "status": {**picker["status"], "readyReplicas": 0}}))
    assert trouble == Trouble("no pod of the endpoint picker epp-g2 is ready", guilty=False)
    assert health.look(("MODIFIED", deployment("g1"))) is None


@pytest.mark.parametrize("verb", ["promote", "rollback"])
def test_a_step_obeys_a_person_within_a_second(held: Held, verb: str) -> None:
    note = Note(live="g1", candidate="g2", step=1, since=record.now(), run=RELEASE.run_id)

    def ask() -> None:
        found = entrance.note_of(held.objects[ENTRY])
        assert found
        assert found.model_copy(update={"since": note.since}) == note
        canary.ask(held, SETTINGS, found, verb)  # type: ignore[arg-type]

    held.on_begin = ask
    if verb == "promote":
        assert promote(held)
        assert [shares["g2"] for shares, _ in held.written] == [10, 10, 100, 100]
    else:
        with pytest.raises(EndedByPersonError) as error:
            promote(held)
        assert error.value.final
        assert now(held) == ({"g1": 100}, None)
        assert record.read(held, SETTINGS).rejected == {}  # type: ignore[arg-type]


def test_shares_that_somebody_else_changed_are_left_as_they_are(held: Held) -> None:
    held.on_begin = lambda: held._store(route(("g2", 100))) and None
    words = "somebody else changed the shares of gemma/gemma during the canary"
    with pytest.raises(MovedError, match=words) as error:
        promote(held)
    assert error.value.final, "no other attempt takes them back"
    assert now(held)[0] == {"g2": 100}


# -- settings and rendering -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"canary": {"steps": [50, 10]}}, "does not rise"),
        ({"canary": {"steps": [10, 10]}}, "does not rise"),
        ({"canary": {"steps": [0]}}, "greater than or equal to 1"),
        ({"canary": {"steps": [100]}}, "less than or equal to 99"),
        ({"rollout": "replace", "canary": {"steps": [10]}}, "rollout: replace and canary.steps do not go together"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_steps_that_are_none_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        behind_a_gateway(**changes)


def test_a_service_has_no_canary() -> None:
    with pytest.raises(RequestError, match="a Service sends all requests to one generation"):
        quick(canary={"steps": [10]})
    assert validated(Settings, quick().as_struct()).canary == quick().canary


def test_the_shares_are_in_each_reference_and_a_service_has_one() -> None:
    body = render.entry(SETTINGS, {"g1": 90, "g2": 10})
    (rule,) = body["spec"]["rules"]
    assert [(each["name"], each["weight"]) for each in rule["backendRefs"]] == [("vllm-g1", 90), ("vllm-g2", 10)]
    with pytest.raises(ValueError, match="a Service sends requests to one generation"):
        render.entry(quick(), {"g1": 90, "g2": 10})


def test_patches_to_the_rules_are_refused() -> None:
    patch = {"kind": "HTTPRoute", "spec": {"rules": [{"timeouts": {"request": "10s"}}]}}
    with pytest.raises(RequestError, match=r"changes spec\.rules, which say who is live"):
        render.entry(behind_a_gateway(patches=[patch]), {"g1": 100})
    labelled = behind_a_gateway(patches=[{"kind": "HTTPRoute", "metadata": {"labels": {"team": "llm"}}}])
    assert render.entry(labelled, {"g1": 100})["metadata"]["labels"]["team"] == "llm"


def test_a_note_that_nobody_can_read_is_none() -> None:
    for text in ("no JSON", ["g1"], {"live": "g1"}):
        assert entrance.note_of(route(("g1", 90), ("g2", 10), canary=text)) is None
