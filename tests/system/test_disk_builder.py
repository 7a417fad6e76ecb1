"""images/disk-builder/build_disk.py against Debian's containerd and docker-registry."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from . import images
from .archive import Layer
from .disk import Disk, differences, tree
from .oracle import Containerd
from .registry import Image, Registry


@dataclass
class Baked:
    """A disk with several images on it, as it is mounted."""

    images: dict[str, Image]
    said: str
    root: Path
    disk: Disk
    now: float

    def metadata(self) -> list[list[str]]:
        """As a node reads it: chain ID, folder and checksum of each layer."""
        return [line.split(" ") for line in (self.root / "snapshots.metadata").read_text().splitlines()]

    def layers(self, image: Image) -> list[Path]:
        """The folders of an image's layers, found by chain ID, the lowest first."""
        folders = {chain: folder for chain, folder, _ in self.metadata()}
        return [self.root / folders[chain] for chain in chain_ids(image)]


def chain_ids(image: Image) -> list[str]:
    found: list[str] = []
    for layer in image.layers:
        above = f"{found[-1]} {layer.diff_id}".encode() if found else b""
        found.append(f"sha256:{hashlib.sha256(above).hexdigest()}" if found else layer.diff_id)
    return found


@pytest.fixture(scope="module")
def baked(registry: Registry, containerd: Containerd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Baked]:
    now = time.time()
    everything = images.everything()
    pushed = {
        "everything": registry.push("test/everything", everything),
        "many layers": registry.push("test/many", images.many_layers()),
        "large": registry.push("test/large", images.large(), architecture="arm64", variant="v8"),
        # On the same layers, which lie on the disk once.
        "shared": registry.push("test/shared", [*everything[:2], Layer().file("more", b"more").blob()]),
    }
    with Disk(tmp_path_factory.mktemp("disk")) as disk:
        said = disk.bake(*(image.wanted() for image in pushed.values()))
        with disk.mounted() as root:
            yield Baked(pushed, said, root, disk, now)


@pytest.mark.parametrize("name", ["everything", "many layers", "large", "shared"])
def test_every_file_of_every_layer_is_as_containerd_unpacks_it(baked: Baked, containerd: Containerd, name: str) -> None:
    image = baked.images[name]
    platform = ["--platform", "linux/arm64"] if name == "large" else []
    assert not containerd.pull(image.name, *platform)
    theirs = containerd.snapshots(chain_ids(image)[-1])
    ours = baked.layers(image)
    assert len(ours) == len(theirs) == len(image.layers)
    for number, (here, there) in enumerate(zip(ours, theirs, strict=True)):
        found = differences(tree(here, baked.now), tree(there, baked.now))
        assert not found, f"layer {number + 1}: " + "\n".join(found)


def test_what_a_container_sees_is_what_it_would_see_with_containerd(
    baked: Baked, containerd: Containerd, tmp_path: Path
) -> None:
    image = baked.images["everything"]
    assert not containerd.pull(image.name)
    seen = []
    for folders in (baked.layers(image), containerd.snapshots(chain_ids(image)[-1])):
        lower = ":".join(str(folder) for folder in reversed(folders))
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={lower}", str(tmp_path)], check=True)
        try:
            seen.append(tree(tmp_path, baked.now))
        finally:
            subprocess.run(["umount", str(tmp_path)], check=True)
    assert not differences(*seen)
    assert {b"opt/gone/other", b"opt/removed", b"undone", b"srv/deep/new/newer/file", b"usr/bin/ping"} <= seen[0].keys()
    assert not {b"opt/replace/a", b"opt/replace/new", b"srv/attributed", b"srv/deep/new/third"} & seen[0].keys()
    assert seen[0][b"usr/bin/ping"]["xattrs"] == {"security.capability": images.BITS.encode()}


def test_a_node_finds_the_layers_by_the_metadata(baked: Baked, containerd: Containerd) -> None:
    found = baked.metadata()
    wanted = {chain for image in baked.images.values() for chain in chain_ids(image)}
    assert {chain for chain, _, _ in found} == wanted
    assert len(found) == len(wanted) == 6 + 130 + 1 + 1
    assert [folder for _, folder, _ in found] == [f"snapshots/{number}/fs" for number in range(1, len(found) + 1)]
    for _, folder, checksum in found[:7] + found[-2:]:
        # The public builder's own words.
        script = "find . -type f -exec md5sum {} + | cut -d' ' -f1 | LC_ALL=C sort | md5sum | cut -d' ' -f1"
        argv = ["bash", "-c", script]
        done = subprocess.run(argv, cwd=baked.root / folder, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == checksum, folder
    digest = hashlib.sha256((baked.root / "snapshots.metadata").read_bytes()).hexdigest()
    assert baked.said.splitlines()[-1] == f"GP-BAKE done {digest}"


def test_the_table_of_images_is_the_one_that_ctr_prints(baked: Baked, containerd: Containerd) -> None:
    for name, image in baked.images.items():
        assert not containerd.pull(image.name, *(["--platform", "linux/arm64"] if name == "large" else []))
    names = {image.name for image in baked.images.values()}
    for line in containerd.ctr("images", "ls", "-q").splitlines():
        if line not in names:
            containerd.ctr("images", "rm", line)
    assert (baked.root / "images.metadata").read_text() == containerd.ctr("images", "ls")


def test_it_says_how_far_it_is(baked: Baked) -> None:
    told = [line.split(" ", 3) for line in baked.said.splitlines() if line.startswith("GP-BAKE progress ")]
    percents = [int(words[2]) for words in told]
    assert percents == sorted(percents)
    assert percents[0] == 0
    assert percents[-1] == 100
    assert any("of 138 layers" in words[3] for words in told)
    assert "GP-BAKE heartbeat 0\n" in baked.said
