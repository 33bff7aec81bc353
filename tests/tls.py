"""A proxy that speaks TLS in front of a server which does not, as stunnel does."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from contextlib import suppress

from rawredis_llm.protocol.address import parse_url

__all__ = ["TlsProxy"]


class TlsProxy:
    """Ends TLS at a port of 127.0.0.1, and passes all on to a plain server; `with` runs it.

    `accepted` counts connections, whether they came to shake hands or not. An event loop in a
    thread of its own does the work: two threads must not share one TLS connection.
    """

    def __init__(self, upstream: str, context: ssl.SSLContext) -> None:
        self._upstream = parse_url(upstream)
        self._context = context
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._socks: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0

    def __enter__(self) -> TlsProxy:  # noqa: PYI034 - Self needs Python 3.11
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._accepting.cancel)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        self._accepting = self._loop.create_task(self._accept())
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._accepting)
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        tasks = list(self._tasks)  # which leave that set as they end
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # in which aborted transports are closed
        for sock in self._socks:  # those of tasks that were cancelled before they began
            sock.close()

    async def _accept(self) -> None:
        while True:
            sock, _ = await self._loop.sock_accept(self._listener)
            self.accepted += 1
            self._socks.append(sock)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._serve(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket) -> None:
        reader = asyncio.StreamReader()
        front: asyncio.BaseTransport | None = None
        back: asyncio.StreamWriter | None = None
        with suppress(OSError, asyncio.CancelledError):
            try:
                front, protocol = await self._loop.connect_accepted_socket(
                    lambda: asyncio.StreamReaderProtocol(reader), sock, ssl=self._context
                )
                writer = asyncio.StreamWriter(front, protocol, reader, self._loop)
                replies, back = await self._connect()
                to_client = self._loop.create_task(_copy(replies, writer))
                to_server = self._loop.create_task(_copy(reader, back))
                both = {to_client, to_server}
                try:
                    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in both:
                        task.cancel()
            finally:
                for transport in (front, back and back.transport):
                    if isinstance(transport, asyncio.WriteTransport):
                        transport.abort()
                sock.close() if front is None else None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._upstream.path:
            return await asyncio.open_unix_connection(self._upstream.path)
        return await asyncio.open_connection(self._upstream.host, self._upstream.port)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
