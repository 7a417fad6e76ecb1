"""A Kubernetes Service as the entry: clients call one address, whose selector says which generation is live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.settings import Settings
    from serving.weights.release import Release


def values(settings: Settings, release: Release | None) -> dict[str, Any]:
    """Of the entry: whether the address is the cluster's alone."""
    return {"service_type": "LoadBalancer" if settings.serving.exposure == "public" else "ClusterIP"}
