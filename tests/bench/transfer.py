"""How fast weights move, beside what a user would write and beside what the machine can do: all in one run.

    python -m tests.bench.transfer [--quick] [--rounds N] [--docs FILE]

Serves generated safetensors from the hub emulator and moves them into the storage emulator, each contestant in a
process of its own, the best of several rounds that take turns:

    ours       components/download_weights
    baseline   snapshot_download, then transfer_manager.upload_many_from_filenames: what a user would write
    limit      raw sockets, sha256, crc32c and a file (tests/bench/relay.py)

What hub and bucket keep lies in memory if it has room, since their disks are none of ours; a contestant's home and
temporary folder lie on this machine's disk, as a user's do. "baseline, home in memory" shows what that makes out.

Then ours alone with 0.5 to 4 GiB, and with 5,000 small files. Writes build/bench/transfer.json, and the table between
the two marks in FILE. `cpu_seconds` and `peak_mb` are the contestant's alone (the emulators' share counts in
`seconds`), `peak_mb` that of the largest of its processes, `disk_mb` is what lies in its home and temporary folders at
its end, `seconds` begins when everything is imported and connected.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emulated_cloud import process
from emulated_cloud.hub import Repository

MIB = 1 << 20
BUCKET, MODEL = "bench-bucket", "bench/model"
OUT = Path("build/bench/transfer.json")
IN_MEMORY = "baseline, home in memory"
CASES = {"ours": "ours", "baseline": "baseline", IN_MEMORY: "baseline", "limit": "limit"}
"""Rows of the comparison, and the contestant of each."""


# -- what is moved ------------------------------------------------------------------------------------------


def write_model(folder: Path, shards: int, mib: int, small: int = 0) -> int:
    """A model of `shards` × `mib` MiB and `small` small files. Returns its bytes, those that are moved."""
    folder.mkdir(parents=True)
    block = random.Random(1).randbytes(8 * MIB)
    weight_map = {}
    for number in range(1, shards + 1):
        name = f"model-{number:05}-of-{shards:05}.safetensors"
        size = mib * MIB
        header = json.dumps({f"t{number}": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
        with open(folder / name, "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            for start in range(0, size, len(block)):
                file.write(block[: size - start])
        weight_map[f"t{number}"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text('{"architectures": ["Gemma3ForCausalLM"]}')
    for number in range(small):
        (folder / f"part-{number:05}.json").write_text(json.dumps({"number": number, "text": "x" * 2000}))
    return sum(path.stat().st_size for path in folder.iterdir())


# -- the contestants, each in a child process ---------------------------------------------------------------


def prepare_ours(work: Path) -> Callable[[], None]:
    from components.download_weights.step import bring
    from serving.clients import hub, storage
    from serving.settings import Settings, validated
    from serving.weights import checkpoint, identity
    from serving.weights.release import Release

    values = {"scenario": "gcs-fuse", "project": "bench-project", "bucket": BUCKET, "model": MODEL}
    settings = validated(Settings, values)
    commit = hub.Hub().commit(MODEL, "main")
    key = identity.weights_key([("base", checkpoint.select(hub.Hub().at(MODEL, commit)).served)])
    release = Release(
        run_id="bench",
        model=MODEL,
        commit=commit,
        weights_key=key,
        weights_uri=f"gs://{BUCKET}/models/{MODEL}/{key}",
        generation="g0",
    )
    storage.read_json(f"gs://{BUCKET}/none")

    def move() -> None:
        bring(settings, release, lambda line: print(line, file=sys.stderr))

    return move


def prepare_baseline(work: Path) -> Callable[[], None]:
    from google.cloud import storage
    from google.cloud.storage import transfer_manager
    from huggingface_hub import snapshot_download

    bucket = storage.Client(project="bench-project").bucket(BUCKET)

    def move() -> None:
        folder = snapshot_download(MODEL)
        names = sorted(path.name for path in Path(folder).iterdir() if path.is_file())
        results = transfer_manager.upload_many_from_filenames(
            bucket, names, source_directory=str(folder), blob_name_prefix=f"models/{MODEL}/"
        )
        failed = [result for result in results if isinstance(result, Exception)]
        assert not failed, failed

    return move


def prepare_limit(work: Path) -> Callable[[], None]:
    from tests.bench import relay

    into = work / "sink"
    into.mkdir()
    return relay.run(sorted((work.parent / "model").glob("*.safetensors")), into)


def contest(case: str, work: Path) -> None:
    """The child: does the work, prints what it took as one JSON line."""
    prepare = {"ours": prepare_ours, "baseline": prepare_baseline, "limit": prepare_limit}[case]
    move = prepare(work)
    before, started = time.process_time(), time.monotonic()
    move()
    figures = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - before}
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    if case == "baseline":  # It uploads from worker processes.
        figures["cpu_seconds"] += workers.ru_utime + workers.ru_stime
    peak = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, workers.ru_maxrss if case == "baseline" else 0)
    figures["peak_mb"] = peak * 1024 / 1e6
    print(json.dumps(figures))


# -- the contest --------------------------------------------------------------------------------------------


@contextmanager
def served(work: Path, home: Path) -> Iterator[dict[str, str]]:
    """A hub with the model and an empty bucket; yields what a contestant's environment needs to find them."""
    work.mkdir(parents=True)
    emulators = [
        process.start("emulated_cloud.hub", "--root", str(work.parent / "hub"), log=work / "hub.log"),
        process.start(
            "emulated_cloud.storage", "--root", str(work / "bucket"), "--bucket", BUCKET, log=work / "storage.log"
        ),
    ]
    try:
        yield {
            "HF_ENDPOINT": emulators[0].url,
            "STORAGE_EMULATOR_HOST": emulators[1].url,
            "HOME": str(home),
            "HF_HOME": str(home / "huggingface"),
            "TMPDIR": str(home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
    finally:
        for emulator in emulators:
            emulator.stop()


def measure(case: str, folder: Path, moved: int) -> dict[str, Any]:
    """One contestant, once."""
    work = folder / "work"
    # Anew each time, and flushed: nobody waits for what another has written.
    os.sync()
    home = Path(tempfile.mkdtemp(prefix="bench-home-", dir=folder if case == IN_MEMORY else None))
    try:
        with served(work, home) as environment:
            command = [sys.executable, "-m", "tests.bench.transfer", "--case", CASES[case], "--work", str(work)]
            child = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
            if child.returncode:
                sys.exit(f"{case} failed:\n{child.stderr}")
        figures = json.loads(child.stdout.splitlines()[-1])
        disk = sum(path.lstat().st_size for path in home.rglob("*") if path.is_file() and case != IN_MEMORY)
        return {**figures, "case": case, "bytes": moved, "disk_mb": disk / 1e6}
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def model_in(root: Path, shards: int, mib: int, small: int = 0) -> Iterator[tuple[Path, int]]:
    """A model on a hub's disk: (its folder's parent, its bytes)."""
    folder = Path(tempfile.mkdtemp(prefix="bench-transfer-", dir=root))
    try:
        moved = write_model(folder / "model", shards, mib, small)
        Repository(folder / "hub", MODEL).commit(folder / "model")
        yield folder, moved
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def row(name: str, figures: dict[str, Any]) -> dict[str, Any]:
    """A row of the result, rounded, with its rate."""
    result: dict[str, Any] = {"case": name}
    for key in ("seconds", "mb_per_s", "cpu_seconds", "peak_mb", "disk_mb"):
        value = figures["bytes"] / figures["seconds"] / 1e6 if key == "mb_per_s" else figures[key]
        result[key] = round(value, 3 if key.endswith("seconds") else 1)
    return result


def compare(root: Path, mib: int, rounds: int) -> list[dict[str, Any]]:
    """The contestants, taking turns; each one's best round."""
    best: dict[str, dict[str, Any]] = {}
    with model_in(root, 4, mib) as (folder, moved):
        for number in range(rounds):
            for case in CASES:
                figures = measure(case, folder, moved)
                print(f"round {number + 1}: {case} {figures['seconds']:.2f} s", file=sys.stderr)
                if case not in best or figures["seconds"] < best[case]["seconds"]:
                    best[case] = figures
    return [row(case, best[case]) for case in CASES]


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark of the transfer from the hub to the bucket.")
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the bytes: does it run at all?")
    parser.add_argument("--rounds", type=int, default=3, help="best of how many (%(default)s)")
    parser.add_argument(
        "--docs", type=Path, metavar="FILE", help="put the table between the marks of this file, too (a whole run's)"
    )
    parser.add_argument("--case", choices=set(CASES.values()), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        return contest(options.case, options.work)

    # Gigabytes of memory must not stay behind when somebody ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    scale = 16 if options.quick else 1
    root = working_folder(12 * 1024 * MIB // scale)
    rows = compare(root, 512 // scale, options.rounds)
    for gib in (0.5, 1, 2, 4):
        with model_in(root, 4, int(gib * 256) // scale) as (folder, moved):
            rows.append(
                row(f"ours, {gib} GiB" + (f" / {scale}" if options.quick else ""), measure("ours", folder, moved))
            )
    small = 5000 // scale
    with model_in(root, 1, 1, small) as (folder, moved):
        rows.append(row(f"ours, {small} small files", measure("ours", folder, moved)))
    by_case = {found["case"]: found for found in rows}
    result = {
        "benchmark": "transfer",
        "rows": rows,
        "ratios": {
            "of_limit": round(by_case["ours"]["mb_per_s"] / by_case["limit"]["mb_per_s"], 3),
            "of_baseline": round(by_case["ours"]["mb_per_s"] / by_case["baseline"]["mb_per_s"], 3),
            "of_baseline_in_memory": round(by_case["ours"]["mb_per_s"] / by_case[IN_MEMORY]["mb_per_s"], 3),
            "cpu_per_byte_4_gib_of_1_gib": round(rows[7]["cpu_seconds"] / rows[5]["cpu_seconds"] / 4, 3),
            "small_files_per_s": round(small / rows[-1]["seconds"], 1),
        },
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    show(result, in_words(result), OUT)
    if options.docs and not options.quick:
        write_table(options.docs, result, in_words(result))
    return None


def working_folder(needed: int) -> Path:
    """Memory if it has room (a disk's own speed is none of ours), else the temporary folder."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > needed:
        return memory
    return Path(tempfile.gettempdir())


def show(result: dict[str, Any], words: str, written: Path) -> None:
    """Prints a benchmark's table, what it says in words, and where it was written."""
    from rich.console import Console
    from rich.table import Table

    table = Table("case", "seconds", "MB/s", "CPU s", "peak MB", "disk MB")
    for found in result["rows"]:
        table.add_row(*(str(value) for value in found.values()))
    Console().print(table)
    print(f"{words}. {written}")


def in_words(result: dict[str, Any]) -> str:
    ratios = result["ratios"]
    return (
        f"ours is {ratios['of_limit']} of the limit, {ratios['of_baseline']} of the baseline and "
        f"{ratios['of_baseline_in_memory']} of the baseline with its home in memory; a byte of 4 GiB costs "
        f"{ratios['cpu_per_byte_4_gib_of_1_gib']} of a byte of 1 GiB; {ratios['small_files_per_s']} small files a "
        "second"
    )


def write_table(page: Path, result: dict[str, Any], words: str) -> None:
    """Replaces what is between the marks of a benchmark in a page."""
    begin, end = f"<!-- written by make bench-{result['benchmark']} -->", "<!-- end -->"
    lines = ["| case | seconds | MB/s | CPU s | peak MB | disk MB |", "|---|--:|--:|--:|--:|--:|"]
    lines += [f"| {' | '.join(str(value) for value in found.values())} |" for found in result["rows"]]
    head = f"`make bench-{result['benchmark']}` on {len(os.sched_getaffinity(0))} cores:"
    made = "\n".join([begin, head, "", *lines, "", f"{words[0].upper()}{words[1:]}.", end])
    before, rest = page.read_text().split(begin)
    page.write_text(before + made + rest.partition(end)[2])


if __name__ == "__main__":
    main()
