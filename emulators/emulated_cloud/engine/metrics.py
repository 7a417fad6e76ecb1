"""vLLM's Prometheus metrics, with its names, labels and buckets (vllm/v1/metrics/loggers.py)."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

NOT_COUNTED = ("/metrics", "/health", "/load", "/ping", "/version", "/server_info")
"""Routes whose requests the HTTP server does not count (vllm/entrypoints/serve/instrumentator/metrics.py)."""
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
TTFT = 0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560
ITL = 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80
LATENCY = 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680


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


class Metrics:
    """What `/metrics` shows of one engine.

    max_loras: None without `--enable-lora`. adapters: asked at scrape time, the names of those that run and that wait.
    """

    def __init__(self, model_name: str, max_model_len: int, max_loras: int | None):
        self.registry, self.max_loras = CollectorRegistry(), max_loras
        self.adapters: Callable[[], tuple[set[str], set[str]]] = lambda: (set(), set())
        own = {"engine": "0", "model_name": model_name}

        def gauge(name: str, documentation: str, **labels: str) -> Gauge:
            return Gauge(f"vllm:{name}", documentation, [*own, *labels], registry=self.registry).labels(**own, **labels)

        def counter(name: str, documentation: str) -> Counter:
            return Counter(f"vllm:{name}", documentation, list(own), registry=self.registry).labels(**own)

        def histogram(name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
            family = Histogram(f"vllm:{name}", documentation, list(own), registry=self.registry, buckets=buckets)
            return family.labels(**own)

        self.running = gauge("num_requests_running", "Number of requests in model execution batches.")
        self.waiting = gauge("num_requests_waiting", "Number of requests waiting to be processed.")
        by_reason = Gauge(
            "vllm:num_requests_waiting_by_reason",
            "Number of waiting requests by reason.",
            [*own, "reason"],
            registry=self.registry,
        )
        self.waiting_for_capacity = by_reason.labels(**own, reason="capacity")
        self.waiting_deferred = by_reason.labels(**own, reason="deferred")
        gauge(
            "engine_sleep_state",
            "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means it is awake.",
            sleep_state="awake",
        ).set(1)
        self.kv_usage = gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.")
        self.prefix_queries = counter(
            "prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens."
        )
        self.prefix_hits = counter("prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.")
        # An engine whose KV cache never fills preempts nothing.
        counter("num_preemptions", "Cumulative number of preemption from the engine.")
        self.prompt_tokens = counter("prompt_tokens", "Number of prefill tokens processed.")
        self.generation_tokens = counter("generation_tokens", "Number of generation tokens processed.")
        finished = Counter(
            "vllm:request_success",
            "Count of successfully processed requests.",
            [*own, "finished_reason"],
            registry=self.registry,
        )
        self.finished = {reason: finished.labels(**own, finished_reason=reason) for reason in FINISH_REASONS}
        self.rejections = Counter(
            "vllm:admission_rejections",
            "Number of admission attempts rejected by a queue limit, by reason.",
            ["model_name", "reason"],
            registry=self.registry,
        ).labels(model_name=model_name, reason="max_num_queued_reqs")

        # Not the engine's, but its HTTP server's (prometheus-fastapi-instrumentator).
        self.http_requests = Counter(
            "http_requests",
            "Total number of requests by method, status and handler.",
            ["handler", "status", "method"],
            registry=self.registry,
        )

        tokens = one_two_five(max_model_len)
        self.request_prompt_tokens = histogram("request_prompt_tokens", "Number of prefill tokens processed.", tokens)
        self.request_generation_tokens = histogram(
            "request_generation_tokens", "Number of generation tokens processed.", tokens
        )
        self.request_n = histogram("request_params_n", "Histogram of the n request parameter.", (1, 2, 5, 10, 20))
        self.request_max_tokens = histogram(
            "request_params_max_tokens", "Histogram of the max_tokens request parameter.", tokens
        )
        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "Histogram of time to first token in seconds.", TTFT
        )
        self.inter_token_latency = histogram(
            "inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", ITL
        )
        self.time_per_output_token = histogram(
            "request_time_per_output_token_seconds", "Histogram of time_per_output_token_seconds per request.", ITL
        )
        self.e2e = histogram("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", LATENCY)
        self.queue_time, self.inference_time, self.prefill_time, self.decode_time = (
            histogram(
                f"request_{phase}_time_seconds", f"Histogram of time spent in {state} phase for request.", LATENCY
            )
            for phase, state in (
                ("queue", "WAITING"),
                ("inference", "RUNNING"),
                ("prefill", "PREFILL"),
                ("decode", "DECODE"),
            )
        )
        if max_loras is not None:
            self._loras = Gauge(
                "vllm:lora_requests_info",
                "Running stats on lora requests.",
                ["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
                registry=self.registry,
            )

    def show_cache_config(self, config: dict[str, str]) -> None:
        """What the engine's KV cache is like, as labels; said once."""
        labels = {**config, "engine": "0"}
        name, documentation = "vllm:cache_config_info", "Information of the LLMEngine CacheConfig"
        Gauge(name, documentation, list(labels), registry=self.registry).labels(**labels).set(1)

    def answered(self, method: str, handler: str, status: int) -> None:
        """Counts a request that was answered. `handler`: the path of its route, or `none`."""
        if handler not in NOT_COUNTED:
            self.http_requests.labels(handler=handler, status=f"{status // 100}xx", method=method).inc()

    def render(self) -> bytes:
        """The Prometheus text format, version 0.0.4."""
        if self.max_loras is not None:
            names = [",".join(sorted(adapters)) for adapters in self.adapters()]
            self._loras.clear()
            self._loras.labels(str(self.max_loras), *names).set_to_current_time()
        return generate_latest(self.registry)
