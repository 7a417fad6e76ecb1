"""What a generation is made of: the model, its LoRA adapters and its assistant, each in a repository of its own.

Each is pinned to a commit of its own, checked as what it is, and lies below the weights' prefix in a folder of its own:
the model at the top, `adapters/NAME/`, `assistant/`. vLLM's loader reads the top of the model's folder alone. But it
guesses the checkpoint's format by `consolidated*.safetensors` at any depth: none of those is ever taken.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from serving.clients import bucket_source, hub
from serving.clients.digest import ServedFile
from serving.clients.source import Source
from serving.clients.wire import Wire
from serving.errors import PipelineError
from serving.weights import adapter, checkpoint, identity
from serving.weights.checkpoint import Chosen

if TYPE_CHECKING:
    from serving.settings import Settings

BASE, ASSISTANT = "base", "assistant"
ADAPTERS_FOLDER = "adapters"


@dataclass(frozen=True)
class Repository:
    """One repository of a release, as the settings name it. `source`: a gs:// folder in the hub's stead."""

    role: str
    model: str
    revision: str
    source: str | None = None

    @property
    def is_adapter(self) -> bool:
        return self.role not in (BASE, ASSISTANT)

    @property
    def folder(self) -> str:
        """Where its files lie below the weights' prefix: empty, or with a slash at its end."""
        if self.role == BASE:
            return ""
        return f"{ADAPTERS_FOLDER}/{self.role}/" if self.is_adapter else f"{ASSISTANT}/"

    @property
    def config(self) -> str:
        return adapter.CONFIG if self.is_adapter else checkpoint.CONFIG

    @property
    def called(self) -> str:
        """What an error about one of its files begins with: nothing for the model itself."""
        if self.role == BASE:
            return ""
        return f"the adapter {self.role} ({self.model}): " if self.is_adapter else f"the assistant ({self.model}): "

    @property
    def setting(self) -> str:
        """The setting that names its folder of a bucket."""
        prefix = {BASE: "", ASSISTANT: "assistant."}.get(self.role, f"adapters.{self.role}.")
        return f"{prefix}source"


def of(settings: Settings) -> list[Repository]:
    """The repositories of a release, the model's first."""
    found = [Repository(BASE, settings.model, settings.revision, settings.source)]
    found += [
        Repository(name, wanted.model, wanted.revision, wanted.source)
        for name, wanted in sorted(settings.adapters.items())
    ]
    if drafting := settings.assistant:
        found.append(Repository(ASSISTANT, drafting.model, drafting.revision, drafting.source))
    return found


@dataclass(frozen=True)
class Part:
    """A repository at its commit, with its files that are served."""

    repository: Repository
    commit: str
    source: Source
    chosen: Chosen

    def config(self) -> bytes:
        """Its config.json or adapter_config.json."""
        found = self.content(self.repository.config)
        assert found is not None, "nothing is chosen without it"
        return found

    def content(self, path: str) -> bytes | None:
        """One of its small files; None when it has none of that name."""
        file = next((file for file in self.chosen.served if file.path == path), None)
        if file is None:
            return None
        wire = Wire()
        try:
            return self.source.content(wire, file)
        finally:
            wire.close()


def find(settings: Settings, commits: dict[str, str] | None = None) -> list[Part]:
    """The repositories as they are now, or at their `commits` (by role), the model's first.

    Raises RequestError for what is not there or cannot be served, AccessError without a grant, InconclusiveError for a
    folder that is not at its commit any more.
    """
    wanted = of(settings)
    # The token is read only when the hub is asked at all.
    asked = hub.of(settings) if any(not repository.source for repository in wanted) else None

    def look_up(repository: Repository) -> Part:
        commit = (commits or {}).get(repository.role)
        source: hub.Snapshot | bucket_source.Folder
        if repository.source:
            source = bucket_source.at(repository.source, repository.setting, commit)
        else:
            assert asked
            if not commit:
                commit = asked.commit(repository.model, repository.revision)
                asked.check_access(repository.model)
            source = asked.at(repository.model, commit)
        chosen = checkpoint.select(source, is_adapter=repository.is_adapter, pickles=settings.hub.allow_pickles)
        return Part(repository, source.commit, source, chosen)

    with concurrent.futures.ThreadPoolExecutor(8, "look-up") as pool:
        return list(pool.map(look_up, wanted))


def weights_key(parts: Iterable[Part]) -> str:
    """The name of the weights that the parts make."""
    return identity.weights_key((part.repository.role, part.chosen.served) for part in parts)


def sets(settings: Settings, parts: Iterable[Part]) -> tuple[list[Part], list[Part]]:
    """The parts of the release's weights, and of its adapters where those are a set of their own, since they change in
    place: else they are part of the weights, and the second is empty."""
    parts = list(parts)
    if not settings.has_live_adapters:
        return parts, []
    return [part for part in parts if not part.repository.is_adapter], [
        part for part in parts if part.repository.is_adapter
    ]


class Together(Source):
    """The files of all parts as those of one source, each below its folder."""

    def __init__(self, parts: list[Part]):
        self._at = dict(self._placed(parts))

    @property
    def name(self) -> str:
        return "the release"

    @staticmethod
    def _placed(parts: list[Part]) -> Iterator[tuple[str, tuple[Source, ServedFile]]]:
        for part in parts:
            for file in part.chosen.files:
                yield part.repository.folder + file.path, (part.source, file)

    def files(self) -> list[ServedFile]:
        return [replace(file, path=path) for path, (_, file) in self._at.items()]

    def locate(self, file: ServedFile) -> tuple[str, dict[str, str]]:
        source, theirs = self._at[file.path]
        return source.locate(theirs)

    def refused(self, file: ServedFile, status: int) -> PipelineError | None:
        source, theirs = self._at[file.path]
        return source.refused(theirs, status)
