"""Every combination of features (pipelines/combinations.py) is a deployment: rendered, and taken by the schemas of
Kubernetes and of Google's kinds, or refused with the reason. docs/reference.md has the count and the refusals."""

from __future__ import annotations

import functools
import itertools
import json
from typing import Any

import pytest

from pipelines import combinations
from pipelines.combinations import Combination
from serving.rendering import render
from serving.scenarios import COLUMNS, SCENARIOS
from tests.golden.test_manifests import CUSTOM, judge, judge_custom, release_of


@functools.cache
def every() -> list[Combination]:
    """Made when it is asked for: every worker imports this file, and one runs it."""
    return list(combinations.every())


def rendered() -> list[Combination]:
    return [each for each in every() if each.settings]


def objects_of(each: Combination) -> list[dict[str, Any]]:
    """All that is ever applied for it."""
    assert each.settings
    release = release_of(each.settings)
    rendered = render.render(each.settings, release)
    return [
        *render.admin(each.settings),
        *rendered.shared,
        *rendered.generation,
        *render.temporary(each.settings, release),
        *render.entry_objects(each.settings, release.generation),
    ]


def test_each_combination_of_features_is_rendered_and_valid():
    judged: set[str] = set()
    for each in rendered():
        items = objects_of(each)
        assert {"Deployment", "Role", "NetworkPolicy", "PodMonitoring"} <= {item["kind"] for item in items}, each
        for item in items:
            text = json.dumps(item, sort_keys=True)
            if text not in judged:
                judged.add(text)
                try:
                    judge_custom(item) if item["kind"] in CUSTOM else judge(item)
                except Exception as error:
                    raise AssertionError(f"{each.features} {each.chosen}: {item['kind']}: {error}") from error
    print(f"{len(rendered())} combinations of features, {len(judged)} different objects")
    servers = {text for text in judged if '"kind": "Deployment"' in text}
    assert len(servers) > 1, "different features are different servers"


def test_all_features_of_the_table_are_in_them_with_every_one_of_the_other_columns():
    seen = {frozenset(each.features) for each in every()}
    for (_, ones), (_, others) in itertools.combinations(COLUMNS.items(), 2):
        for pair in itertools.product(ones, others):
            assert any(set(pair) <= found for found in seen), pair
    assert {frozenset(scenario.features) for scenario in SCENARIOS} <= {
        frozenset(each.settings.chosen_features) for each in rendered() if each.settings
    }, "a scenario is one that is served"


@pytest.mark.parametrize(
    "chosen",
    [
        {"hyperdisk_ml": {"method": "populator"}},
        {"secondary_boot_disk": {"form": "compute-class"}},
        {"secondary_boot_disk": {"form": "node-pool"}},
        {"rollout": "replace"},
        {"serving": {"exposure": "public"}},
    ],
    ids=str,
)
def test_variants_join_by_themselves(chosen: dict[str, Any]):
    assert any(chosen.items() <= each.chosen.items() for each in rendered())


def test_a_schema_that_does_not_take_an_object_is_seen():
    """Else the test above could not fail."""
    (server,) = (item for item in objects_of(rendered()[0]) if item["kind"] == "Deployment")
    server["spec"]["template"]["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(Exception, match="resource"):
        judge(server)
    (monitoring,) = (item for item in objects_of(rendered()[0]) if item["kind"] == "PodMonitoring")
    monitoring["spec"]["endpoint"] = []
    with pytest.raises(Exception, match="endpoint"):
        judge_custom(monitoring)
