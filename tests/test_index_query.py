"""Documents by filter alone, in pages and sorted, and what the server says of how it did it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from counting import cost
from rawredis_llm import Client, EmbeddedServer, Numeric, Tag, Text, Vector, VectorIndex, errors
from rawredis_llm.search.aggregate import avg, count, group_by, load

if TYPE_CHECKING:
    from conftest import Redis

FIELDS = (
    Tag("color"),
    Numeric("n", sortable=True),
    Numeric("year"),
    Text("body", sortable=True),
    Vector("vec", 2),
)
COUNT = 230


def make(redis: Redis, **options: Any) -> VectorIndex[Any]:
    """Return an index of documents whose numbers are shuffled."""
    index: VectorIndex[Any] = VectorIndex(redis.client, "docs", FIELDS, **options)
    redis.do(index.create())
    order = list(range(COUNT))
    random.Random(1).shuffle(order)
    columns = {
        "color": [["red", "blue"][i % 2] for i in range(COUNT)],
        "n": order,
        "year": [i / 4 for i in order],
        "body": [f"word{i:03}" for i in order],
    }
    redis.do(index.load(range(COUNT), np.ones((COUNT, 2)), columns))
    if index.schema.json:
        redis.do(index.wait_until_indexed())
    return index


# -- query ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sort_by", "on"),
    [
        *[(by, "hash") for by in (None, "n", "-n", "year", "-year", "body", "-body", "color")],
        *[(by, "json") for by in (None, "n", "-n", "year", "-year", "color", "body", "-body")],
    ],
)
def test_pages_hold_all_exactly_once(redis: Redis, sort_by: str | None, on: str) -> None:
    index = make(redis, on=on)
    cases = [(None, COUNT), (Tag("color") == "red", COUNT // 2), (Numeric("n") < 0, 0)]
    for condition, matching in cases:
        pages = [
            redis.do(index.query(condition, sort_by=sort_by, limit=40, offset=at))
            for at in range(0, COUNT + 40, 40)
        ]
        rows = [row for page in pages for row in page.rows]
        assert {page.total for page in pages} == {matching}
        assert len({row.id for row in rows}) == len(rows) == matching
        if sort_by is not None:
            values = [row.fields[sort_by.removeprefix("-")] for row in rows]
            assert values == sorted(values, reverse=sort_by.startswith("-"))
        assert all(row.distance is row.score is row.vector is None for row in rows)


def test_ten_rows_come_unless_one_says_how_many(redis: Redis) -> None:
    index = make(redis)
    assert len(redis.do(index.query()).rows) == 10
    assert len(redis.do(index.query(limit=COUNT + 5)).rows) == COUNT
    found = cost(redis, lambda: index.query(limit=5))
    assert (found.round_trips, found.commands) == (1, {"FT.SEARCH": 1})


def test_rows_hold_what_is_asked_for(redis: Redis) -> None:
    index = make(redis)
    [row] = redis.do(index.query(Numeric("n") == 7)).rows
    assert row.fields == {
        "color": row.fields["color"],
        "n": 7,
        "year": 1.75,
        "body": "word007",
    }
    [row] = redis.do(index.query(Numeric("n") == 7, return_fields=["year", "nowhere"])).rows
    assert row.fields == {"year": 1.75}
    [row] = redis.do(index.query(Numeric("n") == 7, sort_by="body", return_fields=["n"])).rows
    assert row.fields == {"n": 7}
    [row] = redis.do(index.query(Numeric("n") == 7, return_fields=["n"], include_vectors=True)).rows
    assert (row.fields, row.vector.tolist()) == ({"n": 7}, [1.0, 1.0])


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"limit": 0}, ValueError, "limit must be"),
    ({"limit": 1.5}, TypeError, "limit must be"),
    ({"offset": -1}, ValueError, "offset must be"),
    ({"limit": 2, "offset": 999_999}, ValueError, "1000000 rows"),
    ({"sort_by": "nowhere"}, ValueError, "sort_by: 'nowhere' is none of"),
    ({"sort_by": "--n"}, ValueError, "sort_by: '-n' is none of"),
    ({"sort_by": "vec"}, ValueError, "sort_by: 'vec' is none of"),
    ({"sort_by": ""}, ValueError, "sort_by"),
    ({"sort_by": 5}, TypeError, "sort_by"),
    ({"filter": "*"}, TypeError, "must be a Filter"),
    ({"filter": Tag("n") == "x"}, ValueError, "'n' is NUMERIC, not TAG"),
    ({"return_fields": "n"}, TypeError, "return_fields must be a list"),
    ({"return_fields": [5]}, TypeError, "return_fields"),
    ({"timeout": -1}, ValueError, "timeout"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=[str(b[0]) for b in BAD])
def test_a_bad_argument_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with Client("redis://127.0.0.1:1/0") as client, pytest.raises(error, match=message):
        VectorIndex(client, "docs", FIELDS).query(**options)


# -- explain -------------------------------------------------------------------------------------

Ask = Callable[[VectorIndex[Any]], Any]
WHAT: dict[str, tuple[Ask, str, str]] = {
    "search": (lambda i: i.search([1.0, 0.0], 3), "FT.SEARCH", "VECTOR {K=3 nearest"),
    "filtered": (
        lambda i: i.search([1.0, 0.0], 3, filter=Tag("color") == "red"),
        *("FT.SEARCH", "TAG:@color"),
    ),
    "range": (lambda i: i.range([1.0, 0.0], 0.5), "FT.SEARCH", "Vectors that are within 0.5"),
    "text": (lambda i: i.text("word001"), "FT.SEARCH", "word001"),
    "query": (lambda i: i.query(Numeric("n") > 5, sort_by="n"), "FT.SEARCH", "NUMERIC"),
    "aggregate": (
        lambda i: i.aggregate(
            load("n", "color"), group_by("color", n=avg("n")), filter=Tag("color") == "red"
        ),
        *("FT.AGGREGATE", "TAG:@color"),
    ),
    "mmr": (lambda i: i.mmr([1.0, 0.0], 3), "FT.SEARCH", "VECTOR {K=20 nearest"),
}


@pytest.mark.parametrize("what", WHAT)
def test_a_query_is_explained(redis: Redis, what: str) -> None:
    ask, command, part = WHAT[what]
    index = make(redis)
    for _ in range(2):  # as the first search of the index, and later
        found = redis.do(index.explain(ask(index.plan)))
        assert found.argv[:2] == [command, "docs"]
        assert "DIALECT" in found.argv
        assert part in found.plan
        assert set(found.profile) == PROFILED
        assert isinstance(found.profile["Total profile time"], float)
        steps = found.profile["Result processors profile"]
        assert steps[0]["Type"] == "Index"
        assert all(isinstance(step["Counter"], int) for step in steps)
        redis.do(index.query())


PROFILED = {"Total profile time", "Parsing time", "Pipeline creation time", "Warning"} | {
    "Iterators profile",
    "Result processors profile",
}


def keyed(node: Any) -> Iterator[str]:
    """Return every key in nested dicts, in order."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield key
            yield from keyed(value)
    elif isinstance(node, list):
        for part in node:
            yield from keyed(part)


@pytest.mark.parametrize("what", [name for name in WHAT if name != "text"])
def test_a_profile_has_the_same_keys_in_both_protocols(server: EmbeddedServer, what: str) -> None:
    check_profiles(server.url, WHAT[what][0])


@pytest.mark.parametrize("words", ["running", "word001 word002"])
def test_a_profile_of_several_words_too(server: EmbeddedServer, words: str) -> None:
    check_profiles(server.url, lambda index: index.text(words))


def check_profiles(url: str, ask: Ask) -> None:
    found = []
    for protocol in (2, 3):
        with Client(url, protocol=protocol) as client:
            client.call("FLUSHALL")
            index = VectorIndex(client, "docs", FIELDS)
            index.create()
            columns = {"body": [f"running word00{i}" for i in range(9)], "n": range(9)}
            index.load(range(9), np.ones((9, 2)), columns)
            profile = index.explain(ask(index.plan)).profile
            found.append([*keyed(profile)])
    assert found[0] == found[1]


def test_a_vector_is_explained_as_its_search(redis: Redis) -> None:
    index = make(redis)
    found = redis.do(index.explain([1.0, 0.0], 4, filter=Tag("color") == "red"))
    assert found.argv == [
        *("FT.SEARCH", "docs", '"(@color:{\\"red\\"})=>[KNN 4 @vec $vector AS __distance]"'),
        *("PARAMS", "2", "vector", "<8 bytes>", "SORTBY", "__distance", "LIMIT", "0", "4"),
        *("RETURN", "5", "__distance", "color", "n", "year", "body", "DIALECT", "2"),
    ]
    found = redis.do(index.explain(index.plan.range([1.0, 0.0], 0.5, limit=2)))
    assert found.argv[2:] == [
        '"@vec:[VECTOR_RANGE $radius $vector]=>{$YIELD_DISTANCE_AS: __distance}"',
        *("PARAMS", "4", "vector", "<8 bytes>", "radius", "0.5", "SORTBY", "__distance"),
        *("LIMIT", "0", "2", "RETURN", "5", "__distance", "color", "n", "year", "body"),
        *("DIALECT", "2"),
    ]


def test_an_explanation_is_one_round_trip_and_runs_the_query_once(redis: Redis) -> None:
    index = make(redis)
    found = cost(redis, lambda: index.explain([1.0, 0.0], 4))
    assert (found.round_trips, found.commands) == (1, {"FT.EXPLAIN": 1, "FT.PROFILE": 1})


def test_a_name_may_be_a_word_of_the_language(client: Client) -> None:
    index = VectorIndex(client, "docs", FIELDS)
    index.create()
    found = index.explain(index.plan.aggregate(load("n"), group_by("n", PARAMS=count())))
    assert "Grouper" in str(found.profile)


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda i: i.plan.count(), None, ""),
        (lambda i: i.plan.info(), ValueError, "FT.INFO has no explanation"),
        (lambda i: i.plan.get(["a"]), ValueError, "HGETALL has no explanation"),
        (lambda _: [1.0], ValueError, "1 dimensions"),
        (lambda _: "words", TypeError, "real numbers"),
        (lambda i: i.plan.query(filter=Tag("x") == "y"), ValueError, "no field 'x'"),
    ],
)
def test_only_queries_are_explained(
    client: Client, ask: Ask, error: type[Exception] | None, message: str
) -> None:
    index = VectorIndex(client, "docs", FIELDS)
    index.create()
    if error is None:
        assert index.explain(ask(index)).argv[0] == "FT.SEARCH"
        return
    with pytest.raises(error, match=message):
        index.explain(ask(index))


def test_a_hybrid_search_is_explained_whole_or_not_at_all(client: Client) -> None:
    index = VectorIndex(client, "docs", FIELDS)
    index.create()
    index.hybrid("word", [1.0, 0.0])
    with pytest.raises(ValueError, match="explanation"):
        index.explain(index.plan.hybrid("word", [1.0, 0.0]))


def test_a_missing_index_has_no_explanation(redis: Redis) -> None:
    with pytest.raises(errors.IndexNotFoundError, match=r"create\(\)"):
        redis.do(VectorIndex(redis.client, "nowhere", FIELDS).explain([1.0, 0.0]))
