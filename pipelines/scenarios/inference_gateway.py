"""Scenario 05: a Gateway that asks an endpoint picker which pod answers."""

from functools import partial

from pipelines.refresh import refresh
from serving.scenarios import find

pipeline = partial(refresh, find("inference-gateway"))
