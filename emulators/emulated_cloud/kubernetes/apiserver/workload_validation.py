"""Validation of what runs pods: Deployments and their like, Jobs, autoscalers, disruption budgets."""

from __future__ import annotations

import re
from typing import Any

from emulated_cloud.kubernetes.apiserver import names, pod_validation
from emulated_cloud.kubernetes.apiserver.errors import Cause, forbidden_value, invalid_value, not_supported, required
from emulated_cloud.kubernetes.selectors import matches

Object = dict[str, Any]

IMMUTABLE = "field is immutable"


def _at(item: Object, path: str) -> Any:
    value: Any = item
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _non_negative(item: Object, *paths: str) -> list[Cause]:
    found = []
    for path in paths:
        value = _at(item, path)
        if isinstance(value, int) and value < 0:
            found.append(invalid_value(path, value, "must be greater than or equal to 0"))
    return found


def selector_and_template(item: Object, restart: tuple[str, ...] = ("Always",)) -> list[Cause]:
    spec = item["spec"]
    selector, template = spec.get("selector"), spec.get("template")
    found = []
    if selector is None:
        found.append(required("spec.selector"))
    else:
        found += selector_causes(selector, "spec.selector")
        if not selector.get("matchLabels") and not selector.get("matchExpressions"):
            detail = f"empty selector is invalid for {item['kind'].lower()}"
            found.append(invalid_value("spec.selector", selector, detail))
    if template is None:
        return [*found, required("spec.template")]
    labels = template.get("metadata", {}).get("labels")
    if not _matches(selector, labels or {}):
        detail = "`selector` does not match template `labels`"
        found.append(invalid_value("spec.template.metadata.labels", labels, detail))
    found += _template(template, "spec.template")
    policy = template.get("spec", {}).get("restartPolicy")
    if policy not in restart and "Always" in restart:
        found.append(not_supported("spec.template.spec.restartPolicy", policy, restart))
    return found


def _template(template: Object, path: str) -> list[Cause]:
    labels = template.get("metadata", {}).get("labels", {})
    return names.label_causes(labels, f"{path}.labels") + pod_validation.spec_causes(
        template.get("spec", {}), f"{path}.spec"
    )


def _matches(selector: Object | None, labels: dict[str, str]) -> bool:
    """Unlike elsewhere an empty selector, which would take every pod, matches nothing."""
    return bool(selector) and matches(selector, labels)


def selector_causes(selector: Object, path: str) -> list[Cause]:
    found = names.label_causes(selector.get("matchLabels", {}), f"{path}.matchLabels")
    for index, each in enumerate(selector.get("matchExpressions", [])):
        field = f"{path}.matchExpressions[{index}]"
        operator, values = each.get("operator"), each.get("values")
        if operator not in ("In", "NotIn", "Exists", "DoesNotExist"):
            found.append(invalid_value(f"{field}.operator", operator, "not a valid selector operator"))
        elif operator in ("In", "NotIn") and not values:
            found.append(required(f"{field}.values", "must be specified when `operator` is 'In' or 'NotIn'"))
        elif operator in ("Exists", "DoesNotExist") and values:
            detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
            found.append(forbidden_value(f"{field}.values", detail))
    return found


def deployment(item: Object) -> list[Cause]:
    spec = item["spec"]
    found = _non_negative(item, "spec.replicas")
    found += selector_and_template(item)
    strategy = spec["strategy"]
    if strategy["type"] not in ("Recreate", "RollingUpdate"):
        shown = {"Type": strategy["type"], "RollingUpdate": None}
        found.append(not_supported("spec.strategy", shown, ("Recreate", "RollingUpdate")))
    elif strategy["type"] == "Recreate" and "rollingUpdate" in strategy:
        detail = "may not be specified when strategy `type` is 'Recreate'"
        found.append(forbidden_value("spec.strategy.rollingUpdate", detail))
    elif strategy["type"] == "RollingUpdate":
        found += _rolling_update(strategy["rollingUpdate"], "spec.strategy.rollingUpdate")
    found += _non_negative(item, "spec.minReadySeconds", "spec.revisionHistoryLimit", "spec.progressDeadlineSeconds")
    if spec.get("progressDeadlineSeconds", 600) <= spec.get("minReadySeconds", 0):
        detail = "must be greater than minReadySeconds"
        found.append(invalid_value("spec.progressDeadlineSeconds", spec["progressDeadlineSeconds"], detail))
    return found


def _percent(value: Any, field: str) -> list[Cause]:
    if not isinstance(value, str) or re.fullmatch(r"[0-9]+%", value):
        return []
    detail = (
        "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used "
        "for validation is '[0-9]+%')"
    )
    return [invalid_value(field, value, detail)]


def _rolling_update(update: Object, path: str) -> list[Cause]:
    found = []
    for name in ("maxUnavailable", "maxSurge"):
        found += _percent(update.get(name), f"{path}.{name}")
    zero = (0, "0%")
    if update.get("maxUnavailable") in zero and update.get("maxSurge") in zero:
        detail = "may not be 0 when `maxSurge` is 0"
        found.append(invalid_value(f"{path}.maxUnavailable", update["maxUnavailable"], detail))
    return found


def replicated(item: Object) -> list[Cause]:
    return _non_negative(item, "spec.replicas", "spec.minReadySeconds") + selector_and_template(item)


def job(item: Object) -> list[Cause]:
    spec = item["spec"]
    found = _job_spec(spec, "spec")
    template = spec.get("template", {})
    # The selector is made by the server, so it is wrong only where it was made by hand.
    if spec.get("manualSelector") and not _matches(
        spec.get("selector"), template.get("metadata", {}).get("labels", {})
    ):
        labels = template.get("metadata", {}).get("labels")
        detail = "`selector` does not match template `labels`"
        found.append(invalid_value("spec.template.metadata.labels", labels, detail))
    if len(item["metadata"]["name"]) > 63 and spec.get("completionMode") != "Indexed":
        # The name becomes a label of the pods.
        found += [
            invalid_value("spec.template.labels", item["metadata"]["name"], words)
            for words in names.label_value(item["metadata"]["name"])
            if not any(cause.field == "spec.template.labels" for cause in found)
        ]
    return found


def _job_spec(spec: Object, path: str) -> list[Cause]:
    found = []
    limits = ("parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished")
    for name in limits:
        if isinstance(spec.get(name), int) and spec[name] < 0:
            found.append(invalid_value(f"{path}.{name}", spec[name], "must be greater than or equal to 0"))
    template = spec.get("template")
    if template is None:
        return [*found, required(f"{path}.template")]
    found += _template(template, f"{path}.template")
    policy = template.get("spec", {}).get("restartPolicy")
    if policy == "Always":
        # "Always" is what an absent policy defaults to.
        field = f"{path}.template.spec.restartPolicy"
        found.append(required(field, 'valid values: "OnFailure", "Never"'))
    return found


def cron_job(item: Object) -> list[Cause]:
    spec = item["spec"]
    found = []
    if not spec.get("schedule"):
        found.append(required("spec.schedule"))
    elif len(spec["schedule"].split()) not in (5, 6, 7) and not spec["schedule"].startswith("@"):
        detail = f"expected exactly 5 fields, found {len(spec['schedule'].split())}: [{spec['schedule']}]"
        found.append(invalid_value("spec.schedule", spec["schedule"], detail))
    if spec["concurrencyPolicy"] not in ("Allow", "Forbid", "Replace"):
        choices = ("Allow", "Forbid", "Replace")
        found.append(not_supported("spec.concurrencyPolicy", spec["concurrencyPolicy"], choices))
    if len(item["metadata"]["name"]) > 52:
        detail = "must be no more than 52 characters"
        found.append(invalid_value("metadata.name", item["metadata"]["name"], detail))
    return found + _job_spec(spec.get("jobTemplate", {}).get("spec", {}), "spec.jobTemplate.spec")


def job_change(item: Object, live: Object) -> list[Cause]:
    before, after = live["spec"], item["spec"]
    found = []
    if before.get("completions") != after.get("completions") and before.get("completionMode") != "Indexed":
        found.append(invalid_value("spec.completions", after.get("completions"), IMMUTABLE))
    if before.get("template") != after.get("template") and not before.get("suspend"):
        found.append(invalid_value("spec.template", after.get("template"), IMMUTABLE))
    return found


def stateful_set_change(item: Object, live: Object) -> list[Cause]:
    changeable = {
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    }
    fixed = [{name: value for name, value in each["spec"].items() if name not in changeable} for each in (item, live)]
    if fixed[0] == fixed[1]:
        return []
    detail = (
        "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', "
        "'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"
    )
    return [forbidden_value("spec", detail)]


def autoscaler(item: Object) -> list[Cause]:
    spec = item["spec"]
    found = []
    low, high = spec.get("minReplicas", 1), spec.get("maxReplicas", 0)
    if low < 1:
        found.append(invalid_value("spec.minReplicas", low, "must be greater than or equal to 1"))
    if high < 1:
        found.append(invalid_value("spec.maxReplicas", high, "must be greater than 0"))
    elif high < low:
        detail = "must be greater than or equal to `minReplicas`"
        found.append(invalid_value("spec.maxReplicas", high, detail))
    kinds = ("ContainerResource", "External", "Object", "Pods", "Resource")
    for index, metric in enumerate(spec.get("metrics", [])):
        if metric.get("type") not in kinds:
            found.append(not_supported(f"spec.metrics[{index}].type", metric.get("type"), kinds))
    return found


def budget(item: Object) -> list[Cause]:
    spec = item["spec"]
    if "minAvailable" in spec and "maxUnavailable" in spec:
        detail = "minAvailable and maxUnavailable cannot be both set"
        return [invalid_value("spec", spec, detail)]
    found = []
    for name in ("minAvailable", "maxUnavailable"):
        value = spec.get(name)
        if isinstance(value, int) and value < 0:
            found.append(invalid_value(f"spec.{name}", value, "must be greater than or equal to 0"))
        if isinstance(value, str):
            found += _percent(value, f"spec.{name}")
            if re.fullmatch("[0-9]+%", value) and int(value[:-1]) > 100:
                found.append(invalid_value(f"spec.{name}", value, "must not be greater than 100%"))
    policy = spec.get("unhealthyPodEvictionPolicy")
    if policy not in (None, "AlwaysAllow", "IfHealthyBudget"):
        choices = ("AlwaysAllow", "IfHealthyBudget")
        found.append(not_supported("spec.unhealthyPodEvictionPolicy", policy, choices))
    return found + selector_causes(spec.get("selector", {}), "spec.selector")
