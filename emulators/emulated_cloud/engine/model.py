"""The emulated model: the names and adapters under which it is served, and what it has to say."""

from __future__ import annotations

import argparse
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from emulated_cloud.engine import log, lora, text
from emulated_cloud.engine.checkpoint import Checkpoint
from emulated_cloud.engine.errors import ApiError, not_found
from emulated_cloud.engine.tokenizer import Tokenizer

VERSION = "0.33.0"
"""The vLLM that is emulated."""

Tokens = Iterable["tuple[int, str] | None"]


def on(name: str) -> bool:
    """Whether a switch of vLLM's environment is on."""
    return os.environ.get(name, "").lower() in ("1", "true")


def random_id() -> str:
    return uuid.uuid4().hex[:16]


@dataclass
class Prompt:
    """A tokenised prompt. question: the text that decides the answer's language. media: its images and the like."""

    ids: list[int]
    question: str
    media: str = ""


class Model:
    """What is served: the base model under its names, and its adapters."""

    def __init__(self, args: argparse.Namespace, checkpoint: Checkpoint, tokenizer: Tokenizer):
        self.args, self.checkpoint, self.tokenizer = args, checkpoint, tokenizer
        self.names: list[str] = args.served_model_name or [args.model]
        self.max_model_len: int = args.max_model_len
        self.adapters: dict[str, lora.Adapter] = {}
        self.fingerprint = f"vllm-{VERSION}-{checkpoint.digest.hex()[:8]}"

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
        raise not_found(name, self.names)

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

    def pieces(self, whole: str) -> Iterator[tuple[int, str]]:
        """The tokens of a given text."""
        yield from self.tokenizer.pieces(whole)

    def thoughts(self, prompt: Prompt, enabled: bool) -> list[tuple[int, str]]:
        """What a Gemma 4 that is told to think (`enable_thinking` of its template) says before its answer: rather more
        than 64 tokens."""
        if not enabled or self.checkpoint.padding_only or not self.checkpoint.architecture.startswith("Gemma4"):
            return []
        seed = text.seed_of(self.checkpoint.digest, prompt.ids, prompt.media, "thoughts")
        endless = text.pieces(self.tokenizer, seed, text.is_korean(prompt.question))
        return [piece for _ in range(2) for piece in iter(lambda: next(endless), None)]

    def answer(self, seed: int, question: str) -> Tokens:
        """The endless answer to a question."""
        if self.checkpoint.padding_only:
            return text.padding()
        return text.pieces(self.tokenizer, seed, text.is_korean(question))
