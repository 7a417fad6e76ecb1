"""Path → answer: vLLM's routes. What generates stops when the engine drains.

Where adapters may change at run time, /adapters changes them too, for SageMaker: outside /v1, so that no API key guards
it (model_hosting_container_standards/sagemaker/lora, which vLLM registers its handlers with).
"""

from __future__ import annotations

from typing import Any

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from emulated_cloud.engine.core import EngineCore
from emulated_cloud.engine.errors import ApiError
from emulated_cloud.engine.model import VERSION, Model, on
from emulated_cloud.engine.resources import model_cards
from emulated_cloud.engine.streams import dumps


class Routes:
    """The routes of one engine. Once `draining`, nothing new is generated."""

    def __init__(self, model: Model, core: EngineCore):
        self.model, self.core, self.draining = model, core, False

    def table(self) -> list[web.RouteDef]:
        routes = [
            web.get("/health", self.health, allow_head=False),
            web.get("/ping", self.health, allow_head=False),
            web.post("/ping", self.health),
            web.get("/version", self.version, allow_head=False),
            web.get("/metrics", self.metrics, allow_head=False),
            web.get("/v1/models", self.models, allow_head=False),
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/completions", self.complete),
            web.post("/invocations", self.invocations),
            web.post("/tokenize", self.tokenize),
            web.post("/detokenize", self.detokenize),
        ]
        if on("VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            routes += [
                web.post("/v1/load_lora_adapter", self.load_adapter),
                web.post("/v1/unload_lora_adapter", self.unload_adapter),
                web.post("/adapters", self.register_adapter),
                web.delete("/adapters/{name}", self.unregister_adapter),
            ]
        return routes

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(status=503 if self.draining else 200)

    async def version(self, request: web.Request) -> web.Response:
        return answer({"version": VERSION})

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.core.metrics.render(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def models(self, request: web.Request) -> web.Response:
        return answer({"object": "list", "data": model_cards(self.model)})

    def refuse_when_draining(self) -> None:
        if self.draining:
            raise ApiError(503, "The server is shutting down.", "Service Unavailable")

    # The modules behind these know every field of every request, and take longer to import than all the rest: they
    # are imported when the port is open already (warm_up), or by the first request.

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.refuse_when_draining()
        from emulated_cloud.engine.chat import chat_completions

        return await chat_completions(request, self.model, self.core)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        self.refuse_when_draining()
        from emulated_cloud.engine.completions import completions

        return await completions(request, self.model, self.core)

    async def invocations(self, request: web.Request) -> web.StreamResponse:
        """SageMaker's one route for everything; outside /v1, so the API key does not guard it, as in vLLM."""
        is_chat = b'"messages"' in await request.read()
        return await (self.chat if is_chat else self.complete)(request)

    async def tokenize(self, request: web.Request) -> web.Response:
        from emulated_cloud.engine.tokenization import tokenize

        return answer(await tokenize(request, self.model))

    async def detokenize(self, request: web.Request) -> web.Response:
        from emulated_cloud.engine.tokenization import detokenize

        return answer(await detokenize(request, self.model))

    async def load_adapter(self, request: web.Request) -> web.Response:
        from emulated_cloud.engine.adapters import load_adapter

        return web.Response(text=await load_adapter(request, self.model))

    async def unload_adapter(self, request: web.Request) -> web.Response:
        from emulated_cloud.engine.adapters import unload_adapter

        return web.Response(text=await unload_adapter(request, self.model))

    async def register_adapter(self, request: web.Request) -> web.Response:
        from emulated_cloud.engine.adapters import register_adapter

        return web.Response(text=await register_adapter(request, self.model))

    async def unregister_adapter(self, request: web.Request) -> web.Response:
        from emulated_cloud.engine.adapters import unregister_adapter

        return web.Response(text=unregister_adapter(request.match_info["name"], self.model))


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON answer."""
    return web.json_response(value, status=status, headers=headers, dumps=dumps)
