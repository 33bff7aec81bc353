"""A bounded pool: the warmest idle connection first, waiters served in the order they came.

The idle stack is a deque, whose append and pop are atomic, so a call on a warm pool takes no lock.
Connections in use are known only by weak references: one that an interrupt took from its owner
frees its place by being collected, and no counter can go wrong.

Must not import asyncio, or what is stored.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections import Counter, deque
from contextlib import suppress
from time import monotonic
from typing import Final

from ..errors import PoolTimeoutError, ReadOnlyError
from ..protocol.settings import ConnectionFigures, Settings
from .connection import Connection

RECHECK: Final = 0.5  # seconds: how soon a waiter notices a place freed by the collector


class _Waiter:
    """A caller that waits: `gate` opens when a connection was handed to it.

    It may be given several, by a signal handler in the midst of handing over, and keeps one.
    """

    __slots__ = ("gate", "given")

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.gate.acquire()
        self.given: list[Connection] = []


class Pool:
    """At most `settings.max_connections` connections, each used by one caller at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._closed = False
        self._ages = settings.idle_timeout != math.inf
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        # Re-entrant: a signal handler may use the client while its thread is in here.
        self._lock = threading.RLock()
        self._idle: deque[Connection] = deque()
        self._waiters: dict[_Waiter, None] = {}  # in the order they came; to leave is atomic, too
        self._live: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._created = self._waited = 0
        self._wait_time = 0.0
        self._dropped: Counter[str] = Counter()

    def acquire(self, deadline: float) -> Connection:
        """Return an open, clean connection; the caller must `release` it.

        Raises PoolTimeoutError when none is free in time, ConnectError when none can be made.
        """
        if not self._waiters:
            try:
                while True:
                    connection = self._idle.pop()
                    # What nearly every call meets, written out: two calls less for each.
                    if not self._ages and not connection.retired and not connection.poll(0):
                        return connection
                    if self._usable(connection):
                        return connection
                    self._drop(connection, "ended while idle")
            except IndexError:
                pass
        return self._acquire_slowly(deadline)

    def release(self, connection: Connection) -> None:
        """Take a connection back; a dirty one is closed."""
        if connection.refusals:
            self._note_refusals(connection)
        if connection.dirty or connection.retired:
            self._drop(connection)
        else:
            if self._ages:
                self._note_age(connection)
            self._idle.append(connection)
            if self._closed:
                self.close()
        if self._waiters:
            self._serve()

    def retire(self, why: str) -> None:
        """Close what is idle now, and what is in use when it comes back."""
        with self._lock:
            for connection in list(self._live):
                connection.retired = connection.retired or why
        while True:
            try:
                self._drop(self._idle.pop())
            except IndexError:
                return

    def close(self) -> None:
        """Close all connections, those in use when they come back; later calls raise."""
        self._closed = True
        self.retire("closed")

    def figures(self) -> ConnectionFigures:
        """Return what there is now, and what happened so far."""
        with self._lock:
            places = len(self._live)
            collected = self._created - places - sum(self._dropped.values())
            return ConnectionFigures(
                open=places,
                in_use=max(places - len(self._idle), 0),
                waiting=len(self._waiters),
                created=self._created,
                waited=self._waited,
                wait_time=self._wait_time,
                dropped=dict(self._dropped + Counter(abandoned=collected)),
            )

    def after_fork(self) -> None:
        """In a forked child: close our copies of the sockets. The parent's stay as they are."""
        inherited = list(self._live)
        self._reset()
        for connection in inherited:
            # Without a word to the observer: another thread of the parent may hold its lock.
            connection.close(tell=False)

    def _usable(self, connection: Connection) -> bool:
        if self._ages and monotonic() - connection.idle_since > self._settings.idle_timeout:
            connection.retired = "idle_timeout"
        return not connection.retired and connection.usable()

    def _note_age(self, connection: Connection) -> None:
        """Remember when it came back; drop those at the cold end that have been there too long."""
        connection.idle_since = now = monotonic()
        try:
            while now - self._idle[0].idle_since > self._settings.idle_timeout:
                oldest = self._idle.popleft()
                oldest.retired = "idle_timeout"
                self._drop(oldest)
        except IndexError:
            pass

    def _note_refusals(self, connection: Connection) -> None:
        if any(isinstance(refusal, ReadOnlyError) for refusal in connection.refusals):
            self.retire("READONLY")  # the primary is elsewhere, and all of them lead here
        connection.refusals.clear()

    def _drop(self, connection: Connection, why: str = "abandoned") -> None:
        try:
            connection.close(connection.retired or why)
        finally:  # close() tells the observer, which may raise
            with self._lock:
                self._live.discard(connection)
                self._dropped[connection.ended or "ConnectError"] += 1  # never had a socket

    def _acquire_slowly(self, deadline: float) -> Connection:
        if self._closed:
            raise RuntimeError("the client is closed")
        waiter = _Waiter()
        try:
            with self._lock:
                self._waiters[waiter] = None
            self._serve()
            if not waiter.given:
                self._wait(waiter, deadline)
            connection = waiter.given.pop()
        finally:
            self._leave(waiter)
        try:
            if self._closed:
                raise RuntimeError("the client is closed")
            if connection.opened and not self._usable(connection):
                with self._lock:  # so that nobody else takes the place
                    self._drop(connection, "ended while idle")
                    connection = self._new()
            if not connection.opened:
                connection.open(deadline)
        except BaseException:
            connection.dirty = True
            self.release(connection)
            raise
        return connection

    def _wait(self, waiter: _Waiter, deadline: float) -> None:
        began = monotonic()
        try:
            while not waiter.given and not waiter.gate.acquire(
                timeout=max(min(RECHECK, deadline - monotonic()), 0)
            ):
                self._serve()
                if not waiter.given and monotonic() >= deadline:
                    most, address = self._settings.max_connections, str(self._settings.address)
                    raise PoolTimeoutError(f"all {most} connections are in use", address=address)
        finally:
            with self._lock:
                self._waited += 1
                self._wait_time += monotonic() - began

    def _new(self) -> Connection:
        connection = self._make()
        self._live.add(connection)
        self._created += 1
        return connection

    def _make(self) -> Connection:
        return Connection(self._settings)

    def _leave(self, waiter: _Waiter) -> None:
        """Leave the queue; give back what was handed over in the last moment."""
        with self._lock:
            self._waiters.pop(waiter, None)
        while waiter.given:
            self.release(waiter.given.pop())

    def _serve(self) -> None:
        """Hand connections to the first waiters, new ones while there is room."""
        with self._lock:
            # Each step may be the last before an interrupt, or be met half done by a signal handler
            # that comes here in this very thread: the waiter looks at `given` by itself.
            while waiter := next((one for one in list(self._waiters) if not one.given), None):
                if self._idle:
                    try:
                        connection = self._idle.pop()
                    except IndexError:  # a caller without the lock was faster
                        continue
                elif len(self._live) < self._settings.max_connections:
                    connection = self._new()
                else:
                    return
                waiter.given.append(connection)
                self._waiters.pop(waiter, None)
                with suppress(RuntimeError):  # it is open
                    waiter.gate.release()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in list(_pools):
        pool.after_fork()


os.register_at_fork(after_in_child=_after_fork)
