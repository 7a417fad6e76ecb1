"""Scenario 06: TPU chips in place of cards, weights in a bucket, mounted into the server with GCS FUSE."""

from functools import partial

from pipelines.refresh import refresh
from serving.scenarios import find

pipeline = partial(refresh, find("tpu"))
