"""The client of a cluster for threads. `aio/cluster.py` is its twin.

Must not import asyncio, numpy, or what is stored.
"""

# What is here and in the client of a node is one mechanism in two classes.
# ruff: noqa: SLF001

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from threading import TIMEOUT_MAX
from time import monotonic, sleep
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
from ..protocol.resp import encode
from ..protocol.routing import LOOK, Exchange
from ..protocol.settings import ConnectionFigures, Settings
from ..protocol.slots import slot_map
from ..protocol.units import Outcome, Steps
from ..protocol.vetting import command_name, vet
from .client import Client
from .connection import Connection
from .pubsub import Subscription

__all__ = ["ClusterClient"]


class ClusterClient(BaseCluster, Client):
    """A client of a Redis Cluster for any number of threads. Creating one does no I/O."""

    def _start(self) -> None:
        super()._start()
        self._closed = False
        self._looking = threading.RLock()  # re-entrant, for a signal handler that uses the client
        _clusters.add(self)

    if TYPE_CHECKING:

        def _node(self, name: str) -> Client: ...

    def _make_node(self, settings: Settings) -> Client:
        node = Client.__new__(Client)
        node._settings = settings
        node._begin()
        return node

    def _shut(self) -> None:
        self._closed = True
        for node in list(self._nodes.values()):
            node.close()

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
        subscription = _Subscription(self, channels if sharded else ())
        subscription.subscribe(*channels, pattern=pattern, sharded=sharded)
        return subscription

    def _reauthenticate(self) -> None:
        for node in list(self._nodes.values()):
            node._pool.retire("reauthenticated")
        self.call("PING")

    def _one(
        self,
        args: Sequence[Any],
        limit: float | None = None,
        idempotent: bool = False,  # noqa: FBT001, FBT002 - by position, as it is every call's way
    ) -> Any:
        start = monotonic()
        waits = vet(args)
        deadline = start + (self._timeout + waits if limit is None else limit)
        data = encode(args)
        name = self._routes.node_of(args)
        if name is None:
            self._know(deadline)
            steps = Exchange(self._routes, args, self._retry, idempotent=idempotent).steps()
        else:
            node = self._nodes.get(name) or self._node(name)
            outcome: Outcome
            try:
                reply = node._exchange(args, data, start, deadline, idempotent)
            except RedisError as error:
                outcome = error
            else:
                if not isinstance(reply, ReplyError):
                    return reply
                outcome = [reply]
            exchange = Exchange(self._routes, args, self._retry, idempotent=idempotent)
            steps = exchange.steps(exchange.as_sent([name], {name: outcome}))
        [reply] = self._follow(steps, deadline)
        if isinstance(reply, ReplyError):
            raise reply_error(reply.message, command_name(args), reply.address)
        return reply

    def _batch(
        self, batch: Batch, limit: float | None = None, *, idempotent: bool = False
    ) -> list[Any]:
        start = monotonic()
        if not batch.width:
            return batch.result([])
        if not self._routes.primaries:
            batch.encode()  # a bad argument is to be an error before a byte is sent
            self._know(start + (self._timeout if limit is None else limit))
        split = self._routes.split(batch)
        if split is None:
            exchange = Exchange(self._routes, batch, self._retry, idempotent=idempotent)
            deadline = start + (self._timeout + exchange.waits if limit is None else limit)
            return batch.result(self._follow(exchange.steps(), deadline))
        deadline = start + (self._timeout if limit is None else limit)
        found, refused = self._send(split.parts, deadline)
        outcomes = dict(zip(split.parts, found, strict=True))
        if not refused:
            return batch.result(split.joined(outcomes))
        exchange = Exchange(self._routes, batch, self._retry, idempotent=idempotent)
        steps = exchange.steps(exchange.as_sent(split.nodes, outcomes))
        return batch.result(self._follow(steps, deadline))

    def _follow(self, steps: Steps, deadline: float) -> list[Any]:
        """Do what an exchange says until it has all replies."""
        value: Any = None
        try:
            while True:
                step = steps.send(value)
                if isinstance(step, list):
                    value = self._send({part.node: part.ready() for part in step}, deadline)[0]
                elif isinstance(step, str):
                    assert step is LOOK
                    self._look(deadline)
                    value = None
                else:
                    value = monotonic() + step < deadline
                    if value:
                        sleep(step)
        except StopIteration as stop:
            replies: list[Any] = stop.value
            return replies

    def _send(self, parts: dict[str, Batch], deadline: float) -> tuple[list[Outcome], bool]:
        """Send each node its part, all before the first reply is read; return what came of each.

        And whether there is an error among it. The nodes come in the same order for everybody, so
        that no two who wait for a free connection of each other's wait for ever.
        """
        sendings = [_Sending(self._node(name), batch) for name, batch in parts.items()]
        try:
            for one in sendings:
                one.begin(deadline)
            for one in sendings:
                one.finish(deadline)
        finally:
            for one in sendings:
                one.release()
        if self._pushes is not None:
            self._pushes.deliver()
        return [one.outcome for one in sendings], any(one.refused for one in sendings)

    def _know(self, deadline: float) -> None:
        """Return when the map is known. Raises what kept all nodes from telling it."""
        tried = 0
        while not self._routes.primaries:
            self._check_open()
            failure = self._look(deadline)
            tried += 1
            if failure is not None:
                pause = self._retry.pause(failure, (), tried, idempotent=True)
                if pause is None or monotonic() + pause >= deadline:
                    raise failure
                sleep(pause)

    def _look(self, deadline: float) -> RedisError | None:
        """Ask who serves what, unless that was done just now; return why nobody said it."""
        if not self._looking.acquire(timeout=min(max(deadline - monotonic(), 0), TIMEOUT_MAX)):
            return ConnectError("another thread is looking for the cluster's nodes")
        try:
            if self._routes.primaries and not self._may_look(monotonic()):
                return None
            failure: RedisError | None = None
            for name in self._candidates():
                left = min(deadline - monotonic(), PATIENCE)
                if left <= 0:
                    break
                try:
                    self._routes.learn(slot_map(self._node(name)._one(WHO, left), name))
                except RedisError as error:
                    failure = failure or why_not(error)
                else:
                    return None
            return failure or ConnectError("no time is left to look for the cluster's nodes")
        finally:
            self._looking.release()

    def _optimistic(
        self, read: Callable[[], Op[Any]], keys: tuple[str | bytes, ...], limit: float | None
    ) -> list[Any]:
        deadline = monotonic() + (self._timeout if limit is None else limit)
        slot = one_slot([("WATCH", *keys)])
        if slot is None:  # nothing is watched: reads are reads, and then there is a transaction
            members = members_of(self.run(reading(read())))
            left = max(deadline - monotonic(), 0)
            return self._batch(Batch(members, atomic=True), left)
        self._know(deadline)
        read = confined(read, keys)
        tried = 0
        while True:
            name = self._routes.owners[slot]
            try:
                if name is not None:
                    left = max(deadline - monotonic(), 0)
                    return self._node(name)._optimistic(read, keys, left)
                failure: RedisError = ConnectError("nobody serves this slot")
            except RedisError as error:
                if not elsewhere(error) and not isinstance(error, WatchError):
                    raise
                failure = error
            tried += 1
            if elsewhere(failure):
                self._look(deadline)
            pause = self._retry.patient().pause(ClusterDownError(), (), tried, idempotent=True)
            if pause is None or monotonic() + pause >= deadline:
                raise failure
            sleep(pause)

    def _after_fork(self) -> None:
        self._looking = threading.RLock()  # another thread of the parent may have held it


class _Sending:
    """What one node is sent, on a connection that is given back by `release`."""

    def __init__(self, node: Client, batch: Batch) -> None:
        self.outcome: Outcome = []
        self.refused = True
        self._node, self._batch, self._observer = node, batch, node._observer
        self._connection: Connection | None = None
        self._marks = [monotonic()]
        self._portions = batch.encode()

    def begin(self, deadline: float) -> None:
        """Take a connection and send what is to be sent at once."""
        observed = self._observer is not None
        if observed:
            self._marks.append(monotonic())
        try:
            self._connection = connection = self._node._pool.acquire(deadline)
            if observed:
                self._marks.append(monotonic())
                connection.timed, connection.sent_at, connection.first_at = True, 0.0, 0.0
            self._begun = connection.begin(self._portions, deadline)
        except RedisError as error:
            self._fail(error)

    def finish(self, deadline: float) -> None:
        """Read the replies."""
        if self.outcome:
            return
        assert self._connection is not None
        try:
            self.outcome = self._connection.finish(self._begun, deadline)
            self.refused = bool(self._connection.refusals)
        except RedisError as error:
            self._fail(error)

    def _fail(self, error: RedisError) -> None:
        error.command = self._batch.name
        self.outcome = error

    def release(self) -> None:
        """Give the connection back; one that is owed replies is closed."""
        connection, observer = self._connection, self._observer
        if observer is not None:
            received = 0
            if connection is not None:
                self._marks += [connection.sent_at, connection.first_at]
                received, connection.timed = connection.received, False
            end = monotonic()
            out, commands = moved(self._portions)
            failure = self.outcome if isinstance(self.outcome, RedisError) else None
            marks = (*reached(self._marks, end), out, received, commands, 1)
            tell(observer, self._batch, marks, failure)
        if connection is not None:
            self._node._pool.release(connection)


class _Subscription(Subscription):
    """A subscription on the node that serves its shard channels, or on any."""

    def __init__(self, cluster: ClusterClient, shards: Sequence[str | bytes]) -> None:
        super().__init__(cluster._settings)
        self._cluster = cluster
        self._slot = one_slot([("TOUCH", *shards)])

    def subscribe(
        self, *channels: str | bytes, pattern: bool = False, sharded: bool = False
    ) -> None:
        """Add channels, or patterns of their names; return when the server has confirmed them."""
        if sharded:
            slot = one_slot([("TOUCH", *channels)])
            if self._slot not in (None, slot):
                raise CrossSlotError("the shard channels of a subscription must be in one slot")
            self._slot = slot
        super().subscribe(*channels, pattern=pattern, sharded=sharded)

    def _place(self, deadline: float) -> Settings:
        cluster = self._cluster
        if self._lost or not cluster._routes.primaries:
            cluster._look(deadline)
            cluster._know(deadline)
        return cluster._node(cluster._routes.server_of(self._slot))._settings

    def _passes(self, error: RedisError) -> bool:
        return super()._passes(error) or elsewhere(error)

    def _pause(self, error: Exception, tried: int) -> float | None:
        if isinstance(error, RedisError) and elsewhere(error):
            self._cluster._look(monotonic() + PATIENCE)
            error = ClusterDownError()
        return super()._pause(error, tried)


_clusters: weakref.WeakSet[ClusterClient] = weakref.WeakSet()


def _after_fork() -> None:
    for cluster in list(_clusters):
        cluster._after_fork()


os.register_at_fork(after_in_child=_after_fork)
