"""What may have become of a laptop run's folder, and of its disk: each is one error that names the file and the way
out. A line is one such state."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from emulated_cloud.storage.store import Damaged, Store

from pipelines import cli, local
from pipelines.local import state as states
from serving.errors import RequestError

DEPLOYMENT = local.settings_for({"scenario": "gcs-fuse", **local.DEFAULTS}, None)
SETTINGS = DEPLOYMENT.model_dump_json()
GOOD = {"scenario.json": '{"scenario": "gcs-fuse", "real": []}', "settings.json": SETTINGS}
DAMAGED = {
    "empty": b"",
    "cut": b'{"scenario": "gcs-',
    "a list": b"[1, 2]",
    "null": b"null",
    "no UTF-8": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
}


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs `gemma-pipelines …` in this process, beside a good `state` folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state").mkdir()
    for name, text in GOOD.items():
        (tmp_path / "state" / name).write_text(text, encoding="utf-8")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gemma-pipelines", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def is_one_error(ran: tuple[int, str, str], *words: str) -> None:
    code, out, err = ran
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: ")
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    "content",
    [*DAMAGED.values(), b'{"scenario": 5}', b'{"scenario": "gcs-fuse", "real": "vllm"}', b'{"real": []}'],
    ids=[*DAMAGED, "a number", "a text for a list", "no scenario"],
)
@pytest.mark.parametrize("arguments", [["run", "03"], ["promote"]], ids=" ".join)
def test_what_the_folder_is_about_cannot_be_read(command, tmp_path, content, arguments):
    path = tmp_path / "state" / "scenario.json"
    path.write_bytes(content)
    is_one_error(command(*arguments, "--state", "state"), "scenario.json is not what a run writes there", "delete")
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [*DAMAGED.values(), b'{"scenario": "gcs-fuse", "bukket": "a"}', b"{}"],
    ids=[*DAMAGED, "an unknown key", "nothing in it"],
)
@pytest.mark.parametrize("arguments", [["promote"], ["verify-weights", "gs://demo-bucket/models/a/b/c"]], ids=" ".join)
def test_its_settings_cannot_be_read(command, tmp_path, content, arguments):
    (tmp_path / "state" / "settings.json").write_bytes(content)
    code, out, err = command(*arguments, "--state", "state")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "settings.json is not what a run writes there" in err
    assert "run again with `--state state`: that writes it anew" in err


@pytest.mark.parametrize(
    "content",
    [*DAMAGED.values(), b'{"pid": "1", "environment": {}}', b'{"pid": 1, "environment": {"A": 1}}', b'{"pid": 1}'],
    ids=[*DAMAGED, "pid is a text", "a number in the environment", "no environment"],
)
def test_the_session_of_a_command_that_runs_cannot_be_read(command, tmp_path, content):
    (tmp_path / "state" / "session.json").write_bytes(content)
    with open(tmp_path / "state" / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        is_one_error(command("promote", "--state", "state"), "session.json is not what a run writes there", "delete")


def test_a_session_is_one_while_its_lock_is_held(tmp_path):
    """A process of any number may have come after one that was killed."""
    session = {"pid": os.getpid(), "environment": {"A": "b"}}
    (tmp_path / "session.json").write_text(json.dumps(session), encoding="utf-8")
    assert states.session_of(tmp_path) is None
    (tmp_path / "lock").touch()
    assert states.session_of(tmp_path) is None
    with open(tmp_path / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert states.session_of(tmp_path) == session


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("state/settings.json", ["is a file", "--state"]),
        ("/etc", ["/etc is not empty, and not the state of a run", "--state"]),
        ("/proc/nowhere", ["cannot write in /proc/nowhere", "Name another folder with --state"]),
        ("/dev/null/state", ["/dev/null/state: Not a directory", "Name another folder with --state"]),
        ("n" * 300, ["File name too long", "Name another folder with --state"]),
    ],
)
def test_a_folder_that_cannot_be_a_state(command, place, words):
    is_one_error(command("run", "03", "--quiet", "--state", place), *words)


@pytest.mark.parametrize(
    ("place", "advice"),
    [
        ("/etc", "gemma-pipelines run 03 --state DIR"),
        ("state/settings.json", "gemma-pipelines run 03 --state DIR"),
        ("no where", "gemma-pipelines run 03 --state 'no where'"),
    ],
)
@pytest.mark.parametrize("verb", ["promote", "rollback"])
def test_what_is_advised_can_be_done(command, verb, place, advice):
    is_one_error(command(verb, "--state", place), "is not the state of a run", advice)


@pytest.mark.parametrize("state", [["--state", "state"], []], ids=["with a state", "without one"])
def test_a_full_disk_is_said_before_anything_starts(command, monkeypatch, state):
    full = SimpleNamespace(f_bavail=1, f_frsize=4096, f_favail=100, f_files=1000)
    monkeypatch.setattr(states.os, "statvfs", lambda path: full)
    is_one_error(command("run", "03", "--quiet", *state), "the disk of", "is full (16 MiB are needed)", "Make room")


@pytest.mark.parametrize(
    ("free", "inodes", "full"),
    [(1 << 30, (100, 1000), False), (1 << 20, (100, 1000), True), (1 << 30, (0, 1000), True), (1 << 30, (0, 0), False)],
    ids=["room", "no bytes", "no inodes", "a file system without inodes"],
)
def test_a_disk_is_full_without_bytes_or_without_inodes(monkeypatch, tmp_path, free, inodes, full):
    found = SimpleNamespace(f_bavail=free // 4096, f_frsize=4096, f_favail=inodes[0], f_files=inodes[1])
    monkeypatch.setattr(states.os, "statvfs", lambda path: found)
    assert bool(states.about_disk(tmp_path)) is full
    site = local.Site(tmp_path, SimpleNamespace(loss=""))
    assert bool(site.loss()) is full, "a run that goes on ends with these words"


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(monkeypatch, tmp_path):
    path = tmp_path / "settings.json"
    states.replace(path, "whole")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(states.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        states.replace(path, "half")
    assert [file.name for file in tmp_path.iterdir()] == ["settings.json"]
    assert path.read_text(encoding="utf-8") == "whole"


@pytest.mark.parametrize("home", ["/dev/null", "/proc/nowhere"])
def test_a_report_that_cannot_be_kept_takes_no_result_away(monkeypatch, home):
    monkeypatch.setenv("XDG_STATE_HOME", home)
    said: list[str] = []
    assert local.keep_report({"page": "<body>", "run_id": "run-1"}, DEPLOYMENT, None, [], said.append) is None
    assert len(said) == 1
    assert f"cannot keep the report in {home}/gemma-pipelines/reports: " in said[0]
    assert said[0].endswith("Keep it elsewhere with --state DIR")


def test_without_a_home_a_report_has_no_place(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    said: list[str] = []
    assert local.keep_report({"page": "<body>", "run_id": "run-1"}, DEPLOYMENT, None, [], said.append) is None
    no_home = "there is no home folder to keep reports in. Set XDG_STATE_HOME, or give --state"
    assert said == [f"cannot keep the report: {no_home}"]
    with pytest.raises(RequestError, match="no home folder"):
        local.reports_folder(None)


def test_a_page_that_is_kept_says_what_was_emulated(monkeypatch, tmp_path):
    path = local.keep_report({"page": "<body>\n<h1>", "run_id": "run-1"}, DEPLOYMENT, tmp_path, ["vllm"], print)
    assert path
    assert '<p class="emulated">On this machine; emulated: hub, bucket, ' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "content", [*DAMAGED.values(), b'{"name": "a"}', b'{"nom": "a"}'], ids=[*DAMAGED, "few", "other"]
)
@pytest.mark.parametrize("place", ["bucket.json", "metadata/0123.json", "pending/0123.json"])
def test_a_bucket_s_file_that_is_damaged_is_named(tmp_path, place, content):
    store = Store(tmp_path)
    store.ensure_bucket("demo-bucket")
    store.close()
    path = tmp_path / "demo-bucket" / place
    path.write_bytes(content)
    if place.startswith("pending") and content == b'{"name": "a"}':
        place = "metadata/"  # It is put in place first.
    with pytest.raises(Damaged, match=rf"{tmp_path}/demo-bucket/{place}.* is damaged \(.*Delete ") as error:
        Store(tmp_path)
    assert "\n" not in str(error.value)


def test_the_storage_emulator_ends_with_the_words(tmp_path):
    store = Store(tmp_path)
    store.ensure_bucket("demo-bucket")
    store.close()
    (tmp_path / "demo-bucket" / "metadata" / "0123.json").touch()
    command = [sys.executable, "-m", "emulated_cloud.storage", "--root", str(tmp_path)]
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (1, "", 1)
    assert "0123.json is damaged" in ran.stderr
