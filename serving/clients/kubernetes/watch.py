"""Waiting by watch: what is there of several kinds, then every change, over connections that break."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

from serving.clients.kubernetes import kinds
from serving.clients.kubernetes.connection import Connection, lines, wake
from serving.clients.kubernetes.kinds import Object
from serving.clients.patience import Interrupted

_SILENCE_SECONDS = 70
"""The server sends a bookmark a minute to whoever asks for them: a stream that is silent for longer is dead."""


class Subject:
    """What to watch: a kind, in a namespace, narrowed by selectors."""

    def __init__(self, kind: str, namespace: str | None = None, *, labels: str = "", fields: str = ""):
        self.kind, self.namespace, self.labels, self.fields = kind, namespace, labels, fields


class Changes:
    """Changes of several kinds, as they come. One thread watches one subject."""

    def __init__(self, connection: Connection, subjects: tuple[Subject, ...]):
        self._connection = connection
        self._queue: queue.SimpleQueue[tuple[str, Object] | Exception] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._responses: dict[int, Any] = {}
        for number, subject in enumerate(subjects):
            threading.Thread(target=self._watch, args=(number, subject), daemon=True).start()

    def until(self, deadline: float, *, tick: float = 1.0) -> Iterator[tuple[str, Object] | None]:
        """(ADDED | MODIFIED | DELETED, object) as it happens, and None at least every `tick` seconds so that the caller
        can look at its clocks; ends at `deadline` (of time.monotonic). Raises what the watch met."""
        while (left := deadline - time.monotonic()) > 0:
            try:
                change = self._queue.get(timeout=min(tick, left))
            except queue.Empty:
                yield None
                continue
            if isinstance(change, Exception):
                raise change
            yield change

    def stop(self) -> None:
        self._stopped.set()
        for response in list(self._responses.values()):
            wake(response)

    def _watch(self, number: int, subject: Subject) -> None:
        version = ""
        known: dict[str, Object] = {}
        try:
            while not self._stopped.is_set():
                if not version:
                    version = self._start_over(subject, known)
                version = self._read_stream(number, subject, version, known)
        except Exception as error:  # noqa: BLE001 (a thread's errors are its reader's)
            if not self._stopped.is_set():
                self._queue.put(error)

    def _start_over(self, subject: Subject, known: dict[str, Object]) -> str:
        """Lists what is there and tells what changed since the last list: returns the version to watch from."""
        query = {"labelSelector": subject.labels, "fieldSelector": subject.fields}
        listed = self._connection.call("GET", kinds.path(subject.kind, subject.namespace), query=query)
        there = {item["metadata"]["uid"]: kinds.typed(subject.kind, item) for item in listed["items"]}
        for uid in known.keys() - there.keys():
            self._queue.put(("DELETED", known[uid]))
        for uid, item in there.items():
            before = known.get(uid)
            if before is None or before["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
                self._queue.put(("MODIFIED" if before else "ADDED", item))
        known.clear()
        known.update(there)
        return listed["metadata"]["resourceVersion"]

    def _read_stream(self, number: int, subject: Subject, version: str, known: dict[str, Object]) -> str:
        """Reads one watch until it ends: returns the version to go on from, or "" to start over."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        query = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": "300",
            "labelSelector": subject.labels,
            "fieldSelector": subject.fields,
        }
        path = kinds.path(subject.kind, subject.namespace)
        try:
            response = self._connection.stream(path, query, silence=_SILENCE_SECONDS)
            self._responses[number] = response
            if self._stopped.is_set():
                return version
            for line in lines(response):
                event = json.loads(line)
                item = event["object"]
                if event["type"] == "ERROR":
                    return ""
                version = item["metadata"]["resourceVersion"]
                if event["type"] == "BOOKMARK":
                    continue
                if event["type"] == "DELETED":
                    known.pop(item["metadata"]["uid"], None)
                else:
                    known[item["metadata"]["uid"]] = item
                self._queue.put((event["type"], item))
        except (HTTPError, OSError, ValueError, AttributeError, Interrupted):
            # The connection broke, or stop() closed it under the read; a list tells what was missed, or waits.
            self._stopped.wait(0.2)
            return ""
        except ApiException as error:
            if error.status in (401, 403):
                raise self._connection.refusal("GET", path, error) from error
            self._stopped.wait(1)
            return ""
        finally:
            if ended := self._responses.pop(number, None):
                ended.close()  # What is left unread of a stream holds its connection.
        return version
