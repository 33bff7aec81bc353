"""The retriever: a question in, the nearest documents out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from counting import cost
from rawredis_llm import (
    Client,
    Document,
    EmbeddedServer,
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

NOBODY = "redis://127.0.0.1:1/0"
"""An address where no server listens: any I/O raises ConnectError."""

FIELDS = (Text("text"), Tag("color"), Numeric("year"), Vector("vec", 2))


class Circle:
    """An embedder of angles: "0.5" is (cos 0.5, sin 0.5). `calls` are the queries it was given."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed what is stored."""
        return [[math.cos(float(text)), math.sin(float(text))] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Embed what is asked."""
        self.calls.append(text)
        return self.embed_documents([text])[0]


def make(redis: Redis, count: int = 10, fields: Any = FIELDS) -> VectorIndex[Any]:
    """Return an index of documents at the angles 0.0, 0.1, ..."""
    index: VectorIndex[Any] = VectorIndex(redis.client, "docs", fields)
    redis.do(index.create())
    angles = [str(i / 10) for i in range(count)]
    columns = {
        "text": [f"at {angle}" for angle in angles],
        "color": [["red", "blue"][i % 2] for i in range(count)],
        "year": range(count),
        "source": [f"s{i}" for i in range(count)],
    }
    redis.do(
        index.load(range(count), np.array(Circle().embed_documents(angles)).reshape(-1, 2), columns)
    )
    return index


def ids(documents: list[Document]) -> list[str]:
    """Return documents' ids, in order."""
    return [document.id for document in documents]


def test_the_nearest_documents_come_back_nearest_first(redis: Redis) -> None:
    embedder = Circle()
    found = redis.do(Retriever(make(redis), embedder).retrieve("0.22"))
    assert embedder.calls == ["0.22"]
    assert ids(found) == ["2", "3", "1", "4"]
    assert found[0] == Document("2", "at 0.2", {"color": "red", "year": 2}, found[0].distance)
    assert found[0].distance == pytest.approx(1 - math.cos(0.02), abs=1e-6)


@pytest.mark.parametrize("k", [1, 3, 15, 100])
def test_k_is_how_many_come_back(redis: Redis, k: int) -> None:
    found = redis.do(Retriever(make(redis, 30), Circle(), k=k).retrieve("0"))
    assert ids(found) == [str(i) for i in range(min(k, 30))]


def test_a_threshold_keeps_what_is_near_enough(redis: Redis) -> None:
    index = make(redis)

    def found(limit: float, k: int = 9) -> list[str]:
        retriever = Retriever(index, Circle(), k=k, search_type="threshold", max_distance=limit)
        return ids(redis.do(retriever.retrieve("0")))

    assert found(1 - math.cos(0.25)) == ["0", "1", "2"]
    assert found(1 - math.cos(0.25), k=2) == ["0", "1"]
    assert found(0) == ["0"]
    assert found(2) == [str(i) for i in range(9)]


def test_a_filter_is_for_every_search(redis: Redis) -> None:
    condition = (Tag("color") == "blue") & (Numeric("year") < 8)
    retriever = Retriever(make(redis), Circle(), k=10, filter=condition)
    assert ids(redis.do(retriever.retrieve("0"))) == ["1", "3", "5", "7"]
    assert ids(redis.do(retriever.retrieve_many(["0.9"]))[0]) == ["7", "5", "3", "1"]


def test_fields_are_the_schemas_unless_named(redis: Redis) -> None:
    index = make(redis)

    def metadata(**options: Any) -> Any:
        return redis.do(Retriever(index, Circle(), k=1, **options).retrieve("0"))[0]

    assert metadata().metadata == {"color": "red", "year": 0}
    assert metadata(return_fields=["source"]).metadata == {"source": "s0"}
    assert metadata(return_fields=["source"]).text == "at 0.0"
    assert metadata(return_fields=[]).metadata == {}
    other = metadata(text_field="source")
    assert (other.text, other.metadata) == ("s0", {"text": "at 0.0", "color": "red", "year": 0})
    assert metadata(text_field="year").text == "0"
    assert metadata(text_field="nowhere").text == ""


def test_many_questions_cost_one_round_trip(redis: Redis) -> None:
    embedder = Circle()
    retriever = Retriever(make(redis), embedder, k=2)
    questions = ["0", "0.88", "0.52", "0"]
    found = cost(redis, lambda: retriever.retrieve_many(questions))
    assert (found.round_trips, found.commands) == (1, {"FT.SEARCH": 4, "FT.INFO": 4})
    assert [ids(documents) for documents in found.result] == [
        ["0", "1"],
        ["9", "8"],
        ["5", "6"],
        ["0", "1"],
    ]
    assert embedder.calls == questions
    again = cost(redis, lambda: retriever.retrieve_many(questions))  # the index is known by now
    assert (again.round_trips, again.commands) == (1, {"FT.SEARCH": 4})
    assert found.result == [redis.do(retriever.retrieve(question)) for question in questions]


def test_many_questions_are_embedded_in_one_call(redis: Redis) -> None:
    calls: list[list[str]] = []

    def embed(texts: list[str]) -> Any:
        calls.append(texts)
        return np.array(Circle().embed_documents(texts))

    redis.do(Retriever(make(redis), embed).retrieve_many(["0", "1", "2"]))
    assert calls == [["0", "1", "2"]]


def test_no_question_needs_no_server() -> None:
    with Client(NOBODY) as client:
        assert Retriever(VectorIndex(client, "docs", FIELDS), Circle()).retrieve_many([]) == []


def test_a_document_without_text_has_an_empty_one(redis: Redis) -> None:
    index = make(redis, 0)
    redis.do(index.load(["a"], [[1.0, 0.0]], {"color": ["red"]}))
    [found] = redis.do(Retriever(index, Circle()).retrieve("0"))
    assert (found.text, found.metadata) == ("", {"color": "red"})


def test_errors_are_the_indexs_and_the_embedders(
    redis: Redis, plain_server: EmbeddedServer
) -> None:
    missing = VectorIndex(redis.client, "nowhere", FIELDS)
    with pytest.raises(errors.IndexNotFoundError, match=r"create\(\)"):
        redis.do(Retriever(missing, Circle()).retrieve("0"))
    with pytest.raises(errors.IndexNotFoundError):
        redis.do(Retriever(missing, Circle()).retrieve_many(["0", "1"]))
    plain = VectorIndex(redis.connect(url=plain_server.url), "docs", FIELDS)
    with pytest.raises(errors.SearchUnavailableError):
        redis.do(Retriever(plain, Circle()).retrieve("0"))
    index = make(redis)
    with pytest.raises(ValueError, match="3 dimensions, the index has 2"):
        redis.do(Retriever(index, lambda texts: [[1.0, 2, 3]] * len(texts)).retrieve("0"))
    with pytest.raises(ValueError, match="returned 1 vectors for 2 texts"):
        redis.do(Retriever(index, lambda _: [[1.0, 2]]).retrieve_many(["0", "1"]))
    with pytest.raises(ValueError, match="could not convert"):
        redis.do(Retriever(index, Circle()).retrieve("no angle"))


BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"search_type": "mmr?"}, ValueError),
    ({"search_type": None}, ValueError),
    ({"max_distance": 0.5}, ValueError),
    ({"max_distance": None, "search_type": "threshold"}, ValueError),
    ({"k": 0}, ValueError),
    ({"k": True}, ValueError),
    ({"k": 2.0}, TypeError),
    ({"filter": "@color:{red}"}, TypeError),
    ({"filter": Tag("colour") == "red"}, ValueError),
    ({"filter": Numeric("color") > 1}, ValueError),
    ({"text_field": ""}, ValueError),
    ({"text_field": None}, TypeError),
    ({"embedder": "model"}, TypeError),
]


@pytest.mark.parametrize(("options", "error"), BAD_OPTIONS, ids=[str(o) for o, _ in BAD_OPTIONS])
def test_a_bad_option_is_named(options: dict[str, Any], error: type[Exception]) -> None:
    with Client(NOBODY) as client:
        index = VectorIndex(client, "docs", FIELDS)
        with pytest.raises(error, match=next(iter(options))):
            Retriever(index, **{"embedder": Circle(), **options})


@pytest.mark.parametrize("limit", ["0.5", math.nan, True, -0.1])
def test_a_bad_threshold_is_named(limit: Any) -> None:
    with Client(NOBODY) as client:
        index = VectorIndex(client, "docs", FIELDS)
        with pytest.raises((TypeError, ValueError), match="max_distance"):
            Retriever(index, Circle(), search_type="threshold", max_distance=limit)


BAD_CALLS: list[tuple[type[Exception], str, Callable[[Any], object]]] = [
    (ValueError, "query", lambda r: r.retrieve("")),
    (TypeError, "query", lambda r: r.retrieve(None)),
    (TypeError, "list of texts", lambda r: r.retrieve_many("0")),
    (ValueError, "queries", lambda r: r.retrieve_many(["0", " "])),
    (TypeError, "queries", lambda r: r.retrieve_many(["0", 1])),
]


@pytest.mark.parametrize(("error", "argument", "use"), BAD_CALLS)
def test_a_bad_argument_is_refused_before_any_io(
    error: type[Exception], argument: str, use: Callable[[Any], object]
) -> None:
    with Client(NOBODY) as client, pytest.raises(error, match=argument) as caught:
        use(Retriever(VectorIndex(client, "docs", FIELDS), Circle()))
    assert type(caught.value) is error
