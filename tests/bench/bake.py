"""How fast a disk of container images is made, beside the way of the public builder: all in one run, as root.

    python -m tests.bench.bake [--quick] [--rounds N] [--docs FILE]

Makes an image (small files, one of 300 MiB, and all that a layer can have in it), pushes it to a docker-registry on
loopback and puts it onto an ext4 disk (a sparse file behind a loop device), each contestant in a process of its own,
in rounds that take turns; the medians count:

    ours              images/disk-builder/build_disk.py, with its check of the file system at the end
    public builder    containerd pulls and unpacks on the boot disk, `cp -r -p`, md5sum of every file: the commands of
                      github.com/ai-on-gke/tools, gke-disk-image-builder, without what it installs first
    limit             a pipe of curl, gzip and tar a layer: no digests, no whiteouts

`seconds` begins with an empty disk and a containerd that runs, and ends with the unmounted disk. `differs` counts the
attributes of files (owner, mode, time, links, extended attributes, content) that are not what containerd's own
snapshots have. Writes build/bench/bake.json, and the table between the two marks in FILE. `cpu_seconds` is that of all
its processes, `peak_mb` that of the largest, `mb_per_s` is of unpacked bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.system import images
from tests.system.archive import Blob, Layer
from tests.system.disk import MIB, Disk, differences, tree
from tests.system.oracle import Containerd
from tests.system.registry import Image, Registry
from tests.system.test_disk_builder import chain_ids

OUT = Path("build/bench/bake.json")
MARKS = ("<!-- written by make bench-bake -->", "<!-- end -->")
COLUMNS = ("case", "seconds", "mb_per_s", "cpu_seconds", "peak_mb", "disk_mb", "differs")


def small_files(count: int) -> Layer:
    """Twenty a folder, 8 KiB each, that compress to a third: what a Python environment is."""
    layer, source = Layer(), random.Random(count)
    for number in range(count):
        if number % 20 == 0:
            layer.folder(f"lib/{number // 2000}/{number // 20}")
        layer.file(f"lib/{number // 2000}/{number // 20}/{number}.py", source.randbytes(2700) + bytes(5400))
    return layer


def bench_image(registry: Registry, quick: bool) -> tuple[Image, int]:
    """An image, and the bytes of its archives."""
    layers: list[Blob] = [*images.everything(), small_files(1000 if quick else 20_000).blob()]
    layers += images.large(20 if quick else 300)
    unpacked = (1000 if quick else 20_000) * 8100 + (20 if quick else 300) * MIB
    return registry.push("bench/engine", layers), unpacked


# -- the contestants, each in a child process ---------------------------------------------------------------


def run(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, check=True, capture_output=True, text=True, **options)


def prepare_disk(disk: Disk) -> None:
    options = "lazy_itable_init=0,lazy_journal_init=0,discard"
    run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", options, disk.device)
    run("mount", "-o", "discard,defaults", disk.device, str(disk.mounts))


def ours(disk: Disk, image: Image, containerd: Containerd | None) -> None:
    said = disk.bake(image.wanted())
    assert "GP-BAKE done" in said, said


def public(disk: Disk, image: Image, containerd: Containerd | None) -> None:
    assert containerd
    prepare_disk(disk)
    assert not containerd.pull(image.name)
    (disk.mounts / "images.metadata").write_text(containerd.ctr("images", "ls"))
    for chain in chain_ids(image):
        folder = containerd.snapshots(chain)[-1]
        short = f"snapshots/{folder.parent.name}/fs"
        (disk.mounts / short).mkdir(parents=True)
        run("cp", "-r", "-p", str(folder), str((disk.mounts / short).parent))
        sums = f"find {disk.mounts / short} -type f -exec md5sum {{}} + | cut -d' ' -f1 | LC_ALL=C sort | md5sum"
        checksum = run("bash", "-c", sums).stdout.split()[0]
        with (disk.mounts / "snapshots.metadata").open("a") as table:
            table.write(f"{chain} {short} {checksum}\n")
    run("umount", str(disk.mounts))


def limit(disk: Disk, image: Image, containerd: Containerd | None) -> None:
    prepare_disk(disk)
    pipes = []
    for number, (layer, chain) in enumerate(zip(image.layers, chain_ids(image), strict=True), 1):
        (disk.mounts / f"snapshots/{number}/fs").mkdir(parents=True)
        with (disk.mounts / "snapshots.metadata").open("a") as table:
            table.write(f"{chain} snapshots/{number}/fs -\n")
        unpack = {"gzip": "gzip -dc", "zstd": "zstd -dcq"}.get(layer.media_type[-4:], "cat")
        url = f"http://{image.host}/v2/{image.repository}/blobs/{layer.digest}"
        command = (
            f"curl -s {url} | {unpack} | tar -x --numeric-owner --xattrs -P -C {disk.mounts}/snapshots/{number}/fs"
        )
        pipes.append(subprocess.Popen(["bash", "-c", command], stderr=subprocess.DEVNULL))
    for pipe in pipes:
        pipe.wait()  # tar does not like everything that it finds.
    run("umount", str(disk.mounts))


CASES: dict[str, Callable[[Disk, Image, Containerd | None], None]] = {
    "ours": ours,
    "public builder": public,
    "limit": limit,
}


def contest(case: str, image: Image, folder: Path) -> None:
    """The child: makes the disk, prints what it took as one JSON line."""
    containerd = Containerd(folder) if case == "public builder" else None
    now = time.time()
    with Disk(folder, mib=3072) as disk:
        if containerd:
            containerd.__enter__()
        started = time.monotonic()
        CASES[case](disk, image, containerd)
        figures: dict[str, Any] = {"seconds": time.monotonic() - started}
        if containerd:
            containerd.__exit__()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        figures |= {"cpu_seconds": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss * 1024 / 1e6}
        with disk.mounted() as root:
            figures["disk_mb"] = shutil.disk_usage(root).used / 1e6
            figures["differs"] = count_differences(root, image, folder, now)
    print(json.dumps(figures))


def count_differences(root: Path, image: Image, folder: Path, now: float) -> int:
    """By containerd, anew: what the contestant's own has is not what the contest is about."""
    (folder / "oracle").mkdir()
    with Containerd(folder / "oracle") as oracle:
        assert not oracle.pull(image.name)
        theirs = oracle.snapshots(chain_ids(image)[-1])
        lines = [line.split() for line in (root / "snapshots.metadata").read_text().splitlines()]
        ours = {line[0]: root / line[1] for line in lines}
        pairs = zip(chain_ids(image), theirs, strict=True)
        return sum(len(differences(tree(ours[chain], now), tree(there, now))) for chain, there in pairs)


# -- the contest --------------------------------------------------------------------------------------------


def measure(case: str, image: Image, root: Path) -> dict[str, Any]:
    """One contestant, once."""
    folder = Path(tempfile.mkdtemp(prefix="bake-", dir=root))
    os.sync()  # Nobody waits for what another has written.
    told = asdict(image)
    for layer in told["layers"]:
        layer["content"] = ""
    (folder / "image.json").write_text(json.dumps(told))
    try:
        command = [sys.executable, "-m", "tests.bench.bake", "--case", case, "--work", str(folder)]
        child = subprocess.run(command, capture_output=True, text=True)
        if child.returncode:
            sys.exit(f"{case} failed:\n{child.stderr}")
        return dict(json.loads(child.stdout.splitlines()[-1]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def row(case: str, rounds: list[dict[str, Any]], unpacked: int) -> dict[str, Any]:
    """The medians of a contestant's rounds; what differs is the worst round's."""
    figures = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    figures |= {"mb_per_s": unpacked / 1e6 / figures["seconds"], "differs": max(one["differs"] for one in rounds)}
    return {"case": case, **{key: round(figures[key], 3 if key.endswith("seconds") else 1) for key in COLUMNS[1:]}}


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark of making a disk of container images. Runs as root.")
    parser.add_argument("--quick", action="store_true", help="a fifteenth of the bytes: does it run at all?")
    parser.add_argument("--rounds", type=int, default=3, help="medians of how many (%(default)s)")
    parser.add_argument(
        "--docs", type=Path, metavar="FILE", help="put the table between the marks of this file, too (a whole run's)"
    )
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        told = json.loads((options.work / "image.json").read_text())
        layers = [Blob(**layer) for layer in told.pop("layers")]
        return contest(options.case, Image(layers=layers, **told), options.work)

    rounds: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    root = Path(tempfile.mkdtemp(prefix="bench-bake-"))
    try:
        with Registry(root) as registry:
            image, unpacked = bench_image(registry, options.quick)
            for number in range(options.rounds):
                for case in CASES:
                    figures = measure(case, image, root)
                    print(f"round {number + 1}: {case} {figures['seconds']:.2f} s", file=sys.stderr)
                    rounds[case].append(figures)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    rows = [row(case, found, unpacked) for case, found in rounds.items()]
    us, baseline, fastest = rows
    result = {
        "benchmark": "bake",
        "rows": rows,
        "ratios": {
            "seconds_of_baseline": round(us["seconds"] / baseline["seconds"], 3),
            "cpu_of_baseline": round(us["cpu_seconds"] / baseline["cpu_seconds"], 3),
            "seconds_of_limit": round(us["seconds"] / fastest["seconds"], 3),
        },
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    show(result)
    if options.docs and not options.quick:
        write_table(options.docs, result)
    return None


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*COLUMNS)
    for found in result["rows"]:
        table.add_row(*(str(found[key]) for key in COLUMNS))
    Console().print(table)
    print(f"{in_words(result)}. {OUT}")


def in_words(result: dict[str, Any]) -> str:
    ratios = result["ratios"]
    return (
        f"ours takes {ratios['seconds_of_baseline']} of the public builder's time and {ratios['cpu_of_baseline']} of "
        f"its processor time, {ratios['seconds_of_limit']} of the limit's time"
    )


def write_table(page: Path, result: dict[str, Any]) -> None:
    """Replaces what is between the marks of a page."""
    lines = [
        "| case | seconds | MB/s | CPU s | peak MB | disk MB | attributes that differ |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [f"| {' | '.join(str(found[key]) for key in COLUMNS)} |" for found in result["rows"]]
    words = in_words(result)
    head = f"`make bench-bake` on {len(os.sched_getaffinity(0))} cores:"
    made = "\n".join([MARKS[0], head, "", *lines, "", f"{words[0].upper()}{words[1:]}.", MARKS[1]])
    before, rest = page.read_text().split(MARKS[0])
    page.write_text(before + made + rest.partition(MARKS[1])[2])


if __name__ == "__main__":
    main()
