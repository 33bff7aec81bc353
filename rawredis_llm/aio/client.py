"""The client for tasks: `run()` returns a coroutine of an op. `sync/client.py` is its twin.

Must not import numpy, or what is stored.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import weakref
from collections.abc import Iterable, Sequence
from copy import copy
from functools import partial
from time import time
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConnectTimeoutError, OutcomeUnknownError, RedisError, ReplyError, reply_error
from ..protocol.operation import (
    AsyncRunner,
    Batch,
    Command,
    Embed,
    Request,
    Runnable,
    as_member,
    command_name,
    may_block,
    name_of,
    refuse_stateful,
    steps_of,
    together,
)
from ..protocol.resp import encode
from ..protocol.settings import Observer, Sizes, Times, make_settings, seconds
from .connection import Connection, connect

if TYPE_CHECKING:
    from ssl import SSLContext

    from typing_extensions import Self

__all__ = ["AsyncClient"]

T = TypeVar("T")


class AsyncClient(AsyncRunner):
    """A Redis client for any number of tasks over one socket. Creating one does no I/O.

    Commands that wait in the server (BLPOP, XREAD BLOCK, WAIT, ...) have a socket of their own.

    `timeout` is the limit, in seconds, of every exchange: connecting, sending and reading together
    (default 5; None: no limit). `connect_timeout` (default: `timeout`) shortens it for connecting.
    `max_connections` is there to equal `Client`: one socket serves all tasks. `protocol` is 3 or 2.
    `ssl_context` replaces the verifying default of `rediss://`. `observer` is told of each
    exchange. Options in the URL count before parameters.

    Raises ValueError or TypeError naming the parameter that is wrong.
    """

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        timeout: float | None = 5.0,
        connect_timeout: float | None = None,
        max_connections: int = 32,
        username: str | None = None,
        password: str | None = None,
        client_name: str | None = None,
        protocol: int = 3,
        ssl_context: SSLContext | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._settings = make_settings(
            url,
            timeout=timeout,
            connect_timeout=connect_timeout,
            max_connections=max_connections,
            username=username,
            password=password,
            client_name=client_name,
            protocol=protocol,
            ssl_context=ssl_context,
            observer=observer,
        )
        self._timeout = self._settings.timeout
        self._observer = observer
        self._closed = False
        # One connection for each event loop that the client meets; `_connection` is the last used.
        self._connection: Connection | None = None
        self._connections: dict[asyncio.AbstractEventLoop, Connection] = {}
        self._attempts: dict[asyncio.AbstractEventLoop, asyncio.Task[Connection]] = {}
        _clients.add(self)

    def __repr__(self) -> str:
        return f"<AsyncClient {self._settings.address}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls in flight fail, calls after this raise RuntimeError."""
        self._closed = True
        self._connection = None
        here = asyncio.get_running_loop()
        if here in self._attempts:
            self._attempts[here].cancel()
        for loop, connection in list(self._connections.items()):
            if loop is here:
                connection.fail(_CLOSED)
            elif loop.is_closed():
                connection.abandon()
            else:
                loop.call_soon_threadsafe(connection.fail, _CLOSED)
        self._connections.clear()
        await asyncio.sleep(0)  # a transport closes its socket in the loop's next turn

    async def call(self, *args: Any, timeout: float | None = None) -> Any:
        """Send one command and return its reply: bytes, int, float, bool, None, list or dict.

        Status replies are bytes (`b"OK"`). `timeout` (seconds) replaces the client's for this call.
        Raises ReplyError for a server's error, TypeError or ValueError for an argument that has no
        form on the wire and for commands that would change a shared connection's state.
        """
        limit = self._timeout if timeout is None else seconds("timeout", timeout)
        return await self._one(args, limit)

    async def run(self, op: Runnable[T]) -> T:
        """Run an op (or a single `Command`) and return its result."""
        if type(op) is Command:
            return op.value(await self._one(op.args, self._timeout))
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

    async def gather(self, ops: Iterable[Runnable[Any]], *, raise_errors: bool = True) -> list[Any]:
        """Run ops in lock step, each step's commands in one write; return their results in order.

        One op's error stays in its slot until the others have finished; then the first is raised,
        or with `raise_errors=False` errors stand in the list.
        """
        return await self.run(together(ops, raise_errors=raise_errors))

    async def pipeline(
        self, commands: Iterable[Sequence[Any] | Command[Any]], *, raise_errors: bool = True
    ) -> list[Any]:
        """Send commands in one write and return their replies in order.

        All are encoded before the first byte leaves, and all replies are read before the first
        error is raised; with `raise_errors=False` errors stand in the list.
        """
        return await self._batch(
            Batch([as_member(command) for command in commands], raise_errors=raise_errors)
        )

    async def transaction(self, commands: Iterable[Sequence[Any] | Command[Any]]) -> list[Any]:
        """Send commands in one write between MULTI and EXEC and return their replies in order.

        Raises ExecAbortError if the server refused one and so ran none, and the first error of one
        that failed while the others ran.
        """
        return await self._batch(Batch([as_member(command) for command in commands], atomic=True))

    async def _perform(self, request: Request) -> Any:
        if isinstance(request, Command):
            return request.value(await self._one(request.args, self._timeout))
        if isinstance(request, Batch):
            return await self._batch(request)
        if isinstance(request, Embed):
            return await _embed(request)
        return time()

    async def _one(self, args: Sequence[Any], limit: float) -> Any:
        refuse_stateful(args)
        portions = [(encode(args), 1)]
        [reply] = await self._exchange(portions, args, limit, alone=may_block(args))
        if isinstance(reply, ReplyError):
            raise reply_error(reply.message, command_name(args), reply.address)
        return reply

    async def _batch(self, batch: Batch) -> list[Any]:
        portions = batch.encode()
        if not portions:
            return batch.result([])
        return batch.result(
            await self._exchange(portions, batch, self._timeout, alone=batch.blocks)
        )

    async def _exchange(
        self,
        portions: list[tuple[bytes, int]],
        what: Batch | Sequence[Any],
        limit: float,
        *,
        alone: bool,
    ) -> list[Any]:
        loop = asyncio.get_running_loop()
        start = loop.time()
        failure: BaseException | None = None
        try:
            if alone:  # it may wait in the server: not on the socket that others share
                return await self._exchange_alone(portions, start + limit)
            connection = self._connection
            if connection is None or connection.closed or connection.loop is not loop:
                connection = await self._reconnect(loop, start + limit)
            replies = await connection.request(portions, start + limit)
        except BaseException as error:
            if isinstance(error, RedisError):
                error.command = name_of(what)
            failure = error
            raise
        finally:
            if self._observer is not None:
                times = Times(start, loop.time())
                sizes = Sizes(sum(len(data) for data, _ in portions), None)
                self._observer.command(name_of(what), times, sizes, failure)
        return replies

    async def _exchange_alone(
        self, portions: list[tuple[bytes, int]], deadline: float
    ) -> list[Any]:
        if self._closed:
            raise RuntimeError("the client is closed")
        connection = await connect(self._settings, deadline)
        try:
            return await connection.request(portions, deadline)
        finally:
            connection.fail(_CLOSED)

    async def _reconnect(self, loop: asyncio.AbstractEventLoop, deadline: float) -> Connection:
        """Return this loop's connection, made by one attempt that all waiting tasks share."""
        if self._closed:
            raise RuntimeError("the client is closed")
        connection = self._connections.get(loop)
        if connection is not None and not connection.closed:
            self._connection = connection
            return connection
        attempt = self._attempts.get(loop)
        if attempt is None:
            attempt = loop.create_task(connect(self._settings))
            self._attempts[loop] = attempt
            attempt.add_done_callback(partial(self._connected, loop))
        timeout = None if deadline == math.inf else max(deadline - loop.time(), 0)
        # Not wait_for(): a task that is cancelled, or in a hurry, leaves the attempt to the others.
        await asyncio.wait([attempt], timeout=timeout)
        if not attempt.done():
            raise ConnectTimeoutError("no connection in time", address=str(self._settings.address))
        if attempt.cancelled():
            raise RuntimeError("the client is closed")
        error = attempt.exception()
        if error is not None:
            raise copy(error) from error
        return attempt.result()

    def _connected(
        self, loop: asyncio.AbstractEventLoop, attempt: asyncio.Task[Connection]
    ) -> None:
        self._attempts.pop(loop, None)
        if attempt.cancelled() or attempt.exception() is not None:
            return
        connection = attempt.result()
        if self._closed:
            connection.fail(_CLOSED)
            return
        for other in [other for other in list(self._connections) if other.is_closed()]:
            self._connections.pop(other).abandon()
        self._connection = self._connections[loop] = connection

    def _after_fork(self) -> None:
        for connection in self._connections.values():
            connection.abandon()
        self._connections.clear()
        self._attempts.clear()
        self._connection = None


_CLOSED = OutcomeUnknownError("the client was closed")


async def _embed(request: Embed) -> Any:
    """Embed by the asynchronous function, or by the plain one in a thread."""
    if request.acall is not None:
        return await request.acall(request.texts)
    assert request.call is not None
    loop = asyncio.get_running_loop()
    vectors = await loop.run_in_executor(None, request.call, request.texts)
    return await vectors if inspect.isawaitable(vectors) else vectors


_clients: weakref.WeakSet[AsyncClient] = weakref.WeakSet()


def _after_fork() -> None:
    for client in list(_clients):
        client._after_fork()  # noqa: SLF001 - the same module


os.register_at_fork(after_in_child=_after_fork)
