"""A subscription for threads, on a connection of its own. `aio/pubsub.py` is its twin.

Must not import asyncio, or what is stored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from ..errors import ConnectionError as RedisConnectionError
from ..errors import ReadTimeoutError, RedisError, ReplyError
from ..protocol.pubsub import ChannelMessage, Subscriber
from ..protocol.resp import NOT_ENOUGH, encode_many
from ..protocol.settings import Settings, seconds
from .connection import Connection

if TYPE_CHECKING:
    from typing_extensions import Self


class Subscription:
    """An endless iterator of `ChannelMessage`, for one thread at a time; made by `subscribe()`.

    A connection that is lost is made again within the client's time limit, everything is subscribed
    anew, and a message of the kind `gap` tells of it. If that fails, ConnectError is raised, and
    the next `get` tries again. Leave it by `close()` or `with`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._retry = settings.retry.patient()
        self._subscriber = Subscriber(settings.timeout)
        self._connection: Connection | None = None
        self._lost = self._closed = self._reading = False
        self._process = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ChannelMessage:
        try:
            message = self.get()
        except RuntimeError:
            if not self._closed:
                raise
            message = None
        if message is None:
            raise StopIteration
        return message

    def get(self, timeout: float | None = None) -> ChannelMessage | None:
        """Return the next message, or None if none came in `timeout` seconds (default: no limit).

        With 0 only what is there already. A lost connection is made again first, for which the
        client's own time limit counts.

        Raises ConnectError when the server cannot be reached any more, ReplyError when it refuses,
        RuntimeError after `close`.
        """
        limit = monotonic() + (0.0 if timeout == 0 else seconds("timeout", timeout))
        held = self._subscriber.held
        self._here()
        while not held:
            self._read(limit)
            if not held and monotonic() >= limit:
                return None
        message = held[0]
        del held[0]  # not popleft(): where a call ends, a signal's exception would lose the message
        return message

    def subscribe(
        self, *channels: str | bytes, pattern: bool = False, sharded: bool = False
    ) -> None:
        """Add channels, or patterns of their names; return when the server has confirmed them."""
        subscriber = self._subscriber
        try:
            self._change(subscriber.subscribe(channels, pattern=pattern, sharded=sharded))
        except ReplyError:
            subscriber.withdraw()
            raise

    def unsubscribe(
        self, *channels: str | bytes, pattern: bool = False, sharded: bool = False
    ) -> None:
        """Take channels or patterns away; return when the server has confirmed it."""
        self._change(self._subscriber.unsubscribe(channels, pattern=pattern, sharded=sharded))

    def close(self) -> None:
        """Close the connection; iteration ends, in another thread, too."""
        self._closed = True
        connection = self._connection
        if connection is None:
            return
        if self._reading and self._process == os.getpid():
            connection.hang_up()
        else:
            connection.close()

    def _change(self, commands: Sequence[Sequence[Any]]) -> None:
        deadline = monotonic() + self._settings.timeout
        connection = self._here()
        if connection is not None:
            self._guard(connection, lambda: self._ask(connection, commands, deadline))
        if self._connection is None:
            self._connect(deadline)  # it asks for all that is wanted

    def _read(self, limit: float) -> None:
        """Wait for a frame until the limit, or until it is time to look after the server."""
        connection = self._here()
        if connection is None:  # and then there may be a gap to tell, or what has come already
            self._connect(monotonic() + self._settings.timeout)
        else:
            self._guard(connection, lambda: self._wait(connection, limit))

    def _wait(self, connection: Connection, limit: float) -> None:
        subscriber = self._subscriber
        frame = connection.next_frame(min(limit, subscriber.wake))
        now = monotonic()
        if frame is not NOT_ENOUGH:
            subscriber.take(frame, now)
        elif now >= subscriber.wake:
            connection.send(encode_many(subscriber.look_after(now))[0][0], subscriber.wake)

    def _ask(
        self, connection: Connection, commands: Sequence[Sequence[Any]], deadline: float
    ) -> None:
        for data, _ in encode_many(commands):
            connection.send(data, deadline)
        self._confirm(connection, deadline)

    def _guard(self, connection: Connection, use: Callable[[], None]) -> None:
        """Use a connection; drop it whatever goes wrong. Its loss alone is no error yet."""
        self._reading = True
        try:
            use()
        except BaseException as error:
            self._drop(connection)
            if not isinstance(error, RedisError) or not self._passes(error):
                raise
        finally:
            self._reading = False

    def _place(self, deadline: float) -> Settings:  # noqa: ARG002 - of who has to look for it
        """Return where to connect to."""
        return self._settings

    def _passes(self, error: RedisError) -> bool:
        """Return whether all that an error ends is the connection, not the subscription."""
        return isinstance(error, RedisConnectionError)

    def _pause(self, error: Exception, tried: int) -> float | None:
        """Return how long to wait before the next try to connect; None: there is none."""
        return self._retry.pause(error, ("PING",), tried, idempotent=True)

    def _here(self) -> Connection | None:
        """Return the connection, unless it is a fork's copy, whose messages are the parent's."""
        if self._closed:
            raise RuntimeError("the subscription is closed")
        connection = self._connection
        if connection is not None and (self._process != os.getpid() or not connection.opened):
            self._drop(connection)
        return self._connection

    def _connect(self, deadline: float) -> None:
        """Connect and subscribe to all that is wanted, as often as the time allows."""
        tried = 0
        while True:
            if self._closed:
                raise RuntimeError("the subscription is closed")
            connection: Connection | None = None
            try:
                connection = Connection(self._place(deadline))
                connection.open(deadline)
                self._ask(connection, self._subscriber.resume(monotonic()), deadline)
                if self._closed:  # meanwhile
                    raise RuntimeError("the subscription is closed")
                self._subscriber.resumed(lost=self._lost)
            except Exception as error:
                self._subscriber.not_resumed()
                if connection is not None:
                    self._drop(connection)
                tried += 1
                pause = self._pause(error, tried)
                if pause is None or monotonic() + pause >= deadline:
                    raise
                sleep(pause)
            else:
                self._connection, self._process, self._lost = connection, os.getpid(), False
                return

    def _confirm(self, connection: Connection, deadline: float) -> None:
        while self._subscriber.owed:
            frame = connection.next_frame(deadline)
            if frame is NOT_ENOUGH:
                raise ReadTimeoutError("no answer in time", address=str(self._settings.address))
            self._subscriber.take(frame, monotonic())

    def _drop(self, connection: Connection) -> None:
        connection.close("OutcomeUnknownError")
        if self._connection is connection:
            self._connection, self._lost = None, True
