"""Writing documents: by columns, by rows and from a stream, as hashes and as JSON."""

from __future__ import annotations

import asyncio
import re
import threading
import tracemalloc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counting import cost
from documents import (
    DIM,
    FIELDS,
    NOBODY,
    both_kinds,
    collected,
    contents,
    made,
    make,
    vectors,
)
from rawredis_llm import AsyncClient, Client, EmbeddedServer, Row, Tag, Vector, VectorIndex
from rawredis_llm.protocol.operation import Batch
from rawredis_llm.protocol.resp import encode_many
from rawredis_llm.search.filters import EXACT

if TYPE_CHECKING:
    from conftest import Redis


# -- ids -----------------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("batch_size", [3, 500])
def test_ids_are_made_where_none_are_given(redis: Redis, on: str, batch_size: int) -> None:
    index = made(redis, on)
    given = vectors(20)
    loaded = redis.do(index.load(None, given, {"year": range(20)}, batch_size=batch_size))
    assert loaded.failed == []
    assert len(set(loaded.ids)) == 20
    assert all(re.fullmatch("[0-9a-f]{32}", id_) for id_ in loaded.ids)
    rows = redis.do(index.get(loaded.ids))
    assert [row.fields for row in rows] == [{"year": i} for i in range(20)]
    assert (np.array([row.vector for row in rows]) == given).all()
    more = redis.do(index.load(None, given))
    assert not set(more.ids) & set(loaded.ids)
    assert (int(loaded), redis.do(index.count())) == (20, 40)
    assert redis.do(index.load(["a"], given[:1])).ids == []


@both_kinds
@pytest.mark.parametrize(
    "ids",
    [
        [7, 8, 9],
        (7, "8", 9),
        range(7, 10),
        np.arange(7, 10),
        np.array([7, 8, 9], np.uint8),
        list(np.arange(7, 10, dtype=np.int16)),
        np.array(["7", "8", "9"]),
    ],
    ids=str,
)
def test_ids_are_texts_or_whole_numbers(client: Client, on: str, ids: Any) -> None:
    index = make(client, on)
    loaded = index.load(ids, vectors(3), {"year": [1, 2, 3]})
    assert (loaded, loaded.ids) == (3, [])
    assert sorted(client.call("KEYS", "*")) == [b"docs:7", b"docs:8", b"docs:9"]
    assert [row.fields["year"] for row in index.get(ids)] == [1, 2, 3]


# -- fields --------------------------------------------------------------------------------------

COLUMNS: dict[str, list[Any]] = {
    "color": ["red", ["green", "blue"], None],
    "year": [1990, -0.5, None],
    "text": ["hello", None, "héllo"],
    "place": [(2.5, 48.5), None, (-180, 85)],
    "extra": [None, "e", 5],
}
AS_HASH: list[dict[str, Any]] = [
    {"color": "red", "year": 1990, "text": "hello", "place": (2.5, 48.5)},
    {"color": "green,blue", "year": -0.5, "extra": "e"},
    {"text": "héllo", "place": (-180.0, 85.0), "extra": "5"},
]
AS_JSON: list[dict[str, Any]] = [
    {"color": "red", "year": 1990, "text": "hello", "place": "2.5,48.5"},
    {"color": ["green", "blue"], "year": -0.5, "extra": "e"},
    {"text": "héllo", "place": "-180,85", "extra": 5},
]


def shaped(shape: str) -> Any:
    """Return the columns in another shape."""
    if shape == "dicts":
        return [
            {name: column[i] for name, column in COLUMNS.items() if i != 1 or column[1] is not None}
            for i in range(3)
        ]
    if shape == "arrays":
        arrays = {name: np.empty(3, object) for name in COLUMNS}
        for name, column in COLUMNS.items():
            arrays[name][:] = [None, None, None]
            for i, value in enumerate(column):
                arrays[name][i] = value
        return arrays
    return {name: (tuple if shape == "tuples" else list)(c) for name, c in COLUMNS.items()}


@both_kinds
@pytest.mark.parametrize("shape", ["lists", "tuples", "arrays", "dicts"])
def test_fields_come_in_many_shapes_and_none_is_left_out(redis: Redis, on: str, shape: str) -> None:
    index = made(redis, on)
    assert redis.do(index.load(["a", "b", "c"], vectors(3), shaped(shape))) == 3
    rows = redis.do(index.get(["a", "b", "c"]))
    assert [row.fields for row in rows] == (AS_HASH if on == "hash" else AS_JSON)
    assert redis.do(index.count(Tag("color") == "blue")) == 1
    assert redis.do(index.info()).failures == 0


@both_kinds
@pytest.mark.parametrize("kind", [np.int8, np.uint32, np.float32, np.float64])
def test_arrays_of_numbers_are_columns(client: Client, on: str, kind: Any) -> None:
    index = make(client, on)
    column = np.array([1, 2, 100], kind)
    index.load(range(3), vectors(3), {"year": column, "extra": column})
    assert [row.fields["year"] for row in index.get(range(3))] == column.tolist()


@pytest.mark.parametrize(
    ("ids", "column"),
    [(["a", "b"], {"x", "y"}), ({"a", "b"}, ["x", "y"]), (["a", "b"], {"x": 1, "y": 2})],
)
def test_what_has_no_order_is_no_column_and_no_ids(ids: Any, column: Any) -> None:
    with Client(NOBODY) as client, pytest.raises(TypeError):
        VectorIndex(client, "docs", FIELDS).load(ids, vectors(2), {"color": column})


@both_kinds
@pytest.mark.parametrize("batch_size", [1, 7, 20, 1000])
def test_any_batch_size_writes_the_same(redis: Redis, on: str, batch_size: int) -> None:
    index = made(redis, on)
    columns: dict[str, Any] = {
        "year": [i if i % 3 else None for i in range(20)],
        "text": [f"word{i}" * (1 + i % 5) for i in range(20)],
    }
    seen: list[tuple[int, int]] = []
    loaded = redis.do(
        index.load(
            range(20),
            vectors(20),
            columns,
            batch_size=batch_size,
            ttl=1000,
            progress=lambda done, total: seen.append((done, total)),
        )
    )
    assert loaded == 20
    assert seen == [(done, 20) for done in [*range(batch_size, 20, batch_size), 20]]
    expected = {
        str(i): (
            {name: column[i] for name, column in columns.items() if column[i] is not None},
            vectors(20)[i].tobytes(),
        )
        for i in range(20)
    }
    assert contents(redis.do(index.get(range(20)))) == expected
    lives = [redis.do(redis.client.call("PTTL", f"docs:{i}")) for i in range(20)]
    assert all(900_000 < life <= 1_000_000 for life in lives)


@both_kinds
def test_a_document_is_replaced_whole(redis: Redis, on: str) -> None:
    index = made(redis, on)
    redis.do(index.load(["a", "b"], vectors(2), {"color": ["red"] * 2, "x": [1, 2]}, ttl=1000))
    redis.do(index.load(["a"], vectors(1, seed=2), {"year": [5]}))
    [a, b] = redis.do(index.get(["a", "b"]))
    assert a.fields == {"year": 5}
    assert (a.vector == vectors(1, seed=2)[0]).all()
    assert redis.do(redis.client.call("PTTL", "docs:a")) == -1
    assert b.fields["color"] == "red"
    assert redis.do(redis.client.call("PTTL", "docs:b")) > 900_000
    assert redis.do(index.count(Tag("color") == "red")) == 1


@both_kinds
def test_what_was_of_another_kind_under_the_key_is_replaced(client: Client, on: str) -> None:
    index = make(client, on)
    client.call("SET", "docs:a", "text")
    client.call("RPUSH", "docs:b", "list")
    assert index.load(["a", "b"], vectors(2)) == 2
    assert index.count() == 2


# -- streams -------------------------------------------------------------------------------------


def stream(count: int, dim: int = DIM) -> Iterator[dict[str, Any]]:
    """Yield documents one by one."""
    for i in range(count):
        yield {"id": i, "vec": vectors(1, dim, seed=i)[0], "year": i}


@both_kinds
@pytest.mark.parametrize("batch_size", [1, 4, 10, 99])
def test_a_stream_is_written_in_batches(redis: Redis, on: str, batch_size: int) -> None:
    index = made(redis, on)
    seen: list[Any] = []
    for documents in (stream(10), list(stream(10))):
        loaded = redis.do(
            index.load_documents(
                documents,
                batch_size=batch_size,
                ttl=1000,
                progress=lambda done, total: seen.append((done, total)),
            )
        )
        assert (loaded, loaded.ids, loaded.failed) == (10, [], [])
    steps = [*range(batch_size, 10, batch_size), 10]
    assert seen == [(done, None) for done in steps] + [(done, 10) for done in steps]
    rows = redis.do(index.get(range(10)))
    assert [row.fields for row in rows] == [{"year": i} for i in range(10)]
    assert all((row.vector == vectors(1, seed=i)[0]).all() for i, row in enumerate(rows))
    assert redis.do(redis.client.call("PTTL", "docs:9")) > 900_000


@pytest.mark.parametrize(("on", "dim", "batches"), [("hash", 256, 40), ("json", 32, 20)])
def test_a_stream_is_never_held_whole(client: Client, on: str, dim: int, batches: int) -> None:
    index = make(client, on, fields=[Vector("vec", dim)])
    rng = np.random.default_rng(1)

    def peak(count: int) -> int:
        documents = ({"id": i, "vec": rng.random(dim, np.float32)} for i in range(count))
        tracemalloc.start()
        assert index.load_documents(documents) == count
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    few, many = peak(1000), peak(500 * batches)
    assert many < 1.3 * few
    if on == "hash":
        assert many < 6 * 500 * dim * 4


@both_kinds
def test_ids_are_made_where_a_stream_has_none(redis: Redis, on: str) -> None:
    index = made(redis, on)
    given = [{"vec": v, "year": i} for i, v in enumerate(vectors(9))]
    for i in (1, 4, 8):
        given[i]["id"] = f"own{i}"
    given[2]["id"] = None  # the same as none
    loaded = redis.do(index.load_documents(iter(given), batch_size=4))
    assert len(set(loaded.ids)) == 6
    assert all(re.fullmatch("[0-9a-f]{32}", id_) for id_ in loaded.ids)
    names = iter(loaded.ids)
    order = [f"own{i}" if i in (1, 4, 8) else next(names) for i in range(9)]
    assert [row.fields for row in redis.do(index.get(order))] == [{"year": i} for i in range(9)]
    assert redis.do(index.count()) == 9


def test_a_stream_that_blocks_does_not_stop_the_event_loop(server: EmbeddedServer) -> None:
    async def main() -> int:
        async with AsyncClient(server.url) as client:
            await client.call("FLUSHALL")
            index = VectorIndex(client, "docs", FIELDS)
            go = threading.Event()

            def slow() -> Iterator[dict[str, Any]]:
                for document in stream(3):
                    assert go.wait(10), "the event loop stood still"
                    yield document

            async def other() -> None:
                await client.call("PING")
                go.set()

            loaded, _ = await asyncio.gather(index.load_documents(slow(), batch_size=2), other())
            return int(loaded)

    assert asyncio.run(main()) == 3


@both_kinds
def test_a_bad_document_leaves_the_batches_before_it(redis: Redis, on: str) -> None:
    index = made(redis, on)
    for bad in ({"id": "x"}, {"id": "x", "vec": [0.0] * DIM}, {"vec": vectors(1)[0], "year": "y"}):
        redis.do(redis.client.call("FLUSHDB"))
        redis.do(index.create())
        documents = [*stream(5), bad, *stream(1)]
        with pytest.raises((ValueError, TypeError), match=r"vec|year"):
            redis.do(index.load_documents(documents, batch_size=2))
        assert redis.do(redis.client.call("DBSIZE")) == 4


def test_the_error_of_a_stream_is_raised(redis: Redis) -> None:
    index = made(redis, "hash")

    def broken() -> Iterator[dict[str, Any]]:
        yield from stream(3)
        raise RuntimeError("the file ended")

    with pytest.raises(RuntimeError, match="the file ended"):
        redis.do(index.load_documents(broken(), batch_size=2))
    assert redis.do(index.count()) == 2


@pytest.mark.parametrize("wrong", ["text", [5], [None], [("a", 1)], 5, None])
def test_what_is_no_stream_of_documents(wrong: Any) -> None:
    with Client(NOBODY) as client, pytest.raises(TypeError):
        VectorIndex(client, "docs", FIELDS).load_documents(wrong)


# -- rows as documents ---------------------------------------------------------------------------


def filled(redis: Redis, on: str, name: str = "docs", **options: Any) -> Any:
    """Return an index with three documents."""
    index = made(redis, on, name, **options)
    columns = dict(COLUMNS)
    if on == "hash":
        columns["raw"] = [b"\xff\x00", b"", None]
    redis.do(index.load(["a", "b", "c"], vectors(3), columns))
    return index


@both_kinds
def test_rows_of_one_index_go_into_another(redis: Redis, on: str) -> None:
    source, target = filled(redis, on), made(redis, on, "other")
    rows = collected(redis, source.scan())
    assert redis.do(target.load_documents(rows)) == 3
    assert contents(collected(redis, target.scan())) == contents(rows)
    assert len(contents(rows)) == 3
    assert redis.do(target.count(Tag("color") == "blue")) == 1


def test_rows_and_dicts_go_together(redis: Redis) -> None:
    source = filled(redis, "hash")
    rows = collected(redis, source.scan())
    given = [*rows, {"id": "d", "vec": vectors(1)[0]}]
    assert redis.do(source.load_documents(given)) == 4
    assert redis.do(source.count(Tag("color") == "blue")) == 1


@both_kinds
def test_a_row_may_have_a_field_called_id(redis: Redis, on: str) -> None:
    index = made(redis, on)
    redis.do(index.load(["a"], vectors(1), {"id": ["article 5"], "year": [1]}))
    redis.do(index.load_documents(collected(redis, index.scan())))
    assert redis.do(index.get(["a"]))[0].fields == {"id": "article 5", "year": 1}


def test_a_row_may_have_a_key_called_like_a_field_with_a_path(client: Client) -> None:
    index = make(client, "json", fields=[Tag("city", path="$.address.city"), Vector("vec", DIM)])
    index.load(["a"], vectors(1), {"city": ["Rome"]})
    client.call("JSON.SET", "docs:a", "$.city", '"another"')
    before = index.get(["a"])[0].fields
    index.load_documents(list(index.scan()))
    assert index.get(["a"])[0].fields == before == {"address": {"city": "Rome"}, "city": "another"}


def test_a_row_without_a_vector_is_refused() -> None:
    with Client(NOBODY) as client, pytest.raises(ValueError, match="no vector in its field 'vec'"):
        VectorIndex(client, "docs", FIELDS).load_documents([Row("a", {})])


# -- the bytes -----------------------------------------------------------------------------------

WORDS = st.text("ab é€\n", min_size=1, max_size=5).filter(lambda text: text.strip() == text)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "color": WORDS | st.lists(WORDS, min_size=1, max_size=3),
    "year": st.integers(-EXACT, EXACT) | st.floats(allow_nan=False, allow_infinity=False),
    "text": st.text(st.characters(exclude_categories=["Cs"]), max_size=80),
    "place": st.tuples(st.integers(-180, 180), st.floats(-85, 85)),
    "extra": WORDS | st.integers(),
    "with space": WORDS,
}
IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    str.strip
)


@st.composite
def loads(draw: st.DrawFn) -> tuple[Any, ...]:
    ids = draw(st.lists(IDS | st.integers(), min_size=1, max_size=6, unique_by=str))
    columns = {}
    for name in draw(st.lists(st.sampled_from(list(VALUES)), unique=True)):
        value = draw(st.sampled_from([VALUES[name], st.none() | VALUES[name], st.none()]))
        columns[name] = draw(st.lists(value, min_size=len(ids), max_size=len(ids)))
    ttl = draw(st.none() | st.floats(0.001, 1e6))
    return draw(st.sampled_from(["hash", "json"])), ids, columns, ttl


@settings(max_examples=300)
@given(loads())
def test_a_batch_that_is_made_beforehand_is_the_batch_that_it_shows(case: tuple[Any, ...]) -> None:
    on, ids, columns, ttl = case
    index = VectorIndex(Client(NOBODY), "docs", FIELDS, on=on).plan
    op: Any = index.load(ids, vectors(len(ids)), columns, ttl=ttl)
    request = next(iter(op))
    assert isinstance(request, Batch)
    members: Any = request.members
    portions = request.encode()
    assert b"".join(data for data, _ in portions) == b"".join(d for d, _ in encode_many(members))
    assert sum(count for _, count in portions) == request.width == len(members)
    keys = [f"docs:{i}".encode() for i in ids]
    writes = members[1 : 1 + len(keys)]
    assert members[0] == ("DEL", *keys)
    assert [write[:2] for write in writes] == [
        ("HSET" if on == "hash" else "JSON.SET", key) for key in keys
    ]
    search = members[1 + len(keys)]
    assert search[:5] == ("FT.SEARCH", "docs", "*", "INKEYS", len(keys))
    assert search[5 : 5 + len(keys)] == tuple(keys)
    lives = members[2 + len(keys) :]
    assert [life[:2] for life in lives] == [("PEXPIRE", key) for key in keys if ttl is not None]
    if on == "hash":
        for i, write in enumerate(writes):
            fields = dict(zip(write[2::2], write[3::2], strict=True))
            assert bytes(fields.pop(b"vec")) == vectors(len(ids))[i].tobytes()
            assert set(fields) == {n.encode() for n, c in columns.items() if c[i] is not None}


# -- together ------------------------------------------------------------------------------------


@both_kinds
def test_loads_of_several_indexes_are_one_write(redis: Redis, on: str) -> None:
    indexes = [made(redis, on, name) for name in ("a", "b", "c")]
    ops = [
        index.plan.load(range(4), vectors(4, seed=i), {"year": range(4)})
        for i, index in enumerate(indexes)
    ]
    spent = cost(redis, lambda: redis.client.gather(ops))
    assert (spent.result, spent.round_trips) == ([4, 4, 4], 1)
    for i, index in enumerate(indexes):
        expected = {str(n): ({"year": n}, vectors(4, seed=i)[n].tobytes()) for n in range(4)}
        assert contents(redis.do(index.get(range(4)))) == expected


@both_kinds
def test_a_bad_load_among_others_fails_alone(redis: Redis, on: str) -> None:
    indexes = [made(redis, on, name) for name in ("a", "b", "c")]
    given = [vectors(2), np.zeros((2, DIM)), vectors(2)]
    ops = [i.plan.load([1, 2], v) for i, v in zip(indexes, given, strict=True)]
    [first, error, last] = redis.do(redis.client.gather(ops, raise_errors=False))
    assert (first, last) == (2, 2)
    assert isinstance(error, ValueError)
    assert [redis.do(index.count()) for index in indexes] == [2, 0, 2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("batch_size", True),
        ("batch_size", 2.0),
        ("ttl", 0),
        ("ttl", -1),
        ("ttl", True),
        ("ttl", "5"),
        ("ttl", float("nan")),
    ],
)
def test_wrong_options_are_refused_before_any_io(name: str, value: Any) -> None:
    with Client(NOBODY) as client:
        index: Any = VectorIndex(client, "docs", FIELDS)
        with pytest.raises((ValueError, TypeError), match=name):
            index.load(["a"], vectors(1), **{name: value})
        with pytest.raises((ValueError, TypeError), match=name):
            index.load_documents(stream(1), **{name: value})
