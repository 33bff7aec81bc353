"""The connection is cut, stalled, delayed and split after every byte, in both directions.

`survey()` plays a session through a proxy that does one harm to it, once for each place, and counts
what came of it. It takes any subject, so that other clients can be counted by the same rules.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import Any

import pytest

from proxy import TO_CLIENT, TO_SERVER, Fault, Kind, Proxy
from rawredis_llm import Client, EmbeddedServer, errors
from subjects import OURS, Maker, Subject

SHORT, LONG = 0.3, 5.0  # seconds that a call may take: where that is waited for, and elsewhere
GRACE = 0.05 + 0.5  # by which it may take longer; most of it for what else the machine does
WORKERS = 24  # trials at a time: most of them wait
TURNS = 3  # of a trial that is spoiled: what is not the machine's fault comes again
FAR = 10_000  # between the numbers of its turns
MARGIN = 4  # bytes by which the handshake's reply may grow: it quotes the connection's number

FIELDS = {b"field": b"one", b"other": b"two"}
STEPS = (7, 11, 13)  # what the counters are raised by: no two replies of a session are alike
HARMS: dict[str, tuple[Kind, float, float]] = {  # with the pause, and the client's time limit
    "fin": ("fin", 0, LONG),
    "rst": ("rst", 0, LONG),
    "stall": ("stall", 0, SHORT),
    "late": ("pause", SHORT * 1.3, SHORT),  # when nobody waits for it any more
    "split": ("pause", 0.003, LONG),
}
NEVER = ("wrong", "untyped", "untrue", "twice")  # nor, but that the machine was busy:
SPOILED = ("late", "again", "unfired")


@dataclass(frozen=True)
class Ask:
    """A call on a subject, and the name of the counter that it raises by the step."""

    how: str
    args: Sequence[Any]
    counter: str = ""
    step: int = 1


def session(number: int) -> list[Ask]:
    """Return the calls of one trial; counters are its own, and their names of one length."""
    a, b, c = (f"counter:{number:06}:{letter}" for letter in "abc")
    batch = [("INCRBY", a, STEPS[0]), ("GET", "key:2"), ("HGETALL", "hash")]
    atomic = [("GET", "key:3"), ("INCRBY", b, STEPS[1])]
    return [
        Ask("call", ("GET", "key:1")),
        Ask("call", ("HGETALL", "hash")),
        Ask("pipeline", (batch,), a, STEPS[0]),
        Ask("transaction", (atomic,), b, STEPS[1]),
        Ask("call", ("FT.SEARCH", "index", "@tag:{here}")),
        Ask("call", ("INCRBY", c, STEPS[2]), c, STEPS[2]),
    ]


# Where a harm is only noticed by the call after the session, there is one more that must succeed.
AFTER = [Ask("call", ("GET", "key:4")), Ask("call", ("GET", "key:5"))]


def right_replies(found: Any, counted: Sequence[int]) -> list[Any]:
    """Return the replies of the session and of `AFTER`: what was found, and counted."""
    return [
        b"value 1",
        FIELDS,
        [counted[0], b"value 2", FIELDS],
        [b"value 3", counted[1]],
        found,
        counted[2],
        b"value 4",
        b"value 5",
    ]


def prepare(direct: Client) -> Any:
    """Fill the server, and return what is to be found in its index."""
    direct.call("FLUSHALL")
    direct.pipeline([("SET", f"key:{i}", f"value {i}") for i in range(1, 6)])
    direct.call("HSET", "hash", *[word for pair in FIELDS.items() for word in pair])
    direct.call("FT.CREATE", "index", "PREFIX", 1, "doc:", "SCHEMA", "tag", "TAG")
    direct.call("HSET", "doc:1", "tag", "here")
    found = direct.call("FT.SEARCH", "index", "@tag:{here}")
    assert found[b"total_results"] == 1
    return found


def ask(subject: Subject, asks: Sequence[Ask]) -> list[Any]:
    """Return a reply or an exception for each call; calls of an asyncio subject run together."""
    if subject.is_async:

        async def together() -> list[Any]:
            calls = [getattr(subject, each.how)(*each.args) for each in asks]
            return await asyncio.gather(*calls, return_exceptions=True)

        replies: list[Any] = subject.do(together())
        return replies
    [each] = asks
    try:
        return [getattr(subject, each.how)(*each.args)]
    except Exception as error:  # noqa: BLE001 - which kind it is, is judged later
        return [error]


def judge(asks: Sequence[Ask], replies: Sequence[Any], found: Any, direct: Client) -> Counter[str]:
    """Count what the calls of one trial have come to, by what the server says of the counters."""
    record: Counter[str] = Counter(calls=len(asks))
    values = direct.call("MGET", *[each.counter for each in asks])
    sums = [int(value or 0) for value in values]
    last = right_replies(found, [n for n, each in zip(sums, asks, strict=True) if each.counter])
    once = right_replies(found, STEPS)  # what a call may say that was executed again after it
    for each, n, reply, *rights in zip(asks, sums, replies, once, last, strict=True):
        record["twice"] += n > each.step
        if not isinstance(reply, Exception):
            record["right" if reply in rights else "wrong"] += 1
            continue
        record["errors"] += 1
        record["untyped"] += not isinstance(reply, errors.ConnectionError)
        record["untrue"] += isinstance(reply, errors.ConnectError) and n > 0  # "nothing was sent"
    return record


@dataclass(frozen=True)
class Survey:
    """Plays sessions of one kind of client through proxies that do one kind of harm.

    With `at_once` all calls of a session are in flight together; for asyncio subjects only.
    A trial that is spoiled is made so many `turns`.
    """

    make: Maker
    url: str
    harm: str
    at_once: bool = False
    unix: bool = False
    turns: int = TURNS

    def run(self, most: int | None = None) -> Counter[str]:
        """Do the harm at every offset, or at `most` of them; return the sums of all trials."""
        with Client(self.url) as direct, ThreadPoolExecutor(WORKERS) as pool:
            found = prepare(direct)
            kind, pause, _ = HARMS[self.harm]
            places = _places(self._length(), most)
            faults = [Fault(kind, way, offset, pause) for way, offset in places]

            def trial(number: int, turns: int = self.turns) -> Counter[str]:
                record = self._trial(faults[number % FAR], number, found, direct)
                spoiled = any(record[name] for name in SPOILED)
                if spoiled and turns > 1 and not any(record[name] for name in NEVER):
                    return trial(number + FAR, turns - 1)
                return record

            return sum(pool.map(trial, range(len(faults))), Counter())

    def _length(self) -> list[int]:
        """Return how many bytes a session is, in each direction, with the handshake."""
        with Proxy(self.url, unix=self.unix) as proxy:
            subject = self.make(proxy.url)
            self._play(subject, session(999_999))
            subject.close()
        return proxy.passed

    def _play(self, subject: Subject, asks: Sequence[Ask]) -> list[tuple[list[Any], float]]:
        """Return the replies and the seconds of each call, or of those that are made together."""
        played = []
        for group in [asks] if self.at_once else [[each] for each in asks]:
            start = monotonic()
            played.append((ask(subject, group), monotonic() - start))
        return played

    def _trial(self, fault: Fault, number: int, found: Any, direct: Client) -> Counter[str]:
        asks = session(number)
        _, _, timeout = HARMS[self.harm]
        with Proxy(self.url, fault, unix=self.unix) as proxy:
            subject = self.make(proxy.url, timeout=timeout)
            played = self._play(subject, asks)
            for each in AFTER:
                played += self._play(subject, [each])
            subject.close()
        groups = [replies for replies, _ in played]
        record = judge(
            [*asks, *AFTER], [reply for group in groups for reply in group], found, direct
        )
        record["trials"] = 1
        record["unfired"] = not proxy.fired
        record["late"] = sum(seconds > timeout + GRACE for _, seconds in played)
        record["again"] = _again(groups)
        return record


def _again(groups: Sequence[Sequence[Any]]) -> int:
    """Count the failures after the first: a loss may cost what was in flight, and no more."""
    failed = sum(any(isinstance(reply, Exception) for reply in group) for group in groups)
    return max(failed - 1, 0)


def _places(length: Sequence[int], most: int | None) -> Iterable[tuple[int, int]]:
    """Return directions and offsets: all of them, or ends and a random, repeatable choice."""
    for way in (TO_SERVER, TO_CLIENT):
        offsets: Sequence[int] = range(length[way] + MARGIN)
        if most is not None:
            inner = random.Random(most).sample(offsets[1:], most // 2 - 2)
            offsets = [0, length[way] - 1, *inner]  # the first byte, and the last of a write
        for offset in offsets:
            yield way, offset


COLOURS = [
    pytest.param(OURS[0], False, id="sync"),
    pytest.param(OURS[1], False, id="aio"),
    pytest.param(OURS[1], True, id="aio, at once"),
]


def check(survey: Survey, most: int | None = None) -> None:
    record = survey.run(most)
    assert not [name for name in NEVER + SPOILED if record[name]], record
    assert record["right"] + record["errors"] == record["calls"] > 0
    if survey.harm == "split":
        assert record["errors"] == 0
    else:  # a harm that no call noticed would have proved nothing
        assert record["errors"] > 0


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize(("make", "at_once"), COLOURS)
def test_a_harm_to_the_connection_crosses_and_repeats_nothing(
    server: EmbeddedServer, make: Maker, harm: str, *, at_once: bool
) -> None:
    check(Survey(make, server.url, harm, at_once), most=WORKERS)


@pytest.mark.parametrize("make", OURS)
def test_a_cut_unix_socket_crosses_and_repeats_nothing(server: EmbeddedServer, make: Maker) -> None:
    check(Survey(make, server.url, "fin", unix=True), most=WORKERS)


@pytest.mark.long
@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize(("make", "at_once"), COLOURS)
def test_no_byte_at_which_the_connection_is_harmed_crosses_or_repeats_anything(
    server: EmbeddedServer, make: Maker, harm: str, *, at_once: bool
) -> None:
    check(Survey(make, server.url, harm, at_once))
