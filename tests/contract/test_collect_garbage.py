"""Collection against a bucket: nothing that a deployment names may go, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from emulated_cloud.process import start

from components.collect_garbage.step import collect_generations, collect_runs, collect_weights
from serving import names
from serving.clients import storage
from serving.deployment.record import Known, Record, Rejection
from serving.settings import Settings
from serving.weights import manifest
from tests.contract.transfer_site import Site, _site, folder, model, site
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import SETTINGS, deployment, owned, quick

__all__ = ["_site", "folder", "model", "site"]

PREFIX = "gs://demo-bucket/models/google/gemma-3-4b-it"
OLD, LIVE, OTHERS = "0" * 16, "1" * 16, "2" * 16
NAMESAKE = quick(project="other-project")
"""A deployment of the same name in a cluster of the same name, which shares the bucket."""


def said(_message: str) -> None:
    pass


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bucket with three sets of weights: one that nobody uses, the live one, and another deployment's."""
    process = start(
        "emulated_cloud.storage", "--root", str(tmp_path), "--bucket", "demo-bucket", log=tmp_path / "storage.log"
    )
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", process.url)
    for key in (OLD, LIVE, OTHERS):
        storage.write_json(f"{PREFIX}/{key}/config.json", {})
        storage.write_json(f"{PREFIX}/{key}/_MANIFEST.json", {"key": key})
    storage.write_json(names.weights_in_use(NAMESAKE), {"weights_keys": [OTHERS]})
    storage.write_json("gs://demo-bucket/models/notes.json", {"of": "somebody else"})
    yield
    process.stop()


def cluster_with(live: str = LIVE) -> MemoryCluster:
    cluster = MemoryCluster()
    known = Known(model="m", commit="c", weights_key=live, weights_uri=f"{PREFIX}/{live}")
    Record(live="g1", generations={"g1": known}).write(cluster, SETTINGS)
    return cluster


def keys_there() -> set[str]:
    return {uri.split("/")[-2] for uri in storage.list_uris(f"{PREFIX}/")}


def test_weights_that_no_deployment_names_go_and_the_others_stay(bucket):
    assert collect_weights(cluster_with(), SETTINGS, said) == [f"{PREFIX}/{OLD}"]
    assert keys_there() == {LIVE, OTHERS}
    assert storage.read_json("gs://demo-bucket/models/notes.json")


def test_the_deployments_own_list_names_just_what_its_generations_read(bucket):
    storage.write_json(names.weights_in_use(SETTINGS), {"weights_keys": [OLD, LIVE]})
    collect_weights(cluster_with(), SETTINGS, said)
    assert storage.read_json(names.weights_in_use(SETTINGS)) == {"weights_keys": [LIVE]}


def test_collecting_twice_deletes_nothing_more(bucket):
    collect_weights(cluster_with(), SETTINGS, said)
    assert collect_weights(cluster_with(), SETTINGS, said) == []


@pytest.mark.parametrize("place", ["gemma/gemma/gemma", "other/gemma/gemma"], ids=["called as this", "another"])
def test_an_entry_of_a_version_before_counts_until_a_person_takes_it_away(bucket, place: str):
    entry = f"gs://demo-bucket/deployments/{place}.json"
    storage.write_json(entry, {"weights_keys": [OLD, LIVE]})
    lines: list[str] = []
    assert collect_weights(cluster_with(), SETTINGS, lines.append) == []
    assert keys_there() == {OLD, LIVE, OTHERS}
    assert any(f"`gcloud storage rm {entry}`" in line for line in lines)

    storage.delete(entry)
    lines.clear()
    assert collect_weights(cluster_with(), SETTINGS, lines.append) == [f"{PREFIX}/{OLD}"]
    assert lines == [f"deleted {PREFIX}/{OLD}"]


def test_an_entry_of_a_version_before_that_keeps_nothing_is_not_spoken_of(bucket):
    storage.write_json("gs://demo-bucket/deployments/gemma/gemma/gemma.json", {"weights_keys": [LIVE]})
    lines: list[str] = []
    collect_weights(cluster_with(), SETTINGS, lines.append)
    assert lines == [f"deleted {PREFIX}/{OLD}"]


def test_weights_that_another_deployment_names_meanwhile_get_their_manifest_back(bucket, monkeypatch):
    delete = storage.delete

    def named_just_then(uri: str, generation: int | None = None) -> bool:
        monkeypatch.setattr(storage, "delete", delete)
        storage.write_json(names.weights_in_use(quick(location="europe-west4")), {"weights_keys": [OLD]})
        return delete(uri, generation)

    monkeypatch.setattr(storage, "delete", named_just_then)
    assert collect_weights(cluster_with(), SETTINGS, said) == []
    assert keys_there() == {OLD, LIVE, OTHERS}
    assert storage.read_json(f"{PREFIX}/{OLD}/_MANIFEST.json") == {"key": OLD}


def test_nothing_is_collected_while_nobody_knows_what_a_generation_reads(bucket):
    """The record was lost, and a version that did not note it made the generation."""
    cluster, lines = MemoryCluster(deployment("g1", replicas=0)), []
    storage.write_json(names.weights_in_use(SETTINGS), {"weights_keys": [LIVE]})
    assert collect_weights(cluster, SETTINGS, lines.append) == []
    assert keys_there() == {OLD, LIVE, OTHERS}
    assert storage.read_json(names.weights_in_use(SETTINGS)) == {"weights_keys": [LIVE]}
    assert "nobody knows those of g1" in lines[0]


def test_a_manifest_that_was_written_meanwhile_stays(bucket, monkeypatch):
    uri_of_manifest, theirs = f"{PREFIX}/{OLD}/_MANIFEST.json", {"key": OLD, "theirs": True}
    delete = storage.delete

    def written_just_then(uri: str, *at: int) -> bool:
        monkeypatch.setattr(storage, "delete", delete)
        storage.write_json(names.weights_in_use(quick(location="europe-west4")), {"weights_keys": [OLD]})
        storage.write_json(uri_of_manifest, theirs)
        return delete(uri, *at)

    monkeypatch.setattr(storage, "delete", written_just_then)
    assert collect_weights(cluster_with(), SETTINGS, said) == []
    assert storage.read_json(uri_of_manifest) == theirs


@pytest.mark.parametrize("moment", range(9))
def test_weights_that_a_deployment_names_at_any_moment_of_their_deletion_end_whole(
    site: Site, model: str, folder: Path, monkeypatch: pytest.MonkeyPatch, moment: int
):
    """`moment`: before which of the collector's deletions, the manifest's first, another deployment brings them."""
    site.commit(model, folder)
    theirs = site.settings(model, bucket=f"collected-{moment}")
    storage.client().create_bucket(theirs.bucket, project="demo-project")
    release = site.release(theirs)
    site.bring(theirs, release)
    storage.delete(names.weights_in_use(theirs))

    delete, deletions = storage.delete, []

    def brought_just_then(uri: str, *at: int | None) -> bool:
        deletions.append(uri)
        if len(deletions) == moment + 1:
            monkeypatch.setattr(storage, "delete", delete)
            site.bring(theirs, release)
            monkeypatch.setattr(storage, "delete", brought_just_then)
        return delete(uri, *at)

    monkeypatch.setattr(storage, "delete", brought_just_then)
    collected = collect_weights(cluster_with(), quick(bucket=theirs.bucket), said)
    monkeypatch.undo()
    assert len(deletions) > moment, "the collector came to this moment"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", site.url("storage"))
    assert collected == []
    known, _ = manifest.read(release.weights_uri)
    assert known
    assert manifest.differences(known, manifest.listing(release.weights_uri)) == []


def test_generations_beyond_those_kept_go_the_oldest_first(bucket):
    objects = [body for name in ("g1", "g2", "g3", "g4") for body in [deployment(name), *owned(name)]]
    cluster = MemoryCluster(*objects)
    Record(live="g4", previous="g3", kept=["g3", "g2", "g1"]).write(cluster, SETTINGS)
    assert collect_generations(cluster, SETTINGS, said) == ["g1", "g2"]
    assert cluster.names("Deployment") == {"vllm-g4", "vllm-g3"}


def run_there(run: str, day: int, settings: Settings = SETTINGS, **more: object) -> None:
    folder = f"{SETTINGS.pipeline_root}/{run}"
    resolved = {"name": "resolve_model", "started_at": f"2026-11-{day:02}T03:00:00+00:00", **more}
    storage.write_json(f"{folder}/steps/resolve_model.json", {"deployment": names.place(settings), **resolved})
    storage.write_json(f"{folder}/report.json", {})
    storage.write_text(f"{folder}/task-1/page", "<p>", content_type="text/html")


def runs_there() -> set[str]:
    return {uri.split("/")[4] for uri in storage.list_uris(f"{SETTINGS.pipeline_root}/")}


def test_the_oldest_runs_go_and_the_newest_and_those_that_the_record_names_stay(bucket):
    """The names of runs are in no order."""
    for day, run in enumerate(("e-rejected", "b-old", "d-live", "c-old", "a-new", "f-newest"), 1):
        run_there(run, day)
    known = Known(model="m", commit="c", weights_key=LIVE, weights_uri=f"{PREFIX}/{LIVE}", run_id="d-live")
    rejected = {"g0": Rejection(reason="r", at="t", run_id="e-rejected")}
    record = Record(live="g1", generations={"g1": known}, rejected=rejected)
    assert collect_runs(quick(keep_runs=2), record, "f-newest", said) == ["b-old", "c-old"]
    assert runs_there() == {"e-rejected", "d-live", "a-new", "f-newest"}
    assert collect_runs(quick(keep_runs=2), record, "f-newest", said) == []


def test_the_run_that_collects_keeps_its_folder_though_newer_ones_wait(bucket):
    run_there("this", 1)
    run_there("waits", 2)
    assert collect_runs(quick(keep_runs=1), Record(), "this", said) == []


def test_runs_of_other_deployments_and_what_is_no_run_stay(bucket):
    run_there("old", 1)
    run_there("theirs", 1, NAMESAKE)
    run_there("new", 2)
    storage.write_json(f"{SETTINGS.pipeline_root}/of-nobody/notes.json", {})
    storage.write_json(f"{SETTINGS.pipeline_root}/before/steps/resolve_model.json", {"started_at": "2026-10-01"})
    assert collect_runs(quick(keep_runs=1), Record(), "new", said) == ["old"]
    assert runs_there() == {"theirs", "new", "of-nobody", "before"}


def test_a_run_whose_deletion_was_cut_short_is_found_again(bucket, monkeypatch):
    run_there("old", 1)
    run_there("new", 2)
    delete, deletions = storage.delete, []

    def killed_at_the_last(uri: str) -> bool:
        deletions.append(uri)
        if len(deletions) == 3:
            raise SystemExit(143)
        return delete(uri)

    monkeypatch.setattr(storage, "delete", killed_at_the_last)
    with pytest.raises(SystemExit):
        collect_runs(quick(keep_runs=1), Record(), "new", said)
    monkeypatch.setattr(storage, "delete", delete)
    assert runs_there() == {"old", "new"}
    assert collect_runs(quick(keep_runs=1), Record(), "new", said) == ["old"]
    assert runs_there() == {"new"}
