"""The connection that tells a near cache of changes, in a thread. `aio/near.py` is its twin.

Must not import asyncio, or what is stored.
"""

from __future__ import annotations

import os
import threading
import weakref
from time import monotonic
from typing import Any

from ..errors import RedisError, ReplyError
from ..protocol.resp import NOT_ENOUGH, Push, encode, encode_many
from ..protocol.settings import Settings
from ..protocol.tracking import BEAT, Near, NearCache
from .connection import Connection

_PING = encode(("PING",))


class Tracked(Near):
    """What is held by a client for threads. The thread ends with it."""

    def __init__(self, limits: NearCache, settings: Settings) -> None:
        super().__init__(limits, threading.RLock)
        self._settings = settings._replace(pushes=None, observer=None, near=None, integrity=False)
        self._restart()
        _tracked.add(self)

    def _restart(self) -> None:
        self.forget()
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()  # tracking has begun, or has failed for the first time
        self._closing = threading.Event()
        self.failure: ReplyError | None = None

    def begin_tracking(self, limit: float) -> None:
        """Have the thread run, and wait until it is told of changes, or cannot be.

        Raises the server's refusal of CLIENT TRACKING.
        """
        if self._thread is None:
            with self._lock:
                if self._thread is None and not self._closing.is_set():
                    arguments = (weakref.ref(self), self._settings, self._ready, self._closing)
                    thread = threading.Thread(
                        target=_track, args=arguments, name="rawredis_llm near cache", daemon=True
                    )
                    thread.start()
                    self._thread = thread
        self._ready.wait(limit)
        if self.failure is not None:
            raise type(self.failure)(
                self.failure.message, command=self.failure.command, address=self.failure.address
            )

    def close(self) -> None:
        """Hold nothing more, and end the thread."""
        self._closing.set()
        self.lost()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(BEAT)


def _track(
    owner: weakref.ref[Tracked],
    settings: Settings,
    ready: threading.Event,
    closing: threading.Event,
) -> None:
    """Be told of changes, on one connection after the other, until nobody wants to know."""
    pause = 0.0
    while not closing.wait(pause) and (near := owner()) is not None:
        connection = Connection(settings)
        try:
            connection.open(monotonic() + BEAT * 5)
            asked = monotonic()
            [reply] = connection.exchange(encode_many(near.commands()), asked + BEAT)
            near.opened(reply, asked)
            near.failure, pause = None, 0.0
            ready.set()
            del near
            _listen(owner, connection, closing)
        except ReplyError as error:
            near = owner()
            if near is not None:
                near.failure = error
        except RedisError:
            pass
        finally:
            connection.close()
            near = owner()
            if near is not None:
                near.lost()
            ready.set()
        pause = min(max(2 * pause, 0.05), BEAT)
        del near


def _listen(owner: weakref.ref[Tracked], connection: Connection, closing: threading.Event) -> None:
    """Take what comes, and ask once in a while whether all has come."""
    asked = 0.0
    waiting = False
    while not closing.is_set():
        now = monotonic()
        if not waiting and now >= asked + BEAT:
            connection.send(_PING, now + BEAT)
            asked, waiting = now, True
        elif waiting and now >= asked + BEAT:
            return  # it has fallen silent
        frame: Any = connection.next_frame(min(asked + BEAT, now + _TURN))
        near = owner()
        if near is None:
            return
        if frame is not NOT_ENOUGH and near.take(
            list(frame) if type(frame) is Push else frame, asked
        ):
            waiting = False
        del near


_TURN = 0.2  # seconds after which it is seen that the client was closed
_tracked: weakref.WeakSet[Tracked] = weakref.WeakSet()


def _after_fork() -> None:
    for near in list(_tracked):
        near._restart()  # noqa: SLF001 - the same module


os.register_at_fork(after_in_child=_after_fork)
