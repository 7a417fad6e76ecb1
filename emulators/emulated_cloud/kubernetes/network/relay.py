"""Bytes from one connection to another and back, without looking at them, with back pressure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

from emulated_cloud.kubernetes.network.services import NoEndpoint

Choose = Callable[[], tuple[str, int]]
"""Picks an endpoint for a new connection; raises NoEndpoint."""


class Side(asyncio.Protocol):
    """One side of a relay; `peer` is the other, once there is one."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.peer: Side | None = None
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.peer and self.peer.transport:
            self.peer.transport.write(data)

    def eof_received(self) -> bool:
        """A side that has no more to say may still listen, until the other has no more to say either."""
        self.ended = True
        if self.peer is None or self.peer.ended or self.peer.transport is None:
            return False
        self.peer.transport.write_eof()
        return True

    def connection_lost(self, _: Exception | None) -> None:
        if self.peer and self.peer.transport:
            self.peer.transport.close()

    def pause_writing(self) -> None:
        if self.peer and self.peer.transport:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer and self.peer.transport:
            self.peer.transport.resume_reading()


class Relay(Side):
    """The side of the one who called. The other side is made when he calls, by `connect`, which raises OSError or
    NoEndpoint: then the call is ended."""

    def __init__(self, connect: Callable[[], Awaitable[Side]]):
        super().__init__()
        self._connect = connect

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        # Soon, not now: an older Python (Debian 12's 3.11.2) starts to read when this returns, paused or not, and what
        # comes before there is another side would be lost.
        asyncio.get_running_loop().call_soon(self.transport.pause_reading)
        self._pairing = asyncio.create_task(self._pair())

    async def _pair(self) -> None:
        assert self.transport is not None
        try:
            other = await self._connect()
        except (NoEndpoint, OSError):
            self.transport.abort()
            return
        self.peer, other.peer = other, self
        if self.transport.is_closing():
            if other.transport:
                other.transport.close()
            return
        self.transport.resume_reading()


async def listen(address: str, port: int, choose: Choose) -> asyncio.Server:
    """Relays every connection to `address:port` (0: any free port) to an endpoint of its own, chosen once, as
    kube-proxy does: a connection that is kept alive stays with its pod, whatever the Service selects later."""
    loop = asyncio.get_running_loop()

    async def connect() -> Side:
        return (await loop.create_connection(Side, *choose()))[1]

    return await loop.create_server(lambda: Relay(connect), address, port)
