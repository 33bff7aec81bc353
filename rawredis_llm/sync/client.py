"""The client for threads: `run()` performs an op now. `aio/client.py` is its twin.

Must not import asyncio, numpy, or what is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from time import monotonic, time
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import RedisError, ReplyError, reply_error
from ..protocol.operation import (
    Batch,
    Command,
    Embed,
    Request,
    Runnable,
    Runner,
    as_member,
    command_name,
    name_of,
    refuse_stateful,
    steps_of,
    together,
)
from ..protocol.resp import encode
from ..protocol.settings import Observer, Sizes, Times, make_settings, seconds
from .pool import Pool

if TYPE_CHECKING:
    from ssl import SSLContext

    from typing_extensions import Self

__all__ = ["Client"]

T = TypeVar("T")


class Client(Runner):
    """A Redis client for any number of threads. Creating one does no I/O.

    `timeout` is the limit, in seconds, of every exchange: waiting for a connection, connecting,
    sending and reading together (default 5; None: no limit). `connect_timeout` (default: `timeout`)
    shortens it for connecting. At most `max_connections` (default 32) sockets are open; further
    callers wait. `protocol` is 3 or 2. `ssl_context` replaces the verifying default of `rediss://`.
    `observer` is told of each exchange. Options in the URL count before parameters.

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
        settings = make_settings(
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
        self._timeout = settings.timeout
        self._observer = observer
        self._address = str(settings.address)
        self._pool = Pool(settings)

    def __repr__(self) -> str:
        return f"<Client {self._address}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; calls after this raise RuntimeError."""
        self._pool.close()

    def call(self, *args: Any, timeout: float | None = None) -> Any:
        """Send one command and return its reply: bytes, int, float, bool, None, list or dict.

        Status replies are bytes (`b"OK"`). `timeout` (seconds) replaces the client's for this call.
        Raises ReplyError for a server's error, TypeError or ValueError for an argument that has no
        form on the wire and for commands that would change a shared connection's state.
        """
        limit = self._timeout if timeout is None else seconds("timeout", timeout)
        return self._one(args, limit)

    def run(self, op: Runnable[T]) -> T:
        """Run an op (or a single `Command`) and return its result."""
        if type(op) is Command:
            return op.value(self._one(op.args, self._timeout))
        steps = steps_of(op)
        try:
            request = next(steps)
            while True:
                try:
                    value = self._perform(request)
                except Exception as error:  # noqa: BLE001 - thrown into the op, which decides
                    request = steps.throw(error)
                else:
                    request = steps.send(value)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            steps.close()

    def gather(self, ops: Iterable[Runnable[Any]], *, raise_errors: bool = True) -> list[Any]:
        """Run ops in lock step, each step's commands in one write; return their results in order.

        One op's error stays in its slot until the others have finished; then the first is raised,
        or with `raise_errors=False` errors stand in the list.
        """
        return self.run(together(ops, raise_errors=raise_errors))

    def pipeline(
        self, commands: Iterable[Sequence[Any] | Command[Any]], *, raise_errors: bool = True
    ) -> list[Any]:
        """Send commands in one write and return their replies in order.

        All are encoded before the first byte leaves, and all replies are read before the first
        error is raised; with `raise_errors=False` errors stand in the list.
        """
        batch = Batch([as_member(command) for command in commands], raise_errors=raise_errors)
        return self._batch(batch)

    def transaction(self, commands: Iterable[Sequence[Any] | Command[Any]]) -> list[Any]:
        """Send commands in one write between MULTI and EXEC and return their replies in order.

        Raises ExecAbortError if the server refused one and so ran none, and the first error of one
        that failed while the others ran.
        """
        return self._batch(Batch([as_member(command) for command in commands], atomic=True))

    def _perform(self, request: Request) -> Any:
        if isinstance(request, Command):
            return request.value(self._one(request.args, self._timeout))
        if isinstance(request, Batch):
            return self._batch(request)
        if isinstance(request, Embed):
            if request.call is None:
                raise TypeError("this embedder is asynchronous only: use it with an AsyncClient")
            return request.call(request.texts)
        return time()

    def _one(self, args: Sequence[Any], limit: float) -> Any:
        refuse_stateful(args)
        data = encode(args)
        start = monotonic()
        try:
            connection = self._pool.acquire(start + limit)
            try:
                reply = connection.request(data, start + limit)
            finally:
                received = connection.received
                self._pool.release(connection)
        except BaseException as error:
            self._note_failure(error, args, start, len(data))
            raise
        refusal = reply if isinstance(reply, ReplyError) else None
        if self._observer is not None:
            self._observe(args, start, len(data), received, refusal)
        if refusal is not None:
            raise reply_error(reply.message, command_name(args), reply.address)
        return reply

    def _batch(self, batch: Batch) -> list[Any]:
        portions = batch.encode()
        if not portions:
            return batch.result([])
        start = monotonic()
        deadline = start + self._timeout
        sent = sum(len(data) for data, _ in portions)
        try:
            connection = self._pool.acquire(deadline)
            try:
                replies = connection.exchange(portions, deadline)
            finally:
                received = connection.received
                self._pool.release(connection)
        except BaseException as error:
            self._note_failure(error, batch, start, sent)
            raise
        if self._observer is not None:
            self._observe(batch, start, sent, received, None)
        return batch.result(replies)

    def _note_failure(
        self, error: BaseException, what: Batch | Sequence[Any], start: float, sent: int
    ) -> None:
        """Say in an error of ours which command it was, and tell the observer of any."""
        if isinstance(error, RedisError):
            error.command = name_of(what)
        if self._observer is not None:
            self._observe(what, start, sent, 0, error)

    def _observe(
        self,
        what: Batch | Sequence[Any],
        start: float,
        sent: int,
        received: int,
        error: BaseException | None,
    ) -> None:
        assert self._observer is not None
        times, sizes = Times(start, monotonic()), Sizes(sent, received)
        self._observer.command(name_of(what), times, sizes, error)
