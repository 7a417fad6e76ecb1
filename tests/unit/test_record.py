"""The record: what a deployment remembers of its generations."""

import json

import pytest

from serving import names
from serving.deployment import record
from serving.deployment.record import Known, Measured, Record, Rejection
from serving.errors import InconclusiveError, RequestError
from serving.rendering import render
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import RELEASE, SETTINGS, behind_a_gateway, deployment, owned, route, service

MEASURED = Measured(load="l", tokens_per_second=640.0, p95_time_to_first_token_ms=20.0, p95_inter_token_latency_ms=2.0)
KNOWN = Known(model="google/gemma-3-4b-it", commit="c" * 40, weights_key="k1", weights_uri="gs://b/models/x/y/k1")


def test_there_is_an_empty_record_before_the_first_run():
    assert record.read(MemoryCluster(), SETTINGS) == Record()


def test_what_is_written_is_read_again():
    cluster = MemoryCluster()
    written = Record(live="g1", generations={"g1": KNOWN}, rejected={"g0": Rejection(reason="r", at="t", run_id="x")})
    written.write(cluster, SETTINGS)
    assert record.read(cluster, SETTINGS) == written
    assert cluster.names("ConfigMap") == {names.record(SETTINGS)}


def test_a_record_that_did_not_change_is_not_written():
    cluster = MemoryCluster()
    Record(live="g1").write(cluster, SETTINGS)
    cluster.calls.clear()
    record.read(cluster, SETTINGS).write(cluster, SETTINGS)
    assert cluster.calls == []


def test_a_record_that_somebody_else_wrote_is_not_overwritten():
    cluster = MemoryCluster()
    Record(live="g1").write(cluster, SETTINGS)
    mine, theirs = record.read(cluster, SETTINGS), record.read(cluster, SETTINGS)
    theirs.put_live("g2")
    theirs.write(cluster, SETTINGS)
    mine.put_live("g3")
    with pytest.raises(InconclusiveError, match="changed while this run held the Lease"):
        mine.write(cluster, SETTINGS)
    assert record.read(cluster, SETTINGS).live == "g2"


def test_two_first_records_do_not_overwrite_each_other():
    cluster = MemoryCluster()
    Record(live="g1").write(cluster, SETTINGS)
    with pytest.raises(InconclusiveError):
        Record(live="g2").write(cluster, SETTINGS)


def test_the_service_says_who_is_live_when_a_run_died_before_it_could_write_the_record():
    cluster = MemoryCluster(service("g2"))
    Record(live="g1").write(cluster, SETTINGS)
    found = record.read(cluster, SETTINGS)
    assert (found.live, found.previous, found.kept) == ("g2", "g1", ["g1"])


def test_promotions_keep_the_newest_first_and_name_the_previous():
    known = Record()
    for generation in ("g1", "g2", "g3"):
        known.put_live(generation)
    assert (known.live, known.previous, known.kept) == ("g3", "g2", ["g2", "g1"])


def test_going_back_takes_the_generation_out_of_those_kept():
    known = Record(live="g2", previous="g1", kept=["g1"])
    known.put_live("g1")
    assert (known.live, known.previous, known.kept) == ("g1", "g2", ["g2"])


def test_a_generation_that_goes_live_is_neither_rejected_nor_waiting_any_more():
    known = Record(validated="g2", rejected={"g2": Rejection(reason="r", at="t", run_id="x")})
    known.put_live("g2")
    assert known.validated == ""
    assert known.rejected == {}


def test_weights_of_kept_and_waiting_generations_are_in_use_and_those_of_rejected_ones_are_not():
    keys = {name: KNOWN.model_copy(update={"weights_key": f"k-{name}"}) for name in ("g1", "g2", "g3", "g4")}
    known = Record(live="g2", kept=["g1"], validated="g3", generations=keys)
    known.rejected["g4"] = Rejection(reason="r", at="t", run_id="x")
    assert known.weights_in_use == {"k-g1", "k-g2", "k-g3"}


def test_writing_forgets_where_generations_came_from_that_nothing_names():
    cluster = MemoryCluster()
    Record(live="g1", generations={"g1": KNOWN, "g0": KNOWN}).write(cluster, SETTINGS)
    assert set(record.read(cluster, SETTINGS).generations) == {"g1"}


def test_a_release_is_remembered_by_its_generation():
    known = Record()
    known.remember(RELEASE)
    assert known.generations[RELEASE.generation].weights_key == RELEASE.weights_key


def test_what_was_measured_stands_until_it_is_measured_again():
    known, later = Record(), RELEASE.model_copy(update={"run_id": "run-3"})
    known.remember(RELEASE, MEASURED)
    known.remember(later)
    origin = known.generations[RELEASE.generation]
    assert (origin.measured, origin.run_id) == (MEASURED, "run-2")
    again = MEASURED.model_copy(update={"load": "another"})
    known.remember(later, again)
    origin = known.generations[RELEASE.generation]
    assert (origin.measured, origin.run_id) == (again, "run-3")


def test_runs_are_those_of_generations_that_are_there_and_of_rejections():
    of = {name: KNOWN.model_copy(update={"run_id": f"run-{name}"}) for name in ("g1", "g2", "g3")}
    known = Record(live="g2", kept=["g1"], generations=of, rejected={"g3": Rejection(reason="r", at="t", run_id="x")})
    assert known.runs == {"run-g1", "run-g2", "x"}


def stored(cluster: MemoryCluster) -> dict:
    return cluster.objects[("ConfigMap", SETTINGS.namespace, names.record(SETTINGS))]


def test_what_a_newer_version_wrote_survives_a_read_and_write_by_this_one():
    newer = {
        "live": "g1",
        "canary": {"candidate": "g2", "step": 3},
        "generations": {"g1": {**KNOWN.model_dump(), "image": "vllm:9"}},
        "rejected": {"g0": {"reason": "r", "at": "t", "run_id": "x", "figures": [1, 2]}},
        "pinned": {"generation": "g1", "at": "t", "reason": "r", "by": "ada"},
    }
    cluster = MemoryCluster()
    Record().write(cluster, SETTINGS)
    stored(cluster)["data"] = {"record.json": json.dumps(newer), "more.json": "{}"}
    stored(cluster)["metadata"]["labels"]["theirs"] = "stays"
    known = record.read(cluster, SETTINGS)
    known.put_live("g3")
    known.write(cluster, SETTINGS)
    written = json.loads(stored(cluster)["data"]["record.json"])
    assert written["canary"] == newer["canary"]
    for key in ("rejected", "pinned", "generations"):
        assert written[key] == newer[key]
    assert (written["live"], written["previous"]) == ("g3", "g1")
    assert stored(cluster)["data"]["more.json"] == "{}"
    assert stored(cluster)["metadata"]["labels"]["theirs"] == "stays"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"record.json": "{"}, "Invalid JSON"),
        ({"record.json": '{"live": 3}'}, "valid string"),
        ({"record.json": "[]"}, "object"),
        ({"other": "{}"}, "it has no record.json"),
        (None, "it has no record.json"),
    ],
)
def test_a_config_map_that_holds_no_record_is_one_clear_error(data: dict | None, words: str):
    cluster = MemoryCluster()
    Record(live="g1").write(cluster, SETTINGS)
    stored(cluster)["data"] = data
    with pytest.raises(RequestError, match=f"gemma/gemma-generations holds no record .*{words}.*kubectl -n gemma edit"):
        record.read(cluster, SETTINGS)


def test_rejections_never_outgrow_a_config_map_and_the_newest_stay():
    cluster, known, forgotten = MemoryCluster(), Record(live="g1"), []
    for number in range(150):
        release = RELEASE.model_copy(update={"generation": f"r{number:03}"})
        forgotten += known.reject(release, ["가" * 1500, "\x01" * 100_000])
        known.write(cluster, SETTINGS)
        assert len(stored(cluster)["data"]["record.json"].encode()) < 1 << 19
    read = record.read(cluster, SETTINGS)
    assert forgotten
    assert forgotten + list(read.rejected) == [f"r{number:03}" for number in range(150)]
    assert set(read.generations) == set(read.rejected)
    assert read.rejected["r149"].reason.endswith("… (the report of run-2 has the rest)")


def test_a_rejection_that_comes_again_is_the_newest():
    known = Record()
    for generation in ("g1", "g2", "g1"):
        known.reject(RELEASE.model_copy(update={"generation": generation}), [])
    assert list(known.rejected) == ["g2", "g1"]
    assert known.rejected["g1"].reason == "it did not pass"


# -- a record that was lost ---------------------------------------------------------------------------------------


def made(generation: str, when: str, **known: str) -> dict:
    body = deployment(generation)
    body["metadata"]["creationTimestamp"] = when
    if known:
        body["metadata"]["annotations"] = {names.RELEASE: json.dumps({**KNOWN.model_dump(), **known})}
    return body


def test_a_record_that_was_lost_is_made_again_of_what_is_there():
    cluster = MemoryCluster(
        made("g1", "2026-11-01T00:00:00Z", weights_key="k1"),
        made("g3", "2026-11-03T00:00:00Z", weights_key="k3"),
        made("g2", "2026-11-02T00:00:00Z", weights_key="k2"),
        *owned("g1"),
        service("g2"),
    )
    found = record.read(cluster, SETTINGS)
    assert found.was_lost
    assert (found.live, found.kept) == ("g2", ["g3", "g1"])
    assert found.previous == "", "g3 may never have served: nobody goes back to it unasked"
    assert found.weights_in_use == {"k1", "k2", "k3"}
    assert not found.of_unknown_origin
    assert cluster.calls == []


def test_weights_that_a_lost_record_alone_knew_are_unknown():
    unreadable = made("g2", "2026-11-02T00:00:00Z")
    unreadable["metadata"]["annotations"] = {names.RELEASE: "{"}
    found = record.read(MemoryCluster(made("g1", "2026-11-01T00:00:00Z"), unreadable), SETTINGS)
    assert found.of_unknown_origin == {"g1", "g2"}


def test_a_run_killed_between_the_traffic_and_the_record_leaves_the_live_weights_known():
    cluster = MemoryCluster(made("g2", "2026-11-02T00:00:00Z", weights_key="k2"), service("g2"))
    Record(live="g1", generations={"g1": KNOWN}).write(cluster, SETTINGS)
    assert record.read(cluster, SETTINGS).weights_in_use == {"k1", "k2"}


def test_the_deployment_says_where_its_generation_came_from():
    (server,) = (item for item in render.render(SETTINGS, RELEASE).generation if item["kind"] == "Deployment")
    known = Record()
    known.remember(RELEASE)
    said = Known.model_validate_json(server["metadata"]["annotations"][names.RELEASE])
    # Not the run: another one that changes nothing would otherwise replace its pods.
    assert said == known.generations[RELEASE.generation].model_copy(update={"run_id": ""})


# -- who is live, by the entry ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "live"),
    [
        (None, ""),
        (service("g2"), "g2"),
        ({"kind": "Service", "metadata": {}, "spec": {"selector": {"app": "theirs"}}}, ""),
        ({"kind": "Service", "metadata": {}, "spec": {}}, ""),
        (route(("g2", 100)), "g2"),
        (route(("g1", 0), ("g2", 100)), "g2"),
        (route(("g1", None), ("g2", 0)), "g1"),
        (route(("g1", 90), ("g2", 10), canary={"live": "g1", "candidate": "g2", "step": 1}), "g1"),
        (route(("g1", 90), ("g2", 10), canary={"live": "g2", "candidate": "g1"}), "g2"),
        (route(("g2", 100), canary={"live": "g1", "candidate": "g2"}), "g2"),
        (route(("g1", 90), ("g2", 10), canary={"live": "g7"}), ""),
        (route(("g1", 90), ("g2", 10), canary="no JSON"), ""),
        (route(("g1", 90), ("g2", 10), canary=["g1"]), ""),
        (route(("g1", 90), ("g2", 10), canary={"live": ["g1"]}), ""),
        (route(("g1", 90), ("g2", 10)), ""),
        (route(("g1", 0), ("g2", 0)), ""),
        ({**route(), "spec": {"rules": [{"backendRefs": [{"name": "somebody-elses", "weight": 1}]}]}}, ""),
        ({**route(), "spec": {}}, ""),
    ],
)
def test_the_entry_says_who_is_live(entry: dict | None, live: str):
    assert record.serving_generation(entry) == live


def test_all_rules_of_a_route_count():
    two = route(("g2", 100))
    two["spec"]["rules"].append({"backendRefs": [{"name": "vllm-g2"}]})
    assert record.serving_generation(two) == "g2"
    two["spec"]["rules"].append({"backendRefs": [{"name": "vllm-g1"}]})
    assert record.serving_generation(two) == ""


def test_the_entry_is_the_object_that_is_rendered_as_it():
    cluster = MemoryCluster(route(("g2", 100)), service("g1"))
    assert record.read(cluster, SETTINGS).live == "g1"
    assert record.read(cluster, behind_a_gateway()).live == "g2"
