"""Weights that no engine could load, or that it would serve wrongly, end before they move; and the emulated engine does
what vLLM does with each (tests/real/test_bad_weights.py asks vLLM itself)."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from emulated_cloud.engine.args import parse
from emulated_cloud.engine.checkpoint import BadModel, check_processor, load_weights, open_config
from emulated_cloud.engine.lora import AdapterFailed, open_adapter
from emulated_cloud.hub.models import write_lora_adapter

from components.resolve_model.step import look_up, name_release
from serving.errors import ReleaseError, RequestError
from serving.settings import Settings
from serving.weights import manifest
from serving.weights.release import Release
from tests.contract.bad_weights import CASES, NO_TENSOR, NONE_OF_ITS, Case, in_one_file, with_processor
from tests.contract.transfer_site import Site, _site, model, site

__all__ = ["_site", "model", "site"]


@pytest.fixture(scope="module")
def whole(tiny_gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `model` in one file and an `adapter` for it."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(tiny_gemma3, folder / "model")
    in_one_file(folder / "model")
    write_lora_adapter(folder / "adapter", folder / "model")
    return folder


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def folder(case: Case, whole: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(whole, tmp_path / "spoilt"))
    case.make(folder / ("adapter" if case.adapter else "model"))
    return folder


def brought(site: Site, settings: Settings) -> Release:
    """The release, resolved and in the bucket."""
    release = name_release(settings, "run-1", look_up(settings), live="")
    site.bring(settings, release)
    return release


def test_bad_weights_end_before_they_move(site: Site, model: str, case: Case, folder: Path):
    site.commit(model, folder / "model")
    site.commit(f"{model}-lora", folder / "adapter")
    adapters = {"ko": {"model": f"{model}-lora"}} if case.adapter else {}
    settings = site.settings(model, adapters=adapters)
    if case.ours is None:
        release = brought(site, settings)
        there = manifest.listing(release.weights_uri)
        assert "model.safetensors" in there
        assert "adapter_model.safetensors" not in there, "what lies beside a model is no part of it"
        return
    # What would do nothing resolve_model refuses already, by the headers.
    with pytest.raises(RequestError if case.ours in (NO_TENSOR, NONE_OF_ITS) else ReleaseError, match=case.ours):
        brought(site, settings)
    assert manifest.complete_below(f"gs://demo-bucket/models/{model}") == []


def test_the_emulated_engine_does_what_vllm_does_with_them(case: Case, folder: Path):
    said = ""
    try:
        checkpoint = open_config(str(folder / "model"))
        check_processor(checkpoint, parse(["/model"]))
        load_weights(checkpoint)
        if case.adapter:
            open_adapter("ko", str(folder / "adapter"), checkpoint, 16)
    except (BadModel, AdapterFailed) as error:
        said = str(error)
        assert said
    assert bool(said) == (case.vllm is not None), said
    assert re.search(case.vllm or "", said), said


def test_what_is_told_to_serve_text_alone_needs_no_processor(site: Site, model: str, whole: Path, tmp_path: Path):
    folder = Path(shutil.copytree(whole / "model", tmp_path / "model"))
    with_processor(folder)
    site.commit(model, folder)
    no_images = ["--limit_mm_per_prompt", '{"image": 0}']
    for asked, arguments in (({"text_only": True}, ["--language-model-only"]), ({"extra_args": no_images}, no_images)):
        check_processor(open_config(str(folder)), parse(["/model", *arguments]))
        brought(site, site.settings(model, engine=asked))


@pytest.mark.parametrize("name", [b"config-\xff.json", b"two\nlines.json"])
def test_a_file_name_that_nobody_could_keep_is_named(site: Site, model: str, whole: Path, tmp_path: Path, name: bytes):
    folder = Path(shutil.copytree(whole / "model", tmp_path / "model"))
    (folder / os.fsdecode(name)).write_bytes(b"{}")
    site.commit(model, folder)
    with pytest.raises(RequestError, match=f"{model} has a file whose name no bucket, or no file system, takes: '"):
        look_up(site.settings(model))
