"""The emulated autoscaler's arithmetic: the numbers and the answers are of the kind that kubernetes' own tests have
(replica_calculator_test.go, horizontal_test.go)."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

import pytest
from emulated_cloud.kubernetes.controllers.autoscaling import (
    History,
    Look,
    _down_limit,
    _limited,
    _stabilized,
    _up_limit,
    replicas_for,
)
from emulated_cloud.kubernetes.controllers.gauges import NoMetric

POLICY = {"selectPolicy": "Max", "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}


def pods(count: int, *, pending: int = 0, going: int = 0) -> list[dict[str, Any]]:
    phases = ["Pending"] * pending + ["Running"] * (count - pending)
    found = [{"metadata": {"name": f"p{number}"}, "status": {"phase": phase}} for number, phase in enumerate(phases)]
    for pod in found[count - going :] if going else []:
        pod["metadata"]["deletionTimestamp"] = "2026-11-29T00:00:00Z"  # type: ignore[index]
    return found


def values(*amounts: float, first: int = 0) -> dict[str, Decimal]:
    return {f"p{first + number}": Decimal(str(amount)) for number, amount in enumerate(amounts)}


@pytest.mark.parametrize(
    ("there", "shown", "current", "target", "wanted"),
    [
        # TestReplicaCalcScaleUpCM, TestReplicaCalcScaleDownCM, TestReplicaCalcToleranceCM
        (pods(3), values(20, 10, 30), 3, 15, 4),
        (pods(5), values(12, 12, 12, 12, 12), 5, 20, 3),
        (pods(3), values(20, 21, 21), 3, 20, 3),
        # TestReplicaCalcScaleUpIgnoresFailedPods' kind: what has no value counts as nothing before there are more.
        (pods(2), values(30), 2, 10, 3),
        # TestReplicaCalcMissingMetricsNoChangeLt: fewer would be wanted, with the target for the missing they are not.
        (pods(2), values(4), 2, 10, 2),
        # Pods that have not started do not count before there are fewer, and hold back more.
        (pods(3, pending=1), values(10, 50, first=1), 3, 15, 4),
        (pods(2, pending=1), values(2, first=1), 2, 10, 1),
        (pods(2, going=1), values(30, 90), 2, 10, 3),
        (pods(1), values(0), 1, 10, 0),
    ],
)
def test_replicas_follow_the_mean_of_the_pods_values(there, shown, current, target, wanted):
    assert replicas_for(there, shown, current, Decimal(target))[0] == wanted


def test_without_any_value_nothing_is_proposed():
    with pytest.raises(NoMetric, match="did not receive metrics for targeted pods"):
        replicas_for(pods(2, pending=1), values(5), 2, Decimal(10))


def ago(*entries: tuple[int, float]) -> History:
    now = time.monotonic()
    return History([(replicas, now - seconds) for replicas, seconds in entries])


@pytest.mark.parametrize(
    ("history", "proposed", "recommended", "reason"),
    [
        (ago((5, 100)), 1, 5, "ScaleDownStabilized"),
        (ago((5, 400)), 1, 1, "ReadyForNewScale"),
        (ago((2, 10)), 8, 2, "ScaleUpStabilized"),
        (ago((2, 50)), 8, 8, "ReadyForNewScale"),
        (ago((5, 10)), 5, 5, "ReadyForNewScale"),
    ],
)
def test_a_window_holds_back(history, proposed, recommended, reason):
    look, up, down = Look(), {"stabilizationWindowSeconds": 30}, {"stabilizationWindowSeconds": 300}
    current = 2 if proposed == 8 else 5
    assert _stabilized(history, look, current, proposed, up, down) == recommended
    assert look.conditions["AbleToScale"][:2] == ("True", reason)


def test_an_autoscaler_made_anew_keeps_what_it_finds_for_its_window():
    """What a promotion relies on (serving/deployment/autoscaling.py: renew)."""
    up, down = {"stabilizationWindowSeconds": 0}, {"stabilizationWindowSeconds": 300}
    assert _stabilized(ago((5, 0)), Look(), 5, 0, up, down) == 5
    assert _stabilized(ago((5, 900), (0, 200), (0, 1)), Look(), 5, 0, up, down) == 0


def test_policies_limit_how_fast():
    now = time.monotonic()
    fast = {
        "selectPolicy": "Max",
        "policies": [
            {"type": "Pods", "value": 4, "periodSeconds": 15},
            {"type": "Percent", "value": 100, "periodSeconds": 15},
        ],
    }
    assert _up_limit(1, History([]), fast) == 5
    assert _up_limit(10, History([]), fast) == 20
    assert _up_limit(5, History([], ups=[(4, now - 5)]), fast) == 5
    assert _up_limit(5, History([], ups=[(4, now - 20)]), fast) == 10
    assert _up_limit(10, History([]), {**fast, "selectPolicy": "Min"}) == 14
    assert _up_limit(3, History([]), {**fast, "selectPolicy": "Disabled"}) == 3
    assert _down_limit(5, History([]), POLICY) == 4
    assert _down_limit(4, History([], downs=[(1, now - 30)]), POLICY) == 4
    assert _down_limit(4, History([], downs=[(1, now - 90)]), POLICY) == 3


@pytest.mark.parametrize(
    ("wanted", "limit", "bound", "nearer", "allowed", "reason"),
    [
        (8, 5, 10, min, 5, "ScaleUpLimit"),
        (8, 20, 4, min, 4, "TooManyReplicas"),
        (3, 5, 10, min, 3, "DesiredWithinRange"),
        (0, 4, 1, max, 4, "ScaleDownLimit"),
        (0, 0, 1, max, 1, "TooFewReplicas"),
    ],
)
def test_bounds_and_policies_say_what_limited(wanted, limit, bound, nearer, allowed, reason):
    look = Look()
    rate = "ScaleUpLimit" if nearer is min else "ScaleDownLimit"
    range_ = "TooManyReplicas" if nearer is min else "TooFewReplicas"
    assert _limited(look, wanted, limit, bound, rate, range_, nearer) == allowed
    assert look.conditions["ScalingLimited"][1] == reason
