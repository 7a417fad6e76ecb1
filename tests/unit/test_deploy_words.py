"""The cause is found in an engine's log wherever it stands."""

from __future__ import annotations

import pytest

from components.deploy_server import words

# The form of vLLM 0.2x and 0.3x: the engine's own traceback, then the front end's, which says less.
NO_MEMORY = """\
(APIServer pid=1) INFO 09-18 21:36:02 [api_server.py:1977] vLLM API server version 0.33.0
(EngineCore pid=70) INFO 09-18 21:36:10 [gpu_model_runner.py:3120] Model loading took 22.62 GiB memory and 19.2 seconds
(EngineCore pid=70) ERROR 09-18 21:38:02 [core.py:1374]   File "/x/vllm/v1/core/kv_cache_utils.py", line 859, in check
(EngineCore pid=70) ERROR 09-18 21:38:02 [core.py:1374]     raise ValueError(
(EngineCore pid=70) ERROR 09-18 21:38:02 [core.py:1374] ValueError: No available memory for the cache blocks.
(EngineCore pid=70) Traceback (most recent call last):
(EngineCore pid=70) ValueError: No available memory for the cache blocks.
(APIServer pid=1) Traceback (most recent call last):
(APIServer pid=1)   File "/x/vllm/v1/engine/utils.py", line 1010, in wait_for_engine_startup
(APIServer pid=1)     raise RuntimeError(
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        (NO_MEMORY, "ValueError: No available memory for the cache blocks."),
        (
            "(APIServer pid=1) usage: vllm serve [-h]\nvllm: error: unrecognized arguments: --swap-spce 4\n",
            "vllm: error: unrecognized arguments: --swap-spce 4",
        ),
        (
            "Traceback (most recent call last):\nhuggingface_hub.errors.HFValidationError: Repo id must be …\n",
            "huggingface_hub.errors.HFValidationError: Repo id must be …",
        ),
        (
            "(EngineCore_DP0 pid=1394) ERROR 03-19 11:07:19 [core.py:1006] torch.OutOfMemoryError: CUDA out of memory. "
            "Tried to allocate 2.00 GiB.\n(APIServer pid=1) RuntimeError: Engine core initialization failed.\n",
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        ),
        (
            "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.\n",
            "RuntimeError: Engine core initialization failed. See root cause above.",
        ),
        (
            "(APIServer pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
            "(APIServer pid=1)   Value error, User-specified max_model_len (99) is greater than the derived one\n",
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig Value error, "
            "User-specified max_model_len (99) is greater than the derived one",
        ),
        ("vllm serve: error: unrecognized arguments: -x\n", "vllm serve: error: unrecognized arguments: -x"),
        ("one\n\ntwo\nthree\nfour\n", "two\nthree\nfour"),
        ("Killed\n", "Killed"),
        ("(EngineCore pid=7) ERROR 11-24 03:42:19 [core.py:936] AssertionError\ndone\n", "AssertionError"),
        ("Loading shards: 0%\rLoading shards: 50%\rKeyError: 'x'\nbye\n", "KeyError: 'x'"),
        ("ValueError: the template says \u2028 and \x85 here\n", "ValueError: the template says \u2028 and \x85 here"),
        ("", ""),
    ],
)
def test_the_cause_is_named(log: str, cause: str):
    assert words.cause(log) == cause
