"""The same manifests and requests to the emulated gateway and to real ones: Istio's pilot with Envoy, GAIE's picker.

What differs is in docs/conformance.md. Two pools of one rule are judged for status and split only: this pilot asks one
picker for both (istio #61594).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from emulated_cloud.cloud import Cloud, wait_for
from emulated_cloud.kubernetes.resources import DEPLOYMENTS, GATEWAYS, HTTP_ROUTES, INFERENCE_POOLS, PODS, SERVICES
from emulated_cloud.real.namespace import Namespace
from emulated_cloud.real.parts import PARTS, require

from .gateways import GATEWAY, NAMESPACE, Cluster, Object, conditions, objective, pool, route, serving, shared
from .kube import endpoint

pytestmark = pytest.mark.long
SECONDS = 120.0


@pytest.fixture(scope="module", params=["ours", "real"])
def cloud(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    real = {"gateway"} if request.param == "real" else set()
    require(real)
    folder = tmp_path_factory.mktemp("gateway")
    expose = {"namespace": NAMESPACE, "gateway": GATEWAY, "port": 80, "file": str(folder / "endpoint")}
    with Cloud(folder, real=real, expose=[expose]) as made:
        yield made


@pytest.fixture(scope="module")
def cluster(cloud: Cloud) -> Iterator[Cluster]:
    """With two pools that serve, and a route to the first."""
    made = Cluster.of(cloud)
    with made.client:
        made.apply(*shared(), *serving("one", 2), *serving("two", 1), route("main", {"one": 100}))
        assert wait_for(lambda: all_ready(made), 120), json.dumps(made.list(PODS))
        yield made


def all_ready(cluster: Cluster) -> bool:
    statuses = [(item.get("status") or {}, item["spec"]) for item in cluster.list(DEPLOYMENTS)]
    return all(status.get("readyReplicas") == spec["replicas"] for status, spec in statuses)


@pytest.fixture(scope="module")
def client(cloud: Cloud, cluster: Cluster) -> Iterator[httpx.Client]:
    """Of the Gateway's address, once it answers."""
    with httpx.Client(base_url=endpoint(cloud.expose[0]["file"]), trust_env=False, timeout=60) as made:
        assert wait_for(lambda: answers(made), SECONDS)
        yield made


def answers(client: httpx.Client) -> bool:
    try:
        return ask(client).status_code == 200
    except httpx.TransportError:
        return False


def ask(client: httpx.Client, model: str = "base", path: str = "/v1/completions", **more: object) -> httpx.Response:
    headers = more.pop("headers", None)
    return client.post(path, json={"model": model, "prompt": "Hello", **more}, headers=headers)  # type: ignore[arg-type]


def who(client: httpx.Client, path: str = "/v1/completions") -> str:
    """The pool that answers, or the status of a refusal: a new pool of pilot's is away for a moment."""
    answer = ask(client, path=path)
    pool: str = answer.json()["pool"] if answer.status_code == 200 else str(answer.status_code)
    return pool


def counted(client: httpx.Client, requests: int) -> Counter[str]:
    """How many answers each pool gave; all have to be answers."""
    with ThreadPoolExecutor(4) as workers:
        found = list(workers.map(lambda _: ask(client), range(requests)))
    assert {answer.status_code for answer in found} == {200}
    return Counter(answer.json()["pool"] for answer in found)


def weigh(cluster: Cluster, client: httpx.Client, **weights: int) -> None:
    """Sets the route's weights and waits until they count: a pool with all of them answers every time."""
    cluster.apply(route("main", weights))
    whole = next((name for name, weight in weights.items() if weight == 100), None)
    if whole:
        assert wait_for(lambda: who(client) == whole, 120)
    time.sleep(0.5)


# -- status ---------------------------------------------------------------------------------------------------------


def test_what_is_right_is_accepted_and_programmed(cluster: Cluster, client: httpx.Client) -> None:
    gateway = cluster.get(GATEWAYS, GATEWAY)
    assert conditions(gateway) | {"Accepted": "True", "Programmed": "True"} == conditions(gateway)
    assert gateway["status"]["addresses"][0]["type"] == "IPAddress"
    (listener,) = gateway["status"]["listeners"]
    assert listener["attachedRoutes"] == 1
    assert conditions({"status": listener}) == {
        **conditions({"status": listener}),
        "Accepted": "True",
        "ResolvedRefs": "True",
        "Programmed": "True",
    }
    right = {"Accepted": "True", "ResolvedRefs": "True"}
    assert conditions(cluster.get(HTTP_ROUTES, "main")) == right
    assert conditions(cluster.get(INFERENCE_POOLS, "one")) == right


BROKEN = {
    "pool-missing": (route("pool-missing", {"nowhere": 1}, "/broken"), "BackendNotFound"),
    "no-group": (route("no-group", {"one": 1}, "/broken", group=None), "InvalidKind"),
    "old-group": (route("old-group", {"one": 1}, "/broken", group="inference.networking.x-k8s.io"), "InvalidKind"),
    "elsewhere": (route("elsewhere", {"one": 1}, "/broken", namespace="default"), "RefNotPermitted"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_backend_that_is_wrong_is_named(cluster: Cluster, client: httpx.Client, name: str) -> None:
    manifest, reason = BROKEN[name]
    cluster.apply(manifest)
    try:
        assert wait_for(lambda: bool(conditions(cluster.get(HTTP_ROUTES, name))), SECONDS)
        assert conditions(cluster.get(HTTP_ROUTES, name)) == {"Accepted": "True", "ResolvedRefs": reason}
        assert wait_for(lambda: ask(client, path="/broken").status_code == 500, 120)
        assert ask(client).status_code == 200
    finally:
        cluster.delete(HTTP_ROUTES, name)


def test_another_gateways_route_is_nobodys(cluster: Cluster, client: httpx.Client) -> None:
    cluster.apply(route("nobodys", {"one": 1}, "/nobodys", gateway="other"), route("seen", {"one": 1}, "/seen"))
    assert wait_for(lambda: bool(conditions(cluster.get(HTTP_ROUTES, "seen"))), SECONDS)
    assert not (cluster.get(HTTP_ROUTES, "nobodys").get("status") or {}).get("parents")
    for name in ("nobodys", "seen"):
        cluster.delete(HTTP_ROUTES, name)


def test_a_missing_picker_shows_in_the_pool_alone(cluster: Cluster, client: httpx.Client) -> None:
    cluster.apply(pool("alone", picker="nobody"), route("alone", {"alone": 1}, "/alone"))
    right = {"Accepted": "True", "ResolvedRefs": "True"}
    broken = {"Accepted": "True", "ResolvedRefs": "InvalidExtensionRef"}
    assert wait_for(lambda: conditions(cluster.get(INFERENCE_POOLS, "alone")) == broken, SECONDS)
    assert wait_for(lambda: conditions(cluster.get(HTTP_ROUTES, "alone")) == right, SECONDS)
    cluster.delete(HTTP_ROUTES, "alone")
    cluster.delete(INFERENCE_POOLS, "alone")


def test_a_picker_without_a_port_is_refused(cluster: Cluster) -> None:
    made = pool("portless")
    del made["spec"]["endpointPickerRef"]["port"]
    answer = cluster.try_apply(made)
    assert answer.status_code == 422
    assert "port is required when kind is 'Service' or unspecified" in answer.json()["message"]


# -- requests -------------------------------------------------------------------------------------------------------


def test_models_are_answered_by_their_name(client: httpx.Client) -> None:
    assert ask(client, "base").json()["pool"] == "one"
    assert ask(client, "ko").status_code == 200
    unknown = ask(client, "nobody")
    assert (unknown.status_code, unknown.json()["error"]["message"]) == (404, "no such model")


def test_both_servers_of_a_pool_are_picked(client: httpx.Client) -> None:
    pods = Counter(ask(client, prompt=f"{number} is another").json()["pod"] for number in range(30))
    assert len(pods) == 2


def test_what_is_not_json_is_refused_by_the_picker(client: httpx.Client) -> None:
    answer = client.post("/v1/completions", content=b"no json", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


def test_a_stream_passes_as_it_comes(client: httpx.Client) -> None:
    begun, came = time.monotonic(), []
    with client.stream("POST", "/v1/completions", json={"model": "base", "prompt": "Hello", "stream": True}) as answer:
        for line in answer.iter_lines():
            if line:
                came.append((line, time.monotonic() - begun))
    assert [line for line, _ in came] == ["data: one"] * 4 + ["data: [DONE]"]
    assert came[-1][1] - came[0][1] > 0.3, "it took 1.2 s"


def test_a_request_that_may_be_shed_is_when_all_wait(cluster: Cluster, client: httpx.Client) -> None:
    """An objective of the new group counts, by the header that both pickers know."""
    cluster.apply(objective("batch", "two", -1), route("shed", {"two": 1}, "/shed"))
    header = {"x-gateway-inference-objective": "batch"}
    # Until the route counts, the one to everything else answers.
    assert wait_for(lambda: who(client, "/shed") == "two", SECONDS)
    assert ask(client, path="/shed", waiting=20).status_code == 200
    assert wait_for(lambda: ask(client, path="/shed", headers=header).status_code == 429, SECONDS)
    assert "dropped" in ask(client, path="/shed", headers=header).text
    assert ask(client, path="/shed", waiting=0).status_code == 200
    assert wait_for(lambda: ask(client, path="/shed", headers=header).status_code == 200, SECONDS)
    cluster.delete(HTTP_ROUTES, "shed")


# -- weights --------------------------------------------------------------------------------------------------------


def test_weights_are_kept(cluster: Cluster, client: httpx.Client) -> None:
    weigh(cluster, client, one=80, two=20)
    assert wait_for(lambda: who(client) == "two", 120)
    assert 10 <= counted(client, 200)["two"] <= 75
    weigh(cluster, client, one=0, two=100)
    assert counted(client, 40) == {"two": 40}
    weigh(cluster, client, one=100, two=0)
    assert counted(client, 40) == {"one": 40}


def test_a_stream_ends_where_it_began(cluster: Cluster, client: httpx.Client) -> None:
    began, lines = threading.Event(), []

    def follow() -> None:
        asked = {"model": "base", "prompt": "Hello", "stream": True}
        with client.stream("POST", "/v1/completions", json=asked) as answer:
            for line in answer.iter_lines():
                began.set()
                lines.append(line)

    thread = threading.Thread(target=follow)
    thread.start()
    assert began.wait(60)
    cluster.apply(route("main", {"one": 0, "two": 100}))
    assert wait_for(lambda: who(client) == "two", 120)
    thread.join(60)
    assert [line for line in lines if line] == ["data: one"] * 4 + ["data: [DONE]"]
    weigh(cluster, client, one=100, two=0)


# -- the end --------------------------------------------------------------------------------------------------------


def test_nothing_of_a_gateway_outlives_it(cloud: Cloud, cluster: Cluster, client: httpx.Client) -> None:
    """Runs last: it takes the Gateway away."""
    made: list[Object] = cluster.list(DEPLOYMENTS) + cluster.list(SERVICES)
    cluster.delete(GATEWAYS, GATEWAY)
    name = f"{GATEWAY}-gke-l7-rilb"

    def gone() -> bool:
        left = cluster.list(DEPLOYMENTS) + cluster.list(SERVICES)
        return name not in {item["metadata"]["name"] for item in left}

    assert wait_for(gone, SECONDS)
    if cloud.real:
        assert [item["metadata"]["name"] for item in made].count(name) == 2
    assert wait_for(lambda: not answers(client), SECONDS)


def test_it_does_not_outlive_pilot(cloud: Cloud, cluster: Cluster) -> None:
    """After everything else: it ends the controller."""
    if not cloud.real:
        pytest.skip("there is none")
    found = [
        pid
        for pid in Path("/proc").glob("[0-9]*")
        if command(pid)[:1] == [str(PARTS["gateway"].folder / "pilot-discovery")]
    ]
    (pilot,) = [pid for pid in found if str(cloud.folder) in " ".join(command(pid))]
    os.kill(int(pilot.name), signal.SIGKILL)
    assert wait_for(lambda: "pilot-discovery was ended by SIGKILL" in cloud.loss, 120), cloud.loss


def command(process: Path) -> list[str]:
    try:
        return (process / "cmdline").read_text().split("\0")
    except OSError:
        return []


def test_the_pickers_contract_holds_for_the_real_one(tmp_path: Path) -> None:
    """It listens on all addresses: in a network of its own. What is ours alone, or newer, is skipped there."""
    require(["gateway"])
    own = Namespace.start(tmp_path / "namespace.log")
    file = Path(__file__).parents[1] / "contract" / "test_endpoint_picker.py"
    try:
        done = subprocess.run(
            [*own.prefix, sys.executable, "-m", "pytest", "-q", "-n", "0", str(file)],
            env={**os.environ, "EPP_CONTRACT": str(PARTS["gateway"].folder / "epp")},
            capture_output=True,
            text=True,
        )
    finally:
        own.stop()
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(done.stdout.rpartition(" passed")[0].rpartition("\n")[2]) >= 20
