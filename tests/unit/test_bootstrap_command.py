"""`bootstrap` on the command line: what it prints, and what it refuses before anything is asked."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from serving.installation import bootstrap as installation
from serving.installation import context
from serving.installation.bootstrap import Done, Report

SETTINGS = """
scenario: gcs-fuse
project: demo-project
bucket: demo-bucket
hub: {token_secret: projects/demo-project/secrets/hf-token/versions/latest}
"""


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "gemma.yaml").write_text(SETTINGS)
    return tmp_path


@pytest.fixture
def report(monkeypatch):
    """What a bootstrap comes to here, with the token that it was given."""
    given: list[str] = []
    made = Report([Done("9 APIs", "made"), Done("secret s", "there")], "image@sha256:1")

    def bootstrap(settings, say, *, token, rebuild):
        given.append(token)
        return made

    monkeypatch.setattr(installation, "bootstrap", bootstrap)
    made.given = given  # type: ignore[attr-defined]
    return made


def test_what_was_made_is_printed(command, settings, report):
    assert command("bootstrap", "-f", "gemma.yaml")[:2] == (
        0,
        "made   9 APIs\nthere  secret s\n\ncomponent image: image@sha256:1\n",
    )


def test_a_second_time_says_that_nothing_was_changed(command, settings, report):
    report.done[0] = Done("9 APIs", "there")
    assert command("bootstrap", "-f", "gemma.yaml")[1].endswith("\nall of it was there: nothing was changed\n")


def test_what_is_left_comes_with_reason_and_command_and_exit_code_1(command, settings, report):
    report.done += [
        Done("role a", "left", "you may not", "gcloud a"),
        Done("image", "left", "you may not", "gemma-pipelines bootstrap -f FILE"),
    ]
    code, out, _ = command("bootstrap", "-f", "gemma.yaml")
    assert code == 1
    assert "left   role a\n       you may not\n       $ gcloud a\nleft   image\n" in out
    assert "$ gemma-pipelines bootstrap -f gemma.yaml\n" in out
    code, out, _ = command("bootstrap", "-f", "gemma.yaml", "--json")
    assert (code, json.loads(out)["ready"]) == (1, False)
    assert json.loads(out)["items"][2] == {
        "what": "role a",
        "state": "left",
        "why": "you may not",
        "command": "gcloud a",
    }


def test_a_token_comes_from_a_file_or_stdin(command, settings, report, monkeypatch):
    (settings / "token").write_text("hf_one\n")
    assert command("bootstrap", "-f", "gemma.yaml", "--token-file", "token")[0] == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("hf_two\n"))
    code, out, err = command("bootstrap", "-f", "gemma.yaml", "--token-file", "-")
    assert (code, report.given) == (0, ["hf_one", "hf_two"])
    assert "hf_two" not in out + err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--token-file", "nowhere"], "nowhere cannot be read"),
        (["--token-file", "empty"], "empty holds no token"),
        (["--token-file", "token", "--set", "hub.token_secret=null"], "which the settings do not name"),
        (["--print", "--context", "x.tgz"], "one at a time"),
    ],
)
def test_a_wrong_request_does_nothing(command, settings, report, options, words):
    (settings / "empty").write_text("\n")
    (settings / "token").write_text("hf_one")
    code, out, err = command("bootstrap", "-f", "gemma.yaml", *options)
    assert (code, out) == (2, "")
    assert words in err
    assert report.given == []


def test_printing_asks_nobody(command, settings, monkeypatch):
    monkeypatch.delattr("serving.clients.google.credentials")
    code, out, _ = command("bootstrap", "-f", "gemma.yaml", "--print")
    assert code == 0
    assert out.startswith("gcloud services enable ")
    code, out, _ = command("bootstrap", "-f", "gemma.yaml", "--print", "--json")
    assert len(json.loads(out)["commands"]) > 10


def test_the_context_holds_what_the_dockerfile_copies(command, settings):
    code, out, _ = command("bootstrap", "-f", "gemma.yaml", "--context", "context.tgz")
    assert (code, out) == (0, "context.tgz\n")
    with tarfile.open(settings / "context.tgz") as tar:
        names = set(tar.getnames())
        assert {"setup.cfg", "pyproject.toml", "LICENSE", "README.md", context.DOCKERFILE, "serving/image.py"} <= names
        assert all(member.isfile() and not member.mtime and not member.uid for member in tar)
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests/", "emulators/"))]
    assert (settings / "context.tgz").read_bytes() == context.packed()
