"""Who answers: the endpoint with the best weighed score; and whether the pool has room for what can be shed.

Scores are 0 to 1. Facts: GAIE v1.5.0, pkg/epp/framework/plugins/scheduling and flowcontrol/saturationdetector.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from emulated_cloud.gateway.picker import config
from emulated_cloud.gateway.picker.config import Config
from emulated_cloud.gateway.picker.engines import Endpoint

Scores = Mapping[Endpoint, float]


def least_of(values: Mapping[Endpoint, int]) -> Scores:
    """1 for the smallest, 0 for the largest; 1 for all when they are alike."""
    low, high = min(values.values()), max(values.values())
    return {endpoint: (high - value) / (high - low) if high > low else 1.0 for endpoint, value in values.items()}


def adapter_affinity(endpoint: Endpoint, model: str) -> float:
    """How good a place for a model's adapter: it runs there, there is room for one more, it waits there, or none."""
    load = endpoint.load
    if model in load.running_adapters:
        return 1.0
    if len(load.running_adapters) + len(load.waiting_adapters) < load.max_adapters:
        return 0.8
    return 0.6 if model in load.waiting_adapters else 0.0


class Scheduler:
    """Chooses as configured."""

    def __init__(self, settings: Config):
        self._settings = settings

    def pick(self, endpoints: Sequence[Endpoint], model: str, prefix_shares: Scores) -> Endpoint:
        """The endpoint for a request. `prefix_shares`: how much of its prompt each has had."""
        if self._settings.leaves_out_full:
            endpoints = [endpoint for endpoint in endpoints if self._has_room(endpoint)] or endpoints
        totals = self.scores(endpoints, model, prefix_shares)
        match self._settings.picker:
            case config.RANDOM:
                return random.choice(endpoints)
            case config.WEIGHTED_RANDOM if any(totals.values()):
                return random.choices(endpoints, [totals[endpoint] for endpoint in endpoints])[0]
        best = max(totals.values())
        return random.choice([endpoint for endpoint in endpoints if totals[endpoint] == best])

    def scores(self, endpoints: Sequence[Endpoint], model: str, prefix_shares: Scores) -> dict[Endpoint, float]:
        """The weighed sum of what each scorer says."""
        totals = dict.fromkeys(endpoints, 0.0)
        for kind, weight in self._settings.scorers:
            scores = self._score(kind, endpoints, model, prefix_shares)
            for endpoint in endpoints:
                totals[endpoint] += weight * min(max(scores[endpoint], 0.0), 1.0)
        return totals

    def _score(self, kind: str, endpoints: Sequence[Endpoint], model: str, prefix_shares: Scores) -> Scores:
        match kind:
            case config.QUEUE:
                return least_of({endpoint: endpoint.load.waiting for endpoint in endpoints})
            case config.RUNNING:
                return least_of({endpoint: endpoint.load.running for endpoint in endpoints})
            case config.KV_CACHE:
                return {endpoint: 1 - endpoint.load.kv_cache for endpoint in endpoints}
            case config.LORA:
                return {endpoint: adapter_affinity(endpoint, model) for endpoint in endpoints}
        return prefix_shares

    def saturation(self, endpoints: Sequence[Endpoint]) -> float:
        """How full the pool is; 1 and above sheds. An endpoint that does not say how it is counts as full."""
        if not endpoints:
            return 1.0
        return sum(map(self._fullness, endpoints)) / len(endpoints)

    def _fullness(self, endpoint: Endpoint) -> float:
        limits, load = self._settings.thresholds, endpoint.load
        if not _says_how_it_is(endpoint):
            return 1.0
        return max(load.waiting / limits.queue_depth, load.kv_cache / limits.kv_cache)

    def _has_room(self, endpoint: Endpoint) -> bool:
        limits, load = self._settings.thresholds, endpoint.load
        more = 1 + limits.headroom
        return (
            _says_how_it_is(endpoint)
            and load.waiting < limits.queue_depth * more
            and load.kv_cache < limits.kv_cache * more
        )


def _says_how_it_is(endpoint: Endpoint) -> bool:
    """It was asked just now (Engines.refresh); how old its figures are says how long the slowest of the pool took."""
    return endpoint.answers and endpoint.load.at > 0
