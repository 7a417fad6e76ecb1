"""Settings files: read with lines for errors, changed from the command line, and written as an example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from serving import features
from serving.errors import RequestError
from serving.scenarios import SCENARIOS, Scenario
from serving.settings import Settings, commented_example, load, override, read_values, validated
from serving.settings.sections import section_of

BASE: dict[str, Any] = {"scenario": "gcs-fuse", "project": "demo-project", "bucket": "demo-bucket"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.yaml"


def refusal(file: Path, text: str) -> str:
    file.write_text(text)
    with pytest.raises(RequestError) as caught:
        load(file)
    return str(caught.value)


def test_a_file_is_read(file: Path):
    file.write_text("scenario: gcs-fuse\nproject: demo-project\nbucket: demo-bucket\nserving: {replicas: 2}\n")
    assert load(file).serving.replicas == 2


def test_each_wrong_key_is_named_with_its_line_in_the_order_of_the_file(file: Path):
    said = refusal(
        file,
        "scenario: gcs-fuse\n"
        "project: demo-project\n"
        "namespace: Bad\n"
        "serving:\n"
        "  replicas: 2\n"
        "  exposre: internal\n"
        "validation:\n"
        "  prompts:\n"
        "  - content: hello\n"
        "    pattern: '('\n",
    ).splitlines()
    assert [line.removeprefix(str(file)).split(": ")[:2] for line in said] == [
        [":1", "bucket"],
        [":3", "namespace"],
        [":6", "serving.exposre"],
        [":10", "validation.prompts.0.pattern"],
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", " is empty: `gemma-pipelines init SCENARIO` writes an example"),
        ("# nothing\n", " is empty"),
        ("- a\n", " is not a mapping"),
        ("a: b: c\n", ":1: mapping values are not allowed here"),
        ("a: [1\n", ":2: expected ',' or ']'"),
        ("project: a\nbucket: b\nproject: c\n", ":3: project is given twice, first in line 1"),
        ("serving:\n  replicas: 1\n  replicas: 2\n", ":3: replicas is given twice, first in line 2"),
        ("a: 1\n---\nb: 2\n", ":2: but found another document"),
        ("? [a]\n: 1\n", ":1: a key has to be text"),
        ("a: \x07\n", ": unacceptable character"),
        ("a: !!python/object:os.system {}\n", "could not determine a constructor"),
        ("a: *nobody\n", ":1: found undefined alias"),
    ],
)
def test_a_file_that_is_not_settings_is_refused_with_its_line(file: Path, text: str, words: str):
    assert words in refusal(file, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: google/gemma-9\nassistant: {model: a/b}\n", "3: assistant.num_speculative_tokens is needed"),
        ("name: x\nengine:\n  sizing_like: a/b\n", "4: engine.sizing_like: is now gone: the model's own files say"),
        ("accelerator:\n  type: nvidia-l4\n  count: 3\n", "4: accelerator.count: GKE puts"),
        ("model: google/gemma-3-27b-it\naccelerator: {count: 2}\n", "3: accelerator: google/gemma-3-27b-it on 2 × "),
        (
            "model: google/gemma-4-E4B-it\nengine:\n  concurrent_requests: 1\n  max_model_len: 131072\n"
            "  gpu_memory_utilization: 0.8\n",
            "5: engine.max_model_len: google/gemma-4-E4B-it on 1 × nvidia-l4 cannot start: ",
        ),
        ("name: x\nserving:\n  exposure: public\n", "4: serving.exposure public needs a key that clients have to show"),
        ("name: x\nfeatures: [nope]\n", "3: features: 'nope' is no feature"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_line_of_what_it_is_about(file: Path, text: str, words: str):
    assert f"{file}:{words}" in refusal(file, f"scenario: gcs-fuse\n{text}project: demo-project\nbucket: demo-bucket\n")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path):
    with pytest.raises(RequestError, match=r"none\.yaml does not exist: `gemma-pipelines init"):
        load(tmp_path / "none.yaml")
    with pytest.raises(RequestError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(RequestError, match="cannot be read"):
        load(tmp_path / "latin.yaml")


def test_an_anchor_may_be_used_twice(file: Path):
    file.write_text("labels: &l {team: a}\nannotations: *l\n")
    assert read_values(file) == {"labels": {"team": "a"}, "annotations": {"team": "a"}}


def test_the_command_line_changes_values_and_leaves_the_given_ones_alone():
    given = {**BASE, "serving": {"replicas": 2}}
    changed = override(
        given,
        [
            "serving.replicas=3",
            "serving.exposure=internal",
            "engine.max_model_len=4096",
            "capacity=spot",
            "revision=1234567",
            "hub.token_secret=null",
            "validation.concurrencies=[1, 2]",
            "labels.example.com/team=a",
        ],
    )
    assert given["serving"] == {"replicas": 2}
    assert changed["serving"] == {"replicas": 3, "exposure": "internal"}
    assert changed["revision"] == "1234567"
    config = validated(Settings, changed)
    assert (config.engine.max_model_len, config.capacity, config.hub.token_secret) == (4096, "spot", None)
    assert config.validation.concurrencies == [1, 2]
    assert config.labels == {"example.com/team": "a"}


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("replicas", "write KEY=VALUE"),
        ("=3", "write KEY=VALUE"),
        ("engin.image=x", "unknown key engin; did you mean engine?"),
        ("engine.imgae=x", "unknown key imgae; did you mean image?"),
        ("engine=x", "name one of its keys (image, "),
        ("project.id=x", "project has no keys; set it whole"),
        ("engine.extra_args=[a", "--set engine.extra_args:1: expected ',' or ']'"),
    ],
)
def test_a_wrong_assignment_is_refused(assignment: str, words: str):
    with pytest.raises(RequestError) as caught:
        override(BASE, [assignment])
    assert words in str(caught.value)


def test_an_error_from_the_command_line_is_not_blamed_on_the_file(file: Path):
    file.write_text("scenario: gcs-fuse\nproject: demo-project\nbucket: demo-bucket\nserving:\n  replicas: 1\n")
    values = override(read_values(file), ["serving.replicas=0", "engine.quantization=[1]"])
    with pytest.raises(RequestError) as caught:
        validated(Settings, values, file)
    assert all(line.startswith("--set ") for line in str(caught.value).splitlines())


def keys(section: type[BaseModel], above: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """The path of every setting."""
    found = set()
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation) if field.default is not None else None
        found |= keys(inner, (*above, name)) if inner else {(*above, name)}
    return found


def paths(values: dict[str, Any], known: set[tuple[str, ...]], above: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    found = set()
    for name, value in values.items():
        path = (*above, name)
        found |= {path} if path in known or not isinstance(value, dict) else paths(value, known, path)
    return found


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_example_says_everything_and_means_the_defaults(file: Path, scenario: Scenario):
    file.write_text(commented_example(scenario.name))
    example = load(file)
    minimal = {"scenario": scenario.name, "project": example.project, "bucket": example.bucket}
    assert example == validated(Settings, minimal)
    of_others = features.sections().keys() - set(map(features.section_name, scenario.features))
    if not example.has_gateway:
        of_others = {*of_others, "canary"}
    known = {path for path in keys(Settings) if path[0] not in of_others}
    assert paths(yaml.safe_load(file.read_text()), known) == known


def test_every_key_of_the_example_is_explained():
    def explained(section: type[BaseModel]) -> None:
        for name, field in section.model_fields.items():
            inner = section_of(field.annotation)
            assert inner.__doc__ if inner else field.description, f"{section.__name__}.{name} says nothing"
            if inner:
                explained(inner)

    explained(Settings)


def test_gemma_4_is_one_line_away(file: Path):
    text = commented_example("gcs-fuse")
    assert "Gemma 4 is one line away: google/gemma-4-E4B-it" in text
    file.write_text(text.replace("model: google/gemma-3-4b-it", "model: google/gemma-4-E4B-it"))
    assert load(file).model == "google/gemma-4-E4B-it"
