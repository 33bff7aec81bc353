"""The client of a primary that sentinels watch, for threads. `aio/sentinel.py` is its twin.

Must not import asyncio, numpy, or what is stored.
"""

# What is here, in the pool and in the connection is one mechanism in several classes.
# ruff: noqa: SLF001

from __future__ import annotations

import threading
from time import monotonic, sleep

from ..errors import ConnectError, RedisError
from ..protocol.sentinel import LOOK, PATIENCE, BaseSentinel, Place, Why, replica_of
from ..protocol.settings import Settings
from .client import Client
from .connection import Connection
from .pool import Pool
from .pubsub import Subscription

__all__ = ["SentinelClient"]


class SentinelClient(BaseSentinel, Client):
    """A client of the primary that sentinels name, for any number of threads.

    Creating one does no I/O. Each connection is made to where a sentinel says that the primary is,
    and used only if that server agrees (ROLE). Once a second a sentinel is asked whether it is
    still there; if not, connections are made anew.
    """

    def _start(self) -> None:
        BaseSentinel._start(self)
        self._looking = threading.Lock()
        self._pool = _Pool(self)

    def _make_sentinel(self, settings: Settings) -> Client:
        sentinel = Client.__new__(Client)
        sentinel._settings = settings
        sentinel._begin()
        return sentinel

    def _shut(self) -> None:
        super()._shut()
        for sentinel in self._sentinels:
            sentinel.close()

    def subscribe(
        self, *channels: str | bytes, pattern: bool = False, sharded: bool = False
    ) -> Subscription:
        """Return an endless iterator of what is published, on a connection of its own.

        It follows the primary when that changes.
        """
        subscription = _Subscription(self)
        subscription.subscribe(*channels, pattern=pattern, sharded=sharded)
        return subscription

    def _find(self, deadline: float) -> Settings:
        """Return how to connect to where commands go. Raises NoPrimaryError."""
        said: list[RedisError] = []
        for sentinel in self._turned():
            try:
                place = self._ask(sentinel, deadline)
                found = None
                if self._given.replica:
                    question = ("SENTINEL", "REPLICAS", self._given.service)
                    found = replica_of(sentinel._one(question, _share(deadline)))
            except RedisError as error:
                said.append(error)
                continue
            self._has_moved(place)
            host, port = found or place[:2]
            return self._settings_of(host, port, primary=found is None)
        raise self._nobody(said)

    def _ask(self, sentinel: Client, deadline: float) -> Place:
        try:
            return self._take(sentinel._one(self._question, _share(deadline)))
        except RedisError as error:
            error.address = error.address or str(sentinel._settings.address)
            raise

    def _look(self, deadline: float) -> None:
        """See whether the primary has moved, unless another thread does that now."""
        if not self._looking.acquire(blocking=False):
            return
        try:
            self._next_look = monotonic() + LOOK
            try:
                moved = self._has_moved(self._ask(self._turned()[0], deadline))
            except RedisError:  # the next one may know more; while connections work all is well
                return
            if moved:
                self._pool.retire("the primary moved")
        finally:
            self._looking.release()


def _share(deadline: float) -> float:
    return max(min(PATIENCE, deadline - monotonic()), 1e-3)


class _Pool(Pool):
    """Connections to where the primary is."""

    def __init__(self, owner: SentinelClient) -> None:
        super().__init__(owner._settings)
        self._owner = owner

    def acquire(self, deadline: float) -> Connection:
        """Return an open, clean connection; see first, once a second, where it should lead."""
        if monotonic() >= self._owner._next_look and self._idle:
            self._owner._look(deadline)
        return super().acquire(deadline)

    def _make(self) -> Connection:
        return _Connection(self._owner)

    def after_fork(self) -> None:
        """In a forked child: close our copies of the sockets. The parent's stay as they are."""
        self._owner._looking = threading.Lock()  # another thread of the parent may have held it
        super().after_fork()


class _Connection(Connection):
    """A connection that finds out where to lead when it is opened."""

    __slots__ = ("_owner",)

    def __init__(self, owner: SentinelClient) -> None:
        super().__init__(owner._settings)
        self._owner = owner

    def open(self, deadline: float) -> None:
        """Connect and shake hands. Raises ConnectError, or the server's refusal."""
        limit = min(deadline, monotonic() + self._settings.connect_timeout)
        why = Why(self._settings.retry)
        while True:
            try:
                self._lead_to(self._owner._find(limit))
                return super().open(limit)
            except ConnectError as error:
                sleep(why.pause(error, limit - monotonic()))


class _Subscription(Subscription):
    def __init__(self, owner: SentinelClient) -> None:
        super().__init__(owner._settings)
        self._owner = owner

    def _place(self, deadline: float) -> Settings:
        return self._owner._find(deadline)
