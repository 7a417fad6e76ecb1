"""Vertex AI's pipelineJobs, through Google's GAPIC clients over REST, held against the discovery document."""

from __future__ import annotations

import json

from tests.contract import vertex_pipelines as pipelines
from tests.contract.vertex_service import NUMBERED, compiled, states_of, vertex

__all__ = ["vertex"]


def test_a_run_does_what_was_posted(vertex, tmp_path):
    name = vertex.submit(compiled(pipelines.two_ways, tmp_path), "two-ways-1", word="gemma", options={"steps": 3})
    assert name == f"{NUMBERED}/pipelineJobs/two-ways-1"
    job = vertex.wait_for(name)
    assert job["state"] == "PIPELINE_STATE_SUCCEEDED", job
    print(json.dumps(job["jobDetail"], indent=1))
    assert states_of(job) == {}
