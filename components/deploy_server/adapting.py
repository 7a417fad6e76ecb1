"""What a pod whose adapters change in place has beside its engine, as long as it runs.

A file (a ConfigMap's) says which set of adapters the engine is to serve. The set is brought from the bucket, each byte
held against its manifest, to a folder that its key names; then the engine loads what is new, loads in place what is
another under the same name, and forgets what is gone. A path is never written again: vLLM keeps what it computed with
one. An engine that started again is given everything again.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from components.deploy_server import bringing
from serving.clients.engine import Adapters, BadAnswer, RefusedAdapter
from serving.errors import PipelineError
from serving.log import Say
from serving.weights import manifest
from serving.weights.repositories import ADAPTERS_FOLDER

TOKEN, DECIDED = "token", "decided"
"""Files of the folder: what opens the engine's routes, and that the engine has been given what it was to have."""
_EVERY_SECONDS = 1.0


class Plan(BaseModel):
    """What to see to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wanted: str
    """The file that names the set: `{"weights_uri": "gs://BUCKET/models/ORG/NAME/KEY"}`, empty for no adapters."""
    folder: str
    """Where sets go: the engine sees it, and no other pod."""
    engine: str
    """The engine's address."""
    patience_seconds: float = Field(ge=0)
    """How long a bucket that is away, or not open to this pod yet, is waited for."""


class Adapting:
    """The state of one pod. `look()` is one round."""

    def __init__(self, plan: Plan, engine: Adapters, say: Say):
        self._wanted, self._folder, self._engine, self._say = Path(plan.wanted), Path(plan.folder), engine, say
        self._said = ""
        self._refused: dict[str, tuple[str, str]] = {}
        """Adapter → (its path, the engine's words): asked once, and again when either changes or the engine started."""

    def look(self) -> None:
        """Brings the engine closer to what it is to serve, and says in one line of JSON where that stands, when it is
        another than before: `{"adapters": KEY, "served": [names], "refused": {name: words}, "waits": words}`, where
        KEY is empty for no adapters, and for what went wrong (`waits`)."""
        try:
            self._look()
        except (BadAnswer, PipelineError, OSError, ValueError) as error:
            self._tell("", [], str(error) or type(error).__name__)

    def _look(self) -> None:
        uri = str(json.loads(self._wanted.read_text(encoding="utf-8"))["weights_uri"])
        key = uri.rpartition("/")[2]
        paths = self._bring(uri, key)
        try:
            served = self._engine.served()
        except BadAnswer as error:
            (self._folder / DECIDED).unlink(missing_ok=True)
            self._refused.clear()
            self._tell(key, [], str(error))
            return
        for name, path in paths.items():
            if served.get(name) != path and self._refused.get(name, ("",))[0] != path:
                self._load(name, path, there=name in served)
        for name in served.keys() - paths.keys():
            self._engine.unload(name)
        served = self._engine.served()
        self._refused = {name: found for name, found in self._refused.items() if paths.get(name) == found[0]}
        right = [name for name, path in paths.items() if served.get(name) == path]
        if len(right) + len(self._refused) == len(paths) and not served.keys() - paths.keys():
            (self._folder / DECIDED).touch()
            self._tell(key, right, "")
            self._clear(key, {Path(path) for path in served.values()})

    def _load(self, name: str, path: str, *, there: bool) -> None:
        try:
            self._engine.load(name, path, in_place=there)
        except RefusedAdapter as error:
            self._refused[name] = path, str(error)

    def _bring(self, uri: str, key: str) -> dict[str, str]:
        """The set's adapters, by their names: where each lies."""
        if not uri:
            return {}
        place = self._folder / key
        if not place.is_dir():
            part = self._folder / f"{key}.part"
            shutil.rmtree(part, ignore_errors=True)
            known, _ = manifest.read_through(uri)
            bringing.bring_files(uri, known.files, part, threads=4, say=self._say)
            part.rename(place)
        return {folder.name: str(folder) for folder in sorted((place / ADAPTERS_FOLDER).iterdir())}

    def _clear(self, key: str, used: set[Path]) -> None:
        """Takes away the sets that the engine serves nothing of: from now on it asks for none of their files again."""
        for found in self._folder.iterdir():
            if found.is_dir() and found.name != key and not any(found in path.parents for path in used):
                shutil.rmtree(found, ignore_errors=True)

    def _tell(self, key: str, served: list[str], waits: str) -> None:
        refused = {name: words for name, (_, words) in self._refused.items()}
        line = json.dumps({"adapters": key, "served": served, "refused": refused, "waits": waits})
        if line != self._said:
            self._say(line)
            self._said = line


def adapt(plan: Plan, say: Say) -> None:
    """Sees to it until the pod ends."""
    folder = Path(plan.folder)
    (folder / DECIDED).unlink(missing_ok=True)
    token = secrets.token_urlsafe(32)
    part = folder / f"{TOKEN}.part"
    part.write_text(token, encoding="ascii")
    part.rename(folder / TOKEN)
    with Adapters.at(plan.engine, token) as engine:
        adapting = Adapting(plan, engine, say)
        while True:
            adapting.look()
            time.sleep(_EVERY_SECONDS)  # Nobody tells of a ConfigMap's new content.
