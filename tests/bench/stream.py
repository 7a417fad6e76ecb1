"""A server of nothing but streams, for whoever reads them to be the slower side: `python -m tests.bench.stream`.

Speaks just enough HTTP and SSE for a load generator: each stream gets a token chunk of vLLM's shape at even intervals,
one write each, whether its reader keeps up or not. `--rate` tokens a second for each stream.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from emulated_cloud import process

_ID = {"id": "chatcmpl-" + "0" * 32, "object": "chat.completion.chunk", "created": 1780000000}


def framed(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(model: str, **values: Any) -> bytes:
    body = json.dumps({**_ID, "model": model, **values}, separators=(",", ":"))
    return framed(f"data: {body}\n\n".encode())


def choice(delta: dict[str, str], finish_reason: str | None = None) -> list[dict[str, Any]]:
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason, "token_ids": None}]


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rate: float) -> None:
    """Answers the requests of one connection, one after the other."""
    loop = asyncio.get_running_loop()
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            question = json.loads(await reader.readexactly(length))
            model, count = question["model"], question["max_tokens"]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(event(model, choices=choice({"role": "assistant", "content": ""})))
            token = event(model, choices=choice({"content": " word"}))
            started = loop.time()
            for number in range(1, count):
                writer.write(token)
                await asyncio.sleep(started + number / rate - loop.time())
            writer.write(event(model, choices=choice({"content": "."}, "length")))
            usage = {"prompt_tokens": 8, "completion_tokens": count, "total_tokens": 8 + count}
            writer.write(event(model, choices=[], usage=usage) + framed(b"data: [DONE]\n\n") + framed(b""))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main() -> None:
    parser = process.arguments("Streams at a rate.")
    parser.add_argument("--rate", type=float, required=True, help="tokens a second for each stream")
    options = parser.parse_args()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer, options.rate)

    server = await asyncio.start_server(connected, options.host, options.port)
    ended, loop = asyncio.Event(), asyncio.get_running_loop()

    def end() -> None:
        loop.call_soon_threadsafe(ended.set)

    process.when_told_to_end(end)
    process.announce(f"http://{options.host}:{server.sockets[0].getsockname()[1]}")
    await ended.wait()


if __name__ == "__main__":
    asyncio.run(main())
