"""Letting a generation that gets no more requests finish those that it still runs."""

from __future__ import annotations

import math
import time

from serving.clients.kubernetes import Cluster
from serving.deployment import pods
from serving.deployment.job import run_job
from serving.errors import PipelineError
from serving.log import Say
from serving.rendering import engine
from serving.settings import Settings, in_seconds


def drain(cluster: Cluster, settings: Settings, generation: str, *, run_id: str, say: Say) -> None:
    """Returns when the generation's requests have reached zero, or `drain_seconds` have passed; behind a load balancer,
    which still sends requests by the old weights for a while, not before `canary.settle`.

    A Job asks, since only the cluster reaches the pods. When it cannot, the whole time is waited: the traffic has
    moved, and a promotion is not undone for want of a figure.
    """
    addresses = pods.addresses(cluster, settings, generation, ending=True)
    settle = math.ceil(in_seconds(settings.canary.settle)) if settings.has_gateway else 0
    seconds = max(settings.serving.drain_seconds, settle)
    if not addresses or not seconds:
        return
    say(f"draining {generation}: up to {seconds} s for the requests it still runs")
    started = time.monotonic()
    try:
        result = run_job(
            cluster,
            settings,
            step="promote-generation",
            # A run may drain two: a canary's candidate that it takes back, then the one that it replaces.
            part=f"drain-{generation}",
            run_id=run_id,
            generation=generation,
            args=["-m", "components.promote_generation", "drain", str(seconds), str(settle), *addresses],
            image=engine.component_image(settings),
            timeout=seconds + 120,
            say=say,
        )
        say(f"drained {generation} in {result['seconds']:.1f} s, {result['running']} requests left")
    except PipelineError as error:
        say(f"cannot see whether {generation} is drained ({error}); waiting {seconds} s instead")
        time.sleep(max(0.0, seconds - (time.monotonic() - started)))
