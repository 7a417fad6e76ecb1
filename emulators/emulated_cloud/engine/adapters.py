"""/v1/load_lora_adapter and /v1/unload_lora_adapter, and the same as SageMaker knows them: /adapters."""

from __future__ import annotations

from aiohttp import web

from emulated_cloud.engine import log, lora
from emulated_cloud.engine.errors import ApiError
from emulated_cloud.engine.model import Model
from emulated_cloud.engine.protocol import LoadAdapterRequest, RegisterAdapterRequest, UnloadAdapterRequest, parse


async def load_adapter(request: web.Request, model: Model) -> str:
    """Loads an adapter, and says so. Raises ApiError."""
    return _load(await parse(LoadAdapterRequest, request), model)


async def unload_adapter(request: web.Request, model: Model) -> str:
    """Forgets an adapter, and says so. Raises ApiError."""
    return _unload((await parse(UnloadAdapterRequest, request)).lora_name, model)


async def register_adapter(request: web.Request, model: Model) -> str:
    """`load_adapter`, as SageMaker asks for it."""
    body = await parse(RegisterAdapterRequest, request)
    _load(LoadAdapterRequest(lora_name=body.name, lora_path=body.src), model)
    return f"Adapter {body.name} registered"


def unregister_adapter(name: str, model: Model) -> str:
    """`unload_adapter`, as SageMaker asks for it."""
    _unload(name, model)
    return f"Adapter {name} unregistered"


def _load(body: LoadAdapterRequest, model: Model) -> str:
    if not body.lora_name or not body.lora_path:
        raise ApiError(400, "Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput")
    if body.lora_name in model.names:
        raise ApiError(
            400, f"The lora adapter '{body.lora_name}' conflicts with a served base model.", "InvalidUserInput"
        )
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


def _unload(name: str, model: Model) -> str:
    if not name:
        raise ApiError(400, "'lora_name' needs to be provided to unload a LoRA adapter.", "InvalidUserInput")
    if model.adapters.pop(name, None) is None:
        raise ApiError(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
    log.info("serving.py:226", f"Removed LoRA adapter: name '{name}'")
    return f"Success: LoRA adapter '{name}' removed successfully."
