"""The command line: what it refuses before anything starts, in one clear line, with exit code 2 and no data."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from emulated_cloud.hub.models import write_gemma4
from emulated_cloud.real import parts

from pipelines import child, cli, local
from pipelines.cli import fits
from pipelines.cli import run as run_command
from pipelines.local import state as states
from serving import catalog
from serving.errors import InconclusiveError
from serving.scenarios import COLUMNS, SCENARIOS, all_features


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "09"], "there is no scenario '09'. There are: 0"),
        (["run", "gcs-fus"], "Did you mean gcs-fuse?"),
        (["run", "03", "-f", "none.yaml"], "none.yaml does not exist"),
        (["run", "03", "--set", "engine.max_model_lens=1"], "did you mean max_model_len?"),
        (["run", "03", "--set", "model"], "--set model"),
        (["run", "03", "--set", "serving.replicas=many"], "serving.replicas"),
        (["run", "03", "--set", "serving.drain_seconds=2m"], "serving.drain_seconds"),
        (["run", "03", "--set", "bucket=Not_A_Bucket"], "bucket"),
        (["run", "03", "--set", f"name={'n' * 64}"], "name"),
        (["run", "03", "--set", f"namespace={'n' * 64}"], "namespace"),
        (["run", "03", "--set", "accelerator.type=nvidia-l40"], "did you mean nvidia-l4?"),
        (["run", "03", "--set", "model=google/gemma-3-12b-it"], "cannot start"),
        (["run", "03", "--set", "serving.exposure=public"], "public needs a key that clients have to show"),
        (
            ["run", "03", "--real", "vlm"],
            "no real part 'vlm'; there are: control-plane, snapshot-controller, gcsfuse, gateway, vllm",
        ),
        (
            ["run", "03", "--real", "gcsfuse,"],
            "no real part ''; there are: control-plane, snapshot-controller, gcsfuse, gateway, vllm",
        ),
        (
            ["run", "03", "--real", ""],
            "no real part ''; there are: control-plane, snapshot-controller, gcsfuse, gateway, vllm",
        ),
        (["run", "03", "--weights", "nowhere"], "--weights nowhere is not a folder"),
        (["run", "03", "--weights", "."], "--weights . has no files: name the folder of a release"),
        (["fits", "nowhere"], "nowhere is no folder, and no model of the hub, which are called ORG/NAME"),
        (["fits", "gemma-4-31B-it"], "did you mean google/gemma-4-31B-it?"),
        (["fits", "a/b/c"], "a/b/c is no folder, and no model of the hub"),
        (["fits", "acme/x", "--accelerator", "l4"], "--accelerator: l4 is not one of nvidia-l4, "),
        (["fits", "google/gemma-3-1b-it", "--accelerator", "nvidia-l40"], "did you mean nvidia-l4?"),
        (["fits", str(Path(__file__).parent)], "has no config.json"),
        (["compile"], "say one of these: scenarios, --all"),
        (["compile", "03", "--all"], "say one of these: scenarios, --all"),
        (["compile", "03", "--components"], "say one of these: scenarios, --all, or --components"),
        (["compile", "--components", "-f", "x.yaml"], "x.yaml is for one scenario"),
        (["compile", "03", "-f", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["promote"], "which deployment?"),
        (["status"], "which deployment?"),
        (["plan", "03", "-f", "none.yaml"], "none.yaml does not exist"),
        (["destroy", "03"], "which deployment?"),
        (["destroy", "09", "-f", "none.yaml"], "there is no scenario '09'"),
        (["rollback", "--state", "nowhere"], "nowhere is not the state of a run"),
        (["report", "no-such-run", "--state", "nowhere"], "no report of a run 'no-such-run'"),
        (["render", "03", "-f", "none.yaml"], "none.yaml does not exist"),
        (["submit", "03", "-f", "none.yaml"], "none.yaml does not exist"),
        (["schedule", "apply", "-f", "none.yaml"], "none.yaml does not exist"),
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


def test_a_cloud_that_has_to_come_up_first_is_no_silence(command, monkeypatch, tmp_path):
    @contextlib.contextmanager
    def site(*_):
        raise InconclusiveError("as far as this test goes")
        yield

    monkeypatch.setattr(local, "site", site)
    state_with(tmp_path / "state", [])
    code, out, err = command("rollback", "--state", "state")
    assert (code, out) == (1, "")
    assert without_clock(err).splitlines() == [
        "starting the emulated cloud of state and what serves in it, for this command alone",
        "error: as far as this test goes",
    ]


def test_serving_on_ends_with_the_cloud(command):
    with pytest.raises(InconclusiveError, match=r"^emulated_cloud\.storage was ended by SIGKILL$"):
        local.serve_on(iter(["", "", "emulated_cloud.storage was ended by SIGKILL"]).__next__)


@pytest.mark.parametrize("arguments", [("submit", "03"), ("schedule", "show")], ids=lambda words: words[0])
def test_without_the_client_of_vertex_ai_its_extra_is_named(command, monkeypatch, tmp_path, arguments):
    monkeypatch.setitem(sys.modules, "google.cloud.aiplatform_v1", None)
    monkeypatch.delattr("google.cloud.aiplatform_v1", raising=False)
    (tmp_path / "a.yaml").write_text("scenario: gcs-fuse\nproject: demo-project\nbucket: demo-bucket\n")
    code, out, err = command(*arguments, "-f", "a.yaml")
    assert (code, out) == (2, "")
    assert "pip install 'gemma-gke-pipelines[vertex]'" in err


def test_a_state_of_emulators_is_no_run_s(command, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "scenario.json").write_text(json.dumps({"scenario": states.BARE}))
    code, _, err = command("run", "03", "--state", "state")
    assert code == 2
    assert "is the state of `emulators up`. Name another folder for scenario gcs-fuse" in err


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
    code, out, err = command("list")
    assert (code, err) == (0, "")
    scenarios, features = out.split("\n\n")
    assert [line.split()[:2] for line in scenarios.splitlines()] == [[s.number, s.name] for s in SCENARIOS]
    assert set(all_features()) <= set(features.replace(",", "").split())
    listed = json.loads(command("list", "--json")[1])
    assert listed["features"] == {column: list(words) for column, words in COLUMNS.items()}
    (row, *_) = listed["scenarios"]
    assert row.keys() >= {"number", "name", "title", "weights", "accelerator", "entry", "image", "scaling"}


def test_what_init_writes_is_a_settings_file_and_never_overwrites_one(command, tmp_path):
    wrote = "wrote gemma.yaml. Next: fill in project and bucket, then `gemma-pipelines run 03 -f gemma.yaml`\n"
    assert command("init", "03", "-o", "gemma.yaml") == (0, "", wrote)
    written = (tmp_path / "gemma.yaml").read_text()
    assert yaml.safe_load(written)["scenario"] == "gcs-fuse"
    refused = "error: gemma.yaml exists. Name another file with -o, or delete it\n"
    assert command("init", "03", "-o", "gemma.yaml") == (2, "", refused)
    assert command("init", "03") == (0, written, "")
    assert json.loads(command("init", "03", "--json")[1]) == {"file": None, "text": written}
    assert json.loads(command("init", "03", "--json", "-o", "b.yaml")[1]) == {"file": "b.yaml", "text": written}


def test_compile_writes_one_file_a_scenario_and_prints_its_path(command, tmp_path):
    paths = [f"out/{scenario.name}.yaml" for scenario in SCENARIOS]
    code, out, err = command("compile", "--all", "-o", "out")
    assert (code, out.split()) == (0, paths)
    assert "which no registry has; push yours and compile with --image\n" in err
    assert all((tmp_path / path).exists() for path in paths)
    code, out, err = command("compile", "--all", "-o", "out", "--image", "r/p/python:1", "--json")
    assert (code, json.loads(out), err) == (0, {"files": paths}, "")


def test_a_report_is_a_path(command, tmp_path):
    page = tmp_path / "state" / "reports" / "run-1.html"
    page.parent.mkdir(parents=True)
    page.touch()
    assert command("report", "last", "--state", "state") == (0, f"{page}\n", "")
    assert json.loads(command("report", "run-1", "--state", "state", "--json")[1]) == {"report": str(page)}


def test_without_the_emulators_a_run_says_what_to_install(command, monkeypatch, tmp_path):
    state_with(tmp_path / "state", [])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for arguments in (["run", "03"], ["promote", "--state", "state"]):
        code, out, err = command(*arguments)
        assert (code, out) == (2, "")
        assert err == (
            "error: a run on this machine needs the emulators: `pip install ./emulators` in a checkout of "
            "gemma-gke-pipelines\n"
        )


def test_every_command_has_the_same_modes(command):
    def commands(*group: str) -> list[str]:
        """The names below a group's help; none below a command's."""
        return re.findall(r"^  ([a-z-]+) ", command(*group, "--help")[1].partition("Commands:")[2], re.M)

    every = [(name, *inner) for name in commands() for inner in [[each] for each in commands(name)] or [[]]]
    assert {("run",), ("schedule", "apply"), ("emulators", "up")} <= set(every)
    for words in every:
        text = command(*words, "--help")[1]
        assert re.search(r"^  --json +Print one line of JSON on stdout\.$", text, re.M)
        assert re.search(r"^  -q, --quiet +Say nothing on stderr but what went wrong\.$", text, re.M)


def test_one_module_prints():
    folder = Path(cli.__file__).parent
    calls = re.compile(r"\bprint\(|sys\.std(out|err)\.write|typer\.(echo|secho)|import json\b")
    assert [path.name for path in folder.glob("*.py") if calls.search(path.read_text())] == ["output.py"]


def test_a_reader_that_has_enough_ends_a_command_without_a_word():
    """As `gemma-pipelines list | head -0` does it."""
    child = subprocess.Popen(
        ["sh", "-c", f"read go; exec {sys.executable} -m pipelines.cli init 03"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdin
    assert child.stdout
    assert child.stderr
    child.stdout.close()
    child.stdin.write("go\n")
    child.stdin.close()
    assert (child.wait(120), child.stderr.read()) == (1, "")
    child.stderr.close()


@pytest.mark.parametrize("arguments", [["list"], ["init", "03", "--json"], ["--version"], ["--help"]], ids=" ".join)
def test_a_full_disk_behind_stdout_is_one_error(arguments):
    with open("/dev/full", "w", encoding="utf-8") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", *arguments], stdout=full, stderr=subprocess.PIPE, encoding="utf-8"
        )
    assert ran.returncode == 1
    assert re.fullmatch(r"error: .*No space left on device.*\n", ran.stderr)


def test_a_full_disk_behind_stderr_takes_no_result_away():
    with open("/dev/full", "w", encoding="utf-8") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", "compile", "03", "-o", "/dev/null/nowhere"],
            stdout=subprocess.PIPE,
            stderr=full,
        )
        assert (ran.returncode, ran.stdout) == (2, b"")


def test_compile_takes_the_image_of_a_settings_file_unless_another_is_named(command, tmp_path):
    (tmp_path / "gemma.yaml").write_text(
        "scenario: gcs-fuse\nproject: demo-project\nbucket: demo-bucket\nimages: {components: example.com/ours:1}\n"
    )

    def compiled(*arguments: str) -> set[str]:
        code, out, _ = command("compile", "03", "-f", "gemma.yaml", *arguments)
        assert code == 0
        executors = yaml.safe_load((tmp_path / out.strip()).read_text())["deploymentSpec"]["executors"]
        return {executor["container"]["image"] for executor in executors.values()}

    assert compiled() == {"example.com/ours:1"}
    assert compiled("--image", "example.com/theirs:2") == {"example.com/theirs:2"}


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


SUMMARY = {
    "scenario": "gcs-fuse",
    "status": "succeeded",
    "run_id": "run-1",
    "model": "google/gemma-3-4b-it",
    "revision": "c" * 40,
    "generation": "g0123456789",
    "weights": "gs://demo-bucket/models/google/gemma-3-4b-it/0123",
    "bytes_transferred": 4_100_000,
    "seconds": 61.25,
    "steps": [{"name": "resolve_model", "status": "succeeded", "seconds": 0.5}],
    "error": None,
}
"""As components/write_report/summary.py makes it."""
OUTCOMES = [
    {"name": "resolve_model", "message": "g0123456789 is live already"},
    {"name": "validate_server", "answer": {"prompt": "What is a pod?", "text": "A group of containers."}},
]
FAILED = {"status": "failed", "generation": None, "bytes_transferred": 0}


def error_of(step: str | None, kind: str, message: str) -> dict:
    return {**FAILED, "error": {"step": step, "type": kind, "message": message}}


@pytest.fixture
def run_that_ends(command, monkeypatch, tmp_path):
    """`run 03 …` with a pipeline that comes to a given summary, in a cloud that is not there."""

    def run(changes: dict, *arguments: str) -> tuple[int, str, str]:
        @contextlib.contextmanager
        def site(settings, folder, weights, real, say, stand_ins):
            say("a word of the cloud's")
            cloud = SimpleNamespace(environment={}, bucket_folder=Path, kubeconfig="kubeconfig")
            yield SimpleNamespace(folder=tmp_path, cloud=cloud, endpoint="http://127.0.0.1:1", loss=str)

        def execute(scenario, settings, folder, environment, show, *_):
            show({"step": "resolve_model", "message": "started", "status": "running"})
            return {"summary": {**SUMMARY, **changes, "more": 1}, "outcomes": OUTCOMES, "page": "", "run_id": "run-1"}

        monkeypatch.setattr(local, "site", site)
        monkeypatch.setattr(child, "execute", execute)
        return command("run", "03", *arguments)

    return run


def without_clock(text: str) -> str:
    return re.sub(r"^ *[0-9.]+ s  ", "", text, flags=re.M)


PROGRESS = "starting hub, bucket, cluster\na word of the cloud's\nresolve_model: started\n"


def test_a_person_reads_what_a_run_came_to(run_that_ends):
    code, out, err = run_that_ends({})
    assert (code, without_clock(err)) == (0, PROGRESS)
    assert out == (
        """
succeeded in 61.2 s

  asked    What is a pod?
  answered A group of containers.

  model       google/gemma-3-4b-it at cccccccccccc
  generation  g0123456789
  moved       4.1 MB
  weights     gs://demo-bucket/models/google/gemma-3-4b-it/0123
  endpoint    none: use --keep
  report      none
  emulated    hub, bucket, Google APIs, cluster, FUSE mount, engine (answers and figures are made up)
"""
    )


@pytest.mark.parametrize(
    ("scenario", "real", "emulated"),
    [
        ("03", ["control-plane", "gcsfuse", "vllm"], "hub, bucket, Google APIs, GKE's parts of the cluster"),
        ("03", ["vllm"], "hub, bucket, Google APIs, cluster, FUSE mount"),
        (
            "02",
            ["gcsfuse", "vllm"],
            "hub, bucket, Google APIs, cluster, image registry, machine that bakes (its words are scripted)",
        ),
    ],
)
def test_what_is_real_is_not_called_emulated(scenario, real, emulated, monkeypatch):
    monkeypatch.setattr(local.cloud, "runs_startup_scripts", lambda: False)
    assert local.emulated(local.settings_for({"scenario": scenario, **local.DEFAULTS}, None), real) == emulated


def test_an_endpoint_is_named_only_while_somebody_answers_there(run_that_ends, monkeypatch):
    monkeypatch.setattr(local, "serve_on", lambda lost: None)
    assert json.loads(run_that_ends({}, "--json")[1])["endpoint"] is None
    code, out, err = run_that_ends({}, "--json", "--keep")
    assert (code, json.loads(out)["endpoint"]) == (0, "http://127.0.0.1:1")
    assert "serving at http://127.0.0.1:1;" in err
    bad = error_of("validate_server", "ReleaseError", "no answer")
    assert json.loads(run_that_ends(bad, "--json", "--keep")[1])["endpoint"] is None
    assert re.search(r"^  endpoint +none$", run_that_ends(bad)[1], re.M)


def test_the_version_is_the_distribution_s(command):
    assert command("--version") == (0, f"gemma-pipelines {importlib.metadata.version('gemma-gke-pipelines')}\n", "")


def test_a_run_that_changed_nothing_says_why(run_that_ends):
    code, out, _ = run_that_ends({"status": "unchanged", "bytes_transferred": 0})
    assert code == 0
    assert out.splitlines()[1:3] == ["unchanged in 61.2 s", "  g0123456789 is live already"]
    assert "asked" not in out


def test_a_program_reads_the_keys_of_the_contract_and_no_others(run_that_ends):
    code, out, err = run_that_ends({}, "--json")
    assert (code, without_clock(err)) == (0, PROGRESS)
    assert json.loads(out) == {**SUMMARY, "endpoint": None, "report": None}
    assert out.count("\n") == 1


@pytest.mark.parametrize("mode", [(), ("--json",)], ids=["words", "json"])
def test_quiet_leaves_the_data_and_what_went_wrong(run_that_ends, mode):
    _, loud, _ = run_that_ends({}, *mode)
    assert run_that_ends({}, *mode, "--quiet") == (0, loud, "")
    bad = error_of("deploy_server", "ReleaseError", "it does not start")
    code, out, err = run_that_ends(bad, *mode, "-q")
    assert (code, err) == (1, "error: deploy_server: it does not start\n")
    assert "failed" in out


@pytest.mark.parametrize("mode", [(), ("--json",)], ids=["words", "json"])
@pytest.mark.parametrize(
    ("bad", "code", "words"),
    [
        (error_of("validate_server", "ReleaseError", "no answer"), 1, "validate_server: no answer"),
        (error_of(None, "StepDied", "a step ended"), 1, "the run: a step ended"),
        (error_of("resolve_model", "RequestError", "no such revision"), 2, "no such revision"),
    ],
)
def test_a_failed_run_ends_with_its_error_in_every_mode(run_that_ends, mode, bad, code, words):
    ended, out, err = run_that_ends(bad, *mode)
    assert (ended, without_clock(err)) == (code, PROGRESS + f"error: {words}\n")
    assert bool(out) is (code == 1)


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
    assert run_command._request_was_wrong(error) is wrong


def test_folders_of_killed_runs_are_removed_and_those_in_use_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = tmp_path / "gemma-pipelines-dead"
    dead.mkdir()
    (dead / "lock").touch()
    with (
        states.taken(None, "gcs-fuse", (), print) as first,
        states.taken(None, "gcs-fuse", (), print) as second,
    ):
        assert first != second
        assert first.exists()
        assert not dead.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("asked", "wait"), [(None, "60s"), ("0s", "60s"), ("30m", "30m")])
def test_a_run_here_waits_for_another_as_long_as_it_is_told(asked, wait):
    values = {"scenario": "gcs-fuse", **local.DEFAULTS, **({"lease": {"wait": asked}} if asked else {})}
    assert local.settings_for(values, None).lease.wait == wait


FIT = (
    *("model", "accelerator", "count", "quantization", "starts", "max_model_len", "requests_at_once", "weights_gib"),
    *("kv_gib", "measured", "warning"),
)


def test_fits_tells_a_program_what_starts_where(command):
    code, out, _ = command("fits", "google/gemma-4-31B-it", "--json")
    rows = json.loads(out)
    assert code == 0
    assert all(tuple(row) == FIT for row in rows)
    seen = {(row["accelerator"], row["count"], row["quantization"]): row for row in rows}
    assert seen["nvidia-l4", 1, None]["starts"] is False
    assert seen["nvidia-a100-80gb", 1, None]["measured"]
    assert (seen["tpu-v6e-slice", 4, None]["starts"], seen["tpu-v6e-slice", 4, None]["warning"]) == (None, "")
    assert seen["tpu-v6e-slice", 8, None]["warning"].startswith("nobody is known to serve google/gemma-4-31B-it on 8 ×")


def test_fits_takes_a_folder_and_one_accelerator(command, tmp_path):
    write_gemma4(tmp_path / "tiny", 0)
    code, out, _ = command("fits", str(tmp_path / "tiny"), "--accelerator", "nvidia-l4", "--json")
    assert code == 0
    rows = json.loads(out)
    assert {row["accelerator"] for row in rows} == {"nvidia-l4"}
    assert all(row["starts"] and row["max_model_len"] == 131072 for row in rows)


def test_fits_says_why_there_is_nothing_to_show(command):
    asked = ("fits", "google/gemma-3-1b-it", "--accelerator", "nvidia-h200-141gb")
    code, out, err = command(*asked)
    assert (code, out) == (0, "")
    assert "the heads of google/gemma-3-1b-it do not split over 8 × nvidia-h200-141gb" in err
    assert command(*asked, "--json")[:2] == (0, "[]\n")


def test_fits_does_not_wait_long_for_a_hub_that_is_away(command, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(fits, "_PATIENCE_SECONDS", 0.1)
    code, out, err = command("fits", "acme/x")
    assert (code, out) == (1, "")
    assert "the hub does not answer" in err


def test_fits_shows_a_person_every_model_of_the_catalog(command):
    code, out, _ = command("fits")
    assert code == 0
    assert [model for model in catalog.models() if model not in out] == []
    _, out, _ = command("fits", "google/gemma-4-31B-it", "--accelerator", "nvidia-h100-80gb")
    assert re.search(r"1 × nvidia-h100-80gb +3072 +4\.6 +97152 ", out)
