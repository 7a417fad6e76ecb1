"""`vllm …` as it runs here: on the CPU, few threads, little memory. Run by the vllm part's Python (parts.py).

The command line is vLLM's own, and vLLM itself judges every flag of a manifest. What stands for a card is then said
again, last, so that it counts: one device, a small cache, no compilation. Other commands, `bench` among them, are as
they are.
"""

from __future__ import annotations

import sys

ON_A_CPU = ["--tensor-parallel-size=1", "--enforce-eager", "--kv-cache-memory-bytes=64M", "--max-num-seqs=32"]
ENVIRONMENT = {
    "VLLM_TARGET_DEVICE": "cpu",
    # One process an engine, since each imports torch; not bound to cores, since engines share them.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Two threads wait for each other at every operation of a tiny model, for long where cores are busy.
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def main() -> None:
    from vllm.entrypoints.cli.main import main as vllm  # type: ignore[import-not-found]

    sys.argv = ["vllm", *sys.argv[1:], *(ON_A_CPU if sys.argv[1:2] == ["serve"] else [])]
    vllm()


if __name__ == "__main__":
    main()
