"""Lists and watches: selection, pages, and the stream of changes.

An answer takes the form that `Accept` asks for: objects, `meta.k8s.io/v1` Tables (kubectl) or PartialObjectMetadata.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from emulated_cloud.kubernetes.apiserver import errors, tables
from emulated_cloud.kubernetes.apiserver.conversion import served
from emulated_cloud.kubernetes.apiserver.resources import Resource
from emulated_cloud.kubernetes.apiserver.selectors import Matches, field_selector, label_selector
from emulated_cloud.kubernetes.apiserver.store import Event, Store

Object = dict[str, Any]
Query = dict[str, str]

BOOKMARK_SECONDS = 30.0
DEFAULT_WATCH_SECONDS = 1800.0
INITIAL_EVENTS_END = "k8s.io/initial-events-end"


def selection(resource: Resource, query: Query) -> Matches:
    """Whether an object (as it is stored) is selected by the request's selectors. Raises ApiError 400."""
    checks = []
    if query.get("labelSelector"):
        checks.append(label_selector(query["labelSelector"]))
    if query.get("fieldSelector"):
        fields = None if resource.crd is None else resource.crd.get("selectableFields", [])
        selectable = None if fields is None else tuple(field["jsonPath"].lstrip(".") for field in fields)
        checks.append(field_selector(query["fieldSelector"], resource.storage_key, selectable))
    return lambda item: all(check(item) for check in checks)


def integer(query: Query, name: str) -> int:
    """A whole number of the query; 0 when absent. Raises ApiError 400."""
    text = query.get(name) or "0"
    try:
        return int(text)
    except ValueError as error:
        raise errors.bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax') from error


def truth(query: Mapping[str, str], name: str) -> bool:
    """A yes or no of the query, as Go reads it (the Python client writes `True`)."""
    return query.get(name, "") in ("1", "t", "T", "true", "True", "TRUE")


def revision_of(query: Query) -> int:
    """The resourceVersion asked for; 0 when none is. Raises ApiError."""
    text = query.get("resourceVersion") or "0"
    if not text.isdigit():
        message = f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax'
        raise errors.ApiError(500, "", message)
    return int(text)


def judge_options(query: Query, *, watches: bool) -> None:
    """Which versions can be asked for, and how (apimachinery, ValidateListOptions). Raises ApiError 422."""
    version, match, initial = (
        query.get(name, "") for name in ("resourceVersion", "resourceVersionMatch", "sendInitialEvents")
    )
    causes = []
    if initial and not watches:
        causes.append(errors.forbidden_value("sendInitialEvents", "sendInitialEvents is forbidden for list"))
    elif initial and match != "NotOlderThan":
        words = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        causes.append(errors.forbidden_value("resourceVersionMatch", words))
    elif match and watches and not initial:
        words = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        causes.append(errors.forbidden_value("resourceVersionMatch", words))
    elif match and not watches and not version:
        words = "resourceVersionMatch is forbidden unless resourceVersion is provided"
        causes.append(errors.forbidden_value("resourceVersionMatch", words))
    elif match not in ("", "Exact", "NotOlderThan"):
        words = f'Unsupported value: {errors.quoted(match)}: supported values: "Exact", "NotOlderThan", ""'
        causes.append(errors.Cause("FieldValueNotSupported", words, "resourceVersionMatch"))
    elif match == "Exact" and version == "0":
        words = 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"'
        causes.append(errors.forbidden_value("resourceVersionMatch", words))
    if causes:
        raise errors.invalid("meta.k8s.io", "ListOptions", "", causes)


class Form:
    """How objects are shown, from the Accept header and `includeObject`."""

    def __init__(self, resource: Resource, accept: str, query: Query):
        self.resource, self.include = resource, query.get("includeObject") or "Metadata"
        self.sort = "object"
        for choice in accept.split(","):
            options = dict(part.strip().partition("=")[::2] for part in choice.split(";")[1:])
            if options.get("g") == "meta.k8s.io" and options.get("v") == "v1":
                if options.get("as") == "Table":
                    self.sort = "table"
                elif options.get("as", "").startswith("PartialObjectMetadata"):
                    self.sort = "partial"
            break

    def one(self, item: Object, *, with_headers: bool = True) -> Object:
        """One stored object."""
        shown = served(self.resource, item)
        if self.sort == "partial":
            return tables.partial(shown)
        if self.sort == "object":
            return shown
        metadata = {"resourceVersion": item["metadata"]["resourceVersion"]}
        rows = [(item, shown)]
        return tables.table(self.resource, rows, metadata, with_headers=with_headers, include=self.include)

    def many(self, items: list[Object], metadata: Object) -> Object:
        pairs = [(item, served(self.resource, item)) for item in items]
        if self.sort == "table":
            return tables.table(self.resource, pairs, metadata, include=self.include)
        if self.sort == "partial":
            kind, version = "PartialObjectMetadataList", "meta.k8s.io/v1"
            return {
                "kind": kind,
                "apiVersion": version,
                "metadata": metadata,
                "items": [tables.partial(shown) for _, shown in pairs],
            }
        shown_items = [shown for _, shown in pairs]
        if self.resource.crd is None:
            # Typed lists of the real server do not repeat kind and version in their items.
            omitted = ("kind", "apiVersion")
            shown_items = [{name: part for name, part in item.items() if name not in omitted} for item in shown_items]
        return {
            "kind": f"{self.resource.kind}List",
            "apiVersion": self.resource.api_version,
            "metadata": metadata,
            "items": shown_items,
        }


def listing(store: Store, form: Form, namespace: str, query: Query) -> Object:
    """A list, or a page of one. Raises ApiError 400 and, for a page whose list is too old, 410."""
    resource = form.resource
    matches = selection(resource, query)
    judge_options(query, watches=False)
    limit = max(0, integer(query, "limit"))
    _judge_version(store, query)
    if query.get("resourceVersion") == "0":
        # From the cache, which knows no pages.
        limit = 0
    items = [item for item in store.list(resource.storage_key, namespace) if matches(item)]
    revision, after = store.revision, None
    if query.get("continue"):
        revision, after = _read_continue(query["continue"])
        if store.since(revision) is None:
            raise errors.expired(
                "The provided continue parameter is too old to display a consistent list result. You must start a "
                "new list without the continue parameter."
            )
        items = [item for item in items if _place(item) > after]
    metadata: Object = {"resourceVersion": str(revision)}
    if limit and len(items) > limit:
        metadata["continue"] = _write_continue(revision, items[limit - 1])
        if not query.get("labelSelector") and not query.get("fieldSelector"):
            metadata["remainingItemCount"] = len(items) - limit
        items = items[:limit]
    return form.many(items, metadata)


def _judge_version(store: Store, query: Query) -> None:
    """Raises ApiError for no version, one of the future, or exactly one of the past: only the latest is kept."""
    text = query.get("resourceVersion") or "0"
    if query.get("continue") and text != "0":
        raise errors.bad_request("specifying resource version is not allowed when using continue")
    if not text.isdigit():
        wrong = f'Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax'
        raise errors.bad_request(f"invalid resource version: resourceVersion: {wrong}")
    if int(text) > store.revision:
        message = f"Timeout: Too large resource version: {text}, current: {store.revision}"
        cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
        raise errors.ApiError(504, "Timeout", message, {"causes": [cause], "retryAfterSeconds": 1})
    if query.get("resourceVersionMatch") == "Exact" and int(text) < store.revision:
        raise errors.expired("The resourceVersion for the provided list is too old.")


def _place(item: Object) -> list[str]:
    return [item["metadata"].get("namespace", ""), item["metadata"]["name"]]


def _write_continue(revision: int, last: Object) -> str:
    token = {"v": "meta.k8s.io/v1", "rv": revision, "start": _place(last)}
    return base64.urlsafe_b64encode(json.dumps(token).encode()).decode().rstrip("=")


def _read_continue(text: str) -> tuple[int, list[str]]:
    try:
        token = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        return int(token["rv"]), [str(part) for part in token["start"]]
    except (ValueError, KeyError, TypeError) as error:
        raise errors.bad_request(f"invalid continue token: continue key is not valid: {error}") from error


class Watch:
    """One watch: events that `stream` yields as lines of JSON until its time is over.

    Made in the same step as the request is judged, so that nothing is missed between the two.
    """

    def __init__(self, store: Store, form: Form, namespace: str, query: Query):
        self.store, self.form, self.namespace = store, form, namespace
        self.matches = selection(form.resource, query)
        judge_options(query, watches=True)
        self.seconds = integer(query, "timeoutSeconds") or DEFAULT_WATCH_SECONDS
        self.bookmarks = truth(query, "allowWatchBookmarks")
        self.headers_sent = False
        self.lines: list[str] = []
        self.woken = asyncio.Event()
        revision = revision_of(query)
        initial = truth(query, "sendInitialEvents")
        if initial or ("sendInitialEvents" not in query and not revision):
            self._send_initial(end=initial)
            revision = store.revision
        changes = store.since(revision)
        self.too_old = changes is None
        if changes is None:
            message = f"too old resource version: {revision} ({store.oldest})"
            self._add("ERROR", errors.expired(message).status())
        self.seen = revision
        for event in changes or ():
            self._hear(event)
        self.stop = store.listen(self._hear)

    def _send_initial(self, *, end: bool) -> None:
        for item in self.store.list(self.form.resource.storage_key, self.namespace):
            if self.matches(item):
                self._add_object("ADDED", item)
        if end:
            self._bookmark({"annotations": {INITIAL_EVENTS_END: "true"}})

    def _hear(self, event: Event) -> None:
        if event.key != self.form.resource.storage_key or event.revision <= self.seen:
            return
        item, before = event.object, event.before
        if self.namespace and item["metadata"].get("namespace") != self.namespace:
            return
        now = event.type != "DELETED" and self.matches(item)
        was = before is not None and self.matches(before)
        if now:
            self._add_object("MODIFIED" if was else "ADDED", item)
        elif was and before is not None:
            # What leaves the selection is shown as it was, at the version at which it left.
            revision = str(event.revision)
            self._add_object("DELETED", {**before, "metadata": {**before["metadata"], "resourceVersion": revision}})

    def _add_object(self, kind: str, item: Object) -> None:
        self._add(kind, self.form.one(item, with_headers=not self.headers_sent))
        self.headers_sent = True

    def _bookmark(self, more: Object) -> None:
        resource = self.form.resource
        metadata: Object = {"resourceVersion": str(self.store.revision), **more}
        item: Object = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
        if self.form.sort == "table":
            item = tables.table(resource, [], {"resourceVersion": metadata["resourceVersion"]}, with_headers=False)
            item["rows"] = [{"cells": [], "object": tables.partial({"metadata": metadata})}]
        self._add("BOOKMARK", item)

    def _add(self, kind: str, item: Object) -> None:
        self.lines.append(json.dumps({"type": kind, "object": item}, separators=(",", ":")) + "\n")
        self.woken.set()

    async def run(self, send: Callable[[bytes], Any], stopping: asyncio.Event) -> None:
        """Sends events until the watch's time is over, the server stops or `send` fails."""
        deadline = time.monotonic() + self.seconds
        bookmark_at = time.monotonic() + BOOKMARK_SECONDS
        stopped = asyncio.ensure_future(stopping.wait())
        try:
            while not stopped.done():
                if self.lines:
                    data, self.lines = "".join(self.lines), []
                    await send(data.encode())
                    continue
                if self.too_old:
                    return
                self.woken.clear()
                now = time.monotonic()
                if now >= deadline:
                    return
                if self.bookmarks and now >= bookmark_at:
                    self._bookmark({})
                    bookmark_at = now + BOOKMARK_SECONDS
                    continue
                woken = asyncio.ensure_future(self.woken.wait())
                wake_at = min(deadline, bookmark_at) if self.bookmarks else deadline
                await asyncio.wait({woken, stopped}, timeout=wake_at - now, return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
        finally:
            self.stop()
            stopped.cancel()
