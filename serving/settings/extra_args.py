"""Which flags of `vllm serve` a settings file may add, compared as vLLM's own parser reads them.

Its parser (vllm/utils/argparse_utils.py over Python's argparse) takes one flag in many spellings: `_` for `-`,
`--flag=value`, the start of a name, `--flag.key value` for JSON, `-q8` for `-q 8`, `--no-flag` for a switch. All of
them come to the name of a flag here. What is written after a name may be a secret, so no error repeats it.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Sequence

TAKEN = {
    # Secrets: the arguments of a pod can be read by everybody who may look at it, and vLLM writes them to its log.
    "--api-key": "an argument can be read by everybody; set engine.api_key_secret",
    "--hf-token": "an argument can be read by everybody, and a server asks no hub; set hub.token_secret",
    # What the server is and where it listens, which probes, Service and NetworkPolicy rely on.
    "--model": "the model is always at /model",
    "--served-model-name": "the server goes by the hub's name of its model",
    "--host": "the server listens where its Service looks for it",
    "--port": "the server listens where its Service looks for it",
    "--uds": "the server listens where its Service looks for it",
    "--headless": "the server listens where its Service looks for it",
    "--root-path": "the server answers below / for its probes",
    "--ssl-certfile": "probes and clients speak plain HTTP to the server",
    "--ssl-keyfile": "probes and clients speak plain HTTP to the server",
    "--config": "flags in a file are not seen here; write them into extra_args",
    "--help": "it ends the server",
    "-h": "it ends the server",
    # What another setting says.
    "--max-model-len": "set engine.max_model_len",
    "--language-model-only": "set engine.text_only",
    "--gpu-memory-utilization": "set engine.gpu_memory_utilization",
    "--device-memory-utilization": "set engine.gpu_memory_utilization",
    "--quantization": "set engine.quantization",
    "-q": "set engine.quantization",
    "--tensor-parallel-size": "it follows accelerator.count",
    "-tp": "it follows accelerator.count",
    "--enable-lora": "it follows `adapters`",
    "--lora-modules": "set `adapters`",
    "--max-lora-rank": "it follows the ranks of `adapters`",
    "--speculative-config": "set `assistant`",
    "-sc": "set `assistant`",
    "--spec-model": "set `assistant`",
    "--spec-method": "set `assistant`",
    "--spec-tokens": "set assistant.num_speculative_tokens",
    "--shutdown-timeout": "set serving.request_timeout",
    "--api-server-count": "one API server a pod: requests are drained by what it counts",
    # vLLM has dropped these, and refuses to start with them.
    "--swap-space": "vLLM has dropped it",
    "--num-scheduler-steps": "vLLM has dropped it",
    "--disable-log-requests": "vLLM has dropped it; it is --no-enable-log-requests now",
    "--device": "vLLM has dropped it",
    "--task": "vLLM has dropped it",
    "--use-v2-block-manager": "vLLM has dropped it",
}
"""Flag → why it is not for extra_args, and what is."""

READ = ("--max-num-batched-tokens", "--max-num-seqs", "--max-loras", "--kv-cache-dtype")
"""Flags that what a model needs depends on."""
_NUMBERS, _WITH_UNIT = READ[:3], READ[:1]
_UNITS = {unit: base**power for units, base in (("kmgt", 1000), ("KMGT", 1024)) for power, unit in enumerate(units, 1)}

_NAME = re.compile(r"-{1,2}[\w-]*", re.ASCII)
_OTHER_DASH = re.compile(r"[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]")
"""What a word processor makes of a hyphen or two."""


def check(arguments: Sequence[str]) -> None:
    """Raises ValueError for a flag that is taken, however it is spelt, and for what no parser would take for a flag.

    `arguments` are the words of a command line, one an item.
    """
    if arguments and not arguments[0].strip(" '\"").startswith("-") and not _OTHER_DASH.match(arguments[0]):
        raise ValueError("begins with a value: a flag comes first, such as --max-num-seqs")
    for position, argument in enumerate(arguments, 1):
        # Quoted twice, or with a blank before it, it would be no flag to vLLM, but its secret would stand there.
        word = argument.strip(" \t\n'\"")
        if _OTHER_DASH.match(word):
            raise ValueError(f"item {position} begins with a dash that is no hyphen: flags begin with --")
        if "$(" in argument:
            raise ValueError(
                f"item {position} has $(…), which Kubernetes replaces with a variable of the pod, its API key say"
            )
        if not (found := _NAME.match(word)):
            continue
        if word in ("-", "--"):
            raise ValueError(f"item {position} is {word}, after which no flag is one")
        if taken := _taken(found[0]):
            raise ValueError(f"{taken} is not for extra_args: {TAKEN[taken]}")
        if re.match(r"\s", word[found.end() :]):
            raise ValueError(f"item {position} is a flag and its value in one: write them as two items")
        name = _name(found[0])
        if short := [flag for flag in READ if flag.startswith(name) and flag != name and len(name) > 2]:
            raise ValueError(f"item {position} may be short for {short[0]}: write it out")
    for flag in _NUMBERS:
        number(arguments, flag)


def value(arguments: Sequence[str], flag: str) -> str | None:
    """What the words give a flag of READ, the last time, as vLLM reads them; None when they do not."""
    found = None
    for word, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        spelt, equals, given = word.partition("=")
        if _name(spelt) == flag:
            found = given if equals else following
    return found


def number(arguments: Sequence[str], flag: str) -> int | None:
    """The number that the words give a flag, as vLLM reads it (4K is 4096, 4k is 4000, 2.5k is 2500); None when they do
    not. Raises ValueError for what is none."""
    text = value(arguments, flag)
    if text is None:
        return None
    found = 0
    with contextlib.suppress(ValueError):
        if flag in _WITH_UNIT and (human := re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)([kKmMgGtT])\s*", text)):
            found = int((float if human[2].islower() else int)(human[1]) * _UNITS[human[2]])
        elif len(text) < 20:
            found = int(text)
    if found < 1:
        raise ValueError(f"{flag} takes a whole number, 1 or more")
    return found


def _name(spelt: str) -> str:
    return spelt.lower().replace("_", "-")


def _taken(spelt: str) -> str | None:
    """The flag of TAKEN that vLLM would take this name for; None for a free one."""
    if spelt.startswith("--"):
        # The start of a name stands for it, and `--no-` before it only turns a switch round.
        name = re.sub(r"^--no-(?=.)", "--", _name(spelt))
        meant = [flag for flag in TAKEN if flag.startswith(name)]
        return name if name in meant else next(iter(meant), None)
    short = [flag for flag in TAKEN if not flag.startswith("--")]
    # A flag of one letter may have its value right after it, a longer one may be cut.
    return next((f for f in short if f.startswith(spelt) or (len(f) == 2 and spelt.startswith(f))), None)
