"""Requests: a table of (arguments, bytes), what is refused, and what another parser makes of it."""

from __future__ import annotations

import array
import datetime as dt
import decimal
import enum
import math
import mmap
import sys
import tracemalloc
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hiredis
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Redis
from rawredis_llm import Batch, Command
from rawredis_llm.protocol import resp
from rawredis_llm.protocol.resp import encode, encode_alike, encode_many
from reference import read
from test_faults import Scripted, answers

SECRET = "hunter2"
GRID = np.array([[0, 1, 2], [3, 4, 5]], ">i2")  # big-endian: its bytes read as they count


class Level(enum.IntEnum):
    """An int whose text is not its number, as it is by default on Python 3.10."""

    HIGH = 7

    def __str__(self) -> str:
        return self.name


class Loud(str):
    """A str whose text is one thing and whose `str()` is another."""

    __slots__ = ()

    def __str__(self) -> str:
        return "LOUD"


class Blob(bytes):
    """A bytes of another type."""


class Mystery:
    """An object whose repr would give a secret away."""

    def __repr__(self) -> str:
        return SECRET


WIRE: list[tuple[tuple[Any, ...], bytes]] = [
    ((b"PING",), b"*1\r\n$4\r\nPING\r\n"),
    (("GET", "key"), b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n"),
    (("SET", b"\x00\r\n", ""), b"*3\r\n$3\r\nSET\r\n$3\r\n\x00\r\n\r\n$0\r\n\r\n"),
    (("Grüße", "€"), b"*2\r\n$7\r\nGr\xc3\xbc\xc3\x9fe\r\n$3\r\n\xe2\x82\xac\r\n"),
    (("\U0001f600",), b"*1\r\n$4\r\n\xf0\x9f\x98\x80\r\n"),
    ((Loud("quiet"), Blob(b"blob")), b"*2\r\n$5\r\nquiet\r\n$4\r\nblob\r\n"),
    ((0, -12, 2**70), b"*3\r\n$1\r\n0\r\n$3\r\n-12\r\n$22\r\n1180591620717411303424\r\n"),
    ((Level.HIGH,), b"*1\r\n$1\r\n7\r\n"),
    ((0.1, -2.0, 1e300), b"*3\r\n$3\r\n0.1\r\n$4\r\n-2.0\r\n$6\r\n1e+300\r\n"),
    ((math.inf, -math.inf, math.nan), b"*3\r\n$3\r\ninf\r\n$4\r\n-inf\r\n$3\r\nnan\r\n"),
    ((bytearray(b"a\x00"), bytearray()), b"*2\r\n$2\r\na\x00\r\n$0\r\n\r\n"),
    ((memoryview(b"abc"), memoryview(b"")), b"*2\r\n$3\r\nabc\r\n$0\r\n\r\n"),
    ((memoryview(b"abcdef")[1::2],), b"*1\r\n$3\r\nbdf\r\n"),
    ((memoryview(b"abc")[::-1],), b"*1\r\n$3\r\ncba\r\n"),
    ((np.int64(-5), np.uint8(255)), b"*2\r\n$2\r\n-5\r\n$3\r\n255\r\n"),
    ((np.float64(1.5), np.float64("inf")), b"*2\r\n$3\r\n1.5\r\n$3\r\ninf\r\n"),
    ((np.float32(0.1),), b"*1\r\n$19\r\n0.10000000149011612\r\n"),
    ((np.str_("x"), np.bytes_(b"y")), b"*2\r\n$1\r\nx\r\n$1\r\ny\r\n"),
    ((np.array([1.0, 2.0], "<f4"),), b"*1\r\n$8\r\n\x00\x00\x80?\x00\x00\x00@\r\n"),
    ((GRID,), b"*1\r\n$12\r\n\0\0\0\1\0\2\0\3\0\4\0\5\r\n"),
    ((np.asfortranarray(GRID),), b"*1\r\n$12\r\n\0\0\0\1\0\2\0\3\0\4\0\5\r\n"),
    ((GRID.T,), b"*1\r\n$12\r\n\0\0\0\3\0\1\0\4\0\2\0\5\r\n"),
    ((GRID[:, ::2], GRID[0, ::-1]), b"*2\r\n$8\r\n\0\0\0\2\0\3\0\5\r\n$6\r\n\0\2\0\1\0\0\r\n"),
    ((GRID[1:1], np.array(7, ">i2")), b"*2\r\n$0\r\n\r\n$2\r\n\0\7\r\n"),
    (
        (b"x" * 1023, b"x" * 1024),
        b"*2\r\n$1023\r\n%b\r\n$1024\r\n%b\r\n" % (b"x" * 1023, b"x" * 1024),
    ),
    (("MGET",) + ("k",) * 31, b"*32\r\n$4\r\nMGET\r\n" + b"$1\r\nk\r\n" * 31),
    (("MGET",) + ("k",) * 32, b"*33\r\n$4\r\nMGET\r\n" + b"$1\r\nk\r\n" * 32),
    (("DEL", *range(10, 60)), b"*51\r\n$3\r\nDEL\r\n" + b"$2\r\n%d\r\n" * 50 % (*range(10, 60),)),
]


@pytest.mark.parametrize(("args", "wire"), WIRE, ids=lambda value: repr(value)[:40])
def test_arguments_have_exactly_one_form(args: tuple[Any, ...], wire: bytes) -> None:
    assert encode(args) == wire
    assert encode(list(args)) == wire


REFUSED: list[tuple[Any, type[Exception]]] = [
    (True, TypeError),
    (None, TypeError),
    ([SECRET], TypeError),
    ({SECRET: 1}, TypeError),
    ({SECRET}, TypeError),
    (Mystery(), TypeError),
    (f"hun\udc80{SECRET}", ValueError),
    (Loud(f"\ud800{SECRET}"), ValueError),
    (np.bool_(1), TypeError),
    (1234.5 + 1j, TypeError),
    (np.complex128(1234.5), TypeError),
    (np.datetime64("1234-05-06"), TypeError),
    (np.datetime64(1234, "ns"), TypeError),
    (np.array(["1234-05-06"], "M8[D]"), TypeError),
    (np.array([SECRET], object), TypeError),
    (np.array([(1, SECRET)], [("n", int), ("o", object)]), TypeError),
    ((SECRET,), TypeError),
    (frozenset(), TypeError),
    (range(1234), TypeError),
    (iter(SECRET), TypeError),
    (len, TypeError),
    (int, TypeError),
    (..., TypeError),
    (Exception(SECRET), TypeError),
    (Path(SECRET), TypeError),
    (uuid.UUID(int=1234), TypeError),
    (decimal.Decimal("1234.5"), TypeError),
    (dt.timedelta(1234), TypeError),
    (enum.Enum("Verb", "SET").SET, TypeError),  # type: ignore[attr-defined]
    (np.longdouble("1234.5"), TypeError),
    (np.timedelta64(1234, "s"), TypeError),
    (np.void(SECRET.encode()), TypeError),
    (np.dtype("i4"), TypeError),
    (10**5000, ValueError),
]


@pytest.mark.parametrize("before", [1, 32, 40])
@pytest.mark.parametrize(("value", "kind"), REFUSED, ids=lambda value: type(value).__name__)
def test_a_refusal_names_position_and_type_and_never_the_value(
    value: Any, kind: type[Exception], before: int
) -> None:
    with pytest.raises(kind) as caught:
        encode(("SET",) * before + (value, "after"))
    text = str(caught.value)
    assert type(caught.value) is kind
    assert text.startswith(f"argument {before} ({type(value).__name__})")
    assert SECRET not in text
    assert "1234" not in text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__  # the original of a UnicodeError holds all of the text


def test_the_refusal_without_numpy_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "numpy")
    with pytest.raises(TypeError, match=r"^argument 1 \(Mystery\)"):
        encode(("SET", Mystery()))


@pytest.mark.parametrize("args", [(), []])
def test_a_command_needs_a_name(args: Any) -> None:
    with pytest.raises(ValueError, match="at least its name"):
        encode(args)


@pytest.mark.parametrize("before", [1, 40])
def test_what_the_server_would_refuse_only_once_sent(
    before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resp, "MAX_ARGUMENT", 2000)
    command = ("SET",) * before
    assert encode((*command, b"x" * 2000)).endswith(b"$2000\r\n" + b"x" * 2000 + b"\r\n")
    assert len(encode((b"x" * 2000,) * 3)) > 6000  # the limit is on each, not on all
    for long in (b"x" * 2001, "é" * 1001, np.zeros(1001, "<f2")):
        with pytest.raises(ValueError, match=rf"^argument {before} \(.* has 200[12] bytes, Redis"):
            encode((*command, long))


ARGUMENTS = st.one_of(
    st.binary(), st.text(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)
)


def as_bytes(arg: Any) -> bytes:
    """Return what the server is to receive for a plain argument."""
    if isinstance(arg, bytes):
        return arg
    return arg.encode() if isinstance(arg, str) else repr(arg).encode()


@settings(deadline=None)
@given(st.lists(ARGUMENTS, min_size=1, max_size=40))
def test_another_parser_reads_what_was_encoded(args: list[Any]) -> None:
    reader = hiredis.Reader()
    reader.feed(encode(args))
    assert reader.gets() == [as_bytes(arg) for arg in args]
    assert not reader.has_data()


@pytest.mark.parametrize(("command", "counts"), [(("SET", b"x" * 2000), [3, 3, 1]), (("A",), [7])])
def test_many_requests_leave_in_portions_of_whole_requests(
    command: tuple[Any, ...], counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resp, "PORTION", 5000)
    portions = encode_many(iter([command] * 7))
    assert portions == [(encode(command) * count, count) for count in counts]


def test_many_small_requests_leave_in_portions_too() -> None:
    portions = encode_many([("INCR", "n")] * 100_000)
    assert len(portions) > 1
    assert sum(count for _, count in portions) == 100_000
    assert all(data == encode(("INCR", "n")) * count for data, count in portions)


def test_many_requests_are_encoded_all_or_none() -> None:
    assert encode_many([]) == []
    with pytest.raises(TypeError, match=r"^command 1: argument 1 \(NoneType\)"):
        encode_many([("GET", "k"), ("GET", None)])
    with pytest.raises(ValueError, match="at least its name"):
        encode_many([("GET", "k"), ()])


BUFFERS = st.binary(max_size=40).flatmap(
    lambda raw: st.sampled_from(
        [
            (bytearray(raw), raw),
            (memoryview(raw), raw),
            (memoryview(raw)[::-2], raw[::-2]),
            (array.array("B", raw), raw),
            (np.frombuffer(raw, "u1"), raw),
            (np.frombuffer(raw, "u1")[1::3], raw[1::3]),
            (np.frombuffer(raw[: len(raw) // 4 * 4], "<f4"), raw[: len(raw) // 4 * 4]),
            (Blob(raw), raw),
            (np.bytes_(raw.rstrip(b"\0")), raw.rstrip(b"\0")),
        ]
    )
)
NUMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(lambda n: (np.int64(n), b"%d" % n)),
    st.integers(0, 255).map(lambda n: (np.uint8(n), b"%d" % n)),
    st.floats(allow_nan=False).map(lambda n: (np.float64(n), repr(n).encode())),
    st.floats(width=32, allow_nan=False).map(lambda n: (np.float32(n), repr(n).encode())),
    st.just((Level.HIGH, b"7")),
)
PAIRS = st.one_of(ARGUMENTS.map(lambda arg: (arg, as_bytes(arg))), BUFFERS, NUMBERS)
COMMANDS = st.lists(st.lists(PAIRS, min_size=1, max_size=6), min_size=1, max_size=12)


@settings(deadline=None)
@given(COMMANDS)
def test_every_kind_of_argument_comes_back_as_its_bytes(commands: Any) -> None:
    portions = encode_many([[arg for arg, _ in command] for command in commands])
    reading = read(b"".join(data for data, _ in portions))
    assert not reading.notes
    assert [frame.value for frame in reading.frames] == [[b for _, b in c] for c in commands]
    assert reading.frames[-1].end == sum(len(data) for data, _ in portions)
    assert sum(count for _, count in portions) == len(commands)


@settings(deadline=None)
@given(COMMANDS, st.sampled_from(REFUSED), st.data())
def test_one_bad_argument_anywhere_refuses_all(
    commands: Any, refused: tuple[Any, type[Exception]], data: st.DataObject
) -> None:
    value, kind = refused
    plain = [[arg for arg, _ in command] for command in commands]
    number = data.draw(st.integers(0, len(plain) - 1))
    command = plain[number]
    place = data.draw(st.integers(0, len(command)))
    command.insert(place, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resp, "_MANY", 1)  # so that portions before it are ready
        with pytest.raises(kind) as caught:
            encode_many(plain)
    named = f"command {number}: argument {place} ({type(value).__name__})"
    assert str(caught.value).startswith(named)


@pytest.mark.parametrize(
    "bad", ["\ud800", None, [1], np.array([None])], ids=lambda v: type(v).__name__
)
def test_a_pipeline_with_a_bad_argument_sends_not_a_byte(redis: Redis, bad: Any) -> None:
    server = Scripted(answers(b"+first\r\n", b"+second\r\n"))
    client = redis.connect(url=server.url)
    large = [("SET", "k", b"x" * 2**20)] * 3  # more than one portion
    wrong = ("SET", "k", bad)
    uses: list[Callable[[], Any]] = [
        lambda: client.call(*wrong),
        lambda: client.pipeline([*large, wrong, ("PING",)]),
        lambda: client.transaction([*large, wrong, ("PING",)]),
        lambda: client.gather([Command(wrong)]),
        lambda: client.gather([Batch([*map(Command, large), Command(wrong)])]),
    ]
    try:
        assert redis.do(client.call("PING")) == b"first"
        for use in uses:
            with pytest.raises((TypeError, ValueError), match=r"argument 2 \("):
                redis.do(use())
        # Any byte of the refused would have had this answer, and a surplus one ends a connection.
        assert redis.do(client.call("PING")) == b"second"
        assert server.accepted == 1
    finally:
        server.close()


def test_more_than_the_limit_is_refused_without_a_copy() -> None:
    size = 2**29 + 1
    tracemalloc.start()
    try:
        with mmap.mmap(-1, size) as mapped:  # pages that nobody touches
            for huge in (mapped, np.zeros(size, "u1")):
                tracemalloc.reset_peak()
                start = tracemalloc.get_traced_memory()[0]
                with pytest.raises(ValueError, match=rf"^argument 1 \(.* has {size} bytes"):
                    encode(("SET", huge))
                assert tracemalloc.get_traced_memory()[1] - start < 2**20
    finally:
        tracemalloc.stop()


def test_more_than_the_limit_in_strides_is_refused_without_a_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resp, "MAX_ARGUMENT", 2000)
    huge = np.zeros(2**24, "u1")[::2]
    tracemalloc.start()
    try:
        start = tracemalloc.get_traced_memory()[0]
        with pytest.raises(ValueError, match="has 8388608 bytes"):
            encode(("SET", huge))
        assert tracemalloc.get_traced_memory()[1] - start < 2**20
    finally:
        tracemalloc.stop()


SHORT = st.one_of(st.text(max_size=8), st.binary(max_size=8))
LONG = st.sampled_from([b"x" * 1023, "x" * 1023, b"x" * 1024, "\u00e9" * 512, 7, 1.5, "\ud800"])


@given(st.data(), st.integers(1, 4))
def test_commands_that_are_alike_are_encoded_as_others_are(data: st.DataObject, width: int) -> None:
    row = st.tuples(*[st.one_of(SHORT, LONG)] * width)
    commands: Any = data.draw(st.lists(row, min_size=1, max_size=20))
    if data.draw(st.booleans()):
        commands.append(data.draw(st.tuples(SHORT)))
    found = encode_alike(commands)
    alike = len(set(map(len, commands))) == 1 and all(
        type(arg) in {str, bytes} and arg != "\ud800" and len(encode([arg])) < 1024 + 13
        for args in commands
        for arg in args
    )
    assert (found is not None) == alike
    if found is not None:
        assert found == encode_many(commands)


def test_alike_commands_come_in_the_same_portions() -> None:
    commands = [("SET", f"key:{i}", b"value") for i in range(5000)]
    assert encode_alike(commands) == encode_many(commands)
    assert encode_alike([()] * 3) is None
    assert encode_alike([("MGET", *["k"] * 40)] * 3) is None


@pytest.mark.parametrize(
    ("commands", "error", "says"),
    [
        ([("SELECT", "1")] * 20, ValueError, "SELECT changes the state"),
        ([("GET", "k")] * 19 + [("RESET", "k")], ValueError, "RESET changes the state"),
        ([("GET", "k")] * 20 + [("GET", None)], TypeError, r"command 20: argument 1 \(NoneType\)"),
        ([("GET", "k")] * 20 + [([], "k")], TypeError, "name is str or bytes, not list"),
        ([("GET", "k")] * 20 + [("GET", "\ud800")], ValueError, "command 20: argument 1"),
        ([("GET k", "k")] * 20, ValueError, "one word"),
    ],
)
def test_what_is_wrong_in_a_long_pipeline_is_refused(
    redis: Redis, commands: list[Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        redis.do(redis.client.pipeline(commands))
    assert redis.do(redis.client.pipeline([("ECHO", str(i)) for i in range(20)])) == [
        b"%d" % i for i in range(20)
    ]
