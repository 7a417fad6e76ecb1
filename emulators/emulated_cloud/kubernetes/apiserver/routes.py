"""From a request's path, method and body to what the storage does, and back to an answer.

Nothing here knows HTTP beyond status codes: `server.py` reads requests and sends answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from emulated_cloud.kubernetes.apiserver import aggregation, discovery, errors, openapi, patching, pods, reviews, scale
from emulated_cloud.kubernetes.apiserver.conversion import served
from emulated_cloud.kubernetes.apiserver.deletion import ORPHANED_JOBS, RETURNED, Wish
from emulated_cloud.kubernetes.apiserver.reading import Form, Watch, listing, selection, truth
from emulated_cloud.kubernetes.apiserver.resources import SUBRESOURCE_KINDS, Resource, subresource_verbs
from emulated_cloud.kubernetes.apiserver.storage import Options, Storage
from emulated_cloud.kubernetes.apiserver.tokens import Tokens, User

Object = dict[str, Any]


@dataclass
class Call:
    """One request, read whole."""

    method: str
    segments: list[str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    user: User
    server: str
    """Host and port that the client speaks to."""
    warnings: list[str] = field(default_factory=list)
    """What is to be said beside the answer, whether it is a success or not."""

    @property
    def accept(self) -> str:
        return self.headers.get("Accept", "")

    @property
    def content_type(self) -> str:
        return self.headers.get("Content-Type", "").partition(";")[0].strip()

    def parsed(self, kind: str) -> Any:
        """The body, JSON or YAML, which is to be of `kind`. Raises ApiError 400 and 415."""
        return patching.parse(self.body, self.content_type, kind)


@dataclass
class Target:
    """What a path names, and what is to be done with it."""

    resource: Resource
    namespace: str
    name: str
    subresource: str
    verb: str

    @property
    def label(self) -> str:
        """The resource as the request log writes it: `pods`, `deployments/status`."""
        return f"{self.resource.plural}/{self.subresource}" if self.subresource else self.resource.plural


@dataclass
class Answer:
    """What is sent back. `body` is JSON (a dict), text, a Watch, or a kubelet's URL to stream a log from."""

    body: Any
    status: int = 200
    content_type: str = "application/json"
    extra_headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LogStream:
    """A container's log, to be fetched from `url` and passed on."""

    url: str
    pod: Object


_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "GET": "get", "HEAD": "get", "DELETE": "delete"}


class Routes:
    """Answers every request that is authenticated."""

    def __init__(self, storage: Storage, tokens: Tokens):
        self.storage, self.tokens = storage, tokens
        self.resources = storage.resources
        self._documents: dict[str, tuple[int, str]] = {}

    def target(self, call: Call) -> Target | None:
        """What the path names; None where it is no resource's. Raises ApiError 404 for a kind that is not served."""
        parts = call.segments
        if parts[:2] == ["api", "v1"]:
            group, version, rest = "", "v1", parts[2:]
        elif parts[:1] == ["apis"] and len(parts) >= 3:
            group, version, rest = parts[1], parts[2], parts[3:]
        else:
            return None
        if not rest:
            return None
        namespace = ""
        if rest[0] == "namespaces" and len(rest) >= 3 and not (rest[2] in ("status", "finalize") and len(rest) == 3):
            namespace, rest = rest[1], rest[2:]
        if version not in self.resources.group_versions().get(group, ()):
            raise errors.no_such_path() if self.resources.is_builtin(group) else errors.NoSuchPath
        resource = self.resources.find(group, version, rest[0])
        if resource is None or len(rest) > 3 or (namespace and not resource.namespaced):
            raise errors.no_such_path()
        name, subresource = (*rest[1:], "", "")[:2]
        if subresource and subresource not in resource.subresources:
            raise errors.no_such_path()
        verb = _VERBS.get(call.method, call.method.lower())
        if verb == "get" and not name:
            verb = "watch" if truth(call.query, "watch") else "list"
        if verb == "delete" and not name:
            verb = "deletecollection"
        return Target(resource, namespace, name, subresource, verb)

    def answer(self, call: Call, target: Target | None) -> Answer:
        """Raises ApiError for every answer other than success."""
        if target is None:
            return self._document(call)
        resource = target.resource
        allowed = subresource_verbs(target.subresource) if target.subresource else resource.verbs
        needs_namespace = resource.namespaced and not target.namespace
        if (
            target.verb not in allowed
            or (target.verb == "create" and target.name and not target.subresource)
            or (target.verb in ("update", "patch") and not target.name)
            or (needs_namespace and target.verb not in ("list", "watch"))
        ):
            raise errors.method_not_allowed()
        if resource.kind == "Endpoints":
            call.warnings.append("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
        if target.subresource in pods.WAYS_IN:
            raise pods.no_way_in(target.name)
        if target.subresource in ("log", "binding", "eviction", "token"):
            return self._part(call, target)
        handler: dict[str, Callable[[Call, Target], Answer]] = {
            "get": self._get,
            "list": self._list,
            "watch": self._watch,
            "create": self._create,
            "update": self._update,
            "patch": self._patch,
            "delete": self._delete,
            "deletecollection": self._delete_collection,
        }
        return handler[target.verb](call, target)

    # -- documents ------------------------------------------------------------------------------------------

    def _document(self, call: Call) -> Answer:
        if call.method not in ("GET", "HEAD"):
            raise errors.no_such_path()
        parts = call.segments
        self._refuse_foreign_content(call)
        if parts in (["healthz"], ["livez"], ["readyz"]):
            return Answer("ok", content_type="text/plain; charset=utf-8")
        if parts == ["version"]:
            return Answer(discovery.VERSION)
        if parts[:1] == ["openapi"]:
            return self._openapi(call)
        if parts in (["api"], ["apis"]):
            core = parts == ["api"]
            if "g=apidiscovery.k8s.io" in call.accept and "v=v2;" in call.accept + ";":
                body = discovery.aggregated(self.resources, core=core)
                return Answer(body, content_type=discovery.AGGREGATED_TYPE)
            if core:
                return Answer(discovery.api_versions(call.server))
            listed = discovery.group_list(self.resources)
            return Answer({**listed, "groups": [*listed["groups"], *aggregation.groups(self.storage.store)]})
        found = None
        if parts == ["api", "v1"]:
            found = discovery.resource_list(self.resources, "", "v1")
        elif parts[:1] == ["apis"] and len(parts) == 2:
            others = {group["name"]: group for group in aggregation.groups(self.storage.store)}
            found = discovery.group(self.resources, parts[1]) or others.get(parts[1])
            found = found and {"kind": "APIGroup", "apiVersion": "v1", **found}
        elif parts[:1] == ["apis"] and len(parts) == 3:
            found = discovery.resource_list(self.resources, parts[1], parts[2])
        if found is None:
            raise errors.NoSuchPath
        return Answer(found)

    def _refuse_foreign_content(self, call: Call) -> None:
        """Discovery judges what a request says to send, though it reads nothing. Lists of groups do not, nor does what
        serves custom resources."""
        parts = call.segments
        judges = parts in (["api"], ["api", "v1"], ["version"]) or (
            parts[:1] == ["apis"] and len(parts) == 3 and self.resources.is_builtin(parts[1])
        )
        if judges and call.content_type not in ("", *patching.BODIES):
            raise errors.ApiError(415, "UnsupportedMediaType", "415: Unsupported Media Type", {})

    def _openapi(self, call: Call) -> Answer:
        path = "/".join(call.segments)
        known = self._documents.get(path)
        if known is None or known[0] != self.resources.generation:
            known = self._documents[path] = (self.resources.generation, json.dumps(self._made_openapi(call)))
        return Answer(known[1])

    def _made_openapi(self, call: Call) -> Object:
        parts = call.segments[1:]
        made = None
        if parts == ["v2"]:
            if call.accept and "json" not in call.accept and "*/*" not in call.accept:
                raise errors.ApiError(406, "NotAcceptable", "only application/json is served here")
            made = openapi.document_v2(self.resources)
        elif parts == ["v3"]:
            made = openapi.index(self.resources)
        elif parts[:1] == ["v3"]:
            made = openapi.document_v3(self.resources, "/".join(parts[1:]))
        if made is None:
            raise errors.no_such_path()
        return made

    # -- objects --------------------------------------------------------------------------------------------

    def _options(self, call: Call, kind: str) -> Options:
        """Raises ApiError 422 for a value that the real server does not take either."""
        query = call.query
        dry_run = query.get("dryRun", "")
        if dry_run not in ("", "All"):
            cause = errors.not_supported("dryRun", [dry_run], ["All"])
            raise errors.invalid("meta.k8s.io", kind, "", [cause])
        validation = query.get("fieldValidation") or "Warn"
        if validation not in ("Ignore", "Warn", "Strict"):
            supported = ["", "Ignore", "Warn", "Strict"]
            cause = errors.not_supported("fieldValidation", validation, supported)
            raise errors.invalid("meta.k8s.io", kind, "", [cause])
        self._judge_manager(query.get("fieldManager", ""), kind)
        manager = query.get("fieldManager") or call.headers.get("User-Agent", "").split("/")[0] or "unknown"
        return Options(manager[:128], bool(dry_run), validation, call.warnings)

    @staticmethod
    def _judge_manager(manager: str, kind: str) -> None:
        causes = [errors.too_long("fieldManager", 128)] if len(manager.encode()) > 128 else []
        for index, letter in enumerate(manager):
            if not letter.isprintable():
                detail = f"invalid character U+{ord(letter):04X} (at position {index})"
                causes.append(errors.invalid_value("fieldManager", manager, detail))
        if causes:
            raise errors.invalid("meta.k8s.io", kind, "", causes)

    def _shown(self, call: Call, target: Target, item: Object, status: int = 200) -> Answer:
        form = Form(target.resource, call.accept, dict(call.query))
        return Answer(item if form.sort == "object" else form.one(item), status)

    def _get(self, call: Call, target: Target) -> Answer:
        live = self.storage.live(target.resource, target.namespace, target.name)
        if target.subresource == "scale":
            return Answer(scale.shown(target.resource, live))
        return self._shown(call, target, served(target.resource, live))

    def _list(self, call: Call, target: Target) -> Answer:
        form = Form(target.resource, call.accept, dict(call.query))
        return Answer(listing(self.storage.store, form, target.namespace, dict(call.query)))

    def _watch(self, call: Call, target: Target) -> Answer:
        form = Form(target.resource, call.accept, dict(call.query))
        return Answer(Watch(self.storage.store, form, target.namespace, dict(call.query)))

    def _create(self, call: Call, target: Target) -> Answer:
        options = self._options(call, "CreateOptions")
        if target.resource.kind in reviews.KINDS:
            body = reviews.review(target.resource, call.parsed(target.resource.kind), call.user, self.tokens)
            return Answer(body, 201)
        if target.resource.kind == "Binding":
            binding = call.parsed("Binding")
            resource = self.resources.find("", "v1", "pods")
            assert resource is not None
            pod = self.storage.live(resource, target.namespace, str((binding.get("metadata") or {}).get("name")))
            return Answer(pods.bind(self.storage, resource, pod, binding), 201)
        made = self.storage.create(target.resource, target.namespace, call.parsed(target.resource.kind), options)
        return self._shown(call, target, made, 201)

    def _update(self, call: Call, target: Target) -> Answer:
        options = self._options(call, "UpdateOptions")
        resource = target.resource
        if target.subresource == "scale":
            live = self.storage.live(resource, target.namespace, target.name)
            wanted = self.storage.decoded(scale.SCALE, call.parsed("Scale"), options)
            self.storage.check_name(wanted, target.name)
            return Answer(scale.update(self.storage, resource, live, wanted, options))
        made, is_new = self.storage.update(
            resource, target.namespace, target.name, call.parsed(resource.kind), options, target.subresource
        )
        return self._shown(call, target, made, 201 if is_new else 200)

    def _patch(self, call: Call, target: Target) -> Answer:
        options = self._options(call, "PatchOptions")
        made, is_new = patching.patch(
            self.storage,
            target.resource,
            target.namespace,
            target.name,
            target.subresource,
            call.body,
            call.content_type,
            call.query,
            options,
        )
        if target.subresource == "scale":
            return Answer(made)
        return self._shown(call, target, made, 201 if is_new else 200)

    def _delete(self, call: Call, target: Target) -> Answer:
        wish = self._wish(call)
        resource = target.resource
        live = self.storage.live(resource, target.namespace, target.name)
        if (resource.group, resource.kind) == ("batch", "Job") and not wish.propagation:
            call.warnings.append(ORPHANED_JOBS)
        item, gone = self.storage.delete(resource, live, wish, wish.dry_run)
        if not gone or resource.kind in RETURNED:
            return self._shown(call, target, item)
        details = {
            "name": target.name,
            "group": resource.group,
            "kind": resource.plural,
            "uid": item["metadata"]["uid"],
        }
        details = {name: value for name, value in details.items() if value}
        success = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
        return Answer(success)

    @staticmethod
    def _wish(call: Call) -> Wish:
        """What a DELETE asks for: its body says everything, and only without one do the parameters count."""
        return Wish.of(call.parsed("DeleteOptions") if call.body else dict(call.query))

    def _delete_collection(self, call: Call, target: Target) -> Answer:
        wish = self._wish(call)
        resource = target.resource
        matches = selection(resource, dict(call.query))
        found = [item for item in self.storage.store.list(resource.storage_key, target.namespace) if matches(item)]
        gone = [self.storage.delete(resource, item, wish, wish.dry_run)[0] for item in found]
        metadata = {"resourceVersion": str(self.storage.store.revision)}
        return Answer(Form(resource, "", {}).many(gone, metadata))

    def _part(self, call: Call, target: Target) -> Answer:
        resource = target.resource
        live = self.storage.live(resource, target.namespace, target.name)
        if target.subresource == "log":
            url = pods.log_url(self.storage, live, dict(call.query))
            return Answer(LogStream(url, live)) if url else Answer("", 204, "text/plain")
        options, body = self._options(call, "CreateOptions"), call.parsed(SUBRESOURCE_KINDS[target.subresource][2])
        if target.subresource == "token":
            return Answer(reviews.token_request(live, body, self.tokens), 201)
        if target.subresource == "binding":
            return Answer(pods.bind(self.storage, resource, live, body), 201)
        return Answer(pods.evict(self.storage, resource, live, body, options.dry_run), 201)
