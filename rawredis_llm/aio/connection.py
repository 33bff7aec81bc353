"""One socket, many tasks: replies are matched to requests by position.

The deque of slots belongs to the connection, not to the callers. A cancelled or timed-out task
leaves its slot behind; the reply that belongs there is read and dropped, and nobody else's moves.
All that tasks ask for in one turn of the event loop leaves in one write.

A connection is *busy* while it changes its slots or its bytes. An interrupt in the middle (Ctrl-C
in a notebook, whose loop goes on) leaves it busy, and whoever comes next closes it.

Must not import what is stored.
"""

from __future__ import annotations

import asyncio
import functools
import math
import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Concatenate, Final, ParamSpec, cast

from ..errors import (
    ConnectError,
    ConnectTimeoutError,
    OutcomeUnknownError,
    ProtocolError,
    ReadTimeoutError,
    RedisError,
    ReplyError,
)
from ..protocol.resp import CHUNK, NOT_ENOUGH, Decoder, Push, encode_many
from ..protocol.settings import Settings

__all__ = ["Connection", "connect"]

P = ParamSpec("P")


LONGEST_SILENCE: Final = 20.0  # seconds; stands for a client's time limit where it has none


class _Slot:
    """The place of one exchange in the order of replies, and whom to tell."""

    __slots__ = ("deadline", "future", "replies", "width")

    def __init__(self, future: asyncio.Future[Any], deadline: float, width: int) -> None:
        self.future = future
        self.deadline = deadline
        self.width = width
        self.replies: list[Any] = []


def _whole(step: Callable[Concatenate[Connection, P], None]) -> Callable[..., None]:
    """Make a callback of the event loop one that runs whole, or ends the connection."""

    @functools.wraps(step)
    def guarded(self: Connection, *args: P.args, **kwargs: P.kwargs) -> None:
        if self.closed:
            return
        if self._busy:
            self.fail(_INTERRUPTED)
            return
        self._busy = True
        try:
            step(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - any failure in here ends this connection
            text = f"the reply could not be read: {error!r}"
            self.fail(ProtocolError(error.message if isinstance(error, RedisError) else text))
        except BaseException:
            self.fail(_INTERRUPTED)
            raise
        self._busy = False

    return guarded


class Connection(asyncio.Protocol):
    """A socket to one server, made by `connect()`."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.closed = False
        self._busy = False
        self._settings = settings
        self._address = str(settings.address)
        self._decoder = Decoder(self._address)
        self._slots: deque[_Slot] = deque()
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wake = math.inf
        self._heard = loop.time()

    def request(
        self, portions: Iterable[tuple[bytes, int]], deadline: float
    ) -> asyncio.Future[list[Any]]:
        """Send commands; the future's result is the list of their replies, errors in their slots.

        A portion is bytes and the number of commands in them. A future that is cancelled leaves its
        place in the order of replies, and what it asked for may happen all the same.
        """
        future = self.loop.create_future()
        if self._busy:
            self.fail(_INTERRUPTED)
        if self.closed:
            future.set_exception(ConnectError("the connection was lost", address=self._address))
            return future
        self._busy = True
        if not self._slots:
            self._heard = self.loop.time()  # silence counts from when somebody listens
        if not self._out:
            self.loop.call_soon(self._flush)
        width = 0
        for data, commands in portions:
            self._out.append(data)
            width += commands
        self._slots.append(_Slot(future, deadline, width))
        if deadline < self._wake:
            self._set_timer(deadline)
        self._busy = False
        return future

    @_whole
    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None:
            self._transport.write(b"".join(out))

    def _set_timer(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wake = deadline
        self._timer = None if deadline == math.inf else self.loop.call_at(deadline, self._expire)

    @_whole
    def _expire(self) -> None:
        """Time out what is due. One timer serves all slots: arming one per call costs 1.5 us."""
        self._timer = None
        now = self.loop.time()
        following = math.inf
        for slot in self._slots:
            if slot.future.done():
                continue
            if slot.deadline > now:
                following = min(following, slot.deadline)
                continue
            slot.future.set_exception(ReadTimeoutError("no answer in time", address=self._address))
        self._set_timer(following)
        if self._slots and now - self._heard >= min(self._settings.timeout, LONGEST_SILENCE) / 2:
            # A call timed out, and not a byte came for half of the time that a call may take: the
            # server or the way to it is gone, and everyone who waits here would wait in vain.
            self.fail(ReadTimeoutError("the server has fallen silent"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (called by the event loop)."""
        # Not isinstance(): uvloop's transports are no asyncio.Transport by descent.
        self._transport = cast("asyncio.Transport", transport)

    @_whole
    def data_received(self, data: bytes) -> None:
        """Hand replies to the slots they belong to (called by the event loop)."""
        self._heard = self.loop.time()
        if len(data) <= CHUNK:
            self._read(data)
        else:
            for start in range(0, len(data), CHUNK):
                self._read(data[start : start + CHUNK])

    def _read(self, data: bytes) -> None:
        decoder, slots = self._decoder, self._slots
        gets = decoder.gets
        complete: list[_Slot] = []
        try:
            decoder.feed(data)
            while (reply := gets()) is not NOT_ENOUGH:
                if type(reply) is not Push:
                    if not slots:
                        raise ProtocolError("the server sent a reply that nobody asked for")
                    slot = slots[0]
                    slot.replies.append(reply)
                    if len(slot.replies) == slot.width:
                        complete.append(slots.popleft())
                if decoder.settled():
                    break
            else:
                if not slots:
                    raise ProtocolError("the server sent bytes that nobody asked for")
        except Exception:
            # A surplus reply may be the first of those that came with it: nobody gets any.
            slots.extendleft(reversed(complete))
            raise
        for slot in complete:
            if not slot.future.done():
                slot.future.set_result(slot.replies)

    def eof_received(self) -> bool:
        """Close when the server does (called by the event loop)."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is in flight (called by the event loop)."""
        reason = getattr(exc, "strerror", None) or "the server closed the connection"
        self.fail(OutcomeUnknownError(reason))

    def fail(self, error: RedisError) -> None:
        """Close, and fail every call in flight with an error of this kind."""
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        for slot in self._slots:
            if not slot.future.done():
                slot.future.set_exception(type(error)(error.message, address=self._address))
        self._slots.clear()
        if self._settings.observer is not None:
            self._settings.observer.connection("closed")

    def abandon(self) -> None:
        """Close this process' copy of the socket, past an event loop that is closed or not ours.

        After a fork the loop's epoll object is shared with the parent: `abort()` would take the
        parent's socket out of it.
        """
        self.closed = True
        self._slots.clear()
        if self._transport is not None:
            wrapper = self._transport.get_extra_info("socket")
            sock = getattr(wrapper, "_sock", None)  # asyncio's; uvloop's cannot be closed by hand
            if sock is not None:
                sock.close()


_INTERRUPTED: Final = OutcomeUnknownError("the event loop was interrupted")


async def connect(settings: Settings, deadline: float = math.inf) -> Connection:
    """Return an open connection that has shaken hands.

    Raises ConnectError or ConnectTimeoutError, or the server's refusal.
    """
    loop = asyncio.get_running_loop()
    limit = min(deadline, loop.time() + settings.connect_timeout)
    connection = Connection(settings, loop)
    address = str(settings.address)
    try:
        timeout = None if limit == math.inf else max(limit - loop.time(), 0)
        await asyncio.wait_for(_open(settings, connection), timeout)
        replies = await connection.request(encode_many(settings.handshake()), limit)
    except (TimeoutError, asyncio.TimeoutError) as error:
        connection.fail(OutcomeUnknownError("not connected"))
        raise ConnectTimeoutError("no connection in time", address=address) from error
    except (RedisError, OSError) as error:
        connection.fail(OutcomeUnknownError("not connected"))
        text = error.message if isinstance(error, RedisError) else error.strerror or str(error)
        raise ConnectError(text, address=address) from error
    except BaseException:  # cancelled
        connection.fail(OutcomeUnknownError("not connected"))
        raise
    try:
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise reply
        if settings.observer is not None:
            settings.observer.connection("opened")
    except BaseException:
        connection.fail(OutcomeUnknownError("not connected"))
        raise
    return connection


async def _open(settings: Settings, connection: Connection) -> None:
    address, loop = settings.address, connection.loop
    if address.path:
        await loop.create_unix_connection(lambda: connection, address.path)
        return
    # create_connection sets TCP_NODELAY itself.
    transport, _ = await loop.create_connection(
        lambda: connection, address.host, address.port, ssl=settings.tls()
    )
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
