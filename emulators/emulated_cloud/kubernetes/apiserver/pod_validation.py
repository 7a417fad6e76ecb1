"""Validation of pod specs, in pods and in templates."""

from __future__ import annotations

from typing import Any

from emulated_cloud.kubernetes.apiserver import errors, names
from emulated_cloud.kubernetes.apiserver.errors import Cause, forbidden_value, invalid_value, not_supported, required
from emulated_cloud.kubernetes.apiserver.schema import copied
from emulated_cloud.kubernetes.quantity import parse_quantity

Object = dict[str, Any]

_RESTART_POLICIES = ("Always", "OnFailure", "Never")
_DNS_POLICIES = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
_PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_PROTOCOLS = ("SCTP", "TCP", "UDP")


def port_causes(port: Any, path: str) -> list[Cause]:
    if isinstance(port, int) and 1 <= port <= 65535:
        return []
    return [invalid_value(path, port, "must be between 1 and 65535, inclusive")]


def quantity_causes(amounts: Object, path: str) -> list[Cause]:
    return [
        invalid_value(f"{path}[{name}]", amount, "must be greater than or equal to 0")
        for name, amount in sorted(amounts.items())
        if parse_quantity(amount) < 0
    ]


def spec_causes(spec: Object, path: str) -> list[Cause]:
    """What is wrong with a (defaulted) pod spec."""
    found: list[Cause] = []
    volumes: set[str] = set()
    for index, volume in enumerate(spec.get("volumes", [])):
        found += _volume(volume, f"{path}.volumes[{index}]", volumes)
    if not spec.get("containers"):
        found.append(required(f"{path}.containers"))
    seen: set[str] = set()
    for part in ("containers", "initContainers"):
        for index, container in enumerate(spec.get(part, [])):
            found += _container(container, f"{path}.{part}[{index}]", seen, volumes, init=part == "initContainers")
    if spec.get("restartPolicy") not in _RESTART_POLICIES:
        field = f"{path}.restartPolicy"
        found.append(_unsorted(field, spec.get("restartPolicy"), _RESTART_POLICIES))
    if spec.get("dnsPolicy") not in _DNS_POLICIES:
        found.append(not_supported(f"{path}.dnsPolicy", spec.get("dnsPolicy"), _DNS_POLICIES))
    grace = spec.get("terminationGracePeriodSeconds", 0)
    if grace < 0:
        detail = "must be greater than or equal to 0"
        found.append(invalid_value(f"{path}.terminationGracePeriodSeconds", grace, detail))
    found += names.label_causes(spec.get("nodeSelector", {}), f"{path}.nodeSelector")
    account = spec.get("serviceAccountName")
    if account:
        found += [invalid_value(f"{path}.serviceAccountName", account, words) for words in names.dns_subdomain(account)]
    for index, toleration in enumerate(spec.get("tolerations", [])):
        found += _toleration(toleration, f"{path}.tolerations[{index}]")
    return found


def _unsorted(field: str, value: Any, choices: tuple[str, ...]) -> Cause:
    """Some choices are listed in the order of the source, not sorted."""
    words = ", ".join(errors.quoted(choice) for choice in choices)
    return Cause(
        "FieldValueNotSupported", f"Unsupported value: {errors.quoted(value)}: supported values: {words}", field
    )


def _volume(volume: Object, path: str, seen: set[str]) -> list[Cause]:
    found = []
    name = volume.get("name", "")
    if not name:
        found.append(required(f"{path}.name"))
    else:
        found += [invalid_value(f"{path}.name", name, words) for words in names.dns_label(name)]
    if name in seen:
        found.append(errors.duplicate(f"{path}.name", name))
    sources = [part for part in volume if part != "name"]
    for part in sources[1:]:
        found.append(forbidden_value(f"{path}.{part}", "may not specify more than 1 volume type"))
    if "persistentVolumeClaim" in volume and not volume["persistentVolumeClaim"].get("claimName"):
        found.append(required(f"{path}.persistentVolumeClaim.claimName"))
    if "csi" in volume and not volume["csi"].get("driver"):
        found.append(required(f"{path}.csi.driver"))
    if not found:
        seen.add(name)
    return found


def _container(container: Object, path: str, seen: set[str], volumes: set[str], *, init: bool) -> list[Cause]:
    found = []
    name = container.get("name", "")
    if not name:
        found.append(required(f"{path}.name"))
    else:
        found += [invalid_value(f"{path}.name", name, words) for words in names.dns_label(name)]
        if name in seen:
            found.append(errors.duplicate(f"{path}.name", name))
        seen.add(name)
    if not container.get("image"):
        found.append(required(f"{path}.image"))
    elif container["image"] != container["image"].strip():
        detail = "must not have leading or trailing whitespace"
        found.append(invalid_value(f"{path}.image", container["image"], detail))
    policy = container.get("imagePullPolicy")
    found += _ports(container.get("ports", []), f"{path}.ports")
    for index, variable in enumerate(container.get("env", [])):
        found += _variable(variable, f"{path}.env[{index}]")
    found += _mounts(container.get("volumeMounts", []), f"{path}.volumeMounts", volumes)
    if policy not in _PULL_POLICIES:
        found.append(not_supported(f"{path}.imagePullPolicy", policy, _PULL_POLICIES))
    found += _resources(container.get("resources", {}), f"{path}.resources")
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        if probe in container and not init:
            found += _probe(container[probe], f"{path}.{probe}")
    return found


def _ports(ports: list[Object], path: str) -> list[Cause]:
    found = []
    seen: set[str] = set()
    for index, port in enumerate(ports):
        field, name = f"{path}[{index}]", port.get("name", "")
        if name:
            found += [invalid_value(f"{field}.name", name, words) for words in names.port_name(name)]
            if name in seen:
                found.append(errors.duplicate(f"{field}.name", name))
            seen.add(name)
        if not port.get("containerPort"):
            found.append(required(f"{field}.containerPort"))
        else:
            found += port_causes(port["containerPort"], f"{field}.containerPort")
        if port.get("protocol") not in _PROTOCOLS:
            found.append(not_supported(f"{field}.protocol", port.get("protocol"), _PROTOCOLS))
    return found


def _variable(variable: Object, path: str) -> list[Cause]:
    found = []
    if not variable.get("name"):
        found.append(required(f"{path}.name"))
    elif "=" in variable["name"]:
        detail = "a valid environment variable name must consist only of printable ASCII characters other than '='"
        found.append(invalid_value(f"{path}.name", variable["name"], detail))
    source = variable.get("valueFrom")
    if source is not None:
        if len(source) != 1:
            detail = (
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
            )
            found.append(invalid_value(f"{path}.valueFrom", "", detail))
        elif variable.get("value"):
            found.append(invalid_value(f"{path}.valueFrom", "", "may not be specified when `value` is not empty"))
    return found


def _mounts(mounts: list[Object], path: str, volumes: set[str]) -> list[Cause]:
    found = []
    seen: set[str] = set()
    for index, mount in enumerate(mounts):
        field = f"{path}[{index}]"
        if not mount.get("name"):
            found.append(required(f"{field}.name"))
        elif mount["name"] not in volumes:
            found.append(errors.not_found_value(f"{field}.name", mount["name"]))
        where = mount.get("mountPath", "")
        if not where:
            found.append(required(f"{field}.mountPath"))
        elif where in seen:
            found.append(invalid_value(f"{field}.mountPath", where, "must be unique"))
        seen.add(where)
    return found


def _probe(probe: Object, path: str) -> list[Cause]:
    handlers = [name for name in ("exec", "grpc", "httpGet", "tcpSocket") if name in probe]
    found = []
    if not handlers:
        found.append(required(path, "must specify a handler type"))
    for handler in handlers[1:]:
        found.append(forbidden_value(f"{path}.{handler}", "may not specify more than 1 handler type"))
    for name in ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"):
        value = probe.get(name, 0)
        if value < 0:
            found.append(invalid_value(f"{path}.{name}", value, "must be greater than or equal to 0"))
    if not path.endswith("readinessProbe") and probe.get("successThreshold", 1) != 1:
        found.append(invalid_value(f"{path}.successThreshold", probe["successThreshold"], "must be 1"))
    return found


def _resources(resources: Object, path: str) -> list[Cause]:
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    found = quantity_causes(limits, f"{path}.limits") + quantity_causes(requests, f"{path}.requests")
    for name, amount in sorted(requests.items()):
        if name not in limits:
            if "/" in name and not name.startswith("hugepages-"):
                found.append(required(f"{path}.limits", "Limit must be set for non overcommitable resources"))
            continue
        wanted, limit = parse_quantity(amount), parse_quantity(limits[name])
        if "/" in name and wanted != limit:
            detail = f"must be equal to {name} limit of {limits[name]}"
            found.append(invalid_value(f"{path}.requests", amount, detail))
        elif wanted > limit:
            detail = f"must be less than or equal to {name} limit of {limits[name]}"
            found.append(invalid_value(f"{path}.requests", amount, detail))
    return found


def _toleration(toleration: Object, path: str) -> list[Cause]:
    found = []
    operator = toleration.get("operator") or "Equal"
    if operator not in ("Equal", "Exists"):
        found.append(not_supported(f"{path}.operator", operator, ("Equal", "Exists")))
    if not toleration.get("key") and operator != "Exists":
        detail = 'operator must be Exists when `key` is empty, which means "match all values and all keys"'
        found.append(invalid_value(f"{path}.operator", operator, detail))
    if operator == "Exists" and toleration.get("value"):
        found.append(
            invalid_value(f"{path}.operator", toleration["value"], "value must be empty when `operator` is 'Exists'")
        )
    effect = toleration.get("effect")
    if effect and effect not in _EFFECTS:
        found.append(_unsorted(f"{path}.effect", effect, _EFFECTS))
    if toleration.get("tolerationSeconds") is not None and effect != "NoExecute":
        detail = "effect must be 'NoExecute' when `tolerationSeconds` is set"
        found.append(invalid_value(f"{path}.effect", effect or "", detail))
    return found


_CHANGEABLE_WORDS = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)


def change_causes(item: Object, live: Object) -> list[Cause]:
    """A pod's spec stays as it is, but for images, deadline and added tolerations."""
    before, after = copied(live["spec"]), copied(item["spec"])
    for spec in (before, after):
        spec.pop("activeDeadlineSeconds", None)
        for part in ("containers", "initContainers"):
            for container in spec.get(part, []):
                container.pop("image", None)
                # Its default follows the image's tag.
                container.pop("imagePullPolicy", None)
    found = []
    had = before.pop("tolerations", [])
    has = after.pop("tolerations", [])
    if any(toleration not in has for toleration in had):
        found.append(
            forbidden_value("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds")
        )
    if len(live["spec"].get("containers", [])) != len(item["spec"].get("containers", [])):
        found.append(forbidden_value("spec.containers", "pod updates may not add or remove containers"))
    elif before != after:
        found.append(forbidden_value("spec", _CHANGEABLE_WORDS))
    return found
