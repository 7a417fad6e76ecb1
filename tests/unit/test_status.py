"""What `status` says of what serves, and every kind of drift."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from components.resolve_model import step as resolve
from pipelines.cli import oversee
from pipelines.cli.output import Output
from pipelines.oversight import runs, status
from pipelines.vertex import schedule
from serving import names
from serving.clients import kubernetes
from serving.deployment import entrance, record, replicas
from serving.deployment.entrance import Note
from serving.deployment.record import Down
from serving.errors import AccessError, InconclusiveError, PipelineError, RequestError
from serving.settings import Settings
from tests.unit.deployment import behind_a_gateway, deployment, job, lease, quick
from tests.unit.oversight import FOUND, World, record_now, world

__all__ = ["world"]


def told(world: World, settings: Settings | None = None) -> dict[str, Any]:
    found = status.status(settings or world.settings, record_now(), on_vertex=False)
    assert json.loads(json.dumps(found)) == found
    return found


def drift(world: World, settings: Settings | None = None) -> list[tuple[str, str]]:
    return [(each["what"], each["why"]) for each in told(world, settings)["drift"]]


def test_what_serves_is_told_from_the_commit_to_the_pods(world: World):
    release = world.live()
    found = told(world)
    live = found["live"]
    assert (live["generation"], live["commit"], live["weights_key"]) == (
        release.generation,
        "c" * 40,
        FOUND.weights_key,
    )
    assert live["pods"] == {"wanted": 1, "ready": 1}
    assert live["since"]
    assert found["kept"] == []
    assert found["drift"] == []
    words = oversee._status_words(found, record_now())
    assert f"{release.generation} since" in words
    assert "1 of 1 pods are ready" in words


def test_before_the_first_run_nothing_serves_and_nothing_drifts(world: World):
    found = told(world)
    nothing: dict[str, Any] = {"runs": [], "kept": [], "drift": [], "unseen": []}
    assert found == {"schedule": None, "live": None, "canary": None, **nothing}
    assert "nothing" in oversee._status_words(found, record_now())


def test_a_schedule_that_the_settings_ask_for_and_nobody_made(world: World):
    asked = quick(schedule={"cron": "0 3 * * *"})
    assert status.status(asked, record_now(), on_vertex=True)["drift"] == [
        {
            "what": "schedule",
            "why": "there is none, and the settings ask for 0 3 * * *",
            "command": "gemma-pipelines schedule apply -f FILE",
        }
    ]
    assert status.status(quick(), record_now(), on_vertex=True)["drift"] == []


def test_of_a_schedule_that_nobody_could_look_for_nothing_else_is_said(world: World):
    def refused(*_: object) -> None:
        raise RequestError("there are 2")

    world.patch(schedule, "find", refused)
    asked = quick(schedule={"cron": "0 3 * * *"})
    found = status.status(asked, record_now(), on_vertex=True)
    assert [(each["what"], each["why"]) for each in found["drift"]] == [("schedule", "there are 2")]
    assert found["unseen"] == found["drift"]


@pytest.mark.parametrize("quiet", [False, True])
def test_that_vertex_is_switched_off_is_for_a_program_and_for_a_person(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quiet: bool
):
    """A schedule outlives that, unseen; what is switched off on purpose has not drifted."""
    world.live()
    monkeypatch.setattr(runs, "vertex_of", lambda settings: None)
    monkeypatch.setattr(oversee, "deployment", lambda *_: contextlib.nullcontext(world.settings))
    oversee.status(Output(as_json=True, quiet=quiet))
    out, err = capsys.readouterr()
    found = json.loads(out)
    (only,) = found["unseen"]
    assert only["what"] == "Vertex AI"
    assert only["why"].startswith(f"it is switched off in {world.settings.project}: a schedule there is not seen")
    assert only["command"] == f"gcloud services enable aiplatform.googleapis.com --project={world.settings.project}"
    assert (found["schedule"], found["drift"]) == (None, [])
    assert found["live"]
    assert (only["why"] in err) != quiet

    oversee.status(Output(as_json=True), state=Path("state"))
    out, err = capsys.readouterr()
    assert json.loads(out)["unseen"] == [], "a run on this machine has no Vertex AI"
    assert "switched off" not in err


@pytest.mark.parametrize("refusal", [AccessError, InconclusiveError])
def test_a_vertex_that_refuses_or_is_away_leaves_the_rest(world: World, refusal: type[PipelineError]):
    def refused(settings: Settings) -> None:
        raise refusal("not for you")

    live = world.live().generation
    world.patch(runs, "reached", refused)
    found = status.status(quick(schedule={"cron": "0 3 * * *"}), record_now(), on_vertex=True)
    assert found["live"]["generation"] == live
    assert found["unseen"] == found["drift"] == [{"what": "Vertex AI", "why": "not for you", "command": ""}]


def test_the_hub_has_other_weights(world: World):
    world.live()
    world.patch(status, "look_up", lambda settings: dataclasses.replace(FOUND, commit="d" * 40, weights_key="f" * 16))
    (what, why), *_ = drift(world)
    assert what == "revision"
    assert "is dddddddddddd, with other weights than the live cccccccccccc" in why


def test_the_hub_has_a_commit_of_the_same_weights(world: World):
    world.live()
    world.patch(status, "look_up", lambda settings: dataclasses.replace(FOUND, commit="d" * 40))
    ((what, why),) = drift(world)
    assert what == "revision"
    assert "no run is needed" in why


def test_settings_of_another_generation(world: World):
    world.live()
    ((what, why),) = drift(world, quick(engine={"max_model_len": 2048}))
    assert what == "settings"
    assert "they ask for g" in why


def test_settings_that_a_run_applies_in_place(world: World):
    release = world.live()
    found = drift(world, quick(labels={"team": "blue"}))
    assert any(
        what == f"Deployment/vllm-{release.generation}" and "team: nothing -> blue" in why for what, why in found
    )


def test_an_object_that_somebody_changed(world: World):
    release = world.live()
    name = names.server(release.generation)
    world.cluster.patch("Service", name, "gemma", {"spec": {"ports": [{"name": "http", "port": 1}]}})
    ((what, why),) = drift(world)
    assert what == f"Service/{name}"
    assert "port" in why


def test_an_object_that_is_gone(world: World):
    release = world.live()
    budget = world.cluster.get("PodDisruptionBudget", names.server(release.generation), "gemma")
    assert budget
    world.cluster.delete(budget)
    assert drift(world) == [(f"PodDisruptionBudget/{names.server(release.generation)}", "it is gone")]


def test_what_is_down_on_purpose_is_told_with_who_brings_it_back(world: World):
    """And once: pods that it lacks are no drift of their own."""
    live = world.live().generation
    known = record.read(world.cluster, world.settings)
    known.down = Down(generation=live, candidate="g2", replicas=1, since="2026-11-29T03:00:00Z", run_id="run-2")
    known.write(world.cluster, world.settings)
    replicas.scale(world.cluster, world.settings, live, 0)
    ((what, why),) = drift(world)
    assert what == f"generation {live}"
    assert why.startswith("it is down since 2026-11-29T03:00:00Z: the run run-2 had it make room for g2 and has ended")
    (told_of,) = told(world)["drift"]
    assert told_of["command"] == "gemma-pipelines rollback -f FILE"
    assert "DOWN since 2026-11-29T03:00:00Z" in oversee._status_words(told(world), record_now())

    world.cluster.replace({**lease("run-2", "2100-01-01T00:00:00Z"), "metadata": _metadata(world, "Lease")})
    ((_, why),) = drift(world)
    assert why.endswith("had it make room for g2, and run-2 is at work")


def test_a_canary_is_told_with_who_is_at_it_and_left_behind_it_is_drift(monkeypatch: pytest.MonkeyPatch):
    world = World(monkeypatch, behind_a_gateway(canary={"steps": [10, 50]}))
    live = world.live().generation
    note = Note(live=live, candidate="g2", step=2, since="2026-11-29T03:00:00Z", run="run-2")
    entrance.send(world.cluster, world.settings, {live: 50, "g2": 50}, lambda _: None, note)  # type: ignore[arg-type]
    found = told(world)
    assert found["live"]["generation"] == live
    assert found["canary"] == {**note.model_dump(), "percent": 50, "steps": [10, 50], "alive": False}
    (left,) = found["drift"]
    assert (left["what"], left["command"]) == ("canary", "gemma-pipelines rollback -f FILE")
    assert left["why"].startswith("g2 has 50 % of the requests, and its run run-2 has ended")
    assert "by run-2, which has ENDED" in oversee._status_words(found, record_now())

    world.cluster.replace({**lease("run-2", "2100-01-01T00:00:00Z"), "metadata": _metadata(world, "Lease")})
    found = told(world)
    assert found["drift"] == []
    assert "50 % to g2, step 2 of 2 since 2026-11-29T03:00:00Z" in oversee._status_words(found, record_now())


def _metadata(world: World, kind: str) -> dict[str, Any]:
    found = world.cluster.get(kind, world.settings.name, world.settings.namespace)
    assert found
    return found["metadata"]


def test_pods_that_are_not_ready_and_replicas_that_are_others(world: World):
    release = world.live()
    name = names.server(release.generation)
    world.cluster.patch("Deployment", name, "gemma", {"spec": {"replicas": 3}}, subresource="scale")
    words = dict(drift(world))[f"Deployment/{name}"]
    assert "1 of 3 pods are ready" in words
    assert (f"Deployment/{name}", "3 replicas, the settings say 1") in drift(world)


@pytest.mark.parametrize("what", ["adapters", "autoscaling", "gateway"])
def test_what_changes_in_place_and_is_not_as_the_settings_have_it(world: World, what: str):
    world.live()
    world.patch(getattr(resolve, what), "amiss", lambda *_: "it is another one")
    assert drift(world) == [({"autoscaling": "autoscaler"}.get(what, what), "it is another one")]


def test_weights_that_are_damaged(world: World):
    world.live()
    world.patch(resolve, "damage", lambda uri: ["model.safetensors is missing"])
    assert drift(world) == [("weights", "model.safetensors is missing")]


def test_what_dead_runs_left(world: World):
    world.live()
    world.cluster.create(job("validate-server-run-0", "run-0"))
    world.cluster.create(deployment("gdead", replicas=1))
    held = world.cluster.get("Lease", "gemma", "gemma")
    assert held
    world.cluster.replace({**lease("run-0"), "metadata": held["metadata"]})
    assert {what for what, _ in drift(world)} == {"Job/validate-server-run-0", "Deployment/vllm-gdead", "Lease"}


def test_a_cluster_that_does_not_answer_leaves_the_rest(world: World, monkeypatch):
    def away(settings: Settings) -> None:
        raise InconclusiveError("the container API is away")

    monkeypatch.setattr(kubernetes, "connect", away)
    monkeypatch.setattr(runs, "latest", lambda vertex, settings: [])
    found = told(world)
    assert found["live"] is None
    assert [(each["what"], each["why"]) for each in found["drift"]] == [("cluster", "the container API is away")]


def test_a_hub_that_does_not_answer_is_told(world: World):
    world.live()

    def gone(settings: Settings) -> None:
        raise RequestError("no such model")

    world.patch(status, "look_up", gone)
    assert drift(world) == [("revision", "no such model")]
