"""`/v1/completions`: the plain completion API and vLLM's shapes of it (openai/completion/{protocol,serving}.py)."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import Any

from aiohttp import web

from emulators.engine import logprobs
from emulators.engine.core import EngineCore
from emulators.engine.errors import ApiError, refused
from emulators.engine.generation import Run, constraint_of, runs
from emulators.engine.model import Model, Prompt, random_id
from emulators.engine.protocol import CompletionRequest, parse
from emulators.engine.sampling import Output
from emulators.engine.streams import DONE, collected, dumps, event, merged, open_stream


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
    if body.logprobs is not None and body.logprobs > model.args.max_logprobs:
        most = model.args.max_logprobs
        words = f"Requested sample logprobs of {body.logprobs}, which is greater than max allowed: {most}"
        raise refused(words, "logprobs", body.logprobs)
    asked = prompts(model, body)
    constraint = constraint_of(body)
    sequences = [
        run
        for prompt in asked
        for run in runs(model, body, prompt, adapter, ("max_tokens", body.max_tokens), constraint)
    ]
    request_id = "cmpl-" + (request.headers.get("X-Request-Id") or body.request_id or random_id())
    answer = Answer(model, body, request_id, model.card_name(adapter), asked)
    with core.admitted(len(sequences)):
        if body.stream:
            return await answer.stream(request, core, sequences)
        return web.json_response(text=dumps(answer.whole(await collected(core, sequences))))


class Answer:
    """The shapes of one request's answer."""

    def __init__(self, model: Model, body: CompletionRequest, id_: str, name: str, asked: list[Prompt]):
        self.model, self.body, self.asked = model, body, asked
        self.id, self.name, self.created = id_, name, int(time.time())

    def usage(self, completion: int, prompt: int | None = None) -> dict[str, Any]:
        prompt = sum(len(prompt.ids) for prompt in self.asked) if prompt is None else prompt
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}

    def prompt_of(self, index: int) -> Prompt:
        """The prompt that the choice `index` answers."""
        return self.asked[index // (self.body.n or 1)]

    def echoed(self, index: int) -> str:
        return self.model.tokenizer.decode(self.prompt_of(index).ids) if self.body.echo else ""

    def logprobs(self, outputs: list[Output], offset: int) -> dict[str, Any] | None:
        if self.body.logprobs is None:
            return None
        ids = [output.token_id for output in outputs]
        return logprobs.completion(self.model.tokenizer, ids, self.body.logprobs, offset)

    def whole(self, results: list[list[Output]]) -> dict[str, Any]:
        choices = []
        for index, outputs in enumerate(results):
            echo = self.echoed(index)
            choices.append(
                {
                    "index": index,
                    "text": echo + "".join(output.text for output in outputs),
                    "logprobs": self.logprobs(outputs, len(echo)),
                    "finish_reason": outputs[-1].finish_reason,
                    "stop_reason": outputs[-1].stop_reason,
                    "token_ids": [output.token_id for output in outputs] if self.body.return_token_ids else None,
                    "prompt_logprobs": None,
                    "prompt_token_ids": self.prompt_of(index).ids if self.body.return_token_ids else None,
                    "routed_experts": None,
                }
            )
        generated = sum(map(len, results))
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.name,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": self.model.fingerprint,
            "usage": {
                **self.usage(generated),
                "prompt_tokens_details": None,
                "completion_tokens_details": None,
            },
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.name,
            "choices": choices,
        }

    async def stream(self, request: web.Request, core: EngineCore, runs: list[Run]) -> web.StreamResponse:
        """One event a token; the usage comes last, where it is wanted."""
        options = self.body.stream_options
        force = bool(self.model.args.enable_force_include_usage)
        include = force or bool(options and options.include_usage)
        continuous = force or (include and bool(options and options.continuous_usage_stats))
        counts, offsets = [0] * len(runs), [0] * len(runs)
        response = await open_stream(request)
        async with aclosing(merged(core, runs)) as outputs:
            async for index, output in outputs:
                first = counts[index] == 0
                counts[index] += 1
                text = (self.echoed(index) if first else "") + output.text
                choice = {
                    "index": index,
                    "text": text,
                    "logprobs": self.logprobs([output], offsets[index]),
                    "finish_reason": output.finish_reason,
                    "stop_reason": output.stop_reason,
                    "prompt_token_ids": self.prompt_of(index).ids if first and self.body.return_token_ids else None,
                    "token_ids": [output.token_id] if self.body.return_token_ids else None,
                }
                offsets[index] += len(text)
                chunk = self.chunk([choice])
                if continuous:
                    chunk["usage"] = self.usage(counts[index], len(self.prompt_of(index).ids))
                if output.finish_reason and not include:
                    chunk["system_fingerprint"] = self.model.fingerprint
                await response.write(event(chunk))
        if include:
            usage = {"usage": self.usage(sum(counts)), "system_fingerprint": self.model.fingerprint}
            await response.write(event(self.chunk([]) | usage))
        await response.write(DONE)
        await response.write_eof()
        return response
