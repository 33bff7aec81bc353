"""Columns and HSETs in bulk: the very bytes, and the very errors, of doing it value by value."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rawredis_llm import Numeric, Tag, Text
from rawredis_llm.protocol.resp import PORTION, encode, encode_many
from rawredis_llm.search import bulk
from rawredis_llm.search.bulk import arguments, hset_portions, stored_column
from rawredis_llm.search.fields import Field
from rawredis_llm.search.filters import EXACT


class Level(IntEnum):
    """A number that is not exactly `int`."""

    HIGH = 7


class Label(str):
    """Text that is not exactly `str`."""

    __slots__ = ()


class Loud(Text):
    """Fields of a user's own: nothing but their `stored` knows what they store."""

    def stored(self, value: Any) -> str:
        return super().stored(value).upper()


class Prefixed(Tag):
    """See `Loud`."""

    def stored(self, value: Any) -> str:
        return "_" + super().stored(value)


class Cents(Numeric):
    """See `Loud`."""

    def stored(self, value: Any) -> str:
        return super().stored(value) + "e-2"


class Raw(Field):
    """Stores what it is given."""

    kind = "RAW"


FIELDS: dict[str, Field | None] = {
    "tag": Tag("f"),
    "tag;": Tag("f", separator=";"),
    "text": Text("f"),
    "loud": Loud("f"),
    "prefixed": Prefixed("f"),
    "cents": Cents("f"),
    "raw": Raw("f"),
    "numeric": Numeric("f"),
    "unindexed": None,
}

LETTERS = st.text(st.sampled_from("ab,; \t\0é€😀\x1c\u00a0"), max_size=6)
INTS = st.integers(-EXACT - 2, EXACT + 2) | st.integers(-9, 9)
FLOATS = st.floats() | st.sampled_from([0.1, -0.0, 1e300, 5e-324, 2.0**60])
ODD: Any = st.sampled_from(
    [
        *(True, "\ud800", b"\xff", Level.HIGH, Label("x"), Label(" y"), ["a", "b"], ["a", 1], []),
        *("", " a", "x" * 1024, "x" * 4096, "é" * 2049, "x" * 4097, "nan", 2**53 + 1, 10**400),
        *(np.float32(0.1), np.int8(3), np.True_, np.str_("s"), np.float64("inf"), ("c",)),
        *(np.datetime64(0, "s"), math.nan, math.inf, {"d"}, object(), 10**5000, bytearray(b"x")),
    ]
)
COLUMNS = st.one_of(
    *[
        st.lists(one, max_size=8) | st.lists(st.none() | one, max_size=8)
        for one in (LETTERS, st.sampled_from(["a", "bc", "é"]), INTS, FLOATS, st.binary(max_size=4))
    ],
    st.lists(st.none() | LETTERS | INTS | FLOATS | ODD, max_size=4),
)
ARRAYS: list[npt.NDArray[Any]] = [
    *(
        np.array([0, 1, 100], kind)
        for kind in ("b", "B", "h", "H", "i4", ">i8", "u8", "?", "M8[s]")
    ),
    *(np.array([0.1, -0.0, 6e4], kind) for kind in ("e", ">f4", "f4", "f8", "g", "c8")),
    np.array([1, 2**53 + 1]),
    np.array([1, -(2**53) - 1]),
    np.array(["a", "é" * 2049]),
    np.array([1, 2**64 - 1], "u8"),
    np.array([1.0, np.nan], "f4"),
    np.array([1.0, np.inf]),
    np.array(["a", "bé", "c\0d"]),
    np.array(["a", " b"]),
    np.array(["a", "\ud800"]),
    np.array([b"a", b"b\0"]),
    np.array(["a", None, "b"], object),
    np.array([1, None, 2], object),
    np.array([1, 2.5, "a"], object),
    np.array([["a", "b"], ["c", "d"]]),
    np.arange(6).reshape(3, 2),
    np.arange(10)[::-3],
    np.array([]),
    np.ma.masked_array([1, 2, 3], [False, True, False]),
    np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
]


def one_by_one(name: str, field: Field | None, values: Any) -> list[bytes | None]:
    """Return what `stored_column` must: the encoder's form of each stored value."""
    wires: list[bytes | None] = []
    for value in values:
        if value is None:
            wires.append(None)
            continue
        if field is None:
            stored = value.item() if isinstance(value, np.number) else value
        else:
            stored = field.stored(value)
        if isinstance(stored, bool) or not isinstance(stored, (str, bytes, int, float)):
            kind = type(stored).__name__
            raise TypeError(f"field {name!r} takes text, bytes or a number, not {kind}")
        try:
            if isinstance(stored, str):
                stored.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"field {name!r} is not valid Unicode: surrogates not allowed"
            ) from None
        if isinstance(stored, int):
            wires.append(b"%d" % stored)
        else:
            wires.append(encode((stored,)).split(b"\r\n", 2)[2][:-2])
    return wires


def outcome(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except Exception as error:  # noqa: BLE001 - whatever it is, it must be the same
        return type(error), str(error)


def same(field: Field | None, values: Any) -> None:
    expected = outcome(one_by_one, "f", field, values)
    assert outcome(stored_column, "f", field, values) == expected


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
@settings(max_examples=400)
@given(values=COLUMNS)
def test_a_column_is_stored_as_its_values_are(field: Field | None, values: list[Any]) -> None:
    same(field, values)
    same(field, tuple(values))


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize(
    "values", ARRAYS, ids=lambda array: f"{array.dtype}-{str(array.ravel()[-1:])[:24]}"
)
def test_an_array_is_stored_as_its_values_are(
    field: Field | None, values: npt.NDArray[Any]
) -> None:
    same(field, values)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tag", ["a", "bc", None, "é", "a"]),
        ("text", ["a\0b", "", None]),
        ("numeric", [1, None, -EXACT]),
        ("numeric", np.array([0.5, 1e300])),
        ("numeric", np.array([1, 2], "u1")),
        ("unindexed", ["a", None]),
        ("unindexed", [b"a\xff", None]),
        ("unindexed", [math.nan, math.inf]),
        ("unindexed", [10**30]),
    ],
)
def test_usual_columns_are_not_looked_at_value_by_value(
    name: str, values: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = one_by_one("f", FIELDS[name], values)
    monkeypatch.delattr(bulk, "_wire")
    assert stored_column("f", FIELDS[name], values) == expected


@pytest.mark.parametrize("values", [["abc", "abcde"], [b"abcde"], [Label("abcde")]])
def test_a_value_larger_than_redis_takes_is_refused(
    values: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "MAX_ARGUMENT", 4)
    assert stored_column("f", None, [value[:4] for value in values]) is not None
    with pytest.raises(ValueError, match="field 'f' has 5 bytes, Redis takes 4"):
        stored_column("f", None, values)


def test_a_column_is_a_list_of_its_own() -> None:
    values = [b"a", b"b"]
    column = stored_column("f", None, values)
    values.clear()
    assert column == [b"a", b"b"]


BYTES = st.binary(max_size=12) | st.sampled_from([b"\r\n", b"x" * 63, b"x" * 1023, b"x" * 1024])


@st.composite
def tables(draw: st.DrawFn) -> tuple[Any, ...]:
    total = draw(st.integers(0, 7))
    keys = draw(st.lists(BYTES, min_size=total, max_size=total))
    columns = []
    for name in draw(st.lists(st.binary(min_size=1, max_size=12), max_size=3)):
        value = draw(st.sampled_from([BYTES, st.none() | BYTES, st.none(), st.just(b"1999")]))
        columns.append((name, draw(st.lists(value, min_size=total, max_size=total))))
    size = draw(st.sampled_from([1, 4, 32, 3072]))
    blobs = np.frombuffer(draw(st.randoms()).randbytes(total * size), np.uint8)
    return keys, draw(BYTES), blobs.reshape(total, size), columns


def hsets(keys: Any, vector_name: bytes, blobs: Any, columns: Any) -> list[tuple[Any, ...]]:
    requests = []
    for i, key in enumerate(keys):
        pairs = [(name, values[i]) for name, values in columns if values[i] is not None]
        fields = [part for pair in pairs for part in pair]
        requests.append(("HSET", key, *fields, vector_name, blobs[i].tobytes()))
    return requests


def joined(portions: list[tuple[bytes, int]]) -> tuple[bytes, int]:
    return b"".join(data for data, _ in portions), sum(count for _, count in portions)


@given(tables(), st.sampled_from([1, 200, 5000, PORTION]))
def test_portions_hold_what_the_encoder_writes(table: tuple[Any, ...], portion: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "PORTION", portion)
        portions = hset_portions(*table)
    requests = hsets(*table)
    assert joined(portions) == joined(encode_many(requests))
    row = 0
    for data, count in portions:
        assert count
        assert data == b"".join(encode(request) for request in requests[row : row + count])
        row += count


@given(tables(), BYTES, BYTES, st.sampled_from([1, 200, PORTION]))
def test_what_is_before_and_after_the_rows_is_not_counted(
    table: tuple[Any, ...], before: bytes, after: bytes, portion: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "PORTION", portion)
        bare = hset_portions(*table)
        around: tuple[Any, ...] = (*table, before, after)
        portions = hset_portions(*around)
    assert [count for _, count in portions] == [count for _, count in bare]
    whole, total = joined(bare)
    if not total:  # no row, so nothing that the two could stand around
        assert portions == []
        return
    assert joined(portions) == (before + whole + after, total)
    inner = [data for data, _ in portions]
    inner[0] = inner[0][len(before) :]
    inner[-1] = inner[-1][: len(inner[-1]) - len(after)]
    assert inner == [data for data, _ in bare]


@given(st.lists(BYTES, min_size=1))
def test_arguments_are_as_they_stand_in_a_request(texts: list[bytes]) -> None:
    head = b"*%d\r\n$3\r\nDEL\r\n" % (1 + len(texts))
    assert head + arguments(texts) == encode(("DEL", *texts))
    half = len(texts) // 2
    if half:  # so that a part of a request can be made by itself
        assert arguments(texts[:half]) + arguments(texts[half:]) == arguments(texts)


@pytest.mark.parametrize(
    ("dim", "widths"),
    [
        (1, [4] * 40_000),
        (1, [4, 70_000] * 300),
        (1, [4] * 599 + [3 << 20]),
        (768, [4] * 600),
        (768, [100, 800] * 300),
        (300_000, [4, 4, 4]),
    ],
)
def test_portions_are_of_about_a_mebibyte(dim: int, widths: list[int]) -> None:
    total = len(widths)
    blobs = np.zeros((total, dim * 4), np.uint8)
    texts = {width: bytes(width) for width in widths}
    column = [texts[width] for width in widths]
    sizes = [len(data) for data, _ in hset_portions([b"k"] * total, b"v", blobs, [(b"f", column)])]
    assert max(sizes) < PORTION * 1.5 + dim * 4 + max(widths)
    assert min(sizes[:-1], default=PORTION) > PORTION * 0.5


@pytest.mark.parametrize(("keys", "column"), [(2, 3), (3, 2), (3, 4), (3, 0)])
def test_lengths_that_differ_are_refused(keys: int, column: int) -> None:
    with pytest.raises(ValueError, match="keys and columns must have 3 values"):
        hset_portions([b"k"] * keys, b"v", np.zeros((3, 4), np.uint8), [(b"f", [b"1"] * column)])
