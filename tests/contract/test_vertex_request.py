"""What `submit` would send to Vertex AI Pipelines, held against the API's own schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pipelines.compile import compile_scenario
from serving.scenarios import SCENARIOS
from tests.contract.discovery import Conformance

PARAMETERS = {"project": "demo-project", "bucket": "demo-bucket", "settings": {"scenario": "gcs-fuse"}}


@pytest.fixture(scope="module")
def request_schema() -> dict[str, Any]:
    definitions = Conformance("aiplatform", "v1")._requests
    return {"$ref": "#/$defs/GoogleCloudAiplatformV1PipelineJob", "$defs": definitions}


def request_of(path: Path) -> dict[str, Any]:
    """The body that Vertex's own client makes of a compiled pipeline."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import aiplatform
    from google.protobuf import json_format

    aiplatform.init(project="demo-project", location="us-central1", credentials=AnonymousCredentials())
    job = aiplatform.PipelineJob(
        display_name="refresh",
        template_path=str(path),
        job_id="gemma-gcs-fuse-20261124",
        pipeline_root="gs://demo-bucket/pipelines",
        parameter_values=PARAMETERS,
        enable_caching=False,
        labels={"gemma-pipelines": "gcs-fuse"},
    )
    return json_format.MessageToDict(job._gca_resource._pb)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_vertex_takes_the_compiled_pipeline(scenario, tmp_path, request_schema):
    body = request_of(compile_scenario(scenario, tmp_path))
    jsonschema.Draft202012Validator(request_schema).validate(body)
    assert body["runtimeConfig"]["parameterValues"] == PARAMETERS
    assert body["pipelineSpec"]["root"]["dag"]["tasks"].keys() == {"exit-handler-1", "write-report"}
    assert len(json.dumps(body)) < 1_000_000


def test_the_schema_refuses_what_vertex_does_not_know(request_schema):
    with pytest.raises(jsonschema.ValidationError, match="displayname"):
        jsonschema.Draft202012Validator(request_schema).validate({"displayname": "x"})
