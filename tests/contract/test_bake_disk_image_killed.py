"""Baking that ends in the middle: killed between any two calls of Compute Engine, or told to end."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from requests.adapters import HTTPAdapter

from serving.clients import storage
from serving.outcome import recorded
from tests.contract.bake_site import IMAGES, MACHINES, WORKS, Site, emulators, site, there, until

__all__ = ["emulators", "site", "there"]


def dying(number: int, work: Callable[[], Any], *, writes: bool = False) -> Callable[[], None]:
    """`work`, killed when it is about to make its call of this number, or with `writes` as soon as that many of its
    writes have been answered."""

    def run() -> None:
        calls, send = itertools.count(1), HTTPAdapter.send

        def counted(self: HTTPAdapter, request: Any, **options: Any) -> Any:
            counts = "/compute/v1/" in request.url and (not writes or "requestId=" in request.url)
            is_last = counts and next(calls) == number
            if is_last and not writes:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = send(self, request, **options)
            if is_last:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        HTTPAdapter.send = counted  # type: ignore[method-assign]
        work()

    return run


@pytest.mark.parametrize(
    ("again", "writes", "at_least"),
    [pytest.param("another", False, 18, id="any call"), pytest.param("run", True, 4, id="the same run, any write")],
)
def test_what_a_killed_run_left_goes_with_the_next(site: Site, again: str, writes: bool, at_least: int):
    for number in itertools.count(1):
        first = f"run-{number}"
        child = site.in_a_child(dying(number, lambda run_id=first: site.bake(run_id=run_id), writes=writes))
        child.join(60)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        site.bake(run_id=f"{again}-{number}")
        assert list(site.there().values()) == ["READY"], f"killed at call {number}"
        site.clear()
    assert number > at_least


HELD = {"hold": True}


@pytest.mark.parametrize(
    ("fault", "is_there"),
    [
        pytest.param(("POST", MACHINES, {"machine": {"output": WORKS[:2]}}), "RUNNING", id="at work"),
        pytest.param(("POST", MACHINES, HELD), "PROVISIONING", id="starting"),
        pytest.param(("POST", "/stop$", HELD), "STOPPING", id="stopping"),
        pytest.param(("POST", IMAGES, HELD), "PENDING", id="making the image"),
    ],
)
def test_who_is_told_to_end_leaves_nothing(site: Site, fault: tuple[str, str, dict[str, Any]], is_there: str):
    method, path, outcome = fault
    site.script(site.outcome(method, path, **outcome))

    def work() -> None:
        with recorded("bake_disk_image", "gs://demo-bucket/pipelines", "run-1"):
            site.bake()

    child = site.in_a_child(work)
    until(lambda: is_there in site.there().values())
    os.kill(child.pid or 0, signal.SIGTERM)
    child.join(60)
    assert child.exitcode == 128 + signal.SIGTERM
    assert site.consumed() == [1]
    site.script()
    assert site.there() == {}
    known = storage.read_json("gs://demo-bucket/pipelines/run-1/steps/bake_disk_image.json")
    assert known["status"] == "inconclusive"
    assert known["error"]["type"] == "ToldToEnd"
