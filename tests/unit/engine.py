"""A server that answers as vLLM does, or nearly: tests spoil one thing at a time."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "google/gemma-3-4b-it"
ID = {"id": "chatcmpl-1", "created": 1, "model": MODEL}
WORDS = ["A", " pod", " is", " a", " group", " of", " containers", "."]

Reply = tuple[int, str, list[bytes]]
"""Status, content type, and the body in the pieces in which it is written."""
JSON, EVENTS = "application/json", "text/event-stream; charset=utf-8"


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()) + b"\n\n"


def usage(tokens: int = len(WORDS)) -> dict[str, int]:
    return {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens}


class Engine:
    """Override a method to spoil what it answers. `asked` are the questions, in order."""

    words = WORDS
    finish_reason = "stop"
    pause = 0.0
    """Seconds between the pieces of a stream."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.headers: list[dict[str, str]] = []
        """Of each POST, by names in lower case."""

    def get(self, path: str) -> Reply:
        return self.health() if path == "/health" else self.models()

    def health(self) -> Reply:
        return 200, "", []

    def models(self) -> Reply:
        return reply({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def completion(self, question: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(self.words)}
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason}
        return {**ID, "object": "chat.completion", "choices": [choice], "usage": usage(len(self.words))}

    def chat(self, question: dict[str, Any]) -> Reply:
        return reply(self.completion(question))

    def chunks(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        deltas = [{"role": "assistant", "content": ""}, *({"content": word} for word in self.words)]
        chunks = [
            {**ID, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
            for delta in deltas
        ]
        chunks[-1]["choices"][0]["finish_reason"] = self.finish_reason  # type: ignore[index]
        last = {**ID, "object": "chat.completion.chunk", "choices": [], "usage": usage(len(self.words))}
        return [*chunks, last]

    def stream(self, question: dict[str, Any]) -> Reply:
        return 200, EVENTS, [*map(event, self.chunks(question)), event(b"[DONE]")]

    def answer(self, question: dict[str, Any]) -> Reply:
        self.asked.append(question)
        return self.stream(question) if question.get("stream") else self.chat(question)


def reply(body: Any, status: int = 200, content_type: str = JSON) -> Reply:
    return status, content_type, [body if isinstance(body, bytes) else json.dumps(body).encode()]


CUT = b"\0cut"
"""A piece at which the connection is closed, in the middle of the body."""


@contextmanager
def served(engine: Engine, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The engine on a loopback port, over https with a server's context: its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._send(engine.get(self.path))

        def do_POST(self) -> None:
            engine.keys.add(self.headers["Authorization"])
            engine.headers.append({name.lower(): value for name, value in self.headers.items()})
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(engine.answer(question))

        def _send(self, answer: Reply) -> None:
            status, content_type, pieces = answer
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for piece in filter(None, pieces):
                    if piece == CUT:
                        self.close_connection = True
                        return
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    time.sleep(engine.pause)
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls:
        # A handshake in the thread of its connection: who breaks it off ends nothing else.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
