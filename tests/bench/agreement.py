"""Whether our load generator and `vllm bench serve` say the same of one real vLLM.

    python -m tests.bench.agreement [--rounds N] [--concurrency N]

Real vLLM on the CPU (`make real`) serves the tiny Gemma 3 on loopback. Rounds of both, of as many streams, the same
questions and answers of as many tokens, take turns, each first as often as the other, so that what else the machine
does falls on both; compared are the medians of the rounds. (At the same time they would not do: two closed loops on one
engine fall into step, and one always waits for the other's prefill.) Writes build/bench/agreement.json, with the ratio
ours : theirs of every figure; the target is 1 ± 0.1. That both calculate the same of the same answers is under test
(tests/real/test_vllm.py).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emulated_cloud.hub.models import write_gemma3
from emulated_cloud.real import engine
from emulated_cloud.real.parts import PARTS, require

OUT = Path("build/bench/agreement.json")
MODEL = "google/gemma-3-4b-it"
QUESTION = "What is a pod, and what would you do without one on a cluster of nodes that come and go?"
TOKENS, REQUESTS = 32, 40
START_SECONDS = 180.0
# Ours → theirs; percentiles are called alike.
FIGURES = {"ttft_ms": "ttft", "itl_ms": "itl", "tpot_ms": "tpot", "e2e_ms": "e2el"}


def python() -> str:
    """The Python of the real vLLM."""
    return str(PARTS["vllm"].folder / "bin" / "python")


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a real vLLM with the tiny Gemma 3."""
    write_gemma3(folder / "model")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", MODEL, "--max-model-len", "2048"]
    command = [python(), "-P", engine.__file__, "serve", str(folder / "model"), *flags, "--no-enable-prefix-caching"]
    with open(folder / "engine.log", "w") as log:
        popen = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **engine.ENVIRONMENT})
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _healthy(url):
            if popen.poll() is not None or time.monotonic() > deadline:
                words = (folder / "engine.log").read_text().splitlines()[-5:]
                raise SystemExit("the real vLLM did not start: " + " / ".join(words))
            time.sleep(0.2)
        yield url
    finally:
        popen.terminate()
        popen.wait(30)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


class Theirs:
    """vLLM's own benchmark, ready before the first round: importing it takes longer than a round."""

    def __init__(self, folder: Path):
        self._answers, self._log = folder / "theirs.jsonl", folder / "theirs.log"
        self._answers.touch()
        with open(self._log, "w") as log:
            self._popen = subprocess.Popen(
                [python(), "-P", str(Path(__file__).parent / "vllm_rounds.py"), str(self._answers)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                env={**os.environ, **engine.ENVIRONMENT},
            )
        self._read = 0
        self._next()

    def ask(self, what: dict[str, Any]) -> dict[str, Any]:
        """What vLLM finds in a round, or in answers that it is given; see vllm_rounds.py."""
        assert self._popen.stdin
        self._popen.stdin.write(json.dumps(what) + "\n")
        self._popen.stdin.flush()
        return self._next()

    def _next(self) -> dict[str, Any]:
        while True:
            lines = self._answers.read_text().splitlines(keepends=True)
            if len(lines) > self._read and lines[self._read].endswith("\n"):
                self._read += 1
                answer: dict[str, Any] = json.loads(lines[self._read - 1])
                return answer
            if self._popen.poll() is not None:
                raise SystemExit("vllm bench serve: " + " / ".join(self._log.read_text().splitlines()[-5:]))
            time.sleep(0.05)

    def stop(self) -> None:
        assert self._popen.stdin
        self._popen.stdin.close()
        self._popen.wait()


def their_round(theirs: Theirs, url: str, folder: Path, concurrency: int) -> dict[str, float]:
    argv = [
        *("--backend", "openai-chat", "--base-url", url, "--endpoint", "/v1/chat/completions"),
        *("--model", MODEL, "--tokenizer", str(folder / "model"), "--temperature", "0", "--ignore-eos"),
        *("--dataset-name", "custom", "--num-prompts", str(REQUESTS), "--max-concurrency", str(concurrency)),
        *("--percentile-metrics", "ttft,itl,tpot,e2el", "--metric-percentiles", "50,95,99", "--disable-tqdm"),
    ]
    # As load.py makes every question another.
    questions = [f"{each + 1} of {REQUESTS}, {concurrency} at once. {QUESTION}" for each in range(REQUESTS)]
    found = theirs.ask({"argv": argv, "questions": questions, "tokens": TOKENS})
    if found["failed"]:
        raise SystemExit(f"vllm bench serve: {found['failed']} requests failed")
    figures = {
        f"{ours} p{each}": found[f"p{each}_{name}_ms"] for ours, name in FIGURES.items() for each in (50, 95, 99)
    }
    return {"tokens_per_second": found["output_throughput"], "output_tokens": found["total_output_tokens"], **figures}


def our_round(url: str, concurrency: int) -> dict[str, float]:
    from components.validate_server.checks import Plan, connected
    from components.validate_server.load import run_round
    from serving.settings import Validation

    plan = Plan(url=url, model=MODEL, request_seconds=600, validation=Validation(concurrencies=[concurrency]))

    async def measured() -> dict[str, Any]:
        async with connected(plan, None) as servers:
            # As vllm bench serve begins with one request that does not count, and validation with its questions.
            await servers[0].stream(QUESTION, TOKENS)
            return await run_round(servers, [QUESTION], requests=REQUESTS, max_tokens=TOKENS, say=lambda line: None)

    row = asyncio.run(measured())
    if row["errors"]:
        raise SystemExit(f"{row['failures']}")
    figures = {f"{name} {each}": row[name][each] for name in FIGURES for each in ("p50", "p95", "p99")}
    return {"tokens_per_second": row["tokens_per_second"], "output_tokens": row["output_tokens"], **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="of each")
    parser.add_argument("--concurrency", type=int, default=4)
    options = parser.parse_args()
    require(["vllm"])
    ours: list[dict[str, float]] = []
    other: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name, serving(Path(name)) as url:
        theirs = Theirs(Path(name))
        try:
            our_round(url, options.concurrency)  # The engine has seen every shape before it counts.
            for number in range(options.rounds):
                print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
                turns = [
                    lambda: ours.append(our_round(url, options.concurrency)),
                    lambda: other.append(their_round(theirs, url, Path(name), options.concurrency)),
                ]
                for turn in turns if number % 2 else reversed(turns):
                    turn()
        finally:
            theirs.stop()
    rows = []
    for figure in ours[0]:
        mine, his = (statistics.median(each[figure] for each in rounds) for rounds in (ours, other))
        rows.append({"case": figure, "ours": round(mine, 2), "theirs": round(his, 2), "ratio": round(mine / his, 3)})
        print(f"{figure:20} ours {mine:10.2f}  vllm bench serve {his:10.2f}  ratio {mine / his:.3f}")
    ratios = {str(row["case"]): row["ratio"] for row in rows}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"benchmark": "agreement", "rows": rows, "ratios": ratios}, indent=2) + "\n")
    print(f"written to {OUT}", file=sys.stderr)


if __name__ == "__main__":
    main()
