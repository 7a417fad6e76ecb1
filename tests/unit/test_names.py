"""Names: no two deployments come to the same one, wherever they meet."""

import re

import pytest

from serving import names
from serving.settings import Settings
from tests.unit.deployment import quick

SETTINGS = quick()
LONGEST = quick(namespace="n" * 63, name="d" * 40)


@pytest.mark.parametrize(
    "other",
    [
        quick(project="other-project"),
        quick(location="europe-west4"),
        quick(cluster="other"),
        quick(namespace="other"),
        quick(name="other"),
    ],
    ids=["project", "location", "cluster", "namespace", "name"],
)
def test_deployments_that_share_a_bucket_have_places_of_their_own_in_it(other: Settings):
    assert names.place(SETTINGS) != names.place(other)
    assert names.weights_in_use(SETTINGS) != names.weights_in_use(other)
    assert names.weights_in_use(other).startswith(names.all_weights_in_use(other))


@pytest.mark.parametrize(
    "other",
    [quick(namespace="gemma-a"), quick(name="gemma-a"), quick(namespace="gemma-a", name="b")],
)
def test_volumes_of_two_deployments_of_a_cluster_have_names_of_their_own(other: Settings):
    assert names.cluster_wide(other, "g1") not in {
        names.cluster_wide(SETTINGS, "g1"),
        names.cluster_wide(quick(namespace="gemma", name="a-b"), "g1"),
    }


def test_the_longest_name_of_a_volume_is_one_that_kubernetes_takes():
    assert len(names.cluster_wide(LONGEST, "g0123456789")) <= 253


def test_what_has_no_namespace_is_selected_by_the_deployments_namespace_too():
    assert names.selector(SETTINGS) == "gemma-pipelines/deployment=gemma"
    assert names.selector(SETTINGS, "g1") == "gemma-pipelines/deployment=gemma,gemma-pipelines/generation=g1"
    assert names.selector(quick(namespace="team"), "g1", cluster_scoped=True) == (
        "gemma-pipelines/deployment=gemma,gemma-pipelines/namespace=team,gemma-pipelines/generation=g1"
    )


def test_a_servers_name_tells_its_generation_and_another_name_tells_none():
    assert names.generation_of(names.server("g1")) == "g1"
    assert names.generation_of("somebody-elses") == ""


IMAGES = [f"docker.io/vllm/vllm-openai@sha256:{'1' * 64}", f"gcr.io/p/side@sha256:{'2' * 64}"]


def test_a_disk_image_is_named_by_what_is_on_it_and_whose_it_is():
    name = names.disk_image_name(SETTINGS, IMAGES, architecture="x86_64")
    assert re.fullmatch("gp-[0-9a-f]{16}", name)
    assert name == names.disk_image_name(SETTINGS, [*IMAGES[::-1], IMAGES[0]], architecture="x86_64"), "order is none"
    others = {
        names.disk_image_name(SETTINGS, IMAGES[:1], architecture="x86_64"),
        names.disk_image_name(SETTINGS, IMAGES, architecture="ARM64"),
        names.disk_image_name(SETTINGS, IMAGES, architecture="x86_64", kms_key="projects/p/…/cryptoKeys/k"),
        names.disk_image_name(quick(namespace="other"), IMAGES, architecture="x86_64"),
        names.disk_image_name(quick(name="other"), IMAGES, architecture="x86_64"),
    }
    assert len(others | {name}) == 6
