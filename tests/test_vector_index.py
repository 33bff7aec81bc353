"""The vector index: right neighbours, whole documents, and nothing that poisons the search."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from time import sleep
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from counting import cost
from rawredis_llm import (
    Client,
    EmbeddedServer,
    Filter,
    Numeric,
    Tag,
    Text,
    Vector,
    VectorIndex,
    errors,
)

if TYPE_CHECKING:
    from conftest import Redis

Floats = npt.NDArray[np.float32]

NOBODY = "redis://127.0.0.1:1/0"
"""An address where no server listens: any I/O raises ConnectError."""

DIM = 8
FIELDS = (
    Tag("color"),
    Tag("owner", case_sensitive=True),
    Numeric("year"),
    Text("body"),
    Vector("vec", DIM),
)


def make(redis: Redis, fields: Sequence[Any] = FIELDS, name: str = "docs", **o: Any) -> Any:
    """Create an index by the fixture's client."""
    index = VectorIndex(redis.client, name, fields, **o)
    redis.do(index.create())
    return index


def vectors(count: int, dim: int = DIM, seed: int = 1) -> Floats:
    """Return random vectors, the same each time."""
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def distances(metric: str, query: Floats, stored: Floats) -> npt.NDArray[np.float64]:
    """Return the distance of each stored vector, by the textbook."""
    q, s = query.astype(np.float64), stored.astype(np.float64)
    if metric == "cosine":
        q, s = q / np.linalg.norm(q), s / np.linalg.norm(s, axis=1, keepdims=True)
    found: npt.NDArray[np.float64] = ((s - q) ** 2).sum(axis=1) if metric == "l2" else 1 - s @ q
    return found


def keys(redis: Redis) -> set[bytes]:
    """Return every key there is."""
    return set(redis.do(redis.client.call("KEYS", "*")))


def ids(result: Any) -> list[str]:
    """Return the ids of a search's rows, in order."""
    return [row.id for row in result.rows]


# -- the index itself ----------------------------------------------------------------------------


def test_create_exists_info_drop(redis: Redis) -> None:
    index = VectorIndex(redis.client, "docs", FIELDS)
    assert redis.do(index.exists()) is False
    redis.do(index.create())
    assert redis.do(index.exists()) is True
    redis.do(index.load(["a", "b"], vectors(2)))
    info = redis.do(index.info())
    assert (info.name, info.prefixes, info.documents) == ("docs", ["docs:"], 2)
    assert (info.indexing, info.percent_indexed) == (False, 1.0)
    assert (info.failures, info.last_failure) == (0, "")
    assert [attribute["attribute"] for attribute in info.attributes] == [f.name for f in FIELDS]
    assert info.memory_mb > 0
    redis.do(index.drop())
    assert redis.do(index.exists()) is False
    assert keys(redis) == {b"docs:a", b"docs:b"}


def test_create_twice_is_an_error_unless_told_otherwise(redis: Redis) -> None:
    index = make(redis)
    with pytest.raises(errors.IndexExistsError, match="exist_ok"):
        redis.do(index.create())
    redis.do(index.create(exist_ok=True))
    redis.do(index.load(["a"], vectors(1)))
    redis.do(index.create(exist_ok=True))
    assert redis.do(index.count()) == 1


def test_drop_takes_documents_with_it_only_if_told(redis: Redis) -> None:
    index = make(redis)
    redis.do(index.load(["a", "b"], vectors(2)))
    redis.do(redis.client.call("SET", "doc", "another's"))
    redis.do(index.drop(delete_documents=True))
    assert keys(redis) == {b"doc"}
    with pytest.raises(errors.IndexNotFoundError):
        redis.do(index.drop())
    with pytest.raises(errors.IndexNotFoundError):
        redis.do(index.drop(delete_documents=True))


def test_documents_under_the_prefix_are_indexed_when_it_is_created(redis: Redis) -> None:
    index = make(redis, prefix="p/")
    redis.do(index.load(["a"], vectors(1), {"year": [1]}))
    assert keys(redis) == {b"p/a"}
    redis.do(index.drop())
    redis.do(index.create())
    while redis.do(index.info()).indexing:
        sleep(0.01)
    assert ids(redis.do(index.search(vectors(1)[0]))) == ["a"]


OTHERS: list[tuple[dict[str, Any], list[str]]] = [
    ({"prefix": "other:"}, ["its prefixes are ['docs:'], not ['other:']"]),
    ({"fields": FIELDS[1:]}, ["it has a field 'color'"]),
    ({"fields": (*FIELDS, Tag("extra"))}, ["it has no field 'extra'"]),
    ({"color": Text("color")}, ["field 'color': type is tag, not text"]),
    ({"color": Tag("color", separator=";")}, ["field 'color': separator is ,, not ;"]),
    (
        {"color": Tag("color", case_sensitive=True), "owner": Tag("owner")},
        [
            "field 'color': case_sensitive is no, not yes",
            "field 'owner': case_sensitive is yes, not no",
        ],
    ),
    ({"color": Numeric("color")}, ["field 'color': type is tag, not numeric"]),
    ({"vec": Vector("vec", 9)}, ["field 'vec': dim is 8, not 9"]),
    (
        {"vec": Vector("vec", DIM, metric="l2", algorithm="hnsw", dtype="float16")},
        [
            "field 'vec': metric is cosine, not l2",
            "field 'vec': algorithm is flat, not hnsw",
            "field 'vec': dtype is float32, not float16",
        ],
    ),
    ({"vec": Vector("v", DIM)}, ["it has a field 'vec'", "it has no field 'v'"]),
]


@pytest.mark.parametrize(("change", "differences"), OTHERS)
def test_a_mismatch_says_what_differs(
    redis: Redis, change: dict[str, Any], differences: list[str]
) -> None:
    make(redis)
    options = {name: value for name, value in change.items() if name in ("prefix", "fields")}
    options.setdefault("fields", tuple(change.get(field.name, field) for field in FIELDS))
    other = VectorIndex(redis.client, "docs", **options)
    with pytest.raises(errors.IndexMismatchError) as caught:
        redis.do(other.create(exist_ok=True))
    assert caught.value.message == f"index 'docs' is another one: {'; '.join(differences)}"


@pytest.mark.parametrize("separator", [",", ";", "|", " ", ":", '"', "\\", "}", "x"])
def test_an_index_recognises_itself(redis: Redis, separator: str) -> None:
    fields = [
        Tag("a", separator=separator, case_sensitive=True),
        Tag("type", separator=separator),
        Text("b", weight=2.5),
        Numeric("c"),
        Vector("v", 3, algorithm="hnsw", m=8, ef_construction=50, ef_runtime=20, dtype="float64"),
    ]
    index = make(redis, fields, prefix="p*[:")
    redis.do(index.create(exist_ok=True))


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_field_may_be_called_like_a_flag(server: EmbeddedServer, protocol: int) -> None:
    with Client(server.url, protocol=protocol) as client:
        client.call("FLUSHALL")
        index = VectorIndex(client, "docs", [Numeric("weight"), Text("body"), Vector("v", 2)])
        index.create()
        index.create(exist_ok=True)


def test_an_index_that_is_missing_says_what_to_do(redis: Redis) -> None:
    index = VectorIndex(redis.client, "docs", FIELDS)
    calls: list[Callable[[], Any]] = [
        lambda: index.search(vectors(1)[0]),
        lambda: index.search(vectors(1)[0], filter=Tag("color") == "red"),
        index.count,
        index.info,
        index.drop,
    ]
    for call in calls:
        with pytest.raises(errors.IndexNotFoundError, match=r"create\(\)"):
            redis.do(call())


def test_a_server_without_search_is_said_to_have_none(
    redis: Redis, plain_server: EmbeddedServer
) -> None:
    index = VectorIndex(redis.connect(url=plain_server.url), "docs", FIELDS)
    calls: list[Callable[[], Any]] = [
        index.create,
        index.exists,
        index.count,
        lambda: index.search(vectors(1)[0]),
    ]
    for call in calls:
        with pytest.raises(errors.SearchUnavailableError, match="Redis Stack"):
            redis.do(call())


# -- load ----------------------------------------------------------------------------------------

COLUMNS: dict[str, list[Any]] = {
    "color": ["red", ["green", "blue"], None],
    "owner": ["Acme", "acme", "a, b".replace(",", ";")],
    "year": [1990, -0.5, None],
    "body": ["hello world", "", "héllo \0"],
    "extra": ["unindexed", 5, b"\xff\x00"],
    "with space": [None, 2.5, "x"],
}
EXPECTED: list[dict[str, Any]] = [
    {"color": "red", "owner": "Acme", "year": 1990, "body": "hello world", "extra": "unindexed"},
    {"color": "green,blue", "owner": "acme", "year": -0.5, "body": "", "extra": "5"}
    | {"with space": "2.5"},
    {"owner": "a; b", "body": "héllo \0", "extra": b"\xff\x00", "with space": "x"},
]


@pytest.mark.parametrize("shape", ["columns", "rows", "arrays"])
def test_documents_come_back_as_they_were_loaded(redis: Redis, shape: str) -> None:
    index = make(redis)
    fields: Any = COLUMNS
    if shape == "rows":
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]
        fields = [{name: value for name, value in rows[0].items() if value is not None}, *rows[1:]]
    elif shape == "arrays":
        fields = {name: np.array(column, dtype=object) for name, column in COLUMNS.items()}
    given = vectors(3)
    assert redis.do(index.load(["a", "b", "c"], given, fields)) == 3
    rows = redis.do(index.get(["a", "b", "c"]))
    assert [row.id for row in rows] == ["a", "b", "c"]
    assert [row.fields for row in rows] == EXPECTED
    assert all((row.vector == vector).all() for row, vector in zip(rows, given, strict=True))
    assert [type(row.fields.get("year")) for row in rows] == [int, float, type(None)]
    assert redis.do(index.count()) == 3
    assert redis.do(index.info()).failures == 0
    found = redis.do(index.search(given[1], 1)).rows[0]
    assert found.fields == {
        k: v for k, v in EXPECTED[1].items() if k not in ("extra", "with space")
    }


def test_numpy_numbers_are_numbers(redis: Redis) -> None:
    index = make(redis)
    redis.do(index.load([1, 2], vectors(2), {"year": np.array([3, 4], np.int16)}))
    redis.do(index.load([3], vectors(1), {"year": np.array([0.5], np.float32)}))
    assert [row.fields for row in redis.do(index.get([1, 2, 3]))] == [
        {"year": 3},
        {"year": 4},
        {"year": 0.5},
    ]


NUMBERS = np.arange(1, DIM * 2 + 1).reshape(2, DIM)


@pytest.mark.parametrize(
    "given",
    [
        NUMBERS.tolist(),
        [*NUMBERS.astype(float)],
        NUMBERS.astype(np.float16),
        NUMBERS.astype(np.float64),
        NUMBERS.astype(">f4"),
        NUMBERS.astype(np.uint8),
        np.asfortranarray(NUMBERS, np.float32),
        np.repeat(NUMBERS.astype(np.float32), 2, axis=1)[:, ::2],
    ],
)
def test_vectors_are_anything_array_like(client: Client, given: Any) -> None:
    index = VectorIndex(client, "docs", FIELDS)
    index.load(["a", "b"], given)
    stored = [client.call("HGET", key, "vec") for key in ("docs:a", "docs:b")]
    assert stored == [row.astype("<f4").tobytes() for row in NUMBERS]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_vector_makes_the_round_trip_in_the_indexs_own_type(redis: Redis, dtype: str) -> None:
    index = make(redis, [Vector("vec", DIM, dtype=dtype)])
    given = (vectors(4) * 200).astype(dtype)  # of a length whose square no half float holds
    redis.do(index.load(range(4), given))
    rows = redis.do(index.search(given[2], 4, include_vectors=True)).rows
    assert rows[0].id == "2"
    for row in rows:
        assert row.vector.dtype == np.dtype(dtype)
        assert (row.vector == given[int(row.id)]).all()
    assert redis.do(index.search(given[2])).rows[0].vector is None


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batches_load_all_and_report_progress(redis: Redis, batch_size: int) -> None:
    index = make(redis)
    seen: list[tuple[int, int]] = []
    given = vectors(20)
    loaded = redis.do(
        index.load(
            range(20),
            given,
            {"year": range(20)},
            batch_size=batch_size,
            progress=lambda done, total: seen.append((done, total)),
        )
    )
    assert loaded == 20
    assert [done for done, _ in seen] == [*range(batch_size, 20, batch_size), 20]
    assert {total for _, total in seen} == {20}
    rows = redis.do(index.get(range(20)))
    assert [row.fields["year"] for row in rows] == list(range(20))
    assert (np.array([row.vector for row in rows]) == given).all()


def test_a_batch_is_one_round_trip(redis: Redis) -> None:
    index = make(redis)
    loaded = cost(redis, lambda: index.load(range(20), vectors(20), batch_size=10, ttl=50))
    assert loaded.round_trips == 2
    # In the same write the server is asked how many of them are indexed.
    assert loaded.commands == {"DEL": 2, "HSET": 20, "PEXPIRE": 20, "FT.SEARCH": 2}
    found = cost(redis, lambda: index.get(range(20)))
    assert (found.round_trips, found.commands) == (1, {"HGETALL": 20})
    first = cost(redis, lambda: index.search(vectors(1)[0], 20))
    assert (first.round_trips, first.commands) == (1, {"FT.SEARCH": 1, "FT.INFO": 1})
    searched = cost(redis, lambda: index.search(vectors(1)[0], 20))
    assert (searched.round_trips, searched.commands) == (1, {"FT.SEARCH": 1})


def test_whole_numbers_are_ids_too(redis: Redis) -> None:
    index = make(redis)
    redis.do(index.load([1, "two", -3], vectors(3)))
    assert keys(redis) == {b"docs:1", b"docs:two", b"docs:-3"}
    assert sorted(ids(redis.do(index.search(vectors(1)[0])))) == ["-3", "1", "two"]
    assert redis.do(index.delete([1, "-3"])) == 2


@pytest.mark.parametrize("id_", ["a:b", "docs:a", "日本 語", "*", "x" * 5000, " s "])
def test_ids_come_back_without_the_prefix(redis: Redis, id_: str) -> None:
    index = make(redis)
    redis.do(index.load([id_], vectors(1)))
    assert ids(redis.do(index.search(vectors(1)[0]))) == [id_]
    assert redis.do(index.get([id_]))[0].id == id_
    assert redis.do(index.delete([id_])) == 1


def test_a_document_is_replaced_whole(redis: Redis) -> None:
    index = make(redis)
    redis.do(index.load(["a", "b"], vectors(2), {"color": ["red"] * 2, "x": [1, 2]}, ttl=100))
    assert 90_000 < redis.do(redis.client.call("PTTL", "docs:a")) <= 100_000
    redis.do(index.load(["a"], vectors(1, seed=2), {"year": [5]}))
    row = redis.do(index.get(["a"]))[0]
    assert row.fields == {"year": 5}
    assert (row.vector == vectors(1, seed=2)[0]).all()
    assert redis.do(redis.client.call("PTTL", "docs:a")) == -1
    assert redis.do(index.get(["b"]))[0].fields == {"color": "red", "x": "2"}
    assert redis.do(index.count(Tag("color") == "red")) == 1


def test_a_row_that_expired_is_gone(redis: Redis) -> None:
    index = make(redis)
    redis.do(index.load(["a", "b"], vectors(2), ttl=0.001))
    redis.do(index.load(["c"], vectors(1), ttl=500))
    sleep(0.01)
    assert ids(redis.do(index.search(vectors(1)[0]))) == ["c"]
    assert redis.do(index.get(["a", "c", "b"]))[0] is None


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_row_that_expired_and_is_still_indexed_is_left_out(protocol: int) -> None:
    with (
        EmbeddedServer(extra=("--enable-debug-command", "yes")) as server,
        Client(server.url, protocol=protocol) as client,
    ):
        client.call("DEBUG", "SET-ACTIVE-EXPIRE", 0)
        index = VectorIndex(client, "docs", FIELDS)
        index.create()
        index.load(["a", "b", "c"], vectors(3))
        index.load(["dead"], vectors(1), ttl=0.001)
        sleep(0.01)
        assert index.info().documents == 4
        assert sorted(ids(index.search(vectors(1)[0]))) == ["a", "b", "c"]


def test_nothing_to_load(redis: Redis) -> None:
    index = make(redis)
    assert redis.do(index.load([], np.empty((0, DIM)))) == 0
    assert redis.do(index.load([], [])) == 0
    assert redis.do(index.load([], [], {"year": []})) == 0
    assert redis.do(index.get([])) == []
    assert redis.do(index.delete([])) == 0
    assert redis.do(index.count()) == 0
    assert redis.do(index.search(vectors(1)[0])).rows == []


# -- get, delete, count --------------------------------------------------------------------------


def test_get_delete_count(redis: Redis) -> None:
    index = make(redis)
    redis.do(index.load(range(5), vectors(5), {"year": range(5)}))
    rows = redis.do(index.get([3, "nowhere", 0, 3]))
    assert [row and row.id for row in rows] == ["3", None, "0", "3"]
    assert redis.do(index.count(Numeric("year") >= 3)) == 2
    assert redis.do(index.delete([3, "nowhere", 3])) == 1
    assert redis.do(index.count()) == 4
    assert redis.do(index.count(Numeric("year") >= 3)) == 1
    assert ids(redis.do(index.search(vectors(5)[3], 5))).count("3") == 0


# -- search --------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_flat_search_equals_brute_force(redis: Redis, metric: str, dtype: str) -> None:
    index = make(redis, [Vector("vec", DIM, metric=metric, dtype=dtype)])
    stored = vectors(200)
    redis.do(index.load(range(200), stored))
    for query in vectors(5, seed=2):
        expected = distances(metric, query, stored)
        order = [str(i) for i in np.argsort(expected)]
        result = redis.do(index.search(query, 20))
        assert ids(result) == order[:20]
        assert [row.distance for row in result.rows] == pytest.approx(
            np.sort(expected)[:20], abs=1e-5
        )
        assert not result.partial
        assert result.warnings == []
        pages = [redis.do(index.search(query, 7, offset=offset)) for offset in (0, 7, 14)]
        assert [id_ for page in pages for id_ in ids(page)] == order[:21]
        assert ids(redis.do(index.search(query, 7, offset=196))) == order[196:]
        assert ids(redis.do(index.search(query, 5, offset=200))) == []


def test_hnsw_finds_nearly_all(redis: Redis) -> None:
    index = make(redis, [Vector("vec", DIM, algorithm="hnsw")])
    stored = vectors(500)
    redis.do(index.load(range(500), stored))
    found = 0
    for query in vectors(20, seed=2):
        nearest = set(np.argsort(distances("cosine", query, stored))[:10])
        found += len(nearest & {int(i) for i in ids(redis.do(index.search(query, 10)))})
        wide = {int(i) for i in ids(redis.do(index.search(query, 10, ef_runtime=500)))}
        assert wide == nearest
    assert found >= 190


@pytest.mark.parametrize("count", [11, 100, 1500])
def test_k_is_what_one_gets(redis: Redis, count: int) -> None:
    index = make(redis)
    redis.do(index.load(range(1500), vectors(1500)))
    result = redis.do(index.search(vectors(1)[0], count))
    assert len(set(ids(result))) == len(result.rows) == count


@pytest.mark.parametrize(
    ("metric", "scale", "nearness"),
    [("cosine", 5.0, 1.0), ("cosine", -1.0, 0.0), ("l2", 1.0, 1.0), ("l2", 2.0, 0.5)],
)
def test_similarity_is_from_0_to_1(
    redis: Redis, metric: str, scale: float, nearness: float
) -> None:
    index = make(redis, [Vector("vec", 2, metric=metric)])
    redis.do(index.load(["a"], [[1.0, 0.0]]))
    row = redis.do(index.search([scale, 0.0])).rows[0]
    assert row.similarity == pytest.approx(nearness, abs=1e-6)


FILTERS: list[tuple[Filter, Callable[[int], bool]]] = [
    (Tag("color") == "red", lambda i: i % 3 == 0),
    (Tag("color") != "red", lambda i: i % 3 != 0),
    (Tag("color").one_of(["red", "blue"]), lambda i: i % 3 != 1),
    (Numeric("year") < 20, lambda i: i < 20),
    ((Tag("color") == "red") & (Numeric("year") >= 30), lambda i: i % 3 == 0 and i >= 30),
    ((Tag("color") == "red") | (Numeric("year") >= 30), lambda i: i % 3 == 0 or i >= 30),
    (~((Tag("color") == "red") | (Numeric("year") >= 30)), lambda i: i % 3 != 0 and i < 30),
    (Text("body").matches("word7"), lambda i: i == 7),
    (Numeric("year") == -1, lambda _: False),
]


@pytest.mark.parametrize(("condition", "wanted"), FILTERS, ids=[repr(f) for f, _ in FILTERS])
@pytest.mark.parametrize("algorithm", ["flat", "hnsw"])
def test_only_what_matches_the_filter_is_ranked(
    redis: Redis, algorithm: str, condition: Filter, wanted: Callable[[int], bool]
) -> None:
    index = make(redis, [*FIELDS[:4], Vector("vec", DIM, algorithm=algorithm)])
    stored = vectors(60)
    columns = {
        "color": [["red", "green", "blue"][i % 3] for i in range(60)],
        "year": range(60),
        "body": [f"word{i}" for i in range(60)],
    }
    redis.do(index.load(range(60), stored, columns))
    query = vectors(1, seed=2)[0]
    order = [int(i) for i in np.argsort(distances("cosine", query, stored)) if wanted(int(i))]
    result = redis.do(index.search(query, 60, filter=condition))
    assert ids(result) == [str(i) for i in order]
    assert redis.do(index.count(condition)) == len(order)


def test_return_fields_choose_what_comes_back(redis: Redis) -> None:
    index = make(redis)
    columns = {"color": ["red"], "year": [5], "extra": ["e"], "with space": ["s"]}
    redis.do(index.load(["a"], vectors(1), columns))

    def fields(**options: Any) -> Any:
        row = redis.do(index.search(vectors(1)[0], **options)).rows[0]
        assert row.distance == pytest.approx(0, abs=1e-6)
        return row.fields

    assert fields() == {"color": "red", "year": 5}
    assert fields(return_fields=[]) == {}
    assert fields(return_fields=["year"]) == {"year": 5}
    assert fields(return_fields=["extra", "with space"]) == {"extra": "e", "with space": "s"}
    assert fields(return_fields=["nowhere"]) == {}
    assert fields(return_fields=["year"], include_vectors=True) == {"year": 5}
    row = redis.do(index.search(vectors(1)[0], return_fields=[], include_vectors=True)).rows[0]
    assert (row.vector == vectors(1)[0]).all()


@pytest.mark.parametrize("given", [["body"], []], ids=["named none", "has none"])
def test_a_query_may_return_ids_alone(redis: Redis, given: list[str]) -> None:
    index = make(redis, [*(Text(name) for name in given), Vector("vec", DIM)])
    redis.do(index.load(["a", "b"], vectors(2), {name: ["cat", "cat"] for name in given}))
    found = [redis.do(index.query(return_fields=[] if given else None))]
    if given:
        found.append(redis.do(index.text("cat", return_fields=[])))
    for result in found:
        assert sorted(ids(result)) == ["a", "b"]
        assert [row.fields for row in result.rows] == [{}, {}]


def test_numpy_numbers_are_options(redis: Redis) -> None:
    index = make(redis, [Vector("vec", DIM, algorithm="hnsw")])
    redis.do(index.load(["a"], vectors(1)))
    for epsilon in (np.float64(0.5), np.float32(0.5)):
        found = redis.do(index.range(vectors(1)[0], np.float64(0.1), epsilon=epsilon))
        assert ids(found) == ["a"]


def test_one_form_of_query_is_right_on_every_server() -> None:
    # Without SORTBY and LIMIT a cluster's rows are neither the nearest nor k; without RETURN the
    # raw vectors come back; without DIALECT 2 it is a syntax error.
    index = VectorIndex(Client(NOBODY), "docs", FIELDS).plan
    vector = vectors(1)[0]
    op: Any = index.search(vector, 20, filter=Tag("color") == "red", offset=5)
    info, queries = next(op).members
    assert info.args == ("FT.INFO", "docs")
    [command] = queries.members
    query, distance = '(@color:{"red"})=>[KNN 25 @vec $vector AS __distance]', "__distance"
    assert command.args[:6] == ("FT.SEARCH", "docs", query, "PARAMS", 2, "vector")
    assert bytes(command.args[6]) == vector.tobytes()
    assert command.args[7:] == (
        *("SORTBY", distance, "LIMIT", 0, 25),
        *("RETURN", 5, distance, "color", "owner", "year", "body", "DIALECT", 2),
    )


def test_a_stored_field_cannot_pretend_to_be_the_distance(redis: Redis) -> None:
    index = make(redis)
    redis.do(redis.client.call("HSET", "docs:b", "vec", vectors(2)[1], "__distance", "-1"))
    redis.do(redis.client.call("HSET", "docs:a", "vec", vectors(2)[0]))
    rows = redis.do(index.search(vectors(2)[0])).rows
    assert [row.id for row in rows] == ["a", "b"]
    assert rows[1].distance > 0.01


# -- what must not get in ------------------------------------------------------------------------

GOOD = vectors(2).tolist()


def with_row(row: list[float] | Floats) -> list[Any]:
    """Return two vectors, the second of them bad."""
    return [GOOD[0], row]


Use = Callable[[VectorIndex[Client]], object]


def loading(*args: Any, **options: Any) -> Use:
    """Return a use of `load` of which the type checker shall know nothing."""
    return lambda index: index.load(*args, **options)


def searching(*args: Any, **options: Any) -> Use:
    """Return a use of `search` of which the type checker shall know nothing."""
    return lambda index: index.search(*args, **options)


AB = ["a", "b"]
BAD_CALLS: list[tuple[type[Exception], str, Use]] = [
    # ids
    (TypeError, "ids must be a list", loading("ab", GOOD)),
    (TypeError, "ids must be a str", loading(["a", None], GOOD)),
    (TypeError, "ids must be a str", loading(["a", True], GOOD)),
    (TypeError, "ids must be a str", loading(["a", 1.5], GOOD)),
    (ValueError, "ids must not be empty", loading(["a", ""], GOOD)),
    (ValueError, "ids is not valid Unicode", loading(["a", "\ud800"], GOOD)),
    # RediSearch cuts a key at a NUL: the row would show the fields of document "a".
    (ValueError, "ids must not hold a NUL", loading(["a", "a\0b"], GOOD)),
    (ValueError, "'a' is given twice", loading(["a", "a"], GOOD)),
    (ValueError, "'1' is given twice", loading([1, "1"], GOOD)),
    (ValueError, "3 ids, but 2 vectors", loading([1, 2, 3], GOOD)),
    (ValueError, "1 ids, but 2 vectors", loading([1], GOOD)),
    # vectors
    (ValueError, "row 1 of vectors is not finite", loading(AB, with_row([math.nan] * DIM))),
    (ValueError, "row 1 of vectors is not finite", loading(AB, with_row([1.0] * 7 + [math.inf]))),
    (ValueError, "row 1 of vectors is not finite", loading(AB, with_row([1.0] * 7 + [-math.inf]))),
    (ValueError, "row 1 of vectors is not finite", loading(AB, with_row([1e39] * DIM))),
    (ValueError, "row 1 of vectors has a length of zero", loading(AB, with_row([0.0] * DIM))),
    (ValueError, "row 1 of vectors has a length of zero", loading(AB, with_row([-0.0] * DIM))),
    (ValueError, "row 1 of vectors has a length of zero", loading(AB, with_row([1e-50] * DIM))),
    (ValueError, "vectors is not finite", loading(["a"], [[math.nan] * DIM])),
    (ValueError, "9 dimensions, the index has 8", loading(AB, vectors(2, 9))),
    (ValueError, r"shape \(n, dim\)", loading(AB, GOOD[0])),
    (ValueError, r"shape \(n, dim\)", loading(AB, [GOOD])),
    (ValueError, "ragged", loading(AB, [GOOD[0], GOOD[1][:7]])),
    (TypeError, "real numbers, not object", loading(AB, np.array(GOOD, dtype=object))),
    (TypeError, "real numbers, not complex", loading(AB, np.array(GOOD, dtype=complex))),
    (TypeError, "real numbers, not bool", loading(AB, np.ones((2, DIM), bool))),
    (TypeError, "real numbers", loading(AB, [["1"] * DIM] * 2)),
    (TypeError, "real numbers, not object", loading(AB, None)),
    # fields
    (ValueError, "'year': 1 values, but 2 ids", loading(AB, GOOD, {"year": [1]})),
    (TypeError, "'color': a column is a list", loading(AB, GOOD, {"color": "ab"})),
    (ValueError, "1 documents, but 2 ids", loading(AB, GOOD, [{"year": 1}])),
    (ValueError, "'vec' is the vector", loading(AB, GOOD, {"vec": [b"", b""]})),
    (TypeError, "tag 'color' takes text", loading(AB, GOOD, {"color": ["red", 5]})),
    (TypeError, "tag 'color' takes text", loading(AB, GOOD, [{"color": "x"}, {"color": [5]}])),
    (TypeError, "tag 'color' takes text", loading(AB, GOOD, {"color": ["red", []]})),
    (ValueError, "tag 'color': ',' would split", loading(AB, GOOD, {"color": ["red", "a,b"]})),
    (ValueError, "tag 'color': ',' would split", loading(AB, GOOD, {"color": ["red", ["a,b"]]})),
    (ValueError, "tag 'color' must not be empty", loading(AB, GOOD, {"color": ["red", ""]})),
    (ValueError, "tag 'color'.*white space", loading(AB, GOOD, {"color": ["red", " red"]})),
    (ValueError, "tag 'color'.*white space", loading(AB, GOOD, {"color": ["red", "red\n"]})),
    (ValueError, "tag 'color'.*NUL", loading(AB, GOOD, {"color": ["red", "r\0d"]})),
    (ValueError, "tag 'color'.*4096", loading(AB, GOOD, {"color": ["red", "x" * 4097]})),
    (TypeError, "text 'body' takes text", loading(AB, GOOD, {"body": ["x", 5]})),
    (TypeError, "'year' takes a number", loading(AB, GOOD, {"year": [1, "1"]})),
    (TypeError, "'year' takes a number", loading(AB, GOOD, {"year": [1, True]})),
    (ValueError, "'year'.*NaN", loading(AB, GOOD, {"year": [1, math.nan]})),
    (ValueError, "'year' must be finite", loading(AB, GOOD, {"year": [1, math.inf]})),
    (ValueError, "'year'.*doubles", loading(AB, GOOD, {"year": [1, 2**53 + 1]})),
    (TypeError, "'extra' takes text, bytes", loading(AB, GOOD, {"extra": ["x", ["list"]]})),
    (TypeError, "'extra' takes text, bytes", loading(AB, GOOD, {"extra": ["x", True]})),
    (ValueError, "fields must not be empty", loading(AB, GOOD, {"": ["x", "y"]})),
    (TypeError, "fields must be a str", loading(AB, GOOD, {5: ["x", "y"]})),
    # the rest of load
    (ValueError, "ttl", loading(AB, GOOD, ttl=0)),
    (TypeError, "ttl", loading(AB, GOOD, ttl=True)),
    (ValueError, "batch_size", loading(AB, GOOD, batch_size=0)),
    (TypeError, "batch_size", loading(AB, GOOD, batch_size=1.5)),
    # search
    (ValueError, "7 dimensions, the index has 8", searching(GOOD[0][:7])),
    (ValueError, r"shape \(dim,\)", searching(GOOD)),
    (ValueError, "vector has a length of zero", searching([0.0] * DIM)),
    (ValueError, "vector is not finite", searching([math.nan] * DIM)),
    (TypeError, "real numbers", searching("a text")),
    (ValueError, "k must be a whole number from 1", searching(GOOD[0], 0)),
    (ValueError, "k must be a whole number from 1", searching(GOOD[0], -1)),
    (ValueError, "k must be a whole number from 1", searching(GOOD[0], k=True)),
    (TypeError, "k must be a whole number", searching(GOOD[0], 1.0)),
    (ValueError, "1000000 rows at most", searching(GOOD[0], 999_999, offset=2)),
    (ValueError, "offset", searching(GOOD[0], offset=-1)),
    (ValueError, "ef_runtime: only an index of hnsw", searching(GOOD[0], ef_runtime=5)),
    (TypeError, "return_fields", searching(GOOD[0], return_fields=[5])),
    (ValueError, "no field 'colour', only", searching(GOOD[0], filter=Tag("colour") == "x")),
    (ValueError, "'year' is NUMERIC, not TAG", searching(GOOD[0], filter=Tag("year") == "x")),
    (ValueError, "'body' is TEXT, not NUMERIC", searching(GOOD[0], filter=Numeric("body") > 1)),
    (ValueError, "'vec' is VECTOR, not TAG", searching(GOOD[0], filter=Tag("vec") == "x")),
    (TypeError, "must be a Filter or None, not str", searching(GOOD[0], filter="@color:{red}")),
    (TypeError, "must be a Filter or None, not bool", searching(GOOD[0], filter=False)),
    (ValueError, "no field 'a'", lambda i: i.count((Tag("color") == "x") & (Numeric("a") > 1))),
    (TypeError, "ids must be a list", lambda i: i.get("a")),
    (TypeError, "ids must be a list", lambda i: i.delete("a")),
    (ValueError, "ids must not be empty", lambda i: i.delete([""])),
]


@pytest.mark.parametrize(("error", "message", "use"), BAD_CALLS, ids=[m for _, m, _ in BAD_CALLS])
def test_a_bad_argument_is_refused_before_any_io(
    error: type[Exception], message: str, use: Use
) -> None:
    with Client(NOBODY) as client, pytest.raises(error, match=message) as caught:
        use(VectorIndex(client, "docs", FIELDS))
    assert type(caught.value) is error


def test_a_good_argument_would_have_been_sent() -> None:
    with Client(NOBODY) as client:
        index = VectorIndex(client, "docs", FIELDS)
        for use in (loading(AB, GOOD), searching(GOOD[0])):
            with pytest.raises(errors.ConnectError):
                use(index)


BAD_INDEXES: list[tuple[type[Exception], str, Callable[[], object]]] = [
    (ValueError, "name", lambda: VectorIndex(Client(), "", FIELDS)),
    (TypeError, "name", lambda: VectorIndex(Client(), None, FIELDS)),  # type: ignore[arg-type]
    (ValueError, "prefix", lambda: VectorIndex(Client(), "n", FIELDS, prefix="")),
    (
        ValueError,
        "prefix must not hold a NUL",
        lambda: VectorIndex(Client(), "n", FIELDS, prefix="\0"),
    ),
    (ValueError, "name must not hold a NUL", lambda: VectorIndex(Client(), "n\0", FIELDS)),
    (ValueError, "one Vector field, 0", lambda: VectorIndex(Client(), "n", FIELDS[:4])),
    (
        ValueError,
        "one Vector field, 2",
        lambda: VectorIndex(Client(), "n", [*FIELDS, Vector("w", 2)]),
    ),
    (ValueError, "'vec' is given twice", lambda: VectorIndex(Client(), "n", [*FIELDS, FIELDS[4]])),
    (TypeError, "fields are", lambda: VectorIndex(Client(), "n", ["color"])),  # type: ignore[list-item]
    (ValueError, "dtype must be one of", lambda: Vector("v", 2, dtype="int7")),
    (ValueError, "metric must be one of", lambda: Vector("v", 2, metric="COSINE")),
    (ValueError, "algorithm must be one of", lambda: Vector("v", 2, algorithm="ivf")),
    (ValueError, "dim", lambda: Vector("v", 0)),
    (TypeError, "dim", lambda: Vector("v", 2.0)),  # type: ignore[arg-type]
    (TypeError, "m: flat has only", lambda: Vector("v", 2, m=16)),
    (ValueError, "m must be", lambda: Vector("v", 2, algorithm="hnsw", m=0)),
    (ValueError, "separator", lambda: Tag("t", separator="")),
    (ValueError, "separator", lambda: Tag("t", separator="é")),
    (ValueError, "weight", lambda: Text("t", weight=0)),
    (ValueError, "weight", lambda: Text("t", weight=math.nan)),
    *(
        (ValueError, "field", partial(Tag, name))
        for name in ("", "a b", "a-b", "1a", "é", "a:b", "@a", "a\n", "__x", "a}", "$v")
    ),
    (TypeError, "field", lambda: Tag(5)),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("error", "message", "build"), BAD_INDEXES)
def test_a_bad_index_is_refused(
    error: type[Exception], message: str, build: Callable[[], object]
) -> None:
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(
    ("bad", "dtype"),
    [
        ([0.0] * DIM, "float32"),
        ([math.nan] + [1.0] * 7, "float32"),
        ([math.inf] + [1.0] * 7, "float32"),
        ([1e-60] * DIM, "float32"),
        ([1e-9] * DIM, "float16"),
        ([7e4] * DIM, "float16"),
        ([1e-30] * DIM, "float32"),
        ([1e30] * DIM, "float32"),
        ([1e-200] * DIM, "float64"),  # its square is 0 for Redis, too
        ([1e200] * DIM, "float64"),
        ([7e2] * DIM, "float16"),
    ],
)
@pytest.mark.parametrize("algorithm", ["flat", "hnsw"])
def test_no_vector_that_gets_in_poisons_the_search(
    client: Client, algorithm: str, dtype: str, bad: list[float]
) -> None:
    index = VectorIndex(client, "docs", [Vector("vec", DIM, algorithm=algorithm, dtype=dtype)])
    index.create()
    try:
        index.load(["bad"], [bad])
    except ValueError:
        assert client.call("DBSIZE") == 0
        with pytest.raises(ValueError, match="vector"):
            index.search(bad)
    else:
        assert index.search(bad).rows[0].distance == pytest.approx(0, abs=1e-3)
    stored = vectors(100)
    index.load(range(100), stored)
    found = [ids(index.search(vector, 1)) for vector in stored]
    assert found == [[str(i)] for i in range(100)]
    assert not any(math.isnan(row.distance or 0) for row in index.search(stored[0], 101).rows)


def test_what_the_server_would_drop_is_counted_by_info(redis: Redis) -> None:
    index = make(redis)
    # What this library never writes: another client stores a vector of another size.
    redis.do(redis.client.call("HSET", "docs:bad", "vec", b"abc"))
    info = redis.do(index.info())
    assert (info.documents, info.failures) == (0, 1)
    assert info.last_failure
