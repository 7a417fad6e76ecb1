"""The shapes of what the registry shows: indexes, manifests, configurations, tokens."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CREATED = "2026-01-01T00:00:00Z"


def token(given: str, seconds: float) -> dict[str, Any]:
    issued = datetime.now(UTC).isoformat(timespec="seconds")
    return {"token": given, "access_token": given, "expires_in": int(seconds), "issued_at": issued}


def descriptor(media_type: str, digest: str, size: int, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size, **more}


def index(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}


def manifest(config: dict[str, Any], layers: list[dict[str, Any]]) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}


def config(architecture: str, diff_ids: list[str], entrypoint: list[str]) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "os": "linux",
        "created": CREATED,
        "config": {"Entrypoint": entrypoint, "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created": CREATED, "created_by": f"layer {number}"} for number in range(len(diff_ids))],
    }


def media_type(content: bytes) -> str:
    """What a manifest or an index says it is."""
    return str(json.loads(content)["mediaType"])
