"""A YAML document as plain values, together with the line of each of them, so that an error can say where."""

from __future__ import annotations

from typing import Any

from serving.errors import RequestError

Path = tuple[str | int, ...]
"""Where a value is: the keys and list positions that lead to it."""


def parse(text: str, name: str) -> tuple[Any, dict[Path, int]]:
    """(values, line of each path) of one YAML document; `name` is what errors call it.

    Raises RequestError with the line: a syntax error, a key given twice or not a text, more than one document.
    """
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}: " if mark else f"{name}: "
        raise RequestError(f"{where}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise RequestError(f"{name}: {error}") from error
    lines: dict[Path, int] = {}
    if root is None:
        return None, lines
    # Merge keys (<<) are flattened by the constructor, on the same nodes: it goes last.
    _walk(root, (), lines, name)
    try:
        return yaml.SafeLoader("").construct_document(root), lines
    except (yaml.MarkedYAMLError, ValueError) as error:
        raise RequestError(f"{name}: {getattr(error, 'problem', None) or error}") from error


def _walk(node: Any, path: Path, lines: dict[Path, int], name: str) -> None:
    import yaml

    if path in lines:  # An anchor's node is met again through its alias.
        return
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            _walk(item, (*path, position), lines, name)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise RequestError(f"{name}:{line}: a key has to be text")
            if key.value in seen:
                raise RequestError(f"{name}:{line}: {key.value} is given twice, first in line {seen[key.value]}")
            seen[key.value] = line
            _walk(value, (*path, key.value), lines, name)
            lines[(*path, key.value)] = line
