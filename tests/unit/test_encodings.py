"""No file and no stream is read or written in whatever encoding this machine's locale has: EUC-KR cannot write what
UTF-8 can, and nobody else reads it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path for top in ("components", "emulators", "pipelines", "serving") for path in (ROOT / top).rglob("*.py")
)


def without_encoding(source: str) -> list[int]:
    """Lines of calls that read or write text and do not say how it is encoded."""
    return [call.lineno for call in ast.walk(ast.parse(source)) if isinstance(call, ast.Call) and _depends(call)]


def _depends(call: ast.Call) -> bool:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in given:
        return False
    if any(getattr(given.get(word), "value", False) is True for word in ("text", "universal_newlines")):
        return True
    name, of = _called(call.func)
    if name in ("read_text", "write_text"):
        return of not in ("", "storage")  # Those are objects of GCS, in UTF-8.
    if (name, of) in (("open", ""), ("fdopen", "os")):
        mode = given.get("mode", call.args[1] if len(call.args) > 1 else ast.Constant("r"))
        return "b" not in str(getattr(mode, "value", ""))
    if name in ("NamedTemporaryFile", "TemporaryFile"):
        mode = given.get("mode", call.args[0] if call.args else ast.Constant("w+b"))
        return "b" not in str(getattr(mode, "value", ""))
    return False


def _called(function: ast.expr) -> tuple[str, str]:
    """What is called, and the name it is an attribute of, if that is one."""
    if isinstance(function, ast.Attribute):
        return function.attr, function.value.id if isinstance(function.value, ast.Name) else "?"
    return (function.id, "") if isinstance(function, ast.Name) else ("", "")


@pytest.mark.parametrize(
    "source",
    [
        "open(path)",
        "open(path, 'w')",
        "path.read_text()",
        "(folder / 'a').write_text(text)",
        "os.fdopen(number, 'w')",
        "tempfile.NamedTemporaryFile('w')",
        "subprocess.run(command, text=True)",
    ],
)
def test_a_call_that_leaves_the_encoding_to_the_locale_is_found(source: str):
    assert without_encoding(source) == [1]
    said = source[:-1] + ("" if source.endswith("()") else ", ") + "encoding='utf-8')"
    assert without_encoding(said) == []


def test_every_file_and_stream_has_an_encoding():
    found = [f"{path.relative_to(ROOT)}:{line}" for path in FILES for line in without_encoding(path.read_text("utf-8"))]
    assert found == []
