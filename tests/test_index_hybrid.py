"""Text and vector together, and results that differ from each other: against plain references."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from counting import cost
from fake import Fake, polite
from models import check_marginal, check_ranked, clustered, reciprocal
from rawredis_llm import Client, Numeric, Tag, Text, Vector, VectorIndex, errors
from rawredis_llm.search.fusion import diverse, reciprocal_ranks, weighted
from scripted import Script, shape

if TYPE_CHECKING:
    from conftest import Redis

DIM = 8
COUNT = 250
FIELDS = (Text("body"), Tag("color"), Numeric("n"), Vector("vec", DIM))
WORDS = ["red", "wine", "river", "museum", "night", "beach", "surf", "city", "train", "old"]


def make(redis: Redis, **vector: Any) -> VectorIndex[Any]:
    """Return an index of documents of words and vectors; one in five has no text."""
    fields = (*FIELDS[:3], Vector("vec", DIM, **vector)) if vector else FIELDS
    index: VectorIndex[Any] = VectorIndex(redis.client, "docs", fields)
    redis.do(index.create())
    rng = random.Random(3)
    columns = {
        "body": [
            " ".join(rng.choices(WORDS, k=rng.randint(1, 8))) if i % 5 else None
            for i in range(COUNT)
        ],
        "color": [["red", "blue"][i % 2] for i in range(COUNT)],
        "n": range(COUNT),
    }
    redis.do(index.load(range(COUNT), clustered(COUNT, DIM), columns))
    return index


def query(seed: int = 5) -> Any:
    """Return a vector near the others."""
    return clustered(COUNT, DIM)[seed] + 0.05


# -- hybrid, fused here --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"constant": 1.0}, {"constant": 0.5, "window": 10}, {"window": 30}, {"window": 250}],
    ids=str,
)
@pytest.mark.parametrize("condition", [None, (Tag("color") == "red") & (Numeric("n") < 200)])
def test_ranks_are_fused_by_their_reciprocals(
    redis: Redis, options: dict[str, Any], condition: Any
) -> None:
    index = make(redis)
    for seed, words in enumerate(["wine river", "museums", "old trains at night", "nowhere"]):
        window = options.get("window", 100)
        text = redis.do(index.text(words, window, filter=condition))
        near = redis.do(index.search(query(seed), window, filter=condition))
        rankings = [[row.id for row in found.rows] for found in (text, near)]
        scores = reciprocal(rankings, options.get("constant", 60))
        result = redis.do(index.hybrid(words, query(seed), 10, filter=condition, **options))
        check_ranked(result.rows, scores, 10)
        assert result.total == len(scores)
        # A row has a distance where it is among the vector's, and its fields either way.
        distances = {row.id: row.distance for row in near.rows}
        fields = {row.id: row.fields for row in [*text.rows, *near.rows]}
        for row in result.rows:
            assert row.distance == distances.get(row.id)
            assert row.fields == fields[row.id]


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
@pytest.mark.parametrize("alpha", [0, 0.25, 0.5, 1.0])
def test_scores_are_weighted(redis: Redis, alpha: float, metric: str) -> None:
    index = make(redis, metric=metric)
    for seed, words in enumerate(["wine river", "old trains at night"]):
        text = redis.do(index.text(words, 100)).rows
        near = redis.do(index.search(query(seed), 100)).rows
        best = max(row.score for row in text)
        scores = dict.fromkeys([row.id for row in [*text, *near]], 0.0)
        for row in text:
            scores[row.id] += alpha * row.score / best
        for row in near:
            scores[row.id] += (1 - alpha) * row.similarity
        result = redis.do(index.hybrid(words, query(seed), 20, method="linear", alpha=alpha))
        check_ranked(result.rows, scores, 20)
        assert all(0 <= row.score <= 1 + 1e-9 for row in result.rows)


def test_a_hybrid_search_is_one_round_trip_once_the_server_is_known(redis: Redis) -> None:
    index = make(redis)
    redis.do(index.hybrid("wine", query()))
    found = cost(redis, lambda: index.hybrid("wine", query(), include_vectors=True))
    assert (found.round_trips, found.commands) == (1, {"FT.SEARCH": 2})
    other = VectorIndex(redis.client, "docs", FIELDS)
    first = cost(redis, lambda: other.hybrid("wine", query(), method="linear"))
    assert (first.round_trips, first.commands) == (1, {"FT.SEARCH": 2, "FT.INFO": 1})
    stored = clustered(COUNT, DIM).astype(np.float32)
    assert all((row.vector == stored[int(row.id)]).all() for row in found.result.rows)


def test_fewer_than_k_are_all_there_are(redis: Redis) -> None:
    index = make(redis)
    rows = redis.do(index.hybrid("wine", query(), 500, filter=Numeric("n") < 4)).rows
    assert sorted(row.id for row in rows) == ["0", "1", "2", "3"]
    assert redis.do(index.hybrid("wine", query(), filter=Numeric("n") < 0)).rows == []


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"method": "sum"}, ValueError, "method must be rrf or linear"),
    ({"alpha": 1.5}, ValueError, "alpha must be from 0 to 1"),
    ({"alpha": -0.1}, ValueError, "alpha must be from 0 to 1"),
    ({"alpha": True}, TypeError, "'alpha' takes a number"),
    ({"constant": 0}, ValueError, "constant above 0"),
    ({"constant": float("nan")}, ValueError, "'constant'"),
    ({"window": 5}, ValueError, "window must be a whole number from 10"),
    ({"k": 0}, ValueError, "k must be"),
    ({"vector": [1.0]}, ValueError, "1 dimensions"),
    ({"text": ""}, ValueError, "query must not be empty"),
    ({"fields": ["color"]}, ValueError, "not Text fields"),
    ({"on_partial": "maybe"}, ValueError, "on_partial"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[str(b[0]) for b in BAD])
def test_a_bad_argument_is_refused_before_any_io(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"text": "wine", "vector": [1.0] * DIM, **change}
    with Client("redis://127.0.0.1:1/0") as client, pytest.raises(error, match=message):
        VectorIndex(client, "docs", FIELDS).hybrid(**arguments)


# -- FT.HYBRID -----------------------------------------------------------------------------------

ASKED = [("HELLO",), ("INFO", "server"), *(("COMMAND", "INFO", n) for n in ("FT.SEARCH",))]
ASKED += [("COMMAND", "INFO", "FT.HYBRID"), ("COMMAND", "INFO", "JSON.SET")]
ENTRY = [[b"name", -3, [b"readonly"], 0, 0, 0]]
NEWER = [
    {b"server": b"redis", b"proto": 3, b"modules": [{b"name": b"search", b"ver": 80400}]},
    b"# Server\r\nredis_version:8.4.0\r\nredis_mode:standalone\r\n",
    *[ENTRY, ENTRY, ENTRY],
]
"""What a server says of itself that has FT.HYBRID."""

ROWS = [
    {b"__key": b"docs:7", b"__score": b"0.0325", b"body": b"wine", b"n": b"7"},
    {b"__key": b"docs:2", b"__score": b"0.0163", b"color": b"red"},
]
MAP = {b"total_results": 42, b"results": ROWS, b"warnings": [], b"execution_time": 0.5}


def flat(value: Any) -> Any:
    """Return maps as the flat lists that they are in RESP2."""
    if isinstance(value, dict):
        return [part for pair in value.items() for part in map(flat, pair)]
    return [flat(part) for part in value] if isinstance(value, list) else value


def planned() -> Any:
    """Return an index whose methods return ops, and which is known to be complete."""
    index = VectorIndex(Client("redis://127.0.0.1:1/0"), "docs", FIELDS)
    index._known.settled = True
    return index.plan


BLOB = np.ones(DIM, "<f4").tobytes()
PLAIN = (
    *("FT.HYBRID", "docs", "SEARCH", "@body:(wine|night)", "VSIM", "@vec", "$vector"),
    *("KNN", 2, "K", 100, "COMBINE", "RRF", 4, "WINDOW", 100, "CONSTANT", 60.0),
    *("LOAD", 5, "@__key", "@__score", "@body", "@color", "@n", "LIMIT", 0, 10),
    *("PARAMS", 2, "vector", BLOB),
)
FILTERED = (
    *("FT.HYBRID", "docs", "SEARCH", '(@color:{"red"}) (@body:(wine))', "VSIM", "@vec", "$vector"),
    *("KNN", 2, "K", 7, "FILTER", '@color:{"red"}'),
    *("COMBINE", "RRF", 4, "WINDOW", 7, "CONSTANT", 1.0),
    *("LOAD", 4, "@__key", "@__score", "@n", "@vec", "LIMIT", 0, 3),
    *("PARAMS", 2, "vector", BLOB),
)


@pytest.mark.parametrize("reply", [MAP, flat(MAP)], ids=["resp3", "resp2"])
def test_a_server_that_has_it_fuses_itself(reply: Any) -> None:
    index = planned()
    op = index.hybrid("wine at night", [1.0] * DIM)
    result = Script((ASKED, NEWER), (PLAIN, reply)).run(op)
    assert [(row.id, row.score) for row in result.rows] == [("7", 0.0325), ("2", 0.0163)]
    assert [row.fields for row in result.rows] == [{"body": "wine", "n": 7}, {"color": "red"}]
    assert [row.distance for row in result.rows] == [None, None]
    assert (result.total, result.partial, result.warnings) == (42, False, [])
    # It is known by now.
    options: dict[str, Any] = {"filter": Tag("color") == "red", "window": 7, "constant": 1}
    options |= {"return_fields": ["n"], "include_vectors": True}
    rows = [{b"__key": b"docs:1", b"__score": b"1", b"n": b"1", b"vec": BLOB}]
    told = {**MAP, b"results": rows, b"warnings": [b"Timeout limit was reached"]}
    result = Script((FILTERED, told)).run(index.hybrid("wine", [1.0] * DIM, 3, **options))
    [row] = result.rows
    assert (row.id, row.fields, row.score) == ("1", {"n": 1}, 1.0)
    assert row.vector is not None
    assert (row.vector == 1).all()
    assert (result.partial, result.warnings) == (True, ["Timeout limit was reached"])


UNKNOWN: list[Any] = [
    None,
    b"OK",
    [],
    {},
    [b"total_results"],
    {**MAP, b"results": None},
    {**MAP, b"results": [None]},
    {**MAP, b"results": [[b"__key"]]},
    {**MAP, b"results": [{b"__key": b"docs:1"}]},
    {**MAP, b"results": [{b"__score": b"1"}]},
    {**MAP, b"results": [{b"__key": b"docs:1", b"__score": b"high"}]},
    {**MAP, b"results": [{b"__key": b"docs:1", b"__score": None}]},
    {key: value for key, value in MAP.items() if key != b"results"},
    {key: value for key, value in MAP.items() if key != b"total_results"},
]


@pytest.mark.parametrize("reply", UNKNOWN, ids=[repr(r)[:60] for r in UNKNOWN])
def test_a_reply_of_another_shape_is_refused(reply: Any) -> None:
    with pytest.raises(errors.UnexpectedReplyError):
        Script((ASKED, NEWER), (PLAIN, reply)).run(planned().hybrid("wine night", [1.0] * DIM))


@pytest.mark.parametrize("options", [{"method": "linear"}, {"scorer": "TFIDF"}, {"timeout": 1}])
def test_what_the_server_cannot_fuse_is_fused_here(options: dict[str, Any]) -> None:
    index = planned()
    op = iter(index.hybrid("wine", [1.0] * DIM, **options))
    assert [args[0] for args in shape(next(op))] == ["FT.SEARCH", "FT.SEARCH"]


def encoded(value: Any, protocol: int) -> bytes:
    """Return a value as a reply."""
    if isinstance(value, dict) and protocol == 3:
        parts = [encoded(part, protocol) for pair in value.items() for part in pair]
        return b"%%%d\r\n" % len(value) + b"".join(parts)
    if isinstance(value, (dict, list)):
        parts = [encoded(part, protocol) for part in flat(value)]
        return b"*%d\r\n" % len(parts) + b"".join(parts)
    if isinstance(value, int):
        return b":%d\r\n" % value
    data = str(value).encode() if isinstance(value, float) else value
    return b"$%d\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize("protocol", [2, 3])
def test_the_whole_way_on_the_wire(protocol: int) -> None:
    answers = {
        "INFO server": encoded(NEWER[1], protocol),
        "COMMAND INFO FT.SEARCH": encoded(ENTRY, protocol),
        "COMMAND INFO FT.HYBRID": encoded(ENTRY, protocol),
        "COMMAND INFO JSON.SET": b"*1\r\n*-1\r\n",
    }

    def answer(_: int, line: str) -> bytes:
        if line == "HELLO":
            return encoded(NEWER[0], protocol)
        if line.startswith("FT.HYBRID"):
            return encoded(MAP, protocol)
        return answers.get(line) or polite(line)

    with Fake(answer) as server, Client(server.url, protocol=protocol) as client:
        index = VectorIndex(client, "docs", FIELDS)
        index._known.settled = True
        first = index.hybrid("wine night", [1.0] * DIM)
        writes = len(server.writes)
        assert index.hybrid("wine night", [1.0] * DIM) == first
        assert len(server.writes) == writes + 1
        assert (server.sent("FT.HYBRID"), server.sent("FT.SEARCH")) == (2, 0)
        assert [row.id for row in first.rows] == ["7", "2"]


def test_an_index_that_is_being_built_is_told_of_by_ft_hybrid_too() -> None:
    seen: list[str] = []

    def answer(_: int, line: str) -> bytes:
        seen.append(line.split(" ", maxsplit=1)[0])
        if line.startswith("COMMAND INFO"):
            return encoded(ENTRY, 3)
        if line.startswith("INFO"):
            return encoded(NEWER[1], 3)
        return encoded(MAP, 3) if line.startswith("FT.HYBRID") else polite(line)

    with Fake(answer) as server, Client(server.url) as client:
        index = VectorIndex(client, "docs", FIELDS)
        with suppress(errors.UnexpectedReplyError):  # the fake one's to FT.INFO
            index.hybrid("wine", [1.0] * DIM)
    assert "FT.INFO" in seen


# -- the pure parts ------------------------------------------------------------------------------

KEYS = st.lists(st.integers(0, 12).map(str), unique=True, max_size=10)


@given(st.lists(KEYS, max_size=4), st.floats(0.1, 1000))
def test_reciprocal_ranks_are_as_defined(rankings: list[list[str]], constant: float) -> None:
    found = reciprocal_ranks(rankings, constant)
    assert found == pytest.approx(reciprocal(rankings, constant))
    assert [*found.values()] == sorted(found.values(), reverse=True)


@given(
    st.lists(
        st.tuples(st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 1)), st.floats(0, 1)),
        max_size=4,
    )
)
def test_weighted_scores_are_as_defined(given_: list[tuple[dict[str, float], float]]) -> None:
    scorings, weights = [s for s, _ in given_], [w for _, w in given_]
    expected = {
        key: sum(w * s.get(key, 0.0) for s, w in given_) for key in {k for s in scorings for k in s}
    }
    found = weighted(scorings, weights)
    assert found == pytest.approx(expected)
    assert [*found.values()] == sorted(found.values(), reverse=True)


NUMBERS = st.floats(-10, 10, width=32)


@settings(max_examples=200)
@given(
    hnp.arrays(np.float64, (3,), elements=NUMBERS),
    hnp.arrays(np.float64, st.tuples(st.integers(0, 12), st.just(3)), elements=NUMBERS),
    st.integers(1, 14),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_diverse_chooses_the_best_of_what_is_left(
    near: Any, candidates: Any, k: int, relevance: float
) -> None:
    check_marginal(near, candidates, diverse(near, candidates, k, relevance), k, relevance)


# -- mmr -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("relevance", [0, 0.25, 0.5, 1])
@pytest.mark.parametrize("options", [{}, {"candidates": 60}, {"filter": Tag("color") == "red"}])
def test_mmr_is_as_defined(redis: Redis, relevance: float, options: dict[str, Any]) -> None:
    index = make(redis)
    for k in (1, 5, 12):
        filtered: dict[str, Any] = {"filter": options.get("filter")}
        wide = options.get("candidates", max(4 * k, 20))
        pool = redis.do(index.search(query(), wide, include_vectors=True, **filtered)).rows
        places = {row.id: i for i, row in enumerate(pool)}
        result = redis.do(index.mmr(query(), k, relevance=relevance, **options))
        chosen = [places[row.id] for row in result.rows]
        vectors = np.array([row.vector for row in pool], float)
        check_marginal(query(), vectors, chosen, k, relevance)
        for row in result.rows:
            same = pool[places[row.id]]
            assert (row.fields, row.distance) == (same.fields, same.distance)
            assert row.vector is None
        if relevance == 1:
            assert chosen == list(range(k))
    rows = redis.do(index.mmr(query(), 3, include_vectors=True, return_fields=["n"])).rows
    assert all(row.vector.shape == (DIM,) and [*row.fields] == ["n"] for row in rows)


def test_mmr_costs_one_round_trip(redis: Redis) -> None:
    index = make(redis)
    redis.do(index.search(query()))
    found = cost(redis, lambda: index.mmr(query(), 5))
    assert (found.round_trips, found.commands) == (1, {"FT.SEARCH": 1})
    assert redis.do(index.mmr(query(), 5, filter=Numeric("n") < 0)).rows == []
    assert len(redis.do(index.mmr(query(), 5, filter=Numeric("n") < 3)).rows) == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"relevance": 1.1}, ValueError, "relevance must be from 0 to 1"),
        ({"relevance": -0.1}, ValueError, "relevance must be from 0 to 1"),
        ({"relevance": "1"}, TypeError, "'relevance' takes a number"),
        ({"candidates": 3}, ValueError, "candidates must be a whole number from 10"),
        ({"k": 0}, ValueError, "k must be"),
        ({"vector": [[1.0] * DIM]}, ValueError, "shape"),
    ],
)
def test_a_bad_argument_of_mmr_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    given: dict[str, Any] = {"vector": [1.0] * DIM, **options}
    with Client("redis://127.0.0.1:1/0") as client, pytest.raises(error, match=message):
        VectorIndex(client, "docs", FIELDS).mmr(**given)
