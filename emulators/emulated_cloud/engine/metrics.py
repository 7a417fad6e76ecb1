"""vLLM's Prometheus metrics, with its names, labels and buckets (vllm/v1/metrics/loggers.py)."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
TTFT: tuple[float, ...] = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)
TTFT += (160.0, 640.0, 2560.0)
ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
LATENCY: tuple[float, ...] = (
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
)
LATENCY += (960.0, 1920.0, 7680.0)


def one_two_five(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 … up to `most`."""
    buckets: list[int] = []
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power > most:
                return tuple(float(bucket) for bucket in buckets)
            buckets.append(factor * power)
        power *= 10


def labels_text(labels: dict[str, str]) -> str:
    escaped = (
        (key, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n"))
        for key, value in sorted(labels.items())
    )
    return "{" + ",".join(f'{key}="{value}"' for key, value in escaped) + "}"


@dataclass
class Histogram:
    """Observations counted by bucket, in seconds or tokens."""

    buckets: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.buckets) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.buckets, value)] += 1
        self.total += value

    def samples(self, name: str, labels: dict[str, str]) -> Iterator[str]:
        seen = 0
        for bound, count in zip((*self.buckets, float("inf")), self.counts, strict=True):
            seen += count
            le = "+Inf" if bound == float("inf") else repr(float(bound))
            yield f"{name}_bucket{labels_text({**labels, 'le': le})} {float(seen)!r}"
        yield f"{name}_count{labels_text(labels)} {float(seen)!r}"
        yield f"{name}_sum{labels_text(labels)} {self.total!r}"


class Metrics:
    """What `/metrics` shows of one engine.

    Asked at scrape time: running, waiting, deferred (of the waiting, those whose adapter has no place), kv_usage,
    adapters (names of those that run and that wait). max_loras: None without `--enable-lora`.
    """

    def __init__(self, model_name: str, max_model_len: int, cache_config: dict[str, str], max_loras: int | None):
        self.labels = {"engine": "0", "model_name": model_name}
        self.cache_config = cache_config
        self.max_loras = max_loras
        self.started = time.time()
        self.running: Callable[[], int] = lambda: 0
        self.waiting: Callable[[], int] = lambda: 0
        self.deferred: Callable[[], int] = lambda: 0
        self.kv_usage: Callable[[], float] = lambda: 0.0
        self.adapters: Callable[[], tuple[set[str], set[str]]] = lambda: (set(), set())
        self.prompt_tokens = self.generation_tokens = self.prefix_queries = self.prefix_hits = 0
        self.preemptions = self.rejections = 0
        self.finished = dict.fromkeys(FINISH_REASONS, 0)
        tokens = one_two_five(max_model_len)
        self.request_prompt_tokens = Histogram(tokens)
        self.request_generation_tokens = Histogram(tokens)
        self.request_max_tokens = Histogram(tokens)
        self.request_n = Histogram((1, 2, 5, 10, 20))
        self.time_to_first_token = Histogram(TTFT)
        self.inter_token_latency = Histogram(ITL)
        self.time_per_output_token = Histogram(ITL)
        self.e2e = Histogram(LATENCY)
        self.queue_time = Histogram(LATENCY)
        self.inference_time = Histogram(LATENCY)
        self.prefill_time = Histogram(LATENCY)
        self.decode_time = Histogram(LATENCY)

    def render(self) -> str:
        """The Prometheus text format, version 0.0.4."""
        lines: list[str] = []
        own = labels_text(self.labels)

        def family(name: str, kind: str, documentation: str, samples: list[str]) -> None:
            lines.extend((f"# HELP {name} {documentation}", f"# TYPE {name} {kind}", *samples))

        def gauge(name: str, documentation: str, value: float, labels: dict[str, str] | None = None) -> None:
            shown = own if labels is None else labels_text(labels)
            family(f"vllm:{name}", "gauge", documentation, [f"vllm:{name}{shown} {float(value)!r}"])

        def counter(name: str, documentation: str, values: int | dict[str, int]) -> None:
            """values: one, or one for each text of labels; when it was created is a gauge beside it."""
            samples = values if isinstance(values, dict) else {own: values}
            for suffix, kind in (("total", "counter"), ("created", "gauge")):
                full = f"vllm:{name}_{suffix}"
                shown = {key: self.started if suffix == "created" else float(value) for key, value in samples.items()}
                family(full, kind, documentation, [f"{full}{key} {value!r}" for key, value in shown.items()])

        def histogram(name: str, documentation: str, values: Histogram) -> None:
            family(f"vllm:{name}", "histogram", documentation, list(values.samples(f"vllm:{name}", self.labels)))

        gauge("num_requests_running", "Number of requests in model execution batches.", self.running())
        gauge("num_requests_waiting", "Number of requests waiting to be processed.", self.waiting())
        family(
            "vllm:num_requests_waiting_by_reason",
            "gauge",
            "Number of waiting requests by reason.",
            [
                f"vllm:num_requests_waiting_by_reason{labels_text({**self.labels, 'reason': reason})} {float(count)!r}"
                for reason, count in (
                    ("capacity", self.waiting() - self.deferred()),
                    ("deferred", self.deferred()),
                )
            ],
        )
        gauge(
            "engine_sleep_state",
            "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means it is awake.",
            1,
            {**self.labels, "sleep_state": "awake"},
        )
        gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", self.kv_usage())
        counter(
            "prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens.", self.prefix_queries
        )
        counter("prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", self.prefix_hits)
        counter("num_preemptions", "Cumulative number of preemption from the engine.", self.preemptions)
        counter("prompt_tokens", "Number of prefill tokens processed.", self.prompt_tokens)
        counter("generation_tokens", "Number of generation tokens processed.", self.generation_tokens)
        finished = {labels_text({**self.labels, "finished_reason": key}): value for key, value in self.finished.items()}
        counter("request_success", "Count of successfully processed requests.", finished)
        rejected = {
            labels_text({"model_name": self.labels["model_name"], "reason": "max_num_queued_reqs"}): self.rejections
        }
        counter("admission_rejections", "Number of admission attempts rejected by a queue limit, by reason.", rejected)
        histogram("request_prompt_tokens", "Number of prefill tokens processed.", self.request_prompt_tokens)
        histogram("request_generation_tokens", "Number of generation tokens processed.", self.request_generation_tokens)
        histogram("request_params_n", "Histogram of the n request parameter.", self.request_n)
        histogram(
            "request_params_max_tokens", "Histogram of the max_tokens request parameter.", self.request_max_tokens
        )
        histogram(
            "time_to_first_token_seconds", "Histogram of time to first token in seconds.", self.time_to_first_token
        )
        histogram(
            "inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", self.inter_token_latency
        )
        histogram(
            "request_time_per_output_token_seconds",
            "Histogram of time_per_output_token_seconds per request.",
            self.time_per_output_token,
        )
        histogram("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", self.e2e)
        histogram(
            "request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", self.queue_time
        )
        histogram(
            "request_inference_time_seconds",
            "Histogram of time spent in RUNNING phase for request.",
            self.inference_time,
        )
        histogram(
            "request_prefill_time_seconds", "Histogram of time spent in PREFILL phase for request.", self.prefill_time
        )
        histogram(
            "request_decode_time_seconds", "Histogram of time spent in DECODE phase for request.", self.decode_time
        )
        gauge("cache_config_info", "Information of the LLMEngine CacheConfig", 1, {**self.cache_config, "engine": "0"})
        if self.max_loras is not None:
            running, waiting = self.adapters()
            gauge(
                "lora_requests_info",
                "Running stats on lora requests.",
                time.time(),
                {
                    "max_lora": str(self.max_loras),
                    "running_lora_adapters": ",".join(sorted(running)),
                    "waiting_lora_adapters": ",".join(sorted(waiting)),
                },
            )
        return "\n".join(lines) + "\n"
