"""The near cache: replies held in this process until the server says that their keys changed.

Source: Redis documentation, "Client-side caching", broadcasting mode (CLIENT TRACKING ON BCAST). A
connection of its own is told which keys were written, by anybody; what is held is given out only
while that connection is known to work. Rules:

1. A reply is held only if no invalidation of its key came between sending and holding it.
2. Nothing is given out later than `FRESH` seconds after a PING was sent on that connection whose
   answer came: what the server had said before that answer has been received.
3. What this client writes itself is dropped when the write returns, whatever became of it.
4. When that connection is lost, all is dropped, and nothing held until there is another one.

Must not import sockets, asyncio, numpy, or another ring; nor read a clock.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..errors import ReplyError, reply_error
from .keyed import keys_of
from .operation import Batch, Command, Sent
from .resp import key_bytes
from .retry import READS
from .vetting import HARMLESS, command_name

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["NearCache"]

FRESH: Final = 2.0
"""Seconds: the longest that what is held may be behind, however the connection fails."""
BEAT: Final = 1.0  # seconds from one PING to the next

HELD: Final = frozenset(
    "EXISTS GET GETRANGE LINDEX LLEN SCARD SISMEMBER STRLEN ZCARD ZSCORE".split()  # noqa: SIM905
)
"""Commands whose replies are held: of one key, and values that nobody can change. None of hashes,
whose fields may expire by themselves."""

_EVERYTHING: Final = {"FLUSHALL", "FLUSHDB", "SWAPDB"}
_PLAIN: Final[set[type]] = {str, bytes}


class _Limits(NamedTuple):
    max_bytes: int
    prefixes: tuple[str | bytes, ...]
    max_age: float


class NearCache(_Limits):
    """What a near cache holds at most, and of which keys.

    `max_bytes` (default 64 MiB) bounds names and replies together. `prefixes`: only keys that begin
    by one of them are held, and only of those the server tells what changes; none: all keys, so
    that the server tells of every write. `max_age` (seconds, default 60) bounds how long a key
    that expires is held: the server says so only when it removes it.

    Raises ValueError or TypeError naming the parameter that is wrong.
    """

    __slots__ = ()

    def __new__(
        cls,
        max_bytes: int = 64 * 1024 * 1024,
        prefixes: Sequence[str | bytes] = (),
        max_age: float = 60.0,
    ) -> Self:
        """Check the figures."""
        if isinstance(prefixes, (str, bytes)):
            raise TypeError("near_cache: prefixes must be a list of texts, not one text")
        if not all(isinstance(prefix, (str, bytes)) for prefix in prefixes):
            raise TypeError("near_cache: a prefix must be str or bytes")
        if type(max_bytes) is not int or not max_bytes > 0:
            raise ValueError(f"near_cache: max_bytes must be above 0, not {max_bytes!r}")
        if not max_age > 0:
            raise ValueError(f"near_cache: max_age must be above 0 seconds, not {max_age!r}")
        names = sorted(map(key_bytes, prefixes))
        if any(after.startswith(before) for before, after in pairwise(names)):
            raise ValueError("near_cache: no prefix may begin by another one")
        return super().__new__(cls, max_bytes, tuple(prefixes), float(max_age))


class NearFigures(NamedTuple):
    """What a near cache holds, and what happened so far; `live`: whether it is told of changes."""

    live: bool
    entries: int
    bytes: int
    hits: int
    misses: int
    invalidations: int
    flushes: int


class _Entry:
    """A reply that is held, until when, and what it weighs."""

    __slots__ = ("reply", "size", "until", "used")

    def __init__(self, reply: Any, until: float, size: int) -> None:
        self.reply, self.until, self.size = reply, until, size
        self.used = False


class Ticket:
    """A read that is under way: `valid` until its key changes."""

    __slots__ = ("args", "key", "valid")

    def __init__(self, args: tuple[Any, ...], key: bytes) -> None:
        self.args, self.key = args, key
        self.valid = True


class Near:
    """What is held, for any number of threads or tasks. A hit takes no lock.

    `make_lock` gives a lock that its holder may take again.
    """

    def __init__(
        self,
        limits: NearCache,
        make_lock: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.limits = limits
        self._make_lock = make_lock
        self._prefixes = tuple(map(key_bytes, limits.prefixes))
        self.fresh_until = 0.0  # by the clock that `find` is given
        self.hits = 0
        self.forget()

    def forget(self) -> None:
        """Begin anew, as a forked child does."""
        self._lock = self._make_lock()
        self.live = False
        self.fresh_until = 0.0
        self._entries: dict[tuple[Any, ...], _Entry] = {}
        self._by_key: dict[bytes, list[tuple[Any, ...]]] = {}
        self._tickets: dict[bytes, list[Ticket]] = {}
        self._size = 0
        self._misses = self._invalidations = self._flushes = 0

    @property
    def figures(self) -> NearFigures:
        """What there is now, and what happened so far."""
        with self._lock:
            counts = (self.hits, self._misses, self._invalidations, self._flushes)
            return NearFigures(self.live, len(self._entries), self._size, *counts)

    def find(self, args: Sequence[Any], now: float) -> _Entry | None:
        """Return what is held, and may be given out now."""
        try:
            entry: _Entry | None = self._entries.get(args)  # type: ignore[call-overload]
        except TypeError:  # an argument that is no key of a dict
            return None
        if entry is None or now > self.fresh_until or now > entry.until:
            return None
        self.hits += 1
        entry.used = True
        return entry

    def holds(self, args: Sequence[Any]) -> bool:
        """Return whether the reply to a command may be held."""
        if type(args) is not tuple or len(args) < 2 or not {*map(type, args)} <= _PLAIN:
            return False
        if (HARMLESS.get(args[0]) or command_name(args)) not in HELD:
            return False
        # EXISTS of two keys would be held under the first.
        return key_bytes(args[1]).startswith(self._prefixes or b"") and len(keys_of(args)) == 1

    def begin(self, args: Sequence[Any]) -> Ticket:
        """Return a ticket for a command that `holds` says yes of; it must be given to `end`."""
        ticket = Ticket(tuple(args), key_bytes(args[1]))
        key = ticket.key
        with self._lock:
            self._misses += 1
            ticket.valid = self.live
            self._tickets.setdefault(key, []).append(ticket)
        return ticket

    def end(self, ticket: Ticket, reply: Any, now: float) -> None:
        """Hold a reply, if its key did not change meanwhile; NotImplemented stands for none."""
        with self._lock:
            tickets = self._tickets.get(ticket.key, [])
            if ticket in tickets:
                tickets.remove(ticket)
            if not tickets:
                self._tickets.pop(ticket.key, None)
            if not ticket.valid or type(reply) not in _CONSTANT:
                return
            size = sum(map(len, ticket.args)) + sys.getsizeof(reply) + _OVERHEAD
            if size > self.limits.max_bytes // 8:
                return
            self._remove(ticket.args)
            self._entries[ticket.args] = _Entry(reply, now + self.limits.max_age, size)
            self._by_key.setdefault(ticket.key, []).append(ticket.args)
            self._size += size
            while self._size > self.limits.max_bytes:
                self._evict()

    def _evict(self) -> None:
        """Drop the oldest that was not used since it came, or came to be the oldest."""
        for args, entry in list(self._entries.items()):
            if entry.used:  # a second chance: it goes to the end
                entry.used = False
                self._entries[args] = self._entries.pop(args)
                continue
            self._remove(args)
            return
        self._remove(next(iter(self._entries)))

    def _remove(self, args: tuple[Any, ...]) -> None:
        entry = self._entries.pop(args, None)
        if entry is None:
            return
        self._size -= entry.size
        key = key_bytes(args[1])
        held = self._by_key[key]
        held.remove(args)
        if not held:
            del self._by_key[key]

    def drop(self, keys: Sequence[Any]) -> None:
        """Drop what is held of keys, and what is under way."""
        with self._lock:
            for key in keys:
                name = key_bytes(key)
                for args in list(self._by_key.get(name, ())):
                    self._remove(args)
                for ticket in self._tickets.get(name, ()):
                    ticket.valid = False

    def drop_all(self) -> None:
        """Drop all that is held, and what is under way."""
        with self._lock:
            self._flushes += 1
            self._entries, self._by_key, self._size = {}, {}, 0
            for tickets in self._tickets.values():
                for ticket in tickets:
                    ticket.valid = False

    def wrote(self, what: Sent) -> None:
        """Drop what a command, or a batch, that this client has sent may have changed."""
        if not self._entries and not self._tickets:
            return
        for args in _commands(what):
            name = HARMLESS.get(args[0]) or command_name(args)
            if name in _EVERYTHING:
                self.drop_all()
            elif name not in READS:
                self.drop(keys_of(args))

    # -- the connection that tells of changes --------------------------------------------------

    def commands(self) -> list[tuple[Any, ...]]:
        """Return what is to be sent on that connection at first."""
        words = [word for prefix in self.limits.prefixes for word in ("PREFIX", prefix)]
        return [("CLIENT", "TRACKING", "ON", "BCAST", *words)]

    def opened(self, reply: Any, asked: float) -> None:
        """Begin to hold, if the server agrees to what was asked at that time; or raise why not."""
        if isinstance(reply, ReplyError):
            raise reply_error(reply.message, "CLIENT TRACKING", reply.address)
        with self._lock:
            self.drop_all()
            self.live = True
            self.fresh_until = asked + FRESH

    def take(self, frame: Any, asked: float) -> bool:
        """Take a frame of that connection; return whether it answers the PING of that time."""
        if isinstance(frame, ReplyError):
            raise reply_error(frame.message, "PING", frame.address)
        if isinstance(frame, list) and len(frame) == 2 and frame[0] == b"invalidate":
            with self._lock:
                self._invalidations += 1
                if frame[1] is None:
                    self.drop_all()
                else:
                    self.drop(frame[1])
            return False
        if frame == b"PONG":
            self.fresh_until = asked + FRESH
            return True
        return False

    def lost(self) -> None:
        """Hold nothing until there is another connection."""
        with self._lock:
            self.live = False
            self.fresh_until = 0.0
            self.drop_all()


_CONSTANT: Final[set[type]] = {bytes, int, float, type(None)}
_OVERHEAD: Final = 400  # bytes that an entry takes beside its words and its reply, about


def _commands(what: Any) -> Iterator[Sequence[Any]]:
    if isinstance(what, Batch):
        for member in what.members:
            yield from _commands(member)
    else:
        yield what.args if isinstance(what, Command) else what
