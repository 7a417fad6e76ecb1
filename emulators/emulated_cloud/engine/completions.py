"""`/v1/completions`: the plain completion API and vLLM's shapes of it (openai/completion/{protocol,serving}.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from aiohttp import web

from emulated_cloud.engine import logprobs
from emulated_cloud.engine.answer import Answer
from emulated_cloud.engine.core import EngineCore
from emulated_cloud.engine.errors import ApiError
from emulated_cloud.engine.generation import constraint_of, runs
from emulated_cloud.engine.model import Model, Prompt
from emulated_cloud.engine.protocol import CompletionRequest, parse
from emulated_cloud.engine.sampling import Output
from emulated_cloud.engine.streams import event


def prompts(model: Model, body: CompletionRequest) -> list[Prompt]:
    """One prompt or several, as text or as tokens. Raises ApiError 400."""
    given: Any = body.prompt
    single = isinstance(given, str) or (isinstance(given, list) and bool(given) and isinstance(given[0], int))
    found = []
    for item in [given] if single else given:
        if isinstance(item, str):
            ids = model.tokenizer.encode(item, body.add_special_tokens, model.max_model_len + 1)
        else:
            ids = item
        vocabulary = model.tokenizer.fast.get_vocab_size()
        if any(not 0 <= id_ < vocabulary for id_ in ids):
            raise ApiError(400, f"Token id {max(ids)} is out of vocabulary")
        question = item if isinstance(item, str) else model.tokenizer.decode(ids)
        found.append(Prompt(ids, question))
    if not found or any(not prompt.ids for prompt in found):
        raise ApiError(400, "You must pass at least one prompt")
    return found


async def completions(request: web.Request, model: Model, core: EngineCore) -> web.StreamResponse:
    """Answers a completion request, streamed or whole. Raises ApiError, QueueOverflow."""
    body = await parse(CompletionRequest, request)
    adapter = model.resolve(body.model)
    if body.suffix is not None:
        raise ApiError(400, "suffix is only supported for models with FIM completion rendering", param="suffix")
    if body.logprobs is not None:
        logprobs.check(body.logprobs, model.args.max_logprobs)
    asked = prompts(model, body)
    constraint = constraint_of(body)
    sequences = [
        run
        for prompt in asked
        for run in runs(model, body, prompt, adapter, ("max_tokens", body.max_tokens), constraint)
    ]
    return await CompletionAnswer(request, body, model, adapter, asked).give(core, sequences)


class CompletionAnswer(Answer):
    """The shapes of a plain completion."""

    body: CompletionRequest
    id_prefix = "cmpl-"
    whole_object = chunk_object = "text_completion"

    def echoed(self, index: int) -> str:
        return self.model.tokenizer.decode(self.prompt_of(index).ids) if self.body.echo else ""

    def logprobs(self, outputs: list[Output], offset: int) -> dict[str, Any] | None:
        if self.body.logprobs is None:
            return None
        ids = [output.token_id for output in outputs]
        return logprobs.completion(self.model.tokenizer, ids, self.body.logprobs, offset)

    def choice(self, index: int, outputs: list[Output]) -> dict[str, Any]:
        echo = self.echoed(index)
        return {
            "index": index,
            "text": echo + "".join(output.text for output in outputs),
            "logprobs": self.logprobs(outputs, len(echo)),
            "finish_reason": outputs[-1].finish_reason,
            "stop_reason": outputs[-1].stop_reason,
            "token_ids": self.token_ids(outputs),
            "prompt_logprobs": None,
            "prompt_token_ids": self.prompt_ids(index),
            "routed_experts": None,
        }

    @cached_property
    def offsets(self) -> Counter[int]:
        """How many characters of each choice have been streamed."""
        return Counter()

    def events(self, index: int, count: int, output: Output) -> Iterator[bytes]:
        first = count == 1
        text = (self.echoed(index) if first else "") + output.text
        choice = {
            "index": index,
            "text": text,
            "logprobs": self.logprobs([output], self.offsets[index]),
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
            "prompt_token_ids": self.prompt_ids(index) if first else None,
            "token_ids": self.token_ids([output]),
        }
        self.offsets[index] += len(text)
        yield event(self.token_chunk(choice, count, output))
