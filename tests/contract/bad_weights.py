"""Weights that are no whole model, and a few that only look so: what we say of each before a byte moves, and vLLM when
it loads them. One line a case: add yours.

`ours` is what download_weights says, `vllm` what the engine says of the folder as it is (asked of vLLM 0.32, and of the
emulated one in every run of the tests); None: nothing, it moves, it is served.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emulated_cloud.hub.models import mismatch_config

Header = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """`make` gets the folder of a tiny Gemma 3 in one file, or (`adapter`) of a LoRA adapter for it, and spoils it."""

    name: str
    make: Callable[[Path], object]
    ours: str | None
    vllm: str | None
    adapter: bool = False


def read(path: Path) -> tuple[Header, bytes]:
    """A safetensors file's tensors, and their bytes."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, data[8 + length :]


def write(path: Path, header: Header | bytes, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def in_one_file(folder: Path) -> None:
    """Makes one model.safetensors of a folder's shards, and no index."""
    header: Header = {}
    whole = b""
    for shard in sorted(folder.glob("*.safetensors")):
        entries, data = read(shard)
        for name, entry in entries.items():
            header[name] = {**entry, "data_offsets": [offset + len(whole) for offset in entry["data_offsets"]]}
        whole += data
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink()
    write(folder / "model.safetensors", header, whole)


# -- ways to spoil --------------------------------------------------------------------------------------------

MODEL, ADAPTER = "model.safetensors", "adapter_model.safetensors"
FIRST, UP = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"


def weights(folder: Path) -> Path:
    return folder / (ADAPTER if (folder / ADAPTER).exists() else MODEL)


def renamed(change: Callable[[str], str]) -> Callable[[Path], None]:
    """Other names for the tensors; an empty one takes the tensor away."""

    def make(folder: Path) -> None:
        entries, data = read(weights(folder))
        kept, whole = Header(), b""
        for name, entry in entries.items():
            if new := change(name):
                first, last = entry["data_offsets"]
                kept[new] = {**entry, "data_offsets": [len(whole), len(whole) + last - first]}
                whole += data[first:last]
        write(weights(folder), kept, whole)

    return make


def changed(name: str, **entry: Any) -> Callable[[Path], None]:
    """Another entry in the header for a tensor."""

    def make(folder: Path) -> None:
        entries, data = read(weights(folder))
        write(weights(folder), {**entries, name: {**entries[name], **entry}}, data)

    return make


def added(name: str, like: str = UP) -> Callable[[Path], None]:
    """One more tensor, a copy of another."""

    def make(folder: Path) -> None:
        entries, data = read(weights(folder))
        first, last = entries[like]["data_offsets"]
        entries[name] = {**entries[like], "data_offsets": [len(data), len(data) + last - first]}
        write(weights(folder), entries, data + data[first:last])

    return make


def emptied(name: str) -> Callable[[Path], None]:
    """A tensor without a value."""

    def make(folder: Path) -> None:
        renamed(lambda each: "" if each == name else each)(folder)
        entries, data = read(weights(folder))
        entries[name] = {"dtype": "BF16", "shape": [0], "data_offsets": [len(data), len(data)]}
        write(weights(folder), entries, data)

    return make


def in_text(old: str, new: str) -> Callable[[Path], None]:
    """Another text in the header, once."""

    def make(folder: Path) -> None:
        entries, data = read(weights(folder))
        text = json.dumps(entries)
        assert old in text
        write(weights(folder), text.replace(old, new, 1).encode(), data)

    return make


def beside(file: str, name: str) -> Callable[[Path], None]:
    """A second file, with a copy of one tensor under a name."""

    def make(folder: Path) -> None:
        entries, data = read(folder / MODEL)
        first, last = entries[UP]["data_offsets"]
        write(folder / file, {name: {**entries[UP], "data_offsets": [0, last - first]}}, data[first:last])

    return make


def with_processor(folder: Path, **files: Any) -> None:
    """A multimodal architecture, described by these files."""
    path = folder / "config.json"
    text = json.loads(path.read_bytes())
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "vision_use_head": False,
    }
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "mm_tokens_per_image": 16}
    path.write_text(json.dumps({**config, "text_config": text, "vision_config": vision}))
    renamed(lambda name: name.replace("model.", "model.language_model.", 1))(folder)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def nested(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": ' + "[" * 100_000 + "]" * 100_000 + "}")


TINY = '{"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}'
LORA, QUERY = "base_model.model.model.", "layers.0.self_attn.q_proj"
NO_PLACE = "There is no module or parameter named '{}' in "
NO_TENSOR = "holds no LoRA weights"
NONE_OF_ITS = "the model has none of its modules"

CASES = [
    Case("whole", lambda _: None, None, None),
    Case("an empty tensor", emptied("model.norm.weight"), r"has the shape \[0\]", "Attempted to load"),
    Case("a negative shape", changed(FIRST, shape=[-4096, -128]), r"has the shape \[-4096", "`-4096`, expected usize"),
    Case("an unknown dtype", changed(FIRST, dtype="FUTURE"), "'FUTURE'", "unknown variant `FUTURE`, expected one of"),
    Case("no dtype", changed(FIRST, dtype=""), "no dtype that safetensors knows: ''", "unknown variant ``, expected"),
    Case("no tensors", lambda folder: write(folder / MODEL, {}, b""), "holds no tensor", "were not initialized from"),
    Case("a field twice", in_text('"dtype"', '"dtype": "BF16", "dtype"'), "'dtype' stands", "duplicate field `dtype`"),
    Case("a tensor twice", in_text("{", f'{{"{UP}": {TINY}, '), f"'{UP}' stands in it twice", None),
    Case("a tensor in two files", beside("other.safetensors", UP), f"both hold {UP}, and no model.safe", None),
    Case("an adapter beside it", beside(ADAPTER, f"{LORA}x.lora_A.weight"), None, NO_PLACE.format("base_model")),
    Case("an adapter's tensor", added(f"{LORA}x.weight"), "a LoRA adapter's", NO_PLACE.format("base_model")),
    Case("a foreign layer", added("model.layers.99.mlp.up_proj.weight"), None, NO_PLACE.format("layers.99")),
    Case("a foreign module", added("model.layers.0.foo.weight"), None, NO_PLACE.format("layers.0.foo")),
    Case("a tower", added("vision_tower.x.weight"), None, NO_PLACE.format("vision_tower") + "Gemma3ForCausalLM"),
    Case("an old buffer", added("model.layers.0.self_attn.rotary_emb.inv_freq"), None, None),
    Case("a tied head", added("lm_head.weight", FIRST), None, None),
    Case("names of another", renamed(lambda name: f"language_model.{name}"), None, NO_PLACE.format("language_model")),
    Case("no prefix", renamed(lambda name: name.removeprefix("model.")), None, NO_PLACE.format("embed_tokens")),
    Case("another config.json", mismatch_config, None, "size of tensor"),
    Case("nested config.json", nested, "config.json is nested deeper than", "maximum recursion depth exceeded"),
    Case("no processor", with_processor, "preprocessor_config.json missing", "Can't load image processor for"),
    Case(
        "half a processor",
        lambda folder: with_processor(folder, processor_config={"processor_class": "Gemma3Processor"}),
        "preprocessor_config.json missing: vLLM starts no Gemma3ForConditionalGeneration without one",
        "Can't load image processor for",
    ),
    Case("an adapter", lambda _: None, None, None, adapter=True),
    Case("an empty one", renamed(lambda _: ""), NO_TENSOR, "add_lora method failed: $", adapter=True),
    Case("of other layers", renamed(lambda n: n.replace("layers.", "layers.9")), NONE_OF_ITS, None, adapter=True),
    Case("of a wrapper", renamed(lambda n: n.replace(LORA, f"{LORA}language_model.")), NONE_OF_ITS, None, adapter=True),
    Case("without prefix", renamed(lambda n: n.removeprefix("base_model.model.")), None, None, adapter=True),
    Case("of other modules", renamed(lambda n: n.replace("q_p", "foo_p")), "adapts no foo_proj", "received", True),
    Case("with names", renamed(lambda n: n.replace(".w", ".default.w")), "no LoRA weight", "unsupported", True),
    Case("A alone", renamed(lambda n: n if "lora_A" in n else ""), "only lora_A is there", "unsupported operand", True),
    Case(
        "with tokens",
        added(f"{LORA}embed_tokens.token_adapter.trainable_tokens_delta", f"{LORA}{QUERY}.lora_A.weight"),
        "trainable_tokens_delta is no LoRA weight",
        "trainable_tokens_delta is unsupported LoRA weight",
        adapter=True,
    ),
]  # fmt: skip
