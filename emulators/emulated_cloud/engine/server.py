"""The HTTP server: its API key, its access log, and how it ends."""

from __future__ import annotations

import argparse
import asyncio
import hmac
import json
import os
import signal
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import web

from emulated_cloud.engine import log, lora
from emulated_cloud.engine.checkpoint import BadModel, Checkpoint
from emulated_cloud.engine.core import BLOCK, EngineCore, QueueOverflow
from emulated_cloud.engine.errors import ApiError
from emulated_cloud.engine.metrics import Metrics
from emulated_cloud.engine.middleware import Middlewares
from emulated_cloud.engine.model import Model
from emulated_cloud.engine.routes import Routes, answer
from emulated_cloud.engine.tokenizer import TemplateFailed, Tokenizer

MAX_BODY = 64 << 20
# aiohttp takes 0 for no limit at all.
AT_ONCE = 0.01
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """The front of one engine: who may come in, how errors and the access log read."""

    def __init__(self, args: argparse.Namespace, routes: Routes):
        self.args, self.metrics = args, routes.core.metrics
        self.keys = args.api_key or list(filter(None, [os.environ.get("VLLM_API_KEY")]))
        self.middlewares = Middlewares(args.middleware)
        self.app = web.Application(middlewares=[self.guard], client_max_size=MAX_BODY)
        self.app.on_response_prepare.append(self.as_uvicorn)
        self.app.add_routes(routes.table())

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The API key (of /v1 alone, as in vLLM) behind the middlewares, errors as JSON, and the access log."""

        async def with_key(request: web.Request) -> web.StreamResponse:
            return await handler(request) if self.may_enter(request) else answer({"error": "Unauthorized"}, 401)

        status = 200  # of a stream that its client leaves
        try:
            response = await self.middlewares.pass_through(request, with_key)
            status = response.status
        except ApiError as error:
            status = error.status
            return answer(error.body, status)
        except QueueOverflow as error:
            status = 503
            return answer(ApiError(503, str(error), "Service Unavailable").body, 503)
        except web.HTTPException as error:
            status = error.status
            return answer({"detail": error.reason}, status, allow(error))
        except Exception:
            status = 500
            raise
        finally:
            resource = request.match_info.route.resource
            self.metrics.answered(request.method, resource.canonical if resource else "none", status)
            if not self.args.disable_uvicorn_access_log:
                host, port = (request.transport.get_extra_info("peername") if request.transport else None) or ("", 0)
                reason = HTTPStatus(status).phrase
                log.access(f'{host}:{port} - "{request.method} {request.path_qs} HTTP/1.1" {status} {reason}')
        return response

    def may_enter(self, request: web.Request) -> bool:
        if not self.keys or not request.path.startswith("/v1") or request.method == "OPTIONS":
            return True
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        known = [hmac.compare_digest(token.encode(), key.encode()) for key in self.keys]
        return scheme.lower() == "bearer" and any(known)

    async def as_uvicorn(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = "uvicorn"


def warm_up(tokenizer: Tokenizer) -> None:
    """What the first request would otherwise wait for. A chat template that is broken is told to whoever uses it."""
    import emulated_cloud.engine.chat
    import emulated_cloud.engine.completions  # noqa: F401

    try:
        tokenizer.render([{"role": "user", "content": "test"}], add_generation_prompt=True)
    except TemplateFailed as failure:
        log.warning("serving.py:187", f"Chat template warmup failed: {failure}")


def allow(error: web.HTTPException) -> dict[str, str]:
    """The Allow header of a 405."""
    return {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}


def engine_core(args: argparse.Namespace, model: Model) -> EngineCore:
    """The engine core that the arguments ask for."""
    metrics = Metrics(model.names[0], model.max_model_len, args.max_loras if args.enable_lora else None)
    core = EngineCore(
        metrics,
        args.max_num_seqs,
        args.max_num_queued_reqs,
        args.max_loras,
        model.max_model_len,
        float(os.environ.get("EMULATED_ENGINE_TOKENS_PER_SECOND", "0")),
        args.enable_prefix_caching,
    )
    metrics.show_cache_config(
        {
            "block_size": str(args.block_size),
            "cache_dtype": args.kv_cache_dtype,
            "enable_prefix_caching": str(args.enable_prefix_caching),
            "gpu_memory_utilization": str(args.gpu_memory_utilization),
            "num_gpu_blocks": str(core.kv_blocks),
        }
    )
    log.info("kv_cache_utils.py:1708", f"GPU KV cache size: {core.kv_blocks * BLOCK:,} tokens", log.ENGINE_CORE)
    return core


async def serve(args: argparse.Namespace, checkpoint: Checkpoint, tokenizer: Tokenizer) -> int:
    """Opens the port and serves until told to end; then lets running requests finish, `--shutdown-timeout` seconds at
    most. A second signal ends the process at once. Raises BadModel for an adapter of `--lora-modules` that does not
    load, OSError for a port that is taken."""
    model = Model(args, checkpoint, tokenizer)
    for module in args.lora_modules or []:
        try:
            adapter = model.open_adapter(module["name"], module["path"], module.get("base_model_name"))
        except (lora.AdapterNotFound, lora.AdapterFailed) as failure:
            raise BadModel("ValueError", str(failure)) from failure
        model.adapters[adapter.name] = adapter
    core = engine_core(args, model)
    routes = Routes(model, core)
    server = Server(args, routes)
    told = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell(number: signal.Signals) -> None:
        told.set()
        for either in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(either)
            signal.signal(either, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, tell, number)

    # A client that goes away cancels its handler, and with it its sequences.
    runner = web.AppRunner(server.app, access_log=None, handler_cancellation=True, shutdown_timeout=AT_ONCE)
    await runner.setup()
    host = args.host or "0.0.0.0"
    site = web.TCPSite(runner, host, args.port, backlog=2048)
    try:
        await site.start()
        log.info("launcher.py:37", f"Started server on http://{host}:{args.port}, serving {json.dumps(model.names)}")
        log.info("launcher.py:46", "Application startup complete.")
        warming = loop.run_in_executor(None, warm_up, tokenizer)
        await told.wait()
        await warming
        routes.draining = True
        await site.stop()
        log.info("launcher.py:110", f"Shutting down: {core.in_flight} requests in flight")
        await asyncio.wait([asyncio.create_task(core.idle.wait())], timeout=args.shutdown_timeout)
        if core.in_flight:
            log.warning("core.py:1201", f"Aborting {core.in_flight} requests after {args.shutdown_timeout} seconds")
    finally:
        await runner.cleanup()
    log.info("launcher.py:115", "Application shutdown complete.")
    return 0
