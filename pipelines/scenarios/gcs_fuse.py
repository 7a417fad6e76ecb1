"""Scenario 03: weights in a bucket, mounted into the server with GCS FUSE."""

from functools import partial

from pipelines.refresh import refresh
from serving.scenarios import find

pipeline = partial(refresh, find("gcs-fuse"))
