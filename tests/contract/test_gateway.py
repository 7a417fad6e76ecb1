"""Traffic through emulated Gateways: real Envoy, real bytes, pods and pickers that are small."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.contract.gateway_site import GKE, Site, Traffic, lines, pool_ref
from tests.contract.kubernetes_cluster import Kube, cluster, kube, wait_for

__all__ = ["cluster", "kube"]


@pytest.fixture
def site(kube: Kube) -> Site:
    return Site(kube)


def test_a_pool_is_served_by_its_picker(site: Site) -> None:
    site.served("old")
    answer = site.post()
    assert (answer.status_code, answer.text, answer.headers["x-picked-by"]) == (200, "old", "old")
    site.server("old2", app="old", HEALTH="/health")
    site.wait_ready("old2")
    where = f"{site.kube.pod('old2').status.pod_ip}:8000"
    wait_for(lambda: {site.ask(x_want=where).text for _ in range(8)} == {"old2"})


def test_a_picker_with_a_certificate_of_its_own(site: Site) -> None:
    site.server("old")
    site.picker("old", plaintext=False)
    site.pool("old")
    site.gateway()
    site.route(pool_ref("old"))
    site.wait_answer("old")
    assert site.post().headers["x-picked-by"] == "old"
