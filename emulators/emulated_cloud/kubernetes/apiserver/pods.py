"""What only pods have: their log (from the kubelet), binding to a node, eviction, and no way into them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from emulated_cloud.kubernetes.apiserver import errors
from emulated_cloud.kubernetes.apiserver.deletion import Wish
from emulated_cloud.kubernetes.apiserver.reading import truth
from emulated_cloud.kubernetes.apiserver.resources import Resource
from emulated_cloud.kubernetes.apiserver.schema import copied
from emulated_cloud.kubernetes.apiserver.storage import Storage, now
from emulated_cloud.kubernetes.selectors import matches

if TYPE_CHECKING:
    import aiohttp

Object = dict[str, Any]

_LOG_SWITCHES = ("follow", "previous", "timestamps")
_LOG_LIMITS = ("sinceSeconds", "sinceTime", "tailLines", "limitBytes")
_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"


def log_url(storage: Storage, pod: Object, query: dict[str, str]) -> str | None:
    """Where the node's kubelet serves a container's log; None while the pod has no node. Raises ApiError."""
    metadata, spec = pod["metadata"], pod["spec"]
    container = _container(pod, query.get("container", ""))
    node_name = spec.get("nodeName")
    if not node_name:
        return None
    node = storage.store.get(("", "nodes"), "", node_name)
    if node is None:
        raise errors.not_found("", "pods", node_name)
    status = node.get("status", {})
    addresses = {each["type"]: each["address"] for each in status.get("addresses", [])}
    port = status.get("daemonEndpoints", {}).get("kubeletEndpoint", {}).get("Port")
    address = addresses.get("InternalIP")
    if not address or not port:
        raise errors.internal(f"no preferred addresses found; known addresses: {sorted(addresses)}")
    options = urlencode(
        {name: "true" for name in _LOG_SWITCHES if truth(query, name)}
        | {name: query[name] for name in _LOG_LIMITS if query.get(name)}
    )
    path = f"/containerLogs/{metadata['namespace']}/{metadata['name']}/{container}"
    return f"https://{address}:{port}{path}" + (f"?{options}" if options else "")


def _container(pod: Object, wanted: str) -> str:
    metadata, spec = pod["metadata"], pod["spec"]
    containers = [each["name"] for each in spec.get("containers", [])]
    init = [each["name"] for each in spec.get("initContainers", [])]
    if wanted:
        if wanted not in containers + init:
            raise errors.bad_request(f"container {wanted} is not valid for pod {metadata['name']}")
        return wanted
    default = metadata.get("annotations", {}).get(_DEFAULT_CONTAINER)
    if default in containers:
        return default
    if len(containers) == 1:
        return containers[0]
    choices = f"choose one of: [{' '.join(containers)}]"
    if init:
        choices += f" or one of the init containers: [{' '.join(init)}]"
    raise errors.bad_request(f"a container name must be specified for pod {metadata['name']}, {choices}")


async def refuse_kubelet_error(pod: Object, answer: aiohttp.ClientResponse) -> None:
    """Raises what the API server makes of a kubelet's answer other than 200."""
    if answer.status == 200:
        return
    text = (await answer.text()).strip()
    if answer.status == 400:
        raise errors.bad_request(text)
    if answer.status == 404:
        error = errors.not_found("", "pods", pod["metadata"]["name"])
        raise errors.ApiError(
            404, "NotFound", f"the server could not find the requested resource ({text})", error.details
        )
    raise errors.internal(f"the kubelet answered {answer.status}: {text}")


WAYS_IN = ("attach", "exec", "portforward")


def no_way_in(pod: str) -> errors.ApiError:
    """As the real server refuses by a policy (emulated_cloud/real/config/gke.yaml)."""
    words = "pods are processes here, and nothing leads into one (their logs are served)"
    why = f"ValidatingAdmissionPolicy 'no-way-in' with binding 'no-way-in' denied request: {words}"
    return errors.forbidden("", "pods", pod, why)


def bind(storage: Storage, resource: Resource, pod: Object, binding: Object) -> Object:
    """Puts a pod on a node, once. The answer is a Status."""
    name, target = pod["metadata"]["name"], binding.get("target") or {}
    node = target.get("name")
    if not node:
        raise errors.invalid("", "Binding", name, [errors.required("target.name")])
    if target.get("kind") not in (None, "", "Node"):
        cause = errors.not_supported("target.kind", target["kind"], ["Node", "<empty>"])
        raise errors.invalid("", "Binding", name, [cause])
    uid = (binding.get("metadata") or {}).get("uid")
    if uid and uid != pod["metadata"]["uid"]:
        why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {pod['metadata']['uid']}"
        raise errors.conflict("", "pods/binding", name, why)
    if pod["metadata"].get("deletionTimestamp"):
        raise errors.conflict("", "pods/binding", name, f"pod {name} is being deleted, cannot be assigned to a host")
    if pod["spec"].get("nodeName"):
        why = f'pod {name} is already assigned to node "{pod["spec"]["nodeName"]}"'
        raise errors.conflict("", "pods/binding", name, why)
    bound = copied(pod)
    bound["spec"]["nodeName"] = node
    annotations = (binding.get("metadata") or {}).get("annotations") or {}
    if annotations:
        bound["metadata"]["annotations"] = {**bound["metadata"].get("annotations", {}), **annotations}
    _set_condition(bound, {"type": "PodScheduled", "status": "True"})
    storage.store.put(resource.storage_key, bound)
    return created_status()


def created_status() -> Object:
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def _set_condition(pod: Object, condition: Object) -> None:
    conditions = pod.setdefault("status", {}).setdefault("conditions", [])
    made = {"lastProbeTime": None, "lastTransitionTime": now(), **condition}
    for index, existing in enumerate(conditions):
        if existing["type"] == condition["type"]:
            same = existing.get("status") == condition["status"]
            conditions[index] = {**made, "lastTransitionTime": existing["lastTransitionTime"]} if same else made
            return
    conditions.append(made)


def evict(storage: Storage, resource: Resource, pod: Object, eviction: Object, dry_run: bool) -> Object:
    """Deletes a pod unless its disruption budget forbids (429). The answer is a Status."""
    wish = Wish.of(eviction.get("deleteOptions") or {})
    if not _is_free_to_go(pod):
        _spend_budget(storage, pod, dry_run)
    if not dry_run and pod["spec"].get("nodeName"):
        marked = copied(pod)
        reason, message = "EvictionByEvictionAPI", "Eviction API: evicting"
        _set_condition(marked, {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message})
        pod = storage.store.put(resource.storage_key, marked)
    storage.delete(resource, pod, wish, dry_run)
    return created_status()


def _is_free_to_go(pod: Object) -> bool:
    """Pods that are finished, pending or on their way out do not count against a budget."""
    phase = pod.get("status", {}).get("phase")
    return phase in ("Succeeded", "Failed", "Pending") or bool(pod["metadata"].get("deletionTimestamp"))


def _spend_budget(storage: Storage, pod: Object, dry_run: bool) -> None:
    key = ("policy", "poddisruptionbudgets")
    labels = pod["metadata"].get("labels", {})
    budgets = [
        budget
        for budget in storage.store.list(key, pod["metadata"]["namespace"])
        if matches(budget["spec"].get("selector"), labels)
    ]
    if not budgets:
        return
    if len(budgets) > 1:
        raise errors.internal(
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
        )
    budget = budgets[0]
    name, status = budget["metadata"]["name"], budget.get("status", {})
    ready = any(
        each["type"] == "Ready" and each["status"] == "True" for each in pod.get("status", {}).get("conditions") or []
    )
    if not ready and status.get("currentHealthy", 0) >= status.get("desiredHealthy", 0) > 0:
        return
    allowed = status.get("disruptionsAllowed", 0)
    if status.get("observedGeneration", 0) < budget["metadata"].get("generation", 0):
        why = f"The disruption budget {name} is still being processed by the server."
    elif allowed <= 0:
        why = (
            f"The disruption budget {name} needs {status.get('desiredHealthy', 0)} healthy pods and has "
            f"{status.get('currentHealthy', 0)} currently"
        )
    else:
        if not dry_run:
            spent = {**status, "disruptionsAllowed": allowed - 1}
            spent["disruptedPods"] = {**status.get("disruptedPods", {}), pod["metadata"]["name"]: now()}
            storage.store.put(key, {**budget, "metadata": dict(budget["metadata"]), "status": spent})
        return
    message = "Cannot evict pod as it would violate the pod's disruption budget."
    details = {"causes": [{"reason": "DisruptionBudget", "message": why}]}
    raise errors.ApiError(429, "TooManyRequests", message, details)
