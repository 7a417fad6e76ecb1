"""The emulated model: names and adapters that are served, and what each request makes it say."""

from __future__ import annotations

import argparse
import json
import os
import random
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from emulators.engine import log, lora, structured, text
from emulators.engine.checkpoint import Checkpoint
from emulators.engine.protocol import ApiError, GenerationRequest, check, not_found, stops
from emulators.engine.sampling import SamplingParams
from emulators.engine.tokenizer import Tokenizer

Tokens = Iterable["tuple[int, str] | None"]


def on(name: str) -> bool:
    """Whether a switch of vLLM's environment is on."""
    return os.environ.get(name, "").lower() in ("1", "true")


@dataclass
class Prompt:
    """A tokenised prompt. question: the text that decides the answer's language."""

    ids: list[int]
    question: str
    media: str = ""


class Model:
    """What is served: the base model under its names, and its adapters.

    Raises BadModel through AdapterFailed's words when a static adapter does not load (server.serve).
    """

    def __init__(self, args: argparse.Namespace, checkpoint: Checkpoint, tokenizer: Tokenizer):
        self.args, self.checkpoint, self.tokenizer = args, checkpoint, tokenizer
        self.names: list[str] = args.served_model_name or [args.model]
        self.max_model_len: int = args.max_model_len
        self.adapters: dict[str, lora.Adapter] = {}
        self.created = int(time.time())
        self.fingerprint = f"vllm-{VERSION}-{checkpoint.digest.hex()[:8]}"

    # -- names ----------------------------------------------------------------------------------------------

    def resolve(self, name: str | None) -> lora.Adapter | None:
        """The adapter that a request asks for, or None for the base model. Raises ApiError 404, 400."""
        if not name or name in self.names:
            return None
        if name in self.adapters:
            return self.adapters[name]
        # The resolver plugin works only where adapters may change at run time, as in vLLM.
        plugins = os.environ.get("VLLM_PLUGINS", "").split(",")
        if on("VLLM_ALLOW_RUNTIME_LORA_UPDATING") and "lora_filesystem_resolver" in plugins and self.args.enable_lora:
            path = lora.resolve(name, os.environ.get("VLLM_LORA_RESOLVER_CACHE_DIR"), self.args.model)
            if path:
                try:
                    self.adapters[name] = self.open_adapter(name, path)
                except (lora.AdapterNotFound, lora.AdapterFailed) as failure:
                    log.warning("serving.py:266", f"Failed to load LoRA '{name}': {failure}")
                    raise ApiError(400, f"LoRA adapter '{name}' was found but could not be loaded.") from failure
                return self.adapters[name]
        raise not_found(name)

    def open_adapter(self, name: str, path: str, base_model_name: str | None = None) -> lora.Adapter:
        """Raises AdapterNotFound, AdapterFailed."""
        if not self.args.enable_lora:
            raise lora.AdapterFailed("LoRA is not enabled. Use --enable-lora to enable LoRA.")
        adapter = lora.open_adapter(name, path, self.checkpoint, self.args.max_lora_rank)
        adapter.base_model_name = base_model_name if base_model_name in self.names else None
        log.info("serving.py:190", f"Loaded new LoRA adapter: name '{name}', path '{path}'")
        return adapter

    def card_name(self, adapter: lora.Adapter | None) -> str:
        """The name in an answer: the adapter's, or the first served one."""
        return adapter.name if adapter else self.names[0]

    def cards(self) -> list[dict[str, Any]]:
        def card(name: str, root: str, parent: str | None, length: int | None) -> dict[str, Any]:
            permission = {
                "id": f"modelperm-{uuid.uuid4().hex}",
                "object": "model_permission",
                "created": self.created,
                "allow_create_engine": False,
                "allow_sampling": True,
                "allow_logprobs": True,
                "allow_search_indices": False,
                "allow_view": True,
                "allow_fine_tuning": False,
                "organization": "*",
                "group": None,
                "is_blocking": False,
            }
            return {
                "id": name,
                "object": "model",
                "created": self.created,
                "owned_by": "vllm",
                "root": root,
                "parent": parent,
                "max_model_len": length,
                "permission": [permission],
            }

        base = [card(name, self.args.model, None, self.max_model_len) for name in self.names]
        return base + [
            card(adapter.name, adapter.path, adapter.base_model_name or self.names[0], None)
            for adapter in self.adapters.values()
        ]

    # -- requests -------------------------------------------------------------------------------------------

    def fit(self, prompt: Prompt, wanted: int | None, param: str = "max_tokens") -> int:
        """How many tokens may be generated. Raises ApiError 400 in vLLM's words where the prompt leaves no room.

        vLLM reads no more of a prompt than it needs to refuse it, hence "at least".
        """
        limit, length, asked = self.max_model_len, len(prompt.ids), wanted or 0
        if wanted is not None and wanted < 1:
            raise ApiError(400, f"max_tokens must be at least 1, got {wanted}.", param="max_tokens")
        if asked > limit:
            raise ApiError(
                400,
                f"{param}={asked} cannot be greater than max_model_len=max_total_tokens={limit}. "
                f"Please request fewer output tokens. (parameter={param}, value={asked})",
                param=param,
            )
        if length + asked > limit:
            read = min(length, limit - asked + 1)
            raise ApiError(
                400,
                f"This model's maximum context length is {limit} tokens. However, you requested {asked} output "
                f"tokens and your prompt contains at least {read} input tokens, for a total of at least "
                f"{read + asked} tokens. "
                "Please reduce the length of the input prompt or the number of requested output tokens. "
                f"(parameter=input_tokens, value={read})",
                param="input_tokens",
            )
        if length == limit:
            raise ApiError(400, "max_tokens must be at least 1, got 0.", param="max_tokens")
        return wanted or limit - length

    def params(self, request: GenerationRequest, max_tokens: int) -> SamplingParams:
        """Raises ApiError 400."""
        check(request)
        if request.min_tokens > max_tokens:
            raise ApiError(
                400, f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {request.min_tokens}."
            )
        if self.temperature(request) == 0 and (request.n or 1) > 1:
            raise ApiError(400, f"n must be 1 when using greedy sampling, got {request.n}.")
        return SamplingParams(
            max_tokens,
            request.min_tokens,
            request.ignore_eos,
            stops(request),
            list(request.stop_token_ids or []),
            request.include_stop_str_in_output,
        )

    def temperature(self, request: GenerationRequest) -> float:
        """The request's, else the generation config's, else 1. Below 1e-5 is greedy."""
        value = request.temperature
        if value is None and self.args.generation_config == "auto":
            value = self.tokenizer.generation_config.get("temperature")
        value = 1.0 if value is None else value
        return 0.0 if value < 1e-5 else value

    def seed(self, request: GenerationRequest, prompt: Prompt, adapter: lora.Adapter | None, index: int) -> int:
        """The same for the same weights, prompt and, where it is sampled, seed; random without a seed."""
        temperature = self.temperature(request)
        chance: Any = 0
        if temperature:
            chance = (temperature, index, os.urandom(8) if request.seed is None else request.seed)
        return text.seed_of(
            self.checkpoint.digest, adapter.digest if adapter else b"", prompt.ids, prompt.media, chance
        )

    def constraint(self, request: GenerationRequest) -> tuple[str, Any] | None:
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

    def constrained(self, constraint: tuple[str, Any], seed: int) -> str:
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

    def pieces(self, whole: str) -> Iterator[tuple[int, str]]:
        """The tokens of a given text."""
        yield from self.tokenizer.pieces(whole)

    def answer(self, seed: int, question: str) -> Tokens:
        """The endless answer to a question."""
        if self.checkpoint.padding_only:
            return text.padding()
        return text.pieces(self.tokenizer, seed, text.is_korean(question))


VERSION = "0.33.0"
