"""Listing a bucket: prefix, delimiter, offsets, glob and pages."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from emulated_cloud.storage.errors import invalid
from emulated_cloud.storage.store import StoredObject

PAGE = 1000


@dataclass(frozen=True)
class Listing:
    """What a list request asks for."""

    prefix: str = ""
    delimiter: str = ""
    start: str = ""
    end: str = ""
    glob: str = ""
    include_trailing_delimiter: bool = False
    max_results: int = PAGE
    page_token: str = ""

    @classmethod
    def of_query(cls, query: dict[str, str]) -> Listing:
        """Raises GcsError 400."""
        try:
            most = int(query.get("maxResults", PAGE))
        except ValueError:
            most = -1
        if most < 1:
            raise invalid(f"Invalid unsigned integer value: '{query['maxResults']}'.")
        return cls(
            prefix=query.get("prefix", ""),
            delimiter=query.get("delimiter", ""),
            start=query.get("startOffset", ""),
            end=query.get("endOffset", ""),
            glob=query.get("matchGlob", ""),
            include_trailing_delimiter=query.get("includeTrailingDelimiter", "").lower() == "true",
            max_results=min(most, PAGE),
            page_token=query.get("pageToken", ""),
        )

    def of(self, objects: Iterable[StoredObject]) -> tuple[list[StoredObject], list[str], str | None]:
        """One page: objects, prefixes, and the token of the next page. Objects and prefixes count alike, in the
        order of their names."""
        entries: dict[tuple[str, bool], StoredObject] = {}
        glob = re.compile(glob_to_regex(self.glob)) if self.glob else None
        for stored in objects:
            name = stored.name
            wanted = name.startswith(self.prefix) and name >= self.start and not (self.end and name >= self.end)
            if not wanted or (glob and not glob.fullmatch(name)):
                continue
            cut = name.find(self.delimiter, len(self.prefix)) if self.delimiter else -1
            if cut < 0:
                entries[name, False] = stored
                continue
            folder = name[: cut + len(self.delimiter)]
            entries[folder, True] = stored
            if folder == name and self.include_trailing_delimiter:
                entries[name, False] = stored
        keys = sorted(entries)
        if self.page_token:
            keys = [key for key in keys if key > decode_token(self.page_token)]
        page = keys[: self.max_results]
        token = encode_token(page[-1]) if len(keys) > len(page) else None
        items = [entries[key] for key in page if not key[1]]
        return items, [name for name, is_prefix in page if is_prefix], token


def encode_token(key: tuple[str, bool]) -> str:
    return base64.urlsafe_b64encode(f"{key[1]:d}{key[0]}".encode()).decode()


def decode_token(token: str) -> tuple[str, bool]:
    """Raises GcsError 400."""
    try:
        text = base64.urlsafe_b64decode(token).decode()
        return text[1:], text[0] == "1"
    except (ValueError, IndexError):
        raise invalid("Invalid page token.") from None


def glob_to_regex(glob: str) -> str:
    """GCS's globs: `*` and `?` stop at a slash, `**` does not, `[…]`, `{a,b}`. Raises GcsError 400."""
    out, depth, position = "", 0, 0
    while position < len(glob):
        character = glob[position]
        if glob.startswith("**", position):
            out, position = out + ".*", position + 1
        elif character == "*":
            out += "[^/]*"
        elif character == "?":
            out += "[^/]"
        elif character == "[" and (close := glob.find("]", position + 2)) > 0:
            inside = glob[position + 1 : close].replace("\\", "\\\\")
            out, position = out + "[" + ("^" + inside[1:] if inside[0] in "!^" else inside) + "]", close
        elif character == "{":
            out, depth = out + "(?:", depth + 1
        elif character == "}" and depth:
            out, depth = out + ")", depth - 1
        elif character == "," and depth:
            out += "|"
        else:
            out += re.escape(character)
        position += 1
    try:
        re.compile(out)
    except re.error:
        raise invalid(f"Invalid glob pattern: '{glob}'") from None
    return out


def page_of(values: list[Any], key: Any, query: dict[str, str]) -> tuple[list[Any], str | None]:
    """One page of a list that is sorted by `key`, and the token of the next."""
    listing = Listing.of_query(query)
    if listing.page_token:
        last = decode_token(listing.page_token)[0]
        values = [value for value in values if key(value) > last]
    page = values[: listing.max_results]
    return page, encode_token((key(page[-1]), False)) if len(values) > len(page) else None
