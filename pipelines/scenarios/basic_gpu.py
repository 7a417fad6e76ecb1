"""Scenario 01: weights streamed from a bucket, and as many pods as the queue of requests asks for."""

from functools import partial

from pipelines.refresh import refresh
from serving.scenarios import find

pipeline = partial(refresh, find("basic-gpu"))
