"""The small endpoints: /tokenize, /detokenize, /v1/load_lora_adapter, /v1/unload_lora_adapter."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from emulated_cloud.engine import log, lora
from emulated_cloud.engine.chat import render
from emulated_cloud.engine.errors import ApiError, invalid
from emulated_cloud.engine.model import Model
from emulated_cloud.engine.protocol import (
    DetokenizeRequest,
    LoadAdapterRequest,
    TokenizeRequest,
    UnloadAdapterRequest,
    parse,
)


async def tokenize(request: web.Request, model: Model) -> dict[str, Any]:
    """A prompt's or a conversation's tokens. Raises ApiError."""
    body = await parse(TokenizeRequest, request)
    model.resolve(body.model)
    if body.messages is not None:
        kwargs = {"add_generation_prompt": body.add_generation_prompt, **(body.chat_template_kwargs or {})}
        ids = render(model, body.messages, body.tools, kwargs, bool(body.add_special_tokens)).ids
    elif body.prompt is not None:
        ids = model.tokenizer.encode(body.prompt, body.add_special_tokens is not False)
    else:
        size = f"<dict of {len(body.model_fields_set)} items>"
        missing = [
            {"type": "missing", "loc": f"body.{name}", "msg": "Field required", "input": size}
            for name in ("prompt", "messages")
        ]
        raise invalid(missing, "body.prompt")
    strings = [model.tokenizer.token(id_) for id_ in ids] if body.return_token_strs else None
    return {"count": len(ids), "max_model_len": model.max_model_len, "tokens": ids, "token_strs": strings}


async def detokenize(request: web.Request, model: Model) -> dict[str, Any]:
    """The text of tokens. Raises ApiError."""
    body = await parse(DetokenizeRequest, request)
    model.resolve(body.model)
    return {"prompt": model.tokenizer.decode(body.tokens, skip_special_tokens=False)}


async def load_adapter(request: web.Request, model: Model) -> str:
    """Loads an adapter, and says so. Raises ApiError."""
    body = await parse(LoadAdapterRequest, request)
    if not body.lora_name or not body.lora_path:
        raise ApiError(400, "Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput")
    if body.lora_name in model.adapters and not body.load_inplace:
        raise ApiError(
            400,
            f"The lora adapter '{body.lora_name}' has already been loaded. If you want to load the adapter in place, "
            "set 'load_inplace' to True.",
            "InvalidUserInput",
        )
    try:
        model.adapters[body.lora_name] = model.open_adapter(body.lora_name, body.lora_path)
    except lora.AdapterNotFound as failure:
        raise ApiError(404, str(failure), "NotFoundError") from failure
    except lora.AdapterFailed as failure:
        raise ApiError(500, str(failure), "InternalServerError") from failure
    return f"Success: LoRA adapter '{body.lora_name}' added successfully."


async def unload_adapter(request: web.Request, model: Model) -> str:
    """Forgets an adapter, and says so. Raises ApiError."""
    body = await parse(UnloadAdapterRequest, request)
    if not body.lora_name:
        raise ApiError(400, "'lora_name' needs to be provided to unload a LoRA adapter.", "InvalidUserInput")
    if model.adapters.pop(body.lora_name, None) is None:
        raise ApiError(404, f"The lora adapter '{body.lora_name}' cannot be found.", "NotFoundError")
    log.info("serving.py:226", f"Removed LoRA adapter: name '{body.lora_name}'")
    return f"Success: LoRA adapter '{body.lora_name}' removed successfully."
