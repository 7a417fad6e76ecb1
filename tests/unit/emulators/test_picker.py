"""The emulated endpoint picker without a network: flags, configuration, messages, scores, rewrites, refusals."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from emulated_cloud.gateway.picker import __main__ as program
from emulated_cloud.gateway.picker import config, wire
from emulated_cloud.gateway.picker.engines import Endpoint, Load, read
from emulated_cloud.gateway.picker.metrics import Metrics
from emulated_cloud.gateway.picker.options import BadOptions, parse, seconds
from emulated_cloud.gateway.picker.pool import Pool
from emulated_cloud.gateway.picker.prefixes import PrefixIndex
from emulated_cloud.gateway.picker.processing import Exchange, Picker, Refused, usage_of
from emulated_cloud.gateway.picker.scheduling import Scheduler, adapter_affinity

POOL = ["--pool-name", "p"]


def endpoint(name: str = "a", **load: Any) -> Endpoint:
    return Endpoint(name, "serving", f"127.0.0.{ord(name)}", 8000, Load(time.monotonic(), **load))


# -- flags ---------------------------------------------------------------------------------------------------


def test_a_booleans_value_comes_after_an_equals_sign() -> None:
    assert parse([*POOL, "--secure-serving=false"]).secure_serving is False
    # As for pflag, `false` is no flag here, and nobody looks at it.
    assert parse([*POOL, "--secure-serving", "false"]).secure_serving is True
    assert parse([*POOL, "--drain-timeout", "1m30s", "-v", "4"]).drain_timeout == 90
    assert parse([*POOL, "--v=5", "--ha-enable-leader-election=false"]).v == 5


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ([], 1, "either pool-name or endpoint-selector must be set"),
        ([*POOL, "--pool-nam", "p"], 2, "unknown flag: --pool-nam"),
        ([*POOL, "--lora-info-metric=x"], 1, 'flag "lora-info-metric" is deprecated and cannot be used'),
        ([*POOL, "-x"], 2, "unknown shorthand flag: 'x' in -x"),
        (
            [*POOL, "--grpc-port", "many"],
            2,
            'invalid argument "many" for "--grpc-port" flag: strconv.ParseInt: parsing',
        ),
        ([*POOL, "-v=x"], 2, 'invalid argument "x" for "-v, --v" flag: strconv.ParseInt: parsing "x": invalid syntax'),
        ([*POOL, "--tracing=maybe"], 2, 'for "--tracing" flag: strconv.ParseBool: parsing "maybe": invalid syntax'),
        ([*POOL, "--drain-timeout=5"], 2, 'for "--drain-timeout" flag: time: missing unit in duration "5"'),
        ([*POOL, "--grpc-port"], 2, "flag needs an argument: --grpc-port"),
        (
            [*POOL, "--ha-enable-leader-election"],
            1,
            "the real endpoint picker has this flag, the emulated one does not",
        ),
        ([*POOL, "--config-file=a", "--config-text=b"], 1, "can not be set at the same time"),
    ],
)
def test_flags_that_it_ends_over(argv: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadOptions, match=words):
        parse(argv)
    assert program.main(argv) == code
    assert words in capsys.readouterr().err


def test_durations_are_gos() -> None:
    assert [seconds(text) for text in ("200ms", "1.5s", "1h2m", "0")] == [0.2, 1.5, 3720, 0]
    for text in ("", "1", "s", "1s x"):
        with pytest.raises(ValueError, match=r"^time: (invalid|missing unit in) duration"):
            seconds(text)


# -- configuration -------------------------------------------------------------------------------------------


def configured(**changed: Any) -> str:
    plugins = [{"type": "queue-scorer"}, {"type": "lora-affinity-scorer", "name": "lora"}]
    chosen = [{"pluginRef": "queue-scorer", "weight": 2}, {"pluginRef": "lora"}]
    whole = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig", "plugins": plugins}
    return json.dumps({**whole, "schedulingProfiles": [{"name": "default", "plugins": chosen}], **changed})


def test_a_configuration_says_who_scores_and_how_much_that_counts() -> None:
    assert config.load(configured()).scorers == (("queue-scorer", 2.0), ("lora-affinity-scorer", 1.0))
    assert dict(config.load("").scorers) == {
        "queue-scorer": 2.0,
        "kv-cache-utilization-scorer": 2.0,
        "prefix-cache-scorer": 3.0,
    }
    detector = {"type": "utilization-detector", "parameters": {"queueDepthThreshold": 9}}
    limits = config.load(configured(plugins=[detector], schedulingProfiles=[])).thresholds
    assert (limits.queue_depth, limits.kv_cache) == (9, 0.8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            configured(apiVersion="inference.networking.x-k8s.io/v1alpha1"),
            'no kind "EndpointPickerConfig" is registered',
        ),
        (configured(kind="Other"), 'no kind "Other" is registered'),
        (configured(schedulingProfile=[]), 'unknown field "schedulingProfile"'),
        (configured(plugins=[{"type": "wishful-scorer"}]), "plugin type 'wishful-scorer' is not registered"),
        (configured(plugins=[{"name": "x"}]), "plugin 'x' is missing a type"),
        (configured(plugins=[{"type": "queue-scorer"}] * 2), "duplicate plugin name 'queue-scorer'"),
        (
            configured(plugins=[{"type": "queue-scorer", "parameters": {"weight": 2}}]),
            "failed to create plugin 'queue-scorer' \\(type: queue-scorer\\): json: unknown field \"weight\"",
        ),
        (
            configured(schedulingProfiles=[{"name": "d", "plugins": [{"pluginRef": "prefix"}]}]),
            "schedulingProfiles\\[d\\] references undefined plugin 'prefix'",
        ),
        (configured(schedulingProfiles=[{"plugins": []}]), "schedulingProfiles\\[0\\] is missing a name"),
        (configured(featureGates=["flowControl"]), "feature gate 'flowControl' is unknown or unregistered"),
        (configured(saturationDetector={"pluginRef": "x"}), "saturation detector references undefined plugin 'x'"),
        (configured(plugins="x"), "json: cannot unmarshal str into Go struct field EndpointPickerConfig.plugins"),
        (
            configured(schedulingProfiles=[{"name": "a"}, {"name": "b"}]),
            "scheduler config build failed: no profile handler configured",
        ),
        (configured(dataLayer={"sources": [{"pluginRef": "x"}]}), "the plugin x is not a fwkdl.DataSource"),
        ("a: [", "failed to parse config - failed to decode configuration JSON/YAML: yaml: line 1"),
        ("[]", "couldn't get version/kind"),
    ],
)
def test_configurations_that_it_ends_over(text: str, words: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(config.BadConfig, match=words):
        config.load(text)
    assert program.main([*POOL, f"--config-text={text}"]) == 1
    assert caplog.messages[-1].startswith(("failed to parse config - ", "failed to load the configuration - "))


def test_a_configuration_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    assert program.main([*POOL, "--config-file=/nowhere/config.yaml"]) == 1
    words = "open /nowhere/config.yaml: no such file or directory"
    assert f"failed to load config from a file '/nowhere/config.yaml' - {words}" in caplog.text


# -- scores --------------------------------------------------------------------------------------------------

METRICS = """
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="base"} 7.0
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="base"} 2.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="base"} 0.25
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="2",running_lora_adapters="",waiting_lora_adapters=""} 1.7e+09
vllm:lora_requests_info{max_lora="2",running_lora_adapters="ko,code",waiting_lora_adapters="it"} 1.8e+09
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="32",engine="0"} 1.0
"""


def test_metrics_are_vllms_and_the_newest_state_of_adapters_counts() -> None:
    load = read(METRICS, 5.0)
    assert load == Load(5.0, 7, 2, 0.25, frozenset({"ko", "code"}), frozenset({"it"}), 2, 32)
    assert read("", 1.0) == Load(1.0)


@pytest.mark.parametrize(
    ("load", "score"),
    [
        ({"running_adapters": frozenset({"ko", "it"}), "max_adapters": 2}, 1.0),
        ({"running_adapters": frozenset({"it"}), "max_adapters": 2}, 0.8),
        ({"running_adapters": frozenset({"it"}), "waiting_adapters": frozenset({"ko"}), "max_adapters": 2}, 0.6),
        ({"running_adapters": frozenset({"it", "code"}), "max_adapters": 2}, 0.0),
        ({}, 0.0),
    ],
)
def test_an_adapters_place(load: dict[str, Any], score: float) -> None:
    assert adapter_affinity(endpoint(**load), "ko") == score


def test_the_best_weighed_score_wins() -> None:
    busy, free = endpoint("a", waiting=4, kv_cache=0.0), endpoint("b", waiting=2, kv_cache=0.9)
    shares = {busy: 1.0, free: 0.0}

    def scheduler(**weights: float) -> Scheduler:
        return Scheduler(config.Config(tuple((name.replace("_", "-"), weight) for name, weight in weights.items())))

    assert scheduler(queue_scorer=1).scores([busy, free], "m", shares) == {busy: 0.0, free: 1.0}
    assert scheduler(queue_scorer=1).pick([busy, free], "m", shares) is free
    assert scheduler(queue_scorer=2, prefix_cache_scorer=3).pick([busy, free], "m", shares) is busy
    assert scheduler(kv_cache_utilization_scorer=2).scores([busy, free], "m", shares)[free] == pytest.approx(0.2)
    # Alike: all of them get something.
    assert {scheduler(running_requests_size_scorer=1).pick([busy, free], "m", shares) for _ in range(60)} == {
        busy,
        free,
    }


def test_a_pool_is_full_by_its_mean_and_by_who_says_nothing() -> None:
    scheduler = Scheduler(config.Config(()))
    assert scheduler.saturation([]) == 1.0
    assert scheduler.saturation([endpoint(waiting=5)]) == 1.0
    assert scheduler.saturation([endpoint(kv_cache=0.8)]) == 1.0
    assert scheduler.saturation([endpoint("a", waiting=5), endpoint("b")]) == 0.5
    assert scheduler.saturation([Endpoint("c", "serving", "127.0.0.9", 8000)]) == 1.0


def test_full_endpoints_are_left_out_if_so_configured() -> None:
    full, free = endpoint("a", waiting=5), endpoint("b", waiting=1)
    scheduler = Scheduler(config.Config((("prefix-cache-scorer", 1.0),), leaves_out_full=True))
    assert scheduler.pick([full, free], "m", {full: 1.0, free: 0.0}) is free
    assert scheduler.pick([full], "m", {full: 1.0}) is full, "better than nobody"


def test_prefixes_are_whole_blocks_of_one_model() -> None:
    index = PrefixIndex(config.Prefixes(capacity=4))
    prompt = b"x" * 64 * 3 + b"rest"
    blocks = index.blocks("base", prompt, 16)
    assert len(blocks) == 3
    assert index.blocks("base", b"short", 16) == []
    assert len(index.blocks("base", prompt, 0)) == 3
    index.add("serving/a", blocks)
    assert index.share("serving/a", blocks) == 1.0
    assert index.share("serving/a", index.blocks("base", prompt[:64] + b"y" * 128, 16)) == pytest.approx(1 / 3)
    assert index.share("serving/a", index.blocks("ko", prompt, 16)) == 0.0
    index.add("serving/a", index.blocks("base", b"z" * 64 * 2, 16))
    assert len(index) == 4
    assert index.share("serving/a", blocks) == 0.0, "the oldest block was forgotten"
    index.keep({"serving/b"})
    assert len(index) == 0


# -- a request -----------------------------------------------------------------------------------------------


class Engines:
    """Has asked already."""

    async def refresh(self, endpoints: list[Endpoint]) -> None:
        pass


class ThePool(Pool):
    """Knows what it is told."""

    def __init__(self, *endpoints: Endpoint, priority: int = 0, rewrites: dict[str, str] | None = None):
        super().__init__("p", "serving")
        self._endpoints = {each.name: each for each in endpoints}
        self._priority, self._rewritten = priority, rewrites or {}

    def priority(self, objective: str) -> int:
        return self._priority if objective else 0

    def rewritten(self, model: str) -> tuple[str, str]:
        return (self._rewritten[model], "rewrite") if model in self._rewritten else ("", "")


def exchange(*endpoints: Endpoint, **more: Any) -> Exchange:
    settings = config.load("")
    index = PrefixIndex(settings.prefixes)
    return Exchange(Picker(ThePool(*endpoints, **more), Engines(), Scheduler(settings), index, Metrics("p")))  # type: ignore[arg-type]


def headers(ends: bool = False, **named: str) -> Any:
    message = wire.ProcessingRequest()
    message.request_headers.end_of_stream = ends
    for name, value in {":path": "/v1/completions", **named}.items():
        message.request_headers.headers.headers.add(key=name.replace("_", "-"), raw_value=value.encode())
    return message


def body(data: bytes | dict[str, Any], side: str = "request_body", ends: bool = True) -> Any:
    message = wire.ProcessingRequest()
    getattr(message, side).body = data if isinstance(data, bytes) else json.dumps(data).encode()
    getattr(message, side).end_of_stream = ends
    return message


def answers(of: Exchange, *messages: Any) -> list[Any]:
    async def all_of_them() -> list[Any]:
        return [answer for message in messages for answer in await of.take(message)]

    return asyncio.run(all_of_them())


ASK = {"model": "base", "prompt": "Hello"}


def test_nothing_goes_on_before_the_whole_body_is_here() -> None:
    one = exchange(endpoint("a"))
    data = json.dumps(ASK).encode()
    assert answers(one, headers(), body(data[:5], ends=False)) == []
    to, rest = answers(one, body(data[5:]))
    sent = {
        each.header.key: each.header.raw_value.decode()
        for each in to.request_headers.response.header_mutation.set_headers
    }
    assert sent == {"x-gateway-destination-endpoint": "127.0.0.97:8000", "content-length": str(len(data))}
    assert to.request_headers.response.clear_route_cache
    assert to.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"] == "127.0.0.97:8000"
    streamed = rest.request_body.response.body_mutation.streamed_response
    assert (streamed.body, streamed.end_of_stream) == (data, True)


def test_a_long_body_goes_on_in_pieces() -> None:
    data = json.dumps({**ASK, "prompt": "x" * 150_000}).encode()
    _, *rest = answers(exchange(endpoint("a")), headers(), body(data))
    pieces = [each.request_body.response.body_mutation.streamed_response for each in rest]
    assert b"".join(piece.body for piece in pieces) == data
    assert [piece.end_of_stream for piece in pieces] == [False, False, True]
    assert max(len(piece.body) for piece in pieces) <= 62_000


def test_the_answer_on_the_wire_is_envoys() -> None:
    """Byte for byte: a table of field numbers agrees with itself, whatever is in it."""
    assert wire.immediate(429, "no").SerializeToString() == b"\x3a\x09\x0a\x03\x08\xad\x03\x1a\x02no"
    parsed = wire.ProcessingRequest.FromString(b"\x22\x04\x0a\x00\x10\x01")
    assert parsed.WhichOneof("kind") == "request_body"
    assert parsed.request_body.end_of_stream


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"no", "error unmarshaling request bodyMap"),
        (b"", "error unmarshaling request bodyMap: unexpected end of JSON input"),
        (b"[]", "error unmarshaling request bodyMap"),
        ({"model": "base"}, "invalid completions request: must have prompt field"),
        ({"prompt": "a", "model": 5}, "model not found in request body"),
    ],
)
def test_bodies_that_no_engine_could_answer(data: Any, words: str) -> None:
    with pytest.raises(Refused) as refused:
        answers(exchange(endpoint("a")), headers(), body(data))
    assert refused.value.status == 400
    assert str(refused.value).startswith(f"inference error: BadRequest - {words}")


def test_who_is_refused_when_there_is_nobody_or_no_room() -> None:
    with pytest.raises(Refused, match="ServiceUnavailable - failed to find endpoint candidates") as refused:
        answers(exchange(), headers(), body(ASK))
    assert refused.value.status == 503
    with pytest.raises(Refused, match="no pods available in datastore") as refused:
        answers(exchange(), headers(ends=True))
    assert refused.value.status == 500
    full = endpoint("a", waiting=6)
    with pytest.raises(Refused, match="system saturated, sheddable request dropped") as refused:
        answers(exchange(full, priority=-1), headers(x_llm_d_inference_objective="batch"), body(ASK))
    assert refused.value.status == 429
    assert answers(exchange(full, priority=-1), headers(), body(ASK)), "without an objective nothing is shed"
    assert answers(exchange(full, priority=0), headers(x_gateway_inference_objective="chat"), body(ASK))


def test_a_gateway_may_say_which_endpoints_it_means() -> None:
    def hinted(*names: str) -> Any:
        message = body(ASK)
        entry = message.metadata_context.filter_metadata.add(key="envoy.lb.subset_hint")
        entry.value.update({"x-gateway-destination-endpoint-subset": list(names)})
        return message

    a, b = endpoint("a"), endpoint("b")
    for _ in range(8):
        to, *_ = answers(exchange(a, b), headers(), hinted(b.name))
        assert to.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"] == b.name
    with pytest.raises(Refused, match="failed to find endpoint candidates"):
        answers(exchange(a, b), headers(), hinted())


def answer_headers(**named: str) -> Any:
    message = wire.ProcessingRequest()
    for name, value in named.items():
        message.response_headers.headers.headers.add(key=name.replace("_", "-"), raw_value=value.encode())
    return message


def test_a_rewritten_model_has_the_asked_name_in_the_answer() -> None:
    one = exchange(endpoint("a"), rewrites={"latest": "code-v2"})
    _, sent = answers(one, headers(), body({**ASK, "model": "latest"}))
    assert json.loads(sent.request_body.response.body_mutation.streamed_response.body)["model"] == "code-v2"
    first, answer = answers(
        one,
        answer_headers(content_type="application/json", content_length="99"),
        body(b'{"model": "code', "response_body", ends=False),
        body(b'-v2", "usage": {"prompt_tokens": 3, "completion_tokens": 2}}', "response_body"),
    )
    assert [*first.response_headers.response.header_mutation.remove_headers] == ["content-length"]
    streamed = answer.response_body.response.body_mutation.streamed_response
    assert json.loads(streamed.body)["model"] == "latest"
    assert streamed.end_of_stream
    shown = one.picker.metrics.render([]).decode()
    labels = 'fairness_id="default-flow",model_name="latest",priority="0",target_model_name="code-v2"'
    assert f"llm_d_epp_request_input_tokens_sum{{{labels}}} 3.0" in shown
    assert 'inference_objective_input_tokens_sum{model_name="latest",target_model_name="code-v2"} 3.0' in shown
    assert 'llm_d_epp_model_rewrite_decisions_total{model_name="latest",model_rewrite_name="rewrite"' in shown


def test_events_go_on_as_they_come() -> None:
    one = exchange(endpoint("a"))
    answers(one, headers(), body({**ASK, "stream": True}), answer_headers(content_type="text/event-stream"))
    event = b'data: {"model":"base"}\n\n'
    (piece,) = answers(one, body(event, "response_body", ends=False))
    assert piece.response_body.response.body_mutation.streamed_response.body == event
    last = b'data: {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\ndata: [DONE]\n\n'
    answers(one, body(last, "response_body"))
    one.close()
    shown = one.picker.metrics.render([endpoint("a", waiting=3)]).decode()
    assert 'llm_d_epp_request_ttft_seconds_count{fairness_id="default-flow",model_name="base",priority="0",' in shown
    assert 'inference_objective_output_tokens_sum{model_name="base",target_model_name="base"} 2.0' in shown
    assert 'inference_objective_running_requests{model_name="base"} 0.0' in shown
    assert 'llm_d_epp_average_queue_size{name="p"} 3.0' in shown
    assert 'inference_pool_per_pod_queue_size{model_server_pod="a",name="p"} 3.0' in shown
    assert usage_of(b"data: nothing") == {}


# -- the cluster ---------------------------------------------------------------------------------------------


class Items:
    """An informer's."""

    def __init__(self, *items: dict[str, Any]):
        self.items = {f"serving/{item['metadata']['name']}": item for item in items}


def made(name: str, at: str = "2026-01-01T00:00:00Z", pool: str = "p", **spec: Any) -> dict[str, Any]:
    reference = {"group": "inference.networking.k8s.io", "name": pool}
    return {"metadata": {"name": name, "creationTimestamp": at}, "spec": {"poolRef": reference, **spec}}


def test_objectives_of_this_pool_have_priorities() -> None:
    pool: Any = Pool("p", "serving")
    assert pool.priority("batch") == 0
    pool._objectives = Items(made("batch", priority=-1), made("none"), made("other", pool="q", priority=-1))
    assert [pool.priority(name) for name in ("batch", "none", "other", "unknown")] == [-1, 0, 0, 0]


def test_the_oldest_rule_for_just_this_model_comes_first() -> None:
    def rule(target: str, *models: str) -> dict[str, Any]:
        return {"matches": [{"model": {"value": model}} for model in models], "targets": [{"modelRewrite": target}]}

    pool: Any = Pool("p", "serving")
    assert pool.rewritten("it") == ("", "")
    for_all = {"targets": [{"modelRewrite": "base"}]}
    pool._rewrites = Items(
        made("newer", "2026-03-01T00:00:00Z", rules=[rule("c", "it")]),
        made("older", "2026-02-01T00:00:00Z", rules=[for_all, rule("b", "it", "other")]),
        made("oldest", "2026-01-01T00:00:00Z", rules=[for_all]),
        made("elsewhere", pool="q", rules=[rule("z", "it")]),
    )
    assert pool.rewritten("it") == ("b", "older")
    assert pool.rewritten("anything") == ("base", "oldest")
    split = [{"modelRewrite": "v1", "weight": 90}, {"modelRewrite": "v2", "weight": 10}]
    pool._rewrites = Items(made("split", rules=[{"matches": [{"model": {"value": "it"}}], "targets": split}]))
    drawn = [pool.rewritten("it")[0] for _ in range(400)]
    assert 320 < drawn.count("v1") < 396
