"""Vectors are stored exactly, or refused before a byte is sent; what is stored harms nobody."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counting import cost
from documents import both_kinds, made, make, vectors
from rawredis_llm import Client, Vector
from rawredis_llm.search.vectors import as_matrix, as_vector, from_blob, to_blob

if TYPE_CHECKING:
    from conftest import Redis

DIM = 4
LIVE = ["float32", "float64", "float16", "bfloat16"]
WIRE = {"float32": "<f4", "float64": "<f8", "float16": "<f2", "int8": "i1", "uint8": "u1"}

# -- exact ---------------------------------------------------------------------------------------


def bfloat16(number: float) -> bytes:
    """Return the two bytes of the bfloat16 nearest to a float32, half-way to even, by fractions."""
    [bits] = struct.unpack("<I", struct.pack("<f", number))
    below = bits >> 16  # towards zero
    exact, low = Fraction(number), Fraction(struct.unpack("<f", struct.pack("<I", below << 16))[0])
    if exact != low:
        [high] = struct.unpack("<f", struct.pack("<I", (below + 1) << 16))
        near, far = abs(exact - low), abs(Fraction(high) - exact)
        below += far < near or (far == near and below & 1)
    return struct.pack("<H", below)


def wire(row: Any, dtype: str) -> bytes:
    """Return what Redis must be sent of numbers, made one by one."""
    if dtype == "bfloat16":
        return b"".join(bfloat16(float(np.float32(x))) for x in row)
    return b"".join(np.array([x], WIRE[dtype]).tobytes() for x in row)


NUMBERS = np.array([[1, 2, 3, 100], [7, 0, 5, 1], [9, 9, 1, 2]])
SHAPES: dict[str, Callable[[npt.NDArray[Any]], Any]] = {
    "lists": lambda n: n.tolist(),
    "tuples": lambda n: tuple(map(tuple, n.tolist())),
    "rows": lambda n: [*n.astype("f4")],
    "floats": lambda n: n.astype(float).tolist(),
    "float64": lambda n: n.astype("f8"),
    "float16": lambda n: n.astype("f2"),
    "longdouble": lambda n: n.astype("g"),
    "big-endian": lambda n: n.astype(">f4"),
    "big-endian int": lambda n: n.astype(">i2"),
    "uint64": lambda n: n.astype("u8"),
    "fortran": lambda n: np.asfortranarray(n, "f4"),
    "every second": lambda n: np.repeat(n.astype("f4"), 2, axis=1)[:, ::2],
    "backwards": lambda n: n.astype("f4")[::-1, ::-1][::-1, ::-1],
    "transposed": lambda n: np.ascontiguousarray(n.astype("f4").T).T,
    "broadcast rows": lambda n: np.stack([n, n])[0],
    "memoryview": lambda n: memoryview(n.astype("f4")),  # type: ignore[arg-type]
    "list of memoryviews": lambda n: [memoryview(row) for row in n.astype("f4")],
    "read-only": lambda n: np.frombuffer(n.astype("f4").tobytes(), "f4").reshape(n.shape),
    "unaligned": lambda n: np.frombuffer(b"x" + n.astype("f4").tobytes(), "f4", offset=1).reshape(
        n.shape
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", LIVE)
def test_what_is_stored_is_what_was_given(client: Client, dtype: str, shape: str) -> None:
    index = make(client, "hash", fields=[Vector("vec", DIM, dtype=dtype)])
    index.load(range(3), SHAPES[shape](NUMBERS))
    assert [client.call("HGET", f"docs:{i}", "vec") for i in range(3)] == [
        wire(row, dtype) for row in NUMBERS
    ]
    assert (np.array([row.vector for row in index.get(range(3))]) == NUMBERS).all()
    documents = [
        {"id": i, "vec": row} for i, row in enumerate(np.asarray(SHAPES[shape](NUMBERS))[:1])
    ]
    assert index.load_documents(documents) == 1
    assert client.call("HGET", "docs:0", "vec") == wire(NUMBERS[0], dtype)


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "longdouble"])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_whole_numbers_are_converted_exactly(dtype: str, shape: str) -> None:
    assert as_matrix(SHAPES[shape](NUMBERS), DIM, dtype=dtype).tobytes() == b"".join(
        wire(row, dtype) for row in NUMBERS
    )
    assert to_blob(SHAPES["floats"](NUMBERS)[0], dtype) == wire(NUMBERS[0], dtype)


BIT_PATTERNS = st.integers(0, 2**32 - 1).map(lambda n: struct.unpack("<f", struct.pack("<I", n))[0])
TIES = st.integers(0, 0x7F7E).map(
    lambda n: struct.unpack("<f", struct.pack("<I", n << 16 | 0x8000))[0]
)


@given(st.lists(BIT_PATTERNS | TIES, min_size=1, max_size=8))
def test_bfloat16_is_the_nearest_and_half_way_the_even(numbers: list[float]) -> None:
    array = np.array(numbers, "f4")
    large = [not math.isfinite(x) or abs(x) >= 3.3961775292304601e38 for x in array.tolist()]
    if any(large):  # the largest bfloat16 and half a step: what rounds to infinity
        with pytest.raises(ValueError, match="not finite"):
            to_blob(array, "bfloat16")
    else:
        blob = to_blob(array, "bfloat16")
        assert blob == wire(array, "bfloat16")
        assert to_blob(from_blob(blob, "bfloat16"), "bfloat16") == blob


def test_bfloat16_of_a_double_is_rounded_once() -> None:
    number = 1 + 2.0**-8 + 2.0**-40  # above half-way from 1 to the next bfloat16
    assert from_blob(to_blob([number], "bfloat16"), "bfloat16")[0] == 1 + 2.0**-7


@given(
    st.sampled_from(["float32", "float64", "float16"]),
    st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=5),
)
def test_floats_are_converted_as_numpy_does(dtype: str, numbers: list[float]) -> None:
    assert to_blob(numbers, dtype) == wire(numbers, dtype)
    assert to_blob(np.array(numbers, ">f8"), dtype) == wire(numbers, dtype)


@given(
    st.sampled_from(["int8", "uint8"]),
    st.lists(
        st.integers(-130, 260) | st.floats(-130, 260) | st.sampled_from([127.0, 255.0, -128.0]),
        min_size=1,
    ),
)
def test_whole_numbers_fit_or_are_refused(dtype: str, numbers: list[float]) -> None:
    low, high = (-128, 127) if dtype == "int8" else (0, 255)
    if all(low <= x <= high and x == int(x) for x in numbers):
        assert to_blob(numbers, dtype) == b"".join(
            struct.pack("b" if dtype == "int8" else "B", int(x)) for x in numbers
        )
    else:
        with pytest.raises(ValueError, match=f"whole numbers from {low} to {high}"):
            to_blob(numbers, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_json_documents_hold_the_numbers_of_the_type(client: Client, dtype: str) -> None:
    index = make(client, "json", fields=[Vector("vec", DIM, dtype=dtype)])
    exact = np.array([[0.5, -3.0, 2.0**-10, 96.0]])
    # A double's last digits are RedisJSON's own affair: what is between is compared as float32.
    given_ = np.concatenate([exact, vectors(50, DIM).astype("f8")])
    index.load(range(51), given_)
    rows = np.array([row.vector for row in index.get(range(51))])
    expected = np.array([from_blob(wire(row, dtype), dtype) for row in given_])
    if dtype == "float64":
        assert rows == pytest.approx(expected, rel=1e-15, abs=0)
        rows, expected = rows[:1], expected[:1]
    assert rows.tobytes() == expected.tobytes()


# -- refused -------------------------------------------------------------------------------------

ONES = [1.0] * DIM
REFUSED: dict[str, Any] = {
    "zero": [0.0] * DIM,
    "minus zero": [-0.0] * DIM,
    "nan": [1.0, math.nan, 1.0, 1.0],
    "inf": [1.0, math.inf, 1.0, 1.0],
    "-inf": [1.0, -math.inf, 1.0, 1.0],
    "overflows": [1e308 * 9, 1.0, 1.0, 1.0],
    "tiny": [5e-324] * DIM,
    "longdouble": np.array([np.longdouble("1e4000")] * DIM),
    "short": ONES[1:],
    "long": [*ONES, 1.0],
    "empty": [],
    "matrix": [ONES, ONES],
    "object": np.array(ONES, object),
    "none": [1.0, None, 1.0, 1.0],
    "bool": np.ones(DIM, bool),
    "bools": [True] * DIM,
    "complex": [1j] * DIM,
    "strings": ["1"] * DIM,
    "text": "1234",
    "bytes": b"\x00\x00\x80?" * DIM,
    "bytearray": bytearray(b"\x00\x00\x80?" * DIM),
    "memoryview": memoryview(b"\x00\x00\x80?" * DIM),
    "dates": np.ones(DIM, "M8[s]"),
    "spans": np.ones(DIM, "m8[s]"),
    "dict": dict.fromkeys(range(DIM), 1.0),
    "set": {1.0, 2.0, 3.0, 4.0},
    "number": 5.0,
    "iterator": iter(ONES),
    "huge whole number": [10**400] * DIM,
}


@both_kinds
@pytest.mark.parametrize("dtype", LIVE)
def test_what_is_refused_costs_the_server_nothing(redis: Redis, on: str, dtype: str) -> None:
    index = made(redis, on, fields=[Vector("vec", DIM, dtype=dtype)])
    redis.do(index.load(["good"], [ONES]))

    def all_of_it() -> list[str]:
        accepted: list[str] = []
        for name, bad in REFUSED.items():
            uses: dict[str, Callable[[Any], Any]] = {
                "load": lambda bad: index.load(["a", "b"], [ONES, bad]),
                "load one": lambda bad: index.load(["a"], [bad]),
                "load_documents": lambda bad: index.load_documents([{"id": "a", "vec": bad}]),
                "update": lambda bad: index.update(["good"], vectors=[bad]),
                "search": index.search,
            }
            for use, call in uses.items():
                if use == "load" and name.startswith("bool"):
                    continue  # beside numbers, numpy takes True for 1
                try:
                    redis.do(call(bad))
                except (ValueError, TypeError):
                    continue
                accepted.append(f"{use} {name}")
        return accepted

    accepted: list[str] = []

    def counted() -> Any:
        accepted.extend(all_of_it())
        return redis.client.call("PING")

    spent = cost(redis, counted)
    assert accepted == []
    assert spent.commands == {"PING": 1}


def test_what_overflows_a_small_type_is_refused() -> None:
    for dtype, number in (("float32", 3.5e38), ("float16", 65520.0), ("bfloat16", 3.4e38)):
        for metric in ("cosine", "l2", "ip"):
            with pytest.raises(ValueError, match="not finite"):
                as_vector([number, 1.0], dtype=dtype, metric=metric)
            with pytest.raises(ValueError, match="not finite"):
                as_matrix([[1.0, 1.0], [number, 1.0]], dtype=dtype, metric=metric)


@given(
    st.sampled_from([*LIVE, "int8", "uint8"]), st.sampled_from(["cosine", "l2", "ip"]), st.data()
)
def test_one_vector_is_refused_as_one_of_many_is(
    dtype: str, metric: str, data: st.DataObject
) -> None:
    one = st.floats(width=32) | st.sampled_from([0.0, 1.0, 3.0, 1e-30, 1e30, 250.0])
    row = data.draw(st.lists(one, min_size=2, max_size=2))

    def outcome(call: Callable[[], bytes]) -> Any:
        try:
            return call()
        except ValueError as error:
            return "refused" if "vector" in str(error) else error

    assert outcome(lambda: as_vector(row, dtype=dtype, metric=metric).tobytes()) == outcome(
        lambda: as_matrix([row], dtype=dtype, metric=metric).tobytes()
    )


# -- harmless ------------------------------------------------------------------------------------

SIZES: dict[str, list[float]] = {
    "float32": [1e-45, 1e-38, 1e-23, 1e-22, 1e-20, 1e-19, 1e18, 1e19, 1e20, 3e38],
    "bfloat16": [1e-38, 1e-23, 3e-23, 1e-22, 1e-20, 1e-19, 1e18, 1e19, 1e20, 3e38],
    "float64": [5e-324, 1e-200, 3e-162, 1e-161, 1e-154, 1e-60, 1e60, 1e153, 1e154, 1e155, 1e308],
    "float16": [6e-8, 1e-7, 1e-5, 1e-4, 100, 254, 256, 6e4],
}
SIGNS: list[tuple[int, ...]] = [*itertools.product([1, -1, 0], repeat=2)]


def nearest(metric: str, query: npt.NDArray[Any], stored: npt.NDArray[Any]) -> str:
    """Return the id of the vector that is nearest, by the textbook."""
    q, s = query.astype("f8"), stored.astype("f8")
    if metric == "cosine":
        s = s / np.linalg.norm(s, axis=1, keepdims=True)
    distances = ((s - q) ** 2).sum(axis=1) if metric == "l2" else 1 - s @ q
    return str(int(distances.argmin()))


def harmed(client: Client, dtype: str, metric: str, algorithm: str, on: str) -> list[str]:
    """Offer the most extreme vectors, and return what then is wrong with the search for others."""
    field = Vector("vec", DIM, dtype=dtype, metric=metric, algorithm=algorithm)
    index = make(client, on, fields=[field])
    accepted = 0
    for size, signs in itertools.product(SIZES[dtype], SIGNS):
        row = [size * sign for sign in signs * 2]
        try:
            accepted += index.load([f"odd{accepted}"], [row], raise_errors=True)
        except ValueError:
            assert client.call("EXISTS", f"docs:odd{accepted}") == 0
    others = vectors(40).astype(dtype if dtype in ("float16", "float64") else "f4")
    index.load(range(40), others)
    stored = np.array([row.vector for row in index.get(range(40))])
    found: list[str] = []
    for query in stored:
        rows = index.search(query, accepted + 40, **_wide(algorithm)).rows
        if any(math.isnan(row.distance) for row in rows):
            found.append("a distance is NaN")
        best = next((row.id for row in rows if not row.id.startswith("odd")), "none")
        if best != nearest(metric, query, stored):
            found.append(f"{best} is not the nearest")
    assert accepted
    return found


def _wide(algorithm: str) -> dict[str, Any]:
    """Let a graph be searched whole: what it misses by its nature is not what is asked here."""
    return {"ef_runtime": 2000} if algorithm == "hnsw" else {}


@pytest.mark.parametrize("algorithm", ["flat", "hnsw"])
@pytest.mark.parametrize(
    ("dtype", "metric"),
    [(dtype, metric) for dtype in LIVE for metric in ("cosine", "l2", "ip")],
)
def test_no_vector_that_gets_in_harms_the_search_for_others(
    client: Client, algorithm: str, dtype: str, metric: str
) -> None:
    assert harmed(client, dtype, metric, algorithm, "hash") == []


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_no_json_vector_that_gets_in_harms_the_search_for_others(
    client: Client, metric: str
) -> None:
    assert harmed(client, "float32", metric, "flat", "json") == []


@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        "float16",
        "float64",
        "bfloat16",
    ],
)
def test_a_direction_is_found_whatever_its_length(client: Client, dtype: str) -> None:
    index = make(client, "hash", fields=[Vector("vec", DIM, dtype=dtype)])
    directions = np.array(SIGNS[:2] + SIGNS[3:5])
    names = []
    for size, (n, signs) in itertools.product(SIZES[dtype], enumerate(directions)):
        try:
            index.load([f"{n} {size}"], [np.tile(signs, 2) * size])
        except ValueError:
            continue
        names.append(f"{n} {size}")
    assert len(names) >= 8
    for n, signs in enumerate(directions):
        rows = index.search(np.tile(signs, 2), len(names)).rows
        near = {row.id for row in rows if abs(row.distance) < 0.01}
        assert near == {name for name in names if name.startswith(f"{n} ")}


@pytest.mark.parametrize(
    ("given_", "error"),
    [
        ([[1.0, "x"]], TypeError),
        ([[1.0, None]], TypeError),
        ([[1.0, 1j]], TypeError),
        ([[1.0], [1.0, 2.0]], ValueError),
        ([[1.0, 2.0], [1.0]], ValueError),
        ([[1.0, 1e300]], ValueError),
        ([[1.0, math.nan]], ValueError),
        ([[1.0, 2.0], [0.0, 0.0]], ValueError),
        ([[1.0, 2.0], "ab"], (TypeError, ValueError)),
        ([[]], ValueError),
    ],
    ids=str,
)
def test_a_list_is_refused_for_what_comes_after_its_first_float(given_: Any, error: Any) -> None:
    with pytest.raises(error):
        as_matrix(given_)
    if len(given_) == 1:
        with pytest.raises(error):
            as_vector(given_[0])


@given(st.lists(st.floats(-1e6, 1e6, width=64), min_size=1, max_size=9), st.integers(1, 4))
def test_lists_of_floats_are_what_numpy_makes_of_them(numbers: list[float], rows: int) -> None:
    numbers[0] = numbers[0] or 1.0
    expected = np.array([numbers] * rows, "<f4")
    if (np.einsum("ij,ij->i", expected, expected) < 1e-30).any():
        return  # refused for its length
    assert as_matrix([numbers] * rows).tobytes() == expected.tobytes()
    assert as_vector(numbers).tobytes() == expected[0].tobytes()
