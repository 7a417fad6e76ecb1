"""What resolve_model sees in the cluster, and which architectures it lets through."""

from __future__ import annotations

import pytest

from components.resolve_model import step
from components.resolve_model.step import Found, check_architecture, look_around, name_release
from serving import names, sizing
from serving.deployment import traffic
from serving.deployment.record import Known, Record
from serving.errors import RequestError
from serving.rendering import render
from serving.rendering.generation import name
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import RELEASE, STALLED, deployment, job, lease, owned, quick, service

SETTINGS = quick()
KNOWN = Record(live="g2", generations={"g2": Known(model="m", commit="c", weights_key="k", weights_uri="u")})


@pytest.fixture(autouse=True)
def bucket_is_as_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "damage", lambda weights_uri: [])
    monkeypatch.setattr(step.caches, "amiss", lambda settings, release: "")


def live(**changes: object) -> dict:
    body = deployment("g2", **changes)  # type: ignore[arg-type]
    body["metadata"]["annotations"] = {names.SETTINGS: "digest"}
    return body


def test_an_empty_cluster_holds_nothing():
    assert look_around(MemoryCluster(), SETTINGS, RELEASE, Record()) == step.Situation()


def test_a_healthy_generation_is_seen_whole():
    cluster = MemoryCluster(live(), *owned("g2"))
    traffic.move(cluster, SETTINGS, KNOWN.model_copy(deep=True), "g2", run_id="run-1", say=lambda line: None)
    assert look_around(cluster, SETTINGS, RELEASE, KNOWN) == step.Situation(
        serving="g2", entry_as_wanted=True, replicas=1, settled=True, ready=1, rolled_out=True, settings_digest="digest"
    )
    other = quick(labels={"team": "llm"})
    assert not look_around(cluster, other, RELEASE, KNOWN).entry_as_wanted


def test_an_update_in_place_that_stalled_is_not_live_and_healthy():
    body = live()
    body["status"] |= STALLED
    seen = look_around(MemoryCluster(body), SETTINGS, RELEASE, KNOWN)
    assert (seen.replicas, seen.settled, seen.ready, seen.rolled_out) == (1, True, 0, False)


def test_other_replicas_than_the_settings_are_seen():
    seen = look_around(MemoryCluster(live()), quick(serving={"replicas": 3}), RELEASE, KNOWN)
    assert (seen.replicas, seen.settled) == (1, False)


def test_pods_of_an_older_template_do_not_count():
    body = live()
    body["metadata"]["generation"] = 2
    assert look_around(MemoryCluster(body), SETTINGS, RELEASE, KNOWN).ready == 0


def test_the_key_that_pods_have_is_seen_and_is_what_was_rendered():
    release = RELEASE.model_copy(update={"api_key_version": "projects/1/secrets/s/versions/7"})
    rendered = render.render(SETTINGS, release)
    (server,) = (item for item in rendered.generation if item["kind"] == "Deployment")
    server["spec"]["replicas"] = 1
    assert look_around(MemoryCluster(server), SETTINGS, release, KNOWN).key_version == release.api_key_version
    assert rendered.digest != render.render(SETTINGS, RELEASE).digest
    assert name(SETTINGS, release) == name(SETTINGS, RELEASE), "the pods are replaced in place"


def test_what_dead_runs_left_is_seen():
    cluster = MemoryCluster(live(), service("g2"), job("load", "run-0"), deployment("g0", run_id="run-0"), *owned("g0"))
    seen = look_around(cluster, SETTINGS, RELEASE, KNOWN)
    assert "Job/load" in seen.leftovers
    assert "Deployment/vllm-g0" in seen.leftovers
    assert not any("g2" in item for item in seen.leftovers)


def test_a_kept_generation_that_still_runs_is_left_over():
    known = KNOWN.model_copy(update={"kept": ["g1"]})
    cluster = MemoryCluster(live(), service("g2"), deployment("g1"))
    assert look_around(cluster, SETTINGS, RELEASE, known).leftovers == ("Deployment/vllm-g1",)


def test_a_lease_that_ran_out_tells_of_a_dead_run_and_a_fresh_one_of_none():
    assert look_around(MemoryCluster(lease("run-0")), SETTINGS, RELEASE, Record()).dead_holder == "run-0"
    fresh = lease("run-0", "2999-01-01T00:00:00.000000Z")
    assert look_around(MemoryCluster(fresh), SETTINGS, RELEASE, Record()).dead_holder == ""
    assert look_around(MemoryCluster(lease("")), SETTINGS, RELEASE, Record()).dead_holder == ""
    assert look_around(MemoryCluster(lease(RELEASE.run_id)), SETTINGS, RELEASE, Record()).dead_holder == ""


def test_looking_writes_nothing():
    cluster = MemoryCluster(live(), *owned("g2"), service("g2"), job("load", "run-0"), lease("run-0"))
    look_around(cluster, SETTINGS, RELEASE, KNOWN)
    assert cluster.calls == []


# -- architectures and names --------------------------------------------------------------------------------


def test_an_architecture_that_the_image_serves_passes():
    check_architecture(SETTINGS, "Gemma3ForCausalLM")


def test_an_image_that_is_too_old_is_refused_with_the_version_that_can():
    settings = quick(engine={"image": "vllm/vllm-openai:v0.10.0"})
    with pytest.raises(RequestError, match=r"Gemma4ForCausalLM, which .*v0.10.0 cannot serve: .*from 0.19.1 on"):
        check_architecture(settings, "Gemma4ForCausalLM")


def test_an_architecture_that_nobody_knows_is_refused_with_those_that_are():
    with pytest.raises(RequestError, match=r"NewForCausalLM.*Gemma3ForCausalLM.*by digest"):
        check_architecture(SETTINGS, "NewForCausalLM")


def test_an_image_by_digest_may_serve_anything():
    check_architecture(quick(engine={"image": "vllm/vllm-openai@sha256:" + "0" * 64}), "NewForCausalLM")


@pytest.mark.parametrize("config", [{}, {"architectures": []}, {"architectures": "x"}, {"architectures": [1]}])
def test_a_config_that_names_no_architecture_is_refused(config: dict):
    with pytest.raises(RequestError, match="names no architecture"):
        sizing.named("config.json", config)


def test_a_release_is_named_by_what_makes_it_different():
    found = Found("a" * 40, "0" * 16, "Gemma3ForCausalLM")
    release = name_release(SETTINGS, "run-3", found, live="g1")
    assert release.weights_uri == "gs://demo-bucket/models/google/gemma-3-4b-it/" + "0" * 16
    assert release.live == "g1"

    def generation(**changes: object) -> str:
        return name_release(quick(**changes), "run-4", found, live="").generation

    assert generation() == release.generation
    assert generation(serving={"replicas": 3}, keep_previous=2) == release.generation
    others = {
        generation(engine={"max_model_len": 1024}),
        generation(engine={"image": "vllm/vllm-openai:v0.32.0"}),
        generation(capacity="spot"),
        generation(gcs_fuse={"profile": "manual"}),
    }
    assert len(others | {release.generation}) == 5
    other_weights = name_release(SETTINGS, "run-3", Found("a" * 40, "1" * 16, "x"), live="g1")
    assert other_weights.generation != release.generation
