"""What the picker counts: llm-d-router's names, each beside the deprecated one that v0.10 still writes.

Names and labels: llm-d-router pkg/epp/metrics and its docs/metrics.md; those that this picker has figures for.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from emulated_cloud.gateway.picker.engines import Endpoint

LATENCY = 0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60, 120
SIZES = tuple(float(64 << power) for power in range(25))
RESPONSE_SIZES = 1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32778, 65536
TOKENS = *RESPONSE_SIZES, 131072, 262144, 524288, 1048576
SCHEDULING = 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1

MODELS = ("model_name", "target_model_name")
REQUEST = (*MODELS, "fairness_id", "priority")


class Series:
    """A metric of two names. `renamed`: what the deprecated one calls a label, where that differs."""

    def __init__(self, current: Any, deprecated: Any = None, renamed: Mapping[str, str] | None = None):
        self._current, self._deprecated, self._renamed = current, deprecated, dict(renamed or {})

    def of(self, **labels: str) -> list[Any]:
        """The metric's children for these labels, the deprecated one's too."""
        found = [self._current.labels(**labels) if labels else self._current]
        if self._deprecated is not None:
            own = {self._renamed.get(name, name): value for name, value in labels.items()}
            names = self._deprecated._labelnames
            found.append(self._deprecated.labels(**{name: own[name] for name in names}) if names else self._deprecated)
        return found

    def inc(self, **labels: str) -> None:
        for child in self.of(**labels):
            child.inc()

    def dec(self, **labels: str) -> None:
        for child in self.of(**labels):
            child.dec()

    def observe(self, value: float, **labels: str) -> None:
        for child in self.of(**labels):
            child.observe(value)

    def set(self, value: float, **labels: str) -> None:
        for child in self.of(**labels):
            child.set(value)

    def clear(self) -> None:
        for family in (self._current, self._deprecated):
            if family is not None:
                family.clear()


class Metrics:
    """`/metrics` of one picker, for the pool of this name."""

    def __init__(self, pool: str) -> None:
        prometheus_client.disable_created_metrics()  # Go's client has none.
        self.registry, self._pool = CollectorRegistry(), pool
        objective, inference_pool = "inference_objective_", "inference_pool_"
        extension = "inference_extension_"

        def series(
            kind: Any,
            name: str,
            help_: str,
            labels: Sequence[str] = (),
            old: str = "",
            old_labels: Sequence[str] = MODELS,
            renamed: Mapping[str, str] | None = None,
            **more: Any,
        ) -> Series:
            made = kind(f"llm_d_epp_{name}", f"[ALPHA] {help_}", labels, registry=self.registry, **more)
            if not old:
                return Series(made)
            words = f"[ALPHA] [Deprecated: Use llm_d_epp_{name}] {help_}"
            return Series(made, kind(old, words, old_labels, registry=self.registry, **more), renamed)

        self.requests = series(
            Counter,
            "request_total",
            "Total number of processed requests.",
            REQUEST,
            f"{objective}request_total",
            (*MODELS, "priority"),
        )
        self.errors = series(
            Counter,
            "request_error_total",
            "Total number of request errors.",
            (*REQUEST, "error_code"),
            f"{objective}request_error_total",
            (*MODELS, "error_code"),
        )
        self.running = series(
            Gauge,
            "request_running",
            "Current number of active running requests.",
            REQUEST,
            f"{objective}running_requests",
            ("model_name",),
        )
        self.durations, self.first_tokens = (
            series(Histogram, name, help_, labels, f"{objective}{name}", MODELS, buckets=LATENCY)
            for name, help_, labels in (
                ("request_duration_seconds", "End-to-end request latency distribution in seconds.", REQUEST),
                ("request_ttft_seconds", "Time to first token in seconds.", (*REQUEST, "streaming")),
            )
        )
        self.request_sizes, self.response_sizes, self.input_tokens, self.output_tokens = (
            series(Histogram, name, help_, REQUEST, f"{objective}{old}", MODELS, buckets=buckets)
            for name, old, help_, buckets in (
                ("request_size_bytes", "request_sizes", "Incoming request body size distribution in bytes.", SIZES),
                (
                    *("response_size_bytes", "response_sizes", "Outgoing response body size distribution in bytes."),
                    RESPONSE_SIZES,
                ),
                ("request_input_tokens", "input_tokens", "Input token count distribution per request.", TOKENS),
                ("request_output_tokens", "output_tokens", "Output token count distribution per request.", TOKENS),
            )
        )
        self.attempts = series(
            Counter,
            "scheduler_attempts_total",
            "Total number of scheduling attempts.",
            ("status", "target_model_name", "endpoint_name", "namespace", "port"),
            f"{extension}scheduler_attempts_total",
            ("status", "target_model_name", "pod_name", "namespace", "port"),
            {"endpoint_name": "pod_name"},
        )
        self.scheduling = series(
            Histogram,
            "scheduler_e2e_duration_seconds",
            "End-to-end scheduling latency distribution in seconds.",
            (),
            f"{extension}scheduler_e2e_duration_seconds",
            (),
            buckets=SCHEDULING,
        )
        rewrite = ("model_rewrite_name", "model_name", "target_model")
        self.rewrites = series(
            Counter,
            "model_rewrite_decisions_total",
            "Total number of inference model rewrite decisions.",
            rewrite,
            f"{extension}model_rewrite_decisions_total",
            rewrite,
        )
        build = ("commit", "build_ref")
        info = series(Gauge, "info", "General information of the current build.", build, f"{extension}info", build)
        info.set(1, commit="emulated", build_ref="v0.10.0")
        self._averages, self._deviations = {}, {}
        for name, words in (
            ("kv_cache_utilization", "kv cache utilization"),
            ("queue_size", "number of requests pending in the model server queue"),
            ("running_requests", "number of running requests"),
        ):
            average, deviation = f"average_{name}", f"std_dev_{name}"
            self._averages[name] = series(
                Gauge, average, f"The average {words} of the pool.", ("name",), f"{inference_pool}{average}", ("name",)
            )
            self._deviations[name] = series(Gauge, deviation, f"The standard deviation of the {words}.", ("name",))
        self._ready = series(
            Gauge,
            "ready_endpoints",
            "The number of ready endpoints in the inference server pool.",
            ("name",),
            f"{inference_pool}ready_pods",
            ("name",),
        )
        self._queues = series(
            Gauge,
            "per_endpoint_queue_size",
            "The total number of requests pending in the model server queue for each underlying endpoint.",
            ("name", "model_server_endpoint"),
            f"{inference_pool}per_pod_queue_size",
            ("name", "model_server_pod"),
            {"model_server_endpoint": "model_server_pod"},
        )

    def render(self, endpoints: Sequence[Endpoint]) -> bytes:
        """The Prometheus text format, with what the endpoints say of themselves now."""
        self._ready.set(len(endpoints), name=self._pool)
        self._queues.clear()
        for endpoint in endpoints:
            self._queues.set(endpoint.load.waiting, name=self._pool, model_server_endpoint=endpoint.pod)
        for name, values in (
            ("kv_cache_utilization", [endpoint.load.kv_cache for endpoint in endpoints]),
            ("queue_size", [float(endpoint.load.waiting) for endpoint in endpoints]),
            ("running_requests", [float(endpoint.load.running) for endpoint in endpoints]),
        ):
            if values:
                self._averages[name].set(statistics.fmean(values), name=self._pool)
                self._deviations[name].set(statistics.pstdev(values), name=self._pool)
        return generate_latest(self.registry)
