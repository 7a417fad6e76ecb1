"""`rollout: replace` against a cluster whose accelerators are those of one generation: every card of its kind.

Killed (kill -9) at each write by which one generation makes room for another, or told to end, and what the next run
makes of it; a stock-out in between; a person's rollback. No two generations have pods at one moment.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud.cloud import ACCELERATORS, Cloud

from components.deploy_server import step as deploy_server
from components.discard_generation import step as discard_generation
from components.promote_generation import step as promote_generation
from components.write_report import step as write_report
from serving import names
from serving.clients import kubernetes
from serving.clients.kubernetes import Cluster, Subject
from serving.deployment import disk_images, record
from serving.settings import Settings
from serving.weights.release import Release
from tests.contract.test_deploy_server import Site, site

__all__ = ["site"]

CARDS = "nvidia-h100-80gb"
ONE_GENERATION = (
    f"accelerator.type={CARDS}",
    f"accelerator.count={ACCELERATORS[CARDS]}",
    "rollout=replace",
    # A pod that goes need not serve for ten seconds more.
    "patches=[{kind: Deployment, spec: {template: {spec: {containers: [{name: vllm, lifecycle: null}]}}}}]",
)


class Runs:
    """The runs of one deployment, each to a generation of its own by a length of its own."""

    def __init__(self, site: Site):
        self.site = site
        self.cluster = kubernetes.connect(site.settings())

    def settings(self, number: int, *more: str) -> Settings:
        return self.site.settings(*ONE_GENERATION, f"engine.max_model_len={512 + 64 * number}", *more)

    def release(self, settings: Settings) -> Release:
        """Of a new run that finds what is live now."""
        live = record.read(self.cluster, settings).live
        return self.site.release(settings).model_copy(update={"live": live})

    def begin(self, settings: Settings, release: Release) -> None:
        self.site.access(settings, release)

    def refresh(self, settings: Settings, release: Release) -> None:
        """From the Lease to the exit task; the validation is another test's."""
        try:
            self.begin(settings, release)
            passed, reasons = deploy_server.run(settings.as_struct(), release.model_dump(), True, [])
            assert (passed, reasons) == (True, [])
            promote_generation.run(settings.as_struct(), release.model_dump())
        finally:
            write_report.clean_up(settings, release.run_id, lambda line: None)

    def serve(self, number: int) -> Release:
        settings = self.settings(number)
        release = self.release(settings)
        self.refresh(settings, release)
        return release

    def is_whole(self, live: str) -> None:
        """Whether that generation serves alone."""
        config = self.site.settings()
        known = record.read(self.cluster, config)
        assert (known.live, known.down) == (live, None)
        assert record.serving_generation(record.entry(self.cluster, config)) == live
        pods = {pod["metadata"]["labels"][names.GENERATION] for pod in self.pods()}
        assert pods == {live}
        there = self.cluster.get("Deployment", names.server(live), config.namespace)
        assert there
        assert there["status"]["readyReplicas"] == 1

    def pods(self) -> list[dict[str, Any]]:
        config = self.site.settings()
        found = self.cluster.list("Pod", config.namespace, labels=names.selector(config))
        return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]

    @contextmanager
    def one_at_a_time(self, *, going: bool = True) -> Iterator[None]:
        """Sees every change of a pod meanwhile: no two generations have any; `going`, also pods that are going."""
        config, pods, at_once = self.site.settings(), dict[str, str](), set[frozenset[str]]()
        ended, follows = threading.Event(), threading.Event()

        def look() -> None:
            labels = f"{names.selector(config)},{names.GENERATION}"
            with kubernetes.connect(config).follow(Subject("Pod", config.namespace, labels=labels)) as changes:
                follows.set()
                for change in changes.until(float("inf"), tick=0.2):
                    if change:
                        kind, pod = change
                        counts = kind != "DELETED" and (going or not pod["metadata"].get("deletionTimestamp"))
                        uid, generation = pod["metadata"]["uid"], pod["metadata"]["labels"][names.GENERATION]
                        pods[uid] = generation if counts else ""
                        at_once.add(frozenset(filter(None, pods.values())))
                    elif ended.is_set():
                        return

        thread = threading.Thread(target=look)
        thread.start()
        follows.wait()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        assert max(map(len, at_once)) == 1, at_once
        assert len(frozenset().union(*at_once)) > 1, "it saw them come and go"


@pytest.fixture
def runs(site: Site, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """A deployment with its first generation in service."""
    monkeypatch.setattr(disk_images, "sweep", lambda *_: None)
    made = Runs(site)
    settings = made.settings(0)
    site.upload(site.release(settings))
    made.serve(0)
    return made


def in_a_child(work: Callable[[], None]) -> multiprocessing.Process:
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


def counting(number: int, act: Callable[[], None], work: Callable[[], Any]) -> Callable[[], None]:
    """`work`, in which something happens before its write of this number: those that say who is to have pods, and who
    serves."""

    def run() -> None:
        seen, write = itertools.count(1), Cluster._write

        def counted(self: Cluster, method: str, place: Any, *arguments: Any, **options: Any) -> Any:
            kind, _, name = place[:3]
            stable = kind == "Service" and not names.generation_of(name)
            if (kind in ("ConfigMap", "Deployment") or stable) and next(seen) == number:
                act()
            return write(self, method, place, *arguments, **options)

        Cluster._write = counted  # type: ignore[method-assign]
        work()

    return run


def test_who_is_killed_at_any_write_leaves_what_the_next_run_completes(runs: Runs):
    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with runs.one_at_a_time():
        for number in itertools.count(1):
            settings = runs.settings(number)
            dead = runs.release(settings)
            child = in_a_child(counting(number, kill, lambda dead=dead, own=settings: runs.refresh(own, dead)))
            child.join(300)
            if child.exitcode == 0:
                break
            assert child.exitcode == -signal.SIGKILL
            runs.site.expire_lease(runs.cluster)
            release = runs.release(settings)
            runs.refresh(settings, release)
            runs.is_whole(release.generation)
    runs.is_whole(dead.generation)
    assert number > 7


@pytest.mark.parametrize("number", [2, 4], ids=["before the live one goes", "while the new one comes"])
def test_who_is_told_to_end_has_the_old_one_back(runs: Runs, number: int):
    def tell() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    settings = runs.settings(1)
    release, live = runs.release(settings), runs.release(settings).live

    def work() -> None:
        runs.begin(settings, release)
        deploy_server.run(settings.as_struct(), release.model_dump(), True, [])

    child = in_a_child(counting(number, tell, work))
    child.join(300)
    assert child.exitcode == 128 + signal.SIGTERM
    known = record.read(runs.cluster, settings)
    assert known.down, "until somebody has seen it serve"
    assert known.down.generation == live
    # Nobody of the run is alive any more: its pods come by themselves.
    there = runs.cluster.get("Deployment", names.server(live), settings.namespace)
    assert there
    assert there["spec"]["replicas"] == 1
    with runs.cluster.follow(Subject("Deployment", settings.namespace)) as changes:
        for change in changes.until(float("inf")):
            there = change[1] if change else {"metadata": {"name": ""}}
            if there["metadata"]["name"] == names.server(live) and there.get("status", {}).get("readyReplicas") == 1:
                break
    # Its attempts are over, and its exit task tells that it serves again.
    with pytest.raises(SystemExit):
        deploy_server.run(settings.as_struct(), release.model_dump(), True, [])
    write_report.clean_up(settings, release.run_id, lambda line: None)
    runs.is_whole(live)


def test_a_stock_out_in_between_and_a_rejection_have_the_old_one_serve_again(
    runs: Runs, emulated_cloud: Cloud, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
):
    """The new one wants other cards, of which there are none just now; then the same ones, and is found bad."""
    declining(emulated_cloud.folder / "tmp" / "gke.json", {"nvidia-a100-80gb": "GCE out of resources"}, request)
    other = ("accelerator.type=nvidia-a100-80gb", "accelerator.count=1", "serving.capacity_timeout=15s")
    settings = runs.settings(1, *other)
    release = runs.release(settings)
    with runs.one_at_a_time():
        with pytest.raises(SystemExit):
            runs.refresh(settings, release)
        runs.is_whole(release.live)
    outcome = runs.site.outcome(release, "deploy_server")
    assert outcome["status"] == "inconclusive"
    assert outcome["message"].startswith("no capacity for")
    assert "associated with this pod failed: GCE out of resources" in capsys.readouterr().out
    assert record.read(runs.cluster, settings).rejected == {}

    settings = runs.settings(2)
    bad = runs.release(settings)
    runs.begin(settings, bad)
    with runs.one_at_a_time():
        assert deploy_server.run(settings.as_struct(), bad.model_dump(), True, [])[0]
        with pytest.raises(SystemExit):
            discard_generation.run(settings.as_struct(), bad.model_dump(), ["the answer has no text"])
        runs.is_whole(bad.live)
    assert runs.site.outcome(bad, "discard_generation")["message"].endswith(f"{bad.live} serves again")
    assert set(record.read(runs.cluster, settings).rejected) == {bad.generation}
    write_report.clean_up(settings, bad.run_id, lambda line: None)

    # A person goes on to a third, and back.
    before = bad.live
    after = runs.serve(3).generation
    lines: list[str] = []
    with runs.one_at_a_time():
        promote_generation.roll_back(runs.cluster, runs.settings(3), None, lines.append)
    runs.is_whole(before)
    assert lines[0].startswith(f"rollout: replace: {after} makes room for {before}, and nothing serves until")
    assert "The last time it was" in lines[0]


def declining(config: Path, words: dict[str, str], request: pytest.FixtureRequest) -> None:
    """Has scale-ups of these accelerators fail until the test's end."""

    def write(decline: dict[str, str]) -> None:
        new = config.with_name("gke.json.new")
        new.write_text(json.dumps({**json.loads(config.read_text()), "decline": decline}))
        new.replace(config)

    request.addfinalizer(lambda: write({}))
    write(words)
