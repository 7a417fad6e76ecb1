"""Many JSON requests in one: each part of a multipart/mixed body is a request, and gets an answer."""

from __future__ import annotations

import email.parser
import email.policy
import json
import secrets
from collections.abc import Callable
from email.message import Message
from http import HTTPStatus

from emulated_cloud.http import Handler
from emulated_cloud.storage.call import Answer
from emulated_cloud.storage.errors import GcsError

JsonRequest = Callable[[str, str, Message, bytes], Answer]
"""Answers method, URI, headers and body. May raise GcsError."""


def answer(request: Handler, json_request: JsonRequest) -> None:
    """Raises GcsError 400."""
    head = f"Content-Type: {request.headers.get('Content-Type', '')}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + request.read_body())
    if not message.is_multipart():
        raise GcsError(400, "badRequest", "Failed to parse batch request, error: no parts.")
    boundary = f"batch_{secrets.token_urlsafe(16)}"
    out = []
    for part in message.iter_parts():
        status, body = _answer_part(part.get_content(), json_request)
        text = json.dumps(body) if body is not None else ""
        content_id = str(part.get("Content-ID", "")).replace("<", "<response-")
        out.append(
            f"--{boundary}\r\nContent-Type: application/http\r\n"
            + (f"Content-ID: {content_id}\r\n" if content_id else "")
            + f"\r\nHTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
            + f"Content-Type: application/json; charset=UTF-8\r\nContent-Length: {len(text)}\r\n\r\n{text}\r\n"
        )
    request.send(200, "".join(out) + f"--{boundary}--\r\n", {"Content-Type": f"multipart/mixed; boundary={boundary}"})


def _answer_part(part: bytes, json_request: JsonRequest) -> Answer:
    line, _, rest = part.lstrip().partition(b"\n")
    headers = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(rest)
    method, uri, _ = line.decode().split()
    body = headers.get_payload(decode=True)
    try:
        return json_request(method, uri, headers, body.strip() if isinstance(body, bytes) else b"")
    except GcsError as error:
        return Answer(error.status, error.as_json())
