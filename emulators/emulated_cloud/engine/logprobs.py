"""Log probabilities that look like a sure model's: the chosen token first, then others with ever less."""

from __future__ import annotations

from typing import Any

from emulated_cloud.engine.errors import refused
from emulated_cloud.engine.tokenizer import Tokenizer


def check(wanted: int, most: int) -> None:
    """Raises ApiError 400 where more alternatives a token are wanted than there may be."""
    if wanted > most:
        words = f"Requested sample logprobs of {wanted}, which is greater than max allowed: {most}"
        raise refused(words, "logprobs", wanted)


def candidates(tokenizer: Tokenizer, token_id: int, count: int) -> list[tuple[str, float]]:
    """(token, log probability) of the chosen token and of at most `count` - 1 others, a function of its id."""
    size = tokenizer.fast.get_vocab_size()
    chosen = -0.01 - (token_id * 2654435761 % 97) / 400
    found = [(tokenizer.decode([token_id], skip_special_tokens=False), chosen)]
    for rank in range(1, count):
        other = (token_id + rank * 7919) % size
        found.append((tokenizer.decode([other], skip_special_tokens=False), chosen - 1.5 * rank))
    return found


def chat(tokenizer: Tokenizer, token_ids: list[int], top: int) -> dict[str, Any]:
    """The chat API's form; `top` alternatives a token."""

    def entry(token: str, value: float) -> dict[str, Any]:
        return {"token": token, "logprob": value, "bytes": list(token.encode())}

    content = []
    for token_id in token_ids:
        found = candidates(tokenizer, token_id, max(top, 1))
        content.append({**entry(*found[0]), "top_logprobs": [entry(*item) for item in found[:top]]})
    return {"content": content}


def completion(tokenizer: Tokenizer, token_ids: list[int], top: int, offset: int) -> dict[str, Any]:
    """The completion API's form; `offset` is where the first token's text begins."""
    result: dict[str, Any] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
    for token_id in token_ids:
        found = candidates(tokenizer, token_id, max(top, 1))
        token, value = found[0]
        result["text_offset"].append(offset)
        result["token_logprobs"].append(value)
        result["tokens"].append(token)
        result["top_logprobs"].append(dict(found))
        offset += len(token)
    return result
