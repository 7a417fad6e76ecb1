"""Scenario 02: nodes start with a disk that has the engine's image; weights as in 03."""

from functools import partial

from pipelines.refresh import refresh
from serving.scenarios import find

pipeline = partial(refresh, find("secondary-boot-disk"))
