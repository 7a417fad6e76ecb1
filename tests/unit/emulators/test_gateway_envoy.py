"""An Envoy that does not come up, or does not say what it has: whoever waits for it is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from emulated_cloud.gateway import envoy, xds


@pytest.mark.parametrize("command", [["sh", "-c", "echo broken; exit 1"], ["/no/such/program"], ["sleep", "60"]])
def test_an_envoy_that_does_not_start_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setattr(envoy, "START_SECONDS", 0.5)
    monkeypatch.setattr(envoy, "_command", lambda _folder, _address: command)

    async def run() -> None:
        started = envoy.Envoy(tmp_path, "front")
        with pytest.raises(TimeoutError, match="Envoy does not answer"):
            await started.start()
        if started.pid:
            assert not Path(f"/proc/{started.pid}").exists()

    asyncio.run(run())
    if command[0] == "sh":
        assert (tmp_path / "log").read_text().startswith("broken\n")


def test_what_envoy_did_not_take_in_time_is_not_taken_for_granted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may refuse it a moment later: the next pass asks again."""
    monkeypatch.setattr(envoy, "_APPLIED_SECONDS", 0.0)
    silent = envoy.Envoy(tmp_path, "front")
    counts = {"cluster_manager.cds.update_success": 1, "cluster_manager.cds.update_rejected": 0}

    async def updates() -> dict[str, int]:
        return dict(counts)

    monkeypatch.setattr(silent, "_updates", updates)

    async def run() -> None:
        silent._write("clusters.json", "old")
        with pytest.raises(TimeoutError, match=r"Envoy did not take clusters\.json"):
            await silent._put({"clusters.json": "new"})
        rejected = iter([0, 1])

        async def refuses() -> dict[str, int]:
            return {**counts, "cluster_manager.cds.update_rejected": next(rejected)}

        monkeypatch.setattr(silent, "_updates", refuses)
        with pytest.raises(envoy.Refused, match=r"Envoy refused clusters\.json"):
            await silent._put({"clusters.json": "new"})

    asyncio.run(run())


def test_a_pool_stays_while_its_picker_still_looks_at_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is in flight to the pool then, and a moment later it is."""
    front = envoy.Envoy(tmp_path, "front")
    put: list[dict[str, str]] = []
    looks_at = 1

    async def nothing(*_: object) -> None:
        pass

    async def taken(files: dict[str, str]) -> None:
        put.append(files)

    async def stats(_method: str, _path: str) -> str:
        return f"cluster.pool_a.upstream_rq_active: 0\ncluster.picker_a.upstream_rq_active: {looks_at}\n"

    for name, does in (("_until_ready", nothing), ("_wait_until_warm", nothing), ("_put", taken), ("_admin", stats)):
        monkeypatch.setattr(front, name, does)

    async def run() -> None:
        nonlocal looks_at
        assert await front.apply(xds.Files({}, {"pool_a": {}, "picker_a": {}}, {}, {}))
        assert not await front.apply(xds.Files({}, {}, {}, {}))
        assert [put[-1].keys(), front._clusters.keys()] == [{"listeners.json"}, {"pool_a", "picker_a"}]
        looks_at = 0
        assert await front.apply(xds.Files({}, {}, {}, {}))
        assert front._clusters == {}

    asyncio.run(run())
