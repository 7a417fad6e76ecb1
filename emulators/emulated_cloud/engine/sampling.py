"""From a flow of tokens to one sequence's outputs: stop conditions, and text held back for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass
class SamplingParams:
    """What ends a sequence. max_tokens counts the end-of-sequence token, as in vLLM."""

    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    include_stop_str_in_output: bool = False


class Output(NamedTuple):
    """One generated token: its text (what became certain with it) and, on the last one, why it ends."""

    text: str
    token_id: int
    finish_reason: str | None = None
    stop_reason: int | str | None = None


def decode(tokens: Iterable[tuple[int, str] | None], params: SamplingParams, eos_ids: list[int]) -> Iterator[Output]:
    """Outputs until the sequence ends.

    None among the tokens is where the model would rather end; the end of `tokens` is where it must. A Gemma ends its
    turn with the last of the generation config's tokens, which vLLM reports as stop_reason; the tokenizer's own end of
    sequence goes unreported.
    """
    eos = eos_ids[-1] if eos_ids else 1
    stop_reason = eos if eos in eos_ids[1:] else None
    longest = max(map(len, params.stop), default=1) - 1
    held, count = "", 0
    for token in tokens:
        if token is None:
            if params.ignore_eos or count < params.min_tokens:
                continue
            break
        count += 1
        token_id, text = token
        held += text
        free = count >= params.min_tokens
        found = find_stop(held, params.stop, len(text)) if free and params.stop else None
        if found:
            at, stop = found
            end = at + len(stop) if params.include_stop_str_in_output else at
            yield Output(held[:end], token_id, "stop", stop)
            return
        if free and token_id in params.stop_token_ids:
            yield Output(held, token_id, "stop", token_id)
            return
        if count == params.max_tokens:
            yield Output(held, token_id, "length")
            return
        certain = len(held) - longest
        yield Output(held[: max(certain, 0)], token_id)
        held = held[max(certain, 0) :]
    yield Output(held, eos, "stop", stop_reason)


def find_stop(held: str, stops: list[str], new: int) -> tuple[int, str] | None:
    """The first stop string that ends within the last `new` characters, and where it begins."""
    hits = []
    for stop in stops:
        at = held.find(stop, max(len(held) - new - len(stop) + 1, 0))
        if at != -1:
            hits.append((at, stop))
    return min(hits, default=None)
