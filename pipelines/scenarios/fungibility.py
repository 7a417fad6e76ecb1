"""Scenario 07: a GPU or a TPU, whichever node is to be had first; weights as in 03."""

from functools import partial

from pipelines.refresh import refresh
from serving.scenarios import find

pipeline = partial(refresh, find("fungibility"))
