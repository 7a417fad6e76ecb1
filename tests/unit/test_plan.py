"""What `plan` says of what an emulated cloud cannot be made to be (the other causes: tests/contract/test_plan.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pipelines.oversight import needs as checks
from pipelines.vertex import preflight
from serving.clients import google, iam, storage
from serving.clients.compute import Room
from serving.deployment.record import Record, Rejection
from serving.errors import AccessError, RequestError
from serving.installation import roles
from tests.unit.oversight import World, room, world

__all__ = ["world"]


def raising(error: Exception) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise error

    return refuse


def changed(found: dict[str, Any], word: str) -> list[str]:
    return [each["what"] for each in found["changes"] if each["change"] == word]


def test_ready_when_all_is_there_and_what_a_first_run_makes_is_told(world: World):
    found = world.planned()
    assert (found["ready"], found["missing"]) == (True, [])
    generation = world.release().generation
    assert {"Namespace/gemma", f"Deployment/vllm-{generation}", "Service/gemma"} <= {*changed(found, "create")}
    assert {"gs://demo-bucket", "cluster gemma"} <= {*changed(found, "exists")}
    (uses,) = (each for each in found["changes"] if each["change"] == "uses")
    assert "24 accelerator-hours a day" in uses["details"][0]
    assert json.loads(json.dumps(found)) == found
    assert world.cluster.calls == [], "nothing is written"


def test_a_live_generation_that_is_as_it_should_be_is_left_as_it_is(world: World):
    world.live()
    world.cluster.calls.clear()
    found = world.planned()
    assert (found["ready"], changed(found, "create"), changed(found, "change")) == (True, [], [])
    assert world.cluster.calls == []


def test_what_changes_is_told_field_by_field(world: World):
    name = f"Deployment/vllm-{world.live().generation}"
    found = world.planned(labels={"team": "blue"})
    (each,) = (each for each in found["changes"] if each["what"] == name)
    assert each["change"] == "change"
    assert "metadata.labels.team: nothing -> blue" in each["details"]


def test_another_generation_takes_the_place_of_the_live_one_which_is_kept(world: World):
    before = world.live().generation
    found = world.planned(engine=world.settings.engine.model_copy(update={"max_model_len": 2048}))
    assert f"generation {before}" in changed(found, "change")
    (entry,) = (each for each in found["changes"] if each["what"] == "Service/gemma")
    assert entry["details"][0].endswith(f"instead of {before}")


def of_the_project(resource: iam.Guarded, permissions: list[str]) -> list[str]:
    return list(permissions) if resource.called.startswith("project ") else []


def rejected(world: World) -> None:
    known = Record(rejected={world.release().generation: Rejection(reason="it lies", at="2026", run_id="r")})
    known.write(world.cluster, world.settings)  # type: ignore[arg-type]


ELSEWHERE = RequestError("gs://demo-bucket is in europe-west4: `gcloud storage buckets create gs://B --location=x`")
CAUSES = {
    "a role of one's own": (
        lambda world: world.patch(iam, "missing_permissions", of_the_project),
        "your own roles",
        "gcloud projects add-iam-policy-binding",
    ),
    "a bucket elsewhere": (
        lambda world: world.patch(preflight, "check_buckets", raising(ELSEWHERE)),
        "bucket",
        "gcloud storage buckets create",
    ),
    "a quota of the region": (
        lambda world: room(world, NVIDIA_L4_GPUS=Room(1, 1)),
        "quota NVIDIA_L4_GPUS in us-central1",
        "--quota-id=NVIDIA-L4-GPUS-per-project-region --dimensions=region=us-central1",
    ),
    "no zone with the accelerator": (
        lambda world: world.patch(checks.Compute, "having", ["us-central1-c"]),
        "nvidia-l4 in us-central1-a",
        "--node-locations=us-central1-c",
    ),
    "a release that was rejected": (rejected, "release", ""),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_not_ready_for_one_cause_is_one_lack_with_what_mends_it(world: World, cause: str):
    breaks, what, command = CAUSES[cause]
    breaks(world)  # type: ignore[operator]
    found = world.planned()
    assert not found["ready"]
    (first,) = found["missing"]
    assert first["what"].startswith(what)
    assert command in first["command"]
    assert first["why"]


def test_access_check_leaves_the_pods_roles_to_a_person(world: World):
    world.patch(storage, "has_bucket_binding", lambda bucket, role, member: False)
    assert "roles/storage.objectViewer on gs://demo-bucket for ns/a/sa/b" in changed(world.planned(), "create")
    found = world.planned(access="check")
    assert [each["command"].split()[:4] for each in found["missing"]] == [
        ["gcloud", "storage", "buckets", "add-iam-policy-binding"]
    ]


def test_a_live_generations_cards_are_in_use_and_room_for_one_more_is_enough(world: World):
    world.live()
    room(world, NVIDIA_L4_GPUS=Room(2, 1))
    assert world.planned()["ready"]
    room(world, NVIDIA_L4_GPUS=Room(2, 0))
    assert [each["what"] for each in world.planned()["missing"]] == ["quota NVIDIA_L4_GPUS in us-central1"]


def test_who_may_not_see_a_policy_is_told_so_and_it_is_no_lack(world: World):
    world.patch(roles.Grant, "holds", raising(AccessError("you may not see it")))
    found = world.planned()
    assert found["ready"]
    assert changed(found, "unknown")


def test_without_credentials_there_is_one_error(world: World):
    world.patch(google, "check_credentials", raising(AccessError(google.NO_CREDENTIALS)))
    with pytest.raises(AccessError, match="gcloud auth application-default login"):
        world.planned()
