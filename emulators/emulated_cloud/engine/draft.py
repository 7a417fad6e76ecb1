"""`--speculative-config`: the draft model, opened and refused as vLLM does (vllm/config/speculative.py)."""

from __future__ import annotations

from typing import Any

from emulated_cloud.engine.architectures import ASSISTANT, SUPPORTED, is_full_attention, text_config
from emulated_cloud.engine.checkpoint import BadModel, BadWeights, Checkpoint, load_weights, open_config

WITHOUT_A_MODEL = ("ngram", "[ngram]", "ngram_gpu", "suffix", "mtp")


def open_draft(speculative: Any, target: Checkpoint) -> Checkpoint | None:
    """The draft model's config.json, compared with the target's; None without a draft model. Raises BadModel."""
    if not speculative:
        return None
    if not isinstance(speculative, dict):
        raise refused(f"Input should be a dictionary, not {speculative!r}")
    model, tokens = speculative.get("model"), speculative.get("num_speculative_tokens")
    if model in WITHOUT_A_MODEL or (model is None and speculative.get("method") in WITHOUT_A_MODEL):
        return None
    if model is None:
        raise refused("num_speculative_tokens was provided but without speculative model.")
    draft = open_config(model, (*SUPPORTED, ASSISTANT))
    if tokens is None and draft.architecture != ASSISTANT:
        raise refused("A speculative model was provided, but `num_speculative_tokens` was not provided")
    if tokens is not None and tokens <= 0:
        raise refused(f"Expected num_speculative_tokens to be greater than zero ({tokens}).")
    ours, theirs = (text_config(each.config, each.architecture)["vocab_size"] for each in (draft, target))
    if draft.architecture != ASSISTANT and ours != theirs:
        raise refused(
            f"Target and draft model should have the same vocabulary size. Target model vocab_size={theirs}. Draft "
            f"model vocab_size={ours}. Using models with different tokenizers can cause out-of-bounds errors during "
            "speculative decoding."
        )
    return draft


def load_draft(draft: Checkpoint) -> None:
    """The draft model's tensors. Raises BadWeights; for one whose layers attend in two ways too, which the engine finds
    when it divides its cache (vllm/v1/spec_decode/llm_base_proposer.py). An assistant has no cache of its own."""
    load_weights(draft)
    text = text_config(draft.config, draft.architecture)
    kinds = {is_full_attention({"layer_types": None, **text}, layer) for layer in range(text["num_hidden_layers"])}
    if draft.architecture != ASSISTANT and len(kinds) > 1:
        raise BadWeights("AssertionError", "All drafting layers should belong to the same kv cache group")


def refused(words: str) -> BadModel:
    return BadModel("ValidationError", words, "SpeculativeConfig")
