"""The command line on a machine whose locale is not UTF-8: what it writes, it and everybody else can read."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.unit.test_view import CODE

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""What every machine has, and less than any other locale can write."""


def run(folder: Path, *arguments: str) -> bytes:
    environment = {**os.environ, **ASCII}
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True)
    assert ran.returncode == 0, ran.stderr.decode()
    return ran.stdout


def test_the_locale_is_what_it_is_meant_to_be():
    code = "import locale; print(locale.getpreferredencoding())"
    said = subprocess.check_output([sys.executable, "-c", code], env={**os.environ, **ASCII})
    assert said == b"ANSI_X3.4-1968\n"


def test_what_init_writes_is_utf_8_and_can_be_read(tmp_path: Path):
    shown = run(tmp_path, "init", "03")
    run(tmp_path, "init", "03", "-o", "gemma.yaml")
    assert (tmp_path / "gemma.yaml").read_bytes() == shown
    assert "대한민국" in shown.decode("utf-8")
    manifests = run(tmp_path, "render", "03", "-f", "gemma.yaml", "--access").decode("utf-8")
    assert "Namespace" in {manifest["kind"] for manifest in yaml.safe_load_all(manifests)}


def test_what_compile_writes_is_utf_8(tmp_path: Path):
    path = tmp_path / run(tmp_path, "compile", "03").decode().strip()
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["pipelineInfo"]


@pytest.mark.parametrize("encoding", ["euc-kr", "iso-8859-1", "ascii"])
def test_a_terminal_gets_what_it_can_show(encoding: str):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "TERM": "xterm", "COLUMNS": "80"}
    code = "from pipelines.cli.output import settle; settle()\n" + CODE.replace("moved 9.6 GB", "옮김 ✓ 9.6 GB")
    command = [sys.executable, "-c", code]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    out, _ = child.communicate(b"\n", timeout=60)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 4096)
        except OSError:  # The other side is closed.
            break
    os.close(ours)
    assert (child.returncode, out) == (0, b"the result\n"), seen
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode(encoding))
    assert "+  download_weights" in text
    assert ("옮김 ? 9.6 GB" if encoding == "euc-kr" else "?? ? 9.6 GB") in text
