"""What a pod says of itself in Prometheus' text format."""

from __future__ import annotations

from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from emulated_cloud.kubernetes.client import Object


async def scrape(
    session: aiohttp.ClientSession, pod: Object, port: int, path: str
) -> list[tuple[str, dict[str, str], float]]:
    """(name, labels, value) of every gauge that the pod shows. Raises aiohttp.ClientError, TimeoutError, ValueError."""
    async with session.get(f"http://{pod['status']['podIP']}:{port}{path}") as answer:
        answer.raise_for_status()
        text = await answer.text()
    families: Any = text_string_to_metric_families(text)
    return [
        (sample.name, dict(sample.labels), float(sample.value))
        for family in families
        if family.type == "gauge"
        for sample in family.samples
    ]
