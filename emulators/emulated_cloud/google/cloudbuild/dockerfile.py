"""A `docker build` without docker: what can be told of it from its arguments, its Dockerfile and its context."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

_INSTRUCTIONS = {
    *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN", "SHELL"),
    *("STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
}


class CannotBuild(Exception):
    """The build fails, in docker's words."""


def checked(args: list[str], folder: Path) -> Iterator[str]:
    """What docker would say, line by line, while every instruction is looked at: its name, and what it copies.

    Raises CannotBuild.
    """
    asked = _parsed(args)
    context = folder / asked.context
    file = context / (asked.file or "Dockerfile")
    if not file.is_file():
        raise CannotBuild(f"unable to prepare context: unable to evaluate symlinks in Dockerfile path: {asked.file}")
    lines = _instructions(file.read_text(encoding="utf-8"))
    if not any(name == "FROM" for name, _ in lines):
        raise CannotBuild("no build stage in current context")
    for number, (name, rest) in enumerate(lines, 1):
        yield f"Step {number}/{len(lines)} : {name} {rest}"
        if name not in _INSTRUCTIONS:
            raise CannotBuild(f"unknown instruction: {name}")
        if name in ("COPY", "ADD") and not rest.startswith("--from="):
            *sources, _ = rest.split()
            for source in sources:
                if not list(context.glob(source)):
                    raise CannotBuild(
                        f"{name} failed: file not found in build context: stat {source}: file does not exist"
                    )
    for tag in asked.tag:
        yield f"Successfully tagged {tag}"


def _parsed(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument("--file", "-f", default="")
    parser.add_argument("--tag", "-t", action="append", default=[])
    parser.add_argument("--build-arg", action="append", default=[])
    parser.add_argument("context")
    try:
        found, unknown = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise CannotBuild(f"docker build: {error}") from None
    if unknown:
        raise CannotBuild(f"unknown flag: {unknown[0]}")
    return found


def _instructions(text: str) -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each with the rest of its line."""
    text = re.sub(r"\\\n", "", re.sub(r"^\s*#.*\n", "", text, flags=re.M))
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        found.append((name.upper(), re.sub(r"\s+", " ", rest).strip()))
    return found
