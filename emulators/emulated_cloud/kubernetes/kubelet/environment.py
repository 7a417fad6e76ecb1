"""What a container's process is started with: its environment, its command, and the paths in both.

The environment is the container's own: nothing of the launcher's is handed down. Since a process here shares the
machine's file system and addresses, mount paths become the folders of the volumes, and the address that means "every
interface" becomes the pod's own, in command, arguments and environment alike.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from pathlib import Path

from emulated_cloud.kubernetes.client import ApiError, Client, Object
from emulated_cloud.kubernetes.kubelet.fields import field_value, resource_value
from emulated_cloud.kubernetes.resources import CONFIG_MAPS, SECRETS, Resource

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where a container finds the token of its service account."""
_REFERENCE = re.compile(r"\$\$|\$\(([^()]+)\)")
_ANY_ADDRESS = re.compile(r"(?<![\w.])0\.0\.0\.0(?![\w.])")


class ConfigurationError(Exception):
    """CreateContainerConfigError: a reference of the container's environment that leads nowhere."""


@dataclass(frozen=True)
class Surroundings:
    """What the node gives a pod's processes."""

    pod_ip: str
    host_ip: str
    base: dict[str, str] = field(default_factory=dict)
    """Variables of the node: proxies, the API server's address, Services."""


class Rewriter:
    """Turns paths inside the container into the folders that stand for them."""

    def __init__(self, mounts: dict[str, Path], pod_ip: str):
        self._mounts = {path.rstrip("/"): str(folder) for path, folder in mounts.items() if path.rstrip("/")}
        self._pod_ip = pod_ip
        longest_first = sorted(self._mounts, key=len, reverse=True)
        # Only whole paths: neither the tail of another path or URL, nor the start of a longer name.
        self._pattern = (
            re.compile(rf"(?<![\w./\-@])({'|'.join(map(re.escape, longest_first))})(?![\w.\-])")
            if longest_first
            else None
        )

    def __call__(self, text: str) -> str:
        if self._pattern:
            text = self._pattern.sub(lambda match: self._mounts[match[1]], text)
        text = _ANY_ADDRESS.sub(self._pod_ip, text)
        return re.sub(r"(^|=)(::|\[::\])(?=$|:\d+$)", lambda match: match[1] + self._pod_ip, text)

    def path(self, inside: str) -> Path | None:
        """The folder of a path inside the container, when it lies in a volume."""
        changed = self(inside)
        return Path(changed) if changed != inside else None


def expand(text: str, variables: dict[str, str]) -> str:
    """`$(VAR)`; an unknown one stays as it is, `$$` is a dollar."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return _REFERENCE.sub(replace, text)


async def build_environment(client: Client, pod: Object, container: Object, around: Surroundings) -> dict[str, str]:
    """The variables of envFrom, then those of env, on top of what the node gives. Raises ConfigurationError."""
    variables = dict(around.base)
    namespace = pod["metadata"]["namespace"]
    for source in container.get("envFrom") or []:
        for kind, resource in (("configMapRef", CONFIG_MAPS), ("secretRef", SECRETS)):
            if kind in source:
                data = await _data(client, resource, namespace, source[kind])
                prefix = source.get("prefix", "")
                variables |= {prefix + key: value for key, value in (data or {}).items()}
    for entry in container.get("env") or []:
        if "valueFrom" not in entry:
            variables[entry["name"]] = expand(entry.get("value") or "", variables)
            continue
        value = await _value_from(client, pod, container, entry["valueFrom"], around)
        if value is not None:
            variables[entry["name"]] = value
    return variables


async def _value_from(
    client: Client, pod: Object, container: Object, source: Object, around: Surroundings
) -> str | None:
    if "fieldRef" in source:
        return field_value(pod, source["fieldRef"]["fieldPath"], around.pod_ip, around.host_ip)
    if "resourceFieldRef" in source:
        name = source["resourceFieldRef"].get("containerName") or container["name"]
        return resource_value(pod, name, source["resourceFieldRef"])
    for kind, resource in (("configMapKeyRef", CONFIG_MAPS), ("secretKeyRef", SECRETS)):
        if kind in source:
            reference, namespace = source[kind], pod["metadata"]["namespace"]
            data = await _data(client, resource, namespace, reference)
            if data is not None and reference["key"] in data:
                return data[reference["key"]]
            if reference.get("optional"):
                return None
            where = f"{_word(resource)} {namespace}/{reference['name']}"
            raise ConfigurationError(f"couldn't find key {reference['key']} in {where}")
    raise ConfigurationError(f"unsupported valueFrom: {', '.join(source)}")


async def _data(client: Client, resource: Resource, namespace: str, reference: Object) -> dict[str, str] | None:
    try:
        item = await client.get(resource, reference["name"], namespace)
    except ApiError as error:
        if error.status != 404:
            raise
        if reference.get("optional"):
            return None
        word = _word(resource).lower()
        raise ConfigurationError(f'{word} "{reference["name"]}" not found') from error
    data = item.get("data") or {}
    if resource is SECRETS:
        return {key: base64.b64decode(value).decode() for key, value in data.items()}
    return data


def _word(resource: Resource) -> str:
    return resource.kind


def service_variables(services: list[Object]) -> dict[str, str]:
    """The variables of enableServiceLinks, in the form of Docker's links: `VLLM_SERVICE_HOST`, `VLLM_PORT`, …"""
    variables = {}
    for service in services:
        address = service["spec"].get("clusterIP")
        if not address or address == "None" or not service["spec"].get("ports"):
            continue
        name = service["metadata"]["name"].upper().replace("-", "_")
        ports = service["spec"]["ports"]
        variables[f"{name}_SERVICE_HOST"] = address
        variables[f"{name}_SERVICE_PORT"] = str(ports[0]["port"])
        variables[f"{name}_PORT"] = f"{ports[0].get('protocol', 'TCP').lower()}://{address}:{ports[0]['port']}"
        for port in ports:
            protocol = port.get("protocol", "TCP")
            prefix = f"{name}_PORT_{port['port']}_{protocol}"
            if port.get("name"):
                variables[f"{name}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = str(port["port"])
            variables[prefix] = f"{protocol.lower()}://{address}:{port['port']}"
            variables[f"{prefix}_PROTO"] = protocol.lower()
            variables[f"{prefix}_PORT"] = str(port["port"])
            variables[f"{prefix}_ADDR"] = address
    return variables
