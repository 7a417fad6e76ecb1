"""What verify_autoscaling concludes of what it sees, and when it does not look at all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from components.verify_autoscaling import load, step
from serving import names
from serving.clients import engine
from serving.deployment import autoscaling
from serving.deployment.record import Record, Scaled
from serving.errors import InconclusiveError, RequestError, ToldToEnd
from serving.outcome import Outcome
from serving.settings import Settings
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import RELEASE, deployment, labels
from tests.unit.test_queue_hpa import scaled

SERVER = names.server(RELEASE.generation)
KEY = ("Deployment", "gemma", SERVER)


def quick(**section: Any) -> Settings:
    found = scaled(**{"growth_timeout": "2s", "metric_timeout": "2s", "scale_down_window": "0s", **section})
    serving = found.serving.model_copy(update={"capacity_timeout": "2s", "ready_timeout": "1s"})
    return found.model_copy(update={"serving": serving})


class Site(MemoryCluster):
    """A generation with its autoscaler; `on_load` is what happens once the Job's pod runs, `on_end` once it is gone."""

    def __init__(self, *, metric: bool = True, job: dict[str, Any] | None = None):
        self.on_load: Callable[[], None] = lambda: None
        self.on_end: Callable[[], None] = lambda: None
        self.job_end = job
        super().__init__(deployment(RELEASE.generation), self._pod("p1"))
        status = "True" if metric else "False"
        conditions = [
            {"type": "ScalingActive", "status": status, "reason": "R", "message": "the metric is what it is"},
        ]
        self._store(
            {
                "kind": autoscaling.KIND,
                "metadata": {"name": SERVER, "namespace": "gemma", "labels": labels(RELEASE.generation)},
                "spec": {"minReplicas": 1, "maxReplicas": 4},
                "status": {"conditions": conditions},
            }
        )
        self.calls.clear()

    def scale(self, wanted: int, ready: int | None = None) -> None:
        found = self.objects[KEY]
        counts = {"replicas": wanted, "updatedReplicas": wanted, "readyReplicas": wanted if ready is None else ready}
        self._store({**found, "spec": {"replicas": wanted}, "status": {**found["status"], **counts}})

    def pending(self) -> None:
        pod = self._pod("p2")
        pod["status"] = {"conditions": [{"type": "PodScheduled", "status": "False", "message": "no cards are left"}]}
        self._store(pod)

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        made = super().create(body)
        if body["kind"] == "Job":
            threading.Thread(target=self._run, args=(made,), daemon=True).start()
        return made

    def delete(self, body: dict[str, Any]) -> bool:
        gone = super().delete(body)
        if body["kind"] == "Job":
            self.on_end()
        return gone

    def _run(self, job: dict[str, Any]) -> None:
        meta = {
            "name": "load",
            "namespace": "gemma",
            "labels": {"batch.kubernetes.io/job-name": job["metadata"]["name"]},
        }
        meta["ownerReferences"] = [{"uid": job["metadata"]["uid"]}]
        state = {"terminated": {"exitCode": 0}} if self.job_end is not None else {"running": {}}
        self._store(
            {
                "kind": "Pod",
                "metadata": meta,
                "spec": {"nodeName": "n1", "containers": [{"name": "step", "image": "i"}]},
                "status": {"phase": "Running", "containerStatuses": [{"state": state}]},
            }
        )
        if self.job_end is not None:
            done = [{"type": "Complete", "status": "True"}]
            self._store({**self.objects["Job", "gemma", job["metadata"]["name"]], "status": {"conditions": done}})
        self.on_load()

    @staticmethod
    def _pod(name: str) -> dict[str, Any]:
        return {
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "gemma", "labels": labels(RELEASE.generation)},
            "spec": {"nodeName": "n1"},
            "status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
        }

    @contextmanager
    def log_followed(self, pod: str, namespace: str, take: Callable[[str], None]) -> Iterator[None]:
        yield

    def log(self, pod: str, namespace: str, **_: Any) -> str:
        import json

        return json.dumps(self.job_end)


def verify(site: Site, settings: Settings | None = None) -> tuple[list[str], Outcome]:
    outcome = Outcome("verify_autoscaling", RELEASE.run_id)
    return step.verify(site, settings or quick(), RELEASE, outcome), outcome  # type: ignore[arg-type]


def test_pods_that_come_and_go_are_told_in_seconds():
    site = Site()
    site.on_load, site.on_end = lambda: site.scale(3), lambda: site.scale(1)
    reasons, outcome = verify(site)
    assert reasons == []
    seen = outcome.details["autoscaling"]
    assert (seen["from"], seen["to"], seen["back_to"]) == (1, 3, 1)
    assert outcome.message.startswith("1 pod became 3: asked for")
    assert site.names("Job") == set(), "the load is given back"


def test_a_metric_that_nobody_brings_is_waited_for_and_then_nobodys_fault():
    with pytest.raises(InconclusiveError, match=r"did not learn of prometheus.*metric_timeout.*R: the metric"):
        verify(Site(metric=False))


def test_an_autoscaler_that_asks_for_nothing_is_inconclusive():
    site = Site()
    with pytest.raises(InconclusiveError, match=r"requests waited, and the autoscaler .* no more than 1 pods"):
        verify(site)
    assert site.names("Job") == set()


def test_no_capacity_for_the_second_pod_is_inconclusive_in_the_schedulers_words():
    site = Site()

    def asked() -> None:
        site.pending()
        site.scale(2, ready=1)

    site.on_load = asked
    with pytest.raises(InconclusiveError, match=r"asked for 2 pods, and 1 were ready.*p2 has no node \(no cards"):
        verify(site)
    assert site.names("Job") == set()


def test_pods_that_do_not_go_are_inconclusive(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(step, "_LAG_SECONDS", 0.2)
    site = Site()
    site.on_load = lambda: site.scale(2)
    with pytest.raises(InconclusiveError, match=r"still has 2 pods .* instead of 1"):
        verify(site, quick(scale_down_period="1s"))


def test_an_engine_that_does_not_tell_its_queue_is_a_bad_release():
    reasons, _ = verify(Site(job={"silent": "/metrics of 10.0.0.1 answered 200, without vllm:num_requests_waiting"}))
    assert reasons == [
        "the engine does not say how many requests wait, which scaling goes by: /metrics of 10.0.0.1 answered 200, "
        "without vllm:num_requests_waiting"
    ]


def test_settings_under_which_nothing_waits_are_a_wrong_request():
    with pytest.raises(RequestError, match=r"with 64 requests at once at most 3 wait.*queue_hpa.verify_requests"):
        verify(Site(job={"waiting": 3, "requests": 64}))


def test_a_load_that_somebody_ended_teaches_nothing():
    with pytest.raises(InconclusiveError, match="told to end by somebody else"):
        verify(Site(job={}))


def test_told_to_end_the_step_gives_the_load_back(monkeypatch: pytest.MonkeyPatch):
    def told(*_: Any) -> None:
        raise ToldToEnd("told to end")

    site = Site()
    monkeypatch.setattr(step, "wait_for_growth", told)
    with pytest.raises(ToldToEnd):
        verify(site)
    assert ("create", "Job") in {call[:2] for call in site.calls}
    assert site.names("Job") == set()


def test_a_generation_that_has_all_its_pods_already_is_not_loaded():
    site = Site()
    site.scale(4)
    reasons, outcome = verify(site)
    assert (reasons, outcome.status) == ([], "skipped")
    assert site.calls == []


# -- when it is looked at -------------------------------------------------------------------------------------


def test_it_is_verified_once_for_the_same_settings_flags_and_accelerator():
    settings, known = scaled(), Record()
    assert step.needless(settings, RELEASE, known) == ""
    seen = step.subject_of(settings, RELEASE)
    known.scaled = Scaled(generation="g0", at="2026-11-29T00:00:00Z", run_id="run-0", settings=seen)
    assert "g0 was seen to scale at 2026-11-29T00:00:00Z (run run-0)" in step.needless(settings, RELEASE, known)
    for other in (
        scaled(target=11),
        scaled(2),
        settings.model_copy(update={"engine": settings.engine.model_copy(update={"image": "vllm/vllm-openai:v9"})}),
        settings.model_copy(update={"accelerator": settings.accelerator.model_copy(update={"count": 2})}),
    ):
        assert step.needless(other, RELEASE, known) == ""
    weights = RELEASE.model_copy(update={"weights_key": "f" * 16, "generation": "g7"})
    assert step.needless(settings, weights, known) != "", "other weights scale alike"


@pytest.mark.parametrize(
    ("settings", "live", "why"),
    [
        (scaled(verify=False), "g1", "queue_hpa.verify is false"),
        (scaled(), "g2", "g2 serves already"),
        (scaled(4, max_replicas=4), "g1", "there are always 4 pods"),
    ],
)
def test_what_could_not_be_seen_is_not_loaded(settings: Settings, live: str, why: str):
    assert why in step.needless(settings, RELEASE.model_copy(update={"live": live}), Record())


# -- the load -------------------------------------------------------------------------------------------------


class Fake:
    """An engine that runs `slots` requests at once."""

    def __init__(self, slots: int):
        self.slots, self.asked = slots, 0

    async def chat(self, *_: Any, **__: Any) -> None:
        self.asked += 1
        await asyncio.sleep(3600)


def pressed(monkeypatch: pytest.MonkeyPatch, fake: Fake, waiting: Callable[[], int], **plan: Any) -> dict[str, Any]:
    @contextmanager
    def direct() -> Iterator[None]:
        yield

    async def press() -> dict[str, Any]:
        wanted = load.Plan(
            **{
                "url": "http://s",
                "model": "m",
                "addresses": ["10.0.0.1"],
                "waiting": 20,
                "requests": 100,
                "request_seconds": 60,
                "look_seconds": 0,
                **plan,
            }
        )
        return await asyncio.wait_for(load.press(wanted, None, lambda line: None), 120)

    class Connected:
        def __init__(self, *_: Any, clients: int, **__: Any):
            self.clients = clients

        async def __aenter__(self) -> list[Any]:
            return [fake] * self.clients

        async def __aexit__(self, *_: object) -> None:
            return None

    monkeypatch.setattr(
        load, "engine", SimpleNamespace(direct=direct, waiting=lambda *_: waiting(), connected=Connected)
    )
    return asyncio.run(press())


def test_all_requests_that_are_allowed_are_made_before_it_gives_up(monkeypatch: pytest.MonkeyPatch):
    fake = Fake(1000)
    assert pressed(monkeypatch, fake, lambda: 0) == {"waiting": 0, "requests": 100}
    assert fake.asked == 100


def test_no_more_requests_than_it_takes_are_made(monkeypatch: pytest.MonkeyPatch):
    fake, looks = Fake(16), [0]

    def waiting() -> int:
        looks[0] += 1
        if looks[0] > 40:
            raise ended
        return max(0, fake.asked - fake.slots)

    ended = RuntimeError("looked long enough")
    with pytest.raises(RuntimeError, match="looked long enough"):
        pressed(monkeypatch, fake, waiting, requests=10_000)
    assert 36 <= fake.asked <= 64


def test_an_engine_that_says_nothing_of_its_queue_ends_the_load(monkeypatch: pytest.MonkeyPatch):
    def waiting() -> int:
        raise engine.BadAnswer("/metrics of 10.0.0.1 answered 200, without vllm:num_requests_waiting")

    assert "without vllm:num_requests_waiting" in pressed(monkeypatch, Fake(1), waiting)["silent"]
