"""A small asyncio client of any Kubernetes API server, and an informer: a watched, local copy of one resource.

Objects are plain dicts, as JSON has them. The informer lists, then watches, and starts over when the server says
that its resourceVersion is too old (410) or the connection breaks: handlers then see the differences only.
"""

from __future__ import annotations

import asyncio
import base64
import collections
import datetime
import json
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import aiohttp
import yaml

from emulated_cloud.kubernetes.resources import Resource

log = logging.getLogger(__name__)

Object = dict[str, Any]
PatchType = Literal["merge", "strategic", "apply"]

_PATCH_TYPES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}
# A server ends a watch by itself after some minutes; asked for here so that a dead connection is noticed.
WATCH_SECONDS = 300


class ApiError(Exception):
    """An answer other than success: the HTTP status, and the Status object's reason and message."""

    def __init__(self, status: int, body: Any):
        status_object = body if isinstance(body, dict) else {}
        self.status = status
        self.reason = status_object.get("reason", "")
        self.message = status_object.get("message", body if isinstance(body, str) else "")
        super().__init__(f"{status} {self.reason}: {self.message}")

    @property
    def namespace_is_going(self) -> bool:
        """Nothing can be created in a namespace that is being deleted: no fault of whoever tried."""
        return self.status == 403 and "because it is being terminated" in self.message


class Client:
    """Requests to one API server. `async with Client.from_kubeconfig(path) as client:`."""

    def __init__(self, server: str, token: str | Path = "", ca: str | None = None, user_agent: str = "emulator"):
        """`token`: the bearer token, or the file that it is in, which is read again for each request (a pod's token is
        replaced while it is still good)."""
        self.server = server.rstrip("/")
        self.ca = ca
        self._token = token
        self._ssl: ssl.SSLContext | bool = ssl.create_default_context(cadata=ca) if ca else True
        self._headers = {"User-Agent": user_agent, "Accept": "application/json"}
        self._open_session: aiohttp.ClientSession | None = None

    @property
    def token(self) -> str:
        if isinstance(self._token, Path):
            return self._token.read_text(encoding="ascii").strip()
        return self._token

    def _authorization(self) -> dict[str, str]:
        token = self.token
        return {"Authorization": f"Bearer {token}"} if token else {}

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._open_session is None:
            raise RuntimeError("a Client is used inside `async with`")
        return self._open_session

    @classmethod
    def from_kubeconfig(cls, path: Path | str, user_agent: str = "emulator") -> Client:
        """Reads the current context: server, certificate authority and token, inline or as files."""
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        context = _named(config["contexts"], config["current-context"])["context"]
        cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"])["user"]
        ca = None
        if "certificate-authority-data" in cluster:
            ca = base64.b64decode(cluster["certificate-authority-data"]).decode()
        elif "certificate-authority" in cluster:
            ca = (Path(path).parent / cluster["certificate-authority"]).read_text(encoding="utf-8")
        token = user.get("token", "")
        if "tokenFile" in user:
            token = (Path(path).parent / user["tokenFile"]).read_text(encoding="utf-8").strip()
        return cls(cluster["server"], token, ca, user_agent)

    @classmethod
    def in_cluster(cls, account: Path, environment: Mapping[str, str], user_agent: str) -> Client:
        """A container's own client: `account` is where its service account's token and the authority are."""
        server = f"https://{environment['KUBERNETES_SERVICE_HOST']}:{environment['KUBERNETES_SERVICE_PORT']}"
        return cls(server, account / "token", (account / "ca.crt").read_text(encoding="ascii"), user_agent)

    async def __aenter__(self) -> Client:
        self._open_session = aiohttp.ClientSession(
            # Watches hold a connection each: the pool must not have an end.
            connector=aiohttp.TCPConnector(limit=0, ssl=self._ssl),
            timeout=aiohttp.ClientTimeout(total=60),
            headers=self._headers,
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._session.close()

    async def request(
        self, method: str, path: str, body: Any = None, params: dict[str, str] | None = None, content_type: str = ""
    ) -> Any:
        """One request; the answer's JSON. Raises ApiError, and aiohttp.ClientError when there is no answer."""
        headers = self._authorization()
        if body is not None:
            headers["Content-Type"] = content_type or "application/json"
        data = json.dumps(body) if body is not None else None
        async with self._session.request(
            method, self.server + path, params=params, data=data, headers=headers
        ) as answer:
            text = await answer.text()
            content = json.loads(text) if "json" in answer.content_type and text else text
            if answer.status >= 400:
                raise ApiError(answer.status, content)
            return content

    async def get(self, resource: Resource, name: str, namespace: str = "") -> Object:
        return await self.request("GET", resource.path(namespace, name))

    async def list(self, resource: Resource, namespace: str = "", **selectors: str) -> list[Object]:
        """`selectors`: labelSelector, fieldSelector."""
        answer = await self.request("GET", resource.path(namespace), params=selectors)
        return [_typed(item, resource) for item in answer.get("items") or []]

    async def create(self, resource: Resource, body: Object, namespace: str = "", subresource: str = "") -> Object:
        """With a subresource (`binding`, `token`) the name is the body's."""
        name = body["metadata"]["name"] if subresource else ""
        full = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        return await self.request("POST", resource.path(namespace, name, subresource), full)

    async def update(self, resource: Resource, body: Object, subresource: str = "") -> Object:
        """Replaces; the resourceVersion in `body` is a precondition."""
        meta = body["metadata"]
        full = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        return await self.request("PUT", resource.path(meta.get("namespace", ""), meta["name"], subresource), full)

    async def patch(
        self,
        resource: Resource,
        name: str,
        namespace: str,
        body: Object,
        kind: PatchType = "merge",
        subresource: str = "",
        field_manager: str = "",
        force: bool = False,
    ) -> Object:
        params = {"fieldManager": field_manager} if field_manager else {}
        if force:
            params["force"] = "true"
        if kind == "apply":
            body = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        path = resource.path(namespace, name, subresource)
        return await self.request("PATCH", path, body, params, _PATCH_TYPES[kind])

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str = "",
        uid: str = "",
        resource_version: str = "",
        grace_seconds: int | None = None,
        propagation: str = "",
    ) -> Object | None:
        """Deletes, if it is still the object that `uid` and `resource_version` name. The server's answer: the object
        as it now is, or a Status; None when it was absent already."""
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        conditions = {"uid": uid, "resourceVersion": resource_version}
        if preconditions := {key: value for key, value in conditions.items() if value}:
            options["preconditions"] = preconditions
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        if propagation:
            options["propagationPolicy"] = propagation
        try:
            return await self.request("DELETE", resource.path(namespace, name), options)
        except ApiError as error:
            if error.status != 404:
                raise
        return None

    async def watch(
        self, resource: Resource, version: str, namespace: str = "", **selectors: str
    ) -> AsyncIterator[tuple[str, Object]]:
        """Events after `version` until the server ends the watch. Raises ApiError(410) when it is too old."""
        params = {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
            **selectors,
        }
        timeout = aiohttp.ClientTimeout(total=WATCH_SECONDS + 30, sock_connect=10)
        async with self._session.get(
            self.server + resource.path(namespace), params=params, headers=self._authorization(), timeout=timeout
        ) as answer:
            if answer.status >= 400:
                raise ApiError(answer.status, await answer.text())
            pending = b""
            async for chunk in answer.content.iter_any():
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    if not line.strip():
                        continue
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise ApiError(event["object"].get("code", 500), event["object"])
                    yield event["type"], event["object"]


def _named(items: list[Object], name: str) -> Object:
    return next(item for item in items if item["name"] == name)


def _typed(item: Object, resource: Resource) -> Object:
    """Items of a list come without the type that single objects have."""
    item.setdefault("apiVersion", resource.api_version)
    item.setdefault("kind", resource.kind)
    return item


def key_of(item: Object) -> str:
    """`namespace/name`, or the name of a cluster-scoped object."""
    meta = item["metadata"]
    return f"{meta['namespace']}/{meta['name']}" if meta.get("namespace") else meta["name"]


def split_key(key: str) -> tuple[str, str]:
    """(namespace, name)."""
    namespace, _, name = key.rpartition("/")
    return namespace, name


def owner_of(item: Object) -> Object | None:
    """The ownerReference that says `controller: true`."""
    return next((ref for ref in item["metadata"].get("ownerReferences") or [] if ref.get("controller")), None)


def owner_reference(resource: Resource, owner: Object) -> Object:
    """What a controller writes into the objects that it makes for `owner`."""
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def timestamp(time: datetime.datetime | None = None) -> str:
    """RFC 3339 in seconds, as metav1.Time is written."""
    return (time or datetime.datetime.now(datetime.UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def seconds_since(text: str) -> float:
    """Seconds from an RFC 3339 time until now."""
    return (datetime.datetime.now(datetime.UTC) - parse_time(text)).total_seconds()


def condition(item: Object, kind: str) -> Object | None:
    conditions = (item.get("status") or {}).get("conditions") or []
    return next((entry for entry in conditions if entry["type"] == kind), None)


Handler = Callable[[Object | None, Object | None], None]
"""(old, new): old is None for an added object, new is None for a deleted one."""


class Informer:
    """A local copy of one resource, of one namespace if it is given, kept current by a watch.

    `items` maps key_of(object) to the object: read it, never change it. `synced` is set once the first list is in.
    """

    def __init__(self, client: Client, resource: Resource, namespace: str = "", **selectors: str):
        self._client, self.resource, self._namespace, self._selectors = client, resource, namespace, selectors
        self.items: dict[str, Object] = {}
        self.synced = asyncio.Event()
        self._handlers: list[Handler] = []
        self._gone: collections.OrderedDict[str, None] = collections.OrderedDict()

    def on_change(self, handler: Handler) -> None:
        """Calls `handler` for every change from now on, and for what is here already."""
        self._handlers.append(handler)
        for item in self.items.values():
            handler(None, item)

    def in_namespace(self, namespace: str) -> list[Object]:
        return [item for item in self.items.values() if item["metadata"].get("namespace") == namespace]

    def observe(self, item: Object | None) -> None:
        """Takes in what a write of ours was answered, so that the next pass does not act on an older copy."""
        if item and item.get("kind") == self.resource.kind and item["metadata"]["uid"] not in self._gone:
            self._set(key_of(item), item)

    async def run(self) -> None:
        """Lists and watches for ever; a server that is away or restarting is waited for."""
        delay = 0.1
        while True:
            try:
                answer = await self._client.request("GET", self.resource.path(self._namespace), params=self._selectors)
                self._replace(answer.get("items") or [])
                self.synced.set()
                version = answer["metadata"]["resourceVersion"]
                delay = 0.1
                while True:
                    version = await self._follow(version)
                    # A server that ends every watch at once must not make this a busy loop.
                    await asyncio.sleep(0.05)
            except ApiError as error:
                if error.status != 410:
                    log.warning("watching %s: %s", self.resource.plural, error)
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                log.info("watching %s: %s", self.resource.plural, error or type(error).__name__)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 5.0)

    async def _follow(self, version: str) -> str:
        """Follows one watch to its end; the version to go on from."""
        async for kind, item in self._client.watch(self.resource, version, self._namespace, **self._selectors):
            version = item["metadata"]["resourceVersion"]
            if kind == "DELETED":
                self._set(key_of(item), None, item)
            elif kind != "BOOKMARK":
                self._set(key_of(item), item)
        return version

    def _replace(self, items: list[Object]) -> None:
        current = {key_of(item): _typed(item, self.resource) for item in items}
        for key in self.items.keys() - current.keys():
            self._set(key, None)
        for key, item in current.items():
            old = self.items.get(key)
            if old and old["metadata"]["uid"] != item["metadata"]["uid"]:
                self._set(key, None)
            self._set(key, item)

    def _set(self, key: str, item: Object | None, last: Object | None = None) -> None:
        old = self.items.get(key)
        if item is None:
            gone = last or old
            if gone is None or (old and old["metadata"]["uid"] != gone["metadata"]["uid"]):
                return
            self.items.pop(key, None)
            self._gone[gone["metadata"]["uid"]] = None
            if len(self._gone) > 1024:
                self._gone.popitem(last=False)
            old = gone
        else:
            if old and old["metadata"]["uid"] == item["metadata"]["uid"] and _version(item) <= _version(old):
                return
            self.items[key] = item
        for handler in self._handlers:
            try:
                handler(old, item)
            except Exception:
                # One controller's fault is not the others'.
                log.exception("handling a change of %s %s", self.resource.plural, key)


def _version(item: Object) -> int:
    """Resource versions of one resource are ordered integers (KEP-5504)."""
    return int(item["metadata"]["resourceVersion"])


class Informers:
    """One informer a resource, shared by all controllers of a process."""

    def __init__(self, client: Client):
        self._client = client
        self._informers: dict[Resource, Informer] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def of(self, resource: Resource) -> Informer:
        if resource not in self._informers:
            informer = self._informers[resource] = Informer(self._client, resource)
            self._tasks.append(asyncio.create_task(informer.run(), name=f"informer {resource.plural}"))
        return self._informers[resource]

    def all(self) -> list[Informer]:
        return list(self._informers.values())

    async def synced(self, *resources: Resource) -> None:
        """Waits until these have been listed, or all that are watched now."""
        for informer in [self.of(resource) for resource in resources] or self.all():
            await informer.synced.wait()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
