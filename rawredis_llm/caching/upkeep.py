"""What a cache does beside its answers: it bears an outage, and it counts. Imports no numpy.

**Outage.** Under `on_error="miss"` a server that cannot be reached is a miss. So that not every
call pays a time-out, after a failure nobody asks for 0.1 s; then one call in two seconds tries, and
the others go on missing until it had an answer.

**Counts.** They are gathered in the process and sent with a later command of any cache of this
server: after a miss at once with the next one, else ten times a second, and when the client is
closed. So counting costs no round trip, and a process that dies loses a moment's counts.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final, TypeVar

from .. import errors
from ..protocol import commands
from ..protocol.operation import Batch, Command, Member, Now, Op
from ..protocol.retry import PASSING
from .entries import Found

T = TypeVar("T")

_AWAY: Final[tuple[type[errors.RedisError], ...]] = (
    errors.ConnectionError,
    errors.TimeoutError,
    *PASSING,
)
"""The server cannot be reached, or does not answer anybody; to ask costs time."""

TROUBLE: Final[tuple[type[errors.RedisError], ...]] = (
    *(*_AWAY, errors.MisconfiguredError, errors.OutOfMemoryError, errors.ReadOnlyError),
    errors.SearchTimeoutError,
)
"""What on_error="miss" forgives: the server is away, or in a state that passes. A refusal (wrong
password, no permission) is the user's to see and always raises."""


def passes(error: object) -> bool:
    """Return whether an error is one that `TROUBLE` names, be it inside of a transaction."""
    if isinstance(error, errors.ExecAbortError):  # its words are those of what was refused
        error = errors.reply_error(error.message)
    return isinstance(error, TROUBLE)


_PAUSE: Final = 0.1  # seconds without asking after the first failure
_PROBES: Final = 2.0  # seconds between two calls that try, as long as none had an answer
_OFTEN: Final = 0.1  # seconds between two sendings of hits
_FEW: Final = 4096  # events that are held one by one
_MANY: Final = 10_000  # different counts that are held, as in an outage; more are lost
_KEPT: Final = 90 * 86400  # seconds that the counts of a cache are kept after the last one


class OutOfReach:
    """The one value that stands for no answer; None is an answer."""


OUT_OF_REACH: Final = OutOfReach()


@dataclass(slots=True)
class CacheStats:
    """What a cache was asked and what came of it, by all processes since the last reset.

    `exact`, `semantic` and `stale` hits; `shared`: calls that were given what another one computed
    meanwhile; `misses` by reason; `judged`: verdicts of a judge, `yes` and `no`; `saved_seconds`
    and `saved_tokens` are those of the answers that were hit, as far as they were told.
    """

    exact: int = 0
    semantic: int = 0
    stale: int = 0
    shared: int = 0
    misses: dict[str, int] = field(default_factory=dict)
    judged: dict[str, int] = field(default_factory=dict)
    saved_seconds: float = 0.0
    saved_tokens: int = 0

    @property
    def hits(self) -> int:
        """All hits: exact, semantic and stale ones."""
        return self.exact + self.semantic + self.stale

    @property
    def lookups(self) -> int:
        """All that was asked."""
        return self.hits + self.shared + sum(self.misses.values())

    @property
    def hit_rate(self) -> float:
        """The share of lookups that needed no model, 0 to 1; 0 where nothing was asked."""
        return (self.hits + self.shared) / self.lookups if self.lookups else 0.0


def as_stats(counts: dict[bytes, bytes]) -> CacheStats:
    """Return what the server holds of a cache's counts."""
    numbers = {name.decode(): int(count) for name, count in counts.items() if count.isdigit()}
    kinds = ("exact", "semantic", "stale", "shared")
    stats = CacheStats(**{name: numbers.pop(name, 0) for name in kinds})  # type: ignore[arg-type]  # counts
    stats.saved_seconds = numbers.pop("saved_ms", 0) / 1000
    stats.saved_tokens = numbers.pop("saved_tokens", 0)
    for name, count in sorted(numbers.items()):
        kind, _, reason = name.partition(":")
        if kind == "judged":
            stats.judged[reason] = count
        else:
            stats.misses[name] = count
    return stats


class Tally:
    """What was counted of all caches of one server in this process, and not sent yet."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew, as a forked child does: the counts are its parent's, the lock anybody's."""
        self._lock = Lock()
        self._events: deque[tuple[str, str, int]] = deque()  # appended to without the lock
        self._counts: dict[tuple[str, str], int] = {}
        self._used: dict[tuple[str, str], int] = {}  # when it was, of what is kept by last use
        self.next = 0.0  # when hits are sent again
        self.due = False

    def add(self, key: str, name: str, count: int = 1) -> None:
        """Count under a cache's key."""
        self._events.append((key, name, count))
        if len(self._events) > _FEW:  # as in an outage
            with self._lock:
                self._merge()

    def _merge(self) -> None:
        while self._events:
            key, name, count = self._events.popleft()
            place = (key, name)
            if place in self._counts or len(self._counts) < _MANY:
                self._counts[place] = self._counts.get(place, 0) + count

    def touch(self, key: str, member: str, now: float) -> None:
        """Note when something was used, for a sorted set by last use."""
        with self._lock:
            if len(self._used) < _MANY:
                self._used[key, member] = round(now * 1e6)

    def settle(self, now: float) -> None:
        """Have the next command take along what was counted."""
        self.due = True
        self.next = now + _OFTEN

    def commands(self) -> list[tuple[Any, ...]]:
        """Return the commands that bring the counts to the server, and count anew."""
        with self._lock:
            self.due = False
            self._merge()
            used, self._used = self._used, {}
            counts, self._counts = self._counts, {}
        sent: list[tuple[Any, ...]] = [
            ("ZADD", key, "XX", at, member) for (key, member), at in used.items()
        ]
        sent += [("HINCRBY", *place, count) for place, count in counts.items()]
        return sent + [("EXPIRE", key, _KEPT) for key in {key for key, _ in counts}]

    def put_back(self, unsent: Sequence[tuple[Any, ...]]) -> None:
        """Count again what did not arrive; what had arrived unanswered is counted twice."""
        for command in unsent:
            if command[0] == "HINCRBY":
                self.add(*command[1:])


_tallies: dict[Any, Tally] = {}  # by server and user, so that any client of theirs may send them


class Health:
    """What is known of a server's being out of reach, and what is to be told it, for one client."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.until = 0.0  # nobody asks before; 0: all is well
        self.waiting = 0  # connections on which somebody waits for another process

    def admits(self, now: float) -> bool:
        """Return whether this call may ask; if so, the next one may when it had time to fail."""
        if now < self.until <= now + _PROBES:  # else the clock was set back
            return False
        if self.until:
            self.until = now + _PROBES
        return True

    def failed(self, now: float) -> None:
        """Take notice of a failure."""
        if not now < self.until <= now + _PROBES:
            self.until = now + (_PROBES if self.until else _PAUSE)

    def farewell(self) -> list[tuple[Any, ...]]:
        """Return what is to be sent before the client is closed."""
        return [] if self.until else self.tally.commands()


_healths: weakref.WeakKeyDictionary[Any, Health] = weakref.WeakKeyDictionary()


def health_of(client: Any) -> Health:
    """Return what the caches of a client share."""
    health = _healths.get(client)
    if health is None:
        tally = _tallies.setdefault(getattr(client, "place", None), Tally())
        health = _healths[client] = Health(tally)
        if hasattr(client, "before_close"):  # a runner of the user's own may have none
            client.before_close(health.farewell)
    return health


class Upkeep:
    """The upkeep of one cache, shared with its copies bound to a plan."""

    def __init__(self, client: Any, key: str, on_error: str, tally: Tally | None = None) -> None:
        if on_error not in ("miss", "raise"):
            raise ValueError(f'on_error must be "miss" or "raise", not {on_error!r}')
        self.key = key
        self._forgives = on_error == "miss"
        self.health = health_of(client)
        self.tally = self.health.tally if tally is None else tally

    def count(self, found: Found, now: float) -> None:
        """Count a lookup."""
        hit, miss, entry, kind = found
        add = self.tally.add
        if hit is None or hit.error is not None:
            add(self.key, miss or "error")
            self.tally.settle(now)
            return
        saved = entry.get("saves")
        if type(saved) is list and len(saved) == 2 and set(map(type, saved)) == {int}:
            for name, number in zip(("saved_ms", "saved_tokens"), saved, strict=True):
                if number:
                    add(self.key, name, number)
        add(self.key, "stale" if hit.stale else kind)
        if not 0.0 < self.tally.next - now <= _OFTEN:  # or the clock was set back
            self.tally.settle(now)

    @property
    def calm(self) -> bool:
        """Whether `ask` would do nothing but ask; `forgive` is for what may come of it."""
        return not self.health.until and not self.tally.due

    def ask(self, request: Command[T] | Batch) -> Op[Any]:
        """Send what a lookup or a store asks for, and the counts that are due with it.

        Gives OUT_OF_REACH where the server is, and that is to be a miss.
        """
        health = self.health
        if health.until and self._forgives and not health.admits((yield from Now())):
            return OUT_OF_REACH
        try:
            if self.tally.due:
                value = yield from self._with_counts(request)
            else:
                value = yield from request
        except errors.RedisError as error:
            return (yield from self.forgive(error))
        if health.until:
            health.until = 0.0
        return value

    def _with_counts(self, request: Command[T] | Batch) -> Op[Any]:
        counts = self.tally.commands()
        try:
            *told, value = yield from Batch([*counts, request], raise_errors=False)
        except errors.RedisError as error:
            self.tally.put_back(counts)
            lost = isinstance(error, errors.OutcomeUnknownError)
            if not lost or isinstance(error, errors.TimeoutError):
                raise
            # A write with counts is not tried again by itself, as a lookup alone would be.
            return (yield from request)
        self.tally.put_back([one for one, reply in zip(counts, told, strict=True) if passes(reply)])
        if isinstance(value, Exception):
            raise value
        return value

    def forgive(self, error: Exception) -> Op[OutOfReach]:
        """Give OUT_OF_REACH for an error that is to be a miss; raise another."""
        if not self._forgives or not passes(error):
            raise error
        import logging  # noqa: PLC0415 - only a failure needs it

        logging.getLogger("rawredis_llm").warning("the cache is out of reach: %s", error)
        if isinstance(error, _AWAY) and not isinstance(error, errors.PoolTimeoutError):
            self.health.failed((yield from Now()))
        return OUT_OF_REACH

    def stats(self, *, reset: bool) -> Op[CacheStats]:
        """Return the counts, those of this process included; with `reset`, begin anew."""
        read: list[Member] = [commands.hgetall(self.key)]
        if reset:
            read.append(commands.delete(self.key))
        counts = self.tally.commands()
        try:
            _, [found, *_] = yield from Batch(
                [Batch(counts, raise_errors=False), Batch(read, atomic=reset)]
            )
        except TROUBLE:
            self.tally.put_back(counts)
            raise
        return as_stats(found)


def _after_fork() -> None:
    for tally in _tallies.values():
        tally.forget()


os.register_at_fork(after_in_child=_after_fork)
