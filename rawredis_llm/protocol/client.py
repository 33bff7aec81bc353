"""What both clients offer, written once; the shells perform it.

Must not import sockets, asyncio, numpy, or another ring.
"""

# What a shell returns is a value or a coroutine of it, so here it has no type.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from .commands import page, pairs, scan, scored
from .handshake import ServerInfo, server_info
from .observing import Observer, Several
from .operation import (
    AsyncRunner,
    Batch,
    Bound,
    Command,
    Member,
    Op,
    Runnable,
    Runner,
    members_of,
    together,
)
from .retry import Retry
from .settings import make_settings, seconds

if TYPE_CHECKING:
    from ssl import SSLContext

    from typing_extensions import Self

    from .tracking import NearCache, NearFigures

P = ParamSpec("P")
T = TypeVar("T")

FAREWELL = 1.0  # seconds for what is sent before closing

if TYPE_CHECKING:

    class coloured(Generic[P, T]):  # noqa: N801 - it is used as a decorator
        """Mark a method whose result is what its shell makes of it: a value, or a coroutine."""

        def __init__(self, function: Callable[Concatenate[Any, P], T]) -> None: ...
        @overload
        def __get__(self, bound: None, owner: Any = None) -> Self: ...
        @overload
        def __get__(self, bound: Runner, owner: Any = None) -> Callable[P, T]: ...
        @overload
        def __get__(
            self, bound: AsyncRunner, owner: Any = None
        ) -> Callable[P, Coroutine[Any, Any, T]]: ...
        def __get__(self, bound: Any, owner: Any = None) -> Any: ...

    class iterated(Generic[P, T]):  # noqa: N801 - it is used as a decorator
        """Mark a method, of a client or of what has one, that returns its kind of iterator."""

        def __init__(self, function: Callable[Concatenate[Any, P], Iterator[T]]) -> None: ...
        @overload
        def __get__(self, bound: None, owner: Any = None) -> Self: ...
        @overload
        def __get__(
            self, bound: Runner | Bound[Runner], owner: Any = None
        ) -> Callable[P, Iterator[T]]: ...
        @overload
        def __get__(
            self, bound: AsyncRunner | Bound[AsyncRunner], owner: Any = None
        ) -> Callable[P, AsyncIterator[T]]: ...
        def __get__(self, bound: Any, owner: Any = None) -> Any: ...

else:

    def coloured(method: Callable[..., Any]) -> Callable[..., Any]:
        """Do nothing: the colour is that of what the method calls."""
        return method

    iterated = coloured


class BaseClient:
    """What `Client` and `AsyncClient` have in common: their parameters and their calls."""

    _near: Any  # of the shells: each has its own kind
    _kind = "server"
    _given: Any = None  # what a client of several servers was told beyond its settings

    if TYPE_CHECKING:  # what a shell performs
        run: Callable[[Any], Any]
        _one: Callable[..., Any]
        _batch: Callable[..., Any]
        _optimistic: Callable[..., Any]
        _pages: Callable[..., Any]
        _relay: Callable[..., Any]
        _reauthenticate: Callable[[], Any]

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        timeout: float | None = 5.0,
        connect_timeout: float | None = None,
        idle_timeout: float | None = None,
        keepalive: int = 60,
        max_connections: int = 32,
        username: str | None = None,
        password: str | None = None,
        credentials: Callable[[], Any] | None = None,
        client_name: str | None = None,
        protocol: int = 3,
        ssl_context: SSLContext | None = None,
        retry: Retry | None = Retry(),  # noqa: B008 - a frozen value
        integrity: str | None = None,
        on_push: Callable[[list[Any] | None], object] | None = None,
        observer: Observer | None = None,
        near_cache: NearCache | bool | None = None,
    ) -> None:
        """Check the parameters; nothing is sent. Options in the URL count before them.

        `timeout` is the limit, in seconds, of every call: waiting for a connection, connecting,
        sending, reading and trying again together (default 5; None: no limit). `connect_timeout`
        (default: `timeout`) shortens it for connecting. At most `max_connections` (default 32)
        sockets are open, further callers wait; an `AsyncClient` needs one, and as many more as
        there are commands that wait in the server. One that was idle for `idle_timeout` seconds is
        not used again (default: no limit). `keepalive` (default 60) is after how many seconds of
        silence TCP asks whether the peer is there; 0: never.

        `username` and `password`, or `credentials`: a function, sync or (with an `AsyncClient`)
        async, that returns a password or (username, password); it is asked for each new connection.
        `protocol` is 3 or 2 (RESP); servers without HELLO are spoken to by 2. `ssl_context`
        replaces the verifying default of `rediss://`. `retry` says what is tried again (None:
        nothing). `integrity="echo"` follows each write by an ECHO of a fresh nonce, whose reply
        proves that all before it belong to this call; it costs one more command for each write.
        `on_push(push)` is given what the server says unasked, a list, or None when some were lost;
        `observer` is told of each exchange.

        `near_cache` (True, or a `NearCache` that says how much, and of which keys) holds replies of
        simple reads in this process until the server says that their keys changed; they are never
        more than 2 seconds behind, and a hit sends nothing, nor is it told to an observer.

        Raises ValueError or TypeError naming the parameter that is wrong.
        """
        given = dict(locals())
        failure: Exception | None = None
        try:
            self._settings = make_settings(given)
        except (TypeError, ValueError) as error:
            failure = error.with_traceback(None)
        # A traceback may show the locals of its frames: nobody's password is to be among them.
        del given, url, username, password
        if failure is not None:
            failure.__context__ = None
            raise failure
        self._begin()

    @classmethod
    def like(cls, other: BaseClient) -> Self:
        """Return a client of this kind with the settings of another, sync or asyncio; no I/O.

        Raises TypeError for one of another kind: of a cluster, by sentinels, or of one server.
        """
        if cls._kind != other._kind:
            raise TypeError(f"{cls.__name__} is not like {other!r}")
        client = cls.__new__(cls)
        client._given = other._given  # noqa: SLF001 - the same class
        client._settings = other._settings  # noqa: SLF001 - the same class
        client._begin()  # noqa: SLF001 - the same class
        return client

    def _begin(self) -> None:
        self._timeout = self._settings.timeout
        self._retry = self._settings.retry
        self._pushes = self._settings.pushes
        self._observers = [] if self._settings.observer is None else [self._settings.observer]
        self._observer = self._settings.observer
        self._info: ServerInfo | None = None
        self._near = None
        self._farewells: list[Callable[[], Sequence[Member]]] = []
        self._start()

    def __repr__(self) -> str:
        settings = getattr(self, "_settings", None)  # None where its parameters were refused
        return f"<{type(self).__name__} {settings and settings.address}>"

    def _start(self) -> None:
        """Make what the shell needs beyond its settings."""

    @coloured
    def call(self, *args: Any, timeout: float | None = None, idempotent: bool = False) -> Any:
        """Send one command and return its reply: bytes, int, float, bool, None, list or dict.

        Status replies are bytes (`b"OK"`). `timeout` (seconds; math.inf: no limit) replaces the
        client's for this call; without it a command that waits in the server (BLPOP, XREAD BLOCK,
        WAIT) has its own time on top. `idempotent=True` allows to send it again when no answer
        came, as is done with commands that only read.

        Raises ReplyError for a server's error, TypeError or ValueError for an argument that has no
        form on the wire and for commands that would change a shared connection's state.
        """
        limit = None if timeout is None else seconds("timeout", timeout)
        return self._one(args, limit, idempotent)

    @coloured
    def gather(self, ops: Iterable[Runnable[Any]], *, raise_errors: bool = True) -> list[Any]:
        """Run ops in lock step, each step's commands in one write; return their results in order.

        One op's error stays in its slot until the others have finished; then the first is raised,
        or with `raise_errors=False` errors stand in the list.
        """
        return self.run(together(ops, raise_errors=raise_errors))

    @coloured
    def pipeline(
        self,
        commands: Iterable[Sequence[Any] | Command[Any]],
        *,
        raise_errors: bool = True,
        timeout: float | None = None,
        idempotent: bool = False,
    ) -> list[Any]:
        """Send commands in one write and return their replies in order.

        All are encoded before the first byte leaves, and all replies are read before the first
        error is raised; with `raise_errors=False` errors stand in the list. `timeout` and
        `idempotent` are as in `call`, for all of them.
        """
        limit = None if timeout is None else seconds("timeout", timeout)
        batch = Batch(members_of(commands), raise_errors=raise_errors)
        return self._batch(batch, limit, idempotent=idempotent)

    @coloured
    def transaction(
        self,
        commands: Iterable[Sequence[Any] | Command[Any]] | Callable[[], Op[Any]],
        *,
        watch: Sequence[str | bytes] = (),
        timeout: float | None = None,
    ) -> list[Any]:
        """Send commands in one write between MULTI and EXEC and return their replies in order.

        Where they depend on what is stored, `commands` is a generator function that reads by
        `yield from` and returns the commands (none: nothing is done). If a key in `watch` changes
        before they are executed, nothing was, and the function is called anew, until the deadline.
        `timeout` is as in `call`, for all of it.

        Raises ExecAbortError if the server refused one and so ran none, the first error of one that
        failed while the others ran, and WatchError if watched keys kept changing.
        """
        limit = None if timeout is None else seconds("timeout", timeout)
        if callable(commands):
            if isinstance(watch, (str, bytes)):
                raise TypeError("watch is a list of keys, not one text")
            return self._optimistic(commands, tuple(watch), limit)
        if watch:
            raise TypeError("watch: commands must be a function that reads and returns them")
        return self._batch(Batch(members_of(commands), atomic=True), limit)

    @iterated
    def scan(
        self,
        match: str | bytes | None = None,
        *,
        count: int | None = None,
        of_type: str | None = None,
    ) -> Iterator[bytes]:
        """Iterate over the keys of the database, or those that match a glob pattern.

        `count` is how many the server looks at for one page (its default: 10); `of_type` is
        `string`, `hash`, ... A key may come twice; one that was there all the time comes.
        """
        return self._pages(lambda cursor: scan(cursor, match, count, of_type))

    @iterated
    def hscan(
        self, key: str | bytes, match: str | bytes | None = None, *, count: int | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over a hash's fields and values, as `scan` does over keys."""
        return self._pages(lambda cursor: page(("HSCAN", key, cursor), pairs, match, count))

    @iterated
    def sscan(
        self, key: str | bytes, match: str | bytes | None = None, *, count: int | None = None
    ) -> Iterator[bytes]:
        """Iterate over a set's members, as `scan` does over keys."""
        return self._pages(lambda cursor: page(("SSCAN", key, cursor), list, match, count))

    @iterated
    def zscan(
        self, key: str | bytes, match: str | bytes | None = None, *, count: int | None = None
    ) -> Iterator[tuple[bytes, float]]:
        """Iterate over a sorted set's members and scores, as `scan` does over keys."""
        return self._pages(lambda cursor: page(("ZSCAN", key, cursor), scored, match, count))

    @iterated
    def pages(
        self,
        page: Callable[[bytes], Runnable[tuple[bytes, list[T]]]],
        forget: Callable[[bytes], Runnable[Any]] | None = None,
    ) -> Iterator[T]:
        """Iterate over items that come in pages.

        `page(cursor)` returns an op of the next cursor and a list; b"0" begins, and ends, it. Where
        the iteration is broken off, `forget(cursor)` is the op that tells the server so.
        """
        return self._pages(page, forget)

    @iterated
    def relay(
        self,
        find: Callable[[], Runnable[list[T] | None]],
        produce: Callable[[], Any],
        own: Callable[[T], T],
        keep: Callable[[list[T]], Runnable[Any]],
        pace: float = 0.0,
    ) -> Iterator[T]:
        """Iterate over the items that `find` has, else over what `produce` gives, and keep those.

        `find()` and `keep(items)` return ops; `own(item)` is what is kept of one, a copy that
        nobody changes, and raises for what cannot be kept. What was found comes `pace` seconds
        apart. Only when `produce`'s iterator has ended, its items are kept: nothing of one that
        failed or was left.
        """
        return self._relay(find, produce, own, keep, pace)

    @property
    def near_cache(self) -> NearFigures | None:
        """What the near cache holds, and how often it had an answer; None without one."""
        return None if self._near is None else self._near.figures

    @property
    def place(self) -> tuple[Any, ...]:
        """What tells its server and its user from those of other clients."""
        settings = self._settings
        return str(settings.address), settings.address.username, settings.credentials

    def observe(self, observer: Observer) -> None:
        """Tell an observer of each exchange from now on, too; of connections it is not told."""
        self._observers = [*self._observers, observer]
        self._observer = observer if len(self._observers) == 1 else Several(self._observers)

    def unobserve(self, observer: Observer) -> None:
        """Tell this observer nothing more. Raises ValueError if it was told nothing."""
        left = [one for one in self._observers if one is not observer]
        if len(left) == len(self._observers):
            raise ValueError("it is no observer of this client")
        self._observers = left
        self._observer = (left[0] if len(left) == 1 else Several(left)) if left else None

    def before_close(self, farewell: Callable[[], Sequence[Member]]) -> None:
        """Send the commands that a function returns, when the client is closed, within a second.

        What they reply, or that nobody replied, is not looked at.
        """
        self._farewells.append(farewell)

    @coloured
    def reauthenticate(self) -> None:
        """Replace all connections by such with new credentials, and see that they are accepted.

        Calls under way end on the connection that they have. Raises AuthenticationError.
        """
        return self._reauthenticate()

    def _parting(self) -> Batch:
        """Return what is to be sent before the client is closed."""
        farewells, self._farewells = self._farewells, []
        return Batch([one for farewell in farewells for one in farewell()], raise_errors=False)

    def _server_info(self) -> Op[ServerInfo]:
        if self._info is None:
            self._info = yield from server_info()
        return self._info
