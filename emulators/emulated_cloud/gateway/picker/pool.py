"""What the API server says of a pool: its pods that are ready, its objectives and its rewrites, kept by watches."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable
from typing import Any

import aiohttp

from emulated_cloud.gateway.picker.engines import Endpoint
from emulated_cloud.kubernetes.client import ApiError, Client, Informer, Object, condition
from emulated_cloud.kubernetes.resources import PODS, Resource
from emulated_cloud.kubernetes.selectors import selected

log = logging.getLogger(__name__)

POOLS = Resource("inferencepools", "InferencePool", "inference.networking.k8s.io", "v1")
OLD_GROUP = "inference.networking.x-k8s.io"
OBJECTIVES = [
    Resource("inferenceobjectives", "InferenceObjective", "llm-d.ai", "v1alpha2"),
    Resource("inferenceobjectives", "InferenceObjective", OLD_GROUP, "v1alpha2"),
]
REWRITES = [
    Resource("inferencemodelrewrites", "InferenceModelRewrite", "llm-d.ai", "v1alpha2"),
    Resource("inferencemodelrewrites", "InferenceModelRewrite", OLD_GROUP, "v1alpha2"),
]
"""The first that the server has is read: where both groups are installed, the old one is not looked at."""


FORBIDDEN_SECONDS = 2.0
"""How long it is until somebody who may not read tries again."""


class NotServed(Exception):
    """The API server has no such kind."""


async def served(client: Client, resource: Resource) -> bool:
    """Whether discovery names the resource."""
    try:
        answer = await client.request("GET", f"/apis/{resource.group}/{resource.version}")
    except ApiError as error:
        if error.status != 404:
            raise
        return False
    return any(entry["name"] == resource.plural for entry in answer["resources"])


async def _forbidden(client: Client, resource: Resource, namespace: str) -> str:
    """Why the roles that are there do not let this service account list and watch, in the API server's words; empty
    when they do, and where the API server does not say: it then enforces them itself."""
    try:
        me = await client.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", {"metadata": {}})
        user = me["status"]["userInfo"]
        for verb in ("list", "watch"):
            asked = {"namespace": namespace, "verb": verb, "group": resource.group, "resource": resource.plural}
            spec = {"user": user["username"], "groups": user.get("groups") or [], "resourceAttributes": asked}
            answer = await client.request(
                "POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", {"metadata": {}, "spec": spec}
            )
            if not answer["status"].get("allowed"):
                return (
                    f'{resource.plural} is forbidden: User "{user["username"]}" cannot {verb} resource '
                    f'"{resource.plural}" in API group "{resource.group}" in the namespace "{namespace}"'
                )
    except (ApiError, aiohttp.ClientError, TimeoutError) as error:
        log.debug("asking what this service account may do: %s", error)
    return ""


class Pool:
    """An InferencePool, by its name and namespace."""

    def __init__(self, name: str, namespace: str, group: str = POOLS.group):
        self.name, self.namespace, self.group = name, namespace, group
        self._endpoints: dict[str, Endpoint] = {}
        self._informers: list[Informer] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._pools: Informer | None = None
        self._pods: Informer | None = None
        self._objectives: Informer | None = None
        self._rewrites: Informer | None = None

    async def watch(self, client: Client) -> None:
        """Begins to watch. Raises NotServed without the kind InferencePool; the other two kinds may be missing: they
        are looked for once."""
        if not await served(client, POOLS):
            raise NotServed(
                f'no matches for kind "{POOLS.kind}" in version "{POOLS.api_version}" (its CRD is not installed)'
            )
        self._pools = self._follow(client, POOLS)
        self._pods = self._follow(client, PODS)
        self._objectives = await self._follow_first(client, OBJECTIVES)
        self._rewrites = await self._follow_first(client, REWRITES)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _follow(self, client: Client, resource: Resource) -> Informer:
        informer = Informer(client, resource, self.namespace)
        informer.on_change(lambda _old, _new: self._resync())
        self._informers.append(informer)
        self._tasks.append(asyncio.create_task(self._run(client, informer), name=f"informer {resource.plural}"))
        return informer

    async def _run(self, client: Client, informer: Informer) -> None:
        """Runs an informer once this service account may read the resource: the emulated API server enforces no roles,
        and answers whether they are there."""
        while words := await _forbidden(client, informer.resource, self.namespace):
            log.warning("failed to list %s: %s", informer.resource.kind, words)
            await asyncio.sleep(FORBIDDEN_SECONDS)
        await informer.run()

    async def _follow_first(self, client: Client, resources: Iterable[Resource]) -> Informer | None:
        for resource in resources:
            if await served(client, resource):
                return self._follow(client, resource)
        log.info("%s is not served: going on without", next(iter(resources)).kind)
        return None

    # -- what it knows --------------------------------------------------------------------------------------

    @property
    def is_synced(self) -> bool:
        """Whether all that is watched was read and the pool is there: ready means this."""
        return (
            bool(self._informers) and all(each.synced.is_set() for each in self._informers) and self._spec is not None
        )

    @property
    def endpoints(self) -> list[Endpoint]:
        """A port each of the pods that are ready, not being deleted, and meant by the pool's selector."""
        return list(self._endpoints.values())

    def priority(self, objective: str) -> int:
        """Of the InferenceObjective of this name, if it is the pool's; 0 without one."""
        found = self._objectives.items.get(f"{self.namespace}/{objective}") if self._objectives else None
        if found is None or not self._is_meant(found):
            return 0
        return int(found["spec"].get("priority") or 0)

    def rewritten(self, model: str) -> tuple[str, str]:
        """(the model that is asked for in the place of this one, the InferenceModelRewrite that says so), or empty.

        A rule for just this model comes before one for all; of several, the oldest object's, and in it the first.
        """
        rewrites = [item for item in self._rewrites.items.values() if self._is_meant(item)] if self._rewrites else []
        rewrites.sort(key=lambda item: (item["metadata"]["creationTimestamp"], item["metadata"]["name"]))
        rules = [(rule, item["metadata"]["name"]) for item in rewrites for rule in item["spec"].get("rules") or []]
        exact = [found for found in rules if model in _models(found[0])]
        for_all = [found for found in rules if not found[0].get("matches")]
        for rule, name in [*exact, *for_all][:1]:
            if targets := rule.get("targets"):
                return _drawn(targets), name
        return "", ""

    @property
    def _spec(self) -> Object | None:
        item = self._pools.items.get(f"{self.namespace}/{self.name}") if self._pools else None
        return item["spec"] if item and not item["metadata"].get("deletionTimestamp") else None

    def _is_meant(self, item: Object) -> bool:
        reference = item["spec"].get("poolRef") or {}
        return reference.get("name") == self.name and reference.get("group", POOLS.group) == self.group

    def _resync(self) -> None:
        """Endpoints as the objects now have them; one that stays keeps what it said of itself."""
        spec = self._spec or {"selector": {"matchLabels": {}}, "targetPorts": []}
        current: dict[str, Endpoint] = {}
        for pod in self._pods.items.values() if self._pods else ():
            meta = pod["metadata"]
            if not _is_ready(pod) or not selected(spec["selector"]["matchLabels"], meta.get("labels")):
                continue
            for port in spec["targetPorts"]:
                made = Endpoint(meta["name"], meta["namespace"], pod["status"]["podIP"], port["number"])
                key = f"{meta['uid']}/{made.name}"
                current[key] = self._endpoints.get(key, made)
        for key in current.keys() ^ self._endpoints.keys():
            log.info("endpoint %s %s", key.partition("/")[2], "is in" if key in current else "is out")
        self._endpoints = current


def _is_ready(pod: Object) -> bool:
    ready = condition(pod, "Ready")
    return (
        not pod["metadata"].get("deletionTimestamp")
        and bool(pod.get("status", {}).get("podIP"))
        and ready is not None
        and ready["status"] == "True"
    )


def _models(rule: Object) -> set[str]:
    return {match["model"]["value"] for match in rule.get("matches") or [] if match.get("model")}


def _drawn(targets: list[dict[str, Any]]) -> str:
    """One of the targets, by weight; all are alike when none has one."""
    weights = [target.get("weight") or 0 for target in targets]
    chosen = random.choices(targets, weights if any(weights) else None)[0]
    return str(chosen["modelRewrite"])
