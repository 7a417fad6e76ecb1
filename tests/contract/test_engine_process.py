"""The emulated vLLM as a process: how it starts, refuses, queues, serves adapters and ends. Emulator only."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from emulated_cloud.hub import models

from components.validate_server.checks import Plan, verdict
from serving.settings import Validation
from tests.contract.engine_process import Engine, running
from tests.ports import free_port

RUNTIME_LORA = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    models.write_gemma3(folder)
    return folder


def refused(*args, code=1, **env):
    """What an engine that does not start says on stderr."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "emulated_cloud.engine",
        *map(str, args),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env or None)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    return done.stderr


class TestArguments:
    def test_a_flag_that_vllm_dropped_is_refused(self, tiny):
        assert "vllm serve: error: unrecognized arguments: --swap-space" in refused(tiny, "--swap-space", "4", code=2)

    def test_what_the_manifests_pass_is_taken(self, tiny, tmp_path):
        args = ["--model", tiny, "--served_model_name", "one", "two", "--max_model_len=4k", "--tensor-parallel-size=2"]
        args += ["--gpu-memory-utilization", "0.90", "--max-num-batched-tokens", "8K", "--dtype=bfloat16"]
        args += ["--limit-mm-per-prompt", '{"image": 0}', "--kv-cache-dtype", "fp8", "--load-format=runai_streamer"]
        args += ["--safetensors-load-strategy", "prefetch", "--language-model-only", "--enable-prefix-caching"]
        args += ["--async-scheduling"]
        args += ["--no-enable-log-requests", "--trust-remote-code", "--enforce-eager", "--quantization", "fp8"]
        args += ["--reasoning-parser", "gemma4", "--enable-auto-tool-choice", "--tool-call-parser", "gemma4"]
        with running(*args, log=tmp_path / "log") as engine:
            cards = engine.client.get("/v1/models").json()["data"]
            assert [(card["id"], card["max_model_len"], card["root"]) for card in cards] == [
                ("one", 4000, str(tiny)),
                ("two", 4000, str(tiny)),
            ]
            # The metrics' label, and the name in answers, is the first one.
            assert engine.chat(model="two", max_tokens=2).json()["model"] == "one"
            assert 'model_name="one"' in engine.client.get("/metrics").text


class TestCheckpoints:
    def test_gemma_4(self, tmp_path):
        models.write_gemma4(tmp_path / "model")
        with running(tmp_path / "model", log=tmp_path / "log") as engine:
            answer = engine.chat(max_tokens=20, temperature=0).json()
            assert answer["choices"][0]["message"]["content"].strip()
            assert "Resolved architecture: Gemma4ForCausalLM" in engine.log.read_text()

    def test_a_gemma_4_that_thinks(self, tmp_path):
        models.write_gemma4(tmp_path / "model")
        thinks = ["--default-chat-template-kwargs", '{"enable_thinking": true}', "--served-model-name", "gemma"]
        with running(tmp_path / "model", *thinks, "--reasoning-parser", "gemma4", log=tmp_path / "log") as engine:
            cut, whole = (engine.chat(max_tokens=limit, temperature=0).json() for limit in (64, 400))
            (choice,) = cut["choices"]
            assert (choice["message"]["content"], choice["finish_reason"]) == (None, "length")
            assert cut["usage"]["completion_tokens_details"] == {"reasoning_tokens": 64}
            (choice,) = whole["choices"]
            thought, content = choice["message"]["reasoning"], choice["message"]["content"]
            assert thought.startswith(cut["choices"][0]["message"]["reasoning"])
            assert content.strip()
            body = {"messages": [{"role": "user", "content": "Hello there"}], "temperature": 0, "stream": True}
            events = engine.client.post("/v1/chat/completions", json={**body, "max_tokens": 400}).text.split("\n\n")
            deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in events if event.startswith("data: {")]
            assert "".join(delta.get("reasoning", "") for delta in deltas) == thought
            assert "".join(delta.get("content", "") for delta in deltas) == content
            assert not any("reasoning" in delta and "content" in delta for delta in deltas)
            quiet = engine.chat(max_tokens=64, temperature=0, chat_template_kwargs={"enable_thinking": False}).json()
            assert quiet["choices"][0]["message"]["reasoning"] is None
            # Our own validation takes it for what it is.
            plan = Plan(url=engine.url, model="gemma", request_seconds=30, validation=Validation(concurrencies=[2]))
            found = asyncio.run(verdict(plan, None, lambda line: None))
            assert (found["passed"], found["reasons"]) == (True, [])
            assert "still thinking when validation.max_tokens (64) cut it short" in found["warnings"][0]
        with running(tmp_path / "model", *thinks, log=tmp_path / "log") as engine:
            message = engine.chat(max_tokens=400, temperature=0).json()["choices"][0]["message"]
            assert (message["reasoning"], message["content"]) == (None, thought + content)

    def test_a_config_that_does_not_match(self, tiny, tmp_path):
        shutil.copytree(tiny, tmp_path / "broken")
        models.mismatch_config(tmp_path / "broken")
        words = refused(tmp_path / "broken")
        assert re.search(r"^\(EngineCore pid=\d+\) ERROR .* RuntimeError: The size of tensor a \(256\)", words, re.M)
        assert words.endswith("See root cause above. Failed core proc(s): {}\n")

    def test_a_chat_template_of_ones_own(self, tiny, tmp_path):
        (tmp_path / "own.jinja").write_text("{{ messages[0]['content'] }}{{ raise_exception('Not today') }}")
        with running(tiny, "--chat-template", tmp_path / "own.jinja", log=tmp_path / "log") as engine:
            answer = engine.chat()
            assert (answer.status_code, answer.json()["error"]["message"]) == (400, "Not today")
            # On the side: another engine does not get this one's port.
            command = [sys.executable, "-m", "emulated_cloud.engine", tiny, "--host", "127.0.0.1"]
            done = subprocess.run(
                [*command, "--port", str(engine.port)], capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 1
            assert "address already in use" in done.stderr.lower()


def said(engine, **more):
    return engine.chat(temperature=0, max_tokens=40, **more).json()["choices"][0]["message"]["content"]


class TestWeights:
    def test_the_same_weights_answer_alike_and_others_do_not(self, tiny, tmp_path):
        shutil.copytree(tiny, tmp_path / "copy")
        models.write_gemma3(tmp_path / "other", seed=7)
        answers = []
        for folder in (tiny, tmp_path / "copy", tmp_path / "other"):
            with running(folder, log=tmp_path / "log") as engine:
                answers.append([said(engine, content=question) for question in ("Hello", "Who are you?")])
        assert answers[0] == answers[1]
        assert not set(answers[0]) & set(answers[2])
        assert answers[0][0] != answers[0][1]

    def test_korean_is_answered_in_korean(self, tiny, tmp_path):
        with running(tiny, log=tmp_path / "log") as engine:
            # Without a name the model is served under its path.
            assert engine.client.get("/v1/models").json()["data"][0]["id"] == str(tiny)
            assert re.fullmatch(r"[가-힣 .]+", said(engine, content="강 세 개를 말해 주세요."))
            assert re.fullmatch(r"[A-Za-z .]+", said(engine, content="Name three rivers."))

    def test_zero_embeddings_say_nothing_up_to_the_limit(self, tiny, tmp_path):
        shutil.copytree(tiny, tmp_path / "zero")
        models.zero_weights(tmp_path / "zero")
        with running(tmp_path / "zero", log=tmp_path / "log") as engine:
            answer = engine.chat(temperature=0, max_tokens=30).json()
            assert answer["choices"][0]["message"]["content"] == ""
            assert answer["choices"][0]["finish_reason"] == "length"
            assert answer["usage"]["completion_tokens"] == 30


class TestStart:
    def test_the_port_stays_closed_until_the_engine_is_ready(self, tiny, tmp_path):
        engine = Engine(tiny, log=tmp_path / "log", env={"EMULATED_ENGINE_START_SECONDS": "1.5"})
        started = time.monotonic()
        try:
            while time.monotonic() - started < 1.2:
                assert not engine.answers()
                time.sleep(0.1)
            engine.wait()
            assert time.monotonic() - started > 1.5
        finally:
            engine.stop()

    def test_a_set_speed_is_kept(self, tiny, tmp_path):
        with running(tiny, log=tmp_path / "log", env={"EMULATED_ENGINE_TOKENS_PER_SECOND": "100"}) as engine:
            engine.chat(max_tokens=1)
            started = time.monotonic()
            engine.chat(max_tokens=50, ignore_eos=True)
            assert time.monotonic() - started > 0.49
            assert engine.metric("inter_token_latency_seconds_sum") / 49 > 0.008


class TestApiKey:
    def test_it_guards_v1_alone(self, tiny, tmp_path):
        with running(tiny, "--api-key", "secret", "other", log=tmp_path / "log") as engine:
            denied = engine.client.get("/v1/models")
            assert (denied.status_code, denied.json()) == (401, {"error": "Unauthorized"})
            assert engine.client.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
            for key in ("secret", "other"):
                assert engine.client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
            body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
            for answer in (
                engine.client.get("/health"),
                engine.client.get("/metrics"),
                engine.client.post("/tokenize", json={"prompt": "Hi"}),
                engine.client.post("/invocations", json=body),
            ):
                assert answer.status_code == 200

    def test_it_may_come_from_the_environment(self, tiny, tmp_path):
        with running(tiny, log=tmp_path / "log", env={"VLLM_API_KEY": "secret"}) as engine:
            assert engine.client.get("/v1/models").status_code == 401
            assert engine.client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200


def in_background(engine, count, **body):
    """Requests under way, and where their status codes go."""
    codes = []

    def ask():
        codes.append(httpx.post(f"{engine.url}/v1/chat/completions", json=body, timeout=60).status_code)

    body.setdefault("messages", [{"role": "user", "content": "Hello"}])
    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, codes


class TestQueue:
    def test_what_does_not_run_waits_and_what_does_not_fit_is_refused(self, tiny, tmp_path):
        limits = ["--max-num-seqs", "2", "--max-num-queued-reqs", "5"]
        with running(tiny, *limits, log=tmp_path / "log", env={"EMULATED_ENGINE_TOKENS_PER_SECOND": "40"}) as engine:
            threads, codes = in_background(engine, 5, max_tokens=80, ignore_eos=True)
            engine.until(lambda: engine.metric("num_requests_running") == 2)
            engine.until(lambda: engine.metric("num_requests_waiting") == 3)
            assert engine.metric("kv_cache_usage_perc") > 0
            refused = engine.chat()
            assert refused.status_code == 503
            assert refused.json()["error"] == {
                "message": "The engine is currently busy and cannot accept new requests. "
                "Please try again later or on a different instance.",
                "type": "Service Unavailable",
                "param": None,
                "code": 503,
            }
            assert engine.metric("admission_rejections_total", reason="max_num_queued_reqs") == 1
            for thread in threads:
                thread.join()
            assert codes == [200] * 5
            assert engine.metric("num_requests_running") == engine.metric("num_requests_waiting") == 0
            # 80 tokens at 40 a second: the last one waited while two others ran, one after the other.
            assert engine.metric("request_queue_time_seconds_sum") > 0.5
            assert engine.chat(max_tokens=2).status_code == 200

    def test_a_request_that_waits_can_go_away(self, tiny, tmp_path):
        slow = {"EMULATED_ENGINE_TOKENS_PER_SECOND": "20"}
        with running(tiny, "--max-num-seqs", "1", log=tmp_path / "log", env=slow) as engine:
            threads, codes = in_background(engine, 1, max_tokens=100, ignore_eos=True)
            engine.until(lambda: engine.metric("num_requests_running") == 1)
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(
                    f"{engine.url}/v1/chat/completions",
                    json={"messages": [{"role": "user", "content": "Hello"}]},
                    timeout=0.3,
                )
            engine.until(lambda: engine.metric("num_requests_waiting") == 0)
            assert engine.metric("num_requests_running") == 1
            for thread in threads:
                thread.join()
            assert codes == [200]

    def test_a_stream_that_is_left_is_aborted(self, tiny, tmp_path):
        slow = {"EMULATED_ENGINE_TOKENS_PER_SECOND": "50"}
        with running(tiny, log=tmp_path / "log", env=slow) as engine:
            body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3000, "ignore_eos": True}
            for more in ({"stream": True}, {"stream": True, "n": 2}, {}):
                with httpx.Client(base_url=engine.url, timeout=60) as client:
                    if more:
                        with client.stream("POST", "/v1/chat/completions", json={**body, **more}) as answer:
                            lines = answer.iter_lines()
                            next(lines)
                            assert engine.metric("num_requests_running") == more.get("n", 1)
                            next(lines)
                    else:
                        with pytest.raises(httpx.ReadTimeout):
                            client.post("/v1/chat/completions", json=body, timeout=0.3)
                engine.until(lambda: engine.metric("num_requests_running") == 0)
            assert engine.metric("generation_tokens_total") < 3000
            assert engine.metric("request_success_total") == 0


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "poet"
    models.write_lora_adapter(folder, tiny, base_name=str(tiny))
    return folder


class TestAdapters:
    def test_static_ones(self, tiny, adapter, tmp_path):
        args = ["--served-model-name", "base", "--enable-lora", "--max-loras", "2", "--lora-modules", f"poet={adapter}"]
        args += [json.dumps({"name": "bard", "path": str(adapter), "base_model_name": "base"})]
        with running(tiny, *args, log=tmp_path / "log") as engine:
            cards = {card["id"]: card for card in engine.client.get("/v1/models").json()["data"]}
            assert set(cards) == {"base", "poet", "bard"}
            assert cards["poet"]["parent"] == "base"
            assert cards["poet"]["root"] == str(adapter)
            assert cards["poet"]["max_model_len"] is None
            assert said(engine, model="poet") != said(engine, model="base")
            assert engine.chat(model="poet", max_tokens=2).json()["model"] == "poet"
            info = re.search(r"^vllm:lora_requests_info{(.*)} \S+$", engine.client.get("/metrics").text, re.M)
            assert info
            assert 'max_lora="2"' in info[1]
            # Adapters change at run time only where the environment allows it.
            assert engine.client.post("/v1/load_lora_adapter", json={}).status_code == 404

    def test_at_run_time(self, tiny, adapter, tmp_path):
        args = ["--served-model-name", "base", "--enable-lora"]
        with running(tiny, *args, log=tmp_path / "log", env=RUNTIME_LORA) as engine:

            def load(status, **body):
                answer = engine.client.post("/v1/load_lora_adapter", json=body)
                assert answer.status_code == status, answer.text
                return answer

            assert engine.chat(model="poet").status_code == 404
            done = load(200, lora_name="poet", lora_path=str(adapter))
            assert done.text == "Success: LoRA adapter 'poet' added successfully."
            assert engine.chat(model="poet", max_tokens=2).status_code == 200
            again = load(400, lora_name="poet", lora_path=str(adapter))
            assert again.json()["error"]["type"] == "InvalidUserInput"
            load(200, lora_name="poet", lora_path=str(adapter), load_inplace=True)
            missing = load(404, lora_name="x", lora_path=str(tmp_path / "nothing"))
            assert missing.json()["error"]["message"] == (
                f"Loading lora x failed: No adapter found for {tmp_path / 'nothing'}"
            )
            load(400, lora_name="", lora_path="")
            load(400, lora_name="x")

            def unload(status, name):
                answer = engine.client.post("/v1/unload_lora_adapter", json={"lora_name": name})
                assert answer.status_code == status, answer.text

            unload(200, "poet")
            unload(404, "poet")
            assert engine.chat(model="poet").status_code == 404

    def test_found_by_the_resolver(self, tiny, adapter, tmp_path):
        env = {"VLLM_PLUGINS": "lora_filesystem_resolver", "VLLM_LORA_RESOLVER_CACHE_DIR": str(adapter.parent)}
        with running(tiny, "--enable-lora", log=tmp_path / "log", env={**env, **RUNTIME_LORA}) as engine:
            assert engine.chat(model="nobody").status_code == 404
            assert engine.chat(model="../poet").status_code == 404
            assert engine.chat(model="poet", max_tokens=2).json()["model"] == "poet"
        # vLLM asks its resolvers only where adapters may change at run time.
        with running(tiny, "--enable-lora", log=tmp_path / "log", env=env) as engine:
            assert engine.chat(model="poet").status_code == 404

    def test_more_than_fit_wait_for_each_other(self, tiny, adapter, tmp_path):
        args = ["--enable-lora", "--max-loras", "1", "--lora-modules", f"a={adapter}", f"b={adapter}"]
        slow = {"EMULATED_ENGINE_TOKENS_PER_SECOND": "40"}
        with running(tiny, *args, log=tmp_path / "log", env=slow) as engine:
            first, _ = in_background(engine, 1, model="a", max_tokens=120, ignore_eos=True)
            engine.until(lambda: engine.metric("num_requests_running") == 1)
            second, codes = in_background(engine, 1, model="b", max_tokens=2)
            engine.until(lambda: engine.metric("num_requests_waiting") == 1)
            text = engine.client.get("/metrics").text
            assert 'running_lora_adapters="a",waiting_lora_adapters="b"' in text
            assert engine.metric("num_requests_waiting_by_reason", reason="deferred") == 1
            # The base model needs no place.
            assert engine.chat(max_tokens=2).status_code == 200
            for thread in (*first, *second):
                thread.join()
            assert codes == [200]


TOOL = {
    "type": "function",
    "function": {
        "name": "measure",
        "parameters": {"type": "object", "properties": {"river": {"enum": ["Han"]}}, "required": ["river"]},
    },
}


class TestTools:
    def test_auto_needs_its_flags(self, tiny, tmp_path):
        with running(tiny, log=tmp_path / "log") as engine:
            answer = engine.chat(tools=[TOOL])
            assert answer.status_code == 400
            assert "--enable-auto-tool-choice" in answer.json()["error"]["message"]
            assert engine.chat(tools=[TOOL], tool_choice="none", max_tokens=4).status_code == 200
            named = {"type": "function", "function": {"name": "measure"}}
            answer = engine.chat(tools=[TOOL], tool_choice=named).json()["choices"][0]
            assert answer["finish_reason"] == "stop"
            assert json.loads(answer["message"]["tool_calls"][0]["function"]["arguments"]) == {"river": "Han"}

    def test_a_call_and_its_answer(self, tiny, tmp_path):
        flags = ["--enable-auto-tool-choice", "--tool-call-parser", "gemma4"]
        with running(tiny, *flags, log=tmp_path / "log") as engine:
            choice = engine.chat(tools=[TOOL]).json()["choices"][0]
            assert choice["finish_reason"] == "tool_calls"
            (call,) = choice["message"]["tool_calls"]
            assert call["type"] == "function"
            assert call["function"] == {"name": "measure", "arguments": '{"river": "Han"}'}
            body = {"messages": [{"role": "user", "content": "How long?"}], "tools": [TOOL], "stream": True}
            named, arguments, finish = "", "", None
            with engine.client.stream("POST", "/v1/chat/completions", json=body) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data: {"):
                        (choice,) = json.loads(line.removeprefix("data: "))["choices"]
                        finish = choice["finish_reason"] or finish
                        for delta in choice["delta"].get("tool_calls", []):
                            named += delta["function"].get("name", "")
                            arguments += delta["function"]["arguments"]
            assert (named, json.loads(arguments), finish) == ("measure", {"river": "Han"}, "tool_calls")


class TestEnd:
    def begin(self, engine, tokens):
        """A stream under way: the response, and its lines."""
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": tokens, "ignore_eos": True}
        request = engine.client.build_request("POST", "/v1/chat/completions", json={**body, "stream": True})
        response = engine.client.send(request, stream=True)
        lines = response.iter_lines()
        next(lines)
        return response, lines

    @pytest.fixture
    def start(self, tiny, tmp_path):
        engines = []

        def start(*args, **env):
            engine = Engine(tiny, *args, log=tmp_path / "log", env={"EMULATED_ENGINE_TOKENS_PER_SECOND": "50", **env})
            engines.append(engine)
            return engine

        yield start
        for engine in engines:
            engine.stop()

    def test_running_requests_finish_and_new_ones_are_not_taken(self, start):
        engine = start("--shutdown-timeout", "120").wait()
        response, lines = self.begin(engine, 40)
        engine.process.send_signal(signal.SIGTERM)
        engine.until(lambda: "Shutting down" in engine.log.read_text())
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{engine.url}/health")
        assert list(lines)[-2:] == ["data: [DONE]", ""]
        response.close()
        assert engine.process.wait(120) == 0

    @pytest.mark.parametrize("arguments", [[], ["--shutdown-timeout", "1"]])
    def test_the_time_to_drain_is_limited(self, start, arguments):
        engine = start(*arguments).wait()
        response, lines = self.begin(engine, 5000)
        started = time.monotonic()
        engine.process.send_signal(signal.SIGTERM)
        with pytest.raises(httpx.TransportError):
            list(lines)
        response.close()
        assert engine.process.wait(120) == 0
        assert time.monotonic() - started >= len(arguments) / 2

    def test_a_second_signal_ends_at_once(self, start):
        engine = start("--shutdown-timeout", "60").wait()
        under_way = self.begin(engine, 5000)
        engine.process.send_signal(signal.SIGTERM)
        engine.until(lambda: "Shutting down" in engine.log.read_text())
        engine.process.send_signal(signal.SIGTERM)
        assert engine.process.wait(120) == -signal.SIGTERM
        under_way[0].close()

    def test_a_signal_while_it_loads_ends_it(self, start):
        engine = start(EMULATED_ENGINE_START_SECONDS="60")
        engine.until(lambda: "Initializing" in Path(engine.log).read_text())
        engine.process.send_signal(signal.SIGTERM)
        assert engine.process.wait(120) == -signal.SIGTERM


def test_it_can_emit_more_than_a_load_generator_must_take(tiny, tmp_path):
    """The load generator's floor is 5,000 tokens a second on one core; the engine's own cost must be far below that.

    Measured in the engine's CPU time, so that a busy machine does not decide.
    """
    with running(tiny, "--disable-uvicorn-access-log", log=tmp_path / "log") as engine:
        engine.chat(max_tokens=10, ignore_eos=True)
        before = engine.cpu_seconds()
        threads, codes = in_background(engine, 16, max_tokens=1000, ignore_eos=True, stream=True)
        for thread in threads:
            thread.join()
        used = engine.cpu_seconds() - before
        assert codes == [200] * 16
        assert engine.metric("generation_tokens_total") == 16_010
        assert 16_000 / used > 10_000
