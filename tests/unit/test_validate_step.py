"""The step around the Job: what it asks for, whom a failure is held against, and what a reader gets."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from components.validate_server import page, step
from components.validate_server.checks import Plan
from serving import names
from serving.clients import kubernetes, storage
from serving.clients.kubernetes import Object
from serving.errors import InconclusiveError, RequestError
from serving.settings import Prompt
from serving.weights.release import Release
from tests.unit import deployment
from tests.unit.deployment import RELEASE, quick
from tests.unit.test_job import JobCluster, fails

SETTINGS = quick()
TIMES = {"p50": 1.0, "p95": 2.0, "p99": 3.0}
ROW = {"errors": 1, "failures": [], "seconds": 1.0, "output_tokens": 64, "tokens_per_second": 640.4} | {
    f"{name}_ms": TIMES for name in ("ttft", "itl", "tpot", "e2e")
}
LOAD = [{**ROW, "concurrency": 4, "requests": 4}, {**ROW, "concurrency": 16, "requests": 16}]
PASSED = {
    "passed": True,
    "reasons": [],
    "undecided": [],
    "warnings": [],
    "answer": {"prompt": "1 < 2?", "text": "<script>"},
    "figures": {
        "chat": [{"prompt": "1 < 2?", "text": "<script>", "finish_reason": "stop", "completion_tokens": 3}],
        "adapters": [
            {"name": "korean", "prompt": "1 < 2?", "text": "<b>yes", "finish_reason": "stop", "completion_tokens": 4}
        ],
        "streaming": {"ttft_ms": 12.0, "mean_itl_ms": 3.0, "chunks": 3, "completion_tokens": 3},
        "load": LOAD,
    },
}
FAILED = {
    "passed": False,
    "reasons": ["the answer has no text"],
    "undecided": [],
    "warnings": ["<i>another answer"],
    "answer": None,
    "figures": {"chat": [], "adapters": [], "streaming": None, "load": []},
}


class ServerCluster(JobCluster):
    """A cluster with one pod of the server, whose Job ends with `verdict` after `happens` has happened to the pod."""

    def __init__(self, verdict: dict[str, Any], happens: Any = lambda cluster: None, **pod: Any):
        super().__init__(self._validates)
        self.verdict, self.happens = verdict, happens
        self.job: Object = {}
        self.put_pod(**pod)

    def put_pod(
        self, *, ready: bool = True, restarts: int = 0, deleting: bool = False, ended: Any = None, **status: Any
    ) -> None:
        metadata: Object = {
            "name": "vllm-g2-x",
            "namespace": SETTINGS.namespace,
            "uid": "pod-1",
            "labels": {names.DEPLOYMENT: SETTINGS.name, names.GENERATION: RELEASE.generation},
        }
        if deleting:
            metadata["deletionTimestamp"] = "2026-11-24T00:00:00Z"
        condition = {"type": "Ready", "status": "True" if ready else "False"}
        container = {"restartCount": restarts, "lastState": {"terminated": ended} if ended else {}}
        status = {"conditions": [condition], "containerStatuses": [container], **status}
        self._store({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status})

    def drop_pod(self) -> None:
        del self.objects[("Pod", SETTINGS.namespace, "vllm-g2-x")]

    def _validates(self, cluster: JobCluster, job: Object) -> None:
        self.job = job
        self.happens(self)
        self.pod(job, log=json.dumps(self.verdict), terminated={"exitCode": 0})
        self.end(job, "Complete")


def judge(cluster: ServerCluster, release: Release = RELEASE, **settings: Any) -> dict[str, Any]:
    return step.judge(cluster, quick(**settings), release, lambda line: None)  # type: ignore[arg-type]


def test_the_job_asks_the_generations_own_service() -> None:
    cluster = ServerCluster(PASSED)
    assert judge(cluster) == PASSED
    container = cluster.job["spec"]["template"]["spec"]["containers"][0]
    assert container["args"][:2] == ["-m", "components.validate_server"]
    plan = Plan.model_validate_json(container["args"][2])
    assert plan.url == "http://vllm-g2.gemma.svc.cluster.local:8000"
    assert (plan.model, plan.validation) == (SETTINGS.model, SETTINGS.validation)
    assert not plan.in_service
    assert [variable["name"] for variable in container["env"]] == ["HOME"]


def test_a_changed_setting_does_not_load_the_live_generation() -> None:
    verdict = {**PASSED, "figures": FAILED["figures"], "warnings": ["another answer"]}
    cluster = ServerCluster(verdict)
    judge(cluster, RELEASE.model_copy(update={"live": RELEASE.generation}))
    plan = Plan.model_validate_json(cluster.job["spec"]["template"]["spec"]["containers"][0]["args"][2])
    assert plan.in_service
    assert step.summary(verdict) == "passed: it answers; as it serves already, nothing loaded it; warnings: 1"


def test_settings_that_let_the_release_show_nothing_are_a_wrong_request() -> None:
    undecided = {**PASSED, "passed": False, "undecided": ["still thinking: raise validation.max_tokens"]}
    with pytest.raises(RequestError, match=r"validation\.max_tokens"):
        judge(ServerCluster(undecided))
    both = {**undecided, "reasons": ["the answer has no text"]}
    assert judge(ServerCluster(both)) == both


def test_another_attempt_after_being_told_to_end_brings_the_server_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one gave its accelerators back: without them the release would have nothing to answer with."""
    order: list[str] = []
    objects: dict[str, Any] = {}

    class Resting(ServerCluster):
        def patch(self, kind: str, name: str, *rest: Any, **more: Any) -> Object:
            order.append(f"scale {rest[1]['spec']['replicas']}")
            patched = super().patch(kind, name, *rest, **more)
            self.set_status(kind, name, SETTINGS.namespace, readyReplicas=1)
            return patched

    def was_told_to_end(uri: str) -> Any:
        return objects.get(uri) or {"error": {"type": "ToldToEnd", "final": False}}

    cluster = Resting(PASSED, happens=lambda _: order.append("asked"))
    cluster.create(deployment.deployment(RELEASE.generation, replicas=0))
    monkeypatch.setattr(kubernetes, "connect", lambda settings: cluster)
    monkeypatch.setattr(storage, "read_json", was_told_to_end)
    monkeypatch.setattr(storage, "write_json", objects.__setitem__)
    step.run(SETTINGS.as_struct(), RELEASE.model_dump(), True, [])
    assert order == ["scale 1", "asked"]


def test_the_servers_key_reaches_the_job_as_a_reference() -> None:
    cluster = ServerCluster(PASSED)
    judge(cluster, engine={"api_key_secret": "projects/p/secrets/s/versions/1"})
    container = cluster.job["spec"]["template"]["spec"]["containers"][0]
    (key,) = (variable for variable in container["env"] if variable["name"] == "VLLM_API_KEY")
    assert key["valueFrom"]["secretKeyRef"] == {"name": names.api_key(SETTINGS), "key": names.API_KEY}


def test_kubernetes_finds_nothing_to_expand_in_a_prompt() -> None:
    cluster = ServerCluster(PASSED)
    prompts = [Prompt(content="What does $(HOME) cost, $5 or $$?", pattern="^.*$").model_dump()]
    judge(cluster, validation={"prompts": prompts})
    argument = cluster.job["spec"]["template"]["spec"]["containers"][0]["args"][2]
    assert "$" not in argument
    assert Plan.model_validate_json(argument).validation.prompts[0].content == prompts[0]["content"]


@pytest.mark.parametrize(
    ("happens", "words"),
    [
        (ServerCluster.drop_pod, "the pod vllm-g2-x was deleted"),
        (lambda cluster: cluster.put_pod(deleting=True), "the pod vllm-g2-x was deleted"),
        (lambda cluster: cluster.put_pod(reason="Evicted"), "the pod vllm-g2-x was taken away (Evicted)"),
        (
            lambda cluster: cluster.put_pod(
                conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]
            ),
            "the pod vllm-g2-x was taken away (PreemptionByScheduler)",
        ),
    ],
)
def test_a_server_that_was_taken_away_is_not_held_guilty(happens: Any, words: str) -> None:
    with pytest.raises(InconclusiveError, match=re.escape(words)):
        judge(ServerCluster(FAILED, happens))


OOM, KILLED = {"reason": "OOMKilled", "exitCode": 137}, {"reason": "Error", "exitCode": 143}


@pytest.mark.parametrize("end", [OOM, KILLED])
def test_an_engine_that_was_killed_meanwhile_is_not_held_guilty(end: Any) -> None:
    cluster = ServerCluster(FAILED, lambda cluster: cluster.put_pod(ready=False, restarts=1, ended=end))
    with pytest.raises(InconclusiveError, match=f"the engine of vllm-g2-x was killed .*exit code {end['exitCode']}"):
        judge(cluster)


def test_an_engine_that_was_killed_before_it_was_asked_is_held_to_its_answers() -> None:
    before = {"restarts": 1, "ended": OOM}
    assert judge(ServerCluster(FAILED, lambda cluster: cluster.put_pod(**before), **before)) == FAILED


def test_a_server_without_a_ready_pod_is_not_held_guilty() -> None:
    with pytest.raises(InconclusiveError, match="had no ready pod"):
        judge(ServerCluster(FAILED, ready=False))


@pytest.mark.parametrize(
    "happens",
    [
        lambda cluster: None,
        lambda cluster: cluster.put_pod(ready=False, restarts=1),
        lambda cluster: cluster.put_pod(ready=False, restarts=1, ended={"reason": "Error", "exitCode": 1}),
    ],
    ids=["alive", "its container crashed", "its engine ended by itself"],
)
def test_a_server_that_was_there_is(happens: Any) -> None:
    assert judge(ServerCluster(FAILED, happens)) == FAILED


def test_a_server_that_crashes_all_the_time_is() -> None:
    assert judge(ServerCluster(FAILED, ready=False, restarts=3)) == FAILED


def test_a_server_that_passed_has_passed_whatever_became_of_it() -> None:
    assert judge(ServerCluster(PASSED, ServerCluster.drop_pod)) == PASSED


def test_a_job_that_crashes_is_no_verdict() -> None:
    cluster = ServerCluster(FAILED)
    cluster.lives = fails(log="Traceback", terminated={"exitCode": 1})
    with pytest.raises(InconclusiveError, match="crashed with exit code 1"):
        judge(cluster)


def test_figures_become_metrics() -> None:
    assert step.numbers(PASSED) == {
        "passed": 1.0,
        "tokens_per_second_4": 640.4,
        "p95_time_to_first_token_ms_4": 2.0,
        "p95_inter_token_latency_ms_4": 2.0,
        "error_rate_4": 0.25,
        "tokens_per_second_16": 640.4,
        "p95_time_to_first_token_ms_16": 2.0,
        "p95_inter_token_latency_ms_16": 2.0,
        "error_rate_16": 0.0625,
    }
    assert step.numbers(FAILED) == {"passed": 0.0}
    assert step.summary(PASSED) == "passed: 640 tokens/s with 16 at once, first token 2 ms, next 2.0 ms (p95)"


def test_the_page_stands_alone_and_takes_no_markup_from_an_answer() -> None:
    html = page.render(SETTINGS, RELEASE, PASSED)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "1.0 / 2.0 / 3.0" in html
    assert not re.search(r"(src|href)=|@import|url\(", html)
    assert len(html) < 10_000


@pytest.mark.parametrize("verdict", [FAILED, {"passed": False, "reasons": ["the answer has no text"]}])
def test_the_page_of_a_failure_says_why(verdict: dict[str, Any]) -> None:
    html = page.render(SETTINGS, RELEASE, verdict)
    assert "the answer has no text" in html
    assert "Under load" not in html
    assert ("&lt;i&gt;another answer" in html) is ("warnings" in verdict)
