"""The connection that tells a near cache of changes, in a task. `sync/near.py` is its twin.

Must not import what is stored.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections import deque
from contextlib import suppress
from threading import RLock
from time import monotonic
from typing import Any

from ..errors import RedisError, ReplyError
from ..protocol.resp import Push, encode, encode_many
from ..protocol.settings import Settings
from ..protocol.tracking import BEAT, Near, NearCache
from .connection import Connection, Loop, connect

_PING = encode(("PING",))


class Tracked(Near):
    """What is held by a client for tasks: for those of one event loop, the first that asks.

    Another one takes its place when that loop was closed.
    """

    def __init__(self, limits: NearCache, settings: Settings) -> None:
        super().__init__(limits, RLock)
        self._settings = settings._replace(pushes=None, observer=None, near=None, integrity=False)
        self._restart()
        _tracked.add(self)

    def _restart(self) -> None:
        self.forget()
        self.loop: Loop | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._closed = False
        self.failure: ReplyError | None = None

    async def begin_tracking(self, limit: float) -> bool:
        """Have the task run, and wait until it is told of changes, or cannot be.

        Return whether it is for this loop. Raises the server's refusal of CLIENT TRACKING.
        """
        loop = asyncio.get_running_loop()
        if self.loop is not loop:
            if self._closed or (self.loop is not None and not self.loop.is_closed()):
                return False
            self.lost()
            self.loop, self._ready = loop, loop.create_future()
            self._task = loop.create_task(_track(weakref.ref(self), self._settings, self._ready))
        assert self._ready is not None
        if not self._ready.done():
            await asyncio.wait([self._ready], timeout=limit)
        if self.failure is not None:
            raise type(self.failure)(
                self.failure.message, command=self.failure.command, address=self.failure.address
            )
        return True

    async def close(self) -> None:
        """Hold nothing more, and end the task."""
        self._closed = True
        self.lost()
        task, loop = self._task, self.loop
        if task is None or loop is None or loop.is_closed():
            return
        if loop is asyncio.get_running_loop():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        else:
            loop.call_soon_threadsafe(task.cancel)


async def _track(
    owner: weakref.ref[Tracked], settings: Settings, ready: asyncio.Future[None]
) -> None:
    """Be told of changes, on one connection after the other, until nobody wants to know."""
    pause = 0.0
    loop = asyncio.get_running_loop()
    while (near := owner()) is not None:
        connection: Connection | None = None
        try:
            connection = await connect(settings, loop.time() + BEAT * 5)
            asked = monotonic()
            portions = encode_many(near.commands())
            [reply] = await connection.request(portions, loop.time() + BEAT)
            listener = _Listener(connection)
            near.opened(reply, asked)
            near.failure, pause = None, 0.0
            _done(ready)
            del near
            await listener.listen(owner)
        except ReplyError as error:
            near = owner()
            if near is not None:
                near.failure = error
        except RedisError:
            pass
        finally:
            if connection is not None:
                connection.listener = None
                connection.close()
            near = owner()
            if near is not None:
                near.lost()
            _done(ready)
        del near
        pause = min(max(2 * pause, 0.05), BEAT)
        await asyncio.sleep(pause)


def _done(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


class _Listener:
    """What comes on a connection, from the very moment that the server has agreed to tell."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._frames: deque[Any] = deque()
        self._came: asyncio.Future[None] = connection.loop.create_future()
        connection.listener = self._listen

    def _listen(self, frame: Any) -> None:
        self._frames.append(frame)
        _done(self._came)

    async def listen(self, owner: weakref.ref[Tracked]) -> None:
        """Take what comes, and ask once in a while whether all has come."""
        asked = 0.0
        waiting = False
        while True:
            now = monotonic()
            if not waiting and now >= asked + BEAT:
                self._connection.send(_PING)
                asked, waiting = now, True
            elif waiting and now >= asked + BEAT:
                return  # it has fallen silent
            # Not wait_for(), which before Python 3.12 loses a cancellation that comes with a frame.
            await asyncio.wait([self._came], timeout=asked + BEAT - now)
            self._came = self._connection.loop.create_future()
            near = owner()
            if near is None:
                return
            while self._frames:
                frame = self._frames.popleft()
                if isinstance(frame, RedisError) and not isinstance(frame, ReplyError):
                    raise frame
                if near.take(list(frame) if type(frame) is Push else frame, asked):
                    waiting = False
            del near


_tracked: weakref.WeakSet[Tracked] = weakref.WeakSet()


def _after_fork() -> None:
    for near in list(_tracked):
        near._restart()  # noqa: SLF001 - the same module


os.register_at_fork(after_in_child=_after_fork)
