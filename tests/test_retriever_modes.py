"""Retrieval of each kind, as the index does it, and the chunks before and after what is found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from counting import cost
from rawredis_llm import (
    Client,
    Document,
    Numeric,
    Retriever,
    Tag,
    Text,
    Vector,
    VectorIndex,
    errors,
)

if TYPE_CHECKING:
    from conftest import Redis

FIELDS = (
    Text("text"),
    Tag("source"),
    Numeric("position", sortable=True),
    Tag("color"),
    Vector("vec", 2),
)
WORDS = ["wine", "river", "museum", "beach", "night"]


def embed(texts: Sequence[str]) -> Any:
    """Embed angles: "0.5 wine" is (cos 0.5, sin 0.5)."""
    angles = [float(text.split()[0]) for text in texts]
    return [[math.cos(angle), math.sin(angle)] for angle in angles]


def make(redis: Redis, given: Sequence[dict[str, Any]] | None = None, **options: Any) -> Any:
    """Return an index of documents at the angles 0.0, 0.1, ...; by default chunks of 3 sources."""
    index: VectorIndex[Any] = VectorIndex(redis.client, "docs", FIELDS, **options)
    redis.do(index.create())
    if given is None:
        given = [
            {
                "text": f"{WORDS[i % 5]} {WORDS[i % 3]} {i}",
                "source": f"file {i % 3}",
                "position": i // 3,
                "color": ["red", "blue"][i % 2],
            }
            for i in range(30)
        ]
    angles = [f"{i / 10}" for i in range(len(given))]
    redis.do(index.load(range(len(given)), np.array(embed(angles)), list(given)))
    if index.schema.json:
        redis.do(index.wait_until_indexed())
    return index


def ids(documents: Sequence[Document]) -> list[str]:
    """Return documents' ids, in order."""
    return [document.id for document in documents]


def as_document(row: Any) -> Document:
    """Return what a row is as a document."""
    rest = {name: value for name, value in row.fields.items() if name != "text"}
    return Document(row.id, row.fields.get("text", ""), rest, row.distance, row.score)


QUESTIONS = ["0.22 wine", "1.55 river night", "2.8 museums"]
FILTERS = [None, (Tag("color") == "red") & (Numeric("position") < 8)]


@pytest.mark.parametrize("condition", FILTERS)
@pytest.mark.parametrize("kind", ["similarity", "threshold", "mmr", "hybrid"])
def test_each_kind_is_the_indexs_own(redis: Redis, kind: str, condition: Any) -> None:
    index = make(redis)
    options: dict[str, Any] = {"max_distance": 0.02} if kind == "threshold" else {}
    retriever = Retriever(index, embed, k=5, search_type=kind, filter=condition, **options)
    found = []
    for question in QUESTIONS:
        [vector] = embed([question])
        if kind == "mmr":
            rows = redis.do(index.mmr(vector, 5, filter=condition)).rows
        elif kind == "hybrid":
            rows = redis.do(index.hybrid(question, vector, 5, filter=condition)).rows
        else:
            rows = redis.do(index.search(vector, 5, filter=condition)).rows
        if kind == "threshold":
            rows = [row for row in rows if row.distance <= 0.02]
        found.append([as_document(row) for row in rows])
        assert redis.do(retriever.retrieve(question)) == found[-1]
    assert redis.do(retriever.retrieve_many(QUESTIONS)) == found
    assert sum(map(len, found)) >= 4


def test_scores_and_distances_come_with_the_documents(redis: Redis) -> None:
    index = make(redis)
    near = redis.do(Retriever(index, embed).retrieve("0.5 wine"))
    assert all(document.distance is not None and document.score is None for document in near)
    both = redis.do(Retriever(index, embed, search_type="hybrid").retrieve("0.5 wine"))
    scores = [document.score for document in both]
    assert scores == sorted(scores, reverse=True)
    assert all(isinstance(score, float) and score > 0 for score in scores)


@pytest.mark.parametrize("kind", ["similarity", "threshold", "mmr", "hybrid"])
def test_many_questions_cost_one_round_trip(redis: Redis, kind: str) -> None:
    options: dict[str, Any] = {"max_distance": 2} if kind == "threshold" else {}
    retriever = Retriever(make(redis), embed, k=3, search_type=kind, **options)
    redis.do(retriever.retrieve(QUESTIONS[0]))
    found = cost(redis, lambda: retriever.retrieve_many(QUESTIONS))
    searches = len(QUESTIONS) * (2 if kind == "hybrid" else 1)
    assert (found.round_trips, found.commands) == (1, {"FT.SEARCH": searches})
    assert [len(documents) for documents in found.result] == [3] * 3


# -- neighbours ----------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["hash", "json"])
@pytest.mark.parametrize("around", [1, 2, 20])
@pytest.mark.parametrize("kind", ["similarity", "mmr", "hybrid"])
def test_neighbours_are_the_chunks_before_and_after(
    redis: Redis, kind: str, around: int, on: str
) -> None:
    index = make(redis, on=on)
    retriever = Retriever(index, embed, k=3, search_type=kind, neighbours=around)
    plain = Retriever(index, embed, k=3, search_type=kind)
    for question in ("0.02 wine", "1.5 river", "2.9 beach"):  # at an end, within, at the other
        found = redis.do(retriever.retrieve(question))
        assert ids(found) == ids(redis.do(plain.retrieve(question)))
        for document in found:
            place, source = divmod(int(document.id), 3)
            positions = range(max(place - around, 0), min(place + around, 9) + 1)
            expected = [str(3 * p + source) for p in positions if p != place]
            assert ids(document.neighbours) == expected
            for neighbour in document.neighbours:
                assert neighbour.text.endswith(f" {neighbour.id}")
                assert neighbour.metadata["source"] == document.metadata["source"]
                assert (neighbour.distance, neighbour.neighbours) == (None, [])
    assert redis.do(plain.retrieve("0 wine"))[0].neighbours == []


def test_neighbours_cost_one_round_trip_more(redis: Redis) -> None:
    retriever = Retriever(make(redis), embed, k=4, neighbours=1)
    redis.do(retriever.retrieve("1.5"))
    one = cost(redis, lambda: retriever.retrieve("1.5"))
    assert (one.round_trips, one.commands) == (2, {"FT.SEARCH": 5})
    many = cost(redis, lambda: retriever.retrieve_many(["0", "1.5", "2.5"]))
    assert (many.round_trips, many.commands) == (2, {"FT.SEARCH": 15})
    none = Retriever(make_empty(redis), embed, k=4, neighbours=1)
    redis.do(none.retrieve("1.5"))
    assert cost(redis, lambda: none.retrieve("1.5")).round_trips == 1


def make_empty(redis: Redis) -> VectorIndex[Any]:
    """Return an index of nothing."""
    index: VectorIndex[Any] = VectorIndex(redis.client, "empty", FIELDS)
    redis.do(index.create())
    return index


def test_neighbours_have_what_the_documents_have(redis: Redis) -> None:
    index = make(redis)
    retriever = Retriever(index, embed, k=1, neighbours=1, return_fields=["color"])
    [found] = redis.do(retriever.retrieve("1.5"))
    assert set(found.metadata) == {"color", "source", "position"}
    assert [set(near.metadata) for near in found.neighbours] == [set(found.metadata)] * 2
    assert [near.text.split()[-1] for near in found.neighbours] == ["12", "18"]
    other = Retriever(
        *(index, embed),
        k=1,
        neighbours=1,
        text_field="color",
        source_field="source",
        position_field="position",
    )
    [found] = redis.do(other.retrieve("1.5"))
    assert [near.text for near in found.neighbours] == ["red", "red"]


def test_neighbours_are_not_bound_by_the_filter(redis: Redis) -> None:
    retriever = Retriever(make(redis), embed, k=1, neighbours=1, filter=Tag("color") == "blue")
    [found] = redis.do(retriever.retrieve("1.5"))
    assert ids([found]) == ["15"]
    assert ids(found.neighbours) == ["12", "18"]


@pytest.mark.parametrize("on", ["hash", "json"])
def test_a_chunk_that_has_no_place_has_no_neighbours(redis: Redis, on: str) -> None:
    given: list[dict[str, Any]] = [
        {"text": "a", "source": "s", "position": 1},
        {"text": "b", "source": "s"},
        {"text": "c", "position": 2},
        {"text": "d"},
        {"source": "s", "position": 2},
        {"text": "f", "source": "s", "position": 0.5},
    ]
    retriever = Retriever(make(redis, given, on=on), embed, k=6, neighbours=1)
    found = {document.id: document for document in redis.do(retriever.retrieve("0"))}
    assert ids(found["0"].neighbours) == ["5", "4"]
    assert [near.text for near in found["0"].neighbours] == ["f", ""]
    assert [ids(found[i].neighbours) for i in "123"] == [[], [], []]
    assert ids(found["4"].neighbours) == ["0"]


@pytest.mark.parametrize(
    "source", ['a "b"', "a\\b", "a|b", "{x} | @color:{red}", "é 日本", "*", "a.b/c-d", "x" * 4096]
)
def test_sources_are_told_apart_exactly(redis: Redis, source: str) -> None:
    given = [
        {"text": f"{i}", "source": [source, f"{source[:-1]}~"][i % 2], "position": i // 2}
        for i in range(6)
    ]
    [found] = redis.do(Retriever(make(redis, given), embed, k=1, neighbours=5).retrieve("0"))
    assert ids([found, *found.neighbours]) == ["0", "2", "4"]


def test_a_chunk_of_several_sources_has_neighbours(redis: Redis) -> None:
    given = [{"text": f"{i}", "source": ["a", "b"], "position": i} for i in range(3)]
    [found] = redis.do(Retriever(make(redis, given), embed, k=1, neighbours=1).retrieve("0"))
    assert ids(found.neighbours) == ["1"]


@pytest.mark.parametrize("source", [" a", "a ", "x" * 5000])
def test_what_another_client_wrote_does_not_break_retrieval(redis: Redis, source: str) -> None:
    index = make(redis, [{"text": "a"}])
    redis.do(redis.client.call("HSET", "docs:0", "source", source, "position", 1))
    assert ids(redis.do(Retriever(index, embed, neighbours=1).retrieve("0"))) == ["0"]


# -- the caller's mistakes -----------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"search_type": "nearest"}, ValueError, "search_type must be"),
    ({"search_type": "mmr", "max_distance": 1}, ValueError, "max_distance goes with"),
    ({"search_type": "hybrid", "max_distance": 1}, ValueError, "max_distance goes with"),
    ({"search_type": "threshold"}, ValueError, "max_distance goes with"),
    ({"search_type": "threshold", "max_distance": -1}, ValueError, "max_distance must be"),
    ({"search_type": "threshold", "max_distance": "1"}, TypeError, "max_distance must be"),
    ({"neighbours": -1}, ValueError, "neighbours must be"),
    ({"neighbours": True}, ValueError, "neighbours must be"),
    ({"neighbours": 1.5}, TypeError, "neighbours must be"),
    ({"neighbours": 1, "source_field": "nowhere"}, ValueError, "no Tag field 'nowhere'"),
    ({"neighbours": 1, "source_field": "text"}, ValueError, "no Tag field 'text'"),
    ({"neighbours": 1, "position_field": "color"}, ValueError, "no Numeric field 'color'"),
    ({"return_fields": "color"}, TypeError, "return_fields must be a list"),
    ({"filter": "*"}, TypeError, "filter must be"),
    ({"filter": Tag("nowhere") == "x"}, ValueError, "no field 'nowhere'"),
    ({"k": 0}, ValueError, "k must be"),
    ({"index": "docs"}, TypeError, "index must be a VectorIndex"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=[str(b[0]) for b in BAD])
def test_a_bad_option_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with Client("redis://127.0.0.1:1/0") as client, pytest.raises(error, match=message):
        Retriever(**{"index": VectorIndex(client, "docs", FIELDS), "embedder": embed, **options})


def test_a_threshold_under_ip_may_lie_below_zero(redis: Redis) -> None:
    fields = (Text("text"), Vector("vec", 2, metric="ip"))
    index: VectorIndex[Any] = VectorIndex(redis.client, "docs", fields)
    redis.do(index.create())
    redis.do(index.load(range(4), [[1.0, 0], [2, 0], [3, 0], [-1, 0]], {"text": ["a"] * 4}))
    retriever = Retriever(index, embed, search_type="threshold", max_distance=-0.5)
    assert ids(redis.do(retriever.retrieve("0"))) == ["2", "1"]


def test_an_index_without_texts_has_no_hybrid_search() -> None:
    with Client("redis://127.0.0.1:1/0") as client:
        index = VectorIndex(client, "docs", [Tag("text"), Vector("vec", 2)])
        with pytest.raises(ValueError, match="Text fields"):
            Retriever(index, embed, search_type="hybrid").retrieve("0.5")


def test_errors_come_from_each_kind(redis: Redis) -> None:
    index: VectorIndex[Any] = VectorIndex(redis.client, "nowhere", FIELDS)
    for kind in ("similarity", "mmr", "hybrid"):
        retriever = Retriever(index, embed, search_type=kind, neighbours=1)
        with pytest.raises(errors.IndexNotFoundError, match=r"create\(\)"):
            redis.do(retriever.retrieve("0.5"))
        with pytest.raises(errors.IndexNotFoundError, match=r"create\(\)"):
            redis.do(retriever.retrieve_many(["0.5", "1"]))
