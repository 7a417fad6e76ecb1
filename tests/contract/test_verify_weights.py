"""`gemma-pipelines verify-weights` against a bucket: each kind of difference by name, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from components.download_weights.verification import verify
from pipelines import cli, local
from serving.clients import storage
from serving.weights import manifest
from serving.weights.release import Release
from tests.contract.transfer_site import MIB, SERVED, Site, _site, folder, model, site

__all__ = ["_site", "folder", "model", "site"]

SHARD = "model-00001-of-00002.safetensors"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def release(site: Site, model: str, folder: Path) -> Release:
    """Weights that are complete in the bucket."""
    site.commit(model, folder)
    settings = site.settings(model)
    found = site.release(settings)
    site.bring(settings, found)
    return found


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `gemma-pipelines verify-weights …` in this process: (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gemma-pipelines", "verify-weights", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        # What is looked at is said first, where anything is.
        return int(ended.value.code or 0), out, re.sub(r"\A +[\d.]+ s  listing\n", "", err)

    return run


def rewrite(uri: str, content: bytes) -> None:
    storage.delete(uri)
    storage.write_bytes(uri, content, content_type="application/octet-stream")


def manifest_of(release: Release) -> dict:
    found = storage.read_json(manifest.uri(release.weights_uri))
    assert found
    return found


@pytest.mark.parametrize("read", [[], ["--read"]], ids=["listed", "read"])
def test_what_is_right_is_one_line(release: Release, folder: Path, command: Command, read: list[str]):
    size = sum((folder / file["path"]).stat().st_size for file in manifest_of(release)["files"])
    code, out, err = command(release.weights_uri, *read)
    assert (code, err) == (0, "")
    said = f"{len(SERVED) + 2} files, {size} bytes, as the manifest says"
    assert out == said + (", every byte read" if read else "") + "\n"
    # The manifest's own address is as good, and so is a slash at the end.
    for address in (f"{release.weights_uri}/", manifest.uri(release.weights_uri)):
        assert command(address, *read)[:2] == (code, out)


def missing(release: Release, folder: Path) -> str:
    storage.delete(f"{release.weights_uri}/config.json")
    return r"config\.json is missing"


def shorter(release: Release, folder: Path) -> str:
    rewrite(f"{release.weights_uri}/config.json", b"{}")
    return r"config\.json has 2 bytes instead of \d+"


def other_content(release: Release, folder: Path) -> str:
    rewrite(f"{release.weights_uri}/{SHARD}", bytes((folder / SHARD).stat().st_size))
    return rf"{SHARD} has other content: crc32c \S+ instead of \S+"


def written_again(release: Release, folder: Path) -> str:
    rewrite(f"{release.weights_uri}/{SHARD}", (folder / SHARD).read_bytes())
    return rf"{SHARD} was written again: generation \d+ instead of \d+"


def stray(release: Release, folder: Path) -> str:
    rewrite(f"{release.weights_uri}/original/consolidated.safetensors", b"stray")
    return r"original/consolidated\.safetensors is not in the manifest"


def manifest_cut(release: Release, folder: Path) -> str:
    rewrite(manifest.uri(release.weights_uri), json.dumps(manifest_of(release)).encode()[:-10])
    return r"_MANIFEST\.json is damaged: it is no manifest of ours"


def manifest_of_bytes(release: Release, folder: Path) -> str:
    rewrite(manifest.uri(release.weights_uri), b"\xff\xfe")
    return r"_MANIFEST\.json is damaged: it is no manifest of ours"


def manifest_of_others(release: Release, folder: Path) -> str:
    rewrite(manifest.uri(release.weights_uri), json.dumps({**manifest_of(release), "weights_key": "e" * 16}).encode())
    return r"_MANIFEST\.json is that of other weights: e{16}"


DAMAGES = [
    missing,
    shorter,
    other_content,
    written_again,
    stray,
    manifest_cut,
    manifest_of_bytes,
    manifest_of_others,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_differs_is_named(release: Release, folder: Path, command: Command, damage: Callable[..., str]):
    words = damage(release, folder)
    code, out, err = command(release.weights_uri)
    assert (code, err) == (1, "")
    assert re.fullmatch(words, out.rstrip("\n"))
    code, out, _ = command(release.weights_uri, "--json")
    found = json.loads(out)
    assert (code, found["status"], found["weights_uri"]) == (1, "different", release.weights_uri)
    assert len(found["differences"]) == 1


def test_several_differences_are_a_line_each(release: Release, folder: Path, command: Command):
    for damage in (missing, other_content, stray):
        damage(release, folder)
    code, out, _ = command(release.weights_uri, "--read")
    assert code == 1
    assert [line.split()[0] for line in out.splitlines()] == [
        "config.json",
        SHARD,
        "original/consolidated.safetensors",
    ]


def test_only_reading_finds_bytes_that_are_not_what_their_checksum_says(
    site: Site, release: Release, folder: Path, command: Command
):
    """A byte that rotted in the bucket: the emulator's file is changed behind its back."""
    objects = site.root / "buckets" / "demo-bucket" / "objects"
    rotten = objects / release.weights_uri.removeprefix("gs://demo-bucket/") / SHARD
    with open(rotten, "r+b") as file:
        file.seek(5 * MIB)
        file.write(b"rot")
    assert command(release.weights_uri)[0] == 0
    code, out, _ = command(release.weights_uri, "--read")
    assert code == 1
    wrong = hashlib.sha256(rotten.read_bytes()).hexdigest()
    right = hashlib.sha256((folder / SHARD).read_bytes()).hexdigest()
    assert out == f"{SHARD} reads otherwise: sha256 {wrong} instead of {right}\n"


def test_an_object_that_is_replaced_while_it_is_read_is_named(
    site: Site, release: Release, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    listing = manifest.listing

    def replaced_afterwards(uri: str):
        found = listing(uri)
        written_again(release, folder)
        return found

    monkeypatch.setattr(manifest, "listing", replaced_afterwards)
    assert verify(release.weights_uri, read=True).differences == [f"{SHARD} changed while it was read"]


def test_a_connection_that_breaks_while_it_is_read_is_no_difference(site: Site, release: Release, command: Command):
    site.script("storage", {"action": "reset", "method": "GET", "path": "alt=media", "after_bytes": 3 * MIB})
    code, out, err = command(release.weights_uri, "--read")
    assert (code, err) == (0, ""), out + err
    assert site.consumed("storage") == [1]


# -- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["models/a/b/0123", "s3://bucket/models", "gs://", "/models"])
def test_what_is_no_address_of_a_bucket_is_refused(site: Site, command: Command, address: str):
    before = len(site.requests("storage"))
    code, out, err = command(address)
    assert (code, out) == (2, "")
    assert "is not a gs://BUCKET/NAME address" in err
    assert len(site.requests("storage")) == before


@pytest.mark.parametrize("cut", [0, 1, 3, 4], ids=["sibling", "model", "models", "bucket"])
def test_without_a_manifest_the_complete_weights_nearby_are_named(release: Release, command: Command, cut: int):
    address = f"{release.weights_uri.rpartition('/')[0]}/{'f' * 16}"
    if cut:
        address = release.weights_uri.rsplit("/", cut)[0]
    code, out, err = command(address)
    assert (code, out) == (2, "")
    assert f"no complete weights at {address}: there is no _MANIFEST.json" in err
    assert release.weights_uri in err or ", …" in err


def test_where_nothing_is_complete_it_says_so(site: Site, model: str, command: Command):
    code, out, err = command(f"gs://demo-bucket/models/{model}/{'f' * 16}")
    assert (code, out) == (2, "")
    assert f"Nothing below gs://demo-bucket/models/{model} is complete" in err


def test_a_missing_bucket_is_named(site: Site, command: Command):
    code, out, err = command(f"gs://no-such-bucket/models/a/b/{'f' * 16}")
    assert (code, out) == (2, "")
    assert "gs://no-such-bucket does not exist" in err


def test_a_bucket_that_may_not_be_read_names_the_role(site: Site, release: Release, command: Command):
    body = json.dumps({"error": {"code": 403, "message": "caller lacks storage.objects.get"}})
    site.script("storage", {"action": "status", "status": 403, "body": body, "method": "GET", "times": 9})
    code, out, err = command(release.weights_uri)
    assert (code, out) == (2, "")
    assert "lacks storage.objects.get" in err
    assert "--role=roles/storage.objectUser" in err
    assert site.consumed("storage")[0] >= 1


def test_the_buckets_of_a_state_need_no_cluster(
    site: Site, release: Release, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A live generation would take a minute to come back, and nobody asks it anything."""
    state = tmp_path / "state"
    shutil.copytree(site.root / "buckets", state / "buckets")
    (state / "scenario.json").write_text('{"scenario": "gcs-fuse", "real": []}', encoding="utf-8")
    settings = local.settings_for({"scenario": "gcs-fuse", **local.DEFAULTS}, None)
    (state / "settings.json").write_text(settings.model_dump_json(), encoding="utf-8")
    (state / "live").touch()
    monkeypatch.setattr(os, "environ", dict(os.environ))
    code, out, err = command(release.weights_uri, "--read", "--state", str(state))
    assert (code, err) == (0, "")
    assert "as the manifest says, every byte read" in out
    assert sorted(path.name for path in (state / "logs").iterdir()) == ["google.log", "storage.log"]


# -- in a process of its own --------------------------------------------------------------------------------


def test_progress_goes_to_stderr_and_ctrl_c_ends_it_at_once(site: Site, release: Release):
    """With a server that has gone silent in the middle of a shard."""
    stall = {"action": "stall", "method": "GET", "path": "safetensors.*alt=media", "after_bytes": MIB, "seconds": 3600}
    site.script("storage", {**stall, "times": 9})
    running = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "verify-weights", release.weights_uri, "--read"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **site.environment},
    )
    assert running.stderr
    assert running.stderr.readline().endswith("listing\n")
    line = running.stderr.readline()
    assert f"{len(SERVED)}/{len(SERVED) + 2} files, " in line
    assert site.consumed("storage") == [2]
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=120)
    assert (running.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted"
