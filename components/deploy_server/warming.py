"""Reading a release's weights into the Rapid Cache of every serving zone, before its pods start and wait for bytes."""

from __future__ import annotations

import json
from typing import Any

from serving.clients.kubernetes import Cluster
from serving.clients.rapid_cache import Cache
from serving.deployment import caches, objects
from serving.deployment.job import Work, run_jobs
from serving.errors import InconclusiveError, PipelineError, RequestError
from serving.outcome import Outcome
from serving.rendering import engine, render
from serving.settings import Settings, in_seconds
from serving.weights.release import Release

ONE_CORE = {"cpu": "1", "memory": "512Mi"}
"""What reading and hashing needs: on Autopilot a request is a limit too."""


def warm(cluster: Cluster, settings: Settings, release: Release, outcome: Outcome) -> None:
    """Reads the weights once from a machine in each zone that is to have a cache, all at once.

    Raises InconclusiveError, or RequestError, for a zone in which that could not be done: no machine, no cache.
    """
    caching = caches.wanted(settings)
    if caching is None:
        return
    ready = caches.wait_until_running(settings, outcome.say)
    for item in render.shared(settings):
        if item["kind"] == "ServiceAccount":  # Whom the bucket is open to.
            objects.put(cluster, item, outcome.say)
    capacity = in_seconds(settings.serving.capacity_timeout)
    ends = run_jobs(
        cluster,
        settings,
        [Work(_arguments(settings, release, cache), zone, _pod(settings, zone)) for zone, cache in ready.items()],
        step="deploy-server",
        run_id=release.run_id,
        generation=release.generation,
        image=engine.component_image(settings),
        timeout=capacity + caching.timeout_seconds,
        say=outcome.say,
        resources=ONE_CORE,
        capacity=capacity,
    )
    results = dict(zip(ready, ends, strict=True))
    for zone, end in results.items():
        if not isinstance(end, PipelineError):
            caches.is_warm(settings, release, zone, ready[zone])
    errors = {zone: end for zone, end in results.items() if isinstance(end, PipelineError)}
    if errors:
        words = "; ".join(f"nothing was read into the Rapid Cache in {zone}: {error}" for zone, error in errors.items())
        kind = RequestError if any(isinstance(error, RequestError) for error in errors.values()) else InconclusiveError
        raise kind(f"{words}. gcs_fuse.rapid_cache_zones leaves a zone out")
    outcome.details["rapid_cache"] = results
    outcome.say(f"the weights are in the Rapid Cache of {', '.join(ready)}")


def _arguments(settings: Settings, release: Release, cache: Cache) -> list[str]:
    plan: dict[str, Any] = {
        "weights_uri": release.weights_uri,
        # Who made the cache may have chosen so.
        "times": 2 if cache.admission == "admit-on-second-miss" else 1,
        "patience_seconds": in_seconds(settings.patience),
    }
    return ["-m", "components.deploy_server", "read", json.dumps(plan)]


def _pod(settings: Settings, zone: str) -> dict[str, Any]:
    return {
        "serviceAccountName": settings.serving.service_account,
        "nodeSelector": {"topology.kubernetes.io/zone": zone},
    }
