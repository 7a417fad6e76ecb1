"""What the engines say of themselves: asked when somebody wants to know, once an interval at most."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

log = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
"""How long an engine may take to say how it is: more than one takes that is there, on a machine that is busy."""


WAITING, RUNNING, KV_CACHE = "vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"
ADAPTERS, CACHE = "vllm:lora_requests_info", "vllm:cache_config_info"
_READ = tuple(f"{name}{{" for name in (WAITING, RUNNING, KV_CACHE, ADAPTERS, CACHE))


@dataclass(frozen=True)
class Load:
    """An engine at a moment (`at`, monotonic seconds; 0: never asked with success).

    kv_cache: share in use, 0 to 1. running_adapters, waiting_adapters: of requests now; max_adapters: at once.
    block_tokens: of its KV cache, 0 if it does not say.
    """

    at: float = 0.0
    waiting: int = 0
    running: int = 0
    kv_cache: float = 0.0
    running_adapters: frozenset[str] = frozenset()
    waiting_adapters: frozenset[str] = frozenset()
    max_adapters: int = 0
    block_tokens: int = 0


@dataclass(eq=False)
class Endpoint:
    """A port of a ready pod of the pool."""

    pod: str
    namespace: str
    address: str
    port: int
    load: Load = field(default_factory=Load)
    asked: float = 0.0
    asking: asyncio.Task[None] | None = None
    answers: bool = True
    """Whether it did when it was asked last."""

    @property
    def name(self) -> str:
        """As Envoy knows it."""
        return f"{self.address}:{self.port}"


def read(text: str, at: float) -> Load:
    """vLLM's metrics (docs.vllm.ai, Production Metrics); those that are not there count as 0. Raises ValueError."""
    values: dict[str, float] = {}
    adapters: dict[str, str] = {}
    newest, block_tokens = float("-inf"), 0
    # An engine shows hundreds of other lines, and is asked for each request.
    lines = "\n".join(line for line in text.splitlines() if line.startswith(_READ))
    for family in text_string_to_metric_families(lines + "\n"):
        for sample in family.samples:
            if sample.name == ADAPTERS:
                # Each state of the adapters is a series of its own; its value is when it was.
                if sample.value > newest:
                    newest, adapters = sample.value, sample.labels
            elif sample.name == CACHE:
                size = sample.labels.get("block_size", "")
                block_tokens = int(size) if size.isdigit() else 0
            else:
                values[sample.name] = sample.value
    return Load(
        at,
        int(values.get(WAITING, 0)),
        int(values.get(RUNNING, 0)),
        values.get(KV_CACHE, 0.0),
        _names(adapters.get("running_lora_adapters", "")),
        _names(adapters.get("waiting_lora_adapters", "")),
        int(adapters.get("max_lora", 0)),
        block_tokens,
    )


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())


class Engines:
    """Asks endpoints for their load, each once every `interval` seconds at most, with one question open at most."""

    def __init__(self, session: aiohttp.ClientSession, interval: float):
        self._session, self._interval = session, interval

    async def refresh(self, endpoints: Collection[Endpoint]) -> None:
        """Returns when each has said how it is, or has had ANSWER_SECONDS to; those that did not answer the last time
        are asked, and not waited for: what is frozen holds up nobody twice."""
        now = time.monotonic()
        for endpoint in endpoints:
            if endpoint.asking is None and now - endpoint.asked >= self._interval:
                endpoint.asked = now
                endpoint.asking = asyncio.create_task(self._ask(endpoint))
        tasks = [endpoint.asking for endpoint in endpoints if endpoint.asking and endpoint.answers]
        if tasks:
            await asyncio.wait(tasks)

    async def _ask(self, endpoint: Endpoint) -> None:
        try:
            timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
            async with self._session.get(f"http://{endpoint.name}/metrics", timeout=timeout) as answer:
                answer.raise_for_status()
                endpoint.load = read(await answer.text(), time.monotonic())
                endpoint.answers = True
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
            log.info("metrics of %s: %s", endpoint.name, error or type(error).__name__)
            endpoint.answers = False
        finally:
            endpoint.asking = None
