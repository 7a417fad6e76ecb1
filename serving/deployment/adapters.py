"""The set of adapters that a generation serves, where adapters change in place.

The ConfigMap names.adapters(GENERATION) says which set its pods are to serve (serving/features/live_adapters.py); the
container `adapters` of each pod sees to it, and says in its log where that stands
(components/deploy_server/adapting.py). What the record knows of the generation is the set that was validated last: what
is taken back to.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from serving import names
from serving.clients.kubernetes import Cluster, Object
from serving.deployment import pods
from serving.deployment.record import Record
from serving.errors import InconclusiveError, ReleaseError
from serving.features import live_adapters
from serving.log import Say
from serving.settings import Settings
from serving.weights.release import Release

_KEY = "wanted.json"
_LINES = 50
_EVERY_SECONDS = 1.0


def amiss(cluster: Cluster, settings: Settings, release: Release, known: Record | None = None) -> str:
    """In what the set that the generation is told to serve is not the release's, in words; empty where it is. With what
    is `known`, also that it was never validated: a run that was killed told the pods of it."""
    if not settings.has_live_adapters:
        return ""
    told = _told(_config_map(cluster, settings, release.generation))
    origin = known.generations.get(release.generation) if known else None
    if told == release.adapters_key and origin and origin.adapters_key != release.adapters_key:
        return f"nobody has validated the adapters {release.adapters_key or '(none)'} that it serves"
    if told == release.adapters_key:
        return ""
    served, wanted = f"the adapters of the set {told}" if told else "no adapters", ", ".join(sorted(settings.adapters))
    return f"it serves {served}, and the settings ask for {wanted or 'none'}"


def wait(cluster: Cluster, settings: Settings, release: Release, seconds: float, say: Say) -> None:
    """Waits until every pod of the generation serves the release's set, byte for byte as its manifest says, or its
    engine has refused some of it.

    Raises ReleaseError with the engine's words for an adapter that it refuses, InconclusiveError for pods that are not
    done in time, with what keeps them.
    """
    give_up, said = time.monotonic() + seconds, ""
    while True:
        states = [_state(cluster, settings, pod) for pod in _pods(cluster, settings, release.generation)]
        if refused := {name: words for state in states for name, words in state.of(release.adapters_key).items()}:
            raise ReleaseError("; ".join(f"the adapter {name}: {words}" for name, words in sorted(refused.items())))
        late = [state for state in states if not state.serves(release.adapters_key, settings.adapters)]
        if states and not late:
            served = ", ".join(sorted(settings.adapters))
            say(f"every pod serves the adapters {served}" if served else "no pod serves an adapter")
            return
        words = (
            "; ".join(f"{state.pod}: {state.waits or 'not yet told of them'}" for state in late) or "no pod is there"
        )
        if words != said:
            say(f"adapters: {words}")
            said = words
        if time.monotonic() > give_up:
            raise InconclusiveError(
                f"after {seconds:.0f} s not every pod serves the adapters {release.adapters_key or '(none)'}: {words}. "
                f"See `kubectl -n {settings.namespace} logs POD -c {live_adapters.CONTAINER}`, then run again"
            )
        time.sleep(_EVERY_SECONDS)  # A log tells nobody that it has grown.


def take_back(cluster: Cluster, settings: Settings, known: Record, say: Say) -> bool:
    """Has the live generation serve the set that was validated last again, where a run that did not come to its end
    gave it another. Returns whether there was anything to take back. Pods follow by themselves."""
    origin = known.generations.get(known.live)
    if not settings.has_live_adapters or origin is None:
        return False
    there = _config_map(cluster, settings, known.live)
    if there is None or _told(there) == origin.adapters_key:
        return False
    folder = origin.weights_uri.rpartition("/")[0]
    before = live_adapters.wanted(f"{folder}/{origin.adapters_key}" if origin.adapters_key else "")
    cluster.patch("ConfigMap", names.adapters(known.live), settings.namespace, {"data": {_KEY: before}})
    say(f"{known.live} serves the adapters {origin.adapters_key or '(none)'} again, not {_told(there) or 'none'}")
    return True


@dataclass(frozen=True)
class _State:
    """What a pod's container said last."""

    pod: str
    key: str | None = None
    served: frozenset[str] = frozenset()
    refused: tuple[tuple[str, str], ...] = ()
    waits: str = ""

    def serves(self, key: str, adapters: Any) -> bool:
        return self.key == key and self.served == set(adapters) and not self.waits

    def of(self, key: str) -> dict[str, str]:
        """What the engine refused of a set."""
        return dict(self.refused) if self.key == key else {}


def _state(cluster: Cluster, settings: Settings, pod: str) -> _State:
    lines = cluster.log(pod, settings.namespace, container=live_adapters.CONTAINER, tail=_LINES).splitlines()
    for line in reversed(lines):
        try:
            found = json.loads(line)
            return _State(
                pod,
                str(found["adapters"]),
                frozenset(map(str, found["served"])),
                tuple((str(name), str(words)) for name, words in found["refused"].items()),
                str(found["waits"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            continue  # What it says between.
    return _State(pod)


def _pods(cluster: Cluster, settings: Settings, generation: str) -> list[str]:
    return [pod["metadata"]["name"] for pod in pods.of(cluster, settings, generation) if _has_the_container(pod)]


def _has_the_container(pod: Object) -> bool:
    containers = pod["spec"].get("initContainers") or []
    return any(container["name"] == live_adapters.CONTAINER for container in containers)


def _config_map(cluster: Cluster, settings: Settings, generation: str) -> Object | None:
    name = names.adapters(generation)  # Listed: a run may list what generations own, and get what has a fixed name.
    return next(iter(cluster.list("ConfigMap", settings.namespace, fields=f"metadata.name={name}")), None)


def _told(config_map: Object | None) -> str:
    """The key of the set in a ConfigMap; empty for none."""
    try:
        return str(json.loads((config_map or {})["data"][_KEY])["weights_uri"]).rpartition("/")[2]
    except (KeyError, TypeError, ValueError):
        return ""
