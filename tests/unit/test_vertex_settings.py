"""The settings of Vertex AI and of the schedule: what cannot be is refused with words, and no run is given them."""

from __future__ import annotations

from typing import Any

import pytest

from serving import image, names
from serving.errors import RequestError
from serving.rendering.engine import mirrored
from serving.settings import Settings, validated

BASE = {"scenario": "gcs-fuse", "project": "demo-project", "bucket": "demo-bucket"}
ATTACHMENT = "projects/host/regions/us-central1/networkAttachments/a"
KEY = "projects/p/locations/europe-west4/keyRings/r/cryptoKeys/k"


def settings_for(**changes: Any) -> Settings:
    return validated(Settings, {**BASE, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": {"cron": "0 3 * *"}}, "is not a cron expression of five fields"),
        ({"schedule": {"cron": "0 0 3 * * *"}}, "is not a cron expression of five fields"),
        ({"schedule": {"cron": "TZ=Asia/Seoul 0 3 * * *"}}, "that stands in schedule.timezone"),
        ({"schedule": {"cron": "61 3 * * *"}}, "is not a cron expression: "),
        ({"schedule": {"cron": "0 3 L * *"}}, "is not a cron expression of five fields"),
        ({"schedule": {"cron": "0 3 30 2 *"}}, "bad day-of-month"),
        ({"schedule": {"cron": "0 3 * * *", "timezone": "Asia/Soul"}}, "is not a time zone, like Asia/Seoul"),
        ({"schedule": {"cron": "0 3 * * *", "timezone": "../etc"}}, "is not a time zone"),
        ({"schedule": {"cron": "0 3 * * *", "start": "tomorrow"}}, "is not a time, like 2027-"),
        ({"schedule": {"cron": "0 3 * * *", "start": "2027-01-01T00:00:00"}}, "does not say how far from UTC"),
        (
            {"schedule": {"cron": "0 3 * * *", "start": "2027-01-02T00:00:00Z", "end": "2027-01-01T00:00:00Z"}},
            "is not after start",
        ),
        ({"schedule": {"end": "2027-01-01T00:00:00Z"}}, "cron is missing"),
        ({"vertex": {"location": "us-central1-a"}}, "is not a region, like us-central1"),
        (
            {"vertex": {"network": "projects/1/global/networks/n", "network_attachment": ATTACHMENT}},
            "two ways into a VPC",
        ),
        (
            {"vertex": {"dns_peering": [{"domain": "a.b.", "project": "host-project", "network": "n"}]}},
            "dns_peering goes through a network_attachment",
        ),
        (
            {
                "vertex": {
                    "network_attachment": ATTACHMENT,
                    "dns_peering": [{"domain": "a.b", "project": "host-project", "network": "n"}],
                }
            },
            "a domain with a dot at its end",
        ),
        (
            {"location": "europe-west4", "vertex": {"network_attachment": ATTACHMENT}},
            "vertex.network_attachment is in us-central1, and runs are in europe-west4",
        ),
        ({"vertex": {"kms_key": KEY}}, "vertex.kms_key is in europe-west4, and runs are in us-central1"),
        ({"vertex": {"labels": {"gemma-spec": "1"}}}, "are not yours to set"),
        ({"vertex": {"labels": {"Team": "a"}}}, "lower-case letters"),
        ({"vertex": {"labels": {"team": "A"}}}, "lower-case letters"),
        (
            {"pipeline_service_account": "123-compute@developer.gserviceaccount.com"},
            "is Compute Engine's default, which may do nearly anything",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], words: str):
    with pytest.raises(RequestError) as caught:
        settings_for(**changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cron", ["0 3 * * *", "*/15 0-6,20 1,15 jan-mar MON-FRI", "5 4 * * 7", "0 0 29 2 *"])
def test_cron_is_what_unix_reads(cron: str):
    assert settings_for(schedule={"cron": cron}).schedule.cron == cron


def test_a_zone_s_region_is_where_runs_are():
    assert settings_for(location="europe-west4-b").vertex_location == "europe-west4"
    assert (
        settings_for(location="europe-west4-b", vertex={"location": "europe-west1"}).vertex_location == "europe-west1"
    )


def test_no_run_is_given_what_is_about_runs():
    settings = settings_for(schedule={"cron": "0 3 * * *"}, vertex={"labels": {"team": "a"}})
    given = settings.as_parameters()
    assert given["settings"].keys().isdisjoint({"schedule", "vertex", *given})
    assert given == settings_for().as_parameters()
    assert validated(Settings, {**given.pop("settings"), **given}) == settings_for()


def test_the_component_image_is_the_settings_the_mirror_s_or_the_project_s_own():
    built = f"us-central1-docker.pkg.dev/demo-project/gemma-pipelines/python-components:{image.VERSION}"
    assert image.wanted(settings_for()) == built
    mirror = settings_for(images={"registry": "example.com/mirror"})
    assert image.wanted(mirror) == f"example.com/mirror/{image.DEFAULT}"
    # What is there already is not looked for in the mirror of the mirror.
    assert mirrored(mirror, image.wanted(mirror)) == image.wanted(mirror)
    named = settings_for(images={"registry": "example.com/mirror", "components": "example.com/own:1"})
    assert image.wanted(named) == "example.com/own:1"


def test_names_shown_by_vertex_fit_and_stay_apart():
    longest = {"cluster": "c" * 40, "namespace": "n" * 63, "name": "a" * 40}
    one, other = settings_for(**longest), settings_for(**{**longest, "name": "a" * 39 + "b"})
    for shown in (names.schedule, names.shown_run):
        assert len(shown(one)) <= 128
        assert shown(one) != shown(other)
    assert names.schedule(settings_for()) == "gemma-pipelines demo-project/us-central1/gemma/gemma/gemma"
    assert names.schedule(settings_for()) == names.schedule(settings_for(scenario="hyperdisk-ml"))
