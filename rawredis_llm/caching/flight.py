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
from functools import partial
from secrets import token_hex
from typing import Any, Final, NamedTuple

from ..errors import CachedFailureError
from ..protocol.operation import Batch, Call, Command, Member, Now, Op, Tend, Wait
from ..protocol.script import Script
from .entries import CacheHit
from .upkeep import OUT_OF_REACH, Upkeep

_TURN: Final = 1000
"""Milliseconds after which who waits gives its connection back for a moment: the one who computes
may need it."""

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

    `judge` makes a hit of the key's value, `answered` and `failed` an entry of a result, with the
    time and the seconds that it took, and of an error. `lease` is in milliseconds.
    """

    key: str
    lock: str
    lease: int
    upkeep: Upkeep
    judge: Callable[[bytes | None, float], CacheHit | None]
    answered: Callable[[Any, float, float], Entry]
    failed: Callable[[Exception, float], Entry]
    compute: Callable[[], Any]


class _Outcome(NamedTuple):
    response: Any = None
    error: Exception | None = None


_flights: dict[tuple[str, str], Future[_Outcome | None]] = {}  # by server and lock


def single_flight(flight: Flight, place: str, stale: CacheHit | None) -> Op[tuple[Any, str]]:
    """Return an answer and whence it is: `computed`, `shared`, `stale`, or `exact`.

    `place` names the server. Raises what the computation raised, whoever's it was in this process,
    and CachedFailureError where a failure was stored meanwhile.
    """
    mine: Future[_Outcome | None] = Future()
    while (other := _flights.setdefault((place, flight.lock), mine)) is not mine:
        if stale is not None:
            return stale.response, "stale"
        outcome: _Outcome | None = yield from Wait(other)
        if outcome is None:
            continue  # whoever computed was cancelled
        if outcome.error is not None:
            raise outcome.error
        return copy.deepcopy(outcome.response), "shared"
    ended: _Outcome | None = None
    try:
        response, whence = yield from _lead(flight, stale)
        ended = _Outcome(response)
    except Exception as error:
        ended = _Outcome(error=error)
        raise
    finally:
        _flights.pop((place, flight.lock), None)
        mine.set_result(ended)
    return response, whence


def _lead(flight: Flight, stale: CacheHit | None) -> Op[tuple[Any, str]]:
    """Compute under the lease, or wait for who has it."""
    token = token_hex(16)
    take: tuple[Any, ...] = ("SET", flight.lock, token, "NX", "PX", flight.lease)
    while True:
        state = yield from flight.upkeep.ask(
            # MGET, which has nothing to say against a key of another kind.
            Batch([take, ("GET", flight.lock), ("PTTL", flight.lock), ("MGET", flight.key)])
        )
        if state is OUT_OF_REACH:
            return (yield from _computed(flight, "")), "computed"
        taken, holder, left, [data] = state
        # It may have been stored after we looked, and before we had the lease.
        hit = flight.judge(data, (yield from Now()))
        if hit is not None and not hit.stale:
            if taken is not None:
                yield from _end(flight, token, Entry())
            return response_of(hit), "exact"
        if taken is not None:
            return (yield from _computed(flight, token)), "computed"
        if stale is not None or hit is not None:
            return response_of(stale or hit), "stale"
        if holder is None or left == -2:
            continue  # it ended this very moment
        wait = min(flight.lease if left < 0 else left, _TURN) + 1
        stream = f"{flight.lock}:{holder.decode(errors='replace')}"
        # Its reply says only that it is time to look again.
        yield from flight.upkeep.ask(
            Command(("XREAD", "COUNT", 1, "BLOCK", wait, "STREAMS", stream, "0"))
        )


def _computed(flight: Flight, token: str) -> Op[Any]:
    """Compute, and store what came of it; without a token there is no lease to renew."""
    began = yield from Now()
    renewed = partial(_RENEW, [flight.lock], [token, flight.lease])
    request = Call(flight.compute)
    if token:
        request = Tend(renewed, flight.lease / 3000, flight.compute)
    try:
        response = yield from request
        if hasattr(response, "__await__"):
            getattr(response, "close", int)()
            raise TypeError("compute is asynchronous: use it with an AsyncClient")
        now = yield from Now()
        entry = flight.answered(response, now, now - began)
    except Exception as error:
        yield from _end(flight, token, flight.failed(error, (yield from Now())))
        raise
    yield from _end(flight, token, entry)
    return response


def _end(flight: Flight, token: str, entry: Entry) -> Op[None]:
    """Give the lease back, with an answer if there is one, and wake who waits."""
    keys = [flight.lock, flight.key, f"{flight.lock}:{token}"]
    end = _END(keys, [token, entry.value, "" if entry.px is None else entry.px])
    yield from flight.upkeep.ask(Batch([*entry.before, end]))


def response_of(hit: CacheHit | None) -> Any:
    """Return what a hit answers; raise if a failure was stored."""
    assert hit is not None
    if hit.error is not None:
        raise CachedFailureError(hit.error)
    return hit.response


def _after_fork() -> None:
    _flights.clear()  # those who compute are threads of the parent


os.register_at_fork(after_in_child=_after_fork)
