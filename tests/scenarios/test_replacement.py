"""`rollout: replace` as a user lives with it, in a project with the accelerators of one generation: a first run, a
refresh whose downtime is said before, killed and run again, and a bad release, after which the old one serves again."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from emulated_cloud.cloud import wait_for
from emulated_cloud.hub import models

from serving.scenarios import find
from tests.scenarios.command import MODEL, Site, Traffic, processes_below

REPLACE = ("--set", "rollout=replace", "--set", "serving.drain_seconds=1")


@pytest.fixture(scope="module")
def site(folder: Path) -> Site:
    """Of one scenario: nothing here is another's."""
    return Site(folder, find("gcs-fuse"))


def test_one_generation_replaces_the_other_and_a_bad_one_has_it_back(site: Site, tiny_gemma3: Path):
    first = site.refresh(tiny_gemma3, *REPLACE)
    assert first["status"] == "succeeded"

    second = Path(shutil.copytree(tiny_gemma3, site.folder / "second"))
    models.write_gemma3(second, seed=7)
    killed = site.run(second, *REPLACE)
    killed.wait_for("deploy_server: applied Deployment/")
    assert killed.stop(signal.SIGKILL) == -signal.SIGKILL
    assert wait_for(lambda: not processes_below(site.state), 120), processes_below(site.state)

    # The record says that nothing serves, so nobody waits for an entry that answers.
    run = site.run(second, *REPLACE)
    found = run.finish()
    assert found["status"] == "succeeded"
    told = run._text()
    assert f"{first['generation']} is down: the run " in told
    assert "did not come back" not in told
    announced = (
        f"rollout: replace: {first['generation']} makes room for {found['generation']}, and nothing serves until"
    )
    assert told.index(announced) < told.index("download_weights: started")

    broken = Path(shutil.copytree(tiny_gemma3, site.folder / "broken"))
    models.zero_weights(broken)
    run = site.run(broken, *REPLACE, "--keep")
    result = run.result()
    assert (result["status"], result["error"]["step"]) == ("failed", "validate_server")
    assert "The last time it was" in run.stderr
    assert f"{found['generation']} serves again" in run.stderr
    run.finish_with_text(code=1)

    again = site.run(second, *REPLACE, "--keep")
    assert again.result()["status"] == "unchanged"
    with Traffic(site.endpoint, MODEL) as traffic:
        assert wait_for(lambda: len(traffic.answers) > 3 or bool(traffic.errors), 120)
    assert traffic.errors == []
    assert again.stop() == 0
