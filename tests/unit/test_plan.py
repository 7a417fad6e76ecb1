"""What `plan` says: ready when all is there; for each cause that it is not, one lack with the command that mends it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from components.resolve_model import step as resolve
from pipelines.oversight import needs as checks
from pipelines.oversight import runs
from pipelines.vertex import preflight
from serving import names
from serving.clients import google, iam, service_usage, storage
from serving.clients.compute import Room
from serving.deployment import record
from serving.deployment.record import Downtime, Record, Rejection
from serving.errors import AccessError, RequestError
from serving.installation import bootstrap, roles
from serving.settings import Reservation
from tests.unit.deployment import quick
from tests.unit.oversight import FOUND, World, room, traits, world

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


def lacking_api(world: World) -> None:
    world.patch(
        service_usage, "enabled", lambda project: {*bootstrap.apis(world.settings)} - {"aiplatform.googleapis.com"}
    )


def lacking_grant(world: World) -> None:
    world.patch(roles.Grant, "is_given", lambda grant: grant.role != "roles/storage.objectUser")


def lacking_right(world: World) -> None:
    world.cluster.denied = {("create", "deployments")}


def rejected(world: World) -> None:
    known = Record(rejected={world.release().generation: Rejection(reason="it lies", at="2026", run_id="r")})
    known.write(world.cluster, world.settings)  # type: ignore[arg-type]


MISSING_BUCKET = RequestError(
    "gs://demo-bucket does not exist. Create it: `gcloud storage buckets create gs://demo-bucket`"
)
ELSEWHERE = RequestError("gs://demo-bucket is in europe-west4: `gcloud storage buckets create gs://B --location=x`")
NO_CLUSTER = RequestError("no such cluster, or create it: `gcloud container clusters create-auto gemma`")
NO_LICENCE = AccessError("google/gemma-3-4b-it is gated: accept its licence at https://huggingface.co/google")
NO_IMAGE = RequestError("no image. `gemma-pipelines bootstrap -f FILE` builds it")
API_OFF = AccessError("Vertex AI is off: `gcloud services enable aiplatform.googleapis.com --project=demo-project`")

CAUSES = {
    "an API that is off": (lacking_api, "aiplatform.googleapis.com", "gcloud services enable aiplatform"),
    "a role of the pipeline's": (
        lacking_grant,
        "roles/storage.objectUser on gs://demo-bucket",
        "gcloud storage buckets",
    ),
    "no account": (
        lambda world: world.patch(iam, "account_exists", lambda email: False),
        "service account gemma-pipelines@demo-project",
        "gemma-pipelines bootstrap",
    ),
    "a role of one's own": (
        lambda world: world.patch(iam, "missing_permissions", of_the_project),
        "your own roles",
        "gcloud projects add-iam-policy-binding",
    ),
    "no bucket": (
        lambda world: world.patch(preflight, "check_buckets", raising(MISSING_BUCKET)),
        "bucket",
        "gcloud storage buckets create gs://demo-bucket",
    ),
    "a bucket elsewhere": (
        lambda world: world.patch(preflight, "check_buckets", raising(ELSEWHERE)),
        "bucket",
        "gcloud storage buckets create",
    ),
    "no component image": (
        lambda world: world.patch(preflight, "digest_of", raising(NO_IMAGE)),
        "component image",
        "gemma-pipelines bootstrap -f FILE",
    ),
    "no cluster": (
        lambda world: world.patch(google, "cluster_traits", raising(NO_CLUSTER)),
        "cluster",
        "gcloud container clusters create-auto gemma",
    ),
    "an old cluster": (
        lambda world: world.patch(google, "cluster_traits", lambda settings: traits(version="1.33.1-gke.1")),
        "GKE version",
        "gcloud container clusters upgrade",
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
    "rights in the cluster": (lacking_right, "rights of gemma-pipelines@demo-project", "kubectl apply --server-side"),
    "the model's licence": (
        lambda world: world.patch(resolve, "look_up", raising(NO_LICENCE)),
        "model google/gemma-3-4b-it",
        "",
    ),
    "a release that was rejected": (rejected, "release", ""),
    "Vertex AI off": (
        lambda world: world.patch(runs, "vertex_of", raising(API_OFF)),
        "Vertex AI",
        "gcloud services enable aiplatform.googleapis.com",
    ),
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


def test_where_generations_replace_each_other_the_cards_of_one_are_enough(world: World):
    room(world, NVIDIA_L4_GPUS=Room(1, 1))
    assert not world.planned()["ready"], "beside"
    found = world.planned(rollout="replace")
    assert found["ready"]
    assert "no more while a refresh validates a new generation" in uses(found)
    room(world, NVIDIA_L4_GPUS=Room(1, 0))
    (lack,) = world.planned(rollout="replace")["missing"]
    assert lack["why"] == "the limit is 1, 1 are in use; a generation needs 1, so 1 have to be free"
    world.live()
    assert world.planned(rollout="replace")["ready"], "the live one has it"


def test_that_nothing_will_serve_is_said_with_how_long_it_was_the_last_time(world: World):
    live = world.live().generation
    other = dataclasses.replace(FOUND, weights_key="f" * 16)
    world.patch(resolve, "look_up", lambda settings: other)

    def of_live() -> str:
        found = world.planned(rollout="replace")["changes"]
        (said, *_) = (each["details"] for each in found if each["what"] == f"generation {live}")
        return "\n".join(said)

    assert f"rollout: replace: {live} makes room for g" in of_live()
    assert of_live().endswith("it is the first time")
    known = record.read(world.cluster, world.settings)
    known.downtime = Downtime(seconds=214, at="2026-11-29T03:04:05Z", run_id="run-1")
    known.write(world.cluster, world.settings)
    assert of_live().endswith("The last time it was 214 s (until 2026-11-29T03:04:05Z)")
    assert not [each for each in world.planned()["changes"] if "makes room" in str(each)], "beside"


def test_where_generations_replace_each_other_so_do_the_pods_of_one(world: World):
    """Of what changes in place."""
    live = world.live().generation
    found = world.planned(rollout="replace", labels={"team": "blue"})["changes"]
    (said,) = (each["details"] for each in found if each["what"] == f"Deployment/{names.server(live)}")
    assert said[-1] == "rollout: replace: a pod goes before its successor comes, and serves nothing meanwhile"


def uses(found: dict[str, Any]) -> str:
    """What is said of the accelerators."""
    return "\n".join(*(each["details"] for each in found["changes"] if each["what"] == "accelerators"))


def test_spot_nodes_count_against_a_quota_of_their_own(world: World):
    room(world, PREEMPTIBLE_NVIDIA_L4_GPUS=Room(1, 1))
    found = world.planned(capacity="spot")
    assert [each["what"] for each in found["missing"]] == ["quota PREEMPTIBLE_NVIDIA_L4_GPUS in us-central1"]
    assert "1 × nvidia-l4 (spot) serve" in uses(found)


def test_what_is_reserved_has_been_counted(world: World):
    room(world, NVIDIA_L4_GPUS=Room(0, 0))
    assert not world.planned()["ready"]
    found = world.planned(capacity="reservation", reservation=Reservation(name="ours"))
    assert found["ready"]
    assert "their nodes come out of ours" in uses(found)


@pytest.mark.parametrize(
    ("capacity", "quota"),
    [
        (
            "on-demand",
            "TPUS-PER-TPU-FAMILY-per-project-region --service=compute.googleapis.com --project=demo-project`",
        ),
        ("spot", "PREEMPTIBLE-TPU-V6E-per-project-region"),
    ],
)
def test_tpus_count_against_no_cards_and_what_nobody_serves_so_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capacity: str, quota: str
):
    world = World(monkeypatch, quick(features=["tpu"], accelerator={"type": ""}))
    monkeypatch.setattr(checks.Compute, "having", [])
    monkeypatch.setattr(checks.Compute, "project_quotas", lambda compute: {"GPUS_ALL_REGIONS": Room(0, 0)})
    found = world.planned(capacity=capacity)
    assert found["ready"], found["missing"]
    assert quota in uses(found)
    assert ("tpu_family=CT6E" in uses(found)) == (capacity == "on-demand")
    assert "warning: nobody is known to serve google/gemma-3-4b-it on 1 × tpu-v6e-slice" in uses(found)


def test_who_may_not_see_a_policy_is_told_so_and_it_is_no_lack(world: World):
    world.patch(roles.Grant, "is_given", raising(AccessError("you may not see it")))
    found = world.planned()
    assert found["ready"]
    assert changed(found, "unknown")


def test_without_credentials_there_is_one_error(world: World):
    world.patch(google, "credentials", raising(AccessError(google.NO_CREDENTIALS)))
    with pytest.raises(AccessError, match="gcloud auth application-default login"):
        world.planned()
