"""Pod Security admission: what the labels of a namespace demand of the pods in it.

Follows k8s.io/pod-security-admission v0.35 in its checks, their order and their words, with these left out: AppArmor,
/proc mounts, SELinux, sysctls, Windows, and pods in a user namespace of their own. `enforce` refuses pods; `warn` warns
of pods and of what makes them; `audit` shows nowhere here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from emulated_cloud.kubernetes.apiserver import errors
from emulated_cloud.kubernetes.apiserver.errors import Cause

Object = dict[str, Any]

_PREFIX = "pod-security.kubernetes.io/"
_LEVELS = ("privileged", "baseline", "restricted")
_TEMPLATES = {"DaemonSet", "Deployment", "Job", "ReplicaSet", "ReplicationController", "StatefulSet"}
_DEFAULT_CAPABILITIES = {
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP",
    "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}  # fmt: skip
_RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip


def label_causes(labels: dict[str, str]) -> list[Cause]:
    """What is wrong with a namespace's labels."""
    found = []
    for mode in ("enforce", "audit", "warn"):
        level, version = labels.get(_PREFIX + mode), labels.get(f"{_PREFIX}{mode}-version")
        if level is not None and level not in _LEVELS:
            detail = "must be one of " + ", ".join(_LEVELS)
            found.append(errors.invalid_value(f"metadata.labels[{_PREFIX}{mode}]", level, detail))
        if version is not None and not re.fullmatch(r"latest|v1\.(0|[1-9][0-9]*)", version):
            field = f"metadata.labels[{_PREFIX}{mode}-version]"
            found.append(errors.invalid_value(field, version, 'must be "latest" or "v1.x"'))
    return found


def admit(kind: str, item: Object, labels: dict[str, str], warnings: list[str]) -> None:
    """Judges a new pod, or a template of pods, by its namespace's labels; adds to `warnings`. Raises ApiError 403."""
    if kind == "Pod":
        level, policy = _policy(labels, "enforce")
        if words := _violations(level, item["spec"]):
            raise errors.forbidden("", "pods", item["metadata"]["name"], f'violates PodSecurity "{policy}": {words}')
    spec = _pod_spec(kind, item)
    level, policy = _policy(labels, "warn")
    if spec is not None and (words := _violations(level, spec)):
        warnings.append(f'would violate PodSecurity "{policy}": {words}')


def _policy(labels: dict[str, str], mode: str) -> tuple[str, str]:
    """Level, and level with version as messages name it. Whoever enforces and says nothing else is warned as much."""
    if mode == "warn" and _PREFIX + "warn" not in labels:
        mode = "enforce"
    level = labels.get(_PREFIX + mode, "privileged")
    return level, f"{level}:{labels.get(f'{_PREFIX}{mode}-version', 'latest')}"


def _pod_spec(kind: str, item: Object) -> Object | None:
    if kind == "Pod":
        return item["spec"]
    spec = item.get("spec", {})
    if kind == "CronJob":
        spec = spec.get("jobTemplate", {}).get("spec", {})
    elif kind not in _TEMPLATES:
        return None
    return spec.get("template", {}).get("spec")


def _violations(level: str, spec: Object) -> str:
    checks = {"baseline": _BASELINE, "restricted": _RESTRICTED}.get(level, ())
    found = [(reason, check(spec)) for reason, check in checks]
    return ", ".join(f"{reason} ({detail})" for reason, detail in found if detail)


# -- checks: each says what is wrong, or nothing -----------------------------------------------------------------


def _containers(spec: Object) -> Iterable[tuple[str, Object]]:
    """(name, security context) of all of them, in the order in which they are named."""
    for container in _all(spec):
        yield container["name"], container.get("securityContext", {})


def _all(spec: Object) -> list[Object]:
    return [*spec.get("initContainers", []), *spec.get("containers", [])]


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(errors.quoted(name) for name in names)


def _named(singular: str, names: list[str]) -> str:
    return f"{singular}{'' if len(names) == 1 else 's'} {_quoted(names)}"


def _use(what: str, names: list[str]) -> str:
    return f"{_named(what, names)} {'uses' if len(names) == 1 else 'use'}"


def _added_capabilities(spec: Object, allowed: set[str]) -> str:
    bad = {name: set(context.get("capabilities", {}).get("add", [])) - allowed for name, context in _containers(spec)}
    names = [name for name, added in bad.items() if added]
    added = sorted(set().union(*bad.values()))
    return (
        f"{_named('container', names)} must not include {_quoted(added)} in securityContext.capabilities.add"
        if names
        else ""
    )


def _capabilities(spec: Object) -> str:
    lacking = [
        name for name, context in _containers(spec) if "ALL" not in context.get("capabilities", {}).get("drop", [])
    ]
    drop = f'{_named("container", lacking)} must set securityContext.capabilities.drop=["ALL"]' if lacking else ""
    return "; ".join(filter(None, [drop, _added_capabilities(spec, {"NET_BIND_SERVICE"})]))


def _host_namespaces(spec: Object) -> str:
    return ", ".join(f"{name}=true" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name))


def _host_paths(spec: Object) -> str:
    names = [volume["name"] for volume in spec.get("volumes", []) if "hostPath" in volume]
    return _named("volume", names) if names else ""


def _host_ports(spec: Object) -> str:
    ports = {
        container["name"]: {str(port["hostPort"]) for port in container.get("ports", []) if port.get("hostPort")}
        for container in _all(spec)
    }
    names = [name for name, found in ports.items() if found]
    found = sorted(set().union(*ports.values()))
    return f"{_use('container', names)} hostPort{'' if len(found) == 1 else 's'} {', '.join(found)}" if names else ""


def _probe_hosts(spec: Object) -> str:
    hosts: dict[str, set[str]] = {}
    for container in _all(spec):
        handlers = [container.get(f"{name}Probe", {}) for name in ("liveness", "readiness", "startup")]
        handlers += container.get("lifecycle", {}).values()
        parts = [each.get(sort, {}) for each in handlers if isinstance(each, dict) for sort in ("httpGet", "tcpSocket")]
        hosts[container["name"]] = {part["host"] for part in parts if part.get("host")}
    names, found = sorted(name for name, used in hosts.items() if used), sorted(set().union(*hosts.values()))
    return f"{_use('container', names)} {_named('probe or lifecycle host', found)}" if names else ""


def _privileged(spec: Object) -> str:
    names = [name for name, context in _containers(spec) if context.get("privileged")]
    return f"{_named('container', names)} must not set securityContext.privileged=true" if names else ""


def _escalation(spec: Object) -> str:
    names = [name for name, context in _containers(spec) if context.get("allowPrivilegeEscalation") is not False]
    return f"{_named('container', names)} must set securityContext.allowPrivilegeEscalation=false" if names else ""


def _volume_types(spec: Object) -> str:
    bad = {
        volume["name"]: sort
        for volume in spec.get("volumes", [])
        for sort in volume
        if sort != "name" and sort not in _RESTRICTED_VOLUMES
    }
    return f"{_use('volume', list(bad))} {_named('restricted volume type', sorted(set(bad.values())))}" if bad else ""


def _non_root(spec: Object) -> str:
    of_pod = spec.get("securityContext", {}).get("runAsNonRoot")
    wrong = ["pod"] if of_pod is False else []
    bad = [name for name, context in _containers(spec) if context.get("runAsNonRoot") is False]
    wrong += [_named("container", bad)] if bad else []
    if wrong:
        return f"{' and '.join(wrong)} must not set securityContext.runAsNonRoot=false"
    silent = [name for name, context in _containers(spec) if "runAsNonRoot" not in context and not of_pod]
    return f"pod or {_named('container', silent)} must set securityContext.runAsNonRoot=true" if silent else ""


def _user(spec: Object) -> str:
    wrong = ["pod"] if spec.get("securityContext", {}).get("runAsUser") == 0 else []
    bad = [name for name, context in _containers(spec) if context.get("runAsUser") == 0]
    wrong += [_named("container", bad)] if bad else []
    return f"{' and '.join(wrong)} must not set runAsUser=0" if wrong else ""


def _seccomp(spec: Object, *, required: bool) -> str:
    of_pod = spec.get("securityContext", {}).get("seccompProfile", {}).get("type")
    of_each = {name: context.get("seccompProfile", {}).get("type") for name, context in _containers(spec)}
    fine = (None, "RuntimeDefault", "Localhost")
    bad = [name for name, profile in of_each.items() if profile not in fine]
    wrong = (["pod"] if of_pod not in fine else []) + ([_named("container", bad)] if bad else [])
    if wrong:
        values = sorted({profile for profile in (of_pod, *of_each.values()) if profile not in fine})
        return f"{' and '.join(wrong)} must not set securityContext.seccompProfile.type to {_quoted(values)}"
    silent = [name for name, profile in of_each.items() if profile is None and of_pod is None]
    if not silent or not required:
        return ""
    wanted = 'must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost"'
    return f"pod or {_named('container', silent)} {wanted}"


_Check = tuple[str, Callable[[Object], str]]
_EVERYWHERE: tuple[_Check, ...] = (
    ("host namespaces", _host_namespaces),
    ("hostPort", _host_ports),
    ("probe or lifecycle host", _probe_hosts),
    ("privileged", _privileged),
)
_BASELINE: tuple[_Check, ...] = (
    ("non-default capabilities", lambda spec: _added_capabilities(spec, _DEFAULT_CAPABILITIES)),
    _EVERYWHERE[0],
    ("hostPath volumes", _host_paths),
    *_EVERYWHERE[1:],
    ("seccompProfile", lambda spec: _seccomp(spec, required=False)),
)
_RESTRICTED: tuple[_Check, ...] = (
    *_EVERYWHERE,
    ("allowPrivilegeEscalation != false", _escalation),
    ("unrestricted capabilities", _capabilities),
    ("restricted volume types", _volume_types),
    ("runAsNonRoot != true", _non_root),
    ("runAsUser=0", _user),
    ("seccompProfile", lambda spec: _seccomp(spec, required=True)),
)
