"""/v1/load_lora_adapter and /v1/unload_lora_adapter."""

from __future__ import annotations

from aiohttp import web

from emulated_cloud.engine import log, lora
from emulated_cloud.engine.errors import ApiError
from emulated_cloud.engine.model import Model
from emulated_cloud.engine.protocol import LoadAdapterRequest, UnloadAdapterRequest, parse


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
