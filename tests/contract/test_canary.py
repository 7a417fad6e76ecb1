"""A promotion in steps against a cluster with two generations that serve: an engine that dies, a step that is killed or
told to end, a person who has seen enough, and somebody else who writes the entry.

A test sends requests to pods itself, as many as each generation is to have. That weights move requests is the
scenarios' to show, and what becomes of a release that is worse, or that too few ask (tests/scenarios/test_canary.py,
test_inference_gateway.py).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from emulated_cloud.cloud import Cloud

from components.deploy_server import step as deploy_server
from components.promote_generation import step as promote_generation
from components.write_report import step as write_report
from serving import names
from serving.clients import kubernetes
from serving.deployment import disk_images, entrance, record
from serving.deployment.entrance import Note
from serving.rendering import render
from serving.settings import Settings, override
from serving.weights.release import Release
from tests.contract import jobs_site
from tests.contract.test_deploy_server import Site
from tests.contract.test_replacement import in_a_child

GATEWAY = (
    "features=[gateway]",
    "gateway.proxy_ranges=[10.129.0.0/23]",
    "serving.drain_seconds=5",
    "canary.hold=5s",
    "canary.settle=0s",
    "canary.min_requests=10",
    # How much longer an engine takes on a machine that has much else to do says nothing.
    "canary.max_p95_first_token_ratio=0",
)


class Runs:
    """The runs of one deployment behind a gateway, each to a generation of its own by a length of its own."""

    def __init__(self, site: Site):
        self.site = site
        self.cluster = kubernetes.connect(site.settings())
        self.number = 0

    def settings(self, *more: str) -> Settings:
        self.number += 1
        return self.site.settings(*GATEWAY, f"engine.max_model_len={512 + 64 * self.number}", *more)

    def ready(self, settings: Settings, **changes: str) -> Release:
        """A generation of a new run that waits to be promoted."""
        live = record.read(self.cluster, settings).live
        release = self.site.release(settings).model_copy(update={"live": live, **changes})
        self.site.access(settings, release)
        assert deploy_server.run(settings.as_struct(), release.model_dump(), True, []) == (True, [])
        return release

    def promote(self, settings: Settings, release: Release) -> dict[str, Any]:
        """The outcome of the step."""
        try:
            promote_generation.run(settings.as_struct(), release.model_dump())
        except SystemExit:
            pass
        return self.site.outcome(release, "promote_generation")

    def begin(self, settings: Settings, release: Release, step: int = 1) -> multiprocessing.Process:
        """A promotion in a process of its own, which has come to this step."""
        child = in_a_child(lambda: promote_generation.run(settings.as_struct(), release.model_dump()))
        self.wait_for(lambda shares, note: note is not None and note.step == step)
        return child

    def clean_up(self, settings: Settings, release: Release) -> None:
        write_report.clean_up(settings, release.run_id, lambda line: None)

    def serve(self) -> Release:
        settings = self.settings()
        release = self.ready(settings)
        assert self.promote(settings, release)["status"] == "succeeded"
        self.clean_up(settings, release)
        return release

    def entry(self) -> tuple[dict[str, int], Note | None]:
        config = self.site.settings()
        there = self.cluster.get("HTTPRoute", config.name, config.namespace)
        return entrance.shares_of(there), entrance.note_of(there)

    def wait_for(self, shares: Callable[[dict[str, int], Note | None], bool]) -> None:
        deadline = time.monotonic() + 120
        while not shares(*self.entry()):
            assert time.monotonic() < deadline, self.entry()
            time.sleep(0.05)

    def is_whole(self, live: str) -> None:
        """Whether that generation has all requests, and no other is in the entry."""
        assert self.entry() == ({live: 100}, None)
        known = record.read(self.cluster, self.site.settings(*GATEWAY))
        assert known.live == live

    def addresses(self, generation: str) -> list[str]:
        config = self.site.settings()
        pods = self.cluster.list("Pod", config.namespace, labels=names.selector(config, generation))
        return [pod["status"]["podIP"] for pod in pods if pod.get("status", {}).get("podIP")]

    @contextmanager
    def traffic(self, *generations: str) -> Iterator[None]:
        """Requests to all pods of these generations, two at once, while the block runs."""
        over = threading.Event()
        model = self.site.settings().model
        question = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}

        def ask(address: str) -> None:
            with httpx.Client(base_url=f"http://{address}:{names.PORT}", timeout=60, trust_env=False) as http:
                while not over.is_set():
                    try:
                        http.post("/v1/chat/completions", json=question)
                    except httpx.TransportError:
                        return  # It is gone.
                    over.wait(0.05)

        asked = [address for generation in generations for address in self.addresses(generation) * 2]
        with ThreadPoolExecutor(len(asked)) as pool:
            futures = [pool.submit(ask, address) for address in asked]
            try:
                yield
            finally:
                over.set()
                for future in futures:
                    future.result()


@pytest.fixture(scope="module")
def emulated_cloud(
    tmp_path_factory: pytest.TempPathFactory, tiny_gemma3: Path, emulated_cloud_options: dict[str, Any]
) -> Iterator[Cloud]:
    with jobs_site.up(tmp_path_factory.mktemp("canary"), tiny_gemma3, **emulated_cloud_options) as cloud:
        yield cloud


@pytest.fixture(scope="module")
def kept() -> list[Runs]:
    """The deployment of all tests, once there is one: none of them needs a first generation of its own."""
    return []


@pytest.fixture
def runs(
    kept: list[Runs], cloud_environment: dict[str, str], tiny_gemma3: Path, monkeypatch: pytest.MonkeyPatch
) -> Runs:
    """A deployment with a generation in service, whose last run has ended."""
    monkeypatch.setattr(disk_images, "sweep", lambda *_: None)
    if not kept:
        values = {"scenario": "gcs-fuse", "project": "demo-project", "bucket": "demo-bucket", "endpoint": "ip"}
        more = ["namespace=canary", "serving.request_timeout=5s"]
        made = Runs(Site(override(values, more), tiny_gemma3))
        made.site.upload(made.site.release(made.site.settings(*GATEWAY)))
        made.serve()
        kept.append(made)
    (made,) = kept
    made.site.expire_lease(made.cluster)
    return made


def test_a_generation_that_is_no_worse_takes_over_in_steps(runs: Runs, capsys: pytest.CaptureFixture[str]):
    settings = runs.settings()
    release = runs.ready(settings)
    with runs.traffic(release.live, release.generation):
        outcome = runs.promote(settings, release)
    assert outcome["status"] == "succeeded", outcome
    assert outcome["message"] == f"{release.generation} serves after 2 steps of a canary"
    assert [(each["percent"], each["verdict"]) for each in outcome["canary"]] == [(10, "passed"), (50, "passed")]
    assert outcome["warnings"] == []
    for each in outcome["canary"]:
        for side in ("live", "candidate"):
            assert each[side]["requests"] >= 10
            assert each[side]["errors"] == 0
            assert each[side]["p95_first_token_ms"] > 0
    runs.is_whole(release.generation)
    assert f"10 % to {release.generation}: " in capsys.readouterr().out
    there = runs.cluster.get("Deployment", names.server(release.live), settings.namespace)
    assert there
    assert there["spec"]["replicas"] == 0


def engine_of(address: str) -> int:
    """The process that listens on a pod's address."""
    hexadecimal = "".join(f"{int(part):02X}" for part in reversed(address.split(".")))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (inode,) = {row[9] for row in rows if row[1] == f"{hexadecimal}:{names.PORT:04X}" and row[3] == "0A"}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(link) == f"socket:[{inode}]" for link in (folder / "fd").iterdir()):
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"nobody listens on {address}")


def test_an_engine_that_dies_ends_the_canary_at_once(runs: Runs):
    settings = runs.settings("canary.hold=1h")
    release = runs.ready(settings)
    (address,) = runs.addresses(release.generation)

    def kill() -> None:
        runs.wait_for(lambda shares, note: note is not None)
        time.sleep(1.5)  # The kubelet tells whole seconds: it is to die after the step's first.
        os.kill(engine_of(address), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    outcome = runs.promote(settings, release)
    killer.join()
    assert outcome["status"] == "failed", outcome
    assert "its pod" in outcome["message"]
    assert f"they are {release.live}'s again" in outcome["message"]
    runs.is_whole(release.live)
    assert release.generation in record.read(runs.cluster, settings).rejected


def test_a_step_that_was_killed_goes_on_where_it_was(runs: Runs):
    settings = runs.settings("canary.hold=10s")
    release = runs.ready(settings)
    child = runs.begin(settings, release, step=2)
    _, before = runs.entry()
    assert before
    child.kill()
    child.join()
    assert runs.entry() == ({release.live: 50, release.generation: 50}, before)
    assert record.read(runs.cluster, settings).live == release.live
    outcome = runs.promote(settings, release)
    assert outcome["status"] == "succeeded", outcome
    assert [each["step"] for each in outcome["canary"]] == [2]
    runs.is_whole(release.generation)


def test_what_a_dead_run_left_is_put_back_by_the_next_one(runs: Runs):
    settings = runs.settings("canary.hold=1h")
    dead = runs.ready(settings)
    child = runs.begin(settings, dead)
    child.kill()
    child.join()
    runs.site.expire_lease(runs.cluster)
    after = runs.settings()
    release = runs.site.release(after).model_copy(update={"live": dead.live})
    outcome = runs.site.access(after, release)
    assert f"the share of {dead.generation}" in outcome["changed"]
    assert f"Deployment/{names.server(dead.generation)}" in outcome["changed"]
    runs.is_whole(dead.live)


def test_a_step_that_is_told_to_end_gives_the_requests_back_first(runs: Runs):
    settings = runs.settings("canary.hold=1h")
    release = runs.ready(settings)
    child = runs.begin(settings, release)
    child.terminate()
    runs.wait_for(lambda shares, note: note is None)
    assert runs.entry()[0] == {release.live: 100, release.generation: 0}
    child.join(120)
    assert child.exitcode == 128 + signal.SIGTERM
    assert runs.site.outcome(release, "promote_generation")["error"]["type"] == "ToldToEnd"
    there = runs.cluster.get("Deployment", names.server(release.generation), settings.namespace)
    assert there
    assert there["spec"]["replicas"] == 0, "nothing serves from it"
    assert runs.cluster.list("Job", settings.namespace) == []


@pytest.mark.parametrize("verb", ["promote", "rollback"])
def test_a_person_ends_it_while_the_run_is_at_it(runs: Runs, verb: str):
    settings = runs.settings("canary.hold=1h")
    release = runs.ready(settings)

    def work() -> None:
        try:
            promote_generation.run(settings.as_struct(), release.model_dump())
        finally:
            write_report.clean_up(settings, release.run_id, lambda line: None)

    child = in_a_child(work)
    runs.wait_for(lambda shares, note: note is not None)
    said: list[str] = []
    act = promote_generation.promote_by_hand if verb == "promote" else promote_generation.roll_back
    known = act(runs.cluster, settings, None, said.append)
    child.join(120)
    assert said[0].startswith(f"told the run {release.run_id} to give ")
    outcome = runs.site.outcome(release, "promote_generation")
    if verb == "promote":
        assert (known.live, known.pinned) == (release.generation, None)
        assert outcome["status"] == "succeeded"
    else:
        assert known.live == release.live
        assert known.pinned
        assert (outcome["status"], outcome["error"]["final"]) == ("inconclusive", True)
        assert release.generation not in known.rejected
    runs.is_whole(known.live)


def test_another_field_manager_of_the_entry_is_named_and_left_alone(runs: Runs):
    settings = runs.settings("canary.hold=1h")
    release = runs.ready(settings)

    def take_over() -> None:
        """Argo CD applies what its repository says, a second after the first step."""
        runs.wait_for(lambda shares, note: note is not None)
        body = render.entry(settings, {release.live: 100})
        body["metadata"].pop("annotations", None)
        runs.cluster._connection.call(
            "PATCH",
            f"/apis/gateway.networking.k8s.io/v1/namespaces/{settings.namespace}/httproutes/{settings.name}",
            query={"fieldManager": "argocd-controller", "force": "true"},
            body=body,
            content_type="application/apply-patch+yaml",
        )

    argo = threading.Thread(target=take_over)
    argo.start()
    outcome = runs.promote(settings, release)
    argo.join()
    assert outcome["status"] == "inconclusive", outcome
    assert "somebody else changed the shares" in outcome["message"]
    assert runs.entry()[0] == {release.live: 100}
    # For other tests' sake.
    runs.cluster.apply(render.entry(settings, {release.live: 100}), force=True)
