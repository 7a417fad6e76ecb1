"""The step around the Job: what it asks for, whom a failure is held against, and what a reader gets."""

from __future__ import annotations

import json
import re
from typing import Any

import kubernetes_validate
import pytest

from components.validate_server import page, step
from components.validate_server.checks import Plan, load_of
from serving import names
from serving.clients import kubernetes, storage
from serving.clients.kubernetes import Object
from serving.deployment import record
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


def live_measured(cluster: ServerCluster, load: str) -> None:
    figures = record.Measured(
        load=load, tokens_per_second=640, p95_time_to_first_token_ms=20, p95_inter_token_latency_ms=2
    )
    origin = record.Known(model="m", commit="c", weights_key="k", weights_uri="u", measured=figures)
    record.Record(live="g1", generations={"g1": origin}).write(cluster, SETTINGS)  # type: ignore[arg-type]


RELATIVE = {"thresholds": {"max_p95_time_to_first_token_ratio": 1.2}}


def plan_of(cluster: ServerCluster) -> Plan:
    return Plan.model_validate_json(cluster.job["spec"]["template"]["spec"]["containers"][0]["args"][2])


def test_the_job_is_told_what_live_was_measured_at() -> None:
    cluster = ServerCluster(PASSED)
    live_measured(cluster, load_of(SETTINGS.validation))
    assert judge(cluster, validation=RELATIVE)["warnings"] == []
    live = plan_of(cluster).live
    assert live
    assert (live.generation, live.p95_time_to_first_token_ms) == ("g1", 20)
    assert judge(cluster)["warnings"] == []
    assert plan_of(cluster).live is None, "nobody asked for it"


@pytest.mark.parametrize(
    ("load", "words"),
    [("another", "was measured under another load than validation asks for"), ("", "has no figures in the record")],
)
def test_where_there_is_nothing_to_compare_with_the_verdict_warns(load: str, words: str) -> None:
    cluster = ServerCluster(PASSED)
    if load:
        live_measured(cluster, load)
    (warning,) = judge(cluster, validation=RELATIVE)["warnings"]
    assert words in warning
    assert plan_of(cluster).live is None


def test_a_first_generation_is_compared_with_nothing() -> None:
    cluster = ServerCluster(PASSED)
    assert judge(cluster, RELEASE.model_copy(update={"live": ""}), validation=RELATIVE)["warnings"] == []
    assert plan_of(cluster).live is None


# -- gates of a team's own ----------------------------------------------------------------------------------

EVAL, SAFETY = "us-docker.pkg.dev/p/r/eval:3", "us-docker.pkg.dev/p/r/safety:1"
GATES = {"jobs": [{"image": EVAL, "args": ["--url=$(GEMMA_PIPELINES_URL)"], "timeout": "1h"}, {"image": SAFETY}]}
YES, NO = {"passed": True, "reasons": []}, {"passed": False, "reasons": ["score 0.71, below 0.8"]}


class GatedCluster(ServerCluster):
    """Our own checks end with PASSED, a gate with what it `says`; `gates` are the gates' Jobs, by their images."""

    def __init__(self, says: dict[str, Any], happens: Any = lambda cluster: None, checks: Any = PASSED):
        super().__init__(checks)
        self.says, self.happens_at_a_gate = says, happens
        self.gates: dict[str, Object] = {}

    def _validates(self, cluster: JobCluster, job: Object) -> None:
        image = job["spec"]["template"]["spec"]["containers"][0]["image"]
        if image not in self.says:
            return super()._validates(cluster, job)
        self.gates[image] = job
        self.happens_at_a_gate(self)
        said = self.says[image]
        if said is None:
            return fails(log="Traceback", terminated={"exitCode": 1})(cluster, job)
        self.pod(job, log=json.dumps(said), terminated={"exitCode": 0})
        self.end(job, "Complete")
        return None


def test_gates_judge_one_after_the_other_what_has_passed_so_far() -> None:
    cluster = GatedCluster({EVAL: YES, SAFETY: YES})
    verdict = judge(cluster, validation=GATES, engine={"api_key_secret": "projects/p/secrets/s/versions/1"})
    assert verdict["passed"]
    assert [(gate["image"], gate["passed"]) for gate in verdict["gates"]] == [(EVAL, True), (SAFETY, True)]
    assert "; gates: 2" in step.summary(verdict)
    job = cluster.gates[EVAL]
    kubernetes_validate.validate({key: value for key, value in job.items() if key != "status"}, "1.35", strict=True)
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert "command" not in container, "the image's own entrypoint"
    assert container["args"] == ["--url=$(GEMMA_PIPELINES_URL)"]
    environment = {variable["name"]: variable for variable in container["env"]}
    assert environment["GEMMA_PIPELINES_URL"]["value"] == "http://vllm-g2.gemma.svc.cluster.local:8000"
    assert environment["GEMMA_PIPELINES_MODEL"]["value"] == SETTINGS.model
    assert environment["VLLM_API_KEY"]["valueFrom"]["secretKeyRef"]["name"] == names.api_key(SETTINGS)
    assert job["metadata"]["name"] == "validate-server-gate-1-run-2"
    assert job["spec"]["activeDeadlineSeconds"] == 3600 + 1800


def test_a_gates_pod_is_as_bare_as_ours() -> None:
    cluster = GatedCluster({EVAL: YES, SAFETY: YES})
    judge(cluster, validation=GATES)
    ours, theirs = (job["spec"]["template"]["spec"] for job in (cluster.job, cluster.gates[EVAL]))
    assert {**theirs, "containers": []} == {**ours, "containers": []}
    assert theirs["containers"][0]["securityContext"] == ours["containers"][0]["securityContext"]


def test_a_gates_no_is_against_the_release_and_no_gate_comes_after_it() -> None:
    cluster = GatedCluster({EVAL: NO, SAFETY: YES})
    verdict = judge(cluster, validation=GATES)
    assert not verdict["passed"]
    assert verdict["reasons"] == [f"gate 1 ({EVAL}): score 0.71, below 0.8"]
    assert cluster.gates.keys() == {EVAL}


def test_gates_see_nothing_of_a_release_that_has_failed_nor_of_what_serves() -> None:
    cluster = GatedCluster({EVAL: YES, SAFETY: YES}, checks=FAILED)
    assert judge(cluster, validation=GATES) == FAILED
    in_service = GatedCluster({EVAL: YES, SAFETY: YES})
    judge(in_service, RELEASE.model_copy(update={"live": RELEASE.generation}), validation=GATES)
    assert cluster.gates == in_service.gates == {}


def test_a_gate_that_crashes_is_no_verdict() -> None:
    with pytest.raises(InconclusiveError, match=r"gate-1-run-2 crashed with exit code 1"):
        judge(GatedCluster({EVAL: None}), validation=GATES)


@pytest.mark.parametrize("said", [{}, {"passed": "yes"}, {"passed": False, "reasons": "slow"}])
def test_what_is_no_verdict_is_none(said: Any) -> None:
    with pytest.raises(InconclusiveError, match="which is no verdict: the last line of its log"):
        judge(GatedCluster({EVAL: said}), validation=GATES)


def test_a_no_without_a_reason_is_one() -> None:
    verdict = judge(GatedCluster({EVAL: {"passed": False}}), validation=GATES)
    assert verdict["reasons"] == [f"gate 1 ({EVAL}): it does not say why"]


def test_a_gate_whose_server_was_taken_away_is_no_verdict() -> None:
    with pytest.raises(InconclusiveError, match="the pod vllm-g2-x was deleted"):
        judge(GatedCluster({EVAL: NO}, ServerCluster.drop_pod), validation=GATES)


def test_a_gates_image_that_cannot_be_pulled_names_its_setting() -> None:
    def lives(cluster: JobCluster, job: Object) -> None:
        cluster.pod(job, waiting={"reason": "ImagePullBackOff", "message": "not found"})

    cluster = GatedCluster({EVAL: YES})
    cluster.happens_at_a_gate = lambda cluster: lives(cluster, cluster.gates[EVAL])
    with pytest.raises(RequestError, match=re.escape(f"Is {EVAL} pushed")) as raised:
        judge(cluster, validation=GATES)
    assert str(raised.value).endswith("named with validation.jobs in the settings")


def test_gates_come_from_the_mirror_too() -> None:
    cluster = GatedCluster({"mirror.example/p/r/eval:3": YES, "mirror.example/p/r/safety:1": YES})
    judge(cluster, validation=GATES, images={"registry": "mirror.example"})
    assert len(cluster.gates) == 2


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


SHED = {"refused": ["batch"], "served": ["", "chat"], "waiting": 12, "requests": 64, "pods": 2}


@pytest.mark.parametrize(
    ("through", "shown", "missing"),
    [
        (
            {"key": "sent", "asked": ["gemma", "<b>korean"], "shed": SHED},
            [
                "Answered: gemma, &lt;b&gt;korean.",
                "12 requests and more waited in each of 2 pods (64 at once)",
                "of batch were refused (429), and those without an objective, of chat were answered",
            ],
            "was not seen",
        ),
        (
            {"key": "none", "asked": ["gemma"], "shed": {**SHED, "refused": [], "not_shown": "0 waited"}},
            ["Whether requests are refused by their priority was not seen: 0 waited."],
            "were refused",
        ),
        (
            {"key": "withheld", "asked": [], "shed": {"not_shown": "the server was not asked"}},
            ["without gateway.host nobody knows"],
            "Answered",
        ),
    ],
)
def test_the_page_says_what_was_seen_through_the_load_balancer(
    through: dict[str, Any], shown: list[str], missing: str
) -> None:
    html = " ".join(page.render(SETTINGS, RELEASE, {**PASSED, "through": through}).split())
    for words in shown:
        assert words in html
    assert missing not in html
    assert "Through the load balancer" not in page.render(SETTINGS, RELEASE, {**PASSED, "through": None})


def test_the_line_of_a_server_that_passed_says_who_answered_through_the_load_balancer() -> None:
    through = {"key": "sent", "asked": ["gemma", "korean"], "shed": SHED}
    words = "; through the load balancer: gemma, korean, batch refused (429) while 12 waited"
    assert step.summary({**PASSED, "through": through}).endswith(words)
    nothing_shed = {**through, "shed": {"not_shown": "no objective has a priority below 0"}}
    assert step.summary({**PASSED, "through": nothing_shed}).endswith("; through the load balancer: gemma, korean")
    withheld = {**through, "key": "withheld", "asked": []}
    assert step.summary({**PASSED, "through": withheld}) == step.summary(PASSED)


@pytest.mark.parametrize("verdict", [FAILED, {"passed": False, "reasons": ["the answer has no text"]}])
def test_the_page_of_a_failure_says_why(verdict: dict[str, Any]) -> None:
    html = page.render(SETTINGS, RELEASE, verdict)
    assert "the answer has no text" in html
    assert "Under load" not in html
    assert ("&lt;i&gt;another answer" in html) is ("warnings" in verdict)
