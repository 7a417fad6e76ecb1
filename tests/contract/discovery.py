"""Holds every exchange between a Google client and a service against the API's discovery document.

google-api-python-client carries the documents. `Conformance("storage", "v1").watch(session)` makes each exchange on a
requests session fail the test when the method, a query parameter, the request's or the answer's body is not what the
document says; what a service answers when it refuses has a shape of its own, which is checked too.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import jsonschema

_DROPPED = ("required", "minimum", "maximum", "id", "default", "format", "annotations", "enumDescriptions")
# Of every Google API, but in no document (cloud.google.com/apis/docs/system-parameters), and of the upload protocol.
_SYSTEM_PARAMETERS = {"alt", "fields", "key", "prettyPrint", "quotaUser", "uploadType", "upload_id", "enum-encoding"}


@dataclass
class Conformance:
    """One API's document."""

    api: str
    version: str

    @cached_property
    def document(self) -> dict[str, Any]:
        import googleapiclient

        folder = Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
        return json.loads((folder / f"{self.api}.{self.version}.json").read_text())

    @cached_property
    def _answers(self) -> dict[str, Any]:
        return {name: _strict(schema) for name, schema in self.document["schemas"].items()}

    @cached_property
    def _requests(self) -> dict[str, Any]:
        return {name: _strict(schema, lenient=True) for name, schema in self.document["schemas"].items()}

    @cached_property
    def _numbered_answers(self) -> dict[str, Any]:
        return _numbered(self._answers)

    @cached_property
    def _numbered_requests(self) -> dict[str, Any]:
        return _numbered(self._requests)

    @cached_property
    def _methods(self) -> list[tuple[str, re.Pattern[str], dict[str, Any]]]:
        found = []
        for method in _methods_of(self.document):
            paths = ["/" + self.document["servicePath"] + method.get("flatPath", method["path"])]
            if method.get("supportsMediaDownload"):
                paths.append("/download" + paths[0])
            if "mediaUpload" in method:
                paths += [protocol["path"] for protocol in method["mediaUpload"]["protocols"].values()]
            found += [(method["httpMethod"], _pattern(path, method), method) for path in paths]
        # The most specific first: `…/versions/{id}` is `…/versions/{id}:access`, too.
        return sorted(found, key=lambda each: -len(each[1].pattern))

    def watch(self, session: Any, where: str = "") -> None:
        """Checks every exchange on a requests session from now on, of those in whose address `where`, a pattern, is
        found."""

        def check(response: Any, **_: Any) -> None:
            if re.search(where, response.request.url):
                self.check(response)

        session.hooks["response"].append(check)

    def check(self, response: Any) -> None:
        """Raises AssertionError for an exchange that the document does not describe."""
        request, parts = response.request, urlsplit(response.request.url)
        queried = dict(parse_qsl(parts.query, keep_blank_values=True))
        if "upload_id" in queried:
            return  # The requests of a resumable session are in no document.
        method = self._method(request.method, parts.path)
        allowed = _SYSTEM_PARAMETERS | set(method.get("parameters", {})) | set(self.document.get("parameters", {}))
        unknown = {name.removeprefix("$") for name in queried} - allowed
        assert not unknown, f"{method['id']} has no parameter {unknown}"
        kind = request.headers.get("Content-Type") or b""
        is_json = (kind.encode() if isinstance(kind, str) else kind).startswith(b"application/json")
        # Such a client also sends numbers for enums.
        numbered = "enum-encoding=int" in queried.get("$alt", "")
        if request.body and is_json and "request" in method:
            schemas = self._numbered_requests if numbered else self._requests
            _validate(method["request"]["$ref"], schemas, json.loads(request.body), f"{method['id']}: request")
        if response.status_code >= 400:
            check_refusal(response)
        elif (
            response.status_code == 200 and queried.get("alt") != "media" and "response" in method and response.content
        ):
            schemas = self._numbered_answers if numbered else self._answers
            _validate(method["response"]["$ref"], schemas, response.json(), f"{method['id']}: answer")

    def _method(self, verb: str, path: str) -> dict[str, Any]:
        for method_verb, pattern, method in self._methods:
            if method_verb == verb and pattern.fullmatch(path):
                return method
        raise AssertionError(f"{self.api} {self.version} has no method {verb} {path}")


def _pattern(path: str, method: dict[str, Any]) -> re.Pattern[str]:
    """A method's paths. A name may hold slashes where its parameter says so (a metric's, at the path's end)."""
    parts = re.sub(r"\{[^}]*\}", "[^/]+", path)
    named = [parameter.get("pattern", "") for parameter in method.get("parameters", {}).values()]
    if any(pattern.endswith("/.*$") for pattern in named):
        parts = re.sub(r"\[\^/\]\+$", ".+", parts)
    return re.compile(parts)


def _validate(schema: str, definitions: dict[str, Any], body: Any, where: str) -> None:
    validator = jsonschema.Draft202012Validator({"$ref": f"#/$defs/{schema}", "$defs": definitions})
    errors = [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(body)]
    assert not errors, f"{where} is not a {schema}: {errors}"


def check_refusal(response: Any) -> None:
    """A refusal's body: the older JSON of storage, or google.rpc.Status; media answers may be bare text."""
    if "json" not in response.headers.get("Content-Type", ""):
        return
    error = response.json()["error"]
    assert error["code"] == response.status_code
    assert isinstance(error["message"], str)
    assert error["message"]
    if "errors" in error:
        assert all({"message", "domain", "reason"} <= set(each) for each in error["errors"])
    else:
        assert re.fullmatch("[A-Z_]+", error["status"])


def _methods_of(resource: dict[str, Any]) -> list[dict[str, Any]]:
    own = list(resource.get("methods", {}).values())
    return own + [method for inner in resource.get("resources", {}).values() for method in _methods_of(inner)]


def _strict(schema: Any, lenient: bool = False) -> Any:
    """A discovery schema as JSON schema that knows no other properties than those it names.

    `lenient`: as the services read requests, which is with null for "not set" and 64-bit numbers as numbers, too.
    """
    if isinstance(schema, list):
        return [_strict(each, lenient) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return {"$ref": f"#/$defs/{schema['$ref']}"}
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            out[key] = {name: _strict(inner, lenient) for name, inner in value.items()}
        elif key not in _DROPPED and not (key == "type" and value == "any"):
            out[key] = _strict(value, lenient)
    if "properties" in out and "additionalProperties" not in out:
        out["additionalProperties"] = False
    if lenient and "type" in out:
        out["type"] = [out["type"], "null", *(["integer"] if schema.get("format", "").endswith("int64") else [])]
        if "enum" in out:
            out["enum"] = [*out["enum"], None]
    return out


def _numbered(schema: Any) -> Any:
    """A schema for a client that wants enums as numbers; names are understood, too."""
    if isinstance(schema, list):
        return [_numbered(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(schema.get("enum"), list):
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        return {**schema, "type": [*kinds, "integer"], "enum": [*schema["enum"], *range(len(schema["enum"]))]}
    return {key: _numbered(value) for key, value in schema.items()}
