"""What the controllers compute: quantities, requests, selectors, fits, rolling updates."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from emulated_cloud.kubernetes.controllers.deployment import rolling_bounds
from emulated_cloud.kubernetes.pods import deletion_order
from emulated_cloud.kubernetes.quantity import canonical, parse_quantity
from emulated_cloud.kubernetes.scheduling import (
    NodeState,
    VolumeNeeds,
    misfit,
    node_states,
    pod_requests,
    unschedulable_message,
)
from emulated_cloud.kubernetes.selectors import matches, node_selector_matches, selected, tolerates


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", Fraction(1, 2)), ("10Gi", 10 * 2**30), ("2", 2), ("1e3", 1000), ("1.5k", 1500), (4, 4), ("100E", 10**20)],
)
def test_quantities_are_exact(text, value):
    assert parse_quantity(text) == value


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1000m", "1"),
        ("1500m", "1500m"),
        ("0.5", "500m"),
        (0.5, "500m"),
        (1, "1"),
        ("1024Mi", "1Gi"),
        ("1.5Gi", "1536Mi"),
        ("1000Ki", "1000Ki"),
        ("2000M", "2G"),
        ("100", "100"),
        ("1000", "1k"),
        ("0", "0"),
        ("1e3", "1e3"),
    ],
)
def test_quantities_have_one_form(written, read):
    assert canonical(written) == read
    assert parse_quantity(written) == parse_quantity(read)


@pytest.mark.parametrize("text", ["", "10GB", "1gb", "Gi", "1 Gi", "ten", "1.5.0", "1\n"])
@pytest.mark.parametrize("read", [parse_quantity, canonical])
def test_what_is_not_a_quantity_is_refused(read, text):
    with pytest.raises(ValueError, match="quantity"):
        read(text)


def _pod(requests=None, labels=None, namespace="default", **spec):
    return {
        "metadata": {
            "name": "p",
            "namespace": namespace,
            "labels": labels or {},
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"containers": [{"name": "c", "resources": {"requests": requests or {}}}], **spec},
        "status": {},
    }


def _node(name="n", labels=None, taints=None, **allocatable):
    resources = {"cpu": "4", "memory": "16Gi", "pods": "110", **allocatable}
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"taints": taints or []},
        "status": {"allocatable": resources},
    }


def test_init_containers_count_by_their_largest_and_sidecars_stay():
    pod = _pod({"cpu": "1"})
    pod["spec"]["initContainers"] = [
        {"name": "big", "resources": {"requests": {"cpu": "3"}}},
        {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}},
        {"name": "after", "resources": {"requests": {"cpu": "2"}}},
    ]
    assert pod_requests(pod)["cpu"] == 3
    pod["spec"]["initContainers"][0]["resources"]["requests"]["cpu"] = "1"
    assert pod_requests(pod)["cpu"] == Fraction(5, 2)


def test_a_limit_stands_for_an_absent_request():
    pod = _pod()
    pod["spec"]["containers"][0]["resources"] = {
        "limits": {"nvidia.com/gpu": "2", "cpu": "4"},
        "requests": {"cpu": "1"},
    }
    assert pod_requests(pod) == Counter({"nvidia.com/gpu": 2, "cpu": 1, "pods": 1})


def test_label_selectors():
    labels = {"app": "vllm", "gen": "g1"}
    assert matches({}, labels)
    assert not matches(None, labels)
    assert matches({"matchLabels": {"app": "vllm"}}, labels)
    assert not matches({"matchExpressions": [{"key": "gen", "operator": "NotIn", "values": ["g1"]}]}, labels)
    assert matches({"matchExpressions": [{"key": "other", "operator": "DoesNotExist"}]}, labels)
    assert selected({"app": "vllm"}, labels)
    assert not selected({}, labels), "a Service without a selector selects nothing"


def test_node_selector_terms_are_alternatives_and_their_expressions_are_not():
    node = _node(labels={"zone": "a", "cards": "2"})
    zone_b = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}
    many = {"matchExpressions": [{"key": "cards", "operator": "Gt", "values": ["1"]}]}
    assert node_selector_matches({"nodeSelectorTerms": [zone_b, many]}, node)
    both = {"matchExpressions": zone_b["matchExpressions"] + many["matchExpressions"]}
    assert not node_selector_matches({"nodeSelectorTerms": [both]}, node)
    assert not node_selector_matches({"nodeSelectorTerms": [{}]}, node), "an empty term matches nothing"


def test_tolerations():
    taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    assert tolerates([{"operator": "Exists"}], taint)
    assert tolerates([{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}], taint)
    assert tolerates([{"key": "nvidia.com/gpu", "value": "present"}], taint)
    assert not tolerates([{"key": "nvidia.com/gpu", "value": "other"}], taint)
    assert not tolerates([{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute"}], taint)


def _verdicts(pod, nodes, pods=()):
    states = node_states(nodes, pods)
    return [misfit(pod, state, VolumeNeeds(), states) for state in states]


def test_the_scheduler_says_why_a_pod_fits_nowhere():
    pod = _pod({"nvidia.com/gpu": "1", "cpu": "1"}, nodeSelector={"gpu": "l4"}, tolerations=[{"operator": "Exists"}])
    nodes = [_node("a"), _node("b", {"gpu": "l4"}), _node("c", {"gpu": "l4"}, cpu="500m")]
    assert unschedulable_message(3, "", _verdicts(pod, nodes)) == (
        "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match Pod's node affinity/selector, "
        "2 Insufficient nvidia.com/gpu. no new claims to deallocate, preemption: 0/3 nodes are available: "
        "3 Preemption is not helpful for scheduling."
    )
    assert unschedulable_message(0, "", []) == "no nodes available to schedule pods"
    assert unschedulable_message(2, "pod has unbound immediate PersistentVolumeClaims", []) == (
        "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found"
    )


def test_used_resources_are_not_free():
    running = {**_pod({"cpu": "3500m"}), "status": {"phase": "Running"}}
    running["spec"]["nodeName"] = "n"
    node, pod = _node(), _pod({"cpu": "1"})
    assert _verdicts(pod, [node], [running]) == [(["Insufficient cpu"], True)]
    running["status"]["phase"] = "Succeeded"
    assert _verdicts(pod, [node], [running]) == [([], True)]


def test_taints_and_cordons():
    taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    assert _verdicts(_pod(), [_node(taints=[taint])])[0][0] == ["node(s) had untolerated taint(s)"]
    cordoned = _node()
    cordoned["spec"]["unschedulable"] = True
    assert _verdicts(_pod(), [cordoned])[0][0] == ["node(s) were unschedulable"]


def test_replicas_spread_over_zones_when_they_must():
    rule = {
        "maxSkew": 1,
        "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "v"}},
    }
    nodes = [_node("a", {"zone": "a"}), _node("b", {"zone": "b"}), _node("c")]
    there = {**_pod(labels={"app": "v"}), "status": {"phase": "Running"}}
    there["spec"]["nodeName"] = "a"
    verdicts = _verdicts(_pod(labels={"app": "v"}, topologySpreadConstraints=[rule]), nodes, [there])
    assert [reasons for reasons, _ in verdicts] == [
        ["node(s) didn't match pod topology spread constraints"],
        [],
        ["node(s) didn't match pod topology spread constraints (missing required label)"],
    ]


def test_anti_affinity_keeps_peers_apart():
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "v"}}}
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    nodes = [_node(name, {"kubernetes.io/hostname": name}) for name in "ab"]
    there = {**_pod(labels={"app": "v"}), "status": {"phase": "Running"}}
    there["spec"]["nodeName"] = "a"
    verdicts = _verdicts(_pod(labels={"app": "v"}, affinity=affinity), nodes, [there])
    assert [reasons for reasons, _ in verdicts] == [["node(s) didn't match pod anti-affinity rules"], []]


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable", "bounds"),
    [(1, "25%", "25%", (1, 0)), (10, "25%", "25%", (3, 2)), (4, 0, 0, (0, 1)), (2, 1, 0, (1, 0)), (3, 0, 5, (0, 3))],
)
def test_percentages_of_a_rolling_update_round_towards_progress(replicas, surge, unavailable, bounds):
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}
    assert rolling_bounds({"spec": {"replicas": replicas, "strategy": strategy}}) == bounds


def test_a_replicaset_deletes_the_least_useful_pod_first():
    ready = {"conditions": [{"type": "Ready", "status": "True"}], "phase": "Running"}
    pods = {
        "ready": {**_pod(nodeName="n"), "status": ready},
        "running": {**_pod(nodeName="n"), "status": {"phase": "Running"}},
        "pending": {**_pod(nodeName="n"), "status": {"phase": "Pending"}},
        "unassigned": _pod(),
    }
    assert sorted(pods, key=lambda name: deletion_order(pods[name])) == ["unassigned", "pending", "running", "ready"]


def test_free_share_is_what_the_least_allocated_node_has_most_of():
    state = NodeState(_node())
    assert state.free_share() == 1
    state.add(_pod({"cpu": "2", "memory": "8Gi"}))
    assert state.free_share() == pytest.approx(0.5)


def test_a_node_has_no_more_volumes_than_its_driver_attaches():
    state = NodeState(_node(), volumes={"kubernetes.io/csi/d^one"}, limits={"d": 2})

    def fits(*volumes):
        return misfit(_pod(), state, VolumeNeeds(attached={f"kubernetes.io/csi/{name}" for name in volumes}), [state])

    assert fits("d^one", "d^two", "other^three") == ([], True)
    assert fits("d^two", "d^three") == (["node(s) exceed max volume count"], True)
    state.limits["d"] = 0
    assert fits("d^one") == ([], True), "what is attached already costs nothing more"


def test_a_volume_waits_for_a_node_where_it_may_be_made():
    there = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}]
    needs = VolumeNeeds(topologies=[{"nodeSelectorTerms": there}])
    for zone, expected in (("a", ["node(s) didn't find available persistent volumes to bind"]), ("b", [])):
        node = _node()
        node["metadata"]["labels"] = {**(node["metadata"].get("labels") or {}), "zone": zone}
        state = NodeState(node)
        assert misfit(_pod(), state, needs, [state])[0] == expected
