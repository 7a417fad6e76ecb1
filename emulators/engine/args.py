"""The command line of `vllm serve`: what it takes, with its types, and what it refuses.

The list follows vLLM 0.33 (vllm/engine/arg_utils.py and vllm/entrypoints/openai/cli_args.py). Flags that vLLM has
dropped (`--swap-space`, `--device`, `--task`, `--num-scheduler-steps`, `--disable-log-requests`,
`--use-v2-block-manager`, …) are not in it, so argparse refuses them with the words and the exit code (2) of the real
one. Most flags change nothing here; they are known so that a manifest's typing errors are found.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from typing import Any

SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def human_readable_int(value: str) -> int:
    """`8192`, `8k` (thousands), `8K` (1024), `25.6k`; not `25.6K`. Raises ArgumentTypeError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgGtT])", value.strip())
    if not match:
        return int(value)
    number, suffix = match.groups()
    if suffix.isupper() and "." in number:
        raise argparse.ArgumentTypeError(
            f"Decimals are not allowed with binary suffixes like {suffix}. "
            f"Did you mean to use {number}{suffix.lower()} instead?"
        )
    return int(float(number) * SUFFIXES[suffix])


def human_readable_int_or_auto(value: str) -> int:
    """As human_readable_int; `auto` is -1."""
    return -1 if value.strip().lower() == "auto" else human_readable_int(value)


def flags(names: str) -> list[str]:
    return names.split()


def nullable_str(value: str) -> str | None:
    return None if value in ("", "None") else value


STORE_TRUE = flags("""
headless disable-log-stats aggregate-engine-logging
""")

BOOLEANS = flags("""
trust-remote-code allow-deprecated-quantization enforce-eager enable-return-routed-experts return-sampling-mask
use-fp64-gumbel enable-trace-replay disable-sliding-window disable-cascade-attn skip-tokenizer-init
enable-prompt-embeds enable-sleep-mode enable-cumem-allocator enable-nccl-comm-suspend use-tqdm-on-load numa-bind
enable-expert-parallel enable-batch-sharded-sampling enable-ep-weight-filter enable-dbo enable-elastic-ep
enable-eplb disable-nccl-for-dp-synchronization ray-workers-use-nsight disable-custom-all-reduce
enable-fault-tolerance enable-prefix-caching kv-sharing-fast-prefill language-model-only enable-mm-embeds
mm-encoder-only interleave-mm-strings skip-mm-profiling enable-lora enable-tower-connector-lora
fully-sharded-loras specialize-active-lora kv-cache-metrics cudagraph-metrics enable-layerwise-nvtx-tracing
enable-mfu-metrics enable-logging-iteration-details enable-chunked-prefill disable-chunked-mm-input
scheduler-reserve-full-isl disable-hybrid-kv-cache-manager async-scheduling enable-flashinfer-autotune
fail-on-environ-validation enable-log-requests disable-uvicorn-access-log disable-access-log-for-endpoints
allow-credentials trust-request-chat-template enable-ssl-refresh return-tokens-as-token-ids
disable-frontend-multiprocessing enable-request-id-headers enable-auto-tool-choice
exclude-tools-when-tool-choice-none disable-fastapi-docs enable-prompt-tokens-details enable-server-load-tracking
enable-force-include-usage enable-tokenizer-info-endpoint enable-log-outputs enable-log-deltas log-error-stack
tokens-only enable-per-request-metrics
""")

INTEGERS = flags("""
seed max-logprobs renderer-num-workers safetensors-prefetch-num-threads pipeline-parallel-size master-port nnodes
node-rank distributed-timeout-seconds tensor-parallel-size decode-context-parallel-size
dcp-kv-cache-interleave-size cp-kv-cache-interleave-size prefill-context-parallel-size data-parallel-size
data-parallel-rank data-parallel-start-rank data-parallel-size-local data-parallel-rpc-port ubatch-size
dbo-decode-token-threshold dbo-prefill-token-threshold max-parallel-loading-workers block-size
num-gpu-blocks-override mamba-block-size offload-group-size offload-num-in-group offload-prefetch-step
mm-shm-cache-max-object-size-mb max-loras max-cpu-loras stream-interval max-cudagraph-capture-size
prefill-schedule-interval optimization-level spec-tokens shutdown-timeout api-server-count port ssl-cert-reqs
max-log-len h11-max-incomplete-event-size h11-max-header-count
""")

HUMAN_INTEGERS = flags("""
max-num-batched-tokens max-num-scheduled-tokens max-num-seqs max-num-queued-reqs max-num-queued-tokens
long-prefill-token-threshold kv-cache-memory-bytes
""")

FLOATS = flags("""
gpu-memory-utilization cpu-offload-gb kv-offloading-size mm-processor-cache-gb video-pruning-rate
kv-cache-metrics-sample watermark
""")

STRINGS = flags("""
tokenizer hf-config-path allowed-local-media-path revision code-revision tokenizer-revision quantization hf-token
generation-config io-processor-plugin load-format download-dir pt-load-map-location reasoning-parser
reasoning-parser-plugin distributed-executor-backend master-addr data-parallel-address data-parallel-backend
all2all-backend expert-placement-strategy worker-cls worker-extension-cls attention-backend
mm-encoder-attn-backend show-hidden-metrics-for-version otlp-traces-endpoint collect-detailed-traces scheduler-cls
spec-method spec-model host uds chat-template response-role ssl-keyfile ssl-certfile ssl-ca-certs root-path
tool-call-parser tool-parser-plugin tool-server log-config-file moe-backend linear-backend
""")

JSON = flags("""
quantization-config hf-overrides model-class-overrides pooler-config override-generation-config
model-loader-extra-config eplb-config limit-mm-per-prompt media-io-kwargs mm-processor-kwargs default-mm-loras
speculative-config kv-transfer-config kv-events-config ec-transfer-config compilation-config attention-config
reasoning-config kernel-config additional-config structured-outputs-config profiler-config weight-transfer-config
fault-tolerance-config ir-op-priority allowed-origins allowed-methods allowed-headers default-chat-template-kwargs
""")

LISTS = flags("""
served-model-name allowed-media-domains logits-processors ignore-patterns numa-bind-nodes numa-bind-cpus
kv-cache-dtype-skip-layers cpu-offload-params offload-params lora-target-modules api-key
""")

CHOICES: dict[str, list[str]] = {
    "runner": ["auto", "draft", "generate", "pooling"],
    "convert": ["auto", "classify", "embed", "none"],
    "tokenizer-mode": ["auto", "hf", "slow", "mistral", "deepseek_v32", "deepseek_v4"],
    "dtype": ["auto", "bfloat16", "float", "float16", "float32", "half"],
    "logprobs-mode": ["processed_logits", "processed_logprobs", "raw_logits", "raw_logprobs"],
    "config-format": ["auto", "hf", "mistral"],
    "model-impl": ["auto", "terratorch", "transformers", "vllm"],
    "safetensors-load-strategy": ["lazy", "eager", "prefetch", "torchao"],
    "kv-cache-dtype": ["auto", "bfloat16", "float16", "fp8", "fp8_ds_mla", "fp8_e4m3", "fp8_e5m2", "fp8_inc"],
    "prefix-caching-hash-algo": ["sha256", "sha256_cbor", "xxhash", "xxhash_cbor"],
    "mamba-cache-dtype": ["auto", "float16", "float32"],
    "mamba-ssm-cache-dtype": ["auto", "float16", "float32"],
    "mamba-cache-mode": ["align", "all", "none"],
    "kv-offloading-backend": ["lmcache", "native"],
    "offload-backend": ["auto", "prefetch", "uva"],
    "mm-processor-cache-type": ["lru", "shm"],
    "mm-encoder-tp-mode": ["data", "weights"],
    "max-lora-rank": ["1", "8", "16", "32", "64", "128", "256", "320", "512"],
    "lora-dtype": ["auto", "bfloat16", "float16"],
    "scheduling-policy": ["fcfs", "priority"],
    "performance-mode": ["balanced", "interactivity", "throughput"],
    "uvicorn-log-level": ["critical", "debug", "error", "info", "trace", "warning"],
    "chat-template-content-format": ["auto", "openai", "string"],
}
INTEGER_CHOICES = {"max-lora-rank"}

SHORT = {"quantization": "-q", "tensor-parallel-size": "-tp", "pipeline-parallel-size": "-pp", "nnodes": "-n"}
SHORT |= {"data-parallel-size": "-dp", "speculative-config": "-sc", "compilation-config": "-cc", "node-rank": "-r"}
SHORT |= {"enable-expert-parallel": "-ep", "attention-config": "-ac", "api-server-count": "-asc"}

# As in vLLM; an absent flag is None. (`max_num_seqs` is derived from the hardware there: 256 on a small GPU.)
DEFAULTS: dict[str, Any] = {
    "port": 8000,
    "gpu_memory_utilization": 0.92,
    "max_num_seqs": 256,
    "tensor_parallel_size": 1,
    "seed": 0,
    "dtype": "auto",
    "load_format": "auto",
    "kv_cache_dtype": "auto",
    "generation_config": "auto",
    "block_size": 16,
    "max_logprobs": 20,
    "max_loras": 1,
    "max_lora_rank": 16,
    "shutdown_timeout": 0,
    "response_role": "assistant",
    "enable_prefix_caching": True,
    "enable_log_requests": False,
}


class LoRAModules(argparse.Action):
    """`name=path` or one JSON object for each adapter: a list of {name, path, base_model_name?}."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        modules: list[dict[str, str]] = []
        for item in filter(None, values):
            if "=" in item and "," not in item:
                name, path = item.split("=")
                modules.append({"name": name, "path": path})
                continue
            try:
                module = json.loads(item)
            except json.JSONDecodeError:
                parser.error(f"Invalid JSON format for --lora-modules: {item}")
            if not isinstance(module, dict) or not {"name", "path"} <= set(module):
                parser.error(f"Invalid fields for --lora-modules: {item} - name and path are required")
            modules.append(module)
        setattr(namespace, self.dest, modules)


def make_parser() -> argparse.ArgumentParser:
    """The parser; abbreviations are off, or `--device` would be taken for `--device-ids`."""
    parser = argparse.ArgumentParser(prog="vllm serve", usage="vllm serve [model_tag] [options]", allow_abbrev=False)

    def add(name: str, **kwargs: Any) -> None:
        dest = name.replace("-", "_")
        names = [f"--{name}"] + ([SHORT[name]] if name in SHORT else [])
        parser.add_argument(*names, dest=dest, default=DEFAULTS.get(dest), **kwargs)

    parser.add_argument("model_tag", nargs="?", help="The model to serve: a folder with a checkpoint.")
    parser.add_argument("--model", help="The same, as an option.")
    for name in STORE_TRUE:
        parser.add_argument(f"--{name}", action="store_true")
    for name in BOOLEANS:
        add(name, action=argparse.BooleanOptionalAction)
    for name in INTEGERS:
        add(name, type=int)
    for name in HUMAN_INTEGERS:
        add(name, type=human_readable_int)
    add("max-model-len", type=human_readable_int_or_auto)
    for name in FLOATS:
        add(name, type=float)
    for name in STRINGS:
        add(name, type=nullable_str)
    for name in JSON:
        add(name, type=json.loads)
    for name in LISTS:
        add(name, nargs="+")
    for name, choices in CHOICES.items():
        if name in INTEGER_CHOICES:
            add(name, type=int, choices=[int(choice) for choice in choices])
        else:
            add(name, choices=choices)
    add("cudagraph-capture-sizes", type=int, nargs="+")
    add("lora-modules", nargs="+", action=LoRAModules)
    add("middleware", action="append")
    parser.add_argument("--device-ids", default=None)
    return parser


def with_dashes(argument: str) -> str:
    """`--max_model_len=8` as `--max-model-len=8`: vLLM takes both, and only the name's underscores change."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """vLLM's arguments. Ends the process with code 2, as argparse does, when one is unknown or of the wrong type."""
    parser = make_parser()
    args = parser.parse_args([with_dashes(argument) for argument in argv])
    args.model = args.model_tag or args.model
    if args.model is None:
        # vLLM would download its default model here; an emulator has nothing to serve.
        parser.error("the following arguments are required: model_tag")
    return args
