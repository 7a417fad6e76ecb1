"""Settings from plain values, from a file and from the command line, with errors that say where and what to do."""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from serving import features
from serving.errors import RequestError
from serving.settings import yaml_document
from serving.settings.model import Settings
from serving.settings.sections import entry_of, section_of


def validated(cls: type[Settings], values: dict[str, Any], file: Path | None = None) -> Settings:
    """Builds settings from plain values. Raises RequestError with a line for each thing that is wrong.

    `file` is where the values were read: then the errors say in which line.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        where = _Where(file, values)
        # Of a value that may be one thing or another the first refusal is told.
        items = {path: item for item in reversed(error.errors()) for path in [_path(item, values)]}
        lines = []
        for path in sorted(items, key=lambda path: (where.line(path), list(map(str, path)))):
            words = _explained(items[path], path)
            lines.append(
                f"{where.prefix(path)}{'.'.join(map(str, path))}: {words}" if path else where.prefix_of(words) + words
            )
        raise RequestError("\n".join(lines)) from error


def from_parameters(rest: dict[str, Any], **explicit: Any) -> Settings:
    """Settings from pipeline parameters: the struct `rest` and the explicit fields. Raises RequestError."""
    return validated(Settings, {**rest, **explicit})


def load(file: Path) -> Settings:
    """Settings from a file. Raises RequestError naming file and line."""
    return validated(Settings, read_values(file), file)


def read_values(file: Path) -> dict[str, Any]:
    """The plain values of a settings file, not validated yet. Raises RequestError: unreadable, empty, not YAML."""
    values, _ = yaml_document.parse(_text(file), str(file))
    if not isinstance(values, dict):
        raise RequestError(
            f"{file} {'is empty' if values is None else 'is not a mapping of keys to values'}: `gemma-pipelines init "
            "SCENARIO` writes an example"
        )
    return values


def override(values: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """The values with each `a.b=c` in place. The right side is YAML; a text stays a text where the setting is one.

    Raises RequestError for an assignment that is none, and for an unknown key, naming the closest.
    """
    changed = dict(values)
    for assignment in assignments:
        name, equals, given = assignment.partition("=")
        if not equals or not name:
            raise RequestError(f"--set {assignment}: write KEY=VALUE, as in engine.max_model_len=4096")
        path, annotation = _setting(name)
        value, _ = yaml_document.parse(given, f"--set {name}")
        if isinstance(value, (int, float, datetime.date)) and _is_text(annotation):
            value = given
        inner = changed
        for key in path[:-1]:
            below = inner.get(key)
            inner[key] = dict(below) if isinstance(below, dict) else {}
            inner = inner[key]
        inner[path[-1]] = value
    return changed


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RequestError(f"{file} does not exist: `gemma-pipelines init SCENARIO -o {file}` writes it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file} cannot be read: {error}") from error


def _is_text(annotation: Any) -> bool:
    return annotation is str or str in get_args(annotation)


def _setting(name: str) -> tuple[list[str], Any]:
    """(path, type) of a dotted key. Raises RequestError naming the closest."""
    section: type[BaseModel] = Settings
    path: list[str] = []
    rest = name.split(".")
    while rest:
        key = rest.pop(0)
        path.append(key)
        if key not in section.model_fields:
            if new := features.renamed().get(".".join(path)):
                raise RequestError(f"--set {name}: {key} is now {new}")
            known = list(section.model_fields)
            raise RequestError(f"--set {name}: unknown key {key}{_did_you_mean(key, known)}")
        annotation: Any = section.model_fields[key].annotation
        if rest and (entry := entry_of(annotation)):
            path.append(rest.pop(0))  # The entry's name is the user's own.
            annotation = entry
        inner = section_of(annotation)
        if inner and rest:
            section = inner
            continue
        if inner and inner is annotation:
            raise RequestError(f"--set {name}: name one of its keys ({', '.join(inner.model_fields)})")
        if rest and get_origin(annotation) is dict:
            # A key of metadata may have dots itself: labels.example.com/team.
            return [*path, ".".join(rest)], str
        if rest:
            raise RequestError(f"--set {name}: {'.'.join(path)} has no keys; set it whole")
        return path, annotation
    raise AssertionError(name)


class _Where:
    """Where values come from: a line of the file, or the command line when they differ from the file's."""

    def __init__(self, file: Path | None, values: dict[str, Any]):
        self._file, self._values = file, values
        nothing: tuple[Any, dict[yaml_document.Path, int]] = (None, {})
        self._in_file, self._lines = yaml_document.parse(_text(file), str(file)) if file else nothing

    def line(self, path: yaml_document.Path) -> int:
        """The line of the value, or of what it would stand in; 0 without a file."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 0)

    def prefix(self, path: yaml_document.Path) -> str:
        if self._file is None:
            return ""
        if not path:
            return f"{self._file}: "
        # By their texts: .nan is not equal to itself.
        if repr(_at(self._values, path)) != repr(_at(self._in_file, path)):
            return "--set "
        return f"{self._file}:{self.line(path)}: "

    def prefix_of(self, words: str) -> str:
        """The prefix of an error about the settings as a whole: its first word is the key that it is most about."""
        key = re.match(r"[a-z_.]*[a-z_]", words)
        path = tuple(key[0].split(".")) if key else ()
        known = bool(path) and path[0] in Settings.model_fields
        return self.prefix(path if known else ())


def _path(item: Any, values: Any) -> yaml_document.Path:
    """Where the value of a validation error is: without what pydantic says in between of the types that it tried."""
    if item["type"] == "at_path":
        return tuple(item["ctx"]["path"])
    path: list[str | int] = []
    last = len(item["loc"]) - 1
    for number, part in enumerate(item["loc"]):
        inside = part in values if isinstance(values, dict) else isinstance(values, list) and isinstance(part, int)
        if inside:
            values = values[part]
        if inside or (number == last and item["type"] == "missing"):
            path.append(part)
    return tuple(path)


def _at(values: Any, path: yaml_document.Path) -> Any:
    """The value at a path; None where there is none."""
    for key in path:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            return None
    return values


_WRONG_TYPE = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text (numbers and dates need quotes to be one)",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}


def _explained(item: Any, path: tuple[str | int, ...]) -> str:
    """What is wrong, in words that name the way out."""
    kind, context, given = item["type"], item.get("ctx", {}), item["input"]
    if kind == "extra_forbidden":
        if new := features.renamed().get(".".join(map(str, path))):
            return f"is now {new}"
        known = _keys_beside(path)
        return f"unknown key{_did_you_mean(str(path[-1]), known)}"
    if kind == "missing":
        return "is missing"
    if kind in _WRONG_TYPE:
        shown = "" if "secret" in str(path[-1]) else f", not {given!r}"
        return f"must be {_WRONG_TYPE[kind]}{shown}"
    if kind == "literal_error":
        return f"must be {context['expected'].replace(chr(39), '')}, not {given!r}"
    if kind == "too_short":
        return f"needs {context['min_length']} or more"
    if kind == "value_error":
        return str(context["error"])
    if kind == "at_path":
        return str(item["msg"])
    return f"{item['msg'].replace('Input should be', 'must be')}, not {given!r}"


def _did_you_mean(given: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"


def _keys_beside(path: yaml_document.Path) -> list[str]:
    """The keys that are known where the last key of `path` stands."""
    section: type[BaseModel] = Settings
    inside: Any = None
    for key in path[:-1]:
        if inside is None and isinstance(key, str):
            annotation = section.model_fields[key].annotation
            inside = entry_of(annotation)
            section = inside or section_of(annotation) or next(filter(None, map(section_of, get_args(annotation))))
        else:
            inside = None  # A list's position, or the user's own name of an entry.
    return list(section.model_fields)
