"""A subscription for tasks, on a connection of its own. `sync/pubsub.py` is its twin.

Must not import what is stored.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConnectionError as RedisConnectionError
from ..errors import ReadTimeoutError, RedisError, ReplyError
from ..protocol.pubsub import ChannelMessage, Subscriber
from ..protocol.resp import encode_many
from ..protocol.settings import Settings, seconds
from .connection import Connection, Loop, connect, left

if TYPE_CHECKING:
    from typing_extensions import Self

HELD: Final = 1024
"""Frames that wait for their reader; with more, the socket is not read, so that the server holds
them, and hangs up when that is too much for it: then there is a gap, which is told."""


class Subscription:
    """An endless asynchronous iterator of `ChannelMessage`, for one task at a time.

    Made by `subscribe()`; it subscribes when it is entered (`async with`), awaited, or read. A
    connection that is lost is made again within the client's time limit, everything is subscribed
    anew, and a message of the kind `gap` tells of it. If that fails, ConnectError is raised, and
    the next `get` tries again. Leave it by `close()` or `async with`.
    """

    def __init__(
        self, settings: Settings, channels: Sequence[str | bytes], *, pattern: bool, sharded: bool
    ) -> None:
        self._settings = settings
        self._retry = settings.retry.patient()
        self._subscriber = Subscriber(settings.timeout)
        self._subscriber.subscribe(channels, pattern=pattern, sharded=sharded)
        self._connection: Connection | None = None
        self._frames: deque[Any] = deque()
        self._arrived: asyncio.Future[None] | None = None
        self._lost = self._closed = self._paused = False

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        await self._change([])
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChannelMessage:
        try:
            message = await self.get()
        except RuntimeError:
            if not self._closed:
                raise
            message = None
        if message is None:
            raise StopAsyncIteration
        return message

    async def get(self, timeout: float | None = None) -> ChannelMessage | None:
        """Return the next message, or None if none came in `timeout` seconds (default: no limit).

        With 0 only what is there already. A lost connection is made again first, for which the
        client's own time limit counts.

        Raises ConnectError when the server cannot be reached any more, ReplyError when it refuses,
        RuntimeError after `close`.
        """
        loop = asyncio.get_running_loop()
        limit = loop.time() + (0.0 if timeout == 0 else seconds("timeout", timeout))
        self._here(loop)
        while not self._subscriber.held:
            await self._read(loop, limit)
            if not self._subscriber.held and loop.time() >= limit:
                return None
        return self._subscriber.held.popleft()

    async def subscribe(
        self, *channels: str | bytes, pattern: bool = False, sharded: bool = False
    ) -> None:
        """Add channels, or patterns of their names; return when the server has confirmed them."""
        subscriber = self._subscriber
        try:
            await self._change(subscriber.subscribe(channels, pattern=pattern, sharded=sharded))
        except ReplyError:
            subscriber.withdraw()
            raise

    async def unsubscribe(
        self, *channels: str | bytes, pattern: bool = False, sharded: bool = False
    ) -> None:
        """Take channels or patterns away; return when the server has confirmed it."""
        await self._change(self._subscriber.unsubscribe(channels, pattern=pattern, sharded=sharded))

    async def close(self) -> None:
        """Close the connection; iteration ends, in another task, too."""
        self._closed = True
        if self._connection is not None:
            self._connection.end(asyncio.get_running_loop())
            await asyncio.sleep(0)  # a transport closes its socket in the loop's next turn

    async def _change(self, commands: Sequence[Sequence[Any]]) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.timeout
        connection = self._here(loop)
        if connection is not None and commands:
            try:
                connection.send(encode_many(commands)[0][0])
                await self._confirm(loop, deadline)
            except BaseException as error:
                self._drop(connection)
                if not self._passes(error):
                    raise
        if self._connection is None:
            await self._connect(loop, deadline)  # it asks for all that is wanted

    async def _read(self, loop: Loop, limit: float) -> None:
        """Wait for frames until the limit, or until it is time to look after the server."""
        subscriber = self._subscriber
        connection = self._here(loop)
        if connection is None:
            await self._connect(loop, loop.time() + self._settings.timeout)
            return  # there may be a gap to tell, or what came with the confirmation
        try:
            await self._take(loop, min(limit, subscriber.wake))
            now = loop.time()
            if not subscriber.held and now >= subscriber.wake:
                connection.send(encode_many(subscriber.look_after(now))[0][0])
        except Exception as error:
            self._drop(connection)
            if not self._passes(error):
                raise

    async def _place(self, deadline: float) -> Settings:  # noqa: ARG002 - of who has to look for it
        """Return where to connect to."""
        return self._settings

    def _passes(self, error: BaseException) -> bool:
        """Return whether all that an error ends is the connection, not the subscription."""
        return isinstance(error, RedisConnectionError)

    async def _pause(self, error: BaseException, tried: int) -> float | None:
        """Return how long to wait before the next try to connect; None: there is none."""
        return self._retry.pause(error, ("PING",), tried, idempotent=True)

    def _here(self, loop: Loop) -> Connection | None:
        """Return the connection, unless it belongs to another event loop."""
        if self._closed:
            raise RuntimeError("the subscription is closed")
        connection = self._connection
        if connection is not None and not connection.belongs_to(loop):
            connection.listener = None
            connection.end(loop)
            self._connection, self._lost = None, True
        return self._connection

    async def _connect(self, loop: Loop, deadline: float) -> None:
        """Connect and subscribe to all that is wanted, as often as the time allows."""
        tried = 0
        while True:
            if self._closed:
                raise RuntimeError("the subscription is closed")
            connection: Connection | None = None
            try:
                connection = await connect(await self._place(deadline), deadline)
                self._frames.clear()
                self._paused = False
                connection.listener = self._listen
                for data, _ in encode_many(self._subscriber.resume(loop.time())):
                    connection.send(data)
                await self._confirm(loop, deadline)
                if self._closed:  # meanwhile
                    raise RuntimeError("the subscription is closed")
                self._subscriber.resumed(lost=self._lost)
            except BaseException as error:
                self._subscriber.not_resumed()
                if connection is not None:
                    self._drop(connection)
                tried += 1
                pause = await self._pause(error, tried)
                if pause is None or loop.time() + pause >= deadline:
                    raise
                await asyncio.sleep(pause)
            else:
                self._connection, self._lost = connection, False
                return

    async def _confirm(self, loop: Loop, deadline: float) -> None:
        while self._subscriber.owed:
            await self._take(loop, deadline)
            if self._subscriber.owed and loop.time() >= deadline:
                raise ReadTimeoutError("no answer in time", address=str(self._settings.address))

    async def _take(self, loop: Loop, deadline: float) -> None:
        """Wait until something came or the deadline passed, and take what is there."""
        if not self._frames:
            self._arrived = loop.create_future()
            await asyncio.wait([self._arrived], timeout=left(loop, deadline))
        while self._frames:
            frame = self._frames.popleft()
            if isinstance(frame, RedisError) and not isinstance(frame, ReplyError):
                raise frame
            self._subscriber.take(frame, loop.time())
        if self._paused and self._connection is not None:
            self._paused = False
            self._connection.resume()

    def _listen(self, frame: Any) -> None:
        """Keep a frame, or the error that ended the connection (called by the connection)."""
        self._frames.append(frame)
        if len(self._frames) > HELD and self._connection is not None and not self._paused:
            self._paused = True
            self._connection.pause()
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def _drop(self, connection: Connection) -> None:
        connection.listener = None
        connection.close("OutcomeUnknownError")
        if self._connection is connection:
            self._connection, self._lost = None, True
