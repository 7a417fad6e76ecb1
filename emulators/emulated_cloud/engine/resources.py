"""What is served, as the API lists it."""

from __future__ import annotations

import time
from typing import Any

from emulated_cloud.engine.model import Model, random_id


def model_cards(model: Model) -> list[dict[str, Any]]:
    now = int(time.time())

    def card(name: str, root: str, parent: str | None, length: int | None) -> dict[str, Any]:
        permission = {
            "id": f"modelperm-{random_id()}",
            "object": "model_permission",
            "created": now,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        return {
            "id": name,
            "object": "model",
            "created": now,
            "owned_by": "vllm",
            "root": root,
            "parent": parent,
            "max_model_len": length,
            "permission": [permission],
        }

    base = [card(name, model.args.model, None, model.max_model_len) for name in model.names]
    return base + [
        card(adapter.name, adapter.path, adapter.base_model_name or model.names[0], None)
        for adapter in model.adapters.values()
    ]
