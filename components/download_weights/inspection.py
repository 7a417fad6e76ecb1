"""Whether the release's weights can be a whole model, found out by reading a few hundred kilobytes of each shard.

Done before the bytes are moved: a shard that was cut or forgotten costs seconds then, and no accelerator.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterable

from serving.clients.digest import ServedFile
from serving.clients.patience import Patience
from serving.clients.source import Source
from serving.clients.wire import Wire
from serving.errors import ReleaseError
from serving.weights import adapter, checkpoint
from serving.weights.repositories import BASE, Part

# Holds the header of most shards: one request instead of two.
_GUESS = 256 << 10


def check(parts: Iterable[Part], *, text_only: bool = False) -> None:
    """Checks each part by itself, the model first, and the adapters against the model.

    text_only: the engine is told to serve no images. Raises ReleaseError that names the part.
    """
    base: set[str] = set()
    architecture = ""
    for part in parts:
        try:
            names = _check_shards(part)
            if part.repository.role == BASE:
                base, architecture = names, _check_config(part, text_only)
            elif part.repository.is_adapter and not part.chosen.pickles:
                adapter.check_tensors(names, base, architecture)
        except ReleaseError as error:
            raise ReleaseError(f"{part.repository.called}{error}") from error


def _check_config(part: Part, text_only: bool) -> str:
    """Checks what lies beside the weights. Returns the architecture; empty when it names none."""
    architectures = checkpoint.parse_json(checkpoint.CONFIG, part.config()).get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else ""
    if named in checkpoint.NEEDS_IMAGE_PROCESSOR and not text_only:
        described = part.content(checkpoint.PROCESSOR)
        has_one = described and "image_processor" in checkpoint.parse_json(checkpoint.PROCESSOR, described)
        if not has_one and part.content(checkpoint.IMAGE_PROCESSOR) is None:
            raise ReleaseError(
                f"{checkpoint.IMAGE_PROCESSOR} missing: vLLM starts no {named} without one, or an image_processor in "
                f"{checkpoint.PROCESSOR}. To serve text alone: engine.text_only: true"
            )
    return str(named)


def _check_shards(part: Part) -> set[str]:
    """Checks the header of every shard, and the index against all of them. Returns the tensors."""
    source, chosen = part.source, part.chosen
    with concurrent.futures.ThreadPoolExecutor(8, "inspect") as pool:
        held = dict(
            zip(
                [shard.path for shard in chosen.shards],
                pool.map(lambda shard: _tensors(source, shard), chosen.shards),
                strict=True,
            )
        )
    held |= {file.path: set() for file in chosen.pickles}
    if not part.repository.is_adapter:
        checkpoint.check_shards(chosen, held)
    return set().union(*held.values())


def _tensors(source: Source, shard: ServedFile) -> set[str]:
    try:
        return _read_tensors(source, shard)
    except ReleaseError:
        # These bytes have no digest of their own: only what is wrong twice is the release's fault.
        return _read_tensors(source, shard)


def _read_tensors(source: Source, shard: ServedFile) -> set[str]:
    wire, patience = Wire(), Patience()
    try:
        head = source.head(wire, shard, _GUESS, patience)
        length = checkpoint.header_length(shard, head)
        if length > len(head):
            head = source.head(wire, shard, length, patience)
        return checkpoint.tensors(shard, head[8:length])
    finally:
        wire.close()
