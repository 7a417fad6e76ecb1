"""Writes flags.json: the command line of a real vLLM, read from its own parser by its own Python.

    VLLM_TARGET_DEVICE=cpu ~/.cache/gemma-pipelines/real/vllm-…/bin/python read_flags.py > flags.json

One entry a flag: its kind (what the parser makes of a value is found out by giving it some), and where it has them
its choices, its `nargs` and its short forms.
"""

from __future__ import annotations

import argparse
import json
from typing import Any


def kind_of(action: argparse.Action) -> str:
    """switch (--x), boolean (--x, --no-x), or what a value is: int, size (8k), size_or_auto, float, json, json_or_str,
    str."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return "boolean"
    if action.nargs == 0:
        return "switch"

    def takes(value: str, kinds: tuple[type, ...]) -> bool:
        try:
            made = action.type(value) if callable(action.type) else value
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            return False
        return isinstance(made, kinds)

    if takes("{}", (object,)) and not takes("{}", (str, list)):
        return "json_or_str" if takes("x", (str,)) else "json"
    if takes("2k", (int,)):
        return "size_or_auto" if takes("auto", (int,)) else "size"
    if takes("2", (int,)):
        return "int"
    if takes("2.5", (float,)):
        return "float"
    return "str"


def main() -> None:
    from vllm import __version__  # type: ignore[import-not-found]
    from vllm.entrypoints.launchers.cli_args import make_arg_parser  # type: ignore[import-not-found]
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # type: ignore[import-not-found]

    flags: dict[str, Any] = {}
    for action in make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))._actions:
        names = [name for name in action.option_strings if not name.startswith("--no-")]
        if not names or action.dest == "help":
            continue
        long = next(name for name in names if name.startswith("--"))
        entry: dict[str, Any] = {"kind": kind_of(action)}
        if action.choices:
            entry["choices"] = sorted(str(choice) for choice in action.choices if choice != "None")
        if action.nargs:
            entry["nargs"] = action.nargs
        if isinstance(action, argparse._AppendAction):
            entry["append"] = True
        if short := [name for name in names if name != long]:
            entry["short"] = short
        flags[long] = entry
    print(json.dumps({"vllm": __version__, "flags": flags}, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
