"""`python -m emulated_cloud.hub.models gemma3|gemma4|gemma4-assistant|lora FOLDER [--seed N] [--base FOLDER]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from emulated_cloud.hub.models import write_gemma3, write_gemma4, write_gemma4_assistant, write_lora_adapter


def main() -> None:
    parser = argparse.ArgumentParser("python -m emulated_cloud.hub.models", description="Writes a tiny checkpoint.")
    parser.add_argument("kind", choices=("gemma3", "gemma4", "gemma4-assistant", "lora"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", type=Path, help="lora: the folder of the checkpoint that it adapts")
    parser.add_argument("--base-name", help="lora: what it calls that checkpoint (default: the folder)")
    options = parser.parse_args()
    if options.kind == "lora":
        if options.base is None:
            parser.error("lora needs --base FOLDER")
        write_lora_adapter(options.folder, options.base, options.seed, base_name=options.base_name)
    else:
        write = {"gemma3": write_gemma3, "gemma4": write_gemma4, "gemma4-assistant": write_gemma4_assistant}
        write[options.kind](options.folder, options.seed)


if __name__ == "__main__":
    main()
