"""How many tokens a second the load generator keeps up with, alone on one core.

    python -m tests.bench.load [--quick]

Server and generator (components/validate_server/load.py) each have a core of their own and talk directly. First the
emulated engine, as fast as it can; then a server of nothing but streams (tests/bench/stream.py), 64 of them, at rates
that grow until one of the two falls behind. Writes build/bench/load.json; `cpu_seconds`, `peak_mb` and `cpu_share` (of
its core) are the generator's alone. Ratios are to the target of 5,000 tokens a second: `engine` is what the engine gave
and the generator took; `kept_up` the highest rate without falling behind, which needs a machine with nothing else to
do; `one_core` what the generator would take with its core to itself, by its processor time a token where every token is
a read of its own, which is where a token costs most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emulated_cloud import process

OUT = Path("build/bench/load.json")
MODEL = "google/gemma-3-4b-it"
TARGET = 5000
"""Tokens a second that the generator has to keep up with."""
STREAMS = 64
RATES = (TARGET, 10000, 15000, 20000, 30000)
KEPT_UP = 0.95
"""Share of the offered tokens a second that counts as keeping up: a round's first and last token take their time."""

CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, GENERATOR_CORE = CORES[0], CORES[-1]


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Processes that are started in the block stay on this core."""
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, set(CORES))


# -- the generator, in a child process ----------------------------------------------------------------------


def generate(url: str, streams: int, tokens: int) -> None:
    """One round against `url`: prints its figures."""
    from components.validate_server.checks import Plan, connected
    from components.validate_server.load import run_round
    from serving.settings import Validation

    plan = Plan(url=url, model=MODEL, request_seconds=600, validation=Validation(concurrencies=[streams]))

    async def rounds() -> None:
        async with connected(plan, None) as servers:

            async def load(max_tokens: int) -> dict[str, Any]:
                return await run_round(
                    servers, ["What is a pod?"], requests=streams, max_tokens=max_tokens, say=lambda line: None
                )

            await load(2)  # Connections are made before the clock runs.
            before = time.process_time()
            row = await load(tokens)
            row["cpu_seconds"] = time.process_time() - before
            row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(json.dumps(row))

    asyncio.run(rounds())


def measured(case: str, url: str, streams: int, tokens: int) -> dict[str, Any]:
    """The row of one case."""
    command = [sys.executable, "-m", "tests.bench.load", "--generate", url, str(streams), str(tokens)]
    with on_core(GENERATOR_CORE):
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(ended.stdout)
    if figures["errors"]:
        raise SystemExit(f"{case}: {figures['failures']}")
    return {
        "case": case,
        "seconds": figures["seconds"],
        "tokens_per_second": figures["tokens_per_second"],
        "cpu_seconds": round(figures["cpu_seconds"], 3),
        "cpu_share": round(figures["cpu_seconds"] / figures["seconds"], 3),
        "p99_itl_ms": figures["itl_ms"]["p99"],
        "peak_mb": round(figures["peak_mb"], 1),
    }


# -- the servers --------------------------------------------------------------------------------------------


@contextmanager
def engine(folder: Path) -> Iterator[str]:
    """The emulated engine with the tiny Gemma 3: its address."""
    from emulated_cloud.hub.models import write_gemma3

    write_gemma3(folder / "model")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "emulated_cloud.engine", str(folder / "model"), "--served-model-name", MODEL]
    command += ["--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"]
    with on_core(SERVER_CORE), open(folder / "engine.log", "w") as log:
        popen = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/health").close()
                break
            except OSError:
                if popen.poll() is not None:
                    raise SystemExit((folder / "engine.log").read_text()) from None
                time.sleep(0.1)
        yield url
    finally:
        popen.terminate()
        popen.wait()


@contextmanager
def streams(folder: Path, rate: float) -> Iterator[str]:
    """A server of streams, `rate` tokens a second for each: its address."""
    with on_core(SERVER_CORE):
        server = process.start("tests.bench.stream", "--rate", str(rate), log=folder / "stream.log")
    try:
        yield server.url
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the tokens, to see that it works")
    parser.add_argument("--generate", nargs=3, metavar=("URL", "STREAMS", "TOKENS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate:
        generate(options.generate[0], *map(int, options.generate[1:]))
        return
    share = 0.1 if options.quick else 1.0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        with engine(Path(folder)) as url:
            rows.append(measured("emulated engine, as fast as it can", url, 16, int(1500 * share)))
        for rate in RATES:
            with streams(Path(folder), rate / STREAMS) as url:
                tokens = int(5 * share * rate / STREAMS)
                rows.append({**measured(f"{rate:,} tokens/s in {STREAMS} streams", url, STREAMS, tokens), "rate": rate})
    kept_up = [row["rate"] for row in rows[1:] if row["tokens_per_second"] >= KEPT_UP * row["rate"]]
    result = {
        "benchmark": "load",
        "rows": rows,
        "ratios": {
            "engine": round(rows[0]["tokens_per_second"] / TARGET, 2),
            "kept_up": round(max(kept_up, default=0) / TARGET, 2),
            "one_core": round(rows[1]["tokens_per_second"] / rows[1]["cpu_share"] / TARGET, 2),
        },
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    for row in rows:
        print(
            f"{row['case']:38} {row['tokens_per_second']:9,.0f} tokens/s   generator {row['cpu_share']:4.0%} of a core"
            f"   p99 between tokens {row['p99_itl_ms']:6.1f} ms   {row['peak_mb']:5.1f} MB"
        )
    print(json.dumps(result["ratios"]))


if __name__ == "__main__":
    main()
