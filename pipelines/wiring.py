"""What every task of every scenario gets: a name for the console, no cache, and a second try where that is safe."""

from __future__ import annotations

from typing import Any


def step(task: Any, display_name: str) -> Any:
    """A task under its display name, never cached: every step reads or writes the world, which no cache key holds."""
    return task.set_display_name(display_name).set_caching_options(False)


def retried(task: Any) -> Any:
    """The task, tried again when its machine went away: steps are idempotent.

    An API that is away is waited for inside the step, and a final error ends the next attempts at once
    (serving/outcome.py), so the pause can be short.
    """
    return task.set_retry(num_retries=2, backoff_duration="1s", backoff_factor=2.0, backoff_max_duration="60s")
