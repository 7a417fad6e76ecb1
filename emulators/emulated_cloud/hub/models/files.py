"""The files of a release that every kind has: safetensors, JSON, and the model card."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def write_safetensors(path: Path, tensors: dict[str, Array]) -> None:
    """u64 length of the header, the header in JSON (padded to 8 bytes with spaces), then the data, in bf16."""
    import numpy as np

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, value in tensors.items():
        header[name] = {"dtype": "BF16", "shape": value.shape, "data_offsets": [offset, offset + 2 * value.size]}
        offset += 2 * value.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for value in tensors.values():
            bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
            # To the nearest, ties to even; weights are finite.
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            file.write(rounded.astype("<u2").tobytes())


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's tensors by name, and where its data begin."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_card(folder: Path, title: str, library: str) -> None:
    """.gitattributes and README.md; the README comes last, so a folder that has it is whole."""
    (folder / ".gitattributes").write_text(
        "*.safetensors filter=lfs diff=lfs merge=lfs -text\ntokenizer.json filter=lfs diff=lfs merge=lfs -text\n",
        encoding="utf-8",
    )
    (folder / "README.md").write_text(
        f"---\nlicense: gemma\nlibrary_name: {library}\npipeline_tag: text-generation\ntags:\n- tiny\n---\n\n"
        f"# {title}\n\nRandom weights in the form of a real release, for tests.\n",
        encoding="utf-8",
    )
