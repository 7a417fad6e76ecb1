"""The emulated registry, as containerd judges it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from emulated_cloud import process

from .oracle import Containerd

TOKEN = "an-access-token"


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its host and port."""
    folder = tmp_path_factory.mktemp("emulated-registry")
    (folder / "token").write_text(TOKEN)
    options = ("--root", str(folder / "root"), "--token", str(folder / "token"), "--private", "demo/.*")
    started = process.start("emulated_cloud.registry", *options, log=folder / "log")
    yield started.url.removeprefix("http://")
    started.stop()
    assert (folder / "log").read_text() == ""


@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64"])
def test_an_image_is_pulled_and_unpacked(emulated: str, containerd: Containerd, platform: str, tmp_path: Path):
    name = f"{emulated}/vllm/vllm-openai:v1-{platform[6:]}"
    assert containerd.pull(name, "--platform", platform) == ""
    containerd.ctr("images", "mount", "--platform", platform, name, str(tmp_path))
    try:
        assert sorted(path.name for path in (tmp_path / "opt").iterdir()) == ["layer-0", "layer-1", "layer-2"]
        layer = tmp_path / "opt" / "layer-1"
        assert (layer / "data").samefile(layer / "same")
        assert (layer.stat().st_uid, (layer / "link").readlink()) == (1001, Path("data"))
        assert not (tmp_path / "etc" / "old").exists(), "the last layer has a whiteout"
    finally:
        containerd.ctr("images", "unmount", str(tmp_path))


def test_a_private_image_wants_the_access_token(emulated: str, containerd: Containerd):
    name = f"{emulated}/demo/images/engine:v1"
    assert "401 Unauthorized" in containerd.pull(name)
    assert containerd.pull(name, "--user", f"oauth2accesstoken:{TOKEN}") == ""
