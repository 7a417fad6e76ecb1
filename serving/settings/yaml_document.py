"""A YAML document as plain values, together with the line of each of them, so that an error can say where."""

from __future__ import annotations

from typing import Any

from serving.errors import RequestError

_LONGEST = 1_000_000
"""Characters."""
_DEEPEST = 50
_MOST_VALUES = 100_000
_LONGEST_NUMBER = 100

Path = tuple[str | int, ...]
"""Where a value is: the keys and list positions that lead to it."""


def parse(text: str, name: str) -> tuple[Any, dict[Path, int]]:
    """(values, line of each path) of one YAML document; `name` is what errors call it.

    Raises RequestError with the line: a syntax error, a key given twice or not a text, more than one document.
    """
    import yaml

    if len(text) > _LONGEST:
        raise RequestError(f"{name} has {len(text)} characters; a settings file has at most {_LONGEST}")
    try:
        _refuse_depth(text, name)
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
    # An alias stands for all that its anchor has: what a few of them make of a short text is counted as it is met.
    # Merge keys (<<) are flattened by the constructor, on the same nodes: it goes last.
    _walk(root, (), lines, name, [0])
    try:
        return yaml.SafeLoader("").construct_document(root), lines
    except (yaml.MarkedYAMLError, ValueError, KeyError, AttributeError, OverflowError) as error:
        # The constructor is surprised in many ways by a value that is not of the type it is tagged with.
        raise RequestError(f"{name}: {getattr(error, 'problem', None) or error}") from error


def _refuse_depth(text: str, name: str) -> None:
    """Raises RequestError for what is nested deeper than any settings: nothing that reads it may run out of stack."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEEPEST:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise RequestError(f"{name}:{line}: more than {_DEEPEST} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _walk(node: Any, path: Path, lines: dict[Path, int], name: str, met: list[int]) -> None:
    import yaml

    met[0] += 1
    if met[0] > _MOST_VALUES or len(path) > _DEEPEST:
        raise RequestError(
            f"{name}:{node.start_mark.line + 1}: its anchors and aliases make more of it than settings can be"
        )
    if path in lines:  # An anchor's node is met again through its alias.
        return
    lines[path] = line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode) and not node.tag.endswith(":str") and len(node.value) > _LONGEST_NUMBER:
        # YAML counts 1:30 as ninety, and a long row of them for hours.
        raise RequestError(f"{name}:{line}: a number of {len(node.value)} characters: put a text in quotes")
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            _walk(item, (*path, position), lines, name, met)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise RequestError(f"{name}:{line}: a key has to be text")
            if not key.tag.endswith((":str", ":merge")):
                raise RequestError(f"{name}:{line}: a key has to be text: put {key.value} in quotes")
            if key.value in seen:
                raise RequestError(f"{name}:{line}: {key.value} is given twice, first in line {seen[key.value]}")
            seen[key.value] = line
            _walk(value, (*path, key.value), lines, name, met)
            lines[(*path, key.value)] = line
