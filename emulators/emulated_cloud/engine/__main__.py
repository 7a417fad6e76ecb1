"""`python -m emulated_cloud.engine`: start as vLLM starts, fail as vLLM fails, serve, drain."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from emulated_cloud.engine import log, streamer
from emulated_cloud.engine.args import parse
from emulated_cloud.engine.checkpoint import BadModel, check_processor, load_weights, open_config
from emulated_cloud.engine.draft import load_draft, open_draft

LONG = (
    "To allow overriding this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1. "
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN must be used with extreme caution. If the model uses relative position encoding "
    "(RoPE), positions exceeding derived_max_model_len lead to nan. If the model uses absolute position encoding, "
    "positions exceeding derived_max_model_len will cause a CUDA array out-of-bounds error."
)


def max_model_len(given: int | None, derived: int) -> int:
    """The context length in tokens: `--max-model-len`, or the config's. Raises BadModel for one that is longer."""
    if given is None or given == -1:
        return derived
    if given > derived and os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0") in ("0", "", "false", "False"):
        raise BadModel(
            "ValidationError",
            f"User-specified max_model_len ({given}) is greater than the derived max_model_len "
            f"(max_position_embeddings={derived} or model_max_length=None in model's config.json). {LONG}",
        )
    return given


def main(argv: Sequence[str]) -> int:
    """Exit codes: 0 after a drained end, 1 for a model that does not load, 2 for arguments (argparse)."""
    args = parse(argv)
    started = time.monotonic()
    try:
        streamed = streamer.is_streamed(args.model)
        if streamed:
            streamer.check_format(args.load_format, args.model)
        folder = str(streamer.pull(args.model, args.tokenizer or args.model)) if streamed else args.model
        checkpoint = open_config(folder, config_path=args.hf_config_path)
        check_processor(checkpoint, args)
        args.max_model_len = max_model_len(args.max_model_len, checkpoint.max_position_embeddings)
        from emulated_cloud.engine.tokenizer import Tokenizer

        tokenizer = Tokenizer(Path(args.tokenizer or checkpoint.folder), checkpoint.config, args.chat_template)
        draft = open_draft(args.speculative_config, checkpoint)
        if args.enable_auto_tool_choice and not args.tool_call_parser:
            raise BadModel("TypeError", "Error: --enable-auto-tool-choice requires --tool-call-parser")
    except BadModel as failure:
        return refused(failure)
    on_tpu = os.environ.get("PJRT_DEVICE") == "TPU"
    if on_tpu:
        log.info("__init__.py:253", "Automatically detected platform tpu.")
    log.info("model.py:617", f"Resolved architecture: {checkpoint.architecture}")
    log.info("model.py:1752", f"Using max model len {args.max_model_len}")
    log.info("core.py:112", f"Initializing a V1 LLM engine (emulated) with model={args.model!r}", log.ENGINE_CORE)
    try:
        limit = None
        if args.load_format == "runai_streamer" or streamed:
            limit = streamer.memory_limit(args.model_loader_extra_config)
        remote = streamer.shards(args.model) if streamed else []
        for blob in remote:
            streamer.stream(blob, limit)
        load_weights(checkpoint, remote)
        if draft:
            log.info("llm_base_proposer.py:1204", f"Loading drafter model from {draft.folder}", log.ENGINE_CORE)
            load_draft(draft)
    except BadModel as failure:
        return core_failed(failure)
    time.sleep(float(os.environ.get("EMULATED_ENGINE_START_SECONDS", "0")))
    gigabytes = checkpoint.total_bytes / 2**30
    seconds = time.monotonic() - started
    log.info(
        "gpu_model_runner.py:5126",
        f"Model loading took {gigabytes:.2f} GiB memory and {seconds:.2f} seconds",
        log.ENGINE_CORE,
    )

    if on_tpu:
        precompile()

    from emulated_cloud.engine.server import serve

    try:
        return asyncio.run(serve(args, checkpoint, tokenizer))
    except BadModel as failure:
        return refused(failure)
    except OSError as failure:
        return refused(BadModel("OSError", str(failure)))


def precompile() -> None:
    """What a TPU engine does before its port opens: every shape is compiled, and kept where it is told to."""
    started = time.monotonic()
    cache = Path(os.environ.get("VLLM_XLA_CACHE_PATH", "~/.cache/vllm/xla_cache")).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    for tokens in (16, 32, 64):
        log.info("compilation_manager.py:91", f"Precompile backbone --> {{'num_tokens': {tokens}}}", log.ENGINE_CORE)
        (cache / f"jit_backbone-{tokens}").touch()
    seconds = time.monotonic() - started
    log.info("compilation_manager.py:99", f"Compilation finished in {seconds:.2f} [secs].", log.ENGINE_CORE)


def refused(failure: BadModel) -> int:
    """The front end's last words."""
    kind, words = failure.kind, str(failure)
    if kind == "ValidationError":
        kind = "pydantic_core._pydantic_core.ValidationError"
        words = f"1 validation error for {failure.config}\n  Value error, {words} [type=value_error]"
    log.traceback(f"{kind}: {words}")
    return 1


def core_failed(failure: BadModel) -> int:
    """What the engine core logs when it dies while loading, and what the front end makes of it."""
    log.error("core.py:936", "EngineCore failed to start.", log.ENGINE_CORE)
    log.error("core.py:936", f"{failure.kind}: {failure}", log.ENGINE_CORE)
    log.traceback("RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}")
    return 1


if __name__ == "__main__":
    # aiohttp's client reads every CA certificate when imported (60 ms); nothing here speaks TLS.
    os.environ.setdefault("SSL_CERT_FILE", os.devnull)
    # A container's `vllm serve …` comes here with its subcommand.
    sys.exit(main(sys.argv[2:] if sys.argv[1:2] == ["serve"] else sys.argv[1:]))
