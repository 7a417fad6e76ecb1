"""The controller of Gateways where the API server fails it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from emulated_cloud.gateway import controller
from emulated_cloud.gateway.resources import CLASSES
from emulated_cloud.kubernetes.client import ApiError
from emulated_cloud.kubernetes.network.gateways import GatewayTable
from emulated_cloud.kubernetes.resources import CRDS, GATEWAY_CLASSES, GATEWAYS, Resource


class Informers:
    """All kinds that are needed are served."""

    def __init__(self) -> None:
        served = {f"{kind.plural}.{kind.group}": {} for kind in controller._NEEDED}
        self._found = {CRDS: self._informer(served)}

    @staticmethod
    def _informer(items: dict[str, Any]) -> Any:
        found = SimpleNamespace(items=items, followers=[], observe=lambda item: None)
        found.on_change = found.followers.append
        return found

    def of(self, resource: Resource) -> Any:
        return self._found.setdefault(resource, self._informer({}))

    async def synced(self, *_: Resource) -> None:
        pass


class Api:
    """Refuses the first write."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self._fails = True

    async def create(self, resource: Resource, body: dict[str, Any]) -> dict[str, Any]:
        if self._fails:
            self._fails = False
            raise ApiError(503, {"reason": "ServiceUnavailable"})
        assert resource == GATEWAY_CLASSES
        self.made.append(body["metadata"]["name"])
        return {**body, "metadata": {**body["metadata"], "resourceVersion": "1"}}

    async def patch(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}


def test_classes_that_could_not_be_made_are_made_by_the_next_try(tmp_path: Path) -> None:
    api, informers = Api(), Informers()
    more: Any = (SimpleNamespace(), GatewayTable(), SimpleNamespace(), tmp_path, "127.64.0.0/16", None, True)

    async def run() -> None:
        made = controller.GatewayController(api, informers, *more)  # type: ignore[arg-type]
        with pytest.raises(ApiError):
            await made._look_for_kinds("kinds")
        assert api.made == []
        await made._look_for_kinds("kinds")

    asyncio.run(run())
    assert api.made == list(CLASSES)
    assert len(informers.of(GATEWAYS).followers) == 1, "its Gateways are served"
