"""The limit of the machine: bytes from socket to socket through one process that hashes them, and onto a file.

What every mover of verified bytes has to do, and nothing else: no HTTP, no retries, no names. Three processes as in the
real run: a source (sendfile), the relay (sha256 and crc32c), a sink (crc32c and a file, as the bucket has it).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import multiprocessing
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import google_crc32c

PIECE = 1 << 20
THREADS = 4


def run(files: list[Path], into: Path) -> Callable[[], None]:
    """Starts source and sink; the returned function moves the files and returns when all have arrived."""
    context = multiprocessing.get_context("spawn")
    doors, children = [], []
    for serve in (_source, _sink):
        ours, theirs = context.Pipe()
        child = context.Process(target=serve, args=(theirs, [str(file) for file in files], str(into)), daemon=True)
        child.start()
        doors.append(ours.recv())
        children.append(child)

    def move() -> None:
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda number: _relay(number, doors[0], doors[1]), range(len(files))))

    return move


def _relay(number: int, source_port: int, sink_port: int) -> None:
    sha256, crc = hashlib.sha256(), 0
    with _connected(source_port, number) as source, _connected(sink_port, number) as sink:
        while piece := source.recv(PIECE, socket.MSG_WAITALL):
            sha256.update(piece)
            crc = google_crc32c.extend(crc, piece)
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)
        assert sink.recv(4) == crc.to_bytes(4, "big")


@contextlib.contextmanager
def _connected(port: int, number: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(number.to_bytes(4, "big"))
        yield connection


def _source(door, files: list[str], into: str) -> None:
    def send(connection: socket.socket, number: int) -> None:
        with open(files[number], "rb") as file:
            connection.sendfile(file)

    _serve(door, send)


def _sink(door, files: list[str], into: str) -> None:
    def receive(connection: socket.socket, number: int) -> None:
        crc = 0
        with open(Path(into, str(number)), "wb", buffering=0) as file:
            while piece := connection.recv(PIECE):
                file.write(piece)
                crc = google_crc32c.extend(crc, piece)
        connection.sendall(crc.to_bytes(4, "big"))

    _serve(door, receive)


def _serve(door, answer: Callable[[socket.socket, int], None]) -> None:
    def one(connection: socket.socket) -> None:
        with connection:
            answer(connection, int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big"))

    with socket.create_server(("127.0.0.1", 0)) as server:
        door.send(server.getsockname()[1])
        while True:
            threading.Thread(target=one, args=(server.accept()[0],), daemon=True).start()
