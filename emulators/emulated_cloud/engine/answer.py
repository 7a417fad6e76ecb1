"""What the answers of chat and of plain completions have in common: their envelope, their usage, their stream."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any, ClassVar

from aiohttp import web

from emulated_cloud.engine.core import EngineCore
from emulated_cloud.engine.generation import Run
from emulated_cloud.engine.lora import Adapter
from emulated_cloud.engine.model import Model, Prompt, random_id
from emulated_cloud.engine.protocol import GenerationRequest
from emulated_cloud.engine.sampling import Output
from emulated_cloud.engine.streams import DONE, collected, dumps, event, merged, open_stream


class Answer(ABC):
    """One request's answer, whole or streamed. Choices and what they look like are the subclasses'."""

    id_prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(
        self,
        request: web.Request,
        body: GenerationRequest,
        model: Model,
        adapter: Adapter | None,
        prompts: list[Prompt],
    ):
        self.request, self.body, self.model, self.prompts = request, body, model, prompts
        self.id = self.id_prefix + (request.headers.get("X-Request-Id") or body.request_id or random_id())
        self.name, self.created = model.card_name(adapter), int(time.time())
        options = body.stream_options
        force = bool(model.args.enable_force_include_usage)
        self.include_usage = force or bool(options and options.include_usage)
        self.continuous_usage = force or (self.include_usage and bool(options and options.continuous_usage_stats))

    @abstractmethod
    def choice(self, index: int, outputs: list[Output]) -> dict[str, Any]:
        """A choice of the whole answer."""

    @abstractmethod
    def events(self, index: int, count: int, output: Output) -> Iterator[bytes]:
        """The events of one token, the `count`th of the choice `index`."""

    def opening(self, choices: int) -> Iterator[bytes]:
        """The events before the first token."""
        yield from ()

    async def give(self, core: EngineCore, runs: list[Run]) -> web.StreamResponse:
        """Answers the request with what the runs generate. Raises QueueOverflow."""
        with core.admitted(len(runs)):
            if self.body.stream:
                return await self.stream(core, runs)
            return web.json_response(text=dumps(self.whole(await collected(core, runs))))

    def whole(self, results: list[list[Output]]) -> dict[str, Any]:
        usage = self.usage(sum(map(len, results)))
        return {
            **self.envelope(self.whole_object, [self.choice(index, outputs) for index, outputs in enumerate(results)]),
            "service_tier": None,
            "system_fingerprint": self.model.fingerprint,
            "usage": {"prompt_tokens_details": None, "completion_tokens_details": None, **usage},
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }

    async def stream(self, core: EngineCore, runs: list[Run]) -> web.StreamResponse:
        """One event a token, in vLLM's order; the usage comes last, where it is wanted."""
        counts = [0] * len(runs)
        response = await open_stream(self.request)
        async with aclosing(merged(core, runs)) as outputs:
            async for index, output in outputs:
                if not any(counts):
                    for data in self.opening(len(runs)):
                        await response.write(data)
                counts[index] += 1
                for data in self.events(index, counts[index], output):
                    await response.write(data)
        if self.include_usage:
            usage = self.usage(sum(counts))
            await response.write(event(self.chunk([], usage=usage, system_fingerprint=self.model.fingerprint)))
        await response.write(DONE)
        await response.write_eof()
        return response

    def envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.name, "choices": choices}

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {**self.envelope(self.chunk_object, choices), **more}

    def token_chunk(self, choice: dict[str, Any], count: int, output: Output) -> dict[str, Any]:
        """The chunk of a token; the last one says who answered, unless the usage will."""
        more = self.usage_so_far(choice["index"], count)
        if output.finish_reason and not self.include_usage:
            more["system_fingerprint"] = self.model.fingerprint
        return self.chunk([choice], **more)

    def usage(self, completion: int, prompt: Prompt | None = None) -> dict[str, Any]:
        """Of the answer to one prompt, or to all; `completion`: how many tokens it has."""
        asked = sum(len(prompt.ids) for prompt in ([prompt] if prompt else self.prompts))
        return {"prompt_tokens": asked, "total_tokens": asked + completion, "completion_tokens": completion}

    def usage_so_far(self, index: int, count: int) -> dict[str, Any]:
        """What a chunk says of its choice's usage: nothing, unless every chunk has to."""
        return {"usage": self.usage(count, self.prompt_of(index))} if self.continuous_usage else {}

    def prompt_of(self, index: int) -> Prompt:
        """The prompt that the choice `index` answers."""
        return self.prompts[index // (self.body.n or 1)]

    def prompt_ids(self, index: int) -> list[int] | None:
        return self.prompt_of(index).ids if self.body.return_token_ids else None

    def token_ids(self, outputs: list[Output]) -> list[int] | None:
        return [output.token_id for output in outputs] if self.body.return_token_ids else None
