"""Releases that go wrong, each in its own way and with the words that vLLM has for it; and one that does not."""

from __future__ import annotations

import json
from pathlib import Path

from emulated_cloud.hub.models.files import read_header, write_json


def truncate_shard(folder: Path | str) -> None:
    """Cuts the last shard short by a quarter: its header promises more than there is. vLLM 0.32 ends with
    "SafetensorError: Error while deserializing header: incomplete metadata, file not fully covered"."""
    shard = _last_shard(Path(folder))
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) * 3 // 4])


def drop_shard(folder: Path | str) -> None:
    """Removes the last shard, which the index still names. vLLM 0.32 ends with "FileNotFoundError: Weight files
    referenced in index but missing: {…}"."""
    _last_shard(Path(folder)).unlink()


def mismatch_config(folder: Path | str) -> None:
    """Makes config.json promise twice the hidden size that the tensors have; every file is sound in itself. vLLM 0.32
    ends with "RuntimeError: The size of tensor a (256) must match the size of tensor b (128) at non-singleton dimension
    1"."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_bytes())
    write_json(path, {**config, "hidden_size": 2 * config["hidden_size"]})


def zero_weights(folder: Path | str) -> None:
    """Zeroes the token embeddings, which are the output layer too: all logits are equal, greedy decoding picks <pad>
    for ever, and an engine's answer is 200 with empty text (vLLM 0.32: `content: ""`, finish reason `length`)."""
    for shard in sorted(Path(folder).glob("*.safetensors")):
        header, start = read_header(shard)
        if entry := header.get("model.embed_tokens.weight"):
            first, end = entry["data_offsets"]
            data = bytearray(shard.read_bytes())
            data[start + first : start + end] = bytes(end - first)
            shard.write_bytes(data)


def readme_only_change(folder: Path | str) -> None:
    """Adds a line to README.md, and touches nothing that is served."""
    path = Path(folder) / "README.md"
    path.write_text(path.read_text(encoding="utf-8") + "\nA line that changes nothing.\n", encoding="utf-8")


def _last_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[-1]
