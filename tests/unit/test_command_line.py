"""The command line: what it refuses before anything starts, in one clear line, with exit code 2 and no data."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

import pytest
import yaml
from emulated_cloud.real import parts

from pipelines import cli, local
from pipelines.cli.run import _print_result, _request_was_wrong
from serving.errors import InconclusiveError
from serving.scenarios import SCENARIOS


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs `gemma-pipelines …` in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gemma-pipelines", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "09"], "there is no scenario '09'. There are: 03 (gcs-fuse)"),
        (["run", "gcs-fus"], "Did you mean gcs-fuse?"),
        (["run", "03", "-f", "none.yaml"], "none.yaml does not exist"),
        (["run", "03", "--set", "engine.max_model_lens=1"], "did you mean max_model_len?"),
        (["run", "03", "--set", "model"], "--set model"),
        (["run", "03", "--set", "serving.replicas=many"], "serving.replicas"),
        (["run", "03", "--set", "serving.drain_seconds=2m"], "serving.drain_seconds"),
        (["run", "03", "--set", "bucket=Not_A_Bucket"], "bucket"),
        (["run", "03", "--set", f"name={'n' * 64}"], "name"),
        (["run", "03", "--set", f"namespace={'n' * 64}"], "namespace"),
        (["run", "03", "--set", "model=google/gemma-3-4b"], "google/gemma-3-4b-it"),
        (["run", "03", "--set", "model=google/gemma-3-12b-it"], "cannot start"),
        (["run", "03", "--set", "serving.exposure=public"], "api_key_secret"),
        (["run", "03", "--real", "vlm"], "no real part 'vlm'; there are: control-plane, gcsfuse, vllm"),
        (["run", "03", "--real", "gcsfuse,"], "no real part ''; there are: control-plane, gcsfuse, vllm"),
        (["run", "03", "--real", ""], "no real part ''; there are: control-plane, gcsfuse, vllm"),
        (["run", "03", "--weights", "nowhere"], "--weights nowhere is not a folder"),
        (["compile"], "name scenarios, or say --all"),
        (["compile", "03", "--all"], "name scenarios, or say --all"),
        (["promote"], "which deployment?"),
        (["rollback", "--state", "nowhere"], "nowhere is not the state of a run"),
        (["report", "no-such-run", "--state", "nowhere"], "no report of a run 'no-such-run'"),
        (["render", "03", "-f", "none.yaml"], "none.yaml does not exist"),
    ],
)
def test_a_wrong_request_is_one_clear_error(command, arguments, words):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_a_state_folder_that_is_something_else_is_left_alone(command, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    code, _, err = command("run", "03", "--state", "mine")
    assert code == 2
    assert "not the state of a run" in err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_a_state_folder_that_is_a_file_is_refused(command, tmp_path):
    (tmp_path / "file").write_text("")
    assert command("run", "03", "--state", "file")[0] == 2


def test_the_state_of_another_scenario_is_refused(command, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "scenario.json").write_text(json.dumps({"scenario": "tpu"}))
    code, _, err = command("run", "03", "--state", "state")
    assert code == 2
    assert "is the state of scenario tpu" in err


@pytest.fixture
def unbuilt(monkeypatch, tmp_path):
    """A machine on which nobody has built a real part."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def state_with(folder, real: list[str]) -> None:
    folder.mkdir()
    (folder / "scenario.json").write_text(json.dumps({"scenario": "gcs-fuse", "real": real}))
    (folder / "settings.json").write_text(
        local.settings_for({"scenario": "gcs-fuse", **local.DEFAULTS}, None).model_dump_json()
    )


@pytest.mark.parametrize("part", ["control-plane", "gcsfuse", "vllm"])
def test_a_part_that_is_not_built_says_how_to_get_it(command, unbuilt, tmp_path, part):
    code, out, err = command("run", "03", "--real", part, "--state", "state")
    assert (code, out) == (2, "")
    assert err == f"error: the real {part} is not built: python -m emulated_cloud.real build {part}\n"
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("arguments", [("run", "03"), ("promote",), ("rollback",)], ids=lambda words: words[0])
def test_a_state_keeps_its_parts(command, unbuilt, tmp_path, arguments):
    state_with(tmp_path / "state", ["control-plane", "gcsfuse"])
    code, out, err = command(*arguments, "--state", "state")
    assert (code, out) == (2, "")
    assert err == "error: the real control-plane is not built: python -m emulated_cloud.real build control-plane\n"


@pytest.mark.parametrize(
    ("there", "wanted", "words"),
    [
        ([], "control-plane", "is the state of a cluster of the emulated control plane. Name another folder"),
        (["control-plane"], "gcsfuse", "is the state of a cluster of the real control plane. Name another folder"),
    ],
)
def test_a_cluster_does_not_change_its_control_plane(command, monkeypatch, tmp_path, there, wanted, words):
    monkeypatch.setattr(parts, "require", lambda names, show: None)
    state_with(tmp_path / "state", there)
    before = sorted(path.name for path in (tmp_path / "state").iterdir())
    code, out, err = command("run", "03", "--real", wanted, "--state", "state")
    assert (code, out) == (2, "")
    assert words in err
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == before


def test_serving_on_ends_with_the_cloud(command):
    with pytest.raises(InconclusiveError, match=r"^emulated_cloud\.storage was ended by SIGKILL$"):
        local.serve_on(iter(["", "", "emulated_cloud.storage was ended by SIGKILL"]).__next__)


def test_settings_of_another_scenario_are_refused(command, tmp_path):
    (tmp_path / "a.yaml").write_text("scenario: tpu\nproject: demo-project\nbucket: demo-bucket\n")
    code, _, err = command("run", "03", "-f", "a.yaml")
    assert code == 2
    assert "tpu" in err


def test_a_mistake_in_a_file_is_named_with_its_line(command, tmp_path):
    (tmp_path / "a.yaml").write_text("scenario: gcs-fuse\nproject: demo-project\nbukket: demo\n")
    code, _, err = command("run", "03", "-f", "a.yaml")
    assert code == 2
    assert "a.yaml:3" in err
    assert "bucket" in err


def test_list_names_every_scenario_that_is_built(command):
    code, out, _ = command("list")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [[s.number, s.name] for s in SCENARIOS]


def test_what_init_writes_is_a_settings_file_and_never_overwrites_one(command, tmp_path):
    code, out, _ = command("init", "03", "-o", "gemma.yaml")
    assert (code, out) == (0, "")
    assert yaml.safe_load((tmp_path / "gemma.yaml").read_text())["scenario"] == "gcs-fuse"
    code, _, err = command("init", "03", "-o", "gemma.yaml")
    assert code == 2
    assert "gemma.yaml exists" in err


def test_compile_writes_one_file_a_scenario_and_prints_its_path(command, tmp_path):
    code, out, err = command("compile", "--all", "-o", "out")
    assert code == 0
    assert out.split() == [f"out/{scenario.name}.yaml" for scenario in SCENARIOS]
    assert (tmp_path / "out" / "gcs-fuse.yaml").exists()
    assert "--image" in err


def test_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['gemma-pipelines', '--help']\n"
        "from pipelines import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('kfp', 'kubernetes', 'google.auth', 'huggingface_hub', 'pydantic', 'yaml') "
        "if name in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[]"
    assert "Commands" in ran.stdout


RESULT = {
    "scenario": "gcs-fuse",
    "status": "failed",
    "run_id": "run-1",
    "model": "google/gemma-3-4b-it",
    "revision": "c" * 40,
    "generation": "g2",
    "endpoint": None,
    "bytes_transferred": 0,
    "seconds": 1.0,
    "report": "/r.html",
    "steps": [],
    "error": {"step": "resolve_model", "type": "RequestError", "message": "no such revision"},
}


def test_the_json_has_the_keys_of_the_contract_and_no_others(capsys):
    _print_result({**RESULT, "more": 1}, [], True)
    assert json.loads(capsys.readouterr().out) == RESULT


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (None, False),
        ({"step": "resolve_model", "type": "RequestError"}, True),
        ({"step": "resolve_model", "type": "AccessError"}, True),
        ({"step": "resolve_model", "type": "RejectedBeforeError"}, False),
        ({"step": "deploy_server", "type": "RequestError"}, False),
    ],
)
def test_a_run_that_could_never_begin_was_a_wrong_request(error, wrong):
    assert _request_was_wrong({"error": error}) is wrong


def test_folders_of_killed_runs_are_removed_and_those_in_use_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = tmp_path / "gemma-pipelines-dead"
    dead.mkdir()
    (dead / "lock").touch()
    with (
        local.state_folder(None, SCENARIOS[0], (), print) as first,
        local.state_folder(None, SCENARIOS[0], (), print) as second,
    ):
        assert first != second
        assert first.exists()
        assert not dead.exists()
    assert list(tmp_path.iterdir()) == []
