"""LoRA adapters that come, go and are replaced while the server runs: no pod starts again for them.

The generation is what has room for adapters (rank, how many), not which there are: those have a set of weights of
their own in the bucket, named in the ConfigMap `adapters-GENERATION`. A container of every pod brings that set, checks
it byte for byte, and has the engine load it (components/deploy_server/adapting.py).

vLLM's other way, its filesystem resolver, can neither replace an adapter nor take one away, serves only one whose
adapter_config.json names the base by the engine's own path, and opens the same routes. Source: vLLM 0.32.0
(vllm/entrypoints/openai/models/serving.py, vllm/plugins/lora_resolvers/filesystem_resolver.py).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from serving import names
from serving.clients import storage
from serving.errors import RequestError
from serving.features import Binding, Principal
from serving.values import Section as BaseSection
from serving.values import in_seconds
from serving.weights import adapter

if TYPE_CHECKING:
    from serving.settings import Settings
    from serving.weights.release import Release

FOLDER = "/adapters"
"""Where a pod has its adapters."""
CONTAINER = "adapters"
"""The container that sees to them."""
_MOST = 32
"""Adapters that the settings can name."""
_RESOURCES = {"cpu": "250m", "memory": "256Mi"}
"""What bringing a set of adapters needs, and looking at a file every second."""


class Section(BaseSection):
    """What the server has room for: a change of it makes a new generation, one of `adapters` within it does not."""

    max_rank: int = 64
    """The largest rank that an adapter may have: 1, 8, 16, 32, 64, 128, 256, 320 or 512. It takes a card's memory,
    whatever the adapters' own ranks are."""
    at_once: int = Field(4, ge=1, le=_MOST)
    """Adapters that one batch may mix, each with its own part of a card's memory; more wait in the host's."""

    @field_validator("max_rank")
    @classmethod
    def _one_that_the_engine_takes(cls, value: int) -> int:
        if value not in adapter.RANKS:
            raise ValueError(f"{value} is none of {', '.join(map(str, adapter.RANKS))}")
        return value


def values(settings: Settings, release: Release | None) -> dict[str, Any]:
    """Of the pods: the set of adapters that they are to have, and who sees to it."""
    if release is None:
        return {}
    plan = {
        "wanted": "/etc/adapters/wanted.json",
        "folder": FOLDER,
        "engine": f"http://$(POD_IP):{names.PORT}",
        "patience_seconds": in_seconds(settings.patience),
    }
    return {
        "wanted_adapters": wanted(release.adapters_uri),
        "adapt_plan": json.dumps(plan),
        "adapt_resources": dict(_RESOURCES),
    }


def wanted(adapters_uri: str) -> str:
    """The ConfigMap's word on what pods are to have."""
    return json.dumps({"weights_uri": adapters_uri})


def flags(settings: Settings, release: Release) -> list[str]:
    """Room for adapters, and the routes by which they change closed to all but the pod itself."""
    section = _section(settings)
    return [
        *("--enable-lora", "--max-lora-rank", str(section.max_rank)),
        *("--max-loras", str(section.at_once), "--max-cpu-loras", str(_MOST)),
        *("--middleware", "gemma_adapters.OwnPodAlone"),
    ]


def bindings(settings: Settings, principal: Principal) -> list[Binding]:
    """Pods bring adapters from the bucket as their own service account."""
    return [Binding(storage.READER_ROLE, principal(settings.namespace, settings.serving.service_account))]


def room(settings: Settings, largest: int) -> int:
    """The rank that the server is to have room for, where `largest` is that of an adapter (0: there is none). Raises
    RequestError for one that it has none for."""
    section = _section(settings)
    if largest > section.max_rank:
        raise RequestError(
            f"an adapter has the rank {largest}, and the server has room for {section.max_rank}: set "
            f"live_adapters.max_rank: {adapter.max_lora_rank([largest])}, which makes a new generation"
        )
    return section.max_rank


def _section(settings: Settings) -> Section:
    section: Section = settings.section("live-adapters")
    return section
