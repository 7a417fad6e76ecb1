"""Adapters that come, go and are replaced in a pod that runs: its container, an engine, a bucket."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud.hub import models

from components.deploy_server.adapting import DECIDED, TOKEN, Adapting, Plan
from serving.clients.engine import Adapters, BadAnswer, RefusedAdapter
from serving.features import live_adapters
from serving.rendering import manifests
from serving.settings import Settings
from serving.weights import manifest
from serving.weights.release import Release
from tests.contract.engine_process import Engine, running
from tests.contract.test_download_adapters import resolved
from tests.contract.transfer_site import Site, _site, content, folder, model, site

__all__ = ["_site", "folder", "model", "site"]

ADAPTERS = ("ko", "legal")


class Pod:
    """An engine and what is beside it, without a kubelet in between."""

    def __init__(self, engine: Engine, folder: Path):
        self.engine, self.folder, self.wanted = engine, folder, folder.parent / "wanted.json"
        self.lines: list[str] = []
        (folder / TOKEN).write_text("open sesame")
        self.plan = Plan(wanted=str(self.wanted), folder=str(folder), engine=engine.url, patience_seconds=5)
        self.begin()

    def begin(self) -> None:
        self._door = Adapters.at(self.engine.url, "open sesame")
        self.adapters = self._door.__enter__()
        self.adapting = Adapting(self.plan, self.adapters, self.lines.append)

    def look(self, uri: str) -> dict[str, Any]:
        """One round with this set wanted: what the container says of it."""
        self.wanted.write_text(live_adapters.wanted(uri))
        self.adapting.look()
        states = [json.loads(line) for line in self.lines if line.startswith("{")]
        return states[-1] if states else {}

    def answer(self, name: str) -> str:
        answered = self.engine.chat(model=name, max_tokens=24, temperature=0)
        assert answered.status_code == 200, answered.text
        return answered.json()["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    models.write_gemma3(folder)
    return folder


@pytest.fixture
def pod(tiny: Path, tmp_path: Path) -> Iterator[Pod]:
    """With the flags and the middleware of the manifests."""
    (config_map,) = manifests.of("live-adapters", "generation").values()
    (tmp_path / "gemma_adapters.py").write_text(config_map["data"]["gemma_adapters.py"])
    (tmp_path / "adapters").mkdir()
    environment = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true",
        "GEMMA_ADAPTERS": str(tmp_path / "adapters"),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    }
    flags = ["--served-model-name", "base", "--enable-lora", "--max-lora-rank", "8", "--max-cpu-loras", "32"]
    flags += ["--middleware", "gemma_adapters.OwnPodAlone"]
    with running(tiny, *flags, log=tmp_path / "log", env=environment) as engine:
        yield Pod(engine, tmp_path / "adapters")


class Hub:
    """The model and its adapters as repositories of the hub, and runs that bring them into the bucket."""

    def __init__(self, site: Site, model: str, tiny: Path, root: Path):
        self.site, self.model, self.tiny, self.root = site, model, tiny, root
        site.commit(model, tiny)

    def commit(self, name: str, **options: Any) -> None:
        models.write_lora_adapter(self.root / name, self.tiny, base_name=self.model, **options)
        self.site.commit(f"{self.model}-{name}", self.root / name)

    def settings(self, *names: str) -> Settings:
        adapters = {name: {"model": f"{self.model}-{name}"} for name in names}
        return self.site.settings(self.model, adapters=adapters, features=["live-adapters"])

    def bring(self, *names: str) -> Release:
        settings = self.settings(*names)
        release = resolved(settings)
        self.site.bring(settings, release)
        return release


@pytest.fixture
def hub(site: Site, model: str, tiny: Path, tmp_path: Path) -> Hub:
    made = Hub(site, model, tiny, tmp_path / "hub")
    for seed, name in enumerate(ADAPTERS, 1):
        made.commit(name, seed=seed)
    return made


def test_they_come_are_replaced_and_go_in_a_pod_that_runs(pod: Pod, hub: Hub):
    process = pod.engine.process.pid
    assert pod.look("") == {"adapters": "", "served": [], "refused": {}, "waits": ""}
    one = hub.bring("ko")
    assert pod.look(one.adapters_uri)["served"] == ["ko"]
    first = pod.answer("ko")
    assert first != pod.answer("base")

    both = hub.bring("ko", "legal")
    assert pod.look(both.adapters_uri)["served"] == ["ko", "legal"]
    assert pod.answer("ko") == first
    assert pod.answer("legal") not in (first, pod.answer("base"))

    hub.commit("ko", seed=9)
    other = hub.bring("ko", "legal")
    assert pod.look(other.adapters_uri)["served"] == ["ko", "legal"]
    assert pod.answer("ko") not in (first, pod.answer("base"))

    # Back to what was before, the same bytes: what take_back does.
    assert pod.look(both.adapters_uri)["served"] == ["ko", "legal"]
    assert pod.answer("ko") == first

    assert pod.look(hub.bring("legal").adapters_uri)["served"] == ["legal"]
    assert pod.engine.chat(model="ko").status_code == 404
    assert pod.look("")["served"] == []
    assert pod.engine.chat(model="legal").status_code == 404
    assert {path.name for path in pod.folder.iterdir()} == {TOKEN, DECIDED}
    assert pod.engine.process.pid == process
    assert pod.engine.process.poll() is None
    # None of it made another generation, and none moved the model again.
    assert len({each.generation for each in (one, both, other)}) == 1
    assert len({each.weights_uri for each in (one, both, other)}) == 1
    assert len({each.adapters_key for each in (one, both, other)}) == 3


def test_a_request_that_runs_fails_through_none_of_it(pod: Pod, hub: Hub):
    one = hub.bring("ko")
    pod.look(one.adapters_uri)
    codes: list[int] = []
    told = threading.Event()

    def ask() -> None:
        while not told.is_set():
            codes.append(pod.engine.chat(model="ko", max_tokens=16).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for seed in (5, 6, 7):
            hub.commit("ko", seed=seed)
            pod.look(hub.bring("ko", "legal").adapters_uri)
            pod.look(hub.bring("ko").adapters_uri)
    finally:
        told.set()
        asking.join()
    assert len(codes) > 5
    assert set(codes) == {200}


def test_what_the_engine_refuses_is_said_once_and_the_rest_is_served(pod: Pod, hub: Hub, site: Site):
    models.write_lora_adapter(hub.root / "bad", hub.tiny, base_name=hub.model, rank=32)
    config = hub.root / "bad" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "r": 8}))
    site.commit(f"{hub.model}-bad", hub.root / "bad")
    release = hub.bring("bad", "ko")
    # Its tensors have another rank than its configuration says: only the engine sees that.
    state = pod.look(release.adapters_uri)
    lines = len(pod.lines)
    pod.look(release.adapters_uri)
    assert len(pod.lines) == lines
    assert state["served"] == ["ko"]
    assert list(state["refused"]) == ["bad"]
    assert "has shape" in state["refused"]["bad"]
    assert (pod.folder / DECIDED).exists()  # A pod that served before goes on serving.


def test_bytes_that_are_not_the_manifests_are_not_loaded(pod: Pod, hub: Hub, site: Site):
    release = hub.bring("ko")
    uri = f"{release.adapters_uri}/adapters/ko/adapter_model.safetensors"
    site.script("storage", *[{"action": "corrupt", "method": "GET", "path": ".*adapter_model.safetensors.*"}] * 3)
    state = pod.look(release.adapters_uri)
    assert "arrived with other bytes 3 times" in state["waits"]
    assert state["served"] == []
    assert site.consumed("storage") == [1, 1, 1]
    assert pod.engine.chat(model="ko").status_code == 404
    assert not (pod.folder / DECIDED).exists()
    assert pod.look(release.adapters_uri)["served"] == ["ko"]
    assert content(uri) == (hub.root / "ko" / "adapter_model.safetensors").read_bytes()


def test_the_routes_are_closed_to_all_but_the_pod(pod: Pod, hub: Hub):
    pod.look(hub.bring("ko").adapters_uri)
    body = {"lora_name": "mine", "lora_path": str(hub.root / "legal")}
    for token in (None, "", "open", "open sesame!"):
        headers = {"x-gemma-adapters": token} if token is not None else {}
        for path, question in (
            ("/v1/load_lora_adapter", body),
            ("/v1/unload_lora_adapter", {"lora_name": "ko"}),
            ("/adapters", {"name": "mine", "src": body["lora_path"]}),
        ):
            answer = pod.engine.client.post(path, json=question, headers=headers)
            assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"}), path
        assert pod.engine.client.delete("/adapters/ko", headers=headers).status_code == 404
    assert set(pod.adapters.served()) == {"ko"}
    # With it they are there: the middleware is what closed them.
    known = {"x-gemma-adapters": "open sesame"}
    there = pod.engine.client.post("/adapters", json={"name": "mine", "src": body["lora_path"]}, headers=known)
    assert there.status_code == 200, there.text
    assert pod.engine.client.delete("/adapters/mine", headers=known).status_code == 200
    pod.folder.joinpath(TOKEN).unlink()
    assert pod.engine.client.post("/v1/load_lora_adapter", json=body, headers=known).status_code == 404


def test_an_engine_that_is_away_keeps_the_pod_from_being_ready(pod: Pod, hub: Hub):
    release = hub.bring("ko")
    pod.look(release.adapters_uri)
    pod.engine.process.kill()
    pod.engine.process.wait()
    state = pod.look(release.adapters_uri)
    assert (state["served"], (pod.folder / DECIDED).exists()) == ([], False)
    assert "/v1/models: " in state["waits"]


def test_an_adapter_that_takes_a_name_of_the_base_is_refused(pod: Pod, hub: Hub):
    with pytest.raises(RefusedAdapter, match="conflicts with a served base model"):
        pod.adapters.load("base", str(hub.root / "ko"), in_place=False)
    with pytest.raises(BadAnswer, match="404"):
        pod.adapters.unload("nobody")


def test_the_set_has_a_manifest_of_its_own(hub: Hub):
    release = hub.bring(*ADAPTERS)
    base, _ = manifest.read(release.weights_uri)
    adapters, _ = manifest.read(release.adapters_uri)
    assert base
    assert adapters
    assert [each.role for each in base.repositories] == ["base"]
    assert [each.role for each in adapters.repositories] == list(ADAPTERS)
    assert {file.path for file in adapters.files} == {
        f"adapters/{name}/adapter_{part}" for name in ADAPTERS for part in ("config.json", "model.safetensors")
    }
    assert hub.site.bring(hub.settings(*ADAPTERS), release) == 0
