"""What keys are made of: digests that cannot be confused, patterns that match one text."""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rawredis_llm import Client, EmbeddedServer
from rawredis_llm.keys import (
    clear_matching,
    digest,
    escape_glob,
    from_json,
    milliseconds,
    require_text,
    to_json,
)

OFFLINE = settings(deadline=None, database=None)
SERVED = settings(deadline=None, database=None, max_examples=200)
# Few letters, of those that framing is written with, so that joins often look alike.
PARTS = st.lists(st.text(alphabet="a:1", max_size=4), max_size=4)


@given(one=PARTS, other=PARTS)
@example(one=["a:b", "c"], other=["a", "b:c"])
@example(one=["a", ""], other=["a"])
@example(one=["", "a"], other=["a", ""])
@example(one=["1:a"], other=["a"])
@example(one=["a1:a"], other=["a", "a"])
@example(one=[], other=[""])
@OFFLINE
def test_different_parts_have_different_digests(one: list[str], other: list[str]) -> None:
    assert (digest(*one) == digest(*other)) == (one == other)


@given(parts=st.lists(st.text(st.characters(codec="utf-8"))))
@OFFLINE
def test_a_digest_is_the_same_everywhere(parts: list[str]) -> None:
    framed = b"".join(b"%d:%b" % (len(part.encode()), part.encode()) for part in parts)
    assert digest(*parts) == blake2b(framed, digest_size=16).hexdigest()
    assert re.fullmatch("[0-9a-f]{32}", digest(*parts))


def test_a_digest_never_changes() -> None:
    # A change here makes every stored entry unfindable.
    assert digest("exact", "llm", "") == "0887605a0ff0add55fdb35967c37b108"


def test_a_digest_of_no_unicode_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        digest("\ud800")


# -- patterns ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patterns(server: EmbeddedServer) -> Iterator[Client]:
    """Return a client for hypothesis' many examples, each of which flushes first."""
    with Client(server.url) as client:
        yield client


# What patterns are written with, and a few letters for ranges and sets to catch.
GLOB = st.text(alphabet="*?[]^-\\ab!{},\0é", min_size=1, max_size=6)


@given(text=GLOB, others=st.lists(GLOB, max_size=6))
@example(text="*", others=["a", "**", ""])
@example(text="[a-b]", others=["a", "b", "-"])
@example(text="[^a]", others=["b"])
@example(text="\\*", others=["*", "\\a", "\\"])
@example(text="a?", others=["ab", "a"])
@SERVED
def test_an_escaped_text_matches_itself_alone(
    patterns: Client, text: str, others: list[str]
) -> None:
    patterns.call("FLUSHALL")
    for key in {text, *others}:
        patterns.call("SET", key, "x")
    assert patterns.call("KEYS", escape_glob(text)) == [text.encode()]
    cursor, found = patterns.call("SCAN", 0, "MATCH", escape_glob(text), "COUNT", 1000)
    assert (cursor, found) == (b"0", [text.encode()])
    longer = {other for other in {text, *others} if other.startswith(text)}
    assert set(patterns.call("KEYS", escape_glob(text) + "*")) == {key.encode() for key in longer}


@pytest.mark.parametrize("where", ["{}", "a{}b", "{}{}", "[{}]", "\\{}"])
def test_every_character_is_escaped_or_harmless(client: Client, where: str) -> None:
    texts = [where.replace("{}", character) for character in map(chr, range(128))]
    client.call("MSET", *(part for text in texts for part in (text, "x")))
    for text in texts:
        assert client.call("KEYS", escape_glob(text)) == [text.encode()], text


def test_clear_matching_deletes_what_both_patterns_match(client: Client) -> None:
    doomed = {f"a:{i}" for i in range(3000)}
    spared = {"a:", "a:x", "a:1x", "b:1", "A:1"}
    client.call("MSET", *(part for key in doomed | spared for part in (key, "x")))
    assert client.run(clear_matching("a:*", re.compile(rb"a:[0-9]+"))) == 3000
    assert set(client.call("KEYS", "*")) == {key.encode() for key in spared}
    assert client.run(clear_matching("a:*")) == 3
    assert client.run(clear_matching("a:*")) == 0
    assert set(client.call("KEYS", "*")) == {b"b:1", b"A:1"}


# -- times, texts, JSON --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ttl", "wanted"),
    [
        (None, None),
        (1, 1000),
        (1.0, 1000),
        (0.5, 500),
        (0.0015, 2),
        (0.001, 1),
        (1e-9, 1),
        (5e-324, 1),
        (86400 * 365, 31_536_000_000),
        (10**12, 10**15),
        (np.float64(2.5), 2500),
    ],
)
def test_seconds_become_milliseconds(ttl: float | None, wanted: int | None) -> None:
    assert milliseconds("ttl", ttl) == wanted
    assert wanted is None or type(milliseconds("ttl", ttl)) is int


@pytest.mark.parametrize(
    ("ttl", "error"),
    [
        (0, ValueError),
        (0.0, ValueError),
        (-0.0, ValueError),
        (-1, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        (-math.inf, ValueError),
        (10**12 + 1, ValueError),
        (1e300, ValueError),
        (True, TypeError),
        (False, TypeError),
        ("5", TypeError),
        (b"5", TypeError),
        ([5], TypeError),
        (5j, TypeError),
        (Decimal(5), TypeError),
        (Fraction(5), TypeError),
    ],
)
def test_what_is_no_time_to_live_is_refused(ttl: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="patience") as caught:
        milliseconds("patience", ttl)
    assert type(caught.value) is error


def test_the_longest_ttl_is_one_that_redis_takes(client: Client) -> None:
    client.call("SET", "k", "v", "PX", milliseconds("ttl", 10**12))
    assert client.call("PTTL", "k") > 10**15 - 60_000


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("", ValueError),
        (" \t\n", ValueError),
        ("\u2003", ValueError),
        ("a\ud800", ValueError),
        (None, TypeError),
        (b"a", TypeError),
        (5, TypeError),
        (["a"], TypeError),
    ],
)
def test_what_is_no_text_is_refused(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="question") as caught:
        require_text("question", value)
    assert type(caught.value) is error
    if isinstance(value, str) and "\ud800" not in value:
        assert require_text("question", value, empty=True) == value


def test_text_is_returned_as_it_is() -> None:
    assert require_text("question", " a ") == " a "


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
)


@given(value=JSON)
@OFFLINE
def test_json_makes_the_round_trip(value: Any) -> None:
    text = to_json("x", value)
    assert from_json(text) == from_json(text.encode()) == json.loads(text) == value


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (math.nan, ValueError),
        (math.inf, ValueError),
        ("\ud800", ValueError),
        ({1}, TypeError),
        (b"x", TypeError),
        ({(1,): 2}, TypeError),
        (object(), TypeError),
    ],
)
def test_what_json_cannot_hold_is_refused(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="metadata") as caught:
        to_json("metadata", {"deep": [value]})
    assert type(caught.value) is error


def test_a_circle_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ValueError, match="metadata"):
        to_json("metadata", circle)


@pytest.mark.parametrize("data", [None, b"", b"\xff", b"{", "x", b'{"a":}', string.printable])
def test_damaged_json_is_none(data: bytes | str | None) -> None:
    assert from_json(data) is None
