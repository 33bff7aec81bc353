"""Conversations: every exchange with Redis, written once, without I/O and without a colour.

An `Op` is a generator that yields requests and is sent their results. A runner decides when:
`Client` runs it now, `AsyncClient` returns a coroutine of it, `Plan` hands it back unrun, to be
read, tested, or joined with others by `gather`.

=========  ====================================  =========================================
Request    what the runner does                  what the op is sent
=========  ====================================  =========================================
Command    sends it, reads one reply             the decoded reply
Batch      sends all in one write, reads all     a list: what each of them gives
Embed      calls the user's embedder             its vectors, one per text
Call       calls a function of the user's        its result
Tend       the same, and beats meanwhile         its result
Wait       waits for another call's outcome      that outcome
Pause      waits                                 None
Now        looks at the clock                    seconds since the epoch, a float
=========  ====================================  =========================================

Rules:

1. An op does no I/O, reads no clock, takes no lock.
2. Only `Exception` is thrown into an op. On cancellation or KeyboardInterrupt the runner closes it.
3. No `yield` in a `finally`, and no bare `yield` outside this module: elsewhere, `yield from`.
4. Endless iteration (SCAN, pub/sub, paging) is not an op: an op fetches one page.
5. All replies of a batch are read before any of them is decoded or raised.
6. A failure is thrown *into* the op, so that a traceback shows the op's own line.

Must not import sockets, asyncio, numpy, or any other ring.
"""

from __future__ import annotations

import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeAlias, overload

from ..errors import (
    ConnectError,
    ExecAbortError,
    ProtocolError,
    RedisError,
    ReplyError,
    WatchError,
    reply_error,
)
from .resp import Portions, encode_alike, encode_many
from .vetting import HARMLESS, NAMES, command_name, vet

if TYPE_CHECKING:
    from concurrent.futures import Future

    from typing_extensions import Self, TypeVar

    T_co = TypeVar("T_co", covariant=True, default=Any)
else:
    from typing import TypeVar

    T_co = TypeVar("T_co", covariant=True)

P = ParamSpec("P")
T = TypeVar("T")
C_co = TypeVar("C_co", covariant=True, bound="Runner | AsyncRunner | Plan")

__all__ = ["Batch", "Command", "Plan"]


class _Asking(Generic[T_co]):
    """What an op yields, and in an op `yield from` gives the result of."""

    __slots__ = ()

    def __iter__(self) -> Generator[Request, Any, T_co]:
        result: T_co = yield self  # type: ignore[misc]  # every kind of it is a Request
        return result


class Command(_Asking[T_co]):
    """One command: `args` as they are sent, and `decode`, which makes a value of the reply.

    Without `decode` the reply is the value. A server's error raises before `decode` is called.
    """

    __slots__ = ("args", "decode")
    width = 1
    source: str | bytes | None = None  # of the script that it runs: see `Evaluation`

    def __init__(self, args: Sequence[Any], decode: Callable[[Any], T_co] | None = None) -> None:
        self.args = args if type(args) is tuple else _arguments(args)
        self.decode = decode

    def __repr__(self) -> str:
        return f"<Command {self.name}>"

    @property
    def name(self) -> str:
        """The command's name in capitals."""
        return command_name(self.args)

    def result(self, replies: Sequence[Any]) -> T_co:
        """Return the value of this command's one reply, or raise its error."""
        reply = replies[0]
        if isinstance(reply, ReplyError):
            raise reply_error(reply.message, self.name, reply.address)
        return self.value(reply)

    def value(self, reply: Any) -> T_co:
        """Return the value of a reply that is no error."""
        value: T_co = reply if self.decode is None else self.decode(reply)
        return value


Member: TypeAlias = "Command[Any] | Batch | tuple[Any, ...]"


class Batch(_Asking[list[Any]]):
    """Commands (and batches) that leave in one write; its value is the list of theirs.

    `atomic` wraps them in MULTI and EXEC. With `raise_errors` the first error is raised once all
    replies have been read; without, errors stand in the list, each in its place.
    """

    __slots__ = ("atomic", "executes", "kinds", "members", "raise_errors", "waits", "width")
    members: tuple[Member, ...]
    width: int

    def __init__(
        self, members: Iterable[Member], *, atomic: bool = False, raise_errors: bool = True
    ) -> None:
        self.members = tuple(members)
        self.atomic = atomic
        self.waits = 0.0  # seconds that its commands may wait in the server, known to `encode`
        self.executes = atomic  # or has a member that does, known to `encode`
        self.raise_errors = raise_errors
        self.kinds = set(map(type, self.members))
        width = len(self.members)
        if not self.kinds <= {tuple, Command}:
            width += sum(member.width - 1 for member in self.members if isinstance(member, Batch))
        self.width = width + 2 if atomic and width else width

    @property
    def name(self) -> str:
        """The names of its commands, each once, in order: `GET+HSET`."""
        names: list[str] = []
        for member in self.members:
            names += name_of(member).split("+") if isinstance(member, Batch) else [name_of(member)]
        return "+".join(dict.fromkeys(names))

    def encode(self) -> Portions:
        """Return the bytes to send, in portions, all of them made before the first is sent."""
        if len(self.members) > 8 and self.kinds == {tuple} and not self.atomic:
            commands: Any = self.members
            portions = encode_alike(commands)
            if portions is not None and {args[0] for args in commands} <= HARMLESS.keys():
                return portions
        return encode_many(self._commands(set()), first=-1 if self.atomic else 0)

    def _commands(self, scripts: set[Any]) -> Iterator[tuple[Any, ...]]:
        atomic = self.atomic and self.width
        waits = 0.0
        if atomic:
            yield ("MULTI",)
        for member in self.members:
            if isinstance(member, tuple):
                args = member
            elif isinstance(member, Batch):
                yield from member._commands(scripts)  # noqa: SLF001 - the same class
                if atomic and member.executes and member.width:
                    raise ValueError("a transaction cannot hold another")
                waits += member.waits
                self.executes = self.executes or member.executes
                continue
            else:
                args = member.args
                if member.source is not None and member.source not in scripts:
                    if len(scripts) > 400:  # the server forgets all but 500 that came by EVAL
                        scripts.clear()
                    scripts.add(member.source)
                    args = member.in_full  # type: ignore[attr-defined]  # it is an Evaluation
            if not args or type(args[0]) not in NAMES or args[0] not in HARMLESS:
                waits += vet(args)
            yield args
        if atomic:
            yield ("EXEC",)
        self.waits = 0.0 if atomic else waits  # inside of a transaction nothing waits

    def result(self, replies: Sequence[Any]) -> list[Any]:
        """Return the values, or raise the first error."""
        if len(replies) != self.width:  # a fault of ours, which must not become a wrong answer
            raise ProtocolError(f"{len(replies)} replies to {self.width} commands")
        if self.atomic and replies:
            replies = _executed(replies, self)
        refused = any(issubclass(kind, ReplyError) for kind in set(map(type, replies)))
        if self.kinds == {tuple} and not refused:  # raw replies, as they are
            return list(replies)
        values: list[Any] = []
        failure: Exception | None = None
        position = 0
        for member in self.members:
            op: Command[Any] | Batch
            if isinstance(member, tuple):
                reply = replies[position]
                if not isinstance(reply, ReplyError):
                    values.append(reply)
                    position += 1
                    continue
                op = Command(member)
            else:
                op = member
            try:
                values.append(op.result(replies[position : position + op.width]))
            except Exception as error:  # noqa: BLE001 - it is raised below, or stands in its slot
                failure = failure or error
                values.append(error)
            position += op.width
        if failure is not None and self.raise_errors:
            raise failure
        return values


def _executed(replies: Sequence[Any], batch: Batch) -> Sequence[Any]:
    """Return what EXEC gave; raise what kept the transaction from running."""
    outcome = replies[-1]
    if isinstance(outcome, ReplyError):
        # EXECABORT says only that some command was refused; the refusal itself says why.
        refusal = next((r for r in replies[:-1] if isinstance(r, ReplyError)), outcome)
        if refusal is replies[0] and not all(isinstance(r, ReplyError) for r in replies):
            text = f"{refusal.message}; so the commands ran, but each by itself"
            raise type(refusal)(text, command="MULTI", address=refusal.address)
        error = ExecAbortError if isinstance(outcome, ExecAbortError) else type(refusal)
        raise error(refusal.message, command=batch.name, address=refusal.address)
    if outcome is None:
        raise WatchError("a watched key changed, nothing was executed", command=batch.name)
    executed: list[Any] = outcome
    return executed


class Ready(Batch):
    """A batch of raw replies whose bytes were made beforehand, in portions with their widths.

    `names` are those of its commands. `commands` makes the same commands anew, for who must see
    them one by one.
    """

    __slots__ = ("_portions", "commands", "names")

    def __init__(
        self,
        portions: Portions,
        names: Sequence[str],
        commands: Callable[[], Iterable[tuple[Any, ...]]],
        *,
        raise_errors: bool = True,
    ) -> None:
        self._portions = portions
        self.kinds = {tuple}
        self.commands = commands
        self.names = names
        self.atomic = self.executes = False
        self.raise_errors = raise_errors
        self.waits = 0.0
        self.width = sum(width for _, width in portions)

    @property
    def members(self) -> tuple[tuple[Any, ...], ...]:  # type: ignore[override]  # made when asked
        """The commands."""
        return tuple(self.commands())

    @property
    def name(self) -> str:
        """The names of its commands, each once, in order."""
        return "+".join(dict.fromkeys(self.names))

    def encode(self) -> Portions:
        """Return the portions."""
        return self._portions

    def result(self, replies: Sequence[Any]) -> list[Any]:
        """Return the replies, errors in their places; or raise the first error."""
        if len(replies) != self.width:  # a fault of ours, which must not become a wrong answer
            raise ProtocolError(f"{len(replies)} replies to {self.width} commands")
        values = list(replies)
        if any(issubclass(kind, ReplyError) for kind in set(map(type, values))):
            for at, reply in enumerate(values):
                if isinstance(reply, ReplyError):
                    values[at] = reply_error(reply.message, self.names[at], reply.address)
                    if self.raise_errors:
                        raise values[at]
        return values


class Embed(_Asking[Any]):
    """Ask the runner to embed texts: by `call`, or in asyncio by `acall` where there is one.

    An `AsyncClient` runs a plain `call` in a thread, so that a model does not stop the event loop.
    """

    __slots__ = ("acall", "call", "texts")

    def __init__(
        self,
        texts: list[str],
        call: Callable[[list[str]], Any] | None,
        acall: Callable[[list[str]], Awaitable[Any]] | None = None,
    ) -> None:
        self.texts = texts
        self.call = call
        self.acall = acall


class Call(_Asking[Any]):
    """Ask the runner to call a function that may block, such as a write to a file.

    An `AsyncClient` runs it in a thread, or awaits it if it is asynchronous.
    """

    __slots__ = ("args", "function")

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function = function
        self.args = args


class Tend(Call):
    """A call of a function; while it takes its time, the op of `beat` runs every so many seconds.

    A beat that fails is tried again the next time.
    """

    __slots__ = ("beat", "every")

    def __init__(
        self, beat: Callable[[], Runnable[Any]], every: float, function: Callable[..., Any]
    ) -> None:
        super().__init__(function)
        self.beat = beat
        self.every = every


class Wait(_Asking[Any]):
    """Ask the runner to wait for what another thread or task will make of a future.

    After `limit` seconds the result is `late`.
    """

    __slots__ = ("future", "late", "limit")

    def __init__(self, future: Future[Any], limit: float, late: Any) -> None:
        self.future = future
        self.limit = limit
        self.late = late


class Pause(_Asking[None]):
    """Ask the runner to wait for some seconds."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Now(_Asking[float]):
    """Ask the runner for the time, in seconds since the epoch."""

    __slots__ = ()


Sent: TypeAlias = "Batch | Sequence[Any]"  # a batch, or the arguments of a command
Request: TypeAlias = "Command[Any] | Batch | Embed | Call | Wait | Pause | Now"
Op: TypeAlias = Generator[Request, Any, T]
Runnable: TypeAlias = "Command[T] | Op[T]"


class Runner(ABC):
    """What runs an op at once and returns its result: `Client`."""

    @abstractmethod
    def run(self, op: Runnable[T]) -> T:
        """Run the op and return its result."""


class AsyncRunner(ABC):
    """What returns a coroutine of an op's result: `AsyncClient`."""

    @abstractmethod
    def run(self, op: Runnable[T]) -> Coroutine[Any, Any, T]:
        """Return a coroutine that runs the op."""


class Plan:
    """What runs nothing: an object bound to it hands its ops back."""

    def run(self, op: Runnable[T]) -> Runnable[T]:
        """Return the op."""
        return op

    def pages(self, *_: Any) -> Any:
        """Raise TypeError: what iterates needs a client."""
        raise TypeError("what iterates cannot be planned: it needs a client")

    relay = pages


PLAN = Plan()


class Bound(Generic[C_co]):
    """The base of all that has operations: an object and the client that runs them."""

    client: C_co

    def _bind(self, client: Any) -> None:
        self.client = client
        if not isinstance(client, (Runner, AsyncRunner, Plan)):
            raise TypeError(f"client must be a Client or an AsyncClient, not {client!r}")

    def bound_to(self, client: Any) -> Any:
        """Return this object with another client of the same server, whatever its colour."""
        bound = copy.copy(self)
        bound._bind(client)  # noqa: SLF001 - the same class
        return bound

    def _planned(self) -> Any:
        """Return this object bound to `PLAN`; each class's `plan` gives it its type."""
        return self.bound_to(PLAN)


if TYPE_CHECKING:

    class operation(Generic[P, T]):  # noqa: N801 - it is used as a decorator
        """See below; this is what the type checkers see: three colours of one method."""

        def __init__(self, function: Callable[Concatenate[Any, P], Runnable[T]]) -> None: ...
        @overload
        def __get__(self, bound: None, owner: Any = None) -> Self: ...
        @overload
        def __get__(self, bound: Bound[Runner], owner: Any = None) -> Callable[P, T]: ...
        @overload
        def __get__(
            self, bound: Bound[AsyncRunner], owner: Any = None
        ) -> Callable[P, Coroutine[Any, Any, T]]: ...
        @overload
        def __get__(self, bound: Bound[Plan], owner: Any = None) -> Callable[P, Runnable[T]]: ...
        def __get__(self, bound: Any, owner: Any = None) -> Any: ...

else:

    def operation(function: Callable[..., Any]) -> Callable[..., Any]:
        """Make a method that returns an op into one that has the object's client run it."""

        @functools.wraps(function)
        def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
            return self.client.run(function(self, *args, **kwargs))

        return method


def as_member(command: Sequence[Any] | Command[Any]) -> Command[Any] | tuple[Any, ...]:
    """Return a member for a `Batch`: a `Command` as it is, a sequence of arguments as a tuple.

    Raises TypeError for text, whose letters would be taken for arguments.
    """
    if type(command) is tuple or isinstance(command, Command):
        return command
    return _arguments(command)


def _arguments(args: Sequence[Any]) -> tuple[Any, ...]:
    if isinstance(args, (str, bytes, bytearray, memoryview, dict)):
        raise TypeError("a command is a sequence of arguments such as ('GET', key), not one text")
    if not hasattr(args, "__iter__"):
        kind = type(args).__name__
        raise TypeError(f"a command is a sequence of arguments such as ('GET', key), not {kind}")
    return tuple(args)


def members_of(commands: Iterable[Any] | None) -> list[Command[Any] | tuple[Any, ...]]:
    """Return members for a `Batch`; None is no command."""
    return [one if type(one) is tuple else as_member(one) for one in commands or ()]


def reading(op: Any) -> Any:
    """Return what a function gave that reads what a transaction hangs on; raise if it is no op."""
    if isinstance(op, (GeneratorType, Command)):
        return op
    if hasattr(op, "__await__"):
        getattr(op, "close", int)()  # a coroutine would complain of never having been awaited
    raise TypeError(
        "transaction takes a generator function (without `async`), which reads by `yield from` and"
        f" returns the commands; this one returned {type(op).__name__}"
    )


def _stateful(*args: Any) -> Batch:
    """Return what sends a command that is refused but to who has the connection alone."""
    return Ready(encode_many([args]), [args[0]], lambda: [args])


def transaction(
    leased: Any, read: Callable[[], Any], keys: tuple[Any, ...]
) -> Op[list[Any] | Exception]:
    """Watch, read and execute: one attempt of a transaction, on a client of one connection.

    Raises what came before the end, and WatchError: only then nothing was executed. A failure of
    the end is returned. `leased.pending` tells whether keys stay watched.
    """
    leased.pending = bool(keys)
    if keys:
        yield from _stateful("WATCH", *keys)
    members = members_of((yield from reading(read())))
    leased.reads = False
    try:
        replies = yield from Batch(members, atomic=True)
    except WatchError:
        leased.pending = False
        raise
    except ConnectError:
        raise
    except Exception as error:  # noqa: BLE001 - raised by who must not begin anew
        return error
    if keys and not members:
        yield from _stateful("UNWATCH")
    leased.pending = False
    return replies


def refuse_exec(what: Sent) -> None:
    """Raise ValueError for a transaction among what reads watched keys: it would end the watch."""
    if isinstance(what, Batch) and what.executes:
        raise ValueError("a transaction among the reads ends the watch: return its commands")


def name_of(what: Batch | Command[Any] | Sequence[Any]) -> str:
    """Return the name of what was sent: a batch, a command, or a command's arguments."""
    if type(what) is tuple:  # nearly always
        return HARMLESS.get(what[0]) or command_name(what)
    return what.name if isinstance(what, (Batch, Command)) else command_name(what)


def steps_of(op: Any) -> Generator[Request, Any, Any]:
    """Return what runs an op step by step; raise TypeError for what is none."""
    if isinstance(op, GeneratorType):
        return op
    if isinstance(op, (Command, Batch, Embed, Call, Wait, Pause, Now)):
        return iter(op)
    if hasattr(op, "__await__") and hasattr(op, "close"):
        op.close()  # a coroutine, which would complain of never having been awaited
    raise TypeError(
        f"{type(op).__name__} is no op: give a Command, or what an object's plan returns, as in"
        " cache.plan.lookup(...)"
    )


def together(ops: Iterable[Runnable[Any]], *, raise_errors: bool = True) -> Op[list[Any]]:
    """Run many ops in lock step: each step's commands leave in one write.

    Texts to embed are collected first, one call per embedder, so that an op which must embed does
    not cost the others a round trip. An op's error stays in its slot until all have finished; then
    the first is raised, or with `raise_errors=False` errors stand in the list.
    """
    one: Any = ops  # an op is iterable, too; but a generator expression of ops is none
    if isinstance(one, (Command, Batch)) or getattr(one, "__name__", "<genexpr>") != "<genexpr>":
        raise TypeError("gather takes a list of ops, not one op")
    steps = [_Step(op) for op in ops]
    try:
        while waiting := [step for step in steps if step.request is not None]:
            wire = [step.request for step in waiting if isinstance(step.request, (Command, Batch))]
            if len(wire) < len(waiting):
                wire_steps = (Command, Batch)
                yield from _resolve([s for s in waiting if not isinstance(s.request, wire_steps)])
                continue
            try:
                results = yield Batch(wire, raise_errors=False)
            except RedisError as error:  # the whole write failed: each op learns in its own frame
                results = [copy.copy(error) for _ in waiting]
            except (TypeError, ValueError):  # an argument without a form: nothing was sent yet
                if not _refuse_unsendable(waiting):
                    raise
                continue
            for step, result in zip(waiting, results, strict=True):
                step.resume(result)
    finally:
        for step in steps:
            step.op.close()
    failure = next((step.result for step in steps if isinstance(step.result, Exception)), None)
    if failure is not None and raise_errors:
        raise failure
    return [step.result for step in steps]


class _Step:
    """Where one op of a `together` stands: its open request, or (None) its result."""

    __slots__ = ("op", "request", "result")

    def __init__(self, op: Runnable[Any]) -> None:
        self.op = steps_of(op)
        self.request: Request | None = None
        self.result: Any = None
        self.resume(None)

    def resume(self, value: Any) -> None:
        try:
            if isinstance(value, Exception):
                self.request = self.op.throw(value)
            else:
                self.request = self.op.send(value)
        except StopIteration as stop:
            self.request, self.result = None, stop.value
        except Exception as error:  # noqa: BLE001 - it is raised, or handed over, by `together`
            self.request, self.result = None, error


def one_each(vectors: Any, texts: list[str]) -> Any:
    """Return what an embedder returned, if it is one vector for each text."""
    if not hasattr(vectors, "__len__"):
        if hasattr(vectors, "__await__"):
            vectors.close()
            raise TypeError("the embedder is asynchronous: use it with an AsyncClient")
        raise TypeError(f"the embedder returned {type(vectors).__name__}, not a list or an array")
    if len(vectors) != len(texts):
        raise ValueError(f"the embedder returned {len(vectors)} vectors for {len(texts)} texts")
    return vectors


def _refuse_unsendable(steps: list[_Step]) -> bool:
    """Give the ops that ask for what cannot be encoded their errors; return if there are any."""
    found = False
    for step in steps:
        if isinstance(step.request, (Command, Batch)):
            try:
                Batch([step.request]).encode()
            except (TypeError, ValueError) as error:
                step.resume(error)
                found = True
    return found


def _resolve(steps: list[_Step]) -> Op[None]:
    """Answer requests that need no server, the texts to embed by one call for each embedder."""
    embeds: dict[Any, list[_Step]] = {}
    for step in steps:
        request = step.request
        if isinstance(request, Embed):
            embeds.setdefault((request.call, request.acall), []).append(step)
            continue
        assert isinstance(request, (Call, Wait, Pause, Now))
        try:
            result: Any = yield request
        except Exception as error:  # noqa: BLE001 - its op learns of it
            result = error
        step.resume(result)
    for (call, acall), group in embeds.items():
        texts = [text for step in group for text in step.request.texts]  # type: ignore[union-attr]
        try:
            vectors = one_each((yield Embed(texts, call, acall)), texts)
        except Exception as error:  # noqa: BLE001 - each op of the group learns of it
            for step in group:
                step.resume(copy.copy(error))  # each raises one of its own
            continue
        start = 0
        for step in group:
            end = start + len(step.request.texts)  # type: ignore[union-attr]
            step.resume(vectors[start:end])
            start = end


def watched(
    op: Runnable[T],
    see: Callable[[Request], None],
    took: Callable[[Request, float], None] | None = None,
) -> Op[T]:
    """Return the same op, each of whose requests is shown to `see` before it is performed.

    `took` is told afterwards how many seconds it took.
    """
    inner = steps_of(op)
    step: Callable[[Any], Request] = inner.send
    value: Any = None
    try:
        while True:
            request = step(value)
            see(request)
            began: float = (yield Now()) if took is not None else 0.0
            try:
                value = yield request
                step = inner.send
            except Exception as error:  # noqa: BLE001 - thrown on into the op
                value, step = error, inner.throw
            if took is not None:
                took(request, (yield Now()) - began)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # the op's own result
    finally:
        inner.close()
