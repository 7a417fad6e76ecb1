"""The emulators as pytest fixtures: a test-suite has them as soon as this distribution is installed beside pytest.

    def test_my_component(emulated_cloud, cloud_environment):
        my_component(bucket="demo-bucket")          # google-cloud-storage, kubernetes, huggingface_hub as they are
        assert emulated_cloud.requests("storage")   # what was asked of the bucket

`emulated_cloud` is one cloud for the whole session (a hub with `google/gemma-3-4b-it`, a bucket `demo-bucket`, a
secret `hf-token`, a cluster `gemma` in us-central1); `cloud_environment` points the clients of one test at it.
`new_cloud` makes clouds of a test's own. `emulated_cloud_options`, in a conftest.py, is what all of them are made with.
`tiny_gemma3` and `tiny_gemma4` are folders with small checkpoints.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from emulated_cloud.cloud import Cloud

HUB_TOKEN = "hf_test"  # noqa: S105 (opens nothing but an emulator)


@pytest.fixture(scope="session")
def tiny_gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3 checkpoint; do not write into it (copy it)."""
    from emulated_cloud.hub.models import write_gemma3

    folder = tmp_path_factory.mktemp("gemma3")
    write_gemma3(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_gemma4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 4 checkpoint; do not write into it (copy it)."""
    from emulated_cloud.hub.models import write_gemma4

    folder = tmp_path_factory.mktemp("gemma4")
    write_gemma4(folder)
    return folder


@pytest.fixture(scope="session")
def emulated_cloud_options() -> dict[str, Any]:
    """Options of emulated_cloud.cloud.Cloud for every cloud of the session; a conftest.py overrides it."""
    return {}


@pytest.fixture(scope="session")
def emulated_cloud(
    tmp_path_factory: pytest.TempPathFactory, tiny_gemma3: Path, emulated_cloud_options: dict[str, Any]
) -> Iterator[Cloud]:
    """One cloud for all tests: leave in it nothing that another test could trip over."""
    options = {"repositories": {"google/gemma-3-4b-it": tiny_gemma3}, **emulated_cloud_options}
    with _cloud(tmp_path_factory.mktemp("cloud"), **options) as cloud:
        yield cloud


@pytest.fixture
def new_cloud(tmp_path: Path, emulated_cloud_options: dict[str, Any]) -> Iterator[Callable[..., Cloud]]:
    """Makes a cloud of the test's own: `new_cloud(buckets=[…], repositories={…}, …)`, as emulated_cloud.cloud.Cloud."""
    clouds: list[Cloud] = []

    def make(**options: Any) -> Cloud:
        cloud = _cloud(tmp_path / f"cloud-{len(clouds)}", **{**emulated_cloud_options, **options})
        cloud.start()
        clouds.append(cloud)
        return cloud

    yield make
    for cloud in clouds:
        cloud.stop()


@pytest.fixture
def cloud_environment(emulated_cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Points this process's clients at `emulated_cloud` for one test: its environment is `Cloud.environment`, and holds
    nothing else that might lead them to the real cloud. Returns the variables, for child processes."""
    environment = emulated_cloud.environment
    if metadata := sys.modules.get("google.auth.compute_engine._metadata"):
        # google.auth reads this variable once, when it is imported.
        monkeypatch.setattr(metadata, "_GCE_METADATA_HOST", environment["GCE_METADATA_HOST"])
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


def _cloud(folder: Path, **options: Any) -> Cloud:
    from emulated_cloud.cloud import Cloud

    repositories = options.get("repositories", {})
    return Cloud(folder, **{"gated": list(repositories), "secrets": {"hf-token": HUB_TOKEN}, **options})
