"""Gates of a team's own (`validation.jobs`): Jobs from their images, which judge a generation after our own checks."""

from __future__ import annotations

import json
import time
from typing import Any

from serving.clients.kubernetes import Cluster, Object
from serving.deployment.job import run_job
from serving.errors import InconclusiveError
from serving.log import Say
from serving.rendering import engine
from serving.settings import Gate, Settings, in_seconds
from serving.weights.release import Release

_REASONS, _LENGTH = 20, 600
"""Reasons of a gate that count, and characters of each."""


def judge(
    cluster: Cluster, settings: Settings, release: Release, url: str, env: list[Object], say: Say
) -> list[dict[str, Any]]:
    """What each gate said, in their order: `{"image", "passed", "reasons": [words], "seconds"}`. One at a time, since
    each may measure; and none after one that said no.

    `env`: what brings the server's API key. Raises InconclusiveError for a gate that ended without a verdict.
    """
    found: list[dict[str, Any]] = []
    for number, gate in enumerate(settings.validation.jobs, 1):
        say(f"gate {number} of {len(settings.validation.jobs)}: {gate.image}")
        started = time.monotonic()
        result = run_job(
            cluster,
            settings,
            step="validate-server",
            part=f"gate-{number}",
            run_id=release.run_id,
            generation=release.generation,
            program=(),
            args=gate.args,
            image=engine.mirrored(settings, gate.image),
            timeout=in_seconds(gate.timeout) + in_seconds(settings.serving.capacity_timeout),
            say=say,
            env=[
                {"name": "GEMMA_PIPELINES_URL", "value": url},
                {"name": "GEMMA_PIPELINES_MODEL", "value": settings.model},
                {"name": "GEMMA_PIPELINES_GENERATION", "value": release.generation},
                *env,
            ],
            resources={"cpu": gate.cpu, "memory": gate.memory},
        )
        reasons = against(number, gate, result)
        seconds = round(time.monotonic() - started, 3)
        found.append({"image": gate.image, "passed": not reasons, "reasons": reasons, "seconds": seconds})
        if reasons:
            break
    return found


def against(number: int, gate: Gate, result: dict[str, Any]) -> list[str]:
    """What a gate has against the release; nothing when it passed. Raises InconclusiveError for what is no verdict."""
    passed, reasons = result.get("passed"), result.get("reasons", [])
    if not isinstance(passed, bool) or not isinstance(reasons, list):
        raise InconclusiveError(
            f"gate {number} ({gate.image}) ended with {json.dumps(result)[:200]}, which is no verdict: the last line "
            'of its log has to be {"passed": true or false, "reasons": [words]}'
        )
    if passed:
        return []
    words = [str(reason)[:_LENGTH] for reason in reasons[:_REASONS]] or ["it does not say why"]
    return [f"gate {number} ({gate.image}): {reason}" for reason in words]
