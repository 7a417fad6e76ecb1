"""Whether a run goes on: every branch of the decision, from plain values."""

from __future__ import annotations

from dataclasses import replace

import pytest

from components.resolve_model.decision import Decision, Situation, decide
from serving.deployment.record import Known, Pin, Record, Rejection
from serving.errors import RejectedBeforeError, ReleaseError
from tests.unit.deployment import RELEASE, quick

DIGEST = "0011223344556677"
HEALTHY = Situation(
    serving="g2",
    entry_as_wanted=True,
    replicas=1,
    settled=True,
    ready=1,
    rolled_out=True,
    settings_digest=DIGEST,
)
REJECTED = Rejection(reason="shard 2 is cut short", at="2026-11-23T02:00:00Z", run_id="run-1")
PINNED = Pin(generation="g1", at="2026-11-22T10:00:00Z", reason="rolled back from g2")
OF_LIVE = Known(model="m", commit="b" * 40, weights_key="f" * 16, weights_uri="gs://b/x")


def decided(record: Record, situation: Situation = HEALTHY, **settings: object) -> Decision:
    return decide(quick(**settings), RELEASE, record, situation, DIGEST)


def test_what_is_live_and_healthy_is_left_alone():
    decision = decided(Record(live="g2"))
    assert decision == Decision("unchanged", "g2 is live and healthy")
    assert not decision.proceed


def test_retry_does_not_touch_what_is_live_and_healthy():
    assert decided(Record(live="g2"), retry=True).verdict == "unchanged"


@pytest.mark.parametrize(
    ("situation", "words"),
    [
        (replace(HEALTHY, serving=""), "gemma sends requests to no generation"),
        (replace(HEALTHY, serving="g1"), "gemma sends requests to g1"),
        (replace(HEALTHY, entry_as_wanted=False), "the settings of gemma, which clients call, changed"),
        (replace(HEALTHY, settings_digest=""), "its Deployment is gone"),
        (replace(HEALTHY, settings_digest="other"), "its settings changed"),
        (replace(HEALTHY, key_version="projects/1/secrets/s/versions/1"), "API key changed from projects/1/secrets/s"),
        (replace(HEALTHY, settled=False, replicas=3), "it has 3 replicas instead of 1"),
        (replace(HEALTHY, ready=0, rolled_out=False), "0 of its 1 pods are ready with its present settings"),
        (replace(HEALTHY, damage=("config.json is missing",)), "damaged: config.json is missing"),
        (replace(HEALTHY, missing=("its disk image gp-1 is gone",)), "but its disk image gp-1 is gone"),
        (
            replace(HEALTHY, leftovers=("Job/a", "Job/b", "Job/c", "Job/d", "Job/e")),
            "left Job/a, Job/b, Job/c and 2 more",
        ),
        (replace(HEALTHY, dead_holder="run-0"), "the dead run run-0 holds the Lease"),
    ],
)
def test_what_is_live_and_not_as_it_should_be_is_deployed_again(situation: Situation, words: str):
    decision = decided(Record(live="g2"), situation)
    assert decision.proceed
    assert decision.reason.startswith("g2 is live, but ")
    assert words in decision.reason


def test_a_rotated_key_is_a_change_of_what_is_live():
    release = RELEASE.model_copy(update={"api_key_version": "projects/1/secrets/s/versions/8"})
    situation = replace(HEALTHY, key_version="projects/1/secrets/s/versions/7")
    decision = decide(quick(), release, Record(live="g2"), situation, DIGEST)
    assert decision.proceed
    assert "from projects/1/secrets/s/versions/7 to projects/1/secrets/s/versions/8" in decision.reason


def test_what_was_rejected_is_not_tried_again():
    with pytest.raises(RejectedBeforeError, match=r"rejected at 2026-11-23T02:00:00Z by run run-1: shard 2.*--retry"):
        decided(Record(live="g1", rejected={"g2": REJECTED}))
    assert issubclass(RejectedBeforeError, ReleaseError)


def test_retry_tries_again_and_says_what_was_wrong():
    decision = decided(Record(live="g1", rejected={"g2": REJECTED}), retry=True)
    assert decision.proceed
    assert "again: shard 2 is cut short" in decision.reason


def test_a_pin_to_another_generation_stops_the_run_and_says_how_to_lift_it():
    decision = decided(Record(live="g1", pinned=PINNED))
    assert decision.verdict == "pinned"
    assert not decision.proceed
    assert decision.leaves_another
    for word in (
        *("g1", "2026-11-22T10:00:00Z", "rolled back from g2", "g2 (google/gemma-3-4b-it at cccc"),
        *("is not deployed", "`gemma-pipelines promote --to g1 -f FILE` (`--state DIR` instead", "--retry"),
    ):
        assert word in decision.reason


def test_retry_goes_against_a_pin():
    assert decided(Record(live="g1", pinned=PINNED), retry=True).proceed


def test_a_pin_to_the_generation_itself_stops_nothing():
    pin = PINNED.model_copy(update={"generation": "g2"})
    assert decided(Record(live="g1", pinned=pin)).proceed
    assert decided(Record(live="g2", pinned=pin)).verdict == "unchanged"


def test_a_validated_generation_waits_for_a_person():
    decision = decided(Record(live="g1", validated="g2"), replace(HEALTHY, serving="g1"), promotion="manual")
    assert decision.verdict == "validated"
    assert "`gemma-pipelines promote -f FILE` (`--state DIR` instead" in decision.reason
    assert decision.leaves_another


def test_a_validated_generation_that_fell_ill_is_deployed_again():
    ill = replace(HEALTHY, ready=0, rolled_out=False)
    decision = decided(Record(live="g1", validated="g2"), ill, promotion="manual")
    assert decision.proceed
    assert "g2 waits to be promoted, but 0 of its 1 pods" in decision.reason


def test_a_validated_generation_goes_on_when_promotion_became_automatic():
    assert decided(Record(live="g1", validated="g2")).proceed


def test_the_first_generation_says_so():
    assert decided(Record()).reason == "g2 is the first generation"


@pytest.mark.parametrize(
    ("weights_key", "words"), [("f" * 16, "has other weights than g1"), (RELEASE.weights_key, "are not those of g1")]
)
def test_a_new_generation_says_what_is_new(weights_key: str, words: str):
    known = OF_LIVE.model_copy(update={"weights_key": weights_key})
    decision = decided(Record(live="g1", generations={"g1": known}))
    assert decision.proceed
    assert "g2 replaces g1" in decision.reason
    assert words in decision.reason


def test_a_kept_generation_that_comes_back_says_so():
    decision = decided(Record(live="g1", kept=["g2"], generations={"g1": OF_LIVE}))
    assert "g2, kept from before, replaces g1" in decision.reason
