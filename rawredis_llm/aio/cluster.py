"""The client of a cluster for tasks. `sync/cluster.py` is its twin.

Must not import numpy, or what is stored.
"""

# What is here and in the client of a node is one mechanism in two classes.
# ruff: noqa: SLF001

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from copy import copy
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..errors import (
    ClusterDownError,
    ConnectError,
    CrossSlotError,
    RedisError,
    ReplyError,
    WatchError,
    reply_error,
)
from ..protocol.cluster import PATIENCE, WHO, BaseCluster, confined, elsewhere, why_not
from ..protocol.keyed import one_slot
from ..protocol.observing import moved, reached, tell
from ..protocol.operation import Batch, Op, members_of, reading
from ..protocol.resp import Portions, encode
from ..protocol.routing import LOOK, Exchange
from ..protocol.settings import ConnectionFigures, Settings
from ..protocol.slots import slot_map
from ..protocol.units import Outcome, Steps
from ..protocol.vetting import command_name, vet
from .client import AsyncClient
from .connection import Connection, Loop, left
from .pubsub import Subscription

__all__ = ["AsyncClusterClient"]


class AsyncClusterClient(BaseCluster, AsyncClient):
    """A client of a Redis Cluster for any number of tasks. Creating one does no I/O."""

    if TYPE_CHECKING:

        def _node(self, name: str) -> AsyncClient: ...

    def _start(self) -> None:
        super()._start()
        self._closed = False
        self._looks: dict[Loop, asyncio.Task[RedisError | None]] = {}

    def _make_node(self, settings: Settings) -> AsyncClient:
        node = AsyncClient.__new__(AsyncClient)
        node._settings = settings
        node._begin()
        return node

    async def _shut(self) -> None:
        self._closed = True
        look = self._looks.get(asyncio.get_running_loop())
        if look is not None:
            look.cancel()
            await asyncio.wait([look])
        for node in list(self._nodes.values()):
            await node.close()

    @property
    def connections(self) -> ConnectionFigures:
        """How many connections there are to all nodes, and what became of others."""
        return ConnectionFigures.sum(node.connections for node in list(self._nodes.values()))

    def subscribe(
        self, *channels: str | bytes, pattern: bool = False, sharded: bool = False
    ) -> Subscription:
        """Return an endless iterator of what is published, on a connection of its own.

        Shard channels must be in one slot; the node that serves it is followed when it changes.
        """
        return _Subscription(self, channels, pattern=pattern, sharded=sharded)

    async def _reauthenticate(self) -> None:
        for node in list(self._nodes.values()):
            node._retire("reauthenticated")
        await self.call("PING")

    async def _one(
        self,
        args: Sequence[Any],
        limit: float | None = None,
        idempotent: bool = False,  # noqa: FBT001, FBT002 - by position, as it is every call's way
    ) -> Any:
        began = monotonic()
        waits = vet(args)
        limit = self._timeout + waits if limit is None else limit
        portions = [(encode(args), 1)]
        name = self._routes.node_of(args)
        if name is None:
            await self._know(began + limit)
            steps = Exchange(self._routes, args, self._retry, idempotent=idempotent).steps()
        else:
            node = self._nodes.get(name) or self._node(name)
            outcome: Outcome
            try:
                replies = await node._exchange(
                    portions, args, began, waits, limit, idempotent=idempotent
                )
            except RedisError as error:
                outcome = error
            else:
                if not isinstance(replies[0], ReplyError):
                    return replies[0]
                outcome = replies
            exchange = Exchange(self._routes, args, self._retry, idempotent=idempotent)
            steps = exchange.steps(exchange.as_sent([name], {name: outcome}))
        [reply] = await self._follow(steps, began + limit, waits)
        if isinstance(reply, ReplyError):
            raise reply_error(reply.message, command_name(args), reply.address)
        return reply

    async def _batch(
        self, batch: Batch, limit: float | None = None, *, idempotent: bool = False
    ) -> list[Any]:
        start = monotonic()
        if not batch.width:
            return batch.result([])
        if not self._routes.primaries:
            batch.encode()  # a bad argument is to be an error before a byte is sent
            await self._know(start + (self._timeout if limit is None else limit))
        split = self._routes.split(batch)
        if split is None:
            exchange = Exchange(self._routes, batch, self._retry, idempotent=idempotent)
            deadline = start + (self._timeout + exchange.waits if limit is None else limit)
            return batch.result(await self._follow(exchange.steps(), deadline, exchange.waits))
        deadline = start + (self._timeout if limit is None else limit)
        outcomes = await self._send(split.parts, deadline)
        if not any(map(_failed, outcomes.values())):
            return batch.result(split.joined(outcomes))
        exchange = Exchange(self._routes, batch, self._retry, idempotent=idempotent)
        steps = exchange.steps(exchange.as_sent(split.nodes, outcomes))
        return batch.result(await self._follow(steps, deadline))

    async def _follow(self, steps: Steps, deadline: float, waits: float = 0.0) -> list[Any]:
        """Do what an exchange says until it has all replies."""
        value: Any = None
        try:
            while True:
                step = steps.send(value)
                if isinstance(step, list):
                    parts = {part.node: part.ready() for part in step}
                    value = list((await self._send(parts, deadline, waits)).values())
                elif isinstance(step, str):
                    assert step is LOOK
                    await self._look(deadline)
                    value = None
                else:
                    value = monotonic() + step < deadline
                    if value:
                        await asyncio.sleep(step)
        except StopIteration as stop:
            replies: list[Any] = stop.value
            return replies

    async def _send(
        self, parts: dict[str, Batch], deadline: float, waits: float = 0.0
    ) -> dict[str, Outcome]:
        """Send each node its part, all in one turn of the loop; return what came of each."""
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline - monotonic()
        sendings = [_Sending(self._node(name), batch) for name, batch in parts.items()]
        if waits:  # on connections that nobody shares
            await asyncio.gather(*(one.alone(loop, until) for one in sendings))
        else:
            for one in sendings:
                await one.prepare(loop, until)
            try:
                for one in sendings:
                    one.begin(until)
                for one in sendings:
                    await one.finish()
            finally:
                for one in sendings:
                    one.end()
        return {name: one.outcome for name, one in zip(parts, sendings, strict=True)}

    async def _know(self, deadline: float) -> None:
        """Return when the map is known. Raises what kept all nodes from telling it."""
        tried = 0
        while not self._routes.primaries:
            self._check_open()
            failure = await self._look(deadline)
            tried += 1
            if failure is not None:
                pause = self._retry.pause(failure, (), tried, idempotent=True)
                if pause is None or monotonic() + pause >= deadline:
                    raise failure
                await asyncio.sleep(pause)

    async def _look(self, deadline: float) -> RedisError | None:
        """Ask who serves what, unless that was done just now; return why nobody said it.

        One task of a loop does, for all.
        """
        loop = asyncio.get_running_loop()
        look = self._looks.get(loop)
        if look is None:
            if not self._may_look(monotonic()):
                return None
            look = self._looks[loop] = loop.create_task(self._look_around())
            look.add_done_callback(lambda _: self._looks.pop(loop, None))
        await asyncio.wait([look], timeout=left(loop, loop.time() + deadline - monotonic()))
        if not look.done():
            return ConnectError("no time is left to look for the cluster's nodes")
        if look.cancelled():
            raise RuntimeError("the client is closed")
        failure = look.result()
        return failure and copy(failure)  # each task has its own

    async def _look_around(self) -> RedisError | None:
        failure: RedisError | None = None
        limit = min(self._timeout, PATIENCE)
        for name in self._candidates():
            try:
                self._routes.learn(slot_map(await self._node(name)._one(WHO, limit), name))
            except RedisError as error:
                failure = failure or why_not(error)
            else:
                return None
        return failure

    async def _optimistic(
        self, read: Callable[[], Op[Any]], keys: tuple[str | bytes, ...], limit: float | None
    ) -> list[Any]:
        deadline = monotonic() + (self._timeout if limit is None else limit)
        slot = one_slot([("WATCH", *keys)])
        if slot is None:  # nothing is watched: reads are reads, and then there is a transaction
            members = members_of(await self.run(reading(read())))
            rest = max(deadline - monotonic(), 0)
            return await self._batch(Batch(members, atomic=True), rest)
        await self._know(deadline)
        read = confined(read, keys)
        tried = 0
        while True:
            name = self._routes.owners[slot]
            try:
                if name is not None:
                    rest = max(deadline - monotonic(), 0)
                    return await self._node(name)._optimistic(read, keys, rest)
                failure: RedisError = ConnectError("nobody serves this slot")
            except RedisError as error:
                if not elsewhere(error) and not isinstance(error, WatchError):
                    raise
                failure = error
            tried += 1
            if elsewhere(failure):
                await self._look(deadline)
            pause = self._retry.patient().pause(ClusterDownError(), (), tried, idempotent=True)
            if pause is None or monotonic() + pause >= deadline:
                raise failure
            await asyncio.sleep(pause)


class _Sending:
    """What one node is sent, and what came of it."""

    def __init__(self, node: AsyncClient, batch: Batch) -> None:
        self.outcome: Outcome = []
        self._node, self._batch = node, batch
        self._observer = node._observer
        self._times: list[float] | None = None
        if self._observer is not None:
            self._times = [monotonic(), 0.0, 0.0, 0.0, 0.0, 0.0]
        self._portions: Portions = batch.encode()
        if self._times is not None:
            self._times[1] = monotonic()
        self._connection: Connection | None = None
        self._future: asyncio.Future[list[Any]] | None = None

    async def alone(self, loop: Loop, deadline: float) -> None:
        """Send and wait on a connection of its own."""
        try:
            portions = self._portions
            self.outcome = await self._node._exchange_alone(loop, portions, deadline, self._times)
        except RedisError as error:
            self.outcome = error
        finally:
            self.end()

    async def prepare(self, loop: Loop, deadline: float) -> None:
        """Have a connection."""
        node, connection = self._node, self._node._connection
        usable = connection is not None and connection.usable and connection.loop is loop
        if not usable or (node._ages and node._aged(connection)):  # type: ignore[arg-type]
            try:
                connection = await node._reconnect(loop, deadline)
            except RedisError as error:
                self.outcome = error
        self._connection = connection

    def begin(self, deadline: float) -> None:
        """Send."""
        if self._connection is not None and not self.outcome:
            self._future = self._connection.request(self._portions, deadline, self._times)

    async def finish(self) -> None:
        """Wait for the replies."""
        if self._future is not None:
            try:
                self.outcome = await self._future
            except RedisError as error:
                self.outcome = error

    def end(self) -> None:
        """Wait no more: what is still to come is read and dropped."""
        if self._future is not None and not self._future.done():
            self._future.cancel()
        elif self._future is not None and not self._future.cancelled():
            self._future.exception()  # it was seen, or nobody is there to see it
        if isinstance(self.outcome, RedisError):
            self.outcome.command = self._batch.name
        if self._observer is not None and self._times is not None:
            end = monotonic()
            out, commands = moved(self._portions)
            times = self._times if self._times[5] else reached(self._times, end)[:6]
            failure = self.outcome if isinstance(self.outcome, RedisError) else None
            marks = (*times, end, out, math.nan, commands, 1)
            tell(self._observer, self._batch, marks, failure)


class _Subscription(Subscription):
    """A subscription on the node that serves its shard channels, or on any."""

    def __init__(
        self,
        cluster: AsyncClusterClient,
        channels: Sequence[str | bytes],
        *,
        pattern: bool,
        sharded: bool,
    ) -> None:
        super().__init__(cluster._settings, channels, pattern=pattern, sharded=sharded)
        self._cluster = cluster
        self._slot = one_slot([("TOUCH", *channels)]) if sharded else None

    async def subscribe(
        self, *channels: str | bytes, pattern: bool = False, sharded: bool = False
    ) -> None:
        """Add channels, or patterns of their names; return when the server has confirmed them."""
        if sharded:
            slot = one_slot([("TOUCH", *channels)])
            if self._slot not in (None, slot):
                raise CrossSlotError("the shard channels of a subscription must be in one slot")
            self._slot = slot
        await super().subscribe(*channels, pattern=pattern, sharded=sharded)

    async def _place(self, deadline: float) -> Settings:
        cluster = self._cluster
        until = monotonic() + deadline - asyncio.get_running_loop().time()
        if self._lost or not cluster._routes.primaries:
            await cluster._look(until)
            await cluster._know(until)
        return cluster._node(cluster._routes.server_of(self._slot))._settings

    def _passes(self, error: BaseException) -> bool:
        return super()._passes(error) or (isinstance(error, RedisError) and elsewhere(error))

    async def _pause(self, error: BaseException, tried: int) -> float | None:
        if isinstance(error, RedisError) and elsewhere(error):
            await self._cluster._look(monotonic() + PATIENCE)
            error = ClusterDownError()
        return await super()._pause(error, tried)


def _failed(outcome: Outcome) -> bool:
    """Return whether there is an error among what came of a part."""
    if not isinstance(outcome, list):
        return True
    return any(issubclass(kind, ReplyError) for kind in {*map(type, outcome)})
