"""Two emulators for the tests of what moves weights: a hub with releases made on the spot, and a bucket."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import requests
from emulated_cloud import process
from emulated_cloud.hub import Repository

from components.download_weights.step import bring
from components.download_weights.transfer import Limits
from serving.clients import hub, storage
from serving.settings import Settings, validated
from serving.weights import checkpoint, identity
from serving.weights.release import Release

MIB = 1 << 20
SHARD = 6 * MIB + 12_345
"""Bytes of a shard's tensor: beyond what is moved in one piece, and no multiple of anything."""
TOKEN = "hf_granted_token"
UNGRANTED = "hf_ungranted_token"
GATED = "test/gated"
QUICK = Limits(threads=4, stall_seconds=0.5, report_seconds=0.2)


def write_shard(path: Path, tensor: str, size: int, seed: int, *more: str) -> None:
    """A safetensors file of one tensor, and of `more` of a byte each."""
    entries = {tensor: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    for at, name in enumerate(more, size):
        entries[name] = {"dtype": "U8", "shape": [1], "data_offsets": [at, at + 1]}
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + random.Random(seed).randbytes(size + len(more)))


def write_release(folder: Path, *, shards: int = 2, size: int = SHARD, seed: int = 1) -> None:
    """A release as the hub has them, and what must stay behind: README, pickle, another framework's weights."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for number in range(1, shards + 1):
        name = f"model-{number:05}-of-{shards:05}.safetensors"
        write_shard(folder / name, f"tensor.{number}", size, seed * 100 + number)
        weight_map[f"tensor.{number}"] = name
    (folder / checkpoint.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64, "num_hidden_layers": 1}))
    (folder / "tokenizer.model").write_bytes(random.Random(seed).randbytes(100_000))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "LICENSE").write_text("terms")
    (folder / "README.md").write_text("# A model\n")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "consolidated.safetensors").write_bytes(b"another format's guess")


def content(uri: str) -> bytes:
    """An object's bytes."""
    there = storage.stat(uri)
    assert there
    parts: list[bytes] = []
    storage.read_through(uri, there.generation, parts.append)
    return b"".join(parts)


def bring_in_child(
    report: Connection, environment: dict[str, str], settings: dict[str, Any], release: dict[str, Any]
) -> None:
    """What a child process does that is started to be killed: sends an error, or nothing but "" at its end."""
    os.environ.update(environment)
    try:
        bring(Settings(**settings), Release(**release), lambda line: None, Limits(threads=4))
    except Exception as error:  # noqa: BLE001 (told to the test)
        report.send(repr(error))
    report.send("")


SERVED = {"config.json", checkpoint.INDEX, "tokenizer.model", "tokenizer.json", "chat_template.jinja", "LICENSE"}


@dataclass
class Site:
    """A hub and a bucket. `script` and `consumed` take the emulator's name: "hub" or "storage"."""

    root: Path
    processes: dict[str, process.Process]
    lines: list[str] = field(default_factory=list)
    """What the transfers of this test said."""

    def url(self, emulator: str) -> str:
        return self.processes[emulator].url

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "HF_ENDPOINT": self.url("hub"),
            "STORAGE_EMULATOR_HOST": self.url("storage"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    # -- the emulators --------------------------------------------------------------------------------------

    def script(self, emulator: str, *faults: dict[str, Any]) -> None:
        requests.post(f"{self.url(emulator)}/_emulator/faults", json=list(faults), timeout=60).raise_for_status()

    def consumed(self, emulator: str) -> list[int]:
        """How often each scripted fault has happened."""
        found = requests.get(f"{self.url(emulator)}/_emulator/faults", timeout=60).json()
        return [fault["consumed"] for fault in found]

    def requests(self, emulator: str) -> list[dict[str, Any]]:
        return requests.get(f"{self.url(emulator)}/_emulator/requests", timeout=60).json()

    # -- releases -------------------------------------------------------------------------------------------

    def commit(self, model: str, folder: Path, message: str = "Upload folder") -> str:
        return Repository(self.root / "hub", model).commit(folder, message)

    def settings(self, model: str, **changes: Any) -> Settings:
        values = {
            "scenario": "gcs-fuse",
            "project": "demo-project",
            "bucket": "demo-bucket",
            "model": model,
            "name": "t" + hashlib.sha256(model.encode()).hexdigest()[:12],
            **changes,
        }
        return validated(Settings, values)

    def release(self, settings: Settings, revision: str = "main", token: str | None = None) -> Release:
        """What resolve_model would make of a revision."""
        source = hub.Hub(token)
        commit = source.commit(settings.model, revision)
        key = identity.weights_key([("base", checkpoint.select(source.at(settings.model, commit)).served)])
        return Release(
            run_id="run-1",
            model=settings.model,
            commit=commit,
            weights_key=key,
            weights_uri=f"gs://{settings.bucket}/models/{settings.model}/{key}",
            generation="g0123456789",
        )

    def bring(self, settings: Settings, release: Release, limits: Limits = QUICK) -> int:
        return bring(settings, release, self.lines.append, limits)

    def start_bringing(
        self, settings: Settings, release: Release, stall_seconds: float = 30, token: str | None = None
    ) -> subprocess.Popen[str]:
        """Brings a release in a process of its own, which can be killed. It ends with one JSON line: bytes sent."""
        code = (
            "import json, sys, logging\n"
            "logging.basicConfig(level=logging.INFO)\n"
            "from serving.clients import google\n"
            "from components.download_weights.step import bring\n"
            "from components.download_weights.transfer import Limits\n"
            "from serving.weights.release import Release\n"
            "from serving.settings import Settings\n"
            "settings, release, stall, token = json.load(sys.stdin)\n"
            "if token:\n"
            "    google.secret = lambda name: token\n"
            "    settings['hub']['token_secret'] = 'projects/p/secrets/s/versions/1'\n"
            "limits = Limits(threads=4, stall_seconds=stall, report_seconds=0.2)\n"
            "sent = bring(Settings(**settings), Release(**release), lambda line: print(line, flush=True), limits)\n"
            "print(json.dumps(sent))\n"
        )
        popen = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
        )
        assert popen.stdin
        json.dump([settings.model_dump(mode="json"), release.model_dump(), stall_seconds, token], popen.stdin)
        popen.stdin.close()
        popen.stdin = None
        return popen


@pytest.fixture(scope="session")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("site")
    tokens = root / "tokens.json"
    granted = [GATED]
    tokens.write_text(
        json.dumps({TOKEN: {"user": "ada", "granted": granted}, UNGRANTED: {"user": "bob", "granted": []}})
    )
    hub_args = ("--root", str(root / "hub"), "--tokens", str(tokens), "--gated", GATED)
    storage_args = ("--root", str(root / "buckets"), "--bucket", "demo-bucket")
    processes: dict[str, process.Process] = {}
    try:
        processes["hub"] = process.start("emulated_cloud.hub", *hub_args, log=root / "hub.log")
        processes["storage"] = process.start("emulated_cloud.storage", *storage_args, log=root / "storage.log")
        yield Site(root, processes)
    finally:
        for running in processes.values():
            running.stop()
    assert (root / "hub.log").read_text() == ""
    assert (root / "storage.log").read_text() == ""


@pytest.fixture
def site(_site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The emulators without a fault, and this process's clients pointed at them."""
    for emulator in _site.processes:
        _site.script(emulator)
    _site.lines.clear()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", _site.url("hub"))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", _site.url("storage"))
    return _site


@pytest.fixture
def model() -> str:
    """The name of a model of the test's own."""
    return f"test/m-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release on disk."""
    write_release(tmp_path / "release")
    return tmp_path / "release"
