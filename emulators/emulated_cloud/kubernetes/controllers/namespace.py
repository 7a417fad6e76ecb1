"""Namespaces: the default ServiceAccount and the root CA in each; the contents of one that is being deleted."""

from __future__ import annotations

import asyncio
from typing import Any

from emulated_cloud.kubernetes.client import ApiError, Client, Informers, Object, split_key
from emulated_cloud.kubernetes.discovery import discover
from emulated_cloud.kubernetes.resources import CONFIG_MAPS, NAMESPACES, SERVICE_ACCOUNTS
from emulated_cloud.kubernetes.workqueue import WorkQueue

ROOT_CA = "kube-root-ca.crt"


class NamespaceController:
    def __init__(self, client: Client, informers: Informers):
        self._client = client
        self._namespaces = informers.of(NAMESPACES)
        self._accounts = informers.of(SERVICE_ACCOUNTS)
        self.queue = WorkQueue("namespace", self._reconcile)
        self._namespaces.on_change(self.queue.changed)
        self._accounts.on_change(self._account_changed)

    def _account_changed(self, old: Object | None, new: Object | None) -> None:
        if new is None and old and old["metadata"]["name"] == "default":
            self.queue.add(old["metadata"]["namespace"])

    async def _reconcile(self, name: str) -> float | None:
        namespace = self._namespaces.items.get(name)
        if namespace is None:
            return None
        if namespace["metadata"].get("deletionTimestamp"):
            return await self._empty(namespace)
        await self._furnish(name)
        return None

    async def _furnish(self, name: str) -> None:
        wanted: list[tuple[Any, Object]] = [(SERVICE_ACCOUNTS, {"metadata": {"name": "default"}})]
        if self._client.ca:
            wanted.append((CONFIG_MAPS, {"metadata": {"name": ROOT_CA}, "data": {"ca.crt": self._client.ca}}))
        for resource, body in wanted:
            if f"{name}/default" in self._accounts.items and resource is SERVICE_ACCOUNTS:
                continue
            try:
                await self._client.create(resource, body, name)
            except ApiError as error:
                # There already, or the namespace is going.
                if error.status not in (409, 403, 404):
                    raise

    async def _empty(self, namespace: Object) -> float | None:
        """Deletes all that is in the namespace; when nothing is left, lets the namespace go."""
        name = namespace["metadata"]["name"]
        left: dict[str, int] = {}
        for resource in await discover(self._client):
            if not resource.namespaced:
                continue
            items = await self._client.list(resource, name)
            for item in items:
                if not item["metadata"].get("deletionTimestamp"):
                    _, item_name = split_key(item["metadata"]["name"])
                    await self._client.delete(resource, item_name, name, propagation="Background")
            if items and (remaining := await self._client.list(resource, name)):
                left[f"{resource.plural}.{resource.group}".rstrip(".")] = len(remaining)
        if left:
            await self._report(namespace, left)
            return 0.25
        await self._client.request(
            "PUT",
            NAMESPACES.path(name=name, subresource="finalize"),
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": name, "uid": namespace["metadata"]["uid"]},
                "spec": {"finalizers": []},
            },
        )
        return None

    async def _report(self, namespace: Object, left: dict[str, int]) -> None:
        contents = ", ".join(f"{kind} has {count} resource instances" for kind, count in sorted(left.items()))
        entry = {
            "type": "NamespaceContentRemaining",
            "status": "True",
            "reason": "SomeResourcesRemain",
            "message": f"Some resources are remaining: {contents}",
        }
        before = (namespace.get("status") or {}).get("conditions") or []
        if any(old.get("message") == entry["message"] for old in before):
            return
        others = [old for old in before if old["type"] != entry["type"]]
        answer = await self._client.patch(
            NAMESPACES,
            namespace["metadata"]["name"],
            "",
            {"status": {"conditions": [*others, entry]}},
            subresource="status",
        )
        self._namespaces.observe(answer)
        await asyncio.sleep(0)
