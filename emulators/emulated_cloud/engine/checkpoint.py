"""A checkpoint, opened as vLLM opens it: config.json, the index, every shard's safetensors header.

safetensors (https://github.com/huggingface/safetensors#format): u64 little-endian length of the header, the header
(JSON: tensor name → dtype, shape, data_offsets), then the tensors' bytes without gaps. Only headers and a few pages
are read, so a 50 GB model opens as fast as a small one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from emulated_cloud.engine.architectures import (
    ASSISTANT,
    SUPPORTED,
    Expected,
    required_tensors,
    text_config,
    unexpected,
)

BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""What a value of each dtype takes, in the order in which the safetensors library names them."""
MAX_HEADER = 100_000_000
PAGE, SAMPLES = 4096, 8


class BadModel(Exception):
    """What vLLM's front end refuses before any weight is read (config, arguments): exception type and words. `config`
    is the part of its configuration that a ValidationError is about."""

    def __init__(self, kind: str, message: str, config: str = "ModelConfig"):
        super().__init__(message)
        self.kind, self.config = kind, config


class BadWeights(BadModel):
    """What the engine core refuses while it loads."""


class Remote(Protocol):
    """A file of weights that is elsewhere (streamer.py)."""

    @property
    def size(self) -> int: ...

    def open(self) -> BinaryIO: ...


Shard = Path | Remote


@dataclass
class Tensor:
    """Where a tensor lies: `start` and `end` are offsets in its file, in bytes."""

    file: Shard
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass
class Checkpoint:
    """A checkpoint that vLLM would load.

    digest: over every shard's header, size and a few pages, so other weights have another one. padding_only: the
    embeddings are all zero, so every logit is the same and greedy decoding yields token 0 for ever.
    """

    folder: Path
    config: dict[str, Any]
    architecture: str
    max_position_embeddings: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    digest: bytes = b""
    padding_only: bool = False
    total_bytes: int = 0


def open_config(model: str, supported: Sequence[str] = SUPPORTED, config_path: str | None = None) -> Checkpoint:
    """config.json (of `config_path` where that is given), and what its architecture allows. Raises BadModel in vLLM's
    words."""
    at, folder = Path(model), Path(config_path or model)
    if not folder.is_dir():
        raise BadModel(
            "huggingface_hub.errors.HFValidationError",
            f"Repo id must be in the form 'repo_name' or 'namespace/repo_name': '{model}'. "
            "Use `repo_type` argument if needed.",
        )
    if not (folder / "config.json").is_file():
        raise BadModel(
            "ValueError",
            f"Invalid repository ID or local directory specified: '{model}'.\n"
            "Please verify the following requirements:\n"
            "1. Provide a valid Hugging Face repository ID.\n"
            "2. Specify a local directory that contains a recognized configuration file.\n"
            "   - For Hugging Face models: ensure the presence of a 'config.json'.\n"
            "   - For Mistral models: ensure the presence of a 'params.json'.\n",
        )
    try:
        config = json.loads((folder / "config.json").read_bytes())
        architectures = list(config.get("architectures") or [])
    except RecursionError as error:
        raise BadModel("RecursionError", str(error)) from error
    except (ValueError, AttributeError) as error:
        raise BadModel(
            "OSError", f"It looks like the config file at '{folder / 'config.json'}' is not a valid JSON file."
        ) from error
    known = [name for name in architectures if name in supported]
    if not known:
        raise BadModel(
            "ValidationError",
            f"Model architectures {architectures} are not supported for now. "
            f"Supported architectures: dict_keys({list(supported)})",
        )
    derived = int(text_config(config, known[0])["max_position_embeddings"])
    return Checkpoint(at, config, known[0], derived)


def check_processor(checkpoint: Checkpoint, args: argparse.Namespace) -> None:
    """Raises BadModel for a multimodal Gemma 3 that comes without a description of its images, unless it is to see
    none. Gemma 4 has one of its own (asked of vLLM 0.32)."""
    folder, limits = checkpoint.folder, args.limit_mm_per_prompt or {}
    if checkpoint.architecture != "Gemma3ForConditionalGeneration" or args.language_model_only:
        return
    if limits.get("image") in (0, {"count": 0}) or (folder / "preprocessor_config.json").is_file():
        return
    try:
        described = "image_processor" in json.loads((folder / "processor_config.json").read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        described = False
    if not described:
        raise BadModel(
            "OSError",
            f"Can't load image processor for '{folder}'. If you were trying to load it from "
            "'https://huggingface.co/models', make sure you don't have a local directory with the same name. "
            f"Otherwise, make sure '{folder}' is the correct path to a directory containing a "
            "preprocessor_config.json file",
        )


def load_weights(checkpoint: Checkpoint, remote: Sequence[Remote] = ()) -> None:
    """Fills in tensors, digest and padding_only, from the checkpoint's folder or the remote files. Raises BadWeights in
    vLLM's words."""
    files: Sequence[Shard] = remote or shards(checkpoint.folder)
    digest = hashlib.sha256()
    for file in files:
        tensors, header = read_shard(file)
        checkpoint.tensors.update(tensors)
        digest.update(header)
        digest.update(sample(file))
        checkpoint.total_bytes += size_of(file)
    checkpoint.digest = digest.digest()
    names = check_tensors(checkpoint)
    checkpoint.padding_only = all_zero(checkpoint.tensors[names["embed_tokens.weight"]])


def shards(folder: Path) -> list[Path]:
    """The files of the weights: those that the index names, or every *.safetensors without one."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise BadWeights("RuntimeError", f"Cannot find any model weights with `{folder}`")
        return files
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise BadWeights("JSONDecodeError", f"{index} is not an index of safetensors: {error!r}") from error
    files = [folder / name for name in names]
    if missing := {str(file) for file in files if not file.is_file()}:
        raise BadWeights("FileNotFoundError", f"Weight files referenced in index but missing: {missing}")
    return files


def size_of(file: Shard) -> int:
    return file.stat().st_size if isinstance(file, Path) else file.size


def opened(file: Shard) -> BinaryIO:
    return file.open("rb") if isinstance(file, Path) else file.open()


FILE_ACCESS = "Could not receive response from libstreamer due to: b'File access error'"
STREAMERS_WORDS = {
    "header too small": "File {file} is truncated or empty.",
    "header too large": "Corrupted File: Header size {length} in {file} exceeds limit of 100000000 bytes.",
    "invalid header length": f"Streamer failed to read header body (likely truncated file): {FILE_ACCESS}",
    "incomplete metadata, file not fully covered": FILE_ACCESS,
}
"""What the safetensors library says of a file → what the streamer says of an object. Of the rest it says that the
header is no valid JSON, more or less."""


def read_shard(file: Shard) -> tuple[dict[str, Tensor], bytes]:
    """The tensors of one file and its raw header. Raises BadWeights in the words of who reads it: the safetensors
    library, or the streamer."""

    def refuse(words: str, **numbers: int) -> BadWeights:
        if not isinstance(file, Path):
            theirs = "Corrupted File: Header in {file} is not valid JSON. Error: {words}"
            told = STREAMERS_WORDS.get(words, theirs).format(file=file, size=size, words=words, **numbers)
            return BadWeights("ValueError", told)
        return BadWeights("safetensors._safetensors_rust.SafetensorError", f"Error while deserializing header: {words}")

    size = size_of(file)
    with opened(file) as stream:
        if size < 8:
            raise refuse("header too small")
        length = int.from_bytes(stream.read(8), "little")
        if length > MAX_HEADER:
            raise refuse("header too large", length=length)
        if 8 + length > size:
            raise refuse("invalid header length")
        header = stream.read(length)
    try:
        entries = json.loads(header, object_pairs_hook=_fields)
        if not all(isinstance(value, str) for value in (entries.pop("__metadata__", None) or {}).values()):
            raise ValueError("invalid type in __metadata__, expected a string")
        tensors = {name: _tensor(file, entry, 8 + length) for name, entry in entries.items()}
    except RecursionError as error:
        raise refuse("invalid JSON in header: recursion limit exceeded") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise refuse(f"invalid JSON in header: {error}") from error
    expected = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        if tensor.start != expected or tensor.end < tensor.start:
            raise refuse(f'invalid offset for tensor "{name}"')
        if math.prod(tensor.shape) * BITS[tensor.dtype] != (tensor.end - tensor.start) * 8:
            raise refuse("invalid shape, data type, or offset for tensor")
        expected = tensor.end
    # The streamer asks for what the header declares, and never learns of more.
    if expected != size and (isinstance(file, Path) or expected > size):
        raise refuse("incomplete metadata, file not fully covered")
    return tensors, header


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a header. Of a tensor no field may stand twice; of two tensors of one name the last one counts."""
    names = [name for name, _ in pairs]
    for name in ("dtype", "shape", "data_offsets"):
        if names.count(name) > 1:
            raise ValueError(f"duplicate field `{name}`")
    return dict(pairs)


def _tensor(file: Shard, entry: dict[str, Any], start: int) -> Tensor:
    dtype, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in BITS:
        raise ValueError(f"unknown variant `{dtype}`, expected one of {', '.join(f'`{name}`' for name in BITS)}")
    for number in (*shape, first, last):
        if type(number) is not int or number < 0:
            raise ValueError(f"invalid value: integer `{number}`, expected usize")
    return Tensor(file, dtype, tuple(shape), start + first, start + last)


def check_tensors(checkpoint: Checkpoint) -> dict[str, str]:
    """Compares the tensors with what the config implies.

    Returns the checkpoint's name of each tensor of the language model by its name below the model's prefix. Raises
    BadWeights for one that the model has no place for, the first of the wrong shape, and for all that are missing.
    """
    config, architecture, there = checkpoint.config, checkpoint.architecture, checkpoint.tensors
    if architecture != ASSISTANT and (words := unexpected(config, architecture, there, there)):
        raise BadWeights("ValueError", words)
    names: dict[str, str] = {}
    missing: set[str] = set()
    for expected in required_tensors(checkpoint.config, checkpoint.architecture, checkpoint.tensors):
        tensor = checkpoint.tensors.get(expected.name)
        if tensor is None:
            if not (expected.optional or quantized(checkpoint, expected.name)):
                missing.add(expected.name)
            continue
        if tensor.shape != expected.shape and not quantized(checkpoint, expected.name):
            raise mismatch(tensor.shape, expected)
        names[expected.key] = expected.name
    if missing:
        raise BadWeights("ValueError", f"Following weights were not initialized from checkpoint: {missing}")
    return names


def mismatch(shape: tuple[int, ...], expected: Expected) -> BadWeights:
    """A tensor of the wrong shape. The embeddings' rows are copied before anybody compares their width; of linear
    layers vLLM says no more than AssertionError."""
    if expected.key == "embed_tokens.weight" and shape[1:] != expected.shape[1:]:
        return BadWeights(
            "RuntimeError",
            f"The size of tensor a ({expected.shape[1]}) must match the size of tensor b ({shape[1]}) "
            "at non-singleton dimension 1",
        )
    return BadWeights(
        "AssertionError",
        f"Attempted to load weight (torch.Size({list(shape)})) into parameter (torch.Size({list(expected.shape)}))",
    )


def quantized(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a linear layer is stored packed (compressed-tensors: weight_packed, weight_scale, …), in which case
    its shapes depend on the scheme."""
    if "quantization_config" not in checkpoint.config:
        return False
    layer = name.removesuffix("weight")
    return any(layer + suffix in checkpoint.tensors for suffix in ("weight_packed", "weight_scale"))


def spread(start: int, end: int) -> Iterable[int]:
    """Offsets of SAMPLES pages, evenly spread over a range of bytes."""
    step = max((end - start) // SAMPLES, PAGE)
    return range(start, end, step)


def sample(file: Shard) -> bytes:
    """A digest of a file's size and of a few of its pages."""
    size = size_of(file)
    digest = hashlib.sha256(str(size).encode())
    with opened(file) as stream:
        for offset in spread(0, size):
            stream.seek(offset)
            digest.update(stream.read(PAGE))
    return digest.digest()


def all_zero(tensor: Tensor) -> bool:
    """Whether the sampled pages of a tensor hold nothing but zeros."""
    with opened(tensor.file) as stream:
        for offset in spread(tensor.start, tensor.end):
            stream.seek(offset)
            if any(stream.read(min(PAGE, tensor.end - offset))):
                return False
    return True
