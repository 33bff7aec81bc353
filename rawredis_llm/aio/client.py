"""The client for tasks: `run()` returns a coroutine of an op. `sync/client.py` is its twin.

Must not import numpy, or what is stored.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import weakref
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from copy import copy
from functools import partial
from time import monotonic, time
from typing import TYPE_CHECKING, Any, TypeVar

from .. import errors
from ..errors import RedisError, ReplyError
from ..protocol.client import FAREWELL, BaseClient
from ..protocol.handshake import ServerInfo
from ..protocol.observing import moved, reached, tell
from ..protocol.operation import (
    AsyncRunner,
    Batch,
    Call,
    Command,
    Embed,
    Now,
    Op,
    Request,
    Runnable,
    Sent,
    Tend,
    Wait,
    name_of,
    refuse_exec,
    steps_of,
    transaction,
)
from ..protocol.resp import Portions, encode
from ..protocol.retry import Retry, refusal, refused_of
from ..protocol.settings import ConnectionFigures
from ..protocol.vetting import command_name, vet
from .asking import called, embed
from .connection import Connection, Loop, connect, left
from .pubsub import Subscription

if TYPE_CHECKING:
    from typing_extensions import Self

    from .near import Tracked

__all__ = ["AsyncClient"]

T = TypeVar("T")


class _Lane:
    """One event loop's connections: the one that tasks share, and others for commands that wait."""

    def __init__(self) -> None:
        self.shared: Connection | None = None
        self.attempt: asyncio.Task[Connection] | None = None
        self.spare: list[Connection] = []
        self.taken = 0  # places for commands that wait
        self.waiters: deque[asyncio.Future[None]] = deque()

    def free_place(self) -> None:
        """Give a place to who waited longest, or back."""
        if self.waiters:
            self.waiters.popleft().set_result(None)
        else:
            self.taken -= 1


class AsyncClient(BaseClient, AsyncRunner):
    """A Redis client for any number of tasks over one socket. Creating one does no I/O.

    What `Client` returns, the same methods here return by a coroutine, or an asynchronous iterator.
    Commands that wait in the server (BLPOP, XREAD BLOCK, WAIT, ...) have sockets of their own.
    """

    _near: Tracked | None

    def _start(self) -> None:
        self._closed = False
        if self._settings.near is not None:
            from .near import Tracked  # noqa: PLC0415 - most need none

            self._near = Tracked(self._settings.near, self._settings)
        self._ages = self._settings.idle_timeout != math.inf
        self._reset()
        _clients.add(self)

    def _reset(self) -> None:
        self._connection: Connection | None = None  # the shared one that was used last
        self._lanes: dict[Loop, _Lane] = {}
        self._live: set[Connection] = set()
        self._created = self._waited = self._generation = 0
        self._wait_time = 0.0
        self._dropped: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls in flight fail, calls after this raise RuntimeError.

        What caches counted and have not sent is sent before, within a second.
        """
        try:
            with suppress(Exception):  # counts only; nobody's error to see
                await self._batch(self._parting(), FAREWELL)
        finally:
            await self._shut()

    async def _shut(self) -> None:
        if self._near is not None:
            await self._near.close()
        self._closed = True
        self._connection = None
        here = asyncio.get_running_loop()
        attempt = self._lane(here).attempt
        if attempt is not None:
            attempt.cancel()
            await asyncio.wait([attempt])
        for connection in self._live.copy():
            connection.end(here)
        await asyncio.sleep(0)  # a transport closes its socket in the loop's next turn

    async def run(self, op: Runnable[T]) -> T:
        """Run an op (or a single `Command`) and return its result."""
        if type(op) is Command:
            return op.value(await self._one(op.args))
        steps = steps_of(op)
        try:
            request = next(steps)
            while True:
                try:
                    value = await self._perform(request)
                except Exception as error:  # noqa: BLE001 - thrown into the op, which decides
                    request = steps.throw(error)
                else:
                    request = steps.send(value)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            steps.close()

    def subscribe(
        self, *channels: str | bytes, pattern: bool = False, sharded: bool = False
    ) -> Subscription:
        """Return an endless iterator of what is published, on a connection of its own.

        `pattern` takes `channels` for patterns, `sharded` for shard channels. The server has
        confirmed them once the subscription was entered by `async with`, or awaited.
        """
        return Subscription(self._settings, channels, pattern=pattern, sharded=sharded)

    @property
    def server_info(self) -> Coroutine[Any, Any, ServerInfo]:
        """What the server is and can do, to be awaited; asked once."""
        return self.run(self._server_info())

    @property
    def connections(self) -> ConnectionFigures:
        """How many connections there are, what they do, and what became of others."""
        return ConnectionFigures(
            open=len(self._live),
            in_use=sum(one.lent or not one.idle for one in self._live.copy()),
            waiting=sum(len(lane.waiters) for lane in list(self._lanes.values())),
            created=self._created,
            waited=self._waited,
            wait_time=self._wait_time,
            dropped=dict(self._dropped),
        )

    def _retire(self, why: str) -> None:
        here = asyncio.get_running_loop()
        self._generation += 1  # so what is being connected now is retired, too
        for connection in self._live.copy():
            if connection.loop is here:
                connection.retire(why)
            elif connection.loop.is_closed():
                connection.abandon()
            else:
                connection.loop.call_soon_threadsafe(connection.retire, why)

    async def _reauthenticate(self) -> None:
        self._retire("reauthenticated")
        await self.call("PING")

    async def _pages(
        self,
        page: Callable[[bytes], Runnable[tuple[bytes, list[T]]]],
        forget: Callable[[bytes], Runnable[Any]] | None = None,
    ) -> AsyncIterator[T]:
        cursor = b"0"
        try:
            while True:
                cursor, found = await self.run(page(cursor))
                for item in found:
                    yield item
                if cursor == b"0":
                    return
        finally:
            if forget is not None and cursor != b"0":
                with suppress(RedisError):  # it may have gone, and so may the server
                    await self.run(forget(cursor))

    async def _relay(
        self,
        find: Callable[[], Runnable[list[T] | None]],
        produce: Callable[[], Any],
        own: Callable[[T], T],
        keep: Callable[[list[T]], Runnable[Any]],
        pace: float,
    ) -> AsyncIterator[T]:
        found = await self.run(find())
        if found is not None:
            for position, item in enumerate(found):
                if pace and position:
                    await asyncio.sleep(pace)
                yield item
            return
        kept: list[T] = []
        source = produce()
        source = await source if inspect.isawaitable(source) else source
        if not hasattr(source, "__aiter__"):
            kind = type(source).__name__
            raise TypeError(f"produce must return an asynchronous iterator, not {kind}")
        try:
            async for item in source:
                kept.append(own(item))
                yield item
        except BaseException:
            with suppress(Exception):  # the first error says more
                await source.aclose()
            raise
        await self.run(keep(kept))

    async def _tended(self, request: Tend) -> Any:
        async def beats() -> None:
            while True:
                await asyncio.sleep(request.every)
                try:
                    await self.run(request.beat())
                except RedisError:
                    continue  # the next one may succeed
                except RuntimeError:  # the client was closed
                    return

        beating = asyncio.ensure_future(beats())
        try:
            return await called(request)
        finally:
            beating.cancel()

    async def _perform(self, request: Request) -> Any:
        if isinstance(request, Command):
            return request.value(await self._one(request.args))
        if isinstance(request, Now):
            return time()
        if isinstance(request, Batch):
            return await self._batch(request)
        if isinstance(request, Embed):
            return await embed(request)
        if isinstance(request, Tend):
            return await self._tended(request)
        if isinstance(request, Call):
            return await called(request)
        if isinstance(request, Wait):
            # Not await: who is cancelled does not take the others' outcome along.
            future = asyncio.wrap_future(request.future)
            done, _ = await asyncio.wait([future], timeout=request.limit)
            return future.result() if done else request.late
        return await asyncio.sleep(request.seconds)

    async def _one(
        self,
        args: Sequence[Any],
        limit: float | None = None,
        idempotent: bool = False,  # noqa: FBT001, FBT002 - by position, as it is every call's way
    ) -> Any:
        began = monotonic() if self._observer is not None else 0.0
        near = self._near
        if near is not None:
            if near.loop is asyncio.get_running_loop():
                held = near.find(args, monotonic())
                if held is not None:
                    return held.reply
            if near.holds(args):
                return await self._hold(args, began, limit)
        waits = vet(args)
        portions = [(encode(args), 1)]
        try:
            exchange = self._exchange(portions, args, began, waits, limit, idempotent=idempotent)
            [reply] = await exchange
        finally:
            if near is not None:
                near.wrote(args)
        if isinstance(reply, ReplyError):
            raise errors.reply_error(reply.message, command_name(args), reply.address)
        return reply

    async def _hold(self, args: Sequence[Any], began: float, limit: float | None) -> Any:
        """Send a command that reads, and hold its reply if nothing changed meanwhile."""
        near = self._near
        assert near is not None
        limit = self._timeout if limit is None else limit
        start = monotonic()
        here = await near.begin_tracking(limit)
        limit = max(limit - (monotonic() - start), 0)
        ticket = near.begin(args) if here else None
        reply: Any = NotImplemented
        try:
            portions = [(encode(args), 1)]
            [reply] = await self._exchange(portions, args, began, 0.0, limit, idempotent=True)
        finally:
            if ticket is not None:
                near.end(ticket, reply, monotonic())
        if isinstance(reply, ReplyError):
            raise errors.reply_error(reply.message, command_name(args), reply.address)
        return reply

    async def _batch(
        self, batch: Batch, limit: float | None = None, *, idempotent: bool = False
    ) -> list[Any]:
        began = monotonic() if self._observer is not None else 0.0
        portions = batch.encode()
        if not portions:
            return batch.result([])
        try:
            waits = batch.waits
            exchange = self._exchange(portions, batch, began, waits, limit, idempotent=idempotent)
            replies = await exchange
        finally:
            if self._near is not None:
                self._near.wrote(batch)
        return batch.result(replies)

    async def _exchange(
        self,
        portions: Portions,
        what: Sent,
        began: float,
        waits: float,
        limit: float | None,
        *,
        idempotent: bool,
    ) -> list[Any]:
        loop = asyncio.get_running_loop()
        start = loop.time()
        deadline = start + (self._timeout + waits if limit is None else limit)
        observer = self._observer if began else None
        times = None if observer is None else [began, monotonic(), 0.0, 0.0, 0.0, 0.0]
        tried = 0
        failure: BaseException | None = None
        try:
            while True:
                tried += 1
                try:
                    if waits:  # it may wait in the server: not on the socket that others share
                        replies = await self._exchange_alone(loop, portions, deadline, times)
                    else:
                        connection = self._connection
                        if (
                            connection is None
                            or not connection.usable
                            or connection.loop is not loop
                            or (self._ages and self._aged(connection))
                        ):
                            connection = await self._reconnect(loop, deadline)
                        replies = await connection.request(portions, deadline, times)
                except RedisError as error:
                    if not await self._again(error, what, tried, deadline, idempotent=idempotent):
                        error.command = name_of(what)
                        raise
                else:
                    reply = replies if isinstance(what, Batch) else replies[0]
                    refused = refusal(reply, what)
                    if refused is None or not await self._again(refused, what, tried, deadline):
                        failure = refused_of(reply, what)
                        return replies
                times = times and [*times[:2], 0.0, 0.0, 0.0, 0.0]  # the old one may be written to
        except BaseException as error:
            failure = error
            raise
        finally:
            if observer is not None and times is not None:
                end = monotonic()
                out, commands = moved(portions)
                if not times[5]:
                    times = reached(times, end)[:6]
                tell(observer, what, (*times, end, out, math.nan, commands, tried), failure)

    async def _again(
        self,
        failure: BaseException,
        what: Sent,
        tried: int,
        deadline: float,
        *,
        idempotent: bool = False,
    ) -> bool:
        """Wait, and return True, if the exchange is to be tried again before the deadline."""
        pause = self._retry.pause(failure, what, tried, idempotent=idempotent)
        if pause is None or asyncio.get_running_loop().time() + pause >= deadline:
            return False
        await asyncio.sleep(pause)
        return True

    async def _optimistic(
        self, read: Callable[[], Op[Any]], keys: tuple[str | bytes, ...], limit: float | None
    ) -> list[Any]:
        limit = self._timeout if limit is None else limit
        deadline = asyncio.get_running_loop().time() + limit
        tried = 0
        while True:
            try:
                outcome = await self._attempt(read, keys, deadline)
                break
            except RedisError as error:
                tried += 1
                if not await self._again(error, ("WATCH",), tried, deadline):
                    raise
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _attempt(
        self, read: Callable[[], Op[Any]], keys: tuple[str | bytes, ...], deadline: float
    ) -> list[Any] | Exception:
        """Try a transaction on one connection; one on which keys stay watched is closed."""
        loop = asyncio.get_running_loop()
        connection = await self._borrow(loop, deadline)
        leased = _Leased(self, connection, deadline)
        try:
            return await leased.run(transaction(leased, read, keys))
        finally:
            if leased.pending:
                connection.close("abandoned")
            self._give_back(loop, connection)

    async def _exchange_alone(
        self, loop: Loop, portions: Portions, deadline: float, times: list[float] | None
    ) -> list[Any]:
        connection = await self._borrow(loop, deadline)
        try:
            return await connection.request(portions, deadline, times)
        except RedisError as error:
            connection.close(type(error).__name__)
            raise
        finally:
            self._give_back(loop, connection)

    async def _borrow(self, loop: Loop, deadline: float) -> Connection:
        """Return a connection that nobody shares; it must be given back."""
        lane = self._lane(loop)
        if lane.taken < self._settings.max_connections:
            lane.taken += 1
        else:
            await self._wait_for_place(lane, loop, deadline)
        try:
            while lane.spare:
                connection = lane.spare.pop()
                if connection.usable and not (self._ages and self._aged(connection)):
                    break
            else:
                connection = await self._connect(deadline)
        except BaseException:
            lane.free_place()
            raise
        connection.lent = True
        return connection

    async def _wait_for_place(self, lane: _Lane, loop: Loop, deadline: float) -> None:
        began = loop.time()
        waiter: asyncio.Future[None] = loop.create_future()
        lane.waiters.append(waiter)
        try:
            await asyncio.wait([waiter], timeout=left(loop, deadline))
        except BaseException:  # cancelled: a place that was just given goes on to the next
            if waiter.done():
                lane.free_place()
            raise
        finally:
            self._waited += 1
            self._wait_time += loop.time() - began
            if not waiter.done():
                lane.waiters.remove(waiter)
        if not waiter.done():
            most, address = self._settings.max_connections, str(self._settings.address)
            raise errors.PoolTimeoutError(f"all {most} connections are in use", address=address)

    def _give_back(self, loop: Loop, connection: Connection) -> None:
        lane = self._lane(loop)
        connection.lent = False
        if connection.usable and connection.idle and not self._closed:
            lane.spare.append(connection)
        else:  # one whose call was cancelled may still wait in the server, and take what comes
            connection.close("abandoned")
        lane.free_place()

    async def _connect(self, deadline: float = math.inf) -> Connection:
        self._check_open()
        generation = self._generation
        try:
            connection = await self._open(deadline)
        except BaseException as error:
            self._created += 1
            name = type(error).__name__ if isinstance(error, Exception) else "abandoned"
            self._dropped["closed" if self._closed else name] += 1
            raise
        self._created += 1
        connection.on_close = self._count
        connection.on_readonly = partial(self._retire, "READONLY")
        self._live.add(connection)
        if generation != self._generation:
            connection.retire("reauthenticated")
        self._check_open(connection)  # it may have been closed meanwhile
        return connection

    async def _open(self, deadline: float) -> Connection:
        return await connect(self._settings, deadline)

    def _check_open(self, connection: Connection | None = None) -> None:
        if self._closed:
            if connection is not None:
                connection.close()
            raise RuntimeError("the client is closed")

    def _count(self, connection: Connection) -> None:
        self._live.discard(connection)
        self._dropped[connection.ended or "abandoned"] += 1

    def _aged(self, connection: Connection) -> bool:
        """Return whether a connection was idle for too long; if so, close it."""
        if not connection.idle or connection.silence <= self._settings.idle_timeout:
            return False
        connection.close("idle_timeout")
        return True

    def _lane(self, loop: Loop) -> _Lane:
        lane = self._lanes.get(loop)
        if lane is None:
            for other in [other for other in list(self._lanes) if other.is_closed()]:
                self._lanes.pop(other, None)
            for connection in [one for one in self._live.copy() if one.loop.is_closed()]:
                connection.abandon()
            lane = self._lanes[loop] = _Lane()
        return lane

    async def _reconnect(self, loop: Loop, deadline: float) -> Connection:
        """Return this loop's connection, made by one attempt that all waiting tasks share."""
        self._check_open()
        lane = self._lane(loop)
        while lane.shared is None or not lane.shared.usable:
            joined = attempt = lane.attempt
            if attempt is None:
                attempt = lane.attempt = loop.create_task(self._connect())
                attempt.add_done_callback(partial(self._connected, lane))
            # Not wait_for(): who is cancelled, or in a hurry, leaves the attempt to the others.
            await asyncio.wait([attempt], timeout=left(loop, deadline))
            if not attempt.done():
                address = str(self._settings.address)
                raise errors.ConnectTimeoutError("no connection in time", address=address)
            if attempt.cancelled():
                raise RuntimeError("the client is closed")
            error = attempt.exception()
            in_time = loop.time() < deadline
            if joined and in_time and isinstance(error, errors.ConnectTimeoutError):
                continue  # its time was up, not ours
            if isinstance(error, RedisError):
                raise copy(error) from error  # each task has its own
            connection = attempt.result()
            if connection.ended != "reauthenticated" or not in_time:
                return connection
        self._connection = lane.shared
        return lane.shared

    def _connected(self, lane: _Lane, attempt: asyncio.Task[Connection]) -> None:
        lane.attempt = None
        if attempt.cancelled() or attempt.exception() is not None:
            return
        self._connection = lane.shared = attempt.result()

    def _after_fork(self) -> None:
        for connection in self._live.copy():
            connection.abandon()
        self._reset()


class _Leased(AsyncClient):
    """Another's client, on one connection that keys are watched on, and until one deadline."""

    def __init__(self, owner: AsyncClient, connection: Connection, deadline: float) -> None:
        vars(self).update(vars(owner), _connection=connection, _retry=Retry(attempts=1))
        self._ages = False
        self._near = None  # what is watched has to be read
        self._written_to = owner._near  # noqa: SLF001 - the same class
        self._until = deadline
        self.reads, self.pending = True, False

    async def _exchange(
        self,
        portions: Portions,
        what: Sent,
        began: float,
        waits: float,
        limit: float | None,
        *,
        idempotent: bool,
    ) -> list[Any]:
        if self.reads:
            refuse_exec(what)
        limit = self._timeout + waits if limit is None else limit
        limit = min(limit, self._until - asyncio.get_running_loop().time())
        if limit <= 0:
            raise errors.ConnectTimeoutError("the time was up before it was sent")
        try:
            return await super()._exchange(portions, what, began, 0.0, limit, idempotent=idempotent)
        finally:
            if self._written_to is not None:
                self._written_to.wrote(what)

    async def _reconnect(self, loop: Any, deadline: float) -> Connection:  # noqa: ARG002 - it is lost
        raise errors.ConnectError("the connection that watched the keys was lost")


_clients: weakref.WeakSet[AsyncClient] = weakref.WeakSet()


def _after_fork() -> None:
    for client in list(_clients):
        client._after_fork()  # noqa: SLF001 - the same module


os.register_at_fork(after_in_child=_after_fork)
