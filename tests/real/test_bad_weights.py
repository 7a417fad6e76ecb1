"""Real vLLM on every case of tests/contract/bad_weights.py: what it says there is what it says here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from emulated_cloud.hub.models import write_lora_adapter
from emulated_cloud.process import machine_environment
from emulated_cloud.real.engine import ENVIRONMENT
from emulated_cloud.real.parts import PARTS

from tests.contract.bad_weights import CASES, Case, in_one_file

# The part is built without torchvision, which vLLM needs for pictures. With it those were asked by hand.
ASKED = [case for case in CASES if "processor" not in case.name]
# Importing vLLM takes ten seconds, loading a tiny model one: a process forked for each.
LOAD = """
import json, os, sys
from vllm import LLM
from vllm.entrypoints.llm import LLM
from vllm.lora.request import LoRARequest
for name, model, adapter in json.load(sys.stdin):
    sys.stdout.flush()
    if not os.fork():
        said = ""
        try:
            options = {"max_model_len": 256, "enforce_eager": True, "kv_cache_memory_bytes": 1 << 26, "max_num_seqs": 4}
            engine = LLM(model, enable_lora=bool(adapter), max_lora_rank=16, **options).llm_engine
            if adapter:
                engine.add_lora(LoRARequest("ko", 1, adapter))
        except BaseException as error:
            said = f"Call to add_lora method failed: {error}" if adapter else f"{type(error).__name__}: {error}"
        print(json.dumps([name, said]), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def said(parts: None, tiny_gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What vLLM says, by the name of the case; empty: it serves."""
    root, asked = tmp_path_factory.mktemp("cases"), []
    for case in ASKED:
        folder = root / case.name.replace(" ", "-")
        shutil.copytree(tiny_gemma3, folder / "model")
        in_one_file(folder / "model")
        write_lora_adapter(folder / "adapter", folder / "model")
        case.make(folder / ("adapter" if case.adapter else "model"))
        asked.append([case.name, str(folder / "model"), str(folder / "adapter") if case.adapter else ""])
    with open(root / "log", "w") as log:
        done = subprocess.run(
            [str(PARTS["vllm"].folder / "bin" / "python"), "-c", LOAD],
            input=json.dumps(asked),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            timeout=1500,
            env={**machine_environment(), **ENVIRONMENT},
        )
    assert done.returncode == 0, (root / "log").read_text()[-2000:]
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


@pytest.mark.parametrize("case", ASKED, ids=lambda case: case.name)
def test_vllm_says_it(said: dict[str, str], case: Case) -> None:
    words = said[case.name]
    assert bool(words) == (case.vllm is not None), words
    assert re.search(case.vllm or "", words), words
