"""Roles on the bucket for accounts of the cluster: which of them runs gave, and which deployments need them.

To IAM, accounts of one name in two clusters of a project are one, and GKE's own is everybody's: a role may be several
deployments'. Those that runs gave are remembered beside the weights (names.binding_record), and that is written before
anything is given: so whatever ends a run, the next one knows. A role that a person gave is used, and never taken.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel

from serving import names
from serving.clients import storage
from serving.clients.storage import PreconditionError
from serving.errors import AccessError, InconclusiveError, RequestError
from serving.features import Binding
from serving.log import Say
from serving.settings import Settings


class Known(BaseModel):
    """What deployments remember of a role that runs gave."""

    role: str
    member: str
    needed_by: list[str] = []
    """The places (names.place) of the deployments that need it."""


def give(settings: Settings, binding: Binding) -> bool:
    """Gives a role on the bucket, and remembers it as the deployment's, unless somebody else gave it: returns whether
    it changed anything. Raises AccessError without the right to, RequestError for a role that there is not."""
    uri = names.binding_record(settings, binding.role, binding.member)
    known = Known(role=binding.role, member=binding.member)
    there = storage.has_bucket_binding(settings.bucket, binding.role, binding.member)
    if there and storage.read_json(uri) is None:
        return False

    def join(needed_by: list[str]) -> list[str]:
        return sorted({*needed_by, names.place(settings)})

    _note(uri, known, join)
    try:
        return not there and storage.ensure_bucket_binding(settings.bucket, binding.role, binding.member)
    except (AccessError, RequestError):
        storage.delete(uri)  # Whoever now gives it by hand, as the error says, keeps it.
        raise


def present(settings: Settings) -> list[Known]:
    """The roles that runs gave and that the deployment needs. Reads only."""
    found = [(storage.read_json(uri) or {}) for uri in storage.list_uris(names.binding_records(settings))]
    known = [Known.model_validate(value) for value in found if value]
    return [each for each in known if names.place(settings) in each.needed_by]


def leave_all(settings: Settings, say: Say) -> list[Known]:
    """Gives up the deployment's roles. Returns those that were taken: nobody else needs them."""
    return [known for known in present(settings) if _leave(settings, known, say)]


def called(settings: Settings, known: Known | Binding) -> str:
    """A role in words: of whom, on what."""
    return f"{known.role} on gs://{settings.bucket} from {known.member.partition('/subject/')[2]}"


def _leave(settings: Settings, known: Known, say: Say) -> bool:
    uri, place = names.binding_record(settings, known.role, known.member), names.place(settings)

    def part(needed_by: list[str]) -> list[str]:
        # The last one's name stays until the role is taken: whoever is ended in between finds it again.
        return [other for other in needed_by if other != place] or [place]

    needed_by, generation = _note(uri, known, part)
    if needed_by != [place]:
        say(f"{called(settings, known)} is not taken: {needed_by[0]} needs it")
        return False
    taken = storage.remove_bucket_binding(settings.bucket, known.role, known.member)
    if not storage.delete(uri, generation):
        # Another deployment came to need it in this very moment.
        storage.ensure_bucket_binding(settings.bucket, known.role, known.member)
        return _leave(settings, known, say)
    if taken:
        say(f"took {called(settings, known)}")
    return taken


def _note(uri: str, known: Known, change: Callable[[list[str]], list[str]]) -> tuple[list[str], int]:
    """Changes who needs a role. Returns who does, and the object's generation."""
    for _ in range(10):
        value, generation = storage.read_json_with_generation(uri)
        needed_by = change(Known.model_validate(value).needed_by if value else [])
        if value and needed_by == value.get("needed_by"):
            return needed_by, generation
        try:
            changed = known.model_copy(update={"needed_by": needed_by})
            return needed_by, storage.write_json(uri, changed.model_dump(), if_generation_match=generation)
        except PreconditionError:
            continue  # Another deployment wrote meanwhile: look again.
    raise InconclusiveError(f"{uri} kept changing while it was written. Run again")
