"""The step that says where a generation serves: on which accelerators, and from the disks of which zones."""

from __future__ import annotations

from typing import Any

from components.verify_placement import accelerators, zones
from serving.step import opened


def run(settings: dict[str, Any], release: dict[str, Any], passed: bool, reasons: list[str]) -> tuple[bool, list[str]]:
    """Looks at the placement, and hands the verdict on as it is."""
    with opened("verify_placement", settings, release) as step:
        outcome, config, target = step.outcome, step.settings, step.release
        if not passed:
            outcome.skipped("nothing is looked at: the release has failed already")
            return passed, reasons
        said = []
        with step.cluster() as cluster:
            step.bring_up_again(cluster)
            if "hyperdisk-ml" in config.chosen_features:
                placement = zones.verify(cluster, config, target)
                outcome.details["placement"] = placement
                where = ", ".join(f"{len(pods)} in {zone}" for zone, pods in placement.items())
                said.append(f"from the disk of its own zone: {where}")
            if "gpu-or-tpu" in config.chosen_features:
                came, waiting = accelerators.verify(cluster, config, target, outcome.say)
                outcome.details.update(accelerators=came, waiting=waiting)
                said.append("; ".join([accelerators.in_words(came), *waiting]))
        outcome.succeeded(f"{target.generation} serves {', and '.join(said)}")
    return passed, reasons
