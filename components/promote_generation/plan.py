"""What the Job of a canary's step is asked to do, and how it says the worst at once."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

WORSE = "worse: "
"""How the line begins that says so at once: the step gives the requests back before the Job has ended."""


class Plan(BaseModel):
    """What is compared, for how long, and what is too much."""

    model_config = ConfigDict(frozen=True)

    step: int
    percent: int
    live: str
    candidate: str
    pods: dict[str, list[str]]
    """Generation → addresses of its pods."""
    seconds: float
    """How much is left of the step."""
    held: float
    """How long a step is, in seconds."""
    max_error_rate: float
    max_p95_first_token_ratio: float
    """0 does not judge."""
    min_requests: int
