"""Generation, metageneration and etag preconditions of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from email.message import Message

from emulated_cloud.storage.errors import GcsError, invalid, not_modified, precondition_failed
from emulated_cloud.storage.store import Bucket, StoredObject


@dataclass(frozen=True)
class Preconditions:
    """What must hold of an object before a request is done; None is not asked for. An object that does not exist
    has generation 0, and no metageneration."""

    generation: int | None = None
    not_generation: int | None = None
    metageneration: int | None = None
    not_metageneration: int | None = None
    etag: str | None = None
    not_etag: str | None = None

    @classmethod
    def of_query(cls, query: Mapping[str, str], headers: Message, source: bool = False) -> Preconditions:
        """Of a JSON request: `ifGenerationMatch` and its kin, `ifSourceGenerationMatch` for a copy's source."""
        prefix = "ifSource" if source else "if"

        def number(condition: str) -> int | None:
            return _number(query.get(prefix + condition), prefix + condition)

        return cls(
            generation=number("GenerationMatch"),
            not_generation=number("GenerationNotMatch"),
            metageneration=number("MetagenerationMatch"),
            not_metageneration=number("MetagenerationNotMatch"),
            etag=None if source else headers.get("If-Match"),
            not_etag=None if source else headers.get("If-None-Match"),
        )

    @classmethod
    def of_headers(cls, headers: Message) -> Preconditions:
        """Of an XML request."""
        return cls(
            generation=_number(headers.get("x-goog-if-generation-match"), "x-goog-if-generation-match"),
            metageneration=_number(headers.get("x-goog-if-metageneration-match"), "x-goog-if-metageneration-match"),
            etag=headers.get("If-Match"),
            not_etag=headers.get("If-None-Match"),
        )

    def as_dict(self) -> dict:
        return asdict(self)

    def check(self, stored: StoredObject | Bucket | None, reading: bool = False) -> None:
        """Raises GcsError: 412, or 304 for a reader that has this version already."""
        generation = stored.generation if stored else 0
        metageneration = stored.metageneration if stored else None
        etag = stored.etag if stored else None
        if (
            (self.generation is not None and self.generation != generation)
            or (self.metageneration is not None and self.metageneration != metageneration)
            or (self.etag is not None and not _names(self.etag, etag))
        ):
            raise precondition_failed()
        if (
            (self.not_generation is not None and self.not_generation == generation)
            or (self.not_metageneration is not None and self.not_metageneration == metageneration)
            or (self.not_etag is not None and _names(self.not_etag, etag))
        ):
            raise not_modified() if reading else precondition_failed()


def _names(header: str, etag: str | None) -> bool:
    """Whether an If-Match or If-None-Match header names this etag."""
    if header.strip() == "*":
        return etag is not None
    return etag in [part.strip().strip('"') for part in header.split(",")]


def _number(text: str | None, name: str) -> int | None:
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise _not_a_number(name, text) from None


def _not_a_number(name: str, text: str) -> GcsError:
    return invalid(f"Invalid value for parameter '{name}': '{text}' is not a valid integer.")
