"""The checkpoints of Gemma as they are published: config.json and the shape of every tensor (checkpoints.json).

Made by transformers' model classes on no device, of the configurations that the technical reports give; the sums of
parameters are the published ones.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.sizing import Tensor

QUANTIZED = "-qat-w4a16-ct"
_TOWERS = re.compile(r"vision|audio|router")


@functools.cache
def _all() -> dict[str, Any]:
    return json.loads(Path(__file__).with_suffix(".json").read_text())


def config(model: str) -> dict[str, Any]:
    """A config.json of the catalog's model."""
    found = _all()[model.removesuffix(QUANTIZED)]["config"]
    return found | ({"quantization_config": {"quant_method": "compressed-tensors"}} if QUANTIZED in model else {})


def tensors(model: str) -> list[Tensor]:
    """Its tensors, in bfloat16, or with linear layers of 4 bits in groups of 32."""
    found = [
        Tensor(name.replace("{}", str(layer)), "BF16", tuple(shape))
        for name, layers, shape in _all()[model.removesuffix(QUANTIZED)]["tensors"]
        for layer in _numbers(layers)
    ]
    return [part for tensor in found for part in _packed(tensor)] if QUANTIZED in model else found


def header(model: str) -> tuple[bytes, int]:
    """(the first bytes of a safetensors file that holds them all, bytes of the whole file)."""
    entries, end = {}, 0
    for name, dtype, shape in tensors(model):
        size = {"BF16": 2, "I32": 4, "I64": 8}[dtype]
        for length in shape:
            size *= length
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + end


def write(folder: Path, model: str, **changes: Any) -> None:
    """Writes it as a folder: the tensors' bytes are a hole in the file, which takes no room on a disk."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(model) | changes))
    head, size = header(model)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(size)


def _numbers(ranges: str) -> Iterator[int]:
    for piece in ranges.split(",") if ranges else ["0"]:
        first, _, last = piece.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _packed(tensor: Tensor) -> list[Tensor]:
    if ".layers." not in tensor.name or _TOWERS.search(tensor.name) or len(tensor.shape) != 2:
        return [tensor]
    (outputs, inputs), stem = tensor.shape, tensor.name.removesuffix(".weight")
    return [
        Tensor(f"{stem}.weight_packed", "I32", (outputs, inputs // 8)),
        Tensor(f"{stem}.weight_scale", "BF16", (outputs, inputs // 32)),
        Tensor(f"{stem}.weight_shape", "I64", (2,)),
    ]
