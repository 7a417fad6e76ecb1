"""ensure_cluster's node pools, against the emulated container API: made once, whatever happens on the way.

Every exchange is held against the API's discovery document.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import requests

from components.ensure_cluster import step
from serving import names
from serving.clients import google, node_pools
from serving.errors import InconclusiveError, RequestError
from serving.settings import Settings, validated
from tests.contract.discovery import Conformance
from tests.contract.google_process import TOKEN, GoogleProcess

CREATE = {"method": "POST", "path": "/nodePools$"}
POOLS = ["l4-spot", "l4", "v6e-1"]


class Container(GoogleProcess):
    """The container API of a project with a Standard cluster and an Autopilot one."""

    def config(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder / "project"),
            "clusters": [
                {
                    "name": name,
                    "location": "us-central1",
                    "endpoint": "127.0.0.1:1",
                    "ca_certificate": "",
                    "version": "1.35.3-gke.1389000",
                    "autopilot": name != "gemma",
                }
                for name in ("gemma", "pilot")
            ],
            **self.options,
        }

    def pools(self) -> dict[str, dict[str, Any]]:
        """Node pools that were made, by their names."""
        file = self.folder / "project" / "node-pools.json"
        found = json.loads(file.read_bytes()) if file.exists() else {}
        return {pool["name"]: pool for pool in found.values()}

    def asked(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return requests.get(f"{self.process.url}/v1/projects/demo/{path}", headers=headers, timeout=60).json()


@pytest.fixture
def site(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    from google.oauth2.credentials import Credentials

    there = Container(tmp_path)
    there.start()
    plain, conformance = google.session, Conformance("container", "v1")

    def checked() -> Any:
        session = plain()
        conformance.watch(session)
        return session

    monkeypatch.setattr(google, "session", checked)
    monkeypatch.setattr(google, "credentials", lambda: Credentials(TOKEN))
    monkeypatch.setattr(node_pools, "_FIRST_LOOK_SECONDS", 0.01)
    monkeypatch.setenv(google.API_ENDPOINT, there.process.url)
    yield there
    there.stop_in_peace()


def settings(nodes: str = "create", **changes: Any) -> Settings:
    base = {"scenario": "fungibility", "project": "demo-project", "bucket": "demo-bucket"}
    section = {"nodes": nodes, **changes.pop("gpu_or_tpu", {})}
    found = validated(Settings, {**base, **changes, "gpu_or_tpu": section})
    return found.model_copy(update={"project": "demo"})


def ensure(config: Settings | None = None, said: list[str] | None = None) -> list[str]:
    return step.ensure_pools(config or settings(), (said if said is not None else []).append)


def posts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the node pools that are asked for from now on."""
    asked: list[str] = []
    call = google.call

    def noted(service: str, method: str, path: str, body: Any = None, **options: Any) -> Any:
        if method == "POST":
            asked.append(body["nodePool"]["name"])
        return call(service, method, path, body, **options)

    monkeypatch.setattr(google, "call", noted)
    return asked


def test_pools_are_made_as_they_have_to_be_and_a_second_time_nothing_is(site: Container, monkeypatch: Any):
    said: list[str] = []
    assert ensure(said=said) == POOLS
    made = site.pools()
    assert {name: pool["status"] for name, pool in made.items()} == dict.fromkeys(POOLS, "RUNNING")
    own = names.pool_class(settings())
    for pool in made.values():
        assert pool["config"]["labels"] == {step.COMPUTE_CLASS: own}
        assert pool["autoscaling"]["enabled"]
    assert any(line.startswith("node pool v6e-1: operation-") for line in said)
    asked = posts(monkeypatch)
    assert ensure() == []
    assert ensure(settings(nodes="check")) == []
    assert asked == []
    shown = site.asked("locations/us-central1/clusters/gemma/nodePools")["nodePools"]
    assert [pool["name"] for pool in shown] == ["default-pool", *sorted(POOLS)]
    assert site.asked("locations/us-central1/clusters/gemma/nodePools/l4") == made["l4"]


def test_check_makes_nothing_and_says_all_that_is_missing_at_once(site: Container):
    with pytest.raises(RequestError) as caught:
        ensure(settings(nodes="check"))
    lines = str(caught.value).splitlines()[1:]
    assert [line.partition(":")[0] for line in lines] == POOLS
    assert all("`gcloud container node-pools create" in line for line in lines)
    assert site.pools() == {}


def test_a_pool_of_somebody_elses_is_refused_before_any_is_made(site: Container):
    body = {"nodePool": {"name": "l4", "config": {"machineType": "g2-standard-8"}, "initialNodeCount": 1}}
    google.call("container", "POST", "v1/projects/demo/locations/us-central1/clusters/gemma/nodePools", body)
    operation = site.asked("locations/us-central1/operations")["operations"][0]["name"]
    site.asked(f"locations/us-central1/operations/{operation}")
    with pytest.raises(RequestError, match="its nodes have no taint"):
        ensure()
    assert list(site.pools()) == ["l4"]


def test_an_answer_that_is_lost_makes_no_second_pool(site: Container, monkeypatch: Any):
    site.set_faults({"action": "unanswered", **CREATE}, {"action": "status", "status": 503, **CREATE})
    asked = posts(monkeypatch)
    assert ensure() == POOLS
    assert site.consumed() == [1, 1]
    # The lost one was not asked for again; the one that was refused for a moment was.
    assert asked == ["l4-spot", "l4", "l4", "v6e-1"]


class Killed(BaseException):
    """What no code catches."""


@pytest.mark.parametrize("after", [False, True], ids=["before a call", "after its answer"])
def test_a_run_that_is_killed_anywhere_is_completed_by_the_next(
    site: Container, monkeypatch: pytest.MonkeyPatch, after: bool
):
    plain = google.call
    killed = 0
    for number in range(1, 200):
        left = number

        def dying(*given: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if not left and not after:
                raise Killed
            answer = plain(*given, **options)
            if not left:
                raise Killed
            return answer

        monkeypatch.setattr(google, "call", dying)
        try:
            ensure()
        except Killed:
            killed += 1
        else:
            break
        if number % 3 == 0:
            # What GKE goes on with meanwhile.
            monkeypatch.setattr(google, "call", plain)
            _let_it_end(site)
    assert killed > 3
    assert {pool["status"] for pool in site.pools().values()} == {"RUNNING"}
    made = site.asked("locations/us-central1/operations")["operations"]
    assert len(made) == len(POOLS), "each was made once"


def _let_it_end(site: Container) -> None:
    for operation in site.asked("locations/us-central1/operations").get("operations", []):
        site.asked(f"locations/us-central1/operations/{operation['name']}")


def test_an_operation_that_an_earlier_attempt_began_is_waited_for_where_it_is(site: Container, monkeypatch: Any):
    site.set_faults({"action": "outcome", "outcome": {"hold": True}, **CREATE})
    with pytest.raises(InconclusiveError) as caught:
        ensure(settings(gpu_or_tpu={"timeout": "5s"}))
    assert "gcloud container operations describe operation-" in str(caught.value)
    assert site.consumed() == [1]
    assert site.pools()["l4-spot"]["status"] == "PROVISIONING"
    asked = posts(monkeypatch)
    site.set_faults()
    assert ensure() == POOLS
    assert asked == ["l4", "v6e-1"], "the first was not asked for again"


def test_a_pool_that_somebody_else_makes_meanwhile_is_waited_for(site: Container, monkeypatch: Any):
    """A cluster makes one at a time: GKE refuses the second while it makes the first."""
    plain = google.call
    raced = []

    def racing(service: str, method: str, path: str, body: Any = None, **options: Any) -> Any:
        if method == "POST" and not raced:
            raced.append(body["nodePool"]["name"])
            other = {"nodePool": {"name": "others", "config": {"machineType": "e2-standard-4"}, "initialNodeCount": 1}}
            plain(service, method, path, other)
        return plain(service, method, path, body, **options)

    monkeypatch.setattr(google, "call", racing)
    assert ensure() == POOLS
    assert raced == ["l4-spot"]
    assert set(site.pools()) == {"others", *POOLS}


def test_what_gke_cannot_make_is_told_in_its_words(site: Container):
    words = "Insufficient quota to satisfy the request: resource \"TPUS\": request requires '1.0' and is short '1.0'."
    site.set_faults({"action": "outcome", "outcome": {"error": {"code": 8, "message": words}}, **CREATE})
    with pytest.raises(RequestError, match="Insufficient quota") as caught:
        ensure()
    assert "gcloud container operations describe" in str(caught.value)
    assert site.consumed() == [1]
    # It is there, and broken: a person takes it away.
    with pytest.raises(RequestError, match="it is ERROR: `gcloud container node-pools delete l4-spot"):
        ensure()


@pytest.mark.parametrize(
    ("cluster", "change", "words"),
    [
        ("pilot", {}, "Autopilot clusters do not support mutating node pools"),
        ("absent", {}, "Not found: projects/demo/locations/us-central1/clusters/absent"),
        ("gemma", {"name": "No_Name"}, "Invalid value for field"),
        ("gemma", {"config": {}}, "must have a machine type"),
        ("gemma", {"autoscaling": {"enabled": True}}, "Max node count must be at least 1"),
    ],
)
def test_what_the_emulator_refuses(site: Container, cluster: str, change: dict[str, Any], words: str):
    where = settings().model_copy(update={"cluster": cluster})
    pool: dict[str, Any] = {**step.wanted(settings(), settings().section("gpu-or-tpu").pools[0]), **change}
    begin: Callable[..., Any] = node_pools.NodePools(where).make
    with pytest.raises(RequestError, match=words):
        begin(pool, 5.0, print)
