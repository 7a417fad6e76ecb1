"""Scenario 04: weights on a Hyperdisk ML volume, a read-only copy of it in every zone."""

from functools import partial

from pipelines.refresh import refresh
from serving.scenarios import find

pipeline = partial(refresh, find("hyperdisk-ml"))
