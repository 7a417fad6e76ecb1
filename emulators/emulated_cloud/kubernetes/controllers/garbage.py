"""The garbage collector: what an owner leaves behind when it goes, for every kind that the server has.

Background: dependents whose owners are all gone are deleted. Foreground: the owner waits (finalizer
`foregroundDeletion`) until its blocking dependents are gone. Orphan: its references are taken out first.
"""

from __future__ import annotations

from collections import defaultdict

from emulated_cloud.kubernetes.client import ApiError, Client, Informer, Informers, Object, key_of, split_key
from emulated_cloud.kubernetes.discovery import discover
from emulated_cloud.kubernetes.resources import CRDS, Resource
from emulated_cloud.kubernetes.workqueue import WorkQueue

FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"


class GarbageCollector:
    def __init__(self, client: Client, informers: Informers):
        self._client, self._informers = client, informers
        self._watched: dict[Resource, Informer] = {}
        self._dependents: dict[str, set[tuple[Resource, str]]] = defaultdict(set)
        self._uids: dict[str, tuple[Resource, str]] = {}
        self.queue = WorkQueue("garbage", self._reconcile)
        self._kinds = WorkQueue("garbage kinds", self._watch_all)
        self._kinds.add("all", 0)
        informers.of(CRDS).on_change(lambda _old, _new: self._kinds.add("all", 0.2))

    async def _watch_all(self, _: str) -> None:
        """Watches every kind that discovery names and that is not watched yet."""
        resources = await discover(self._client)
        for resource in resources:
            if resource not in self._watched:
                informer = self._watched[resource] = self._informers.of(resource)
                informer.on_change(lambda old, new, of=resource: self._changed(of, old, new))  # type: ignore[misc]

    def _changed(self, resource: Resource, old: Object | None, new: Object | None) -> None:
        item = new or old or {}
        uid, key = item["metadata"]["uid"], key_of(item)
        references = item["metadata"].get("ownerReferences") or []
        if new is None:
            self._uids.pop(uid, None)
            for reference in references:
                self._dependents[reference["uid"]].discard((resource, key))
                self.queue.add(reference["uid"])
            if self._dependents.get(uid):
                self.queue.add(uid)
            return
        self._uids[uid] = (resource, key)
        for reference in references:
            self._dependents[reference["uid"]].add((resource, key))
            if reference["uid"] not in self._uids:
                self.queue.add(reference["uid"], 0.5)
        if new["metadata"].get("deletionTimestamp") and {FOREGROUND, ORPHAN} & set(_finalizers(new)):
            self.queue.add(uid)

    async def _reconcile(self, uid: str) -> float | None:
        """Looks at one owner, here or gone, and its dependents."""
        dependents = [
            (resource, item)
            for resource, key in list(self._dependents.get(uid, ()))
            if (item := self._watched[resource].items.get(key))
        ]
        if uid in self._uids:
            resource, key = self._uids[uid]
            owner = self._watched[resource].items.get(key)
            if owner and owner["metadata"].get("deletionTimestamp"):
                await self._finalize(resource, owner, dependents)
            return None
        if not dependents:
            self._dependents.pop(uid, None)
            return None
        after = None
        for resource, item in dependents:
            if await self._is_gone(item, uid):
                after = await self._collect(resource, item, uid) or after
        return after

    async def _is_gone(self, item: Object, uid: str) -> bool:
        """Asks the server: an owner that no informer has may only not be seen yet."""
        reference = next(ref for ref in item["metadata"]["ownerReferences"] if ref["uid"] == uid)
        group, _, _ = reference["apiVersion"].rpartition("/")
        resource = next(
            (known for known in self._watched if (known.kind, known.group) == (reference["kind"], group)), None
        )
        if resource is None:
            return False
        namespace = item["metadata"].get("namespace", "") if resource.namespaced else ""
        try:
            owner = await self._client.get(resource, reference["name"], namespace)
        except ApiError as error:
            if error.status == 404:
                return True
            raise
        return owner["metadata"]["uid"] != uid

    async def _collect(self, resource: Resource, item: Object, uid: str) -> float | None:
        meta = item["metadata"]
        if meta.get("deletionTimestamp"):
            return None
        living = [ref for ref in meta["ownerReferences"] if ref["uid"] != uid and ref["uid"] in self._uids]
        if living:
            await self._drop_reference(resource, item, uid)
            return None
        answer = await self._client.delete(
            resource, meta["name"], meta.get("namespace", ""), uid=meta["uid"], propagation="Background"
        )
        self._watched[resource].observe(answer)
        return None

    async def _finalize(self, resource: Resource, owner: Object, dependents: list[tuple[Resource, Object]]) -> None:
        uid = owner["metadata"]["uid"]
        if ORPHAN in _finalizers(owner):
            for kind, item in dependents:
                await self._drop_reference(kind, item, uid)
            await self._drop_finalizer(resource, owner, ORPHAN)
        elif FOREGROUND in _finalizers(owner):
            blocking = [
                (kind, item)
                for kind, item in dependents
                if any(
                    ref["uid"] == uid and ref.get("blockOwnerDeletion") for ref in item["metadata"]["ownerReferences"]
                )
            ]
            for kind, item in dependents:
                meta = item["metadata"]
                if not meta.get("deletionTimestamp"):
                    # Who has dependents of its own waits for them in turn.
                    policy = "Foreground" if self._dependents.get(meta["uid"]) else "Background"
                    answer = await self._client.delete(
                        kind, meta["name"], meta.get("namespace", ""), uid=meta["uid"], propagation=policy
                    )
                    self._watched[kind].observe(answer)
            if not blocking:
                await self._drop_finalizer(resource, owner, FOREGROUND)

    async def _drop_reference(self, resource: Resource, item: Object, uid: str) -> None:
        meta = item["metadata"]
        kept = [ref for ref in meta["ownerReferences"] if ref["uid"] != uid]
        patch = {"metadata": {"resourceVersion": meta["resourceVersion"], "ownerReferences": kept}}
        answer = await self._client.patch(resource, meta["name"], meta.get("namespace", ""), patch)
        self._watched[resource].observe(answer)
        self._dependents[uid].discard((resource, key_of(item)))

    async def _drop_finalizer(self, resource: Resource, owner: Object, finalizer: str) -> None:
        kept = [name for name in _finalizers(owner) if name != finalizer]
        patch = {"metadata": {"resourceVersion": owner["metadata"]["resourceVersion"], "finalizers": kept}}
        namespace, name = split_key(key_of(owner))
        await self._client.patch(resource, name, namespace, patch)

    async def stop(self) -> None:
        await self._kinds.stop()
        await self.queue.stop()


def _finalizers(item: Object) -> list[str]:
    return item["metadata"].get("finalizers") or []
