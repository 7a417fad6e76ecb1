"""The emulated vLLM's API over the wire, shapes compared with vLLM's protocol field by field.

Runs against a real vLLM, too, when VLLM_CONTRACT_ENDPOINT is set (see engine_process.py): then it must have at least
the fields that the emulator has.
"""

from __future__ import annotations

import json
import os
import re

import httpx
import jsonschema
import pytest
from emulated_cloud.hub import models

from tests.contract.engine_process import RealEngine, running

ENDPOINT = os.environ.get("VLLM_CONTRACT_ENDPOINT")
ASK = [{"role": "user", "content": "Name three rivers."}]

IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}

CARD = {"id", "object", "created", "owned_by", "root", "parent", "max_model_len", "permission"}
CHAT = {"id", "object", "created", "model", "choices", "service_tier", "system_fingerprint", "usage"}
CHAT |= {"prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params", "ec_transfer_params", "metrics"}
CHAT_CHOICE = {"index", "message", "logprobs", "finish_reason", "stop_reason", "token_ids", "routed_experts"}
MESSAGE = {"role", "content", "refusal", "annotations", "audio", "function_call", "reasoning"}
USAGE = {"prompt_tokens", "total_tokens", "completion_tokens", "prompt_tokens_details", "completion_tokens_details"}
CHUNK = {"id", "object", "created", "model", "choices"}
COMPLETION = {"id", "object", "created", "model", "choices", "service_tier", "system_fingerprint", "usage"}
COMPLETION |= {"kv_transfer_params", "ec_transfer_params", "metrics"}
TEXT_CHOICE = {"index", "text", "logprobs", "finish_reason", "stop_reason", "token_ids", "prompt_logprobs"}
TEXT_CHOICE |= {"prompt_token_ids", "routed_experts"}
TEXT_DELTA = {"index", "text", "logprobs", "finish_reason", "stop_reason", "prompt_token_ids", "token_ids"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    if ENDPOINT:
        real = RealEngine(ENDPOINT)
        yield real
        real.stop()
        return
    folder = tmp_path_factory.mktemp("engine")
    models.write_gemma3(folder / "model")
    with running(folder / "model", "--served-model-name", "tiny", log=folder / "log") as started:
        yield started


@pytest.fixture(scope="module")
def name(engine):
    return os.environ.get("VLLM_CONTRACT_MODEL") or engine.client.get("/v1/models").json()["data"][0]["id"]


@pytest.fixture
def ask(engine, name):
    def post(path="/v1/chat/completions", status=200, **body):
        if path == "/v1/chat/completions":
            body.setdefault("messages", ASK)
        answer = engine.client.post(path, json={"model": name, **body})
        assert answer.status_code == status, answer.text
        return answer.json()

    return post


@pytest.fixture
def stream(engine, name):
    def post(path="/v1/chat/completions", **body):
        if path == "/v1/chat/completions":
            body.setdefault("messages", ASK)
        chunks = []
        with engine.client.stream("POST", path, json={"model": name, "stream": True, **body}) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            for line in answer.iter_lines():
                if line:
                    assert line.startswith("data: ")
                    chunks.append(line.removeprefix("data: "))
        assert chunks.pop() == "[DONE]"
        return [json.loads(chunk) for chunk in chunks]

    return post


def same_keys(value, keys):
    if ENDPOINT:
        assert keys - set(value) == set()
    else:
        assert set(value) == keys


def test_health_and_version(engine):
    health = engine.client.get("/health")
    assert (health.status_code, health.content) == (200, b"")
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", engine.client.get("/version").json()["version"])
    assert engine.client.post("/ping").status_code == 200


def test_models(engine, name):
    answer = engine.client.get("/v1/models").json()
    assert answer["object"] == "list"
    card = next(card for card in answer["data"] if card["id"] == name)
    same_keys(card, CARD)
    assert card["object"] == "model"
    assert card["owned_by"] == "vllm"
    assert card["parent"] is None
    assert card["max_model_len"] > 0
    same_keys(
        card["permission"][0],
        {"id", "object", "created", "allow_create_engine", "allow_sampling", "allow_logprobs", "allow_search_indices"}
        | {"allow_view", "allow_fine_tuning", "organization", "group", "is_blocking"},
    )


def test_a_chat(ask, name):
    answer = ask(max_tokens=20, temperature=0)
    same_keys(answer, CHAT)
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["model"] == name
    (choice,) = answer["choices"]
    same_keys(choice, CHAT_CHOICE)
    same_keys(choice["message"], MESSAGE)
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"].strip()
    assert choice["finish_reason"] in ("stop", "length")
    usage = answer["usage"]
    same_keys(usage, USAGE)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < usage["completion_tokens"] <= 20


def test_a_streamed_chat(stream, ask, name):
    chunks = stream(max_tokens=12, temperature=0, ignore_eos=True, stream_options={"include_usage": True})
    first, *contents, usage = chunks
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["model"] for chunk in chunks} == {name}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    for chunk in contents:
        assert set(chunk) >= CHUNK
        (choice,) = chunk["choices"]
        assert set(choice["delta"]) <= {"content"}
    for chunk in contents[:-1]:
        same_keys(chunk["choices"][0], {"index", "delta", "logprobs", "finish_reason", "token_ids"})
        assert chunk["choices"][0]["finish_reason"] is None
    last = contents[-1]["choices"][0]
    same_keys(last, {"index", "delta", "logprobs", "finish_reason", "stop_reason", "token_ids"})
    assert last["finish_reason"] == "length"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 12
    assert {"prompt_tokens", "total_tokens", "completion_tokens"} <= set(usage["usage"])
    whole = ask(max_tokens=12, temperature=0, ignore_eos=True)
    streamed = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in contents)
    assert streamed == whole["choices"][0]["message"]["content"]
    assert usage["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]


def test_usage_only_where_asked_for(stream):
    assert all("usage" not in chunk for chunk in stream(max_tokens=3))
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = stream(max_tokens=3, ignore_eos=True, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] == 3


def test_a_completion(ask):
    answer = ask("/v1/completions", prompt="Once upon a time", max_tokens=8, temperature=0, ignore_eos=True)
    same_keys(answer, COMPLETION)
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    (choice,) = answer["choices"]
    same_keys(choice, TEXT_CHOICE)
    assert choice["text"].strip()
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)
    assert answer["usage"]["completion_tokens"] == 8


def test_a_streamed_completion(stream, ask):
    body = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    *chunks, usage = stream("/v1/completions", **body, stream_options={"include_usage": True})
    for chunk in chunks:
        same_keys(chunk, CHUNK)
        same_keys(chunk["choices"][0], TEXT_DELTA)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"][0]["finish_reason"]] == [
        "length"
    ]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 8
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert text == ask("/v1/completions", **body)["choices"][0]["text"]


def test_several_prompts_and_samples(ask):
    answer = ask("/v1/completions", prompt=["One", "Two"], n=2, max_tokens=4, temperature=1, seed=3, ignore_eos=True)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["completion_tokens"] == 16


def test_a_prompt_of_tokens_is_the_prompt_of_its_text(ask):
    tokens = ask("/tokenize", prompt="Once upon a time")["tokens"]
    same = {"max_tokens": 6, "temperature": 0}
    by_text = ask("/v1/completions", prompt="Once upon a time", **same)
    by_tokens = ask("/v1/completions", prompt=tokens, **same)
    assert by_text["choices"][0]["text"] == by_tokens["choices"][0]["text"]
    assert by_tokens["usage"]["prompt_tokens"] == len(tokens)


def test_echo_repeats_the_prompt(ask):
    answer = ask("/v1/completions", prompt="Once upon a time", echo=True, max_tokens=3, temperature=0)
    assert answer["choices"][0]["text"].startswith("Once upon a time")


def content(answer):
    return answer["choices"][0]["message"]["content"]


def test_temperature_0_says_the_same_twice(ask):
    assert content(ask(max_tokens=30, temperature=0)) == content(ask(max_tokens=30, temperature=0))


def test_a_seed_says_the_same_twice_and_another_says_something_else(ask):
    first, again, other = (ask(max_tokens=30, temperature=1, seed=seed) for seed in (1, 1, 2))
    assert content(first) == content(again)
    assert content(first) != content(other)


def test_without_a_seed_it_varies(ask):
    assert len({content(ask(max_tokens=30, temperature=1)) for _ in range(4)}) > 1


@pytest.mark.parametrize("length", [1, 7, 150])
def test_exact_lengths_for_load_tests(ask, length):
    answer = ask(max_tokens=length, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == length
    assert answer["choices"][0]["finish_reason"] == "length"
    answer = ask(max_tokens=length, min_tokens=length)
    assert answer["usage"]["completion_tokens"] == length


def test_max_completion_tokens_is_the_new_name(ask):
    assert ask(max_completion_tokens=5, ignore_eos=True)["usage"]["completion_tokens"] == 5


def test_a_stop_string_ends_the_answer_and_is_not_shown(ask, stream):
    whole = content(ask(max_tokens=40, temperature=0, ignore_eos=True))
    stop = whole[9:13]
    at = whole.find(stop)
    answer = ask(max_tokens=40, temperature=0, ignore_eos=True, stop=[stop])
    assert content(answer) == whole[:at]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["stop_reason"] == stop
    shown = ask(max_tokens=40, temperature=0, ignore_eos=True, stop=stop, include_stop_str_in_output=True)
    assert content(shown) == whole[:at] + stop
    chunks = stream(max_tokens=40, temperature=0, ignore_eos=True, stop=[stop])
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == whole[:at]


def test_several_samples_in_one_stream(stream):
    chunks = stream(n=3, max_tokens=5, temperature=1, seed=1, ignore_eos=True)
    finished = [choice["index"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert sorted(finished) == [0, 1, 2]
    assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks[:3]] == ["assistant"] * 3


def test_log_probabilities(ask):
    answer = ask(max_tokens=4, temperature=0, ignore_eos=True, logprobs=True, top_logprobs=3)
    entries = answer["choices"][0]["logprobs"]["content"]
    assert len(entries) == 4
    for entry in entries:
        assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
        assert entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) == 3
        assert set(entry["top_logprobs"][0]) == {"token", "logprob", "bytes"}
    answer = ask("/v1/completions", prompt="One", max_tokens=4, temperature=0, ignore_eos=True, logprobs=2)
    found = answer["choices"][0]["logprobs"]
    assert {len(found[key]) for key in ("text_offset", "token_logprobs", "tokens", "top_logprobs")} == {4}


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "length": {"type": "integer", "minimum": 1, "maximum": 9},
        "banks": {"type": "array", "items": {"enum": ["left", "right"]}, "minItems": 2, "maxItems": 2},
    },
    "required": ["name", "length", "banks"],
    "additionalProperties": False,
}


def test_a_json_schema_is_kept_to(ask, stream):
    form = {"type": "json_schema", "json_schema": {"name": "river", "schema": SCHEMA}}
    jsonschema.validate(json.loads(content(ask(max_tokens=400, response_format=form, seed=1))), SCHEMA)
    chunks = stream(max_tokens=400, response_format=form, seed=1)
    streamed = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    jsonschema.validate(json.loads(streamed), SCHEMA)


def test_a_choice(ask):
    answer = ask(max_tokens=20, structured_outputs={"choice": ["north", "south"]}, seed=1)["choices"][0]
    assert answer["message"]["content"] in ("north", "south")
    assert answer["finish_reason"] == "stop"


def test_a_json_object(ask):
    answer = ask(max_tokens=400, response_format={"type": "json_object"}, temperature=0)
    if answer["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(content(answer)), dict)


def test_tokens_there_and_back(ask):
    answer = ask("/tokenize", prompt="Hello, 강물!", return_token_strs=True)
    same_keys(answer, {"count", "max_model_len", "tokens", "token_strs"})
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert ask("/detokenize", tokens=answer["tokens"][1:])["prompt"] == "Hello, 강물!"
    chat = ask("/tokenize", messages=ASK)
    assert chat["count"] == ask(max_tokens=1)["usage"]["prompt_tokens"]


def error(answer, status, kind):
    assert answer.status_code == status, answer.text
    body = answer.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert body["code"] == status
    assert body["type"] == kind
    return body


def test_an_unknown_model(engine, name):
    answer = engine.client.post("/v1/chat/completions", json={"model": "nobody", "messages": ASK})
    body = error(answer, 404, "NotFoundError")
    assert body["message"] == f"The model `nobody` does not exist. Valid aliases: {name}."
    assert body["param"] == "model"


def test_a_body_that_is_not_json(engine):
    headers = {"content-type": "application/json"}
    answer = engine.client.post("/v1/chat/completions", content=b'{"model":', headers=headers)
    assert "JSON decode error" in error(answer, 400, "Bad Request")["message"]
    answer = engine.client.post("/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert "Unsupported Media Type" in error(answer, 400, "Bad Request")["message"]


def test_a_body_without_messages(engine, name):
    answer = engine.client.post("/v1/chat/completions", json={"model": name})
    body = error(answer, 400, "Bad Request")
    assert body["param"] == "body.messages"
    assert "Field required" in body["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"max_tokens": "many"}, "'loc': 'body.max_tokens', 'msg': 'Input should be a valid integer, unable to parse"),
        ({"temperature": -1}, "temperature must be non-negative"),
        ({"top_p": 2}, "top_p must be in"),
        ({"n": 0}, "n must be at least 1"),
        ({"n": 2, "temperature": 0}, "n must be 1 when using greedy sampling"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens must be less than or equal to max_tokens=4"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"stream_options": {"include_usage": True}}, "Stream options can only be defined when `stream=True`"),
        ({"top_logprobs": 2}, "`logprobs` must be set to true"),
        ({"response_format": {"type": "json_schema"}}, "'json_schema' field must be provided"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"tool_choice": "required"}, "`tools` must be set"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "is not a multimodal model"),
        ({"messages": []}, "Cannot apply chat template to an empty conversation"),
    ],
)
def test_values_that_vllm_refuses(engine, name, body, words):
    answer = engine.client.post("/v1/chat/completions", json={"model": name, "messages": ASK, **body})
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]


def test_a_prompt_that_is_too_long(engine, name):
    limit = next(card for card in engine.client.get("/v1/models").json()["data"] if card["id"] == name)["max_model_len"]
    words = (
        "This model's maximum context length is {} tokens. However, your prompt contains {} input tokens, which "
        "exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
        "(parameter=input_tokens, value={})"
    )
    # Of tokens it knows how many there are; a text is read no further than it must be.
    for prompt, shown, value in (
        ([5] * (limit + 10), f"{limit + 10}", limit + 10),
        ("river " * (limit + 10), f"at least {limit + 1}", limit + 1),
    ):
        answer = engine.client.post("/v1/completions", json={"model": name, "prompt": prompt, "max_tokens": 4})
        body = error(answer, 400, "BadRequestError")
        assert body["message"] == words.format(limit, shown, value)
        assert body["param"] == "input_tokens"
    answer = engine.client.post("/v1/completions", json={"model": name, "prompt": [5] * limit, "max_tokens": 4})
    assert "max_tokens must be at least 1, got 0." in error(answer, 400, "BadRequestError")["message"]


def test_more_output_than_the_context_has_room_for(engine, name, ask):
    limit = next(card for card in engine.client.get("/v1/models").json()["data"] if card["id"] == name)["max_model_len"]
    # It is cut to what is left.
    answer = ask("/v1/completions", prompt=[5] * (limit - 3), max_tokens=10, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 3
    body = {"model": name, "prompt": "x", "max_tokens": limit + 1}
    answer = engine.client.post("/v1/completions", json=body)
    assert error(answer, 400, "BadRequestError")["message"] == (
        f"max_tokens={limit + 1} cannot be greater than max_model_len={limit}. Please request fewer output tokens. "
        f"(parameter=max_tokens, value={limit + 1})"
    )


def test_paths_and_methods_that_do_not_exist(engine):
    assert engine.client.get("/nothing").status_code == 404
    assert engine.client.get("/v1/chat/completions").status_code == 405
    assert engine.client.head("/health").status_code == 405


METRICS = {
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:kv_cache_usage_perc": "gauge",
    "vllm:num_requests_waiting_by_reason": "gauge",
    "vllm:admission_rejections_total": "counter",
    "vllm:num_preemptions_total": "counter",
    "vllm:prompt_tokens_total": "counter",
    "vllm:generation_tokens_total": "counter",
    "vllm:request_success_total": "counter",
    "vllm:prefix_cache_queries_total": "counter",
    "vllm:prefix_cache_hits_total": "counter",
    "vllm:time_to_first_token_seconds": "histogram",
    "vllm:inter_token_latency_seconds": "histogram",
    "vllm:e2e_request_latency_seconds": "histogram",
    "vllm:request_queue_time_seconds": "histogram",
    "vllm:request_prompt_tokens": "histogram",
    "vllm:request_generation_tokens": "histogram",
}


def test_metrics_have_vllms_names_types_and_labels(engine, name):
    answer = engine.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    types = dict(re.findall(r"^# TYPE (\S+) (\w+)$", answer.text, re.MULTILINE))
    assert {key: types.get(key) for key in METRICS} == METRICS
    assert re.search(rf'^vllm:num_requests_running{{engine="0",model_name="{re.escape(name)}"}} ', answer.text, re.M)
    bounds = re.findall(r'^vllm:time_to_first_token_seconds_bucket{.*le="([^"]+)"', answer.text, re.M)
    assert bounds[-1] == "+Inf"
    assert [float(bound) for bound in bounds] == sorted(float(bound) for bound in bounds)


def test_metrics_follow_a_request(engine, ask):
    counters = {
        "generation_tokens_total": {},
        "prompt_tokens_total": {},
        "request_success_total": {"finished_reason": "length"},
        "time_to_first_token_seconds_count": {},
        "inter_token_latency_seconds_count": {},
        "e2e_request_latency_seconds_count": {},
        "request_queue_time_seconds_count": {},
    }
    before = {key: engine.metric(key, **labels) for key, labels in counters.items()}
    usage = ask(max_tokens=9, ignore_eos=True)["usage"]
    # A real engine publishes a moment after it has answered.
    engine.until(
        lambda: engine.metric("request_success_total", finished_reason="length") > before["request_success_total"]
    )
    grown = {key: engine.metric(key, **labels) - before[key] for key, labels in counters.items()}
    assert grown == {
        "generation_tokens_total": 9,
        "prompt_tokens_total": usage["prompt_tokens"],
        "request_success_total": 1,
        "time_to_first_token_seconds_count": 1,
        "inter_token_latency_seconds_count": 8,
        "e2e_request_latency_seconds_count": 1,
        "request_queue_time_seconds_count": 1,
    }


def test_a_client_that_goes_away_aborts_its_request(engine, name):
    body = {"model": name, "messages": ASK, "max_tokens": 1500, "ignore_eos": True, "stream": True}
    for count in (1, 2):
        with httpx.stream("POST", f"{engine.url}/v1/chat/completions", json={**body, "n": count}, timeout=60) as answer:
            assert answer.status_code == 200
            next(answer.iter_lines())
        engine.until(lambda: engine.metric("num_requests_running") == 0)
    assert engine.metric("kv_cache_usage_perc") == 0
