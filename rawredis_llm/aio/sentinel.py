"""The client of a primary that sentinels watch, for tasks. `sync/sentinel.py` is its twin.

Must not import numpy, or what is stored.
"""

# What is here, in the client and in the connection is one mechanism in several classes.
# ruff: noqa: SLF001

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from time import monotonic
from typing import Any

from ..errors import ConnectError, RedisError
from ..protocol.sentinel import LOOK, PATIENCE, BaseSentinel, Place, Why, replica_of
from ..protocol.settings import Settings
from .client import AsyncClient
from .connection import Connection, connect
from .pubsub import Subscription

__all__ = ["AsyncSentinelClient"]


class AsyncSentinelClient(BaseSentinel, AsyncClient):
    """A client of the primary that sentinels name, for any number of tasks.

    Creating one does no I/O. Each connection is made to where a sentinel says that the primary is,
    and used only if that server agrees (ROLE). Once a second a sentinel is asked whether it is
    still there; if not, connections are made anew.
    """

    def _start(self) -> None:
        super()._start()
        self._looking: asyncio.Task[None] | None = None

    def _make_sentinel(self, settings: Settings) -> AsyncClient:
        sentinel = AsyncClient.__new__(AsyncClient)
        sentinel._settings = settings
        sentinel._begin()
        return sentinel

    async def _shut(self) -> None:
        looking = self._looking
        if looking is not None and looking.get_loop() is asyncio.get_running_loop():
            looking.cancel()
            await asyncio.wait([looking])
        await super()._shut()
        for sentinel in self._sentinels:
            await sentinel.close()

    def subscribe(
        self, *channels: str | bytes, pattern: bool = False, sharded: bool = False
    ) -> Subscription:
        """Return an endless iterator of what is published, on a connection of its own.

        It follows the primary when that changes.
        """
        return _Subscription(self, channels, pattern=pattern, sharded=sharded)

    async def _exchange(self, *args: Any, **options: Any) -> list[Any]:
        if monotonic() >= self._next_look and self._live:
            self._next_look = monotonic() + LOOK
            self._looking = asyncio.get_running_loop().create_task(self._look())
        return await super()._exchange(*args, **options)

    async def _open(self, deadline: float) -> Connection:
        loop = asyncio.get_running_loop()
        # Tasks wait for the whole of connect_timeout, and are to hear why nobody was found.
        limit = min(deadline, loop.time() + 0.9 * self._settings.connect_timeout)
        why = Why(self._settings.retry)
        while True:
            try:
                return await connect(await self._find(limit), limit)
            except ConnectError as error:
                await asyncio.sleep(why.pause(error, limit - loop.time()))

    async def _find(self, deadline: float) -> Settings:
        """Return how to connect to where commands go. Raises NoPrimaryError."""
        said: list[RedisError] = []
        for sentinel in self._turned():
            try:
                place = await self._ask(sentinel, deadline)
                found = None
                if self._given.replica:
                    question = ("SENTINEL", "REPLICAS", self._given.service)
                    found = replica_of(await sentinel._one(question, _share(deadline)))
            except RedisError as error:
                said.append(error)
                continue
            self._has_moved(place)
            host, port = found or place[:2]
            return self._settings_of(host, port, primary=found is None)
        raise self._nobody(said)

    async def _ask(self, sentinel: AsyncClient, deadline: float) -> Place:
        try:
            return self._take(await sentinel._one(self._question, _share(deadline)))
        except RedisError as error:
            error.address = error.address or str(sentinel._settings.address)
            raise

    async def _look(self) -> None:
        """See whether the primary has moved."""
        try:
            moved = self._has_moved(await self._ask(self._turned()[0], math.inf))
        except RedisError:  # the next one may know more; while connections work all is well
            return
        if moved:
            self._retire("the primary moved")


def _share(deadline: float) -> float:
    return max(min(PATIENCE, deadline - asyncio.get_running_loop().time()), 1e-3)


class _Subscription(Subscription):
    def __init__(
        self,
        owner: AsyncSentinelClient,
        channels: Sequence[str | bytes],
        *,
        pattern: bool,
        sharded: bool,
    ) -> None:
        super().__init__(owner._settings, channels, pattern=pattern, sharded=sharded)
        self._owner = owner

    async def _place(self, deadline: float) -> Settings:
        return await self._owner._find(deadline)
