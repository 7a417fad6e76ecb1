"""A pod's volumes as folders: what each kind of volume holds, and where it lies.

PODS/<pod uid>/volumes/<volume name>
"""

from __future__ import annotations

import asyncio
import base64
import shutil
from pathlib import Path

from emulated_cloud.kubernetes.attachment import attachment_name, needs_attachment, unique_name
from emulated_cloud.kubernetes.client import ApiError, Client, Informers, Object
from emulated_cloud.kubernetes.kubelet import host
from emulated_cloud.kubernetes.kubelet.csi import CsiError, NodeDriver, PublishRequest
from emulated_cloud.kubernetes.kubelet.fields import FieldError, field_value, resource_value
from emulated_cloud.kubernetes.resources import (
    CLAIMS,
    CONFIG_MAPS,
    CSI_DRIVERS,
    NODES,
    SECRETS,
    SERVICE_ACCOUNTS,
    VOLUME_ATTACHMENTS,
    VOLUMES,
    Resource,
)

# Set by the API server's default; a real kubelet refreshes the token long before.
TOKEN_SECONDS = 3607


class VolumeError(Exception):
    """A volume that cannot be mounted now: its name as the kubelet's event gives it, and why."""

    def __init__(self, volume: str, message: str):
        super().__init__(f'MountVolume.SetUp failed for volume "{volume}" : {message}')


class VolumeManager:
    def __init__(self, client: Client, informers: Informers, drivers: dict[str, NodeDriver], hosts: Path):
        """hosts: where the nodes' own files are (host.py)."""
        self._client, self._informers, self._drivers, self._hosts = client, informers, drivers, hosts
        self._nodes = informers.of(NODES)
        self._claims = informers.of(CLAIMS)
        self._volumes = informers.of(VOLUMES)
        self._attachments = informers.of(VOLUME_ATTACHMENTS)
        informers.of(CSI_DRIVERS)
        self._attachment_changed = asyncio.Event()
        self._attachments.on_change(lambda _old, _new: self._attachment_changed.set())
        self._attached: dict[str, dict[str, set[str]]] = {}
        """The volumes that a node has attached and its pods use: node, volume, uids of pods."""
        self._reporting = asyncio.Lock()
        self._in_use: dict[tuple[str, str, str], tuple[str, set[str]]] = {}

    async def mount(self, pod: Object, volume: Object, folder: Path) -> None:
        """Makes the volume's folder. Raises VolumeError; the kubelet tries again later."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        name = volume["name"]
        try:
            if "emptyDir" in volume:
                folder.mkdir(exist_ok=True)
                # Whoever the container runs as.
                folder.chmod(0o777)
            elif "configMap" in volume:
                self._write(folder, await self._config_map(pod, volume["configMap"], volume["configMap"].get("name")))
            elif "secret" in volume:
                self._write(folder, await self._secret(pod, volume["secret"], volume["secret"].get("secretName")))
            elif "downwardAPI" in volume:
                self._write(folder, _downward(pod, volume["downwardAPI"]))
            elif "projected" in volume:
                self._write(folder, await self._projected(pod, volume["projected"]))
            elif "persistentVolumeClaim" in volume:
                await self._claim(pod, volume["persistentVolumeClaim"], folder)
            elif "hostPath" in volume:
                node = self._nodes.items[pod["spec"]["nodeName"]]
                folder.unlink(missing_ok=True)
                folder.symlink_to(host.find(self._hosts, node, volume["hostPath"]))
            elif "csi" in volume:
                await self._publish_inline(pod, volume["csi"], folder)
            else:
                kind = next((key for key in volume if key != "name"), "unknown")
                raise VolumeError(name, f"volumes of type {kind} are not to be had on this node")
        except (CsiError, FieldError, LookupError) as error:
            raise VolumeError(name, str(error.args[0] if isinstance(error, LookupError) else error)) from error

    async def release(self, pod: Object, folder: Path) -> None:
        """Takes down what is attached for a pod that will not run again, though it is kept for its logs."""
        for volume in pod["spec"].get("volumes") or []:
            found = self._volume_of(pod, volume["persistentVolumeClaim"]) if "persistentVolumeClaim" in volume else None
            if found and needs_attachment(found, self._informers):
                await self._driver(found["spec"]["csi"]["driver"]).unpublish(folder / volume["name"])
        await self._report_unused(pod)

    async def unmount(self, pod: Object, folder: Path) -> None:
        """Takes all volumes of a pod down; what was mounted elsewhere stays whole."""
        uid = pod["metadata"]["uid"]
        for key, (_, users) in list(self._in_use.items()):
            users.discard(uid)
            if not users:
                del self._in_use[key]
        if not folder.exists():
            await self._report_unused(pod)
            return
        drivers = {volume["name"]: self._drivers_of(pod, volume) for volume in pod["spec"].get("volumes") or []}
        for entry in folder.iterdir():
            if found := drivers.get(entry.name):
                for driver in found:
                    await driver.unpublish(entry)
            elif entry.is_symlink():
                entry.unlink()  # A file of the node's own.
            elif entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
        await self._report_unused(pod)

    # -- contents -------------------------------------------------------------------------------------------

    async def _config_map(self, pod: Object, source: Object, name: str | None) -> dict[str, bytes]:
        item = await self._fetch(CONFIG_MAPS, "configmap", pod, name or "", bool(source.get("optional")))
        content = {key: value.encode() for key, value in (item.get("data") or {}).items()}
        content |= {key: base64.b64decode(value) for key, value in (item.get("binaryData") or {}).items()}
        return _items(content, source, f"configmap references non-existent config key: {{key}}")  # noqa: F541

    async def _secret(self, pod: Object, source: Object, name: str | None) -> dict[str, bytes]:
        item = await self._fetch(SECRETS, "secret", pod, name or "", bool(source.get("optional")))
        content = {key: base64.b64decode(value) for key, value in (item.get("data") or {}).items()}
        return _items(content, source, f"references non-existent secret key: {{key}}")  # noqa: F541

    async def _projected(self, pod: Object, projected: Object) -> dict[str, bytes]:
        content: dict[str, bytes] = {}
        for source in projected.get("sources") or []:
            if "configMap" in source:
                content |= await self._config_map(pod, source["configMap"], source["configMap"].get("name"))
            elif "secret" in source:
                content |= await self._secret(pod, source["secret"], source["secret"].get("name"))
            elif "downwardAPI" in source:
                content |= _downward(pod, source["downwardAPI"])
            elif "serviceAccountToken" in source:
                token = source["serviceAccountToken"]
                content[token["path"]] = (await self._token(pod, token)).encode()
        return content

    async def _token(self, pod: Object, source: Object) -> str:
        meta = pod["metadata"]
        spec: Object = {
            "expirationSeconds": source.get("expirationSeconds", TOKEN_SECONDS),
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]},
        }
        if source.get("audience"):
            spec["audiences"] = [source["audience"]]
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "metadata": {"name": pod["spec"].get("serviceAccountName", "default")},
            "spec": spec,
        }
        try:
            answer = await self._client.create(SERVICE_ACCOUNTS, body, meta["namespace"], "token")
        except ApiError as error:
            raise LookupError(f"failed to fetch token: {error.message}") from error
        return answer["status"]["token"]

    async def _fetch(self, resource: Resource, word: str, pod: Object, name: str, optional: bool) -> Object:
        try:
            return await self._client.get(resource, name, pod["metadata"]["namespace"])
        except ApiError as error:
            if error.status == 404 and optional:
                return {}
            raise LookupError(f'{word} "{name}" not found' if error.status == 404 else error.message) from error

    def _write(self, folder: Path, content: dict[str, bytes]) -> None:
        """Each file at once: who reads it while it changes sees the old or the new one."""
        folder.mkdir(exist_ok=True)
        for path, data in content.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_file() and target.read_bytes() == data:
                continue
            part = target.with_name(f".{target.name}.part")
            part.write_bytes(data)
            part.rename(target)

    # -- claims and CSI -------------------------------------------------------------------------------------

    async def _claim(self, pod: Object, source: Object, folder: Path) -> None:
        volume = self._volume_of(pod, source)
        if volume is None:
            raise LookupError(f'persistentvolumeclaim "{source["claimName"]}" is not bound')
        name = volume["metadata"]["name"]
        csi = volume["spec"].get("csi")
        if csi is None:
            raise VolumeError(name, "only CSI volumes are to be had on this node")
        if needs_attachment(volume, self._informers):
            await self._wait_for_attachment(pod, volume)
        volume = self._one_a_handle(pod, volume)
        csi = volume["spec"]["csi"]
        request = PublishRequest(
            csi["volumeHandle"],
            csi.get("volumeAttributes") or {},
            volume["spec"].get("mountOptions") or [],
            bool(csi.get("readOnly") or source.get("readOnly")),
            False,
            pod,
            folder,
            volume["spec"].get("storageClassName") or "",
        )
        try:
            await self._driver(csi["driver"]).publish(request)
        except (CsiError, LookupError) as error:
            words = str(error.args[0])
            raise VolumeError(name, words) from error

    async def _wait_for_attachment(self, pod: Object, volume: Object) -> None:
        """For as long as it takes: what goes wrong with it is told by the controller that attaches. It is told first
        that the volume is in use: it does not detach one that is."""
        node = pod["spec"]["nodeName"]
        users = self._attached.setdefault(node, {}).setdefault(unique_name(volume), set())
        if pod["metadata"]["uid"] not in users:
            users.add(pod["metadata"]["uid"])
            await self._report_in_use(node)
        name = attachment_name(volume, node)
        while not ((self._attachments.items.get(name) or {}).get("status") or {}).get("attached"):
            self._attachment_changed.clear()
            await self._attachment_changed.wait()

    async def _report_unused(self, pod: Object) -> None:
        """What the pod was the last to use may be detached."""
        node = pod["spec"]["nodeName"]
        volumes = self._attached.get(node, {})
        left = [name for name, users in volumes.items() if users == {pod["metadata"]["uid"]}]
        for users in volumes.values():
            users.discard(pod["metadata"]["uid"])
        for name in left:
            del volumes[name]
        if left:
            await self._report_in_use(node)

    async def _report_in_use(self, node: str) -> None:
        # One after another: the last word must be the newest.
        async with self._reporting:
            status = {"volumesInUse": sorted(self._attached.get(node, {}))}
            try:
                await self._client.patch(NODES, node, "", {"status": status}, "strategic", "status")
            except ApiError as error:
                if error.status != 404:
                    raise

    async def _publish_inline(self, pod: Object, csi: Object, folder: Path) -> None:
        attributes = csi.get("volumeAttributes") or {}
        request = PublishRequest("", attributes, [], bool(csi.get("readOnly")), True, pod, folder)
        await self._driver(csi["driver"]).publish(request)

    def _driver(self, name: str) -> NodeDriver:
        driver = self._drivers.get(name)
        if driver is None:
            words = "kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: driver name"
            raise LookupError(f"{words} {name} not found in the list of registered CSI drivers")
        return driver

    def _volume_of(self, pod: Object, source: Object) -> Object | None:
        claim = self._claims.items.get(f"{pod['metadata']['namespace']}/{source['claimName']}")
        return self._volumes.items.get(claim["spec"].get("volumeName", "")) if claim else None

    def _one_a_handle(self, pod: Object, volume: Object) -> Object:
        """A kubelet knows a volume by driver and handle: while one is in use on the node, another
        PersistentVolume with the same handle is taken for it."""
        csi = volume["spec"]["csi"]
        key = (pod["spec"]["nodeName"], csi["driver"], csi["volumeHandle"])
        name, users = self._in_use.setdefault(key, (volume["metadata"]["name"], set()))
        users.add(pod["metadata"]["uid"])
        return self._volumes.items.get(name, volume)

    def _drivers_of(self, pod: Object, volume: Object) -> list[NodeDriver]:
        """The drivers that may have published a volume; none for what is the kubelet's own."""
        name = ""
        if "csi" in volume:
            name = volume["csi"]["driver"]
        elif "persistentVolumeClaim" in volume:
            found = self._volume_of(pod, volume["persistentVolumeClaim"])
            name = found["spec"]["csi"]["driver"] if found and "csi" in found["spec"] else ""
        else:
            return []
        # The claim may have gone; every driver removes just what it made.
        return [self._drivers[name]] if name in self._drivers else list(self._drivers.values())


def _items(content: dict[str, bytes], source: Object, missing: str) -> dict[str, bytes]:
    """The keys that `items` picks, under the paths that it gives; all of them without `items`."""
    if not source.get("items"):
        return content
    picked = {}
    for item in source["items"]:
        if item["key"] in content:
            picked[item["path"]] = content[item["key"]]
        elif not source.get("optional"):
            raise LookupError(missing.format(key=item["key"]))
    return picked


def _downward(pod: Object, source: Object) -> dict[str, bytes]:
    content = {}
    for item in source.get("items") or []:
        if "fieldRef" in item:
            value = field_value(pod, item["fieldRef"]["fieldPath"])
        else:
            container = item["resourceFieldRef"].get("containerName", "")
            value = resource_value(pod, container, item["resourceFieldRef"])
        content[item["path"]] = value.encode()
    return content
