r"""The wire, both ways: tables of (value, bytes), each read whole, in two pieces, and byte by byte.

What is at stake is framing. An attribute (`|`) that slips through, or a payload that is taken for
one, would shift every later reply to the wrong caller, so random streams are cut at random places.
"""

from __future__ import annotations

import enum
import math
import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import hiredis
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rawredis_llm.errors import MovedError, ProtocolError, ReplyError, WrongTypeError
from rawredis_llm.protocol import resp
from rawredis_llm.protocol.resp import NOT_ENOUGH, Decoder, Push, encode

SECRET = "hunter2"
GRID = np.array([[0, 1, 2], [3, 4, 5]], ">i2")  # big-endian: its bytes read as they count


class Level(enum.IntEnum):
    """An int whose text is not its number on Python 3.10."""

    HIGH = 7


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
    (np.array(["1234-05-06"], "M8[D]"), TypeError),
    (np.array([SECRET], object), TypeError),
    (np.array([(1, SECRET)], [("n", int), ("o", object)]), TypeError),
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
    monkeypatch.setattr(resp, "MAX_ARGUMENT", 16)
    command = ("SET",) * before
    assert encode((*command, b"x" * 16)).endswith(b"$16\r\nxxxxxxxxxxxxxxxx\r\n")
    with pytest.raises(ValueError, match=f"^argument {before} has 17 bytes, Redis takes 16$"):
        encode((*command, b"x" * 17))
    with pytest.raises(ValueError, match=f"^argument {before} has 18 bytes"):
        encode((*command, np.zeros(9, "<f2")))


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


REPLIES: list[tuple[bytes, Any]] = [
    (b"+OK\r\n", b"OK"),
    (b"+\r\n", b""),
    (b"$5\r\nhello\r\n", b"hello"),
    (b"$0\r\n\r\n", b""),
    (b"$4\r\n\r\n\r\n\r\n", b"\r\n\r\n"),
    (b"$-1\r\n", None),
    (b"*-1\r\n", None),
    (b"_\r\n", None),
    (b":-7\r\n", -7),
    (b":9223372036854775807\r\n", 2**63 - 1),
    (b"#t\r\n", True),
    (b"#f\r\n", False),
    (b",1.5\r\n", 1.5),
    (b",inf\r\n", math.inf),
    (b",-inf\r\n", -math.inf),
    (b",nan\r\n", math.nan),
    (b"(1180591620717411303424\r\n", b"1180591620717411303424"),
    (b"=8\r\ntxt:text\r\n", b"text"),
    (b"*0\r\n", []),
    (b"*3\r\n:1\r\n$1\r\na\r\n*1\r\n_\r\n", [1, b"a", [None]]),
    (b"~2\r\n+a\r\n+a\r\n", [b"a", b"a"]),
    (b"%0\r\n", {}),
    (b"%2\r\n+a\r\n:1\r\n$1\r\nb\r\n*1\r\n#t\r\n", {b"a": 1, b"b": [True]}),
    (b"*1\r\n%1\r\n:1\r\n~1\r\n,0.5\r\n", [{1: [0.5]}]),
    (b"-ERR no\r\n", ReplyError("ERR no")),
    (b"-MOVED 1 host:2\r\n", MovedError("MOVED 1 host:2")),
    (b"-ERR caf\xe9\r\n", ReplyError("ERR caf\ufffd")),
    (
        b"*2\r\n-ERR no\r\n*1\r\n-WRONGTYPE x\r\n",
        [ReplyError("ERR no"), [WrongTypeError("WRONGTYPE x")]],
    ),
    # Payloads that look like attributes, or like the start of something else.
    (b"$3\r\n|1\r\r\n", b"|1\r"),
    (b"$9\r\n\r\n|1\r\n+x\r\r\n", b"\r\n|1\r\n+x\r"),
    (b"=9\r\ntxt:\n|\n|\n\r\n", b"\n|\n|\n"),
    (b"+|b\r\n", b"|b"),
    (b"-|b\r\n", ReplyError("|b")),
    (b"*2\r\n$1\r\n|\r\n$4\r\n$9\r\n\r\n", [b"|", b"$9\r\n"]),
]


def cuts(wire: bytes) -> Iterator[list[bytes]]:
    """Yield the wire whole, in two pieces at every place, and byte by byte."""
    yield [wire]
    yield from ([wire[:cut], wire[cut:]] for cut in range(1, len(wire)))
    yield [wire[i : i + 1] for i in range(len(wire))]


def decode(chunks: Iterable[bytes], replies: list[Any], *, settle: bool = True) -> list[Any]:
    """Append to `replies` what comes of the chunks, asking after each as a connection does."""
    decoder = Decoder("host:1")
    for chunk in chunks:
        decoder.feed(chunk)
        while (reply := decoder.gets()) is not NOT_ENOUGH:
            replies.append(reply)
            if settle:
                decoder.settled()
    return replies


@pytest.mark.parametrize(("wire", "value"), REPLIES, ids=lambda value: repr(value)[:40])
def test_replies_however_they_arrive(wire: bytes, value: Any) -> None:
    for chunks in cuts(wire):
        [reply] = decode(chunks, [])
        # By repr, because True == 1 == 1.0, nan != nan, and errors equal only themselves.
        assert repr(reply) == repr(value), chunks
        assert type(reply) is type(value)


def test_replies_one_after_the_other() -> None:
    stream = b"".join(wire for wire, _ in REPLIES)
    expected = [value for _, value in REPLIES]
    for chunks in cuts(stream):
        assert repr(decode(chunks, [])) == repr(expected), chunks


def test_errors_know_the_address_wherever_they_stand() -> None:
    outer, inner = decode([b"-ERR no\r\n", b"*1\r\n-ERR no\r\n"], [])
    assert (outer.address, inner[0].address) == ("host:1", "host:1")


@pytest.mark.parametrize(
    ("wire", "items"), [(b">0\r\n", []), (b">2\r\n+m\r\n$2\r\n\n|\r\n", [b"m", b"\n|"])]
)
def test_pushes_are_told_from_replies(wire: bytes, items: list[bytes]) -> None:
    for chunks in cuts(wire + b"*0\r\n"):
        push, reply = decode(chunks, [])
        assert (type(push), type(reply)) == (Push, list), chunks
        assert push == items


@pytest.mark.parametrize("wire", [b"?\r\n", b":1x\r\n", b"$?\r\n", b"*?\r\n", b"!2\r\nno\r\n"])
def test_what_is_not_known_is_a_protocol_error(wire: bytes) -> None:
    for chunks in cuts(wire):
        replies: list[Any] = []
        with pytest.raises(ProtocolError):
            decode(chunks, replies)
        assert replies == []


ATTRIBUTE = b"|1\r\n+ttl\r\n:3600\r\n"
ATTRIBUTED: list[tuple[bytes, list[Any]]] = [
    (ATTRIBUTE + b"+OK\r\n", []),
    (b"|0\r\n+OK\r\n", []),
    (b"*3\r\n:1\r\n" + ATTRIBUTE + b":2\r\n:3\r\n", []),
    (b"%1\r\n+key\r\n" + ATTRIBUTE + b"+value\r\n", []),
    (b"*1\r\n*1\r\n" + ATTRIBUTE + b"*1\r\n:1\r\n", []),
    (b">2\r\n+a\r\n" + ATTRIBUTE + b"+b\r\n", []),
    (b"+OK\r\n:1\r\n" + ATTRIBUTE + b"+OK\r\n", [b"OK", 1]),
    (b"$-1\r\n" + ATTRIBUTE + b"+OK\r\n", [None]),
    (b"$0\r\n\r\n" + ATTRIBUTE + b"+OK\r\n", [b""]),
    (b"$9\r\n\r\n|0\r\n|0\r\r\n" + ATTRIBUTE + b"+OK\r\n", [b"\r\n|0\r\n|0\r"]),
    (b"=6\r\ntxt:|\n\r\n" + ATTRIBUTE + b"+OK\r\n", [b"|\n"]),
]


@pytest.mark.parametrize("hold", [1, 7, 1 << 20])
@pytest.mark.parametrize("settle", [True, False])
@pytest.mark.parametrize(("wire", "before"), ATTRIBUTED, ids=lambda value: repr(value)[:40])
def test_an_attribute_is_never_a_reply(
    wire: bytes, before: list[Any], *, settle: bool, hold: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "HOLD", hold)
    for chunks in cuts(wire):
        replies: list[Any] = []
        with pytest.raises(ProtocolError, match="attribute"):
            decode(chunks, replies, settle=settle)
        assert replies == before[: len(replies)], chunks


PAYLOADS = st.lists(
    st.sampled_from([b"|", b"\r", b"\n", b"\r\n", b"\n|", b"|1\r\n", b"$", b"*", b"12", b"x"]),
    max_size=12,
).map(b"".join)
FRAMES = st.one_of(
    PAYLOADS.map(lambda payload: (b"$%d\r\n%b\r\n" % (len(payload), payload), payload)),
    PAYLOADS.map(lambda payload: (b"=%d\r\ntxt:%b\r\n" % (len(payload) + 4, payload), payload)),
    st.sampled_from([(b"+|\r\n", b"|"), (b"$-1\r\n", None), (b":12\r\n", 12)]),
)
STREAMS = st.lists(FRAMES, min_size=1, max_size=12)
HOLDS = st.sampled_from([1, 16, 1 << 20])


def pieces(stream: bytes, data: st.DataObject) -> list[bytes]:
    """Return the stream cut at random places."""
    places = data.draw(st.sets(st.integers(1, max(1, len(stream) - 1)), max_size=20))
    return [stream[a:b] for a, b in pairwise([0, *sorted(places), len(stream)])]


@settings(deadline=None)
@given(STREAMS, HOLDS, st.data())
def test_random_streams_decode_exactly_and_settle_at_their_frames(
    frames: list[tuple[bytes, Any]], hold: int, data: st.DataObject
) -> None:
    stream = b"".join(wire for wire, _ in frames)
    unread = fed = 0
    replies: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "HOLD", hold)
        decoder = Decoder()
        for chunk in pieces(stream, data):
            decoder.feed(chunk)
            fed += len(chunk)
            while (reply := decoder.gets()) is not NOT_ENOUGH:
                unread += len(frames[len(replies)][0])
                replies.append(reply)
                assert decoder.settled() == (unread == fed)
    assert replies == [value for _, value in frames]


@settings(deadline=None)
@given(frames=STREAMS, hold=HOLDS, settle=st.booleans(), data=st.data())
def test_an_attribute_in_a_random_stream_ends_it(
    frames: list[tuple[bytes, Any]], hold: int, data: st.DataObject, *, settle: bool
) -> None:
    place = data.draw(st.integers(0, len(frames)))
    parts = [wire for wire, _ in frames]
    stream = b"".join([*parts[:place], ATTRIBUTE, *parts[place:]])
    replies: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "HOLD", hold)
        with pytest.raises(ProtocolError, match="attribute"):
            decode(pieces(stream, data), replies, settle=settle)
    assert len(replies) <= place
    assert replies == [value for _, value in frames[: len(replies)]]


def test_settled_is_false_while_anything_is_left() -> None:
    decoder = Decoder()
    decoder.feed(b"+a\r\n+b\r\n$1")
    assert decoder.gets() == b"a"
    assert not decoder.settled()  # a whole reply is left
    assert decoder.gets() == b"b"
    assert not decoder.settled()  # a part of one is left
    assert decoder.gets() is NOT_ENOUGH
    decoder.feed(b"\r\nc\r\n")
    assert decoder.gets() == b"c"
    assert decoder.settled()


def test_none_is_a_reply_and_not_the_lack_of_one() -> None:
    decoder = Decoder()
    assert decoder.gets() is NOT_ENOUGH
    assert repr(NOT_ENOUGH) == "NOT_ENOUGH"
    decoder.feed(b"_\r\n")
    assert decoder.gets() is None
