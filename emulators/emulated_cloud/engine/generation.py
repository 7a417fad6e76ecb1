"""From a checked request to the sequences that answer it: limits, sampling parameters, seeds, guided decoding."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from emulated_cloud.engine import lora, structured, text
from emulated_cloud.engine.core import Sequence
from emulated_cloud.engine.errors import ApiError, refused
from emulated_cloud.engine.model import Model, Prompt
from emulated_cloud.engine.protocol import GenerationRequest, check, stops
from emulated_cloud.engine.sampling import Output, SamplingParams, decode

Run = tuple[Sequence, Iterator[Output]]
Constraint = tuple[str, Any]


def runs(
    model: Model,
    request: GenerationRequest,
    prompt: Prompt,
    adapter: lora.Adapter | None,
    max_tokens: tuple[str, int | None],
    constraint: Constraint | None,
    thoughts: Iterable[tuple[int, str]] = (),
) -> list[Run]:
    """The `n` sequences that answer a prompt, each with its `thoughts` before it. max_tokens: the parameter's name and
    value. Raises ApiError 400."""
    check(request)
    count = request.n or 1
    params = sampling_params(model, request, fit(model, prompt, *max_tokens))
    found: list[Run] = []
    for index in range(count):
        seed = seed_of(model, request, prompt, adapter, index)
        if constraint:
            tokens: Any = iter(model.tokenizer.pieces(constrained(constraint, seed)))
        else:
            tokens = model.answer(seed, prompt.question)
        sequence = Sequence(prompt.ids, params.max_tokens, adapter.name if adapter else None, count)
        found.append((sequence, decode(chain(thoughts, tokens), params, model.tokenizer.eos_ids)))
    return found


def fit(model: Model, prompt: Prompt, param: str, wanted: int | None) -> int:
    """How many tokens may be generated: what is asked for, or what the prompt leaves room for.

    Raises ApiError 400 in vLLM's words. vLLM reads no more of a text than it needs to refuse it, hence "at least".
    """
    limit, length = model.max_model_len, len(prompt.ids)
    if (wanted or 0) > limit:
        words = f"{param}={wanted} cannot be greater than max_model_len={limit}. Please request fewer output tokens."
        raise refused(words, param, wanted)
    if length > limit:
        shown = f"at least {length}" if length == limit + 1 else f"{length}"
        raise refused(
            f"This model's maximum context length is {limit} tokens. However, your prompt contains {shown} input "
            "tokens, which exceeds this limit even without any output tokens. "
            "Please reduce the length of the input prompt.",
            "input_tokens",
            length,
        )
    room = limit - length
    found = room if wanted is None else min(wanted, room)
    if found < 1:
        raise refused(f"max_tokens must be at least 1, got {found}.", "max_tokens", found)
    return found


def sampling_params(model: Model, request: GenerationRequest, max_tokens: int) -> SamplingParams:
    """Raises ApiError 400."""
    if request.min_tokens > max_tokens:
        raise ApiError(
            400, f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {request.min_tokens}."
        )
    if temperature_of(model, request) == 0 and (request.n or 1) > 1:
        raise ApiError(400, f"n must be 1 when using greedy sampling, got {request.n}.")
    return SamplingParams(
        max_tokens,
        request.min_tokens,
        request.ignore_eos,
        stops(request),
        list(request.stop_token_ids or []),
        request.include_stop_str_in_output,
    )


def temperature_of(model: Model, request: GenerationRequest) -> float:
    """The request's, else the generation config's, else 1. Below 1e-5 is greedy."""
    value = request.temperature
    if value is None and model.args.generation_config == "auto":
        value = model.tokenizer.generation_config.get("temperature")
    value = 1.0 if value is None else value
    return 0.0 if value < 1e-5 else value


def seed_of(model: Model, request: GenerationRequest, prompt: Prompt, adapter: lora.Adapter | None, index: int) -> int:
    """The same for the same weights, prompt and, where it is sampled, seed; random without a seed."""
    temperature = temperature_of(model, request)
    chance: Any = 0
    if temperature:
        chance = (temperature, index, os.urandom(8) if request.seed is None else request.seed)
    return text.seed_of(model.checkpoint.digest, adapter.digest if adapter else b"", prompt.ids, prompt.media, chance)


def constraint_of(request: GenerationRequest) -> Constraint | None:
    """What guided decoding is asked for: ("json", schema), ("regex", …), ("choice", …) or ("object", None)."""
    if request.response_format and request.response_format.type != "text":
        schema = request.response_format.json_schema
        return ("object", None) if schema is None else ("json", schema.json_schema or {})
    asked = request.structured_outputs
    if asked is None:
        return None
    if asked.grammar is not None:
        raise ApiError(400, "Grammars are not supported by this engine.")
    for kind in ("regex", "choice"):
        if getattr(asked, kind) is not None:
            return kind, getattr(asked, kind)
    if asked.json_ is not None:
        return "json", json.loads(asked.json_) if isinstance(asked.json_, str) else asked.json_
    return ("object", None) if asked.json_object else None


def constrained(constraint: Constraint, seed: int) -> str:
    """A text under the constraint. Raises ApiError 400 for one that cannot be followed."""
    kind, value = constraint
    rng = random.Random(seed)
    try:
        match kind:
            case "regex":
                return structured.from_pattern(value, rng)
            case "choice":
                return rng.choice(value)
            case "object":
                return json.dumps({"answer": text.sentence(rng, korean=False)})
        return json.dumps(structured.instance(value, rng), ensure_ascii=False)
    except (structured.UnsupportedSchema, IndexError) as error:
        raise ApiError(400, f"Invalid structured output specification: {error}") from error
