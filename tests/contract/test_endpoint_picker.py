"""The endpoint picker behind a real Envoy, in front of two engines: who answers what, and what is refused.

Runs against the real picker too (picker_site.py: EPP_CONTRACT). What one test leaves waiting the next would trip over:
each ends with idle engines.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from emulated_cloud.hub import models
from kubernetes.client.exceptions import ApiException

from components.validate_server import shedding
from components.validate_server.shedding import Objective
from serving import names
from serving.clients.engine import BadAnswer, connected
from tests.contract import picker_site
from tests.contract.engine_process import Engine
from tests.contract.picker_site import Site, config, until

TOKENS_PER_SECOND = 40
emulated_only = pytest.mark.skipif(bool(picker_site.REAL), reason="GAIE v1.5.0 is another version, or reads KUBECONFIG")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("picker")
    models.write_gemma3(folder / "model")
    adapters = []
    for name, seed in (("ko", 1), ("code", 2)):
        models.write_lora_adapter(folder / name, folder / "model", seed=seed)
        adapters.append(f"{name}={folder / name}")
    arguments = ["--served-model-name", "base", "--max-num-seqs", "2", "--enable-lora", "--max-loras", "2"]
    env = {"EMULATED_ENGINE_TOKENS_PER_SECOND": str(TOKENS_PER_SECOND)}
    with picker_site.running(folder, folder / "model", [*arguments, "--lora-modules", *adapters], env) as started:
        started.api.objective("batch", -1)
        started.api.objective("chat", 5)
        yield started


@pytest.fixture(autouse=True)
def idle_engines(site: Site) -> Iterator[None]:
    yield
    for engine in site.engines:
        engine.until(lambda engine=engine: not engine.metric("num_requests_running"))


def ask(
    client: httpx.Client, model: str = "base", prompt: str = "One", tokens: int = 1, **headers: str
) -> httpx.Response:
    """A completion of just so many tokens."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True}
    body["temperature"] = 0.0
    return client.post(
        "/v1/completions", json=body, headers={name.replace("_", "-"): it for name, it in headers.items()}
    )


def served(engine: Engine) -> float:
    return engine.metric("request_success_total")


@contextmanager
def counted(site: Site) -> Iterator[Callable[[], list[float]]]:
    """How many requests each engine has answered since."""
    before = [served(engine) for engine in site.engines]
    yield lambda: [served(engine) - past for engine, past in zip(site.engines, before, strict=True)]


@contextmanager
def waiting(engine: Engine, requests: int, model: str = "base") -> Iterator[None]:
    """This many requests wait in the engine, two more run, until the block ends: then their clients go away."""
    body = json.dumps({"model": model, "prompt": "Long", "max_tokens": 2000, "ignore_eos": True, "stream": True})
    head = "POST /v1/completions HTTP/1.1\r\nHost: engine\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(requests + 2):
            connection = stack.enter_context(socket.create_connection((engine.host, engine.port)))
            connection.sendall(f"{head}{body}".encode())
        running = engine.metric
        engine.until(lambda: running("num_requests_waiting") >= requests and running("num_requests_running") == 2)
        yield


def test_the_base_and_the_adapters_answer_by_their_names(site: Site) -> None:
    for model in ("base", "ko", "code"):
        answer = ask(site.envoy.client, model)
        assert (answer.status_code, answer.json()["model"]) == (200, model)
        assert answer.headers["x-went-into-resp-headers"] == "true"


def test_a_model_that_nobody_has_is_the_engines_to_refuse(site: Site) -> None:
    answer = ask(site.envoy.client, "nobody")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "NotFoundError"


def test_what_has_no_body_goes_to_any_endpoint(site: Site) -> None:
    assert {card["id"] for card in site.envoy.client.get("/v1/models").json()["data"]} == {"base", "ko", "code"}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/chat/completions", b"not JSON", "error unmarshaling request bodyMap"),
        ("/v1/chat/completions", b"{}", "invalid chat completions request: must have valid messages field"),
        ("/v1/completions", b'{"model": "base"}', "invalid completions request: must have prompt field"),
        ("/v1/load_lora_adapter", b'{"lora_name": "a"}', "invalid completions request: must have prompt field"),
        ("/v1/completions", b'{"prompt": "Hello"}', "model not found in request body"),
    ],
)
def test_a_body_that_no_engine_could_answer_is_refused(site: Site, path: str, body: bytes, words: str) -> None:
    with counted(site) as answered:
        answer = site.envoy.client.post(path, content=body)
    assert answer.status_code == 400
    assert answer.text.startswith(f"inference error: BadRequest - {words}")
    assert answered() == [0, 0]


def test_an_adapter_stays_where_it_runs(site: Site) -> None:
    envoy = site.behind(site.another(config(lora_affinity_scorer=1)).wait())
    other = site.engines[1]
    with counted(site) as answered, ThreadPoolExecutor() as pool:
        with waiting(other, 0, "ko"):
            other.until(lambda: 'running_lora_adapters="ko"' in other.client.get("/metrics").text)
            time.sleep(0.2)
            # They wait behind the two that run.
            waits = [pool.submit(ask, envoy.client, "ko") for _ in range(6)]
            until(lambda: other.metric("num_requests_waiting") == 6)
        assert [each.result().status_code for each in waits] == [200] * 6
    assert answered() == [0, 6]


def test_a_prompt_goes_to_who_has_had_its_beginning(site: Site) -> None:
    prompt = "The same beginning of a long prompt, again and again. " * 8
    ask(site.envoy.client, prompt=prompt)
    with counted(site) as answered:
        for number in range(4):
            ask(site.envoy.client, prompt=f"{prompt}{number}")
    assert sorted(answered()) == [0, 4]


def test_a_stream_passes_as_it_comes(site: Site) -> None:
    body = {"model": "base", "prompt": "Stream", "max_tokens": 20, "min_tokens": 20, "ignore_eos": True, "stream": True}
    with site.envoy.client.stream("POST", "/v1/completions", json=body) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert len(lines) > 15
    # 2000 tokens at 40 a second: the first line is there long before the last.
    with site.envoy.client.stream("POST", "/v1/completions", json={**body, "max_tokens": 2000}) as answer:
        came = answer.iter_lines()
        assert next(came).startswith("data: {")
        assert sum(engine.metric("num_requests_running") for engine in site.engines) == 1


def test_what_comes_together_is_spread(site: Site) -> None:
    with counted(site) as answered, ThreadPoolExecutor(12) as pool:
        prompts = [f"Number {number}" for number in range(12)]
        answers = list(pool.map(lambda prompt: ask(site.envoy.client, prompt=prompt, tokens=8), prompts))
    assert {answer.status_code for answer in answers} == {200}
    assert sum(answered()) == 12
    assert min(answered()) >= 1


def test_an_engine_with_a_queue_is_avoided(site: Site) -> None:
    with waiting(site.engines[0], 6):
        time.sleep(0.2)
        with counted(site) as answered:
            for number in range(6):
                assert ask(site.envoy.client, prompt=f"Short {number}").status_code == 200
            assert answered() == [0, 6]


def test_what_can_be_shed_is_refused_when_all_engines_have_queues(site: Site) -> None:
    batch = {f"x-{'gateway' if picker_site.REAL else 'llm-d'}-inference-objective": "batch"}
    assert ask(site.envoy.client, **batch).status_code == 200
    with waiting(site.engines[0], 6), waiting(site.engines[1], 6):
        time.sleep(0.2)
        for headers in (batch, {"x-gateway-inference-objective": "batch"}):
            answer = ask(site.envoy.client, **headers)
            assert answer.status_code == 429
            assert answer.text == "inference error: ResourceExhausted - system saturated, sheddable request dropped"
        # These wait: with no objective, with one that nobody has, with one of a high priority.
        objectives = ({}, {"x-gateway-inference-objective": "unknown"}, {"x-gateway-inference-objective": "chat"})
        pool = ThreadPoolExecutor()
        waits = [pool.submit(ask, site.envoy.client, **headers) for headers in objectives]
        queued = site.engines[0].metric, site.engines[1].metric
        until(lambda: sum(metric("num_requests_waiting") for metric in queued) == 12 + len(waits))
    # Those before them are gone.
    assert [each.result().status_code for each in waits] == [200] * 3


def shown(site: Site, monkeypatch: pytest.MonkeyPatch, **headers: str) -> dict[str, Any]:
    """What validation sees of priorities behind this picker: batch is -1, chat 5, by these headers."""
    monkeypatch.setattr(names, "PORT", site.engines[0].port)
    priorities = {"batch": -1, "chat": 5}
    objectives = [Objective(name=it, header=header, priority=priorities[it]) for it, header in headers.items()]
    wanted = shedding.Shedding(objectives=objectives, pods=[engine.host for engine in site.engines])
    figures: dict[str, Any] = {}

    async def show() -> None:
        way = connected(str(site.envoy.client.base_url), "base", api_key=None, seconds=60, clients=1)
        async with way as (server,):
            await shedding.show(server, wanted, "base", api_key=None, figures=figures, say=print)

    asyncio.run(show())
    return figures


def test_validation_fills_the_queues_and_sees_who_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = shown(site, monkeypatch, batch="batch", chat="chat")
    assert (figures["refused"], figures["served"], figures["pods"]) == (["batch"], ["", "chat"], 2)
    assert figures["waiting"] >= shedding.FULL
    for engine in site.engines:
        # What filled them is gone: nobody waits for it to end.
        engine.until(lambda engine=engine: not engine.metric("num_requests_waiting"), 60)


def test_an_objective_that_the_pool_does_not_have_refuses_nothing_and_validation_says_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill, filled = shedding._Queues.fill, []

    async def fill_once_more(queues: shedding._Queues) -> None:
        await fill(queues)
        filled.append(queues.waiting)
        if len(filled) > 2:
            monkeypatch.setattr(shedding, "SECONDS", 0.0)  # It has been asked twice: it has had its time.

    monkeypatch.setattr(shedding._Queues, "fill", fill_once_more)
    with pytest.raises(BadAnswer, match="of the objective batch, priority -1, was not refused within"):
        shown(site, monkeypatch, batch="nobodys")
    assert min(filled) >= shedding.FULL


def test_a_header_asks_for_another_model_and_the_answer_says_the_asked_name(site: Site) -> None:
    before = site.engines[0].metric("request_success_total") + site.engines[1].metric("request_success_total")
    answer = ask(site.envoy.client, x_gateway_model_name_rewrite="ko", tokens=4)
    assert answer.json()["model"] == "base"
    assert answer.json()["choices"][0]["text"] == ask(site.envoy.client, "ko", tokens=4).json()["choices"][0]["text"]
    assert sum(map(served, site.engines)) == before + 2


def test_a_pod_that_is_not_ready_or_is_going_gets_nothing(site: Site) -> None:
    site.api.ready("vllm-0", False)
    try:
        until(lambda: site.picker.metric("inference_pool_ready_pods") == 1)
        with counted(site) as answered:
            for number in range(4):
                assert ask(site.envoy.client, prompt=f"Ready {number}").status_code == 200
        assert answered() == [0, 4]
    finally:
        site.api.ready("vllm-0", True)
    until(lambda: site.picker.metric("inference_pool_ready_pods") == 2)


def test_without_an_endpoint_it_says_so(site: Site) -> None:
    for name in ("vllm-0", "vllm-1"):
        site.api.ready(name, False)
    try:
        until(lambda: site.picker.metric("inference_pool_ready_pods") == 0)
        answer = ask(site.envoy.client)
        words = "inference error: ServiceUnavailable - failed to find endpoint candidates for serving the request"
        assert (answer.status_code, answer.text) == (503, words)
        assert site.envoy.client.get("/v1/models").status_code == 500
        assert ask(site.envoy.client, **{"x-gateway-inference-objective": "batch"}).status_code == 429
    finally:
        for name in ("vllm-0", "vllm-1"):
            site.api.ready(name, True)
    until(lambda: site.picker.metric("inference_pool_ready_pods") == 2)


def test_a_picker_that_is_killed_leaves_500s_and_its_replica_works_on(site: Site) -> None:
    replica = site.another(config()).wait()
    envoy = site.behind(replica)
    assert ask(envoy.client).status_code == 200
    replica.popen.kill()
    replica.popen.wait()
    answer = ask(envoy.client)
    assert (answer.status_code, answer.text) == (500, "")
    assert ask(site.envoy.client).status_code == 200


def test_an_engine_that_is_frozen_holds_a_request_up_for_a_moment_and_counts_as_full(site: Site) -> None:
    picker = site.another(config(queue_scorer=1)).wait()
    until(lambda: picker.metric("inference_pool_ready_pods") == 2)
    envoy = site.behind(picker)
    frozen, works = site.engines
    frozen.process.send_signal(signal.SIGSTOP)
    try:
        with waiting(works, 6):
            time.sleep(0.3)
            answers = [ask(envoy.client, **{"x-gateway-inference-objective": "batch"}) for _ in range(4)]
            assert [answer.status_code for answer in answers] == [429] * 4
    finally:
        frozen.process.send_signal(signal.SIGCONT)
    # What did not answer is asked with the next request, and known with the one after.
    until(lambda: ask(envoy.client, **{"x-gateway-inference-objective": "batch"}).status_code == 200)


def test_while_the_api_server_is_away_it_goes_by_what_it_knows(site: Site) -> None:
    site.api.process.stop()
    try:
        assert ask(site.envoy.client, "ko").status_code == 200
        assert site.picker.health("readiness") == "SERVING"
    finally:
        site.api.start_again()
    site.api.ready("vllm-0", False)
    try:
        until(lambda: site.picker.metric("inference_pool_ready_pods") == 1)
    finally:
        site.api.ready("vllm-0", True)
    until(lambda: site.picker.metric("inference_pool_ready_pods") == 2)


def test_told_to_end_it_finishes_what_it_began(site: Site) -> None:
    flags = [] if picker_site.REAL else ["--drain-timeout=10m"]
    picker = site.another(config(), *flags).wait()
    envoy = site.behind(picker)
    body = {"model": "base", "prompt": "Last", "max_tokens": 400, "min_tokens": 400, "ignore_eos": True, "stream": True}
    with envoy.client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        picker.popen.terminate()
        if not picker_site.REAL:
            until(lambda: picker.health("readiness") == "NOT_SERVING")
            assert picker.health("liveness") == "SERVING"
            assert ask(envoy.client).status_code == 200
            assert [line for line in lines if line][-1] == "data: [DONE]"
    assert picker.popen.wait(120) == 0


@emulated_only
def test_a_rewrite_of_the_cluster_chooses_the_model(site: Site) -> None:
    definition = {
        "metadata": {"name": "inferencemodelrewrites.llm-d.ai"},
        "spec": {
            "group": "llm-d.ai",
            "names": {"plural": "inferencemodelrewrites", "kind": "InferenceModelRewrite"},
            "scope": "Namespaced",
            "versions": [
                {
                    "name": "v1alpha2",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                }
            ],
        },
    }
    site.api.define(definition)
    rule = {"matches": [{"model": {"value": "latest"}}], "targets": [{"modelRewrite": "code"}]}
    site.api.create(
        *("llm-d.ai", "v1alpha2", "inferencemodelrewrites", "InferenceModelRewrite", "latest"),
        poolRef={"group": "inference.networking.k8s.io", "name": picker_site.POOL},
        rules=[rule],
    )
    assert ask(site.envoy.client, "latest").status_code == 404, "the kind came after this picker started"
    # A role that says nothing of rewrites: it waits for one that does.
    blind = site.another(config(), account=site.api.account("blind", ("pods", "inferencepools", "inferenceobjectives")))
    until(lambda: "cannot list resource" in blind.log.read_text())
    assert 'resource "inferencemodelrewrites" in API group "llm-d.ai"' in blind.log.read_text()
    assert blind.health("readiness") == "NOT_SERVING"
    envoy = site.behind(site.another(config()).wait())
    answer = ask(envoy.client, "latest", tokens=4).json()
    assert answer["model"] == "latest"
    assert answer["choices"][0]["text"] == ask(envoy.client, "code", tokens=4).json()["choices"][0]["text"]
    body = {"model": "latest", "prompt": "One", "max_tokens": 4, "stream": True}
    with envoy.client.stream("POST", "/v1/completions", json=body) as stream:
        events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]
    assert {event["model"] for event in events} == {"latest"}


@emulated_only
def test_plain_text_if_told_so_and_metrics_by_both_names(site: Site) -> None:
    picker = site.another(config(), "--secure-serving=false").wait()
    envoy = site.behind(picker, secure=False)
    assert ask(envoy.client, tokens=3, x_llm_d_inference_objective="chat").status_code == 200
    labels = {"model_name": "base", "target_model_name": "base"}
    assert picker.metric("llm_d_epp_request_total", **labels, priority="5", fairness_id="default-flow") == 1
    assert picker.metric("inference_objective_request_total", **labels, priority="5") == 1
    assert picker.metric("llm_d_epp_request_output_tokens_sum", **labels) == 3
    assert picker.metric("inference_objective_output_tokens_sum", **labels) == 3
    assert picker.metric("llm_d_epp_ready_endpoints", name=picker_site.POOL) == 2
    assert picker.metric("llm_d_epp_scheduler_attempts_total", status="success") == 1
    until(lambda: picker.metric("llm_d_epp_request_running", **labels) == 0)


@emulated_only
def test_metrics_are_for_whoever_the_api_server_knows(site: Site) -> None:
    picker = site.another(config(), "--metrics-endpoint-auth").wait()
    url = f"http://127.0.0.1:{picker.metrics_port}/metrics"
    assert httpx.get(url, timeout=60).status_code == 401
    assert httpx.get(url, headers={"Authorization": "Bearer nobody"}, timeout=60).status_code == 401
    assert httpx.get(url, headers={"Authorization": "Bearer admin-token"}, timeout=60).status_code == 200


def test_a_pool_that_is_not_there_is_waited_for(site: Site) -> None:
    picker = site.another(config(), pool="vllm-g2")
    until(lambda: picker.health("readiness") == "NOT_SERVING")
    time.sleep(0.3)
    assert picker.health("readiness") == "NOT_SERVING"
    assert picker.popen.poll() is None


def test_without_the_pools_definition_it_ends(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    api = picker_site.Api(tmp_path_factory.mktemp("bare") / "api")
    try:
        picker = picker_site.PickerProcess(api, api.account(), config(), api.folder / "picker.log")
        assert picker.popen.wait(120) == 1
        assert "InferencePool" in picker.log.read_text()
        with pytest.raises(ApiException):
            api.pool(8000)
    finally:
        api.stop()
