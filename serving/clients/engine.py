"""An engine in the cluster, as a Job there reaches it: one method a question, each of which takes nothing on trust.

Shapes are those of vLLM's OpenAI API (vllm/entrypoints/openai/chat_completion/protocol.py). Whatever else comes with a
200 is a BadAnswer: a page of HTML, another model's name, no text, a stream that stops half-way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import httpx

from serving import names

MODELS = "/v1/models"
CHAT = "/v1/chat/completions"
OBJECTIVE = "x-llm-d-inference-objective"
"""The header by which a client says how important a request is (llm-d-router)."""
_OLD_OBJECTIVE = "x-gateway-inference-objective"
"""As endpoint pickers knew it before llm-d's; llm-d's still does."""
_SAID = re.compile(r"[^\s\ufffd\u200b-\u200f\u2060\ufeff\x00-\x1f\x7f]")
"""A character that says something: no white space, no replacement character, nothing invisible."""
_LONGEST_WORDS = 600
"""Characters of what an engine has against an adapter."""
_UNFINISHED = re.compile(r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)$", re.M)
_WAITING = re.compile(r"^vllm:num_requests_waiting\{[^}]*\} (\S+)$", re.M)
_SAMPLE = re.compile(r"^([a-zA-Z_:]+)(?:\{([^}]*)\})? (\S+)$", re.M)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class BadAnswer(Exception):
    """The server did not answer as it should; the message says in what."""


class Untrusted(BadAnswer):
    """The server does not show who it is, so that nothing was asked; the message has what is wrong with its
    certificate."""


@dataclass
class Answer:
    """One answer. Of a stream, `times` are the arrivals of its token chunks (time.perf_counter, like `sent`): chunks
    with a choice. The first has the role alone; vLLM sends it with the first token, whose text may still be to come."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    sent: float = 0.0
    times: list[float] = field(default_factory=list)
    thought: str = ""
    """What a thinking model said before its answer. Where max_tokens ended it there, `text` is empty."""

    # Definitions of `vllm bench serve` (vllm/benchmarks/serve.py); seconds.

    @property
    def ttft(self) -> float:
        """Time to first token: from the request to the first token chunk."""
        return self.times[0] - self.sent

    @property
    def itl(self) -> list[float]:
        """Inter-token latencies: between token chunks that follow each other."""
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]

    @property
    def e2e(self) -> float:
        """From the request to the last token chunk."""
        return self.times[-1] - self.sent

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first."""
        if self.completion_tokens < 2:
            return None
        return (self.e2e - self.ttft) / (self.completion_tokens - 1)


class Server:
    """An engine's API. `model`: the name that it must go by; `seconds`: the longest that a request may take."""

    def __init__(self, http: httpx.AsyncClient, model: str, seconds: float):
        self._http, self._model, self._seconds = http, model, seconds

    def named(self, model: str) -> Server:
        """The same server, as one of its other models."""
        return Server(self._http, model, self._seconds)

    def patient(self, seconds: float) -> Server:
        """The same server, whose requests may take so long."""
        return Server(self._http, self._model, seconds)

    async def health(self) -> None:
        """/health answers 200."""
        await self._read("GET", "/health")

    async def models(self) -> None:
        """/v1/models shows the served name."""
        listing = _json(await self._read("GET", MODELS), MODELS)
        try:
            names = [card["id"] for card in listing["data"]]
        except (KeyError, TypeError) as error:
            raise BadAnswer(f"{MODELS} answered something that is no list of models: {_short(listing)}") from error
        if self._model not in names:
            raise BadAnswer(f"{MODELS} does not show {self._model}; it shows {', '.join(map(str, names)) or 'none'}")

    async def chat(self, prompt: str, max_tokens: int, **options: Any) -> Answer:
        """The whole answer at temperature 0."""
        body = _json(await self._read("POST", CHAT, self._question(prompt, max_tokens) | options), CHAT)
        try:
            self._check_object(body, "chat.completion")
            (choice,) = body["choices"]
            if choice["message"]["role"] != "assistant":
                raise BadAnswer(f"the answer comes from {choice['message']['role']!r}, not from the assistant")
            message = choice["message"]
            return _answer(message["content"], _thought(message), choice["finish_reason"], body["usage"], max_tokens)
        except (KeyError, TypeError, ValueError) as error:
            raise BadAnswer(f"{CHAT} answered something that is no chat completion: {_short(body)}") from error

    async def stream(self, prompt: str, max_tokens: int, **options: Any) -> Answer:
        """The answer as it is made, at temperature 0, to its very end."""
        question = self._question(prompt, max_tokens) | {"stream": True, "stream_options": {"include_usage": True}}
        text, thought, times, finish, usage, done = "", "", list[float](), None, None, False
        sent = time.perf_counter()
        async with self._request("POST", CHAT, question | options) as response:
            kind = response.headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):
                await response.aread()
                raise BadAnswer(f"a stream was asked for, and {kind or 'something'} came: {_short(response.text)}")
            async for payload, now in _events(response):
                if done:
                    raise BadAnswer("the stream goes on after [DONE]")
                if payload == b"[DONE]":
                    done = True
                    continue
                try:
                    chunk = json.loads(payload)
                    self._check_object(chunk, "chat.completion.chunk")
                    if not chunk["choices"]:
                        usage = chunk["usage"]
                        continue
                    (choice,) = chunk["choices"]
                    content, more_thought = choice["delta"].get("content") or "", _thought(choice["delta"]) or ""
                    if finish:
                        raise BadAnswer("the stream goes on after its finish reason")
                    finish = choice.get("finish_reason")
                except (AttributeError, KeyError, TypeError, ValueError) as error:
                    raise BadAnswer(f"the stream holds something that is no chunk: {_short(payload)}") from error
                times.append(now)
                text += content
                thought += more_thought
        if not done:
            raise BadAnswer(f"the stream broke off after {len(times)} chunks: it ended without [DONE]")
        if not finish:
            raise BadAnswer("the stream ended without a finish reason")
        if usage is None:
            raise BadAnswer("the stream ended without usage, which was asked for")
        answer = _answer(text, thought, finish, usage, max_tokens)
        answer.sent, answer.times = sent, times
        return answer

    async def refuses(self, path: str, status: int) -> None:
        """A path answers with this status, whoever answers."""
        await self._read("GET", path, wanted=(status,))

    async def is_unknown(self) -> None:
        """The engine itself says that it serves no model of this name."""
        said = (await self._read("POST", CHAT, self._question("What is a pod?", 1), wanted=(404,))).text
        if f"The model `{self._model}` does not exist" not in said:
            raise BadAnswer(f"{CHAT} answered 404 in other words than the engine's: {_short(said)}")

    async def sheds(self, prompt: str, max_tokens: int, objective: str = "") -> bool:
        """Whether a request of the objective, or of none, was refused for others that wait (429); it is answered
        otherwise."""
        question, headers = self._question(prompt, max_tokens), {OBJECTIVE: objective, _OLD_OBJECTIVE: objective}
        options = {"wanted": (200, 429), "headers": headers if objective else None}
        return (await self._read("POST", CHAT, question, **options)).status_code == 429

    async def occupy(self, prompt: str, tokens: int) -> None:
        """Has it make just so many tokens for nobody. To be cancelled: the engine then drops the request."""
        await self._read("POST", CHAT, self._question(prompt, tokens) | {"ignore_eos": True})

    def _question(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        message = {"role": "user", "content": prompt}
        return {"model": self._model, "messages": [message], "max_tokens": max_tokens, "temperature": 0}

    def _check_object(self, body: dict[str, Any], kind: str) -> None:
        if "error" in body:
            raise BadAnswer(f"the server told an error: {_short(body['error'])}")
        if body["model"] != self._model:
            raise BadAnswer(f"the answer comes from the model {body['model']!r}, not {self._model}")
        if body["object"] != kind:
            raise BadAnswer(f"a {kind} was asked for, and a {body['object']} came")

    async def _read(
        self, method: str, path: str, question: dict[str, Any] | None = None, **options: Any
    ) -> httpx.Response:
        async with self._request(method, path, question, **options) as response:
            await response.aread()
        return response

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        question: dict[str, Any] | None = None,
        *,
        wanted: tuple[int, ...] = (200,),
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[httpx.Response]:
        asked = self._http.stream(method, path, json=question, headers=headers)
        try:
            async with asyncio.timeout(self._seconds), asked as response:
                if response.status_code not in wanted:
                    await response.aread()
                    status = f"{response.status_code} {response.reason_phrase}".strip()
                    if 200 not in wanted:
                        status = f"{response.status_code}, not {wanted[0]}"
                    raise BadAnswer(f"{path} answered {status}: {_short(response.text) or 'nothing'}")
                yield response
        except TimeoutError as error:
            raise BadAnswer(f"{path} did not finish its answer within {self._seconds:g} s") from error
        except httpx.RequestError as error:
            if distrust := _distrust(error):
                raise Untrusted(f"{path} was not asked: {distrust}") from error
            raise BadAnswer(f"{path}: {type(error).__name__}: {error}") from error


@asynccontextmanager
async def connected(
    url: str,
    model: str,
    *,
    api_key: str | None,
    seconds: float,
    clients: int,
    headers: Mapping[str, str] = MappingProxyType({}),
    trusted: bool = True,
    host: str = "",
    authority: str = "",
) -> AsyncIterator[list[Server]]:
    """The server at `url`, over as many `clients` as there will be streams at once; the rest is as Server has it.
    `headers` go along with each request; who is not `trusted` may show any certificate.

    `host`: the name that it is called by, whatever the address in `url`: its certificate has to be for that one.
    `authority`: certificates (PEM) of those who may vouch for it beside those that everybody trusts.

    One client for all would measure itself: for every request httpx looks at each of its connections for each of them,
    a tenth of a second for 64 that begin together.
    """
    key = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    headers = {"Accept-Encoding": "identity", **headers, **({"Host": host} if host else {}), **key}
    # A server closes connections that were idle for 5 s (uvicorn): ours are gone before that.
    limits = httpx.Limits(keepalive_expiry=2)
    timeout = httpx.Timeout(None, connect=10)
    certificates = _certificates(host, authority)  # Every client would read them again.
    if not trusted:
        certificates.check_hostname, certificates.verify_mode = False, ssl.CERT_NONE
    async with AsyncExitStack() as stack:
        servers = []
        for _ in range(clients):
            http = httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=timeout, verify=certificates)
            await stack.enter_async_context(http)
            servers.append(Server(http, model, seconds))
        yield servers


@asynccontextmanager
async def of_pod(address: str, model: str, *, api_key: str | None, seconds: float) -> AsyncIterator[Server]:
    """A pod's engine, by the pod's address, over a connection of its own."""
    key = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    url, timeout = f"http://{address}:{names.PORT}", httpx.Timeout(None, connect=10)
    # There is no TLS: a context without certificates takes no time to make.
    options: dict[str, Any] = {"verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "trust_env": False}
    async with httpx.AsyncClient(base_url=url, headers=key, timeout=timeout, **options) as http:
        yield Server(http, model, seconds)


class _Called(ssl.SSLContext):
    """Certificates are for `host`, whatever address was connected to. (httpx knows a name beside the address too, as
    the extension sni_hostname, but forgets it behind a proxy.)"""

    host = ""

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, server_side, self.host or server_hostname, session)


def _certificates(host: str, authority: str) -> ssl.SSLContext:
    context = _Called(ssl.PROTOCOL_TLS_CLIENT)
    context.host = host
    context.load_default_certs()
    if authority:
        context.load_verify_locations(cadata=authority)
    return context


def _distrust(error: BaseException | None) -> str:
    """What was wrong with a certificate, if that is what an error came of; empty otherwise."""
    while error:
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate is not to be trusted ({error.verify_message})"
        error = error.__cause__ or error.__context__
    return ""


class RefusedAdapter(Exception):
    """The engine does not load an adapter; the message has its words."""


class Adapters:
    """The routes by which an engine's adapters change, as its own pod reaches them
    (vllm/entrypoints/serve/lora/api_router.py). What a method does not say it raises: BadAnswer for an engine that is
    away, or that answers something else."""

    def __init__(self, http: httpx.Client):
        self._http = http

    @classmethod
    @contextmanager
    def at(cls, url: str, token: str) -> Iterator[Adapters]:
        """Those of the engine at `url`, whose middleware knows the `token`."""
        headers = {"x-gemma-adapters": token}
        if key := os.environ.get(names.API_KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        # To load an adapter takes seconds, and waits for the batch that runs.
        with httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False) as http:
            yield cls(http)

    def served(self) -> dict[str, str]:
        """The adapters that the engine serves, by their names: the path that each was loaded from."""
        response = self._ask("GET", MODELS)
        try:
            return {card["id"]: card["root"] for card in response.json()["data"] if card.get("parent")}
        except (KeyError, TypeError, ValueError) as error:
            raise BadAnswer(
                f"{MODELS} answered something that is no list of models: {_short(response.text)}"
            ) from error

    def load(self, name: str, path: str, *, in_place: bool) -> None:
        """Loads an adapter; `in_place`, where another of its name is served until then. Raises RefusedAdapter."""
        question = {"lora_name": name, "lora_path": path, "load_inplace": in_place}
        self._ask("POST", "/v1/load_lora_adapter", question, refused=(400, 404, 500))

    def unload(self, name: str) -> None:
        """Has the engine forget an adapter. Requests that run finish."""
        self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    def _ask(
        self, method: str, path: str, question: dict[str, Any] | None = None, refused: tuple[int, ...] = ()
    ) -> httpx.Response:
        try:
            response = self._http.request(method, path, json=question)
        except httpx.RequestError as error:
            raise BadAnswer(f"{path}: {type(error).__name__}: {error}") from error
        if response.status_code == 200:
            return response
        if response.status_code in refused:
            # A route that is not there has another body than an adapter that is not.
            with contextlib.suppress(KeyError, TypeError, ValueError):
                raise RefusedAdapter(str(response.json()["error"]["message"])[:_LONGEST_WORDS])
        raise BadAnswer(f"{path} answered {response.status_code}: {_short(response.text) or 'nothing'}")


def direct() -> httpx.Client:
    """A client for pods by their addresses, never through a proxy that knows names; to be closed after use."""
    return httpx.Client(timeout=5, trust_env=False)


def unfinished(client: httpx.Client, address: str) -> int:
    """Requests that a pod's engine runs or has queued; 0 for one that is gone: it has nothing to finish.

    Raises BadAnswer when the engine does not say: whoever is there and silent may be busy.
    """
    return _counted(client, address, _UNFINISHED, "vllm:num_requests_running")


def waiting(client: httpx.Client, address: str) -> int:
    """Requests that a pod's engine has queued; 0 for one that is gone. Raises BadAnswer when it does not say."""
    return _counted(client, address, _WAITING, "vllm:num_requests_waiting")


def load(client: httpx.Client, address: str) -> tuple[int, int]:
    """`waiting` and `unfinished` of one look. Raises BadAnswer when the engine does not say."""
    text = _metrics(client, address, "vllm:num_requests_running")
    return (0, 0) if text is None else (_sum(_WAITING, text), _sum(_UNFINISHED, text))


@dataclass(frozen=True)
class Served:
    """What an engine has counted since it started, or between two looks.

    Two parts of vLLM count, and a request may be in both: the engine itself (`vllm:request_success_total` by
    `finished_reason`, of which `error` is a failure and `abort` a client that left; `vllm:admission_rejections_total`),
    and its HTTP server (`http_requests_total` of prometheus-fastapi-instrumentator, by `handler`, `method` and `status`
    like `5xx`), which alone counts what fails before the engine has it. So of each figure the larger one holds.
    """

    finished: int = 0
    """By the engine, rejected ones included."""
    failed: int = 0
    answered: int = 0
    """By the HTTP server, under /v1."""
    refused: int = 0
    """With 5xx."""
    below: tuple[tuple[float, int], ...] = ()
    """Histogram of the time to the first token: (seconds, first tokens that came within them), the last is all."""

    @property
    def requests(self) -> int:
        return max(self.finished, self.answered)

    @property
    def errors(self) -> int:
        return max(self.failed, self.refused)

    @property
    def first_tokens(self) -> int:
        return self.below[-1][1] if self.below else 0

    def first_token(self, share: float, *, deviations: float = 0) -> float | None:
        """Seconds within which this share of first tokens came, as Prometheus' histogram_quantile has it: linear inside
        of a bucket, and the last limit for what is beyond it. None without any.

        deviations: how many standard deviations of a sample of this size it is to be higher, or lower, by chance.
        """
        if not self.first_tokens:
            return None
        chance = math.sqrt(share * (1 - share) * self.first_tokens)
        rank, lower, counted = share * self.first_tokens + deviations * chance, 0.0, 0
        rank = min(max(rank, 0.0), float(self.first_tokens))
        for upper, count in self.below:
            if count >= rank:
                inside = count - counted
                return lower if math.isinf(upper) else lower + (upper - lower) * (rank - counted) / (inside or 1)
            lower, counted = upper, count
        return lower

    def is_before(self, other: Served | None) -> bool:
        """Whether it counts less than another, of the same engine, that was seen earlier: it started again."""
        return other is not None and any(
            getattr(self, name) < getattr(other, name) for name in ("finished", "answered", "first_tokens")
        )

    def minus(self, other: Served) -> Served:
        return self._with(other, -1)

    def plus(self, other: Served) -> Served:
        return self._with(other, 1)

    def _with(self, other: Served, sign: int) -> Served:
        own, others = dict(self.below), dict(other.below)
        return Served(
            self.finished + sign * other.finished,
            self.failed + sign * other.failed,
            self.answered + sign * other.answered,
            self.refused + sign * other.refused,
            tuple((limit, own.get(limit, 0) + sign * others.get(limit, 0)) for limit in sorted({*own, *others})),
        )


def served(client: httpx.Client, address: str) -> Served | None:
    """What a pod's engine has counted; None for one that is gone. Raises BadAnswer when it does not say."""
    text = _metrics(client, address, "vllm:num_requests_running")
    if text is None:
        return None
    finished = failed = answered = refused = 0
    below: dict[float, int] = {}
    for name, labels, value in _SAMPLE.findall(text):
        if name == "vllm:request_success_total":
            finished += round(float(value))
            failed += round(float(value)) if 'finished_reason="error"' in labels else 0
        elif name == "vllm:admission_rejections_total":
            finished, failed = finished + round(float(value)), failed + round(float(value))
        elif name == "http_requests_total":
            of = dict(_LABEL.findall(labels))
            if of.get("method") == "POST" and of.get("handler", "").startswith("/v1/"):
                answered += round(float(value))
                refused += round(float(value)) if of.get("status", "").startswith("5") else 0
        elif name == "vllm:time_to_first_token_seconds_bucket":
            limit = float(dict(_LABEL.findall(labels))["le"])
            below[limit] = below.get(limit, 0) + round(float(value))
    return Served(finished, failed, answered, refused, tuple(sorted(below.items())))


def _counted(client: httpx.Client, address: str, pattern: re.Pattern[str], name: str) -> int:
    text = _metrics(client, address, name)
    return 0 if text is None else _sum(pattern, text)


def _sum(pattern: re.Pattern[str], text: str) -> int:
    return round(sum(float(value) for value in pattern.findall(text)))


def _metrics(client: httpx.Client, address: str, name: str) -> str | None:
    """A pod's metrics, which hold the one of this name; None for one that is gone. Raises BadAnswer without it."""
    try:
        response = client.get(f"http://{address}:{names.PORT}/metrics")
    except httpx.ConnectError:
        return None
    except httpx.TransportError as error:
        raise BadAnswer(f"/metrics of {address}: {type(error).__name__}: {error}") from error
    if response.status_code != 200 or f"\n{name}{{" not in f"\n{response.text}":
        raise BadAnswer(f"/metrics of {address} answered {response.status_code}, without {name}")
    return response.text


def _thought(said: dict[str, Any]) -> Any:
    """The thinking in a message or a delta (vLLM before 0.12 called it reasoning_content)."""
    return said.get("reasoning") or said.get("reasoning_content")


def _answer(text: Any, thought: Any, finish_reason: Any, usage: Any, max_tokens: int) -> Answer:
    """The answer, if its text, its finish reason and its usage are those of an answer."""
    thought = thought if isinstance(thought, str) else ""
    answer = text or ""
    if not answer and finish_reason == "length":
        text = thought  # All its tokens went into thinking: that is what there is to judge.
    if not isinstance(text, str) or not text:
        raise BadAnswer("the answer has no text")
    if not _SAID.search(text):
        raise BadAnswer(f"the answer is nothing but white space and replacement characters: {text[:40]!r}")
    said = "".join(text.split())
    if len(said) >= 16 and len(set(said)) == 1:
        # What an engine says whose weights make no sense: the same token over and over.
        raise BadAnswer(f"the answer is one character over and over: {text[:40]!r}")
    if finish_reason not in ("stop", "length"):
        raise BadAnswer(f"the answer finished for the reason {finish_reason!r}, neither stop nor length")
    try:
        prompt, completion, total = (usage[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens"))
        consistent = prompt >= 1 and 1 <= completion <= max_tokens and total == prompt + completion
    except (KeyError, TypeError):
        consistent = False
    if not consistent:
        raise BadAnswer(f"the usage is not consistent, with at most {max_tokens} tokens allowed: {_short(usage)}")
    return Answer(answer, finish_reason, prompt, completion, thought=thought)


async def _events(response: httpx.Response) -> AsyncIterator[tuple[bytes, float]]:
    """The payload of every `data:` line and when it came.

    Lines are split as bytes: httpx's own lines also end at U+2028, which may stand in a text. A stream of the engine
    has one line an event.
    """
    rest = b""
    try:
        async for data in response.aiter_bytes():
            now = time.perf_counter()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield line[5:].strip(), now
                elif line.strip() and not line.startswith((b":", b"event:", b"id:", b"retry:")):
                    raise BadAnswer(f"the stream holds a line that is no event: {_short(line)}")
    except (httpx.RemoteProtocolError, httpx.ReadError) as error:
        raise BadAnswer(f"the stream broke off: {error or type(error).__name__}") from error
    if rest.strip():
        raise BadAnswer(f"the stream broke off in the middle of a line: {_short(rest)}")


def _json(response: httpx.Response, path: str) -> Any:
    try:
        body = response.json()
    except ValueError as error:
        kind = response.headers.get("content-type", "no content type")
        raise BadAnswer(f"{path} answered 200 with something that is not JSON ({kind}): {_short(response.text)}") from (
            error
        )
    if not isinstance(body, dict):
        raise BadAnswer(f"{path} answered 200 with something that is no JSON object: {_short(body)}")
    return body


def _short(value: Any) -> str:
    """The beginning of whatever came, on one line."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:200] + "…"
