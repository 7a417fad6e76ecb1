"""What a person sees of a run: a live table in a terminal, a line for each entry in a log."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

# A step that says how far it is, and ends when it is told to.
CODE = """
import sys, time
from pipelines.cli.output import Output
from pipelines.cli.view import View
from serving.scenarios import find
MORE = ' and so on' * 9  # wider than the terminal
out = Output()
view = View(out, find("03"))
with view.up("starting"):
    view.show({"step": "download_weights", "message": "started", "status": "running"})
    for done in (1, 2):
        message = f"{done}/8 files, 1.2 GB of 9.6 GB, 300 MB/s, 28 s left" + MORE
        view.show({"step": "download_weights", "message": message})
        time.sleep(0.4)
    sys.stdin.readline()
    view.show({"step": "download_weights", "message": "moved 9.6 GB, verified", "status": "succeeded"})
    out.result({}, "the result")
"""


def test_a_log_has_a_line_for_each_entry():
    child = subprocess.run([sys.executable, "-c", CODE], input="\n", capture_output=True, text=True, timeout=120)
    assert child.stdout == "the result\n"
    lines = [re.sub(r"^ *[0-9.]+ s  ", "", line) for line in child.stderr.splitlines()]
    assert lines[:2] == ["starting", "download_weights: started"]
    assert lines[2].startswith("download_weights: 1/8 files, 1.2 GB of 9.6 GB, 300 MB/s, 28 s left")
    assert lines[3].startswith("download_weights: 2/8 files, ")
    assert re.fullmatch(r"download_weights: succeeded in [0-9.]+ s: moved 9\.6 GB, verified", lines[4])


def test_a_terminal_that_cannot_move_its_cursor_gets_a_line_for_each_entry():
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "dumb"}
    child = subprocess.run(
        [sys.executable, "-c", CODE], input=b"\n", stdout=subprocess.PIPE, stderr=theirs, env=environment, timeout=120
    )
    os.close(theirs)
    assert child.stdout == b"the result\n"
    seen = os.read(ours, 4096).decode()
    os.close(ours)
    lines = [re.sub(r"^ *[0-9.]+ s  ", "", line) for line in seen.splitlines()]
    assert lines[:2] == ["starting", "download_weights: started"]
    assert re.fullmatch(r"download_weights: succeeded in [0-9.]+ s: moved 9\.6 GB, verified", lines[-1])
    assert "\x1b" not in seen


def test_quiet_it_shows_nothing_in_a_terminal_either():
    ours, theirs = pty.openpty()
    code = CODE.replace("Output()", "Output(quiet=True)")
    child = subprocess.run(
        [sys.executable, "-c", code], input=b"\n", stdout=subprocess.PIPE, stderr=theirs, timeout=120
    )
    os.write(theirs, b"all")
    assert (child.stdout, os.read(ours, 4096)) == (b"the result\n", b"all")
    os.close(theirs)
    os.close(ours)


@pytest.mark.parametrize("columns", [60, 100])
def test_a_terminal_shows_progress_while_it_goes_on(columns: int):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    child = subprocess.Popen(
        [sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=theirs, env=environment
    )
    os.close(theirs)
    seen = b""
    while b"2/8 files, 1.2 GB of" not in seen:
        seen += os.read(ours, 4096)
    assert b"moved" not in seen
    child.communicate(b"\n", timeout=120)
    while True:
        try:
            seen += os.read(ours, 4096)
        except OSError:  # The other side is closed.
            break
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    rows = [line for line in text.splitlines() if "files, " in line]
    assert all(re.match(r" … +download_weights +[0-9.]+ s +[12]/8 files", line.lstrip("\r")) for line in rows), rows
    assert max(map(len, rows)) <= columns
    assert re.search(r"✓ +download_weights +[0-9.]+ s +moved 9\.6 GB, verified", text)
