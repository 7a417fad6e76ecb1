"""`kill -9` at a hundred random moments of a transfer, each followed by a run that goes on.

What holds, whenever the kill comes:

    nothing half-written   before the next run, a manifest is there only with everything it names, and every shard that
                           is there is whole
    it completes           the run after the last kill ends well, and every object is right byte for byte
    little twice           of a shard, the bucket receives less than 256 KiB more than its size for each kill: what it
                           had received and not persisted. Of a file that is moved in one piece (4 MiB at most), that
                           piece, and only if it was under way

The network is made slow so that a transfer of 9 MB takes about a second and each of its parts some of it; in some
rounds an upload stops at a random byte, so that the bucket is left with a piece that it does not persist. A round's
second kill meets a run that is itself going on after a kill. KILLS (100) and SEED (a new one each time, shown when the
test fails) are settable in the environment.
"""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from serving import names
from serving.clients import storage
from serving.clients.patience import Patience
from serving.clients.upload import QUANTUM, Upload
from serving.clients.wire import Wire
from serving.settings import Settings
from serving.weights import manifest
from serving.weights.release import Release
from tests.contract.test_download_weights import SHARDS, assert_whole, content
from tests.contract.transfer_site import MIB, SERVED, Site, _site, bring_in_child, site, write_release

__all__ = ["_site", "site"]

KILLS = int(os.environ.get("KILLS", "100"))
PRELOADED = ("google.cloud.storage", "huggingface_hub.hf_api", "huggingface_hub.file_download", "httpx2", "yaml")
AT_ONCE = 5
"""Transfers, of a model each. They mostly wait for the slow network."""
NETWORK = {
    "hub": [
        {"path": "^/cdn/", "seconds": 0.01, "bytes_per_second": 10e6},
        {"path": "^/(?!cdn/)", "seconds": 0.01},
    ],
    "storage": [{"method": "DELETE", "seconds": 0.25}, {"path": "^/(upload|download|storage)", "seconds": 0.01}],
}
PHASES = ("nothing persisted", "in the middle", "all but the manifest")


class Rounds:
    """Rounds of a transfer that is killed, killed again, and goes on to its end."""

    def __init__(self, site: Site, folder: Path, seed: str):
        self.site, self.folder, self.seed = site, folder, seed
        self.kills: collections.Counter[str] = collections.Counter()
        """By the phase in which they came."""
        self.resuming = 0
        """Kills of a run that had something to go on with."""
        self.by_model: dict[str, int] = {}
        """Kills of each model's transfers."""
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        # Forks of one process that has imported everything: a second each is saved.
        self._forks = multiprocessing.get_context("forkserver")
        self._forks.set_forkserver_preload([bring_in_child.__module__, *PRELOADED])
        self._environment = {
            name: site.environment[name]
            for name in ("HF_ENDPOINT", "STORAGE_EMULATOR_HOST", "HF_HUB_DISABLE_PROGRESS_BARS")
        }
        self.seconds = 0.0
        """That a transfer takes from its start to its end, beside others: kills come in that time. Measured again and
        again, as a machine is now busy and now idle."""

    def measure(self) -> None:
        """How long a transfer takes here, beside others."""
        settings, release = self._model("first")
        self._run(settings, release)  # Starts the process that is forked from.

        def timed(number: int) -> float:
            settings, release = self._model(f"measure-{number}")
            started = time.monotonic()
            assert self._run(settings, release)
            return time.monotonic() - started

        with ThreadPoolExecutor(AT_ONCE) as pool:
            self.seconds = max(pool.map(timed, range(AT_ONCE)))

    def stalls(self, count: int) -> list[dict[str, Any]]:
        """Faults for the first rounds: a shard's upload stops at a random byte, so that the kill comes in a chunk."""
        moments = random.Random(self.seed)
        return [
            {
                "action": "stall",
                "method": "PUT",
                "path": f"name=models%2F{quote(self._name(number), safe='')}%2F.*model-00001-of.*upload_id=",
                "after_bytes": moments.randrange(4 * MIB),
                "seconds": 2 * self.seconds,
            }
            for number in range(count)
        ]

    def run_until(self, kills: int) -> None:
        """Rounds of one thread, until so many kills have landed in all threads: all over the life of a transfer, and in
        runs that went on with what the one before had left."""
        while not self._enough(kills):
            self._round(next(self._numbers))

    def _enough(self, kills: int) -> bool:
        of_each_phase = all(self.kills[phase] >= max(1, kills * 0.02) for phase in PHASES)
        return sum(self.kills.values()) >= kills and of_each_phase and self.resuming >= kills * 0.05

    def _round(self, number: int) -> None:
        moments = random.Random(f"{self.seed}/{number}")
        settings, release = self._model(number)
        killed, held = 0, 0
        for _ in range(2):
            if self._run(settings, release, moments.uniform(0, self.seconds)):
                break  # It was quicker.
            killed, resumed = killed + 1, held > 0
            phase, held = self._left_behind(settings, release)
            with self._lock:
                self.kills[phase] += 1
                self.resuming += resumed
        started = time.monotonic()
        assert self._run(settings, release)
        if not held:
            self.seconds = (self.seconds + time.monotonic() - started) / 2
        assert_whole(release.weights_uri, self.folder)
        assert storage.list_uris(_transfers(settings)) == []
        with self._lock:
            self.by_model[settings.model] = killed

    def _name(self, round_: int | str) -> str:
        return f"test/killed-{self.seed}-{round_}"

    def _model(self, round_: int | str) -> tuple[Settings, Release]:
        model = self._name(round_)
        self.site.commit(model, self.folder)
        settings = self.site.settings(model)
        return settings, self.site.release(settings)

    def _run(self, settings: Settings, release: Release, kill_after: float = 60) -> bool:
        """A run in a process of its own, killed after so many seconds. Returns whether it had come to its end."""
        ours, theirs = self._forks.Pipe(duplex=False)
        arguments = (theirs, self._environment, settings.model_dump(mode="json"), release.model_dump())
        child = self._forks.Process(target=bring_in_child, args=arguments)
        child.start()
        theirs.close()
        ours.poll(kill_after)
        child.kill()
        child.join()
        child.close()
        with ours:
            try:
                assert ours.recv() == ""
            except EOFError:
                return False
        return True

    def _left_behind(self, settings: Settings, release: Release) -> tuple[str, int]:
        """What a kill has left, which must be nothing half-written: (the phase it came in, bytes of shards to go on
        with)."""
        there = manifest.listing(release.weights_uri)
        held = 0
        for path in SHARDS & set(there):
            assert content(there[path].uri) == (self.folder / path).read_bytes(), path
            held += there[path].size
        if manifest.read(release.weights_uri)[0]:
            assert_whole(release.weights_uri, self.folder)
            return "complete", held
        if len(there) == len(SERVED | SHARDS):
            return "all but the manifest", held
        wire = Wire()
        for entry in map(storage.read_json, storage.list_uris(_transfers(settings))):
            if entry is None:
                continue  # The dead run's last request was to forget it.
            size = (self.folder / entry["path"]).stat().st_size
            upload = Upload(wire, f"{release.weights_uri}/{entry['path']}", entry["session"], size)
            found = Patience().until_it_works(entry["path"], upload.persisted)  # A stall may meet this, too.
            held += found if isinstance(found, int) else 0
        wire.close()
        return "in the middle" if held else "nothing persisted", held


def _transfers(settings: Settings) -> str:
    return f"{settings.pipeline_root}/transfers/{names.place(settings)}/"


def test_a_transfer_survives_kills_at_any_moment(site: Site, tmp_path: Path):
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(10**9))
    print(f"SEED={seed} KILLS={KILLS}")
    write_release(tmp_path / "release", size=4 * MIB + 123_457)
    network = {
        emulator: [{"action": "slow", "times": 10**9, **condition} for condition in conditions]
        for emulator, conditions in NETWORK.items()
    }
    for emulator, conditions in network.items():
        site.script(emulator, *conditions)
    rounds = Rounds(site, tmp_path / "release", seed)
    rounds.measure()
    site.script("storage", *rounds.stalls(KILLS // 5), *network["storage"])
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for running in [pool.submit(rounds.run_until, KILLS) for _ in range(AT_ONCE)]:
            running.result()

    assert site.consumed("hub")[0] > KILLS
    *stalls, deletes, others = site.consumed("storage")
    assert min(deletes, others) > KILLS
    assert sum(stalls) > KILLS / 20  # The kill may come before it.
    print(
        f"kills: {dict(rounds.kills)}, {rounds.resuming} of runs that were going on; a run takes {rounds.seconds:.1f} s"
    )

    received: collections.Counter[str] = collections.Counter()
    for entry in site.requests("storage"):
        parts = urlsplit(entry["path"])
        if entry["method"] == "PUT" and "upload_id=" in parts.query:
            received[parse_qs(parts.query)["name"][0]] += entry["bytes_in"]
    again = []
    for model, killed in rounds.by_model.items():
        for shard in SHARDS:
            size = (tmp_path / "release" / shard).stat().st_size
            (name,) = [name for name in received if name.startswith(f"models/{model}/") and name.endswith(shard)]
            assert 0 <= received[name] - size <= killed * (QUANTUM - 1)
            again.append(received[name] - size)
    print(f"sent again: {sum(again)} bytes of {sum(received.values())}, of one shard {max(again)} at most")
    assert max(again) > 0
