"""Events: what controllers and the kubelet tell people about an object."""

from __future__ import annotations

import asyncio
import collections
import logging
import uuid
from typing import Literal

import aiohttp

from emulated_cloud.kubernetes.client import ApiError, Client, Object, timestamp
from emulated_cloud.kubernetes.resources import EVENTS

log = logging.getLogger(__name__)


class EventRecorder:
    """Writes core/v1 Events in the background, in order; the same event again raises the count of the first, as
    client-go's correlator does."""

    def __init__(self, client: Client, component: str):
        self._client, self._component = client, component
        self._queue: asyncio.Queue[tuple[Object, str, str, str, str]] = asyncio.Queue()
        self._written: collections.OrderedDict[tuple[str, str, str, str], Object] = collections.OrderedDict()
        self._writer: asyncio.Task[None] | None = None

    def event(
        self, item: Object, kind: Literal["Normal", "Warning"], reason: str, message: str, host: str = ""
    ) -> None:
        """An event that cannot be written is logged and forgotten."""
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all(), name=f"events of {self._component}")
        self._queue.put_nowait((item, kind, reason, message, host))

    async def flush(self) -> None:
        """Waits until all events are written."""
        await self._queue.join()

    async def _write_all(self) -> None:
        while True:
            entry = await self._queue.get()
            try:
                await self._write(*entry)
            except ApiError as error:
                level = logging.DEBUG if error.status == 404 or error.namespace_is_going else logging.WARNING
                log.log(level, "event %s for %s: %s", entry[2], entry[0]["metadata"]["name"], error)
            except (aiohttp.ClientError, TimeoutError) as error:
                log.info("event %s: %s", entry[2], error)
            finally:
                self._queue.task_done()

    async def _write(self, item: Object, kind: str, reason: str, message: str, host: str) -> None:
        key = (item["metadata"].get("uid", ""), kind, reason, message)
        before, now = self._written.get(key), timestamp()
        namespace = item["metadata"].get("namespace") or "default"
        if before:
            counted = {"count": before.get("count", 1) + 1, "lastTimestamp": now}
            name = before["metadata"]["name"]
            self._written[key] = await self._client.patch(EVENTS, name, namespace, counted)
            return
        body = self._body(item, namespace, kind, reason, message, host, now)
        self._written[key] = await self._client.create(EVENTS, body, namespace)
        if len(self._written) > 4096:
            self._written.popitem(last=False)

    def _body(self, item: Object, namespace: str, kind: str, reason: str, message: str, host: str, now: str) -> Object:
        meta = item["metadata"]
        return {
            "metadata": {"name": f"{meta['name']}.{uuid.uuid4().hex[:16]}", "namespace": namespace},
            "involvedObject": {
                "apiVersion": item.get("apiVersion", "v1"),
                "kind": item["kind"],
                "name": meta["name"],
                "namespace": meta.get("namespace", ""),
                "uid": meta.get("uid", ""),
                "resourceVersion": meta.get("resourceVersion", ""),
            },
            "type": kind,
            "reason": reason,
            "message": message[:1024],
            "source": {"component": self._component, **({"host": host} if host else {})},
            "reportingComponent": self._component,
            "reportingInstance": host,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
