"""What every step opens with: its parameters validated, its outcome recorded, the cluster under the run's Lease."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from serving import names
from serving.clients import kubernetes, patience
from serving.clients.kubernetes import Cluster
from serving.deployment import canary, lease, leftovers, record, replacement, traffic
from serving.errors import LeaseLostError, PipelineError
from serving.outcome import Outcome, recorded
from serving.settings import Settings, validated
from serving.values import Duration
from serving.weights.release import Release


@dataclass(frozen=True)
class Step:
    """A step that works on a release, while it runs."""

    outcome: Outcome
    settings: Settings
    release: Release

    @contextmanager
    def cluster(self) -> Iterator[Cluster]:
        """The deployment's cluster, which this run alone changes while the block runs.

        Raises InconclusiveError when the run does not hold the Lease (any more).
        """
        cluster = kubernetes.connect(self.settings)
        with self.holding_lease(cluster):
            yield cluster

    @contextmanager
    def holding_lease(self, cluster: Cluster, *, take: bool = False) -> Iterator[None]:
        """Keeps the Lease, which the run has taken already unless this is to `take` it, alive while the block runs.

        Another attempt of a step that was told to end takes it again, and has to bring up what it needs. However the
        block ends without a release that has passed, a generation that made room for this one (`rollout: replace`) has
        its accelerators back.
        """
        run_id = self.release.run_id
        if take or self.outcome.was_told_to_end:
            lease.take(cluster, self.settings, run_id, self.outcome.say)
        with lease.held(cluster, self.settings, run_id), self._taking_back(cluster):
            yield

    @contextmanager
    def _taking_back(self, cluster: Cluster) -> Iterator[None]:
        """Has a generation that made room come back when the block ends without a verdict, or with a no."""
        try:
            yield
        except Exception:
            self.give_back(cluster)
            raise
        if self.outcome.error:
            self.give_back(cluster)

    def bring_up_again(self, cluster: Cluster) -> None:
        """Another attempt of a step that was told to end, which gave the accelerators back, has the generation's pods
        come again before it asks anything of them."""
        if self.outcome.was_told_to_end:
            wanted = self.settings.serving.replicas
            traffic.bring_up(cluster, self.settings, self.release.generation, wanted, self.outcome.say)

    def give_back(self, cluster: Cluster, *, in_a_hurry: bool = False) -> None:
        """The requests of a canary are the live generation's again. Whoever made room for the generation comes back,
        and no other attempt of this run takes it down again. Where nobody did, the accelerators of a step that was told
        to end are given back."""
        generation, say = self.release.generation, self.outcome.say
        try:
            canary.put_back(cluster, self.settings, run_id=self.release.run_id, say=say, patient=not in_a_hurry)
            known = record.read(cluster, self.settings)
            if known.down:
                self.outcome.no_other_attempt = True
                replacement.come_back(cluster, self.settings, known, say, patient=not in_a_hurry)
            elif in_a_hurry:
                leftovers.let_rest(cluster, self.settings, known, generation, say)
        except PipelineError as error:
            say(f"could not give back what {generation} has ({error}); the next run does")


@contextmanager
def opened(name: str, settings: dict[str, Any], release: dict[str, Any]) -> Iterator[Step]:
    """A step, from what resolve_model handed on: the whole settings and the release, as structs."""
    root, run_id = _root(settings, settings.get("bucket")), release["run_id"]

    def step(outcome: Outcome) -> Step:
        return Step(outcome, validated(Settings, settings), Release.model_validate(release))

    with recorded(name, root, run_id, _patience(settings), lambda outcome: _give_back(step(outcome))) as outcome:
        yield step(outcome)


def _give_back(step: Step) -> None:
    """Gives back what the run holds in the cluster, in a hurry: accelerators, and the Lease. Raises InconclusiveError
    when the cluster is away."""
    run_id = step.release.run_id
    try:
        cluster = kubernetes.connect(step.settings)
        with lease.held(cluster, step.settings, run_id):
            step.give_back(cluster, in_a_hurry=True)
        lease.give_back(cluster, step.settings, run_id)
    except LeaseLostError:
        return  # It is not the run's, or not yet.


@contextmanager
def opened_with_parameters(name: str, rest: dict[str, Any], job: str, explicit: dict[str, str]) -> Iterator[Outcome]:
    """A step that has the pipeline's own parameters and the name of the orchestrator's job, and is to validate the
    former itself (from_parameters). The run's id is the outcome's."""
    root, run_id = _root(rest, explicit.get("bucket")), names.run(job)
    with recorded(name, root, run_id, _patience(rest)) as outcome:
        yield outcome


def _root(settings: dict[str, Any], bucket: Any) -> str:
    """Where outcomes go, also of settings that turn out to be wrong."""
    root = settings.get("pipeline_root")
    if isinstance(root, str) and re.fullmatch(r"gs://[^/]+(/.*[^/])?", root):
        return root
    return f"gs://{bucket}/pipelines"


def _patience(settings: dict[str, Any]) -> str:
    """The setting, also of settings that turn out to be wrong."""
    try:
        return TypeAdapter(Duration).validate_python(settings.get("patience", patience.DEFAULT))
    except ValueError:
        return patience.DEFAULT
