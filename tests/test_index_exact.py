"""Neighbours against brute force: every metric and type, filters, ranges, options, many at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from counting import cost
from models import TOLERANCE, Doubles, check_nearest, clustered, distances, rounded, slack
from rawredis_llm import Client, Filter, Numeric, Tag, Text, Vector, VectorIndex

if TYPE_CHECKING:
    from conftest import Redis

NOBODY = "redis://127.0.0.1:1/0"
"""An address where no server listens: any I/O raises ConnectError."""

DIM = 32
METRICS = ["cosine", "l2", "ip"]
DTYPES = [*TOLERANCE]
COLORS = ["red", "green", "blue"]
FILTERS: list[tuple[Filter | None, Callable[[int], bool]]] = [
    (None, lambda _: True),
    (Tag("color") == "red", lambda i: i % 3 == 0),
    ((Tag("color") == "blue") & (Numeric("n") >= 500), lambda i: i % 3 == 2 and i >= 500),
    (Numeric("n") < 3, lambda i: i < 3),
    (Numeric("n") < 0, lambda _: False),
]


def make(client: Any, count: int, seed: int = 1, **vector: Any) -> VectorIndex[Any]:
    """Return an index of `count` clustered vectors, with a number and a color each."""
    on = vector.pop("on", "hash")
    fields = [Tag("color"), Numeric("n"), Text("body"), Vector("vec", DIM, **vector)]
    index = VectorIndex(client, "exact", fields, on=on)
    index.create()
    load(index, count, seed)
    return index


def load(index: VectorIndex[Any], count: int, seed: int = 1) -> None:
    """Load clustered vectors and what belongs to them."""
    columns = {"color": [COLORS[i % 3] for i in range(count)], "n": range(count)}
    index.load(range(count), clustered(count, DIM, seed), columns, batch_size=2000)


def check_exact(client: Client, count: int, metric: str, dtype: str) -> None:
    index = make(client, count, metric=metric, dtype=dtype)
    stored = rounded(clustered(count, DIM), dtype)
    queries = clustered(4, DIM, seed=2) + 0.1
    for query in queries:
        near = rounded(query, dtype)
        expected = distances(metric, near, stored)
        within = slack(metric, dtype, near, stored)
        for condition, wanted in FILTERS:
            among = [i for i in range(count) if wanted(i)]
            for k in (1, 10, 100, count, count + 500):
                result = index.search(query, k, filter=condition, return_fields=["n"])
                check_nearest(result.rows, expected, among, k, within)
                assert result.total == len(result.rows)
                assert all(row.fields["n"] == int(row.id) for row in result.rows[:5])
    # What is skipped and what follows are the whole.
    query = queries[0]
    whole = index.search(query, 100, return_fields=[]).rows
    pages = [index.search(query, 30, offset=at, return_fields=[]).rows for at in (0, 30, 60)]
    given = [row.distance for page in pages for row in page]
    assert given == [row.distance for row in whole[:90]]
    assert index.search(query, 5, offset=count).rows == []
    assert len(index.search(query, 50, offset=count - 20, return_fields=[]).rows) == 20


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
def test_a_flat_search_equals_brute_force(client: Client, metric: str, dtype: str) -> None:
    check_exact(client, 2000, metric, dtype)


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
def test_a_flat_search_of_many_equals_brute_force(client: Client, metric: str, dtype: str) -> None:
    check_exact(client, 10_000, metric, dtype)


def test_every_colour_finds_the_same(redis: Redis) -> None:
    with Client(redis.url) as client:
        make(client, 300)
    index = VectorIndex(redis.client, "exact", [Tag("color"), Numeric("n"), Vector("vec", DIM)])
    stored = rounded(clustered(300, DIM), "float32")
    query = rounded(clustered(1, DIM, seed=3)[0], "float32")
    expected = distances("cosine", query, stored)
    within = TOLERANCE["float32"]
    for condition, wanted in FILTERS:
        among = [i for i in range(300) if wanted(i)]
        result = redis.do(index.search(query, 20, filter=condition))
        check_nearest(result.rows, expected, among, 20, within)
        near = redis.do(index.range(query, 2, filter=condition))
        check_nearest(near.rows, expected, among, 300, within)


# -- range ---------------------------------------------------------------------------------------


def radius(expected: Doubles, about: int) -> tuple[float, int]:
    """Return a distance in the widest gap near a rank, and how many are nearer."""
    order = np.sort(expected)
    order = np.unique(order[order >= 0]) if (order < 0).any() else np.unique(order)
    low = max(about - 20, 0)
    at = low + int(np.argmax(np.diff(order[low : about + 20])))
    limit = float(order[at] + order[at + 1]) / 2
    return limit, int((expected <= limit).sum())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
def test_a_flat_range_equals_brute_force(client: Client, metric: str, dtype: str) -> None:
    index = make(client, 2000, metric=metric, dtype=dtype)
    stored = rounded(clustered(2000, DIM), dtype)
    for query in clustered(3, DIM, seed=2):
        near = rounded(query, dtype)
        expected = distances(metric, near, stored)
        within = slack(metric, dtype, near, stored)
        for about in (30, 600):
            limit, _ = radius(expected, about)
            for condition, wanted in FILTERS:
                among = {i for i in range(2000) if wanted(i)}
                rows = index.range(query, limit, filter=condition, return_fields=["n"]).rows
                names = {int(row.id) for row in rows}
                sure = {i for i in among if expected[i] <= limit - within}
                assert sure <= names <= {i for i in among if expected[i] <= limit + within}
                check_nearest(rows, expected, names, len(names), within)


@pytest.mark.parametrize("metric", METRICS)
def test_a_range_comes_in_pages_with_its_total(redis: Redis, metric: str) -> None:
    with Client(redis.url) as client:
        make(client, 400, metric=metric)
    fields = [Tag("color"), Numeric("n"), Vector("vec", DIM, metric=metric)]
    index = VectorIndex(redis.client, "exact", fields)
    query = rounded(clustered(1, DIM, seed=2)[0], "float32")
    limit, count = radius(distances(metric, query, rounded(clustered(400, DIM), "float32")), 150)
    whole = redis.do(index.range(query, limit, return_fields=[]))
    assert whole.total == len(whole.rows) == count
    pages = [
        redis.do(index.range(query, limit, limit=40, offset=at, return_fields=[]))
        for at in range(0, count + 40, 40)
    ]
    assert {page.total for page in pages} == {count}
    assert [len(page.rows) for page in pages[:2]] == [40, 40]
    given = [row.distance for page in pages for row in page.rows]
    assert given == [row.distance for row in whole.rows]
    assert len({row.id for page in pages for row in page.rows}) == count
    assert redis.do(index.range(query, 0)).rows == [] or metric == "ip"


def test_a_range_under_ip_cannot_lie_below_zero(client: Client) -> None:
    index = make(client, 200, metric="ip")
    query = rounded(clustered(1, DIM, seed=2)[0], "float32")
    expected = distances("ip", query, rounded(clustered(200, DIM), "float32"))
    limit = float(np.sort(expected)[9:11].mean())
    assert limit < 0
    with pytest.raises(ValueError, match="max_distance must be 0 or above"):
        index.range(query, limit)


# -- hnsw ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_hnsw_finds_nearly_all(client: Client, metric: str) -> None:
    # In few dimensions: with 10 candidates of a graph, 10 of 32 dimensions are 9 in 10 at best.
    index = VectorIndex(client, "few", [Vector("vec", 8, metric=metric, algorithm="hnsw")])
    index.create()
    everything = clustered(2200, 8)[:2150]  # the last of them are the first again
    stored, queries = rounded(everything[:2000], "float32"), everything[2000:]
    index.load(range(2000), stored)
    found = 0
    for query, result in zip(queries, index.search_many(queries, 10), strict=True):
        expected = distances(metric, rounded(query, "float32"), stored)
        farthest = np.sort(expected)[9] + slack(metric, "float32", query, stored)
        found += sum(expected[int(row.id)] <= farthest for row in result.rows)
    assert found >= (0.9 if metric == "ip" else 0.95) * 10 * len(queries)  # ip is no metric


@pytest.mark.parametrize(
    ("metric", "options"),
    [
        ("cosine", {}),
        ("cosine", {"epsilon": 1.0}),
        ("l2", {}),
    ],
)
def test_a_range_in_a_graph_finds_near_duplicates(
    client: Client, metric: str, options: dict[str, Any]
) -> None:
    index = make(client, 2000, metric=metric, algorithm="hnsw")
    stored = clustered(2000, DIM)
    noise = np.random.default_rng(5).normal(size=(500, DIM)) * 0.01
    missed = []
    for i, query in enumerate(stored[:500] + noise):
        expected = distances(metric, query, stored[i : i + 1])[0]
        rows = index.range(query, float(expected) + 1e-3, return_fields=[], **options).rows
        if str(i) not in {row.id for row in rows}:
            missed.append(i)
    assert missed == []


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("algorithm", ["flat", "hnsw"])
def test_a_filter_is_combined_in_each_way(client: Client, algorithm: str, metric: str) -> None:
    index = make(client, 1000, metric=metric, algorithm=algorithm)
    stored = rounded(clustered(1000, DIM), "float32")
    ways: list[dict[str, Any]] = [
        {"hybrid_policy": "adhoc_bf"},
        {"hybrid_policy": "batches"},
        {"hybrid_policy": "batches", "batch_size": 50},
    ]
    if algorithm == "hnsw":
        ways += [{"ef_runtime": 500}, {"hybrid_policy": "batches", "ef_runtime": 500}]
    for query in clustered(3, DIM, seed=2):
        near = rounded(query, "float32")
        expected = distances(metric, near, stored)
        within = slack(metric, "float32", near, stored)
        for way in ways:
            for condition, wanted in FILTERS[1:]:
                among = [i for i in range(1000) if wanted(i)]
                rows = index.search(query, 10, filter=condition, **way).rows
                # In a graph batches may miss some; ad hoc it is brute force.
                if algorithm == "flat" or way == ways[0]:
                    check_nearest(rows, expected, among, 10, within)
                else:
                    assert {int(row.id) for row in rows} <= set(among)
                    nearest = np.sort(expected[among])[: len(rows)]
                    good = sum(
                        row.distance is not None and row.distance <= nearest[-1] + within
                        for row in rows
                    )
                    assert good >= 0.8 * min(10, len(among))


@pytest.mark.parametrize("algorithm", ["flat", "hnsw"])
@pytest.mark.parametrize("on", ["hash", "json"])
def test_the_server_takes_every_option(redis: Redis, on: str, algorithm: str) -> None:
    with Client(redis.url) as client:
        make(client, 200, algorithm=algorithm, on=on)
    fields = [Tag("color"), Numeric("n"), Text("body"), Vector("vec", DIM, algorithm=algorithm)]
    index = VectorIndex(redis.client, "exact", fields, on=on)
    query = clustered(200, DIM)[5]
    common: list[dict[str, Any]] = [{}, {"timeout": 5}, {"timeout": None}, {"on_partial": "raise"}]
    common += [{"dialect": dialect} for dialect in (None, 3, 4)]
    common += [] if on == "json" else [{"dialect": 2}]
    for options in common:
        names = [
            [row.id for row in redis.do(found).rows]
            for found in (
                index.search(query, 3, **options),
                index.range(query, 1, limit=3, **options),
                index.search(query, 3, filter=Numeric("n") == 5, **options),
                index.query(Numeric("n") == 5, **options),
            )
        ]
        assert [row[0] for row in names] == ["5"] * 4
    assert redis.do(index.search_many([query], 3, timeout=5))[0].rows[0].id == "5"
    if algorithm == "hnsw":
        assert redis.do(index.range(query, 0.01, epsilon=0.5)).rows[0].id == "5"
        assert redis.do(index.search(query, 1, ef_runtime=1)).rows[0].id == "5"


def test_json_documents_are_not_asked_in_dialect_2(client: Client) -> None:
    index = make(client, 20, on="json")
    query = clustered(20, DIM)[5]
    with pytest.raises(ValueError, match=r"dialect must be one of \(3, 4\)"):
        index.search(query, 1, dialect=2)
    assert index.search(query, 1, dialect=4).rows[0].fields == {"color": "blue", "n": 5}


Use = Callable[[VectorIndex[Client]], object]
ONE = [1.0] * DIM


def calling(method: str, *args: Any, **options: Any) -> Use:
    """Return a call of which the type checker shall know nothing."""
    return lambda index: getattr(index, method)(*args, **options)


search = partial(calling, "search", ONE)
red = Tag("color") == "red"
BAD: list[tuple[str, type[Exception], str, Use]] = [
    ("flat", ValueError, "ef_runtime: only an index of hnsw", search(ef_runtime=5)),
    ("flat", ValueError, "search_window_size: only", search(search_window_size=5)),
    ("hnsw", ValueError, "search_window_size: only", search(search_window_size=5)),
    ("hnsw", ValueError, "ef_runtime must be", search(ef_runtime=0)),
    ("hnsw", TypeError, "ef_runtime must be", search(ef_runtime=1.5)),
    ("flat", ValueError, "hybrid_policy: only a search with", search(hybrid_policy="batches")),
    ("flat", ValueError, "batch_size: only a search with", search(batch_size=5)),
    ("flat", ValueError, "hybrid_policy must be", search(hybrid_policy="x", filter=red)),
    ("flat", ValueError, "batch_size must be", search(batch_size=0, filter=red)),
    ("hnsw", TypeError, "'epsilon' is no option", search(epsilon=0.1)),
    ("flat", TypeError, "'nothing' is no option", search(nothing=1)),
    ("flat", ValueError, "dialect must be", search(dialect=1)),
    ("flat", ValueError, "dialect must be", search(dialect=5)),
    ("flat", ValueError, "timeout", search(timeout=0)),
    ("flat", TypeError, "timeout", search(timeout="1")),
    ("flat", ValueError, "on_partial must be", search(on_partial="ignore")),
    ("flat", ValueError, "epsilon: only", calling("range", ONE, 1, epsilon=0.1)),
    ("hnsw", ValueError, "epsilon must be above", calling("range", ONE, 1, epsilon=0)),
    ("hnsw", TypeError, "'epsilon' takes a number", calling("range", ONE, 1, epsilon="1")),
    ("hnsw", TypeError, "'ef_runtime' is no", calling("range", ONE, 1, ef_runtime=5)),
    ("hnsw", TypeError, "'batch_size' is no", calling("range", ONE, 1, filter=red, batch_size=5)),
    ("hnsw", TypeError, "'ef_runtime' is no", calling("query", ef_runtime=5)),
    ("hnsw", TypeError, "'epsilon' is no", calling("query", epsilon=1)),
    ("hnsw", TypeError, "'ef_runtime' is no", calling("text", "word", ef_runtime=5)),
    ("hnsw", TypeError, "'ef_runtime' is no", calling("aggregate", ef_runtime=5)),
    ("hnsw", TypeError, "'epsilon' is no", calling("hybrid", "word", ONE, epsilon=1)),
    ("hnsw", TypeError, "'epsilon' is no", calling("mmr", ONE, epsilon=1)),
    ("hnsw", TypeError, "'epsilon' is no", calling("search_many", [ONE], epsilon=1)),
    ("flat", ValueError, "ef_runtime: only", calling("search_many", [ONE], ef_runtime=1)),
    ("flat", ValueError, "max_distance", calling("range", ONE, -0.5)),
    ("flat", ValueError, "max_distance", calling("range", ONE, float("nan"))),
    ("flat", TypeError, "max_distance", calling("range", ONE, "1")),
    ("flat", ValueError, "limit must be", calling("range", ONE, 1, limit=0)),
    ("flat", ValueError, "offset must be", calling("range", ONE, 1, offset=-1)),
    ("flat", ValueError, "1000000 rows", calling("range", ONE, 1, limit=2, offset=999_999)),
    ("flat", ValueError, "1000000 rows", calling("range", ONE, 1, offset=1_000_000)),
    ("flat", ValueError, "row 1 of vectors", calling("search_many", [ONE, [0.0] * DIM])),
    ("flat", ValueError, "shape", calling("search_many", ONE)),
    ("flat", ValueError, "k must be", calling("search_many", [ONE], 0)),
]


@pytest.mark.parametrize(
    ("algorithm", "error", "message", "use"), BAD, ids=[f"{i} {b[2]}" for i, b in enumerate(BAD)]
)
def test_an_option_is_refused_where_it_does_not_belong(
    algorithm: str, error: type[Exception], message: str, use: Use
) -> None:
    fields = [Tag("color"), Text("body"), Vector("vec", DIM, algorithm=algorithm)]
    with Client(NOBODY) as client, pytest.raises(error, match=message) as caught:
        use(VectorIndex(client, "docs", fields))
    assert type(caught.value) is error


# -- many at once, vectors, fields ---------------------------------------------------------------


def test_many_searches_are_each_as_one_alone(redis: Redis) -> None:
    with Client(redis.url) as client:
        make(client, 500)
    index = VectorIndex(redis.client, "exact", [Tag("color"), Numeric("n"), Vector("vec", DIM)])
    queries = clustered(25, DIM, seed=3)
    first = cost(redis, lambda: index.search_many(queries, 7))
    assert (first.round_trips, first.commands) == (1, {"FT.SEARCH": 25, "FT.INFO": 1})
    again = cost(redis, lambda: index.search_many(queries, 7, filter=Tag("color") == "red"))
    assert (again.round_trips, again.commands) == (1, {"FT.SEARCH": 25})
    for query, plain, filtered in zip(queries, first.result, again.result, strict=True):
        assert plain == redis.do(index.search(query, 7))
        assert filtered == redis.do(index.search(query, 7, filter=Tag("color") == "red"))
    assert redis.do(index.search_many(np.empty((0, DIM)))) == []
    [whole] = redis.do(index.search_many(queries[:1], 2, return_fields=["n"], include_vectors=True))
    assert all(row.vector.shape == (DIM,) and [*row.fields] == ["n"] for row in whole.rows)


def test_many_searches_work_whatever_the_index_is_called(client: Client) -> None:
    index = VectorIndex(client, "vector", [Vector("v", 2)])
    index.create()
    index.load(["a", "b"], [[1.0, 0], [0, 1]])
    assert [r.rows[0].id for r in index.search_many([[1.0, 0], [0, 1]], 1)] == ["a", "b"]


@pytest.mark.parametrize("metric", METRICS)
def test_json_documents_give_the_same_answers(redis: Redis, metric: str) -> None:
    fields = [Tag("color"), Numeric("n"), Text("body"), Vector("vec", DIM, metric=metric)]
    found = []
    query = clustered(1, DIM, seed=2)[0]
    for on in ("hash", "json"):
        redis.do(redis.client.call("FLUSHALL"))
        with Client(redis.url) as client:
            make(client, 300, metric=metric, on=on)
        index = VectorIndex(redis.client, "exact", fields, on=on)
        near = redis.do(index.search(query, 20, filter=Tag("color") == "red", offset=3))
        limit = near.rows[10].distance if near.rows[10].distance > 0 else 0.5
        around = redis.do(index.range(query, limit + 1e-4, limit=15))
        listed = redis.do(index.query(Numeric("n") >= 290, sort_by="-n"))
        found.append((near, around, listed))
    for ours, theirs in zip(*found, strict=True):
        assert ours.total == theirs.total
        assert [row.id for row in ours.rows] == [row.id for row in theirs.rows]
        assert [row.fields for row in ours.rows] == [row.fields for row in theirs.rows]
        given = [row.distance for row in ours.rows if row.distance is not None]
        other = [row.distance for row in theirs.rows if row.distance is not None]
        assert given == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize(
    ("on", "dtype"),
    [(on, dtype) for on in ("hash", "json") for dtype in DTYPES],
)
def test_vectors_come_back_read_only(client: Client, on: str, dtype: str) -> None:
    index = make(client, 10, on=on, dtype=dtype)
    index.wait_until_indexed()
    query = clustered(10, DIM)[3]
    for row in index.search(query, 5, include_vectors=True).rows:
        assert row.vector is not None
        assert not row.vector.flags.writeable


@pytest.mark.parametrize("on", ["hash", "json"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_come_back_exactly(redis: Redis, dtype: str, on: str) -> None:
    with Client(redis.url) as client:
        make(client, 30, on=on, dtype=dtype)
    fields = [Tag("color"), Numeric("n"), Text("body"), Vector("vec", DIM, dtype=dtype)]
    index = VectorIndex(redis.client, "exact", fields, on=on)
    stored = rounded(clustered(30, DIM), dtype)
    query = clustered(30, DIM)[3]
    results = [
        redis.do(index.search(query, 5, include_vectors=True)),
        redis.do(index.range(query, 2, limit=5, include_vectors=True)),
        redis.do(index.query(limit=5, include_vectors=True)),
        redis.do(index.search(query, 5, return_fields=["n", "vec"])),
    ]
    for result in results:
        assert len(result.rows) == 5
        for row in result.rows:
            assert isinstance(row.vector, np.ndarray)
            assert row.vector.dtype == np.dtype("float32" if dtype == "bfloat16" else dtype)
            assert row.vector.shape == (DIM,)
            # The server itself reads a double of JSON with the last bit wrong, now and then.
            apart = np.abs(row.vector.astype(np.float64) / stored[int(row.id)] - 1).max()
            assert apart <= (1e-15 if (on, dtype) == ("json", "float64") else 0)
            assert "vec" not in row.fields
    plain = redis.do(index.search(query, 5)).rows
    assert all(row.vector is None and set(row.fields) == {"color", "n"} for row in plain)
    named = redis.do(index.search(query, 5, return_fields=["n", "nowhere"])).rows
    assert all(row.fields == {"n": int(row.id)} for row in named)
