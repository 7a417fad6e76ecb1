"""The rule: whether a model starts on some cards, and how many tokens of how many requests they then hold.

On each card, `memory × share = weights + overhead + KV cache`. The weights are the checkpoint's (weights.py), what a
request takes of the KV cache is the architecture's (architecture.py); the overhead (activations, graphs, the CUDA
context) nobody can read anywhere: it is measured, by the size of the engine's batches, and stands in the catalog.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict

from serving import catalog
from serving.catalog import Batch, Card
from serving.errors import RequestError
from serving.sizing.architecture import Architecture
from serving.sizing.weights import Weights

GIB = 1 << 30
_SHORTEST = 2048
"""Tokens: a context is not made shorter than this for the sake of more requests at once."""
_ROUND = 1024
"""Tokens: contexts that are found, not given, are whole multiples of this."""


@dataclass(frozen=True)
class Model:
    """What is known of a model before its bytes have moved."""

    name: str
    architecture: Architecture
    weights: Weights


@dataclass(frozen=True)
class Wish:
    """What a model is to run on, and how; what is None is left to the rule."""

    accelerator: str
    count: int = 1
    quantization: str | None = None
    """On loading; None: as it was published."""
    max_model_len: int | None = None
    """Tokens; None: the longest that `requests` at once find room with."""
    requests: int = 4
    share: float | None = None
    """Of a card's memory."""
    text_only: bool = False
    batch_tokens: int | None = None
    """`--max-num-batched-tokens`; None: vLLM's own on these cards, or fewer where that decides."""
    batch_requests: int | None = None
    """`--max-num-seqs`."""
    narrow_kv: bool = False
    """A KV cache of numbers of 8 bits."""
    adapter_rank: int = 0
    adapters_at_once: int = 0
    assistant_bytes: int = 0


class Sizing(BaseModel):
    """How a model runs on its cards. What is None nobody knows: the figures are then the engine's to find."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_model_len: int | None = None
    """Tokens of a request and its answer; None: the engine takes the longest that it finds room for."""
    gpu_memory_utilization: float | None = None
    """Share of a card's memory; None: vLLM's own."""
    max_num_batched_tokens: int | None = None
    """Set where vLLM's own default for the cards would leave less room; None: vLLM's own."""
    max_num_seqs: int | None = None
    """Likewise."""
    starts: bool | None = None
    """Whether the engine finds memory for one request of `max_model_len` at least."""
    weights_gib: float | None = None
    """On each card, tables of embeddings, adapters and assistant with them."""
    kv_gib: float | None = None
    """What is left for the KV cache on each card; below zero: what is lacking."""
    kv_tokens: int | None = None
    """Tokens that the KV cache of all cards holds, in requests of `max_model_len`: the figure that vLLM logs."""
    requests_at_once: float | None = None
    """Requests of `max_model_len` that it holds."""
    longest: int | None = None
    """The longest context of which it holds one request."""
    lacks_while_building_gib: float = 0.0
    """What a card lacks for the output layer, which is built before it is tied to the embeddings."""
    largest_tensor: int = 0
    """Bytes of the largest tensor in the shards; 0: nobody knows."""

    @property
    def in_words(self) -> str:
        """What is left, for a reader."""
        if self.kv_gib is None or not self.kv_tokens or not self.max_model_len:
            what = (
                f"whether {self.max_model_len} tokens find room"
                if self.max_model_len
                else "how long a context finds room"
            )
            return f"nobody knows what this takes: {what} the engine finds out"
        requests = self.kv_tokens / self.max_model_len
        return (
            f"{self.kv_gib:.1f} GiB for KV cache: {self.kv_tokens:,} tokens, {requests:.1f} requests of "
            f"{self.max_model_len} (one alone: up to {self.longest})"
        )


def loaded_bytes(model: Model, cards: int = 1, halved: tuple[str, ...] = (), *, text_only: bool = False) -> int:
    """What the model takes of each card once it is loaded: weights, and tables of rotary embeddings."""
    made = model.architecture
    weights = model.weights.card_bytes(cards, halved, text_only=text_only, encoders_quantize=made.encoders_quantize)
    return weights + made.rotary_bytes


def size(model: Model, wish: Wish) -> Sizing:
    """How the model runs as it is wished, whether or not it starts. Raises RequestError for what no cards can do."""
    _check(model, wish)
    card, halved = catalog.card(wish.accelerator), _halved(wish)
    share = wish.share or catalog.memory_share()
    if card.batch is None or halved is None:
        return _unmeasured(model, wish, card)
    own, *smaller = (_at(model, wish, share, batch) for batch in _batches(model, wish, card.batch))
    if own.starts and own.max_model_len == (wish.max_model_len or model.architecture.context):
        return own
    return max([own, *smaller], key=lambda found: (bool(found.starts), found.max_model_len or 0))


def unknown(name: str, wish: Wish) -> Sizing:
    """How a model runs of which, or of whose cards or quantization, nobody has measured what it takes."""
    served = catalog.known_contexts(name, wish.accelerator).get(wish.count)
    context = wish.max_model_len or served or catalog.card(wish.accelerator).kind.context
    return Sizing(max_model_len=context, gpu_memory_utilization=wish.share or catalog.memory_share())


def warning(name: str, wish: Wish) -> str:
    """That nobody says of a model that it is served like this, where nobody has measured either; else empty."""
    served = catalog.known_contexts(name, wish.accelerator)
    if catalog.card(wish.accelerator).batch or wish.count in served:
        return ""
    there = f": it is known to be served on {' or '.join(map(str, served))} of them" if served else ""
    return f"nobody is known to serve {name} on {wish.count} × {wish.accelerator}{there}. Only the engine can tell"


def _unmeasured(model: Model, wish: Wish, card: Card) -> Sizing:
    """The same of a model whose weights are known: where they alone are too much, it does not start."""
    found = unknown(model.name, wish)
    found = found.model_copy(
        update={"max_model_len": min(found.max_model_len or 0, model.architecture.context) or None}
    )
    if wish.quantization:
        return found  # Nobody has weighed what is left of them.
    weights = _loaded(model, wish, card, ())
    left = card.memory_gib * (found.gpu_memory_utilization or 1) - weights / GIB
    update: dict[str, object] = {"weights_gib": round(weights / GIB, 2)}
    if left <= 0:
        update |= {"starts": False, "kv_gib": round(left, 2), "kv_tokens": 0, "requests_at_once": 0.0, "longest": 0}
    return found.model_copy(update=update)


def _loaded(model: Model, wish: Wish, card: Card, halved: tuple[str, ...]) -> int:
    """Bytes of each core that weights take, those of adapters and assistant with them."""
    cores = wish.count * card.cores
    return (
        loaded_bytes(model, cores, halved, text_only=wish.text_only)
        + 2 * wish.adapter_rank * wish.adapters_at_once * model.weights.adapter_width
        + wish.assistant_bytes // cores
    )


def _check(model: Model, wish: Wish) -> None:
    made, count = model.architecture, wish.count * catalog.card(wish.accelerator).cores
    if made.heads % count:
        raise RequestError(
            f"accelerator.count: the {made.heads} attention heads of {model.name} do not split over {count} cards"
            f"{_counts(made.heads, wish)}"
        )
    uneven = next((layer.heads for layer in made.layers if layer.heads % count and count % layer.heads), None)
    if uneven:
        raise RequestError(
            f"accelerator.count: the {uneven} key and value heads of {model.name} do not split over {count} cards"
            f"{_counts(uneven, wish)}"
        )
    if wish.max_model_len and wish.max_model_len > made.context:
        raise RequestError(
            f"engine.max_model_len: {model.name} was made for {made.context} tokens of context, not "
            f"{wish.max_model_len}"
        )
    if wish.quantization and made.quantization:
        raise RequestError(
            f"engine.quantization: {model.name} is quantized already ({made.quantization}): leave "
            f"{wish.quantization} out"
        )
    video = catalog.video_tokens()
    if wish.batch_tokens and wish.batch_tokens < video and made.whole_videos and not wish.text_only:
        raise RequestError(
            f"engine.extra_args: --max-num-batched-tokens {wish.batch_tokens} is less than the {video} tokens of a "
            f"video, which {model.name} takes whole: the engine would not start. Make it {video}, or set "
            "engine.text_only"
        )


def _counts(heads: int, wish: Wish) -> str:
    card = catalog.card(wish.accelerator)
    fit = [f"{count * card.cores}" for count in card.counts if heads % (count * card.cores) == 0]
    return f", but over {' or '.join(fit)}" if fit else ""


def _halved(wish: Wish) -> tuple[str, ...] | None:
    """Which weights are halved on loading; None for a quantization that nobody has weighed."""
    return catalog.quantizations().get(catalog.current_name(wish.quantization) or "") if wish.quantization else ()


def _batches(model: Model, wish: Wish, own: str) -> list[Batch]:
    """The batches to choose from, vLLM's own for the card first."""
    largest_first = catalog.batches()
    mine = next(batch for batch in largest_first if batch.name == own)
    if wish.batch_tokens or wish.batch_requests:
        # Then they are the reader's to choose; the overhead is that of the smallest measured ones that hold them (those
        # of the small batch were measured with a video in it, too).
        tokens, requests = wish.batch_tokens or mine.tokens, wish.batch_requests or mine.requests
        most = {batch: max(batch.tokens, catalog.video_tokens()) for batch in largest_first}
        holds = [batch for batch in largest_first if most[batch] >= tokens and batch.requests >= requests]
        found = [replace([largest_first[0], *holds][-1], tokens=tokens, requests=requests)]
    else:
        found = [mine, *(batch for batch in largest_first if batch.tokens < mine.tokens)]
    whole_videos = model.architecture.whole_videos and not wish.text_only
    least = catalog.video_tokens() if whole_videos else 0
    return [replace(batch, tokens=max(batch.tokens, least)) for batch in found]


def _at(model: Model, wish: Wish, share: float, batch: Batch) -> Sizing:
    """How the model runs with one size of batches."""
    made, count, card = model.architecture, wish.count, catalog.card(wish.accelerator)
    weights = _loaded(model, wish, card, _halved(wish) or ())
    kv_gib = card.memory_gib * share - weights / GIB - batch.overhead_gib(made.hidden, count)
    building = weights / GIB + made.output_bytes / count / GIB if made.tied else 0.0
    ours = not (wish.batch_tokens or wish.batch_requests) and batch.name != card.batch
    found = Sizing(
        max_model_len=wish.max_model_len,
        gpu_memory_utilization=share,
        max_num_batched_tokens=batch.tokens if ours else None,
        max_num_seqs=batch.requests if ours else None,
        starts=False,
        weights_gib=round(weights / GIB, 2),
        kv_gib=round(kv_gib, 2),
        kv_tokens=0,
        requests_at_once=0.0,
        longest=0,
        lacks_while_building_gib=round(max(0.0, building - card.memory_gib), 2),
    )
    if kv_gib <= 0 or found.lacks_while_building_gib:
        return found
    kv_bytes, number = int(kv_gib * GIB), 1 if wish.narrow_kv else 2
    longest = made.longest(kv_bytes, 1, batch.tokens, count, number)
    of_all = made.longest(kv_bytes, wish.requests, batch.tokens, count, number)
    context = wish.max_model_len or _served(made, longest, of_all)
    blocks, block_bytes = made.request_blocks(context, batch.tokens, count, number)
    requests = kv_bytes // block_bytes / blocks
    return found.model_copy(
        update={
            "max_model_len": context,
            "starts": requests >= 1,
            "kv_tokens": int(requests * context),
            "requests_at_once": round(requests, 2),
            "longest": longest,
        }
    )


def _served(made: Architecture, of_one: int, of_all: int) -> int:
    """The context to serve, by the longest of which one request finds room, and all that are wished at once."""
    context = max(of_all, min(_SHORTEST, made.context))
    if context == made.context or of_one < context:
        return context
    return context // _ROUND * _ROUND
