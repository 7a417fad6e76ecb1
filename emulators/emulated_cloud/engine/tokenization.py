"""/tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from emulated_cloud.engine.chat import render
from emulated_cloud.engine.errors import invalid
from emulated_cloud.engine.model import Model
from emulated_cloud.engine.protocol import DetokenizeRequest, TokenizeRequest, parse


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
