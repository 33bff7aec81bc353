r"""Replies: a table of (bytes, value), each read whole, in two pieces, and byte by byte.

What is at stake is framing. An attribute (`|`) that slips through, or a payload that is taken for
one, would shift every later reply to the wrong caller, so random streams are cut at random places.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rawredis_llm.errors import MovedError, ProtocolError, ReplyError, WrongTypeError
from rawredis_llm.protocol.resp import NOT_ENOUGH, Decoder, Push

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
            assert len(replies) < 1000, "replies out of nothing"
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


def test_bytes_that_hold_an_attribute_are_not_even_read() -> None:
    decoder = Decoder()
    with pytest.raises(ProtocolError):
        decoder.feed(b"+OK\r\n" + ATTRIBUTE)
    assert decoder.gets() is NOT_ENOUGH


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


def test_bytes_held_for_a_walk_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "HOLD", 64)
    decoder = Decoder()
    decoder.feed(b"$1000\r\n")
    for _ in range(100):
        decoder.feed(b"ten bytes.")
        assert sum(map(len, decoder._held)) <= 64 + 10
    decoder.feed(b"\r\n")
    assert decoder.gets() == b"ten bytes." * 100


def test_none_is_a_reply_and_not_the_lack_of_one() -> None:
    decoder = Decoder()
    assert decoder.gets() is NOT_ENOUGH
    assert repr(NOT_ENOUGH) == "NOT_ENOUGH"
    decoder.feed(b"_\r\n")
    assert decoder.gets() is None
