"""One HTTP request through ext_proc: what Envoy sends of it, and what it is answered.

Bodies are FULL_DUPLEX_STREAMED: nothing of a request goes on before its whole body was read here, an event stream's
answer goes on piece by piece. Facts: GAIE v1.5.0, pkg/epp/handlers/server.go and requestcontrol/director.go.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from emulated_cloud.gateway.picker import wire
from emulated_cloud.gateway.picker.engines import Endpoint, Engines
from emulated_cloud.gateway.picker.metrics import Metrics
from emulated_cloud.gateway.picker.pool import Pool
from emulated_cloud.gateway.picker.prefixes import PrefixIndex, prompt_of
from emulated_cloud.gateway.picker.scheduling import Scheduler

log = logging.getLogger(__name__)

DESTINATION = "x-gateway-destination-endpoint"
# A header's name, and the deprecated one that still counts.
OBJECTIVE = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
FAIRNESS = ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
MODEL_REWRITE = ("x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite")
SUBSET = ("envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset")
"""Namespace and key of the metadata by which a gateway says which endpoints it may be."""
_REQUIRED = {
    "/conversations": ("items", "invalid conversations request: must have items field"),
    "/responses": ("input", "invalid responses request: must have input field"),
    "/chat/completions": ("messages", "invalid chat completions request: must have valid messages field"),
    "/embeddings": ("input", "invalid embeddings request: must have input field"),
}
_COMPLETIONS = ("prompt", "invalid completions request: must have prompt field")
"""What the body must have, by the end of the path; any other path is taken for /completions."""


class Refused(Exception):
    """A request that ends here: the HTTP status, and the picker's own word for it."""

    def __init__(self, status: int, code: str, message: str):
        self.status, self.code = status, code
        super().__init__(f"inference error: {code} - {message}")


@dataclass
class Picker:
    """What requests of a pool share. disable_subset: the gateway's hint which endpoints it may be is not looked at."""

    pool: Pool
    engines: Engines
    scheduler: Scheduler
    prefixes: PrefixIndex
    metrics: Metrics
    disable_subset: bool = False

    async def pick(self, model: str, body: Mapping[str, Any], priority: int, subset: Sequence[str] | None) -> Endpoint:
        """The endpoint that is to answer. Raises Refused."""
        endpoints = self._candidates(subset)
        await self.engines.refresh(endpoints)
        if priority < 0 and self.scheduler.saturation(endpoints) >= 1.0:
            raise Refused(429, "ResourceExhausted", "system saturated, sheddable request dropped")
        if not endpoints:
            raise Refused(503, "ServiceUnavailable", "failed to find endpoint candidates for serving the request")
        begun = time.perf_counter()
        blocks = {each: self._blocks(model, body, each) for each in endpoints}
        shares = {each: self.prefixes.share(_server(each), blocks[each]) for each in endpoints}
        chosen = self.scheduler.pick(endpoints, model, shares)
        self.prefixes.keep({_server(each) for each in self.pool.endpoints})
        self.prefixes.add(_server(chosen), blocks[chosen])
        self.metrics.scheduling.observe(time.perf_counter() - begun)
        self.metrics.attempts.inc(
            status="success",
            target_model_name=model,
            endpoint_name=chosen.pod,
            namespace=chosen.namespace,
            port=str(chosen.port),
        )
        return chosen

    def any_endpoint(self) -> Endpoint:
        """For a request without a body. Raises Refused."""
        if not self.pool.endpoints:
            raise Refused(500, "Internal", "no pods available in datastore")
        return random.choice(self.pool.endpoints)

    def _candidates(self, subset: Sequence[str] | None) -> list[Endpoint]:
        endpoints = self.pool.endpoints
        if subset is None or self.disable_subset:
            return endpoints
        meant = {name.partition(":")[0] for name in subset}
        return [each for each in endpoints if each.address in meant]

    def _blocks(self, model: str, body: Mapping[str, Any], endpoint: Endpoint) -> list[bytes]:
        return self.prefixes.blocks(model, prompt_of(body), endpoint.load.block_tokens)


def _server(endpoint: Endpoint) -> str:
    return f"{endpoint.namespace}/{endpoint.pod}"


@dataclass
class Exchange:
    """One HTTP request and its answer, from the first message about it to the last."""

    picker: Picker
    began: float = field(default_factory=time.monotonic)
    headers: dict[str, str] = field(default_factory=dict)
    subset: Sequence[str] | None = None
    model: str = ""
    target_model: str = ""
    priority: int = 0
    error: str = ""
    is_running: bool = False
    is_stream: bool = False
    answered: bool = False
    answer_bytes: int = 0
    _body: bytearray = field(default_factory=bytearray)
    _answer: bytearray = field(default_factory=bytearray)
    _end: bytes = b""

    async def take(self, message: Any) -> list[Any]:
        """The answers to one message, in order. Raises Refused: then nothing more is to be asked."""
        hint = None if self.picker.disable_subset else wire.metadata_of(message, SUBSET[0])
        if hint is not None and isinstance(hint.get(SUBSET[1]), list):
            self.subset = [str(name) for name in hint[SUBSET[1]]]
        match message.WhichOneof("kind"):
            case "request_headers":
                return self._request_headers(message.request_headers)
            case "request_body":
                self._body += message.request_body.body
                return await self._request() if message.request_body.end_of_stream else []
            case "response_headers":
                return self._response_headers(message.response_headers)
            case "response_body":
                return self._response_body(message.response_body)
            case "response_trailers":
                answer = wire.ProcessingResponse()
                answer.response_trailers.SetInParent()
                return [*self._rest_of_answer(end_of_stream=False), answer]
        return []

    def close(self) -> None:
        """The last that is counted, however it ended."""
        labels = self._labels()
        if self.is_running:
            self.is_running = False
            self.picker.metrics.running.dec(**labels)
        if self.error:
            self.picker.metrics.errors.inc(**labels, error_code=self.error)

    # -- the request ----------------------------------------------------------------------------------------

    def _request_headers(self, message: Any) -> list[Any]:
        self.headers = wire.headers_of(message)
        if not message.end_of_stream:
            return []
        return [_go_to(self.picker.any_endpoint())]

    async def _request(self) -> list[Any]:
        body = self._parsed()
        self.priority = self.picker.pool.priority(self._header(OBJECTIVE))
        endpoint = await self.picker.pick(self.target_model, body, self.priority, self.subset)
        sent = bytes(self._body)
        if self.target_model != self.model:
            sent = json.dumps({**body, "model": self.target_model}).encode()
        log.debug("%s %s of priority %s goes to %s", self.model, self.target_model, self.priority, endpoint.name)
        labels, metrics = self._labels(), self.picker.metrics
        metrics.requests.inc(**labels)
        metrics.request_sizes.observe(len(sent), **labels)
        metrics.running.inc(**labels)
        self.is_running = True
        self._body.clear()
        return [_go_to(endpoint, len(sent)), *wire.body_messages("request_body", sent, end_of_stream=True)]

    def _parsed(self) -> dict[str, Any]:
        """The body, once it is one that an engine could answer; sets which model is meant. Raises Refused."""
        try:
            body = json.loads(self._body)
        except ValueError as error:
            words = str(error) if self._body.strip() else "unexpected end of JSON input"
            raise Refused(400, "BadRequest", f"error unmarshaling request bodyMap: {words}") from error
        if not isinstance(body, dict):
            words = "error unmarshaling request bodyMap: json: cannot unmarshal it into Go value of type map"
            raise Refused(400, "BadRequest", words)
        path = self.headers.get(":path", "").partition("?")[0]
        needed, words = next((needs for end, needs in _REQUIRED.items() if path.endswith(end)), _COMPLETIONS)
        if not body.get(needed):
            raise Refused(400, "BadRequest", words)
        if not isinstance(body.get("model"), str):
            raise Refused(400, "BadRequest", "model not found in request body")
        self.model = body["model"]
        self.is_stream = body.get("stream") is True
        self.target_model = self._header(MODEL_REWRITE) or self.model
        rewritten, by = self.picker.pool.rewritten(self.model)
        if rewritten:
            self.target_model = rewritten
            self.picker.metrics.rewrites.inc(model_rewrite_name=by, model_name=self.model, target_model=rewritten)
        return body

    def _header(self, names: Sequence[str]) -> str:
        return next((self.headers[name] for name in names if name in self.headers), "")

    def _labels(self) -> dict[str, str]:
        fairness = self._header(FAIRNESS) or "default-flow"
        return {
            "model_name": self.model,
            "target_model_name": self.target_model,
            "fairness_id": fairness,
            "priority": str(self.priority),
        }

    # -- the answer -----------------------------------------------------------------------------------------

    def _response_headers(self, message: Any) -> list[Any]:
        headers = wire.headers_of(message)
        self.is_stream = "text/event-stream" in headers.get("content-type", "")
        if self.model and headers.get(":status", "200") != "200":
            self.error = "ModelServerError"
        answer = wire.ProcessingResponse()
        changed = {"x-went-into-resp-headers": "true"}
        wire.set_headers(answer.response_headers.response.header_mutation, changed)
        if message.end_of_stream:
            self._finished(b"")
        elif not self.is_stream and self.target_model != self.model:
            # The name of the model will change, and with it how long the answer is.
            answer.response_headers.response.header_mutation.remove_headers.append("content-length")
        return [answer]

    def _response_body(self, message: Any) -> list[Any]:
        if not self.answer_bytes and message.body and self.model:
            streaming = "true" if self.is_stream else "false"
            seconds = time.monotonic() - self.began
            self.picker.metrics.first_tokens.observe(seconds, **self._labels(), streaming=streaming)
        self.answer_bytes += len(message.body)
        if not self.is_stream:
            self._answer += message.body
            return self._rest_of_answer(end_of_stream=True) if message.end_of_stream else []
        # Usage is in one of the last events.
        self._end = (self._end + message.body)[-8192:]
        if message.end_of_stream:
            self._finished(self._end)
        return wire.body_messages("response_body", self._renamed(message.body), message.end_of_stream)

    def _rest_of_answer(self, end_of_stream: bool) -> list[Any]:
        """What was kept back of an answer that is no stream; nothing, if it went on already."""
        if self.answered:
            return []
        body = bytes(self._answer)
        self._finished(self._end if self.is_stream else body)
        if self.is_stream:
            return []
        return wire.body_messages("response_body", self._renamed(body), end_of_stream)

    def _renamed(self, body: bytes) -> bytes:
        """The client hears of the model by the name that it asked for."""
        if self.target_model == self.model:
            return body
        for colon in (b":", b": "):
            old, new = (b'"model"' + colon + json.dumps(name).encode() for name in (self.target_model, self.model))
            body = body.replace(old, new)
        return body

    def _finished(self, answer: bytes) -> None:
        self.answered = True
        if not self.model:
            return
        labels, metrics = self._labels(), self.picker.metrics
        metrics.durations.observe(time.monotonic() - self.began, **labels)
        metrics.response_sizes.observe(self.answer_bytes, **labels)
        usage = usage_of(answer)
        if "prompt_tokens" in usage:
            metrics.input_tokens.observe(usage["prompt_tokens"], **labels)
            metrics.output_tokens.observe(usage.get("completion_tokens") or 0, **labels)


def usage_of(answer: bytes) -> dict[str, Any]:
    """The `usage` of a JSON answer, or of the events at the end of a stream; empty without one."""
    texts = [answer] if answer.lstrip().startswith(b"{") else answer.split(b"data: ")[::-1]
    for text in texts:
        if b'"usage"' not in text:
            continue
        try:
            usage = json.loads(text).get("usage")
        except (ValueError, AttributeError):
            continue
        if isinstance(usage, dict):
            return usage
    return {}


def _go_to(endpoint: Endpoint, content_length: int | None = None) -> Any:
    """The answer to a request's headers: where it goes, as a header and as dynamic metadata."""
    answer = wire.ProcessingResponse()
    common = answer.request_headers.response
    common.clear_route_cache = True
    headers = {DESTINATION: endpoint.name}
    if content_length:
        headers["content-length"] = str(content_length)
    wire.set_headers(common.header_mutation, headers)
    answer.dynamic_metadata.update({"envoy.lb": {DESTINATION: endpoint.name}})
    return answer
