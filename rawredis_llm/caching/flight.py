"""Single flight: of all who ask for an answer that is not there, one computes it.

Within a process the others wait for the one's future, whatever thread or loop they are on. Between
processes a lease decides: a key that holds its owner's token, for as long as the owner renews it
while it computes. Who finds it taken waits by XREAD on a stream named by that token, to which the
owner adds one entry when it ends; should it die, another takes over when its lease ends. The answer
is stored by a script, and only where nobody else took the lease meanwhile. Imports no numpy.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from secrets import token_hex
from typing import Any, Final, NamedTuple

from ..errors import CachedFailureError
from ..keys import from_json, to_json
from ..protocol.operation import Batch, Call, Command, Member, Now, Op, Pause, Tend, Wait
from ..protocol.script import Script
from .entries import CacheHit
from .upkeep import OUT_OF_REACH, Upkeep

_TURN: Final = 1000
"""Milliseconds after which who waits gives its connection back for a moment: the one who computes
may need it."""

_WAITING: Final = 8  # connections of a client that wait so; who comes later looks now and then
_ORPHANS: Final = 1000  # leases of computations that were cancelled, which are remembered at most

_RENEW: Final = Script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
""")

_END: Final = Script("""
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if ARGV[3] ~= '' then
  redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
elseif ARGV[2] ~= '' then
  redis.call('SET', KEYS[2], ARGV[2])
end
redis.call('XADD', KEYS[3], '*', 'ended', '1')
redis.call('PEXPIRE', KEYS[3], 60000)
return 1
""")


class Entry(NamedTuple):
    """What is to be stored: `value` (empty: nothing), `px`, and commands that go before it."""

    value: str | bytes = ""
    px: int | None = None
    before: tuple[Member, ...] = ()


class Flight(NamedTuple):
    """What there is to know of one question, and what to do about it.

    `place` names the server and the user. `judge` makes a hit of the key's value, `answered` and
    `failed` an entry of a result, with the time and the seconds that it took, and of an error.
    `stale` is the answer that is there, if it may be given to who need not compute. `lease` is in
    milliseconds.
    """

    place: Any
    key: str
    lock: str
    lease: int
    upkeep: Upkeep
    judge: Callable[[bytes | None, float], CacheHit | None]
    answered: Callable[[Any, float, float], Entry]
    failed: Callable[[Exception, float], Entry]
    compute: Callable[[], Any]
    stale: CacheHit | None


class _Outcome(NamedTuple):
    response: Any = None
    error: Exception | None = None


_LATE: Final = _Outcome()  # there is none yet
_flights: dict[Any, Future[_Outcome | None]] = {}  # by place and lock
_orphans: dict[Any, str] = {}  # tokens of leases whose computation was cancelled
_computing: ContextVar[frozenset[Any]] = ContextVar("computing", default=frozenset())


def single_flight(flight: Flight) -> Op[tuple[Any, str]]:
    """Return an answer and whence it is: `computed`, `shared`, `stale`, or `exact`.

    Raises what the computation raised, whoever's it was in this process, and CachedFailureError
    where a failure was stored meanwhile.
    """
    name = (flight.place, flight.lock)
    if name in _computing.get():
        raise RuntimeError("get_or_compute: to compute this answer asks for this very answer")
    mine: Future[_Outcome | None] = Future()
    ended: _Outcome | None = None
    try:
        while (other := _flights.setdefault(name, mine)) is not mine:
            if flight.stale is not None:
                return flight.stale.response, "stale"
            outcome: _Outcome | None = yield from Wait(other, flight.lease / 1000, _LATE)
            if outcome is _LATE:
                held = yield from flight.upkeep.ask(Command(("EXISTS", flight.lock)))
                if held == 0:  # its owner cannot renew it: it may be waiting for this very thread
                    return (yield from _lead(flight))
            elif outcome is not None:  # else whoever computed was cancelled
                if outcome.error is not None:
                    raise _own(outcome.error)
                return copy.deepcopy(outcome.response), "shared"
        response, whence = yield from _lead(flight)
        ended = _Outcome(copy.deepcopy(response))  # who asked may change what it was given
    except Exception as error:
        ended = _Outcome(error=error)
        raise
    else:
        return response, whence
    finally:
        mine.set_result(ended)
        if _flights.get(name) is mine:
            del _flights[name]


def _lead(flight: Flight) -> Op[tuple[Any, str]]:
    """Compute under the lease, or wait for who has it."""
    token = _orphans.pop((flight.place, flight.lock), "") or token_hex(16)
    take: tuple[Any, ...] = ("SET", flight.lock, token, "NX", "PX", flight.lease)
    while True:
        state = yield from flight.upkeep.ask(
            # MGET, which has nothing to say against a key of another kind.
            Batch([take, ("GET", flight.lock), ("PTTL", flight.lock), ("MGET", flight.key)])
        )
        if state is OUT_OF_REACH:
            return (yield from _computed(flight, "")), "computed"
        taken, holder, left, [data] = state
        ours = holder == token.encode()
        if ours and taken is None:  # that of one who was cancelled
            yield from flight.upkeep.ask(_RENEW([flight.lock], [token, flight.lease]))
        # It may have been stored after we looked, and before we had the lease.
        hit = flight.judge(data, (yield from Now()))
        if hit is not None and not hit.stale:
            if ours:
                yield from _end(flight, token, Entry())
            return response_of(hit), "exact"
        if ours:
            return (yield from _computed(flight, token)), "computed"
        if flight.stale is not None or hit is not None:
            return response_of(flight.stale or hit), "stale"
        if holder is not None and left != -2:  # else it ended this very moment
            yield from _wait(flight, holder, flight.lease if left < 0 else left)


def _wait(flight: Flight, holder: bytes, left: int) -> Op[None]:
    """Wait until the holder of the lease ends, or it is time to look again."""
    health = flight.upkeep.health
    if health.waiting >= _WAITING:
        yield from Pause(0.1)
        return
    health.waiting += 1
    try:
        stream = f"{flight.lock}:{holder.decode(errors='replace')}"
        block = ("BLOCK", min(left, _TURN) + 1)
        yield from flight.upkeep.ask(Command(("XREAD", "COUNT", 1, *block, "STREAMS", stream, "0")))
    finally:
        health.waiting -= 1


def _computed(flight: Flight, token: str) -> Op[Any]:
    """Compute, and store what came of it; without a token there is no lease to renew."""
    name = (flight.place, flight.lock)
    began = yield from Now()
    request = Call(flight.compute)
    if token:
        renewal = partial(flight.upkeep.ask, _RENEW([flight.lock], [token, flight.lease]))
        request = Tend(renewal, flight.lease / 3000, flight.compute)
    mark = _computing.set(_computing.get() | {name})
    try:
        response = yield from request
        if hasattr(response, "__await__"):
            getattr(response, "close", int)()
            raise TypeError("compute is asynchronous: use it with an AsyncClient")
        now = yield from Now()
        entry = flight.answered(response, now, now - began)
    except Exception as error:
        keeps = flight.stale is None  # a stale answer is worth more than a failure
        now = yield from Now()
        yield from _end(flight, token, flight.failed(error, now) if keeps else Entry())
        raise
    except BaseException:  # cancelled: the next one in this process goes on under the same lease
        if len(_orphans) >= _ORPHANS:
            _orphans.clear()
        if token:
            _orphans[name] = token
        raise
    finally:
        with suppress(ValueError):  # one that is thrown away may end elsewhere
            _computing.reset(mark)
    yield from _end(flight, token, entry)
    # What others will be given, with JSON's own types.
    return response if isinstance(response, str) else from_json(to_json("response", response))


def _end(flight: Flight, token: str, entry: Entry) -> Op[None]:
    """Give the lease back, with an answer if there is one, and wake who waits."""
    keys = [flight.lock, flight.key, f"{flight.lock}:{token}"]
    end = _END(keys, [token, entry.value, "" if entry.px is None else entry.px])
    yield from flight.upkeep.ask(Batch([*entry.before, end]))


def _own(error: Exception) -> Exception:
    """Return a copy of another's error, as each raise adds to its traceback; else itself."""
    try:
        copied = copy.copy(error)
    except Exception:  # noqa: BLE001 - whatever its own constructor wants
        return error
    copied.__cause__ = error
    return copied


def response_of(hit: CacheHit | None) -> Any:
    """Return what a hit answers; raise if a failure was stored."""
    assert hit is not None
    if hit.error is not None:
        raise CachedFailureError(hit.error)
    return hit.response


def _after_fork() -> None:
    _flights.clear()  # those who compute are threads of the parent
    _orphans.clear()


os.register_at_fork(after_in_child=_after_fork)
