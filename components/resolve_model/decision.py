"""Whether a run goes on, and why: a function of what was read, and of nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serving.deployment.record import Record, command
from serving.errors import RejectedBeforeError
from serving.settings import Settings
from serving.weights.release import Release

Verdict = Literal["deploy", "unchanged", "pinned", "validated"]


@dataclass(frozen=True)
class Situation:
    """What the cluster and the bucket say."""

    serving: str = ""
    """The generation that the entry selects."""
    down: str = ""
    """That the live generation is down since a run died that replaced it, in words."""
    canary: str = ""
    """That another generation has a share of the requests, in words."""
    entry_as_wanted: bool = False
    """Whether that is the release's alone, by an entry as the settings have it."""
    replicas: int = 0
    """Pods that the generation's Deployment is to have."""
    settled: bool = False
    """Whether that number is its owner's."""
    autoscaler: str = ""
    """In what the autoscaler of a generation that serves is not as the settings want it."""
    gateway: str = ""
    """In what its endpoint pickers and objectives are not as the settings have them, where it serves."""
    ready: int = 0
    """Pods of them that are ready, of its present template."""
    rolled_out: bool = False
    """Whether all are, and none of an older template is left."""
    settings_digest: str = ""
    """What the generation's Deployment was rendered from; empty without a Deployment."""
    key_version: str = ""
    """The version of the API key that the Deployment's pods are to have."""
    missing: tuple[str, ...] = ()
    """What the generation needs outside of the cluster and is not there, in words."""
    leftovers: tuple[str, ...] = ()
    """What dead runs left, as Kind/name."""
    dead_holder: str = ""
    """A run that holds the Lease although it has run out."""
    caches: str = ""
    """In what the bucket's caches are not as the settings want them."""
    adapters: str = ""
    """In what the set of adapters that the generation is to serve is not the release's, where it changes in place."""
    damage: tuple[str, ...] = ()
    """In what the weights in the bucket are not what their manifest says; why there is none."""


@dataclass(frozen=True)
class Decision:
    verdict: Verdict
    reason: str

    @property
    def proceed(self) -> bool:
        return self.verdict == "deploy"

    @property
    def leaves_another(self) -> bool:
        """Whether another generation than the release's is left in service, by a person's word."""
        return self.verdict in ("pinned", "validated")


def decide(settings: Settings, release: Release, record: Record, situation: Situation, digest: str) -> Decision:
    """What to do with a release; `digest` is of what would be rendered for it.

    `retry` overrides a rejection and a pin. Raises RejectedBeforeError.
    """
    generation = release.generation
    if generation == record.live:
        wrong = _wrong(settings, release, situation, digest, serving=True)
        if not wrong:
            return Decision("unchanged", f"{generation} is live and healthy")
        if situation.adapters and not settings.retry and (rejected := record.rejected.get(release.adapters_key)):
            raise RejectedBeforeError(
                f"the adapters {release.adapters_key} were rejected at {rejected.at} by run {rejected.run_id}: "
                f"{rejected.reason}. They are not tried again by themselves: `--retry` does"
            )
        return Decision("deploy", f"{generation} is live, but {wrong}")
    if not settings.retry:
        if rejected := record.rejection_of(release):
            raise RejectedBeforeError(
                f"{generation} ({release.model} at {release.commit[:12]}) was rejected at {rejected.at} by run "
                f"{rejected.run_id}: {rejected.reason}. It is not tried again by itself: `--retry` does"
            )
        if record.pinned and record.pinned.generation != generation:
            pin = record.pinned
            return Decision(
                "pinned",
                f"the deployment is pinned to {pin.generation} since {pin.at} ({pin.reason}); {generation} "
                f"({release.model} at {release.commit[:12]}) is not deployed. {command('promote', pin.generation)} "
                "lifts the pin; `--retry` goes against it",
            )
        if generation == record.validated and settings.promotion == "manual":
            wrong = _wrong(settings, release, situation, digest, serving=False)
            if not wrong:
                return Decision("validated", f"{generation} is validated and waits for {command('promote')}")
            return Decision("deploy", f"{generation} waits to be promoted, but {wrong}")
    return Decision("deploy", _what_is_new(settings, release, record))


def _wrong(settings: Settings, release: Release, situation: Situation, digest: str, *, serving: bool) -> str:
    """What keeps a generation from being as it should be, in words; empty when nothing does."""
    if serving and situation.down:
        return situation.down
    if serving and situation.serving != release.generation:
        return f"{settings.name} sends requests to {situation.serving or 'no generation'}"
    if serving and situation.canary:
        return situation.canary
    if serving and not situation.entry_as_wanted:
        return f"the settings of {settings.name}, which clients call, changed"
    if not situation.settings_digest:
        return "its Deployment is gone"
    if situation.key_version != release.api_key_version:
        return f"its API key changed from {situation.key_version or 'none'} to {release.api_key_version or 'none'}"
    if situation.adapters:
        return situation.adapters
    if situation.settings_digest != digest:
        return "its settings changed"
    if not situation.settled:
        return f"it has {situation.replicas} replicas instead of {settings.serving.replicas}"
    if serving and situation.autoscaler:
        return situation.autoscaler
    if serving and situation.gateway:
        return situation.gateway
    if not situation.rolled_out:
        return f"{situation.ready} of its {situation.replicas} pods are ready with its present settings"
    if situation.damage:
        return f"its weights in the bucket are damaged: {'; '.join(situation.damage[:3])}"
    if situation.caches:
        return situation.caches
    if situation.missing:
        return "; ".join(situation.missing)
    if situation.leftovers:
        more = f" and {len(situation.leftovers) - 3} more" if len(situation.leftovers) > 3 else ""
        return f"a dead run left {', '.join(situation.leftovers[:3])}{more}"
    if situation.dead_holder:
        return f"the dead run {situation.dead_holder} holds the Lease"
    return ""


def _what_is_new(settings: Settings, release: Release, record: Record) -> str:
    generation, live = release.generation, record.live
    again = f" (again: {record.rejected[generation].reason})" if generation in record.rejected else ""
    if not live:
        return f"{generation} is the first generation{again}"
    before = record.generations.get(live)
    if before is None or before.weights_key != release.weights_key:
        what = f"{release.model} at {release.commit[:12]} has other weights than"
    else:
        what = "the engine, its flags, accelerator or volume are not those of"
    kept = ", kept from before," if generation in record.kept else ""
    return f"{generation}{kept} replaces {live}: {what} {live}{again}"
