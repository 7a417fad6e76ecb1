"""What a checkpoint is made of: which files of a repository are served, and whether they can be a whole model.

A safetensors file is a u64 (little endian) header length, a JSON header that tells each tensor's dtype, shape and
offsets, and the tensors' bytes without a gap (https://github.com/huggingface/safetensors#format). So a file that was
cut short is known by its head and its size, before its bytes are moved.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from serving.clients.digest import ServedFile
from serving.clients.source import Source
from serving.clients.wire import Wire
from serving.errors import ReleaseError, RequestError
from serving.sizing import Tensor
from serving.weights import adapter

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
PROCESSOR, IMAGE_PROCESSOR = "processor_config.json", "preprocessor_config.json"
NEEDS_IMAGE_PROCESSOR = ("Gemma3ForConditionalGeneration",)
"""Architectures that vLLM does not start without a description of the images; for Gemma 4 it has one of its own."""

LONGEST_HEADER = 100_000_000
"""Bytes; the safetensors library refuses longer ones."""

# Read by the engine: configuration, tokenizer, chat template. Anything else (READMEs, pickles, GGUF, other frameworks'
# weights, what lies in folders) stays where it is: vLLM guesses a checkpoint's format by what lies beside it.
_SERVED = re.compile(
    r"[^/_][^/]*\.(json|jinja)|tokenizer[^/]*\.model|[^/]*\.tiktoken|spiece\.model|(vocab|merges|added_tokens)\.txt"
)
_LICENCE = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY|PROHIBITED_USE)[^/]*", re.IGNORECASE)
_NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.safetensors|\.bin)")
# What vLLM takes for weights when there are no safetensors, in this order, and what a trainer leaves beside them
# (vllm/model_executor/model_loader/default_loader.py and weight_utils.py).
_PICKLES = (".bin", ".pt")
_TRAINERS = {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt"}
# With one of these anywhere below the model's folder vLLM takes the checkpoint for one in Mistral's format.
_CONSOLIDATED = re.compile(r"(.*/)?consolidated[^/]*\.safetensors")
# What a trainer leaves beside the model that it merged them into; without an index vLLM would load it as a shard.
_ADAPTERS = re.compile(r"adapter_model[^/]*")

_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """The files of a repository that go into the bucket.

    `served` is what the engine reads, and what the weights key is made of. `licence` goes along, as licences ask for,
    but names nothing: other words in it are no other model.
    """

    served: list[ServedFile]
    licence: list[ServedFile]
    index: bytes | None = None
    """Content of the shards' index; None for a model of one file."""

    @property
    def files(self) -> list[ServedFile]:
        return [*self.served, *self.licence]

    @property
    def shards(self) -> list[ServedFile]:
        return [file for file in self.served if file.path.endswith(".safetensors")]

    @property
    def pickles(self) -> list[ServedFile]:
        return [file for file in self.served if is_pickle(file.path)]


def is_pickle(path: str) -> bool:
    return path.endswith(_PICKLES)


def select(source: Source, *, is_adapter: bool = False, pickles: bool = False) -> Chosen:
    """The files at a commit that go into the bucket, by the listing of their source. Raises as `choose` and
    `choose_adapter`."""
    files = source.files()
    if is_adapter:
        return choose_adapter(source.name, files, pickles=pickles)
    wire = Wire()
    try:
        index = next((source.content(wire, file) for file in files if file.path == INDEX), None)
    finally:
        wire.close()
    return choose(source.name, files, index, pickles=pickles)


def choose(model: str, files: Iterable[ServedFile], index: bytes | None, *, pickles: bool = False) -> Chosen:
    """Picks what is served: with an index the shards that it names, without one every safetensors at the top, and only
    where there is none, and `pickles` allows it, what vLLM would load instead.

    Raises RequestError for a repository that holds no weights or no config.json. A broken index is for `check_shards`
    to judge.
    """
    files = sorted(files, key=lambda file: file.path)
    if not any(file.path == CONFIG for file in files):
        raise RequestError(
            f"{model} has no {CONFIG}: it is not a model that transformers or vLLM could load. {_look(model)}"
        )
    named = set(in_index(index).values())
    shards = [
        file
        for file in files
        if file.path.endswith(".safetensors") and (file.path in named if named else _is_loaded(file.path))
    ]
    if not shards and not named:
        loaded = [file for file in files if _is_loaded(file.path) and file.path not in _TRAINERS]
        found = next(filter(None, ([file for file in loaded if file.path.endswith(kind)] for kind in _PICKLES)), [])
        if not found and any(_ADAPTERS.fullmatch(file.path) for file in files):
            raise RequestError(f"{model} has no weights but an adapter's: name it in `adapters`, and its base as model")
        shards = _pickled(model, found, pickles)
    others = [
        file
        for file in files
        if _SERVED.fullmatch(file.path) and (not file.path.endswith(".safetensors.index.json") or file.path == INDEX)
    ]
    return _storable(model, Chosen([*others, *shards], _licences(files), index))


def _is_loaded(path: str) -> bool:
    """Whether vLLM may take the file for a part of the model when no index says which files are."""
    return "/" not in path and not _CONSOLIDATED.fullmatch(path) and not _ADAPTERS.fullmatch(path)


def choose_adapter(model: str, files: Iterable[ServedFile], *, pickles: bool = False) -> Chosen:
    """Picks what vLLM reads of a LoRA adapter: its configuration and its tensors. Raises RequestError for what is no
    adapter."""
    there = {file.path: file for file in files}
    if adapter.CONFIG not in there:
        what = "a model of its own, for `model` or `assistant`" if CONFIG in there else "no adapter"
        raise RequestError(f"{model} has no {adapter.CONFIG}: it is {what}. {_look(model)}")
    weights = [there[adapter.WEIGHTS]] if adapter.WEIGHTS in there else []
    if not weights:
        weights = _pickled(model, [there[path] for path in adapter.PICKLES if path in there][:1], pickles)
    return _storable(model, Chosen([there[adapter.CONFIG], *weights], _licences(there.values())))


def _storable(model: str, chosen: Chosen) -> Chosen:
    """What was chosen, if a bucket and a file system can hold all of it under its names. Raises RequestError."""
    for file in chosen.files:
        unfit = any(unicodedata.category(letter) in ("Cc", "Cs") for letter in file.path)  # Cs: it was no UTF-8.
        if unfit or not all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in file.path.split("/")):
            raise RequestError(
                f"{model} has a file whose name no bucket, or no file system, takes: {file.path!a}. Rename it"
            )
    return chosen


def _licences(files: Iterable[ServedFile]) -> list[ServedFile]:
    return [file for file in files if _LICENCE.fullmatch(file.path)]


def _pickled(model: str, found: list[ServedFile], allowed: bool) -> list[ServedFile]:
    """The pickles of a repository without safetensors. Raises RequestError when there are none, or none are allowed."""
    if found and allowed:
        return found
    if not found:
        raise RequestError(f"{model} has no safetensors: no weights that vLLM could load. {_look(model)}")
    raise RequestError(
        f"{model} has no safetensors: only pickles ({', '.join(file.path for file in found[:3])}). A pickle is a "
        "program, and may do anything when it is loaded. Take a repository that has safetensors, or convert it; for "
        "one whose makers you trust like your own code set hub.allow_pickles: true"
    )


def _look(model: str) -> str:
    """The next command of somebody who has named the wrong repository or folder."""
    if model.startswith("gs://"):
        return f"`gcloud storage ls {model}/` shows what is there"
    if model.startswith("/"):
        return f"`ls {model}` shows what is there"
    return f"Its files are on the hub's page of {model}"


def in_index(index: bytes | None) -> dict[str, str]:
    """Tensor → shard; empty when there is no index, or none to speak of."""
    try:
        found = parse_json(INDEX, index or b"{}").get("weight_map")
    except ReleaseError:
        return {}
    return {name: shard for name, shard in found.items() if isinstance(shard, str)} if isinstance(found, dict) else {}


def parse_json(what: str, content: bytes, *, unique: bool = False) -> dict[str, Any]:
    """A JSON object that the release brings; `unique`: in which no key stands twice. Raises ReleaseError."""
    try:
        value = json.loads(content, object_pairs_hook=_without_doubles if unique else None)
    except RecursionError as error:
        raise ReleaseError(f"{what} is nested deeper than anything that reads it can follow") from error
    except ValueError as error:
        raise ReleaseError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ReleaseError(f"{what} is not a JSON object")
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in made if names.count(name) > 1)
        raise ValueError(f"{double!r} stands in it twice")
    return made


def header_length(file: ServedFile, head: bytes) -> int:
    """Bytes of a safetensors file before its tensors, from its first eight bytes. Raises ReleaseError."""
    length = int.from_bytes(head[:8], "little")
    if len(head) < 8 or length > LONGEST_HEADER or 8 + length > file.size:
        raise ReleaseError(f"{file.path} is cut short, or no safetensors file: it has {file.size} bytes")
    return 8 + length


def tensors(file: ServedFile, header: bytes) -> set[str]:
    """The tensors of a safetensors file, from its header (the JSON alone).

    Raises ReleaseError for what the safetensors library or vLLM would not load, and when the tensors do not fill the
    file without a gap: it was cut, or put together wrongly.
    """
    entries = parse_json(f"the header of {file.path}", header, unique=True)
    entries.pop("__metadata__", None)
    if not entries:
        raise ReleaseError(f"{file.path} holds no tensor")
    end = 0
    try:
        for name, tensor in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            first, last = tensor["data_offsets"]
            dtype, shape = tensor["dtype"], tensor["shape"]
            if dtype not in _BITS:
                raise ReleaseError(f"{file.path}: tensor {name} is of no dtype that safetensors knows: {dtype!r}")
            if not all(type(size) is int and size > 0 for size in shape):
                raise ReleaseError(f"{file.path}: tensor {name} has the shape {shape}: there is nothing in it")
            if first != end or last < first:
                raise ReleaseError(f"{file.path}: tensor {name} starts at byte {first} of the data, not at {end}")
            if math.prod(shape) * _BITS[dtype] != (last - first) * 8:
                raise ReleaseError(f"{file.path}: tensor {name} has {last - first} bytes, not those of its shape")
            end = last
    except (KeyError, TypeError, ValueError) as error:
        raise ReleaseError(f"{file.path}: its header does not describe tensors ({error!r})") from error
    there = file.size - 8 - len(header)
    if there != end:
        how = "is cut short" if there < end else "is too long"
        raise ReleaseError(f"{file.path} {how}: its tensors take {end} bytes and {there} are there")
    return set(entries)


def described(file: ServedFile, header: bytes) -> list[Tensor]:
    """Names, types and shapes of a safetensors file's tensors, from its header (the JSON alone). Raises ReleaseError
    where it does not describe any that the file could hold."""
    entries = parse_json(f"the header of {file.path}", header)
    entries.pop("__metadata__", None)
    try:
        found = [Tensor(name, str(entry["dtype"]), tuple(map(int, entry["shape"]))) for name, entry in entries.items()]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ReleaseError(f"{file.path}: its header does not describe tensors ({error!r})") from error
    if not all(_fits_into(file, tensor) for tensor in found):
        raise ReleaseError(f"{file.path}: its header describes tensors that are larger than the file")
    return found


def _fits_into(file: ServedFile, tensor: Tensor) -> bool:
    bits = _BITS.get(tensor.dtype, 8)
    for size in tensor.shape:
        bits *= size
        if not 0 < bits <= file.size * 8:  # At once: a header may bring a million sizes.
            return False
    return True


def check_shards(chosen: Chosen, held: dict[str, set[str]]) -> None:
    """Checks that the shards are one whole model. `held`: each shard's tensors; of a pickle nobody knows them.

    Raises ReleaseError naming what is missing (a shard that the index or, without one, the numbering counts on, or a
    tensor that its shard does not hold) or what is too much: a tensor in two shards, or of an adapter.
    """
    weight_map = in_index(chosen.index)
    if chosen.index is not None and not weight_map:
        parse_json(INDEX, chosen.index)
        raise ReleaseError(f"{INDEX} has no weight_map")
    wanted = set(weight_map.values()) or _numbered(file.path for file in chosen.served)
    if absent := sorted(wanted - held.keys()):
        source = INDEX if weight_map else "the numbering of the shards"
        raise ReleaseError(f"{', '.join(absent)} missing: {source} counts on it")
    lost = sorted(name for name, shard in weight_map.items() if name not in held[shard])
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise ReleaseError(f"tensor {lost[0]}{more} missing: {INDEX} says {weight_map[lost[0]]}, which lacks it")
    seen: dict[str, str] = {}
    for path, names in held.items():
        for name in sorted(names):
            if name.startswith(adapter.PREFIX):
                raise ReleaseError(
                    f"{path} holds {name}, a LoRA adapter's, which vLLM does not load as part of a model"
                )
            if name in seen and not weight_map:
                raise ReleaseError(
                    f"{seen[name]} and {path} both hold {name}, and no {INDEX} says which of them counts"
                )
            seen[name] = path


def _numbered(paths: Iterable[str]) -> set[str]:
    """All the shards that names like model-00001-of-00003.safetensors speak of."""
    wanted: set[str] = set()
    for path in paths:
        if match := _NUMBERED.fullmatch(path):
            stem, _, count, kind = match.groups()
            wanted.update(f"{stem}-{number:05}-of-{count}{kind}" for number in range(1, int(count) + 1))
    return wanted
