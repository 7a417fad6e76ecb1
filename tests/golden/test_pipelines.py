"""Compiled pipelines: what Vertex is given, compared with golden files both ways, and what must hold of every one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compile import compile_scenario
from serving.image import DEFAULT, VERSION
from serving.scenarios import SCENARIOS, Scenario

GOLDEN = Path(__file__).parent / "pipelines"
MUTATING = {"ensure-access", "download-weights", "deploy-server", "promote-generation", "discard-generation"}

each_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("compiled")
    return {scenario.name: compile_scenario(scenario, folder) for scenario in SCENARIOS}


def load(path: Path) -> dict[str, Any]:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert len(documents) == 1, "Vertex's client takes one document"
    return documents[0]


def tasks(specification: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every task of every (sub-)DAG by its name; with `_dag`, the name of the DAG that holds it."""
    dags = {"root": specification["root"], **specification["components"]}
    return {
        name: {**task, "_dag": dag}
        for dag, component in dags.items()
        for name, task in component.get("dag", {}).get("tasks", {}).items()
    }


def conditions_above(specification: dict[str, Any], task: str) -> list[str]:
    """The trigger conditions that must hold for a task to run, outermost last."""
    found, everything = [], tasks(specification)
    holder = {t["componentRef"]["name"]: name for name, t in everything.items()}
    name: str | None = task
    while name:
        policy = everything[name].get("triggerPolicy", {})
        if "condition" in policy:
            found.append(policy["condition"])
        name = holder.get(everything[name]["_dag"])
    return found


def verdicts(specification: dict[str, Any]) -> list[str]:
    """The steps that hand a verdict on, from the first to the last."""
    judged_by = {
        name: task["inputs"]["parameters"]["passed"]["taskOutputParameter"]["producerTask"]
        for name, task in tasks(specification).items()
        if "passed" in task.get("inputs", {}).get("parameters", {})
    }
    (last,) = judged_by.keys() - judged_by.values()
    chain = [last]
    while chain[0] in judged_by:
        chain.insert(0, judged_by[chain[0]])
    return chain


@each_scenario
def test_the_compiled_pipeline_is_the_golden_one(scenario: Scenario, compiled, update_golden):
    specification = load(compiled[scenario.name])
    del specification["sdkVersion"]
    text = yaml.safe_dump(specification, sort_keys=True, allow_unicode=True)
    golden = GOLDEN / f"{scenario.name}.yaml"
    if update_golden:
        golden.write_text(text)
    assert text == golden.read_text(), "reviewed and meant? then: make golden"


def test_there_is_no_golden_file_that_nothing_compiles_to():
    assert {path.stem for path in GOLDEN.iterdir()} == {scenario.name for scenario in SCENARIOS}


@each_scenario
def test_nothing_is_promoted_without_the_last_verdict(scenario: Scenario, compiled):
    specification = load(compiled[scenario.name])
    assert verdicts(specification)[:3] == ["download-weights", "deploy-server", "validate-server"]
    conditions = conditions_above(specification, "promote-generation")
    assert any(f"{verdicts(specification)[-1]}-passed'] == true" in condition for condition in conditions)


@each_scenario
def test_what_fails_is_discarded_and_what_passes_is_not(scenario: Scenario, compiled):
    specification = load(compiled[scenario.name])
    conditions = conditions_above(specification, "discard-generation")
    last = verdicts(specification)[-1]
    assert any(re.search(rf"!\(.*{last}-passed'] == true\)", condition) for condition in conditions)


def test_the_disk_is_baked_beside_the_download_and_there_before_the_deploy(compiled):
    every = tasks(load(compiled["secondary-boot-disk"]))
    assert every["bake-disk-image"]["dependentTasks"] == ["ensure-access"]
    assert set(every["deploy-server"]["dependentTasks"]) == {"bake-disk-image", "download-weights"}
    assert verdicts(load(compiled["secondary-boot-disk"]))[-1] == "verify-image-cache"


@each_scenario
def test_nothing_is_done_when_there_is_nothing_to_do(scenario: Scenario, compiled):
    specification = load(compiled[scenario.name])
    for name in tasks(specification).keys() & MUTATING:
        conditions = conditions_above(specification, name)
        assert any("resolve-model-Output'] == true" in condition for condition in conditions), name


@each_scenario
def test_the_exit_handler_writes_the_report_whatever_happened(scenario: Scenario, compiled):
    task = tasks(load(compiled[scenario.name]))["write-report"]
    assert task["_dag"] == "root"
    assert task["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert task["dependentTasks"] == ["exit-handler-1"]


@each_scenario
def test_no_step_is_cached(scenario: Scenario, compiled):
    steps = {n: t for n, t in tasks(load(compiled[scenario.name])).items() if not n.startswith(("condition", "exit"))}
    assert steps.keys() >= MUTATING
    for name, task in steps.items():
        assert not task.get("cachingOptions", {"enableCache": True}).get("enableCache", False), name


@each_scenario
def test_steps_are_tried_again_but_for_those_that_fail_on_purpose_or_at_the_end(scenario: Scenario, compiled):
    steps = {n: t for n, t in tasks(load(compiled[scenario.name])).items() if not n.startswith(("condition", "exit"))}
    assert {name for name, task in steps.items() if "retryPolicy" not in task} == {"discard-generation", "write-report"}


@each_scenario
def test_another_attempt_comes_at_once_and_none_is_lost_to_a_step_that_takes_long(scenario: Scenario, compiled):
    policies = [task["retryPolicy"] for task in tasks(load(compiled[scenario.name])).values() if "retryPolicy" in task]
    assert policies
    # Nobody waits for the attempts after a final error. The longest pause is kfp's default: open-source KFP counts it
    # from the first attempt's start.
    expected = {"maxRetryCount": 2, "backoffDuration": "0s", "backoffFactor": 2.0, "backoffMaxDuration": "3600s"}
    assert all(policy == expected for policy in policies)


@each_scenario
def test_verdicts_go_through_one_chain_under_one_name(scenario: Scenario, compiled):
    specification = load(compiled[scenario.name])
    for name, task in tasks(specification).items():
        inputs = task.get("inputs", {}).get("parameters", {})
        if "passed" not in inputs:
            continue
        before = inputs["passed"]["taskOutputParameter"]
        assert before == {"outputParameterKey": "passed", "producerTask": before["producerTask"]}, name
        assert inputs["reasons"]["taskOutputParameter"] == {**before, "outputParameterKey": "reasons"}, name
        outputs = specification["components"][f"comp-{name}"]["outputDefinitions"]["parameters"]
        assert outputs.keys() >= {"passed", "reasons"}, name


@each_scenario
def test_the_step_is_the_container_s_first_process(scenario: Scenario, compiled):
    """The one that is told to end; tests/contract/test_told_to_end.py tells it."""
    for executor in load(compiled[scenario.name])["deploymentSpec"]["executors"].values():
        shell, _, script = executor["container"]["command"][:3]
        assert shell == "sh"
        assert script.rstrip().splitlines()[-1].startswith("exec env _KFP_RUNTIME=true python3 -m "), script


@each_scenario
def test_the_same_is_compiled_every_time(scenario: Scenario, compiled, tmp_path):
    assert compile_scenario(scenario, tmp_path).read_bytes() == compiled[scenario.name].read_bytes()


@each_scenario
def test_every_step_has_a_name_for_the_console(scenario: Scenario, compiled):
    for name, task in tasks(load(compiled[scenario.name])).items():
        if not name.startswith(("condition", "exit")):
            assert task["taskInfo"]["name"] != name


@each_scenario
def test_nothing_looks_like_a_token(scenario: Scenario, compiled):
    text = compiled[scenario.name].read_text()
    assert not re.search(r"hf_[A-Za-z0-9]{8,}|ya29\.|AIza[\w-]{30}|BEGIN [A-Z ]*PRIVATE KEY|Bearer ", text)


@each_scenario
def test_a_person_finds_at_most_eight_parameters(scenario: Scenario, compiled):
    parameters = load(compiled[scenario.name])["root"]["inputDefinitions"]["parameters"]
    assert len(parameters) <= 8


@each_scenario
def test_what_was_compiled_is_a_constant_that_no_parameter_can_lose(scenario: Scenario, compiled, tmp_path):
    ours = "europe-docker.pkg.dev/p/r/python-components@sha256:" + "0" * 64
    text = compile_scenario(scenario, tmp_path, ours).read_text()
    specification = yaml.safe_load(text)
    images = {item["container"]["image"] for item in specification["deploymentSpec"]["executors"].values()}
    assert images == {ours}
    assert tasks(specification)["resolve-model"]["inputs"]["parameters"]["compiled"]["runtimeValue"]["constant"] == {
        "scenario": scenario.name,
        "features": list(scenario.features),
        "image": ours,
        "version": VERSION,
    }
    parameters = specification["root"]["inputDefinitions"]["parameters"]
    assert "compiled" not in parameters
    assert parameters["settings"]["defaultValue"] == {"scenario": scenario.name}
    assert DEFAULT not in text
