"""The client for threads: `run()` performs an op now. `aio/client.py` is its twin.

Must not import asyncio, numpy, or what is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from threading import Event, Thread
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConnectError, ConnectTimeoutError, RedisError, ReplyError, reply_error
from ..protocol.client import FAREWELL, BaseClient
from ..protocol.handshake import ServerInfo
from ..protocol.observing import moved, reached, tell
from ..protocol.operation import (
    Batch,
    Call,
    Command,
    Embed,
    Now,
    Op,
    Request,
    Runnable,
    Runner,
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
from .connection import Connection
from .pool import Pool
from .pubsub import Subscription

if TYPE_CHECKING:
    from typing_extensions import Self

    from .near import Tracked

__all__ = ["Client"]

T = TypeVar("T")


class Client(BaseClient, Runner):
    """A Redis client for any number of threads. Creating one does no I/O."""

    _pool: Pool
    _near: Tracked | None

    def _start(self) -> None:
        self._pool = Pool(self._settings)
        if self._settings.near is not None:
            from .near import Tracked  # noqa: PLC0415 - most need none

            self._near = Tracked(self._settings.near, self._settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; calls after this raise RuntimeError.

        What caches counted and have not sent is sent before, within a second.
        """
        try:
            with suppress(Exception):  # counts only; nobody's error to see
                self._batch(self._parting(), FAREWELL)
        finally:
            self._shut()

    def _shut(self) -> None:
        if self._near is not None:
            self._near.close()
        self._pool.close()

    def run(self, op: Runnable[T]) -> T:
        """Run an op (or a single `Command`) and return its result."""
        if type(op) is Command:
            return op.value(self._one(op.args))
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

    def subscribe(
        self, *channels: str | bytes, pattern: bool = False, sharded: bool = False
    ) -> Subscription:
        """Return an endless iterator of what is published, on a connection of its own.

        `pattern` takes `channels` for patterns, `sharded` for shard channels. The server has
        confirmed them when this returns.
        """
        subscription = Subscription(self._settings)
        subscription.subscribe(*channels, pattern=pattern, sharded=sharded)
        return subscription

    @property
    def server_info(self) -> ServerInfo:
        """What the server is and can do; asked once."""
        return self.run(self._server_info())

    @property
    def connections(self) -> ConnectionFigures:
        """How many connections there are, what they do, and what became of others."""
        return self._pool.figures()

    def _reauthenticate(self) -> None:
        self._pool.retire("reauthenticated")
        self.call("PING")

    def _pages(
        self,
        page: Callable[[bytes], Runnable[tuple[bytes, list[T]]]],
        forget: Callable[[bytes], Runnable[Any]] | None = None,
    ) -> Iterator[T]:
        cursor = b"0"
        try:
            while True:
                cursor, found = self.run(page(cursor))
                yield from found
                if cursor == b"0":
                    return
        finally:
            if forget is not None and cursor != b"0":
                with suppress(RedisError):  # it may have gone, and so may the server
                    self.run(forget(cursor))

    def _relay(
        self,
        find: Callable[[], Runnable[list[T] | None]],
        produce: Callable[[], Any],
        own: Callable[[T], T],
        keep: Callable[[list[T]], Runnable[Any]],
        pace: float,
    ) -> Iterator[T]:
        found = self.run(find())
        if found is not None:
            for position, item in enumerate(found):
                if pace and position:
                    sleep(pace)
                yield item
            return
        kept: list[T] = []
        source = produce()
        if not hasattr(source, "__iter__") or isinstance(source, (str, bytes, dict)):
            getattr(source, "close", int)()  # a coroutine would complain of never being awaited
            kind = type(source).__name__
            raise TypeError(f"produce must return an iterator, not {kind}: is it for AsyncClient?")
        try:
            for item in source:
                kept.append(own(item))
                yield item
        except BaseException:
            with suppress(Exception):  # the first error says more
                getattr(source, "close", int)()
            raise
        self.run(keep(kept))

    def _tended(self, request: Tend) -> Any:
        ended = Event()

        def beat() -> None:
            while not ended.wait(request.every):
                try:
                    self.run(request.beat())
                except RedisError:
                    continue  # the next one may succeed
                except RuntimeError:  # the client was closed
                    return

        # Not the function: what is local to the caller's thread is to be there.
        Thread(target=beat, name="rawredis_llm beat", daemon=True).start()
        try:
            return request.function(*request.args)
        finally:
            ended.set()

    def _perform(self, request: Request) -> Any:
        if isinstance(request, Command):
            return request.value(self._one(request.args))
        if isinstance(request, Now):
            return time()
        if isinstance(request, Batch):
            return self._batch(request)
        if isinstance(request, Embed):
            if request.call is None:
                raise TypeError("this embedder is asynchronous only: use it with an AsyncClient")
            return request.call(request.texts)
        if isinstance(request, Tend):
            return self._tended(request)
        if isinstance(request, Call):
            return request.function(*request.args)
        if isinstance(request, Wait):
            from concurrent.futures import wait  # noqa: PLC0415 - nobody else needs it

            done = wait([request.future], request.limit).done
            return request.future.result() if done else request.late
        return sleep(request.seconds)

    def _one(
        self,
        args: Sequence[Any],
        limit: float | None = None,
        idempotent: bool = False,  # noqa: FBT001, FBT002 - by position, as it is every call's way
    ) -> Any:
        start = monotonic()
        if self._near is not None:
            held = self._near.find(args, start)
            if held is not None:
                return held.reply
            if self._near.holds(args):
                return self._hold(args, start, limit)
        waits = vet(args)
        limit = self._timeout + waits if limit is None else limit
        try:
            reply = self._exchange(args, encode(args), start, start + limit, idempotent)
        finally:
            if self._near is not None:
                self._near.wrote(args)
        if isinstance(reply, ReplyError):
            raise reply_error(reply.message, command_name(args), reply.address)
        return reply

    def _hold(self, args: Sequence[Any], start: float, limit: float | None) -> Any:
        """Send a command that reads, and hold its reply if nothing changed meanwhile."""
        near = self._near
        assert near is not None
        deadline = start + (self._timeout if limit is None else limit)
        near.begin_tracking(deadline - monotonic())
        ticket = near.begin(args)
        reply: Any = NotImplemented
        try:
            reply = self._exchange(args, encode(args), start, deadline, idempotent=True)
        finally:
            near.end(ticket, reply, monotonic())
        if isinstance(reply, ReplyError):
            raise reply_error(reply.message, command_name(args), reply.address)
        return reply

    def _batch(
        self, batch: Batch, limit: float | None = None, *, idempotent: bool = False
    ) -> list[Any]:
        start = monotonic()
        portions = batch.encode()
        if not portions:
            return batch.result([])
        limit = self._timeout + batch.waits if limit is None else limit
        try:
            replies = self._exchange(batch, portions, start, start + limit, idempotent)
        finally:
            if self._near is not None:
                self._near.wrote(batch)
        return batch.result(replies)

    def _exchange(  # noqa: PLR0912 - every call comes this way, and would pay for a function more
        self,
        what: Sent,
        data: bytes | Portions,
        start: float,
        deadline: float,
        idempotent: bool,  # noqa: FBT001 - as above
    ) -> Any:
        """Send one command's bytes, or portions of a batch's; return the reply, or all of them."""
        observer = self._observer
        encoded = start if observer is None else monotonic()
        received = tried = 0
        while True:
            acquired = sent = first = 0.0
            try:
                connection = self._pool.acquire(deadline)
                if observer is not None:
                    acquired = monotonic()
                    connection.timed, connection.sent_at, connection.first_at = True, 0.0, 0.0
                try:
                    if type(data) is bytes:
                        reply = connection.request(data, deadline)
                    else:
                        reply = connection.exchange(data, deadline)  # type: ignore[arg-type]
                finally:
                    if observer is not None:
                        sent, first = connection.sent_at, connection.first_at
                        received, connection.timed = connection.received, False
                    self._pool.release(connection)
            except BaseException as error:
                tried += 1
                if self._again(error, what, tried, deadline, idempotent=idempotent):
                    continue
                if isinstance(error, RedisError):
                    error.command = name_of(what)
                if observer is not None:
                    times = reached((start, encoded, acquired, sent, first), monotonic())
                    size = (len(data), 1) if isinstance(data, bytes) else moved(data)
                    tell(observer, what, (*times, size[0], received, size[1], tried), error)
                raise
            refused = None if type(reply) is bytes else refusal(reply, what)
            tried += 1
            if refused is None or not self._again(refused, what, tried, deadline):
                break
        if observer is not None:
            end = monotonic()
            out, commands = (len(data), 1) if isinstance(data, bytes) else moved(data)
            # Written out, as this is part of every observed call.
            marks = start, encoded, acquired, sent, first, end, end, out, received, commands, tried
            tell(observer, what, marks, refused_of(reply, what))
        if self._pushes is not None:
            self._pushes.deliver()
        return reply

    def _again(
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
        if pause is None or monotonic() + pause >= deadline:
            return False
        sleep(pause)
        return True

    def _optimistic(
        self, read: Callable[[], Op[Any]], keys: tuple[str | bytes, ...], limit: float | None
    ) -> list[Any]:
        deadline = monotonic() + (self._timeout if limit is None else limit)
        tried = 0
        while True:
            try:
                outcome = self._attempt(read, keys, deadline)
                break
            except RedisError as error:
                tried += 1
                if not self._again(error, ("WATCH",), tried, deadline):
                    raise
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _attempt(
        self, read: Callable[[], Op[Any]], keys: tuple[str | bytes, ...], deadline: float
    ) -> list[Any] | Exception:
        """Try a transaction on one connection; one on which keys stay watched is closed."""
        connection = self._pool.acquire(deadline)
        leased = _Leased(self, connection, deadline)
        try:
            return leased.run(transaction(leased, read, keys))
        finally:
            connection.dirty = connection.dirty or leased.pending
            self._pool.release(connection)


class _Leased(Client):
    """Another's client, on one connection that keys are watched on, and until one deadline."""

    def __init__(self, owner: Client, connection: Connection, deadline: float) -> None:
        vars(self).update(vars(owner), _pool=_Lease(connection), _retry=Retry(attempts=1))
        self._pushes = None  # their handler may want a connection, and this may be the only one
        self._near = None  # what is watched has to be read
        self._written_to = owner._near  # noqa: SLF001 - the same class
        self._until = deadline
        self.reads, self.pending = True, False

    def _exchange(
        self,
        what: Sent,
        data: bytes | Portions,
        start: float,
        deadline: float,
        idempotent: bool,  # noqa: FBT001 - as above
    ) -> Any:
        if self.reads:
            refuse_exec(what)
        deadline = min(deadline, self._until)
        if deadline <= monotonic():
            raise ConnectTimeoutError("the time was up before it was sent")
        try:
            return super()._exchange(what, data, start, deadline, idempotent)
        finally:
            if self._written_to is not None:
                self._written_to.wrote(what)


class _Lease(Pool):
    """What stands for the pool where every request has to take the same connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def acquire(self, deadline: float) -> Connection:  # noqa: ARG002 - it has been acquired
        if self._connection.dirty or not self._connection.opened:
            raise ConnectError("the connection that watched the keys was lost")
        return self._connection

    def release(self, connection: Connection) -> None:
        pass
