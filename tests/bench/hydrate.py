"""How fast weights come from a bucket onto a disk, beside `cp` and sha256 of the same bytes onto the same disk.

    python -m tests.bench.hydrate [--quick] [--rounds N] [--folder DIR] [--docs FILE]

The storage emulator serves four shards, which lie in memory; they go onto the disk that DIR (the temporary folder) is
on. Each contestant is a process of its own, and they take turns; the median of each one's rounds counts:

    ours       components/hydrate_volume: the Job that copies
    baseline   transfer_manager.download_many_to_path, then sha256: what a user would write
    limit      cp, sync and sha256, four files at once, out of the folder where the bucket's bytes lie

All of them end when the bytes are on the disk. "reading" is the Job that reads a volume, and is compared with nothing:
it takes from the disk, the limit's sha256 from memory. Then ours alone with 1 and 4 GiB in eight files: memory must not
grow. Writes build/bench/hydrate.json, and the table between the two marks in FILE. `cpu_seconds` and `peak_mb` are the
contestant's alone, `seconds` begins when everything is imported.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emulated_cloud import process

from tests.bench.transfer import MIB, row, show, working_folder, write_table

BUCKET = "bench-bucket"
OUT = Path("build/bench/hydrate.json")
CASES = ("ours", "baseline", "limit")
WEIGHTS = "models/bench/model/0123456789abcdef"


# -- the contestants, each in a child process ---------------------------------------------------------------


def prepare_ours(names: list[str], objects: Path, folder: Path) -> Callable[[], None]:
    return _job("copy", folder)


def prepare_reading(names: list[str], objects: Path, folder: Path) -> Callable[[], None]:
    return _job("verify", folder)


def _job(task: str, folder: Path) -> Callable[[], None]:
    from components.hydrate_volume import copying, reading
    from components.hydrate_volume.volume import Plan
    from serving.clients import storage

    plan = Plan(weights_uri=f"gs://{BUCKET}/{WEIGHTS}", folder=str(folder))
    storage.read_through(f"{plan.weights_uri}/_MANIFEST.json", None, len)

    def work() -> None:
        if task == "copy":
            assert not copying.copy(plan, _say)["kept"]
        else:
            verdict = reading.verify(plan, _say)
            assert verdict["passed"], verdict

    return work


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def prepare_baseline(names: list[str], objects: Path, folder: Path) -> Callable[[], None]:
    from google.cloud import storage
    from google.cloud.storage import transfer_manager

    bucket = storage.Client(project="bench-project").bucket(BUCKET)

    def work() -> None:
        results = transfer_manager.download_many_to_path(
            bucket, names, str(folder), blob_name_prefix=f"{WEIGHTS}/", worker_type=transfer_manager.THREAD
        )
        assert not any(results), results
        _in_threads(lambda name: _written(folder / name), names)

    return work


def prepare_limit(names: list[str], objects: Path, folder: Path) -> Callable[[], None]:
    def copy(name: str) -> str:
        subprocess.run(["cp", str(objects / name), str(folder / name)], check=True)
        return _written(folder / name)

    return lambda: _in_threads(copy, names)


def _in_threads(work: Callable[[str], str], names: list[str]) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(work, names))


def _written(path: Path) -> str:
    """The sha256 of a file that lies on the disk afterwards."""
    subprocess.run(["sync", str(path)], check=True)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def contest(case: str, objects: Path, folder: Path) -> None:
    """The child: does the work, prints what it took as one JSON line."""
    prepare = {
        "ours": prepare_ours,
        "baseline": prepare_baseline,
        "limit": prepare_limit,
        "reading": prepare_reading,
    }[case]
    names = sorted(path.name for path in objects.iterdir() if not path.name.startswith("_"))
    work = prepare(names, objects, folder)
    before, started = _processor_seconds(), time.monotonic()
    work()
    seconds = time.monotonic() - started
    high_water = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert high_water
    figures = {
        "seconds": seconds,
        "cpu_seconds": _processor_seconds() - before,
        "peak_mb": int(high_water[1]) / 976.5625,
    }
    print(json.dumps(figures))


def _processor_seconds() -> float:
    """This process's, and those of the commands that it ran."""
    times = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(found.ru_utime + found.ru_stime for found in times)


# -- the contest --------------------------------------------------------------------------------------------


@contextmanager
def bucket_of(root: Path, files: int, mib: int) -> Iterator[tuple[str, Path]]:
    """A bucket with complete weights: the emulator's address, and the folder where their bytes lie."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.storage import Client

    root.mkdir()
    emulator = process.start(
        "emulated_cloud.storage", "--root", str(root / "buckets"), "--bucket", BUCKET, log=root / "storage.log"
    )
    try:
        client = Client("bench-project", AnonymousCredentials(), client_options={"api_endpoint": emulator.url})
        content = random.Random(1).randbytes(8 * MIB) * (mib // 8)
        known = []
        for number in range(1, files + 1):
            path = f"model-{number:05}-of-{files:05}.safetensors"
            blob = client.bucket(BUCKET).blob(f"{WEIGHTS}/{path}")
            blob.upload_from_string(content, checksum="crc32c")
            found = {"path": path, "size": blob.size, "crc32c": blob.crc32c, "generation": blob.generation}
            known.append({**found, "sha256": hashlib.sha256(content).hexdigest()})
        made = {"weights_key": WEIGHTS.rpartition("/")[2], "repositories": [], "files": known}
        client.bucket(BUCKET).blob(f"{WEIGHTS}/_MANIFEST.json").upload_from_string(json.dumps(made))
        del content
        yield emulator.url, root / "buckets" / BUCKET / "objects" / WEIGHTS
    finally:
        emulator.stop()
        shutil.rmtree(root)


def measure(case: str, url: str, objects: Path, folder: Path) -> dict[str, Any]:
    """One contestant, once. What "ours" leaves in the folder is there for "reading"; else the folder begins empty."""
    if case != "reading":
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    os.sync()  # Nobody waits for what another has written.
    command = [sys.executable, "-m", "tests.bench.hydrate", "--case", case, str(objects), str(folder)]
    child = subprocess.run(command, env={**os.environ, "STORAGE_EMULATOR_HOST": url}, capture_output=True, text=True)
    if child.returncode:
        sys.exit(f"{case} failed:\n{child.stderr}")
    disk = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    moved = sum(path.stat().st_size for path in objects.iterdir() if not path.name.startswith("_"))
    return {**json.loads(child.stdout.splitlines()[-1]), "bytes": moved, "disk_mb": disk}


def compare(root: Path, folder: Path, mib: int, rounds: int) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """The contestants, taking turns: the round in the middle of each, and every round's seconds."""
    took: dict[str, list[dict[str, Any]]] = {case: [] for case in (*CASES, "reading")}
    with bucket_of(root / "compared", 4, mib) as (url, objects):
        for number in range(rounds):
            for case in ("baseline", "limit", "ours", "reading"):
                took[case].append(measure(case, url, objects, folder))
                print(f"round {number + 1}: {case} {took[case][-1]['seconds']:.2f} s", file=sys.stderr)
    rows = []
    for case, found in took.items():
        middle = sorted(found, key=lambda figures: figures["seconds"])[len(found) // 2]
        rows.append(row(case, {**middle, "peak_mb": max(figures["peak_mb"] for figures in found)}))
    return rows, {case: [figures["seconds"] for figures in found] for case, found in took.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark of the copy from the bucket to a disk.")
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the bytes: does it run at all?")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, of which the median counts (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk (%(default)s)")
    parser.add_argument(
        "--docs", type=Path, metavar="FILE", help="put the table between the marks of this file, too (a whole run's)"
    )
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        return contest(options.case[0], Path(options.case[1]), Path(options.case[2]))

    # Gigabytes of memory must not stay behind when somebody ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    scale = 16 if options.quick else 1
    with (
        tempfile.TemporaryDirectory(prefix="bench-bucket-", dir=working_folder(6 * 1024 * MIB // scale)) as memory,
        tempfile.TemporaryDirectory(prefix="bench-hydrate-", dir=options.folder) as disk,
    ):
        root, folder = Path(memory), Path(disk) / "volume"
        rows, seconds = compare(root, folder, 512 // scale, options.rounds)
        for gib in (1, 4):
            with bucket_of(root / "alone", 8, gib * 128 // scale) as (url, objects):
                name = f"ours, {gib} GiB in eight files" + (f" / {scale}" if options.quick else "")
                rows.append(row(name, measure("ours", url, objects, folder)))
    middle = {case: statistics.median(found) for case, found in seconds.items()}
    result = {
        "benchmark": "hydrate",
        "rows": rows,
        "ratios": {
            "of_limit": round(middle["limit"] / middle["ours"], 3),
            "of_baseline": round(middle["baseline"] / middle["ours"], 3),
            "peak_mb": max(found["peak_mb"] for found in rows if found["case"].startswith("ours")),
        },
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    show(result, in_words(result), OUT)
    if options.docs and not options.quick:
        write_table(options.docs, result, in_words(result))
    return None


def in_words(result: dict[str, Any]) -> str:
    ratios = result["ratios"]
    return (
        f"ours is {ratios['of_limit']} of the limit and {ratios['of_baseline']} of the baseline, and needs "
        f"{ratios['peak_mb']} MB at most, whatever the size"
    )


if __name__ == "__main__":
    main()
