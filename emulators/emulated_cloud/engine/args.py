"""The command line of `vllm serve`: what it takes, with its types, and what it refuses.

flags.json is a real vLLM's list (read_flags.py wrote it). Flags that vLLM has dropped (`--swap-space`, `--device`,
`--task`, `--num-scheduler-steps`, `--disable-log-requests`, `--use-v2-block-manager`, …) are not in it, so argparse
refuses them with the words and the exit code (2) of the real one. Most flags change nothing here; they are known so
that a manifest's typing errors are found.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
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


def nullable_str(value: str) -> str | None:
    return None if value in ("", "None") else value


# vLLM's own, of what is looked at here; any other absent flag is None. vLLM derives max_num_seqs from the hardware:
# this is what a small GPU gets.
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


KINDS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "size": human_readable_int,
    "size_or_auto": human_readable_int_or_auto,
    "json": json.loads,
    "json_or_str": str,
    "str": nullable_str,
}


def make_parser() -> argparse.ArgumentParser:
    """The parser. An abbreviation is refused, even where vLLM would still take it for want of another such flag."""
    parser = argparse.ArgumentParser(prog="vllm serve", usage="vllm serve [model_tag] [options]", allow_abbrev=False)
    parser.add_argument("model_tag", nargs="?", help="The model to serve: a folder with a checkpoint.")
    flags = json.loads((Path(__file__).parent / "flags.json").read_bytes())["flags"]
    of_the_hardware = int(os.environ.get("EMULATED_ENGINE_SEQUENCES", DEFAULTS["max_num_seqs"]))
    defaults = {**DEFAULTS, "max_num_seqs": of_the_hardware}
    for name, flag in flags.items():
        names = [name, *flag.get("short", [])]
        default = defaults.get(name.removeprefix("--").replace("-", "_"))
        if flag["kind"] == "switch":
            parser.add_argument(*names, action="store_true")
        elif flag["kind"] == "boolean":
            parser.add_argument(*names, action=argparse.BooleanOptionalAction, default=default)
        elif name == "--lora-modules":
            parser.add_argument(name, nargs="+", action=LoRAModules)
        elif flag.get("append"):
            parser.add_argument(*names, action="append", default=[])
        else:
            kind = KINDS[flag["kind"]]
            choices = [kind(choice) for choice in flag["choices"]] if "choices" in flag else None
            parser.add_argument(*names, type=kind, choices=choices, nargs=flag.get("nargs"), default=default)
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
