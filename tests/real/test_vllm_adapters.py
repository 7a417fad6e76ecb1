"""Real vLLM whose adapters change while it runs, behind the middleware of ours: what live-adapters is built on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulated_cloud.hub import models
from emulated_cloud.real import engine as real
from emulated_cloud.real.parts import PARTS, require

from serving.clients.engine import Adapters, BadAnswer, RefusedAdapter
from serving.rendering import manifests
from tests.contract.engine_process import Engine

TOKEN = "open sesame"
FLAGS = ["--served-model-name", "base", "--max-model-len", "512", "--enable-lora", "--max-lora-rank", "8"]
FLAGS += ["--max-loras", "2", "--max-cpu-loras", "32", "--middleware", "gemma_adapters.OwnPodAlone"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, adapters of it, and what a pod has of ours."""
    folder = tmp_path_factory.mktemp("vllm")
    models.write_gemma3(folder / "model")
    for seed, name in enumerate(("one", "other"), 1):
        models.write_lora_adapter(folder / name, folder / "model", seed=seed)
    models.write_lora_adapter(folder / "wide", folder / "model", rank=32)
    (config_map,) = manifests.of("live-adapters", "generation").values()
    (folder / "gemma_adapters.py").write_text(config_map["data"]["gemma_adapters.py"])
    (folder / "token").write_text(TOKEN)
    return folder


@pytest.fixture(scope="module")
def vllm(folder: Path) -> Iterator[Engine]:
    require(["vllm"])
    program = (PARTS["vllm"].folder / "bin" / "python", real.__file__, "serve")
    places = {"PYTHONPATH": str(folder), "GEMMA_ADAPTERS": str(folder), "VLLM_CACHE_ROOT": str(folder / "cache")}
    switches = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true", "VLLM_API_KEY": "secret", "USER": "vllm"}
    engine = Engine(
        folder / "model", *FLAGS, log=folder / "log", env={**real.ENVIRONMENT, **places, **switches}, program=program
    )
    try:
        engine.wait(seconds=900)
        engine.client.headers["Authorization"] = "Bearer secret"
        yield engine
    finally:
        engine.stop()


@pytest.fixture
def adapters(vllm: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Adapters]:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    with Adapters.at(vllm.url, TOKEN) as found:
        yield found


def said(engine: Engine, name: str) -> str:
    answer = engine.chat(model=name, max_tokens=16, temperature=0)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_they_come_are_replaced_and_go(vllm: Engine, folder: Path, adapters: Adapters) -> None:
    assert adapters.served() == {}
    adapters.load("ko", str(folder / "one"), in_place=False)
    assert adapters.served() == {"ko": str(folder / "one")}
    first, base = said(vllm, "ko"), said(vllm, "base")
    assert first != base

    codes: list[int] = []
    asking = threading.Thread(
        target=lambda: codes.append(vllm.chat(model="ko", max_tokens=200, ignore_eos=True).status_code)
    )
    asking.start()
    adapters.load("ko", str(folder / "other"), in_place=True)
    asking.join()
    assert codes == [200]
    assert adapters.served() == {"ko": str(folder / "other")}
    assert said(vllm, "ko") not in (first, base)
    adapters.load("ko", str(folder / "one"), in_place=True)
    assert said(vllm, "ko") == first

    adapters.unload("ko")
    assert adapters.served() == {}
    assert vllm.chat(model="ko").status_code == 404
    assert "The model `ko` does not exist" in vllm.chat(model="ko").text


def test_what_it_refuses_is_told_in_its_words(vllm: Engine, folder: Path, adapters: Adapters) -> None:
    with pytest.raises(RefusedAdapter, match="rank"):
        adapters.load("wide", str(folder / "wide"), in_place=False)
    with pytest.raises(RefusedAdapter, match="No adapter found for"):
        adapters.load("none", str(folder / "nothing"), in_place=False)
    with pytest.raises(RefusedAdapter, match="conflicts with a served base model"):
        adapters.load("base", str(folder / "one"), in_place=False)
    adapters.load("twice", str(folder / "one"), in_place=False)
    with pytest.raises(RefusedAdapter, match="already been loaded"):
        adapters.load("twice", str(folder / "one"), in_place=False)
    adapters.unload("twice")
    with pytest.raises(BadAnswer, match="404"):
        adapters.unload("twice")
    assert adapters.served() == {}


def test_the_routes_are_closed_and_one_of_them_needs_no_key(vllm: Engine, folder: Path, adapters: Adapters) -> None:
    body = {"lora_name": "mine", "lora_path": str(folder / "one")}
    registered = {"name": "mine", "src": body["lora_path"]}
    for path, question in (("/v1/load_lora_adapter", body), ("/adapters", registered)):
        answer = vllm.client.post(path, json=question)
        assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
    assert vllm.client.delete("/adapters/mine").status_code == 404
    # Behind the middleware SageMaker's route is there, and asks for no key: that is what it closes.
    without_key = {"Authorization": "", "x-gemma-adapters": TOKEN}
    assert vllm.client.post("/v1/load_lora_adapter", json=body, headers=without_key).status_code == 401
    there = vllm.client.post("/adapters", json=registered, headers=without_key)
    assert (there.status_code, there.text) == (200, "Adapter mine registered")
    assert set(adapters.served()) == {"mine"}
    gone = vllm.client.delete("/adapters/mine", headers=without_key)
    assert (gone.status_code, gone.text) == (200, "Adapter mine unregistered")
