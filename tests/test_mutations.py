"""Streams of replies that something has damaged, through the read loops of both colours.

A second reader (`reference.py`) says what each stream means and where it stops being RESP. What a
call returns must be that, to the byte; where the stream is wrong, short or too long it must raise,
and the connection must be closed. Where hiredis is laxer than the protocol, which the reference
notes, a call may also raise (a stricter reader is welcome).
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import resource
import socket
import sys
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rawredis_llm import EmbeddedServer
from rawredis_llm.aio.connection import Connection as AsyncConnection
from rawredis_llm.errors import RedisError
from rawredis_llm.protocol.address import parse_url
from rawredis_llm.protocol.resp import CHUNK, NOT_ENOUGH, Decoder, encode
from rawredis_llm.sync.connection import Connection
from reference import LOST, TWICE, Reading, read
from test_address import checked
from test_resp import REPLIES

SEED = 20
SETTINGS = checked("redis://nowhere", timeout=None)


class Case(NamedTuple):
    """What a failure shows, and what repeats it: `check(Case(...))`."""

    stream: bytes
    cuts: tuple[int, ...]  # where the pieces end in which it arrives
    widths: tuple[int, ...]  # how many commands each call has
    early: int  # how many asyncio calls are made before the first piece; the rest after it

    def pieces(self) -> Iterator[bytes]:
        start = 0
        for cut in self.cuts:
            yield self.stream[start:cut]
            start = cut


class FakeSocket:
    """A socket, and a poll of it, to which pieces have come; behind them it is closed."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.pieces = deque(pieces)
        self.closed = False

    def send(self, data: bytes) -> int:
        return len(data)

    def recv(self, _size: int) -> bytes:
        return self.pieces.popleft() if self.pieces else b""

    def settimeout(self, _seconds: float) -> None:
        pass

    def poll(self, milliseconds: float | None) -> bool:
        return bool(self.pieces) or milliseconds is None

    def close(self) -> None:
        self.closed = True


def opened(sock: Any) -> Connection:
    """Return a connection as it is after the handshake."""
    connection = Connection(SETTINGS)
    connection._sock = sock
    connection.poll = sock.poll
    connection._decoder = Decoder()
    connection._gets = connection._decoder.gets
    return connection


def expected_of_a_socket(case: Case, reading: Reading) -> tuple[list[Any] | None, int]:
    """Return what the call returns, None for an error; and how many bytes it has read then."""
    replies: list[Any] = []
    ends = list(accumulate(case.widths))
    for frame in reading.frames:
        if frame.is_push:
            continue
        replies.append(frame.value)
        if len(replies) in ends:  # what follows was sent before it was asked for
            heard = case.cuts[bisect_left(case.cuts, frame.end)]
            if len(replies) == ends[-1] or not reading.is_pushes(frame.end, heard):
                return (replies if reading.is_pushes(frame.end, heard) else None), heard
    return None, len(case.stream)


def check_sync(case: Case, reading: Reading) -> bool:
    """Return whether there was an answer."""
    sock = FakeSocket(case.pieces())
    connection = opened(sock)
    expected, heard = expected_of_a_socket(case, reading)
    found: list[Any] | None
    try:
        if case.widths == (1,):
            found = [connection.request(b"x", math.inf)]
        else:
            found = connection.exchange([(b"x", width) for width in case.widths], math.inf)
    except RedisError:
        found = None
    agree(found, expected, reading)
    if found is None:
        assert sock.closed
        assert connection.dirty
        assert not connection.opened
        return False
    assert not connection.dirty
    # The rest of the stream comes while nobody asks, and only pushes leave the connection usable.
    rest = b"".join(sock.pieces)[:CHUNK]
    sock.pieces = deque([rest] if rest else [])
    usable = connection.usable()
    clean = reading.is_pushes(heard, heard + len(rest))
    assert usable == clean or (reading.notes and not usable)
    if usable:
        sock.pieces = deque([b"+later\r\n"])
        assert connection.request(b"x", math.inf) == b"later"
    return True


class FakeLoop:
    """As much of an event loop as a connection without time limits asks for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.create_future = loop.create_future
        self.soon: list[Callable[[], None]] = []

    def time(self) -> float:
        return 0.0

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def turn(self) -> None:
        while self.soon:
            self.soon.pop()()


class FakeTransport:
    """Remembers whether it was aborted."""

    def __init__(self) -> None:
        self.aborted = False

    def write(self, data: bytes) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


def expected_of_tasks(case: Case, reading: Reading) -> tuple[list[list[Any]], bool]:
    """Return what the calls return that are answered at all, and whether the connection lives.

    All replies of one piece are handed over together, or, if anything is wrong in it, none.
    """
    frames = deque(reading.frames)
    slots = deque(case.widths[: case.early])
    settled: list[list[Any]] = []
    replies: list[Any] = []
    place = 0
    for number, cut in enumerate(case.cuts):
        if number == 1:
            slots.extend(case.widths[case.early :])
        complete: list[list[Any]] = []
        while frames and frames[0].end <= cut:
            value, place, is_push = frames.popleft()
            if is_push:
                continue
            if not slots:
                return settled, False
            replies.append(value)
            if len(replies) == slots[0]:
                complete.append(replies)
                replies = []
                slots.popleft()
        if reading.fault <= cut or (not slots and place < cut):
            return settled, False
        settled += complete
    return settled, True


def check_async(case: Case, reading: Reading, loop: Any) -> None:
    connection = AsyncConnection(SETTINGS, loop)
    transport: Any = FakeTransport()
    connection.connection_made(transport)
    calls = [connection.request([(b"x", n)], math.inf) for n in case.widths[: case.early]]
    for number, piece in enumerate(case.pieces()):
        if number == 1:
            calls += ask_more(case, connection)
        connection.data_received(piece)
    if len(case.cuts) < 2:
        calls += ask_more(case, connection)
    loop.turn()
    settled, alive = expected_of_tasks(case, reading)
    answered = [call.done() and call.exception() is None for call in calls]
    assert answered == sorted(answered, reverse=True), "answered before one that asked earlier"
    found = [call.result() for call in calls[: sum(answered)]]
    if LOST not in reading.notes:
        assert len(found) <= len(settled)
    if not reading.notes:
        assert len(found) == len(settled)
        assert connection.closed == (not alive)
    for mine, right in zip(found, settled, strict=False):
        agree(mine, right, reading)
    if not connection.closed and len(found) == len(calls):
        calls.append(connection.request([(b"x", 1)], math.inf))
        connection.data_received(b"+later\r\n")
        assert calls[-1].result() == [b"later"]
    connection.connection_lost(None)
    loop.turn()
    assert transport.aborted
    calls.append(connection.request([(b"x", 1)], math.inf))
    failures = [call.exception() for call in calls]
    assert isinstance(failures[-1], RedisError)
    assert all(failure is None or isinstance(failure, RedisError) for failure in failures)


def ask_more(case: Case, connection: AsyncConnection) -> list[asyncio.Future[list[Any]]]:
    return [connection.request([(b"x", n)], math.inf) for n in case.widths[case.early :]]


def agree(found: list[Any] | None, expected: list[Any] | None, reading: Reading) -> None:
    """Hold what a call returned (None: it raised) to what the reference says."""
    if found is None:
        assert expected is None or reading.notes
        return
    if LOST in reading.notes:
        return
    assert expected is not None, "a value came out of a stream that holds none"
    assert len(found) == len(expected)
    if TWICE not in reading.notes:
        # By repr, because True == 1 == 1.0, nan != nan, and errors equal only themselves.
        assert repr(found) == repr(expected)


PUSHES = [
    b">2\r\n$10\r\ninvalidate\r\n*1\r\n+k\r\n",
    b">3\r\n+message\r\n+channel\r\n$3\r\n\n|1\r\n",
    b">1\r\n_\r\n",
]
NESTED = [
    b"*1\r\n" * 200 + b":1\r\n",
    b"*2\r\n*0\r\n" * 90 + b"*0\r\n",
    b"%1\r\n+k\r\n" * 90 + b"_\r\n",
]
BIG = [b"$70000\r\n%b\r\n" % (b"\n|1\r\n" * 14000), b"*3000\r\n" + b"$4\r\n\r\n|1\r\n" * 3000]
ATTRIBUTES = [b"|1\r\n+ttl\r\n:3600\r\n", b"|0\r\n", b"|-1\r\n", b"|1\r\n"]
# `*1000000000` costs 2 s of CPU to free, and `>1000000000` 8 GB: see test_absurd_replies.py.
ABSURD = b"""*99999 *4294967296 *99999999999999999999 *-7 *-2 ~-1 %4294967295 %-1 >9999 >-1 >0
|4294967295 $999999999999 $9223372036854775807 $536870913 $-7 $-1 $ =3 =-1 =999
:99999999999999999999 :-
:9223372036854775808 ,1e999 ,1e-999 ,inf ( (- #x #T _x !3 + - * ?""".split()
COSTLY = re.compile(rb"([*~>])(\d{5})\d{1,5}(?=\r\n)")
BYTES = b"\r\n|$*%~>+-:_#,(=!0123459tfx\x00\xff"

Frames = list[bytes]


class Mutator:
    """Makes damaged streams, all from one seed."""

    def __init__(self, corpus: Frames) -> None:
        self.random = random.Random(SEED)
        self.corpus = corpus
        self.rare = NESTED + BIG

    def case(self) -> Case:
        rng = self.random
        widths = tuple(rng.choices((1, 2, 3), (6, 2, 1), k=rng.choice((1, 1, 1, 2, 3))))
        frames = [rng.choice(self.corpus) for _ in range(sum(widths))]
        if rng.random() < 0.004:
            frames[-1] = rng.choice(self.rare)
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            self.shuffle(frames)
        stream = bytearray(b"".join(frames))
        for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 4))):
            self.damage(stream)
        whole = COSTLY.sub(rb"\1\2", bytes(stream))
        return Case(whole, self.cuts(whole), widths, rng.randint(1, len(widths)))

    def shuffle(self, frames: Frames) -> None:
        """Change what stands where, but not the frames."""
        rng = self.random
        place = rng.randint(0, len(frames))
        choice = rng.random()
        if choice < 0.4:
            frames.insert(place, rng.choice(PUSHES))
        elif choice < 0.6:
            frames.insert(place, rng.choice(self.corpus))  # a surplus reply
        elif choice < 0.7:
            frames.insert(place, rng.choice(ATTRIBUTES))
        elif choice < 0.8:
            frames.insert(place, rng.choice(ABSURD) + b"\r\n")
        elif choice < 0.9:
            frames.reverse()
        else:
            del frames[place:]

    def damage(self, stream: bytearray) -> None:
        """Change bytes: one, or a span of them."""
        rng = self.random
        place = rng.randint(0, len(stream))
        span = slice(place, place + rng.choice((1, 1, 2, 5, 30)))
        choice = rng.randrange(8)
        if choice < 2:
            stream[place : place + 1] = bytes([rng.choice(BYTES)])
        elif choice == 2:
            stream.insert(place, rng.choice(BYTES))
        elif choice == 3:
            del stream[span]
        elif choice == 4:
            stream[place:place] = stream[span]
        elif choice == 5:
            del stream[place:]
        elif choice == 6:
            stream[place:place] = rng.choice(ATTRIBUTES + PUSHES)
        else:
            place = stream.find(b"\n", place) + 1
            stream[place:place] = rng.choice(ABSURD) + b"\r\n"

    def cuts(self, stream: bytes) -> tuple[int, ...]:
        """Return where pieces end, none of them longer than what is read at once."""
        rng, size = self.random, len(stream)
        if size <= 150 and rng.random() < 0.03:
            return tuple(range(1, size + 1))
        places = {rng.randint(1, size) for _ in range(rng.choice((0, 0, 1, 1, 2, 4))) if size}
        places.update(range(CHUNK, size, CHUNK), [size] if size else [])
        return tuple(sorted(places))


@pytest.fixture(scope="module")
def corpus(server: EmbeddedServer) -> Frames:
    """Every kind of reply, and some that a real server gave, weighted by repetition."""
    fill: list[tuple[Any, ...]] = [
        ("HSET", "doc:1", "t", "red wine", "n", 7),
        ("HSET", "doc:2", "t", "beach|\r\n|1\r\n"),
    ]
    fill += [("XADD", "x", f"{n}-1", "role", "user", "text", "hi\r\n") for n in range(1, 4)]
    create = ("FT.CREATE", "i", "PREFIX", 1, "doc:", "SCHEMA", "t", "TEXT", "n", "NUMERIC")
    ask: list[tuple[Any, ...]] = [
        ("HGETALL", "doc:1"),
        ("HGETALL", "doc:2"),
        ("XRANGE", "x", "-", "+"),
        ("FT.INFO", "i"),
    ]
    ask += [("FT.SEARCH", "i", "*"), ("FT.SEARCH", "nowhere", "*"), ("XREAD", "STREAMS", "x", 0)]
    recorded = record(server, 3, [("FLUSHALL",), *fill, create, *ask])
    recorded += record(server, 2, ask)
    short = [wire for wire in recorded if len(wire) < 1000]
    return [wire for wire, _ in REPLIES] * 3 + short * 3 + recorded


def record(server: EmbeddedServer, protocol: int, commands: list[tuple[Any, ...]]) -> Frames:
    """Return the bytes of a real server's replies."""
    replies = []
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(parse_url(server.url).path)
        for command in [("HELLO", protocol), *commands]:
            sock.sendall(encode(command))
            decoder, reply = Decoder(), b""
            while decoder.gets() is NOT_ENOUGH:
                piece = sock.recv(CHUNK)
                reply += piece
                decoder.feed(piece)
            replies.append(reply)
    return replies


def resident() -> int:
    """Return the memory that this process holds now, in MiB; where Linux says it."""
    if sys.platform != "linux":
        return 0
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() >> 20


@pytest.mark.parametrize("wire", [*REPLIES, *[(wire, None) for wire in NESTED + BIG]])
def test_the_reference_reads_what_the_table_says(wire: tuple[bytes, Any]) -> None:
    stream, value = wire
    reading = read(stream * 2)
    assert [frame.end for frame in reading.frames] == [len(stream), 2 * len(stream)]
    assert reading.fault == math.inf
    assert not reading.notes
    if value is not None:
        assert repr(reading.frames[0].value) == repr(value)


@pytest.mark.parametrize("streams", [10_000, pytest.param(10**6, marks=pytest.mark.long)])
def test_damaged_streams_give_what_they_say_or_an_error(streams: int, corpus: Frames) -> None:
    mutator = Mutator(corpus)
    answered = vague = before = 0
    with closing(asyncio.new_event_loop()) as loop:
        for number in range(streams):
            case = mutator.case()
            reading = read(case.stream)
            try:
                answer = check_sync(case, reading)
                check_async(case, reading, FakeLoop(loop))
            except Exception as error:
                raise AssertionError(f"seed {SEED}, stream {number}: {case!r}") from error
            answered += answer
            vague += answer and bool(reading.notes)
            if number == streams // 5:
                before = resident()
    assert resident() - before < 16
    # That the streams are neither all good nor all bad, and seldom past judging.
    assert 0.15 < answered / streams < 0.5
    assert vague / streams < 0.02
