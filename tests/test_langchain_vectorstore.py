"""LangChain's vector store: made, filled, searched, emptied."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from models import distances
from rawredis_llm import AsyncClient, Client
from rawredis_llm.errors import IndexMismatchError
from rawredis_llm.langchain import Redis, RedisConfig, RedisNum, RedisText, RedisVectorStore
from stores import AsyncPoints, Points, Stores, eventually, ids_of, texts_of

POINTS = Points()
NOWHERE = "redis://127.0.0.1:1"


def stored(client: Client) -> set[str]:
    """Return the keys of all documents."""
    return {key.decode() for key in client.call("KEYS", "doc:*")}


# -- made ----------------------------------------------------------------------------------------


def test_a_store_is_made_in_each_of_the_usual_ways(
    stores: Stores, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = stores.url
    monkeypatch.setenv("REDIS_URL", url)
    aio = AsyncClient(url)
    made: list[Callable[[], RedisVectorStore]] = [
        lambda: RedisVectorStore(POINTS, index_name="a", redis_url=url),
        lambda: RedisVectorStore(POINTS, "a"),
        lambda: RedisVectorStore(embeddings=POINTS, index_name="a"),
        lambda: RedisVectorStore(embedding=POINTS, index_name="a"),
        lambda: RedisVectorStore(POINTS, RedisConfig(index_name="a", redis_url=url)),
        lambda: RedisVectorStore(POINTS, config=RedisConfig(index_name="a", redis_url=url)),
        lambda: RedisVectorStore(POINTS, config={"index_name": "a"}, redis_url=url),
        lambda: RedisVectorStore(POINTS, index_name="a", client=client),
        lambda: RedisVectorStore(POINTS, index_name="a", redis_client=client),
        lambda: RedisVectorStore(POINTS, RedisConfig(index_name="a", redis_client=client)),
        lambda: RedisVectorStore(POINTS, index_name="a", client=aio),
        lambda: Redis(url, "a", POINTS),
        lambda: Redis(redis_url=url, index_name="a", embedding=POINTS),
        lambda: Redis(url, "a", POINTS, {"numeric": [{"name": "n"}]}, None, lambda d: d, "doc:a"),
        lambda: Redis(url, "a", POINTS, vector_schema={"algorithm": "FLAT"}, key_prefix="doc:a:"),
    ]
    for number, make in enumerate(made):
        store = stores.keep(make())
        assert (store.index_name, store.embeddings) == ("a", POINTS)
        assert store.add_texts([f"text {number}"], ids=[str(number)]) == [str(number)]
        assert store.get_by_ids([str(number)])[0].page_content == f"text {number}"
    assert stored(client) == {f"doc:a:{number}" for number in range(len(made))}
    client.call("PING")


def test_making_a_store_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Points):
        def vector(self, text: str) -> list[float]:
            raise AssertionError(text)

    RedisVectorStore(Silent(), index_name="a", redis_url=NOWHERE, index_schema={})
    RedisVectorStore(Silent(), RedisConfig(index_name="a", redis_url=NOWHERE))
    Redis(NOWHERE, "a", Silent()).as_retriever()
    monkeypatch.setenv("REDIS_URL", NOWHERE)
    assert RedisVectorStore(Silent()).index_name != RedisVectorStore(Silent()).index_name


@pytest.mark.parametrize(
    "options",
    [
        {"embeddings": None},
        {"embeddings": 5},
        {"embeddings": POINTS, "embedding": POINTS},
        {"client": 5},
        {"client": object()},
        {"client": NOWHERE, "redis_url": NOWHERE, "redis_client": NOWHERE},
        {"redis_url": "http://localhost"},
        {"ttl": 0},
        {"ttl": -1},
        {"ttl": "60"},
        {"ttl": True},
        {"distance_metric": "HAMMING"},
        {"indexing_algorithm": "TREE"},
        {"vector_datatype": "FLOAT1"},
        {"vector_schema": {"algorithm": "HNSW", "unheard_of": 5}},
        {"vector_schema": {"algorithm": "FLAT", "m": 5}},
        {"vector_schema": {"distance_metric": "NEAR"}},
        {"vector_schema": {"name": "a b"}},
        {"config": {"unheard_of": 5}},
        {"unheard_of": 5},
    ],
    ids=str,
)
def test_what_is_wrong_with_a_store_is_said_when_it_is_made(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        RedisVectorStore(**{"embeddings": POINTS, "index_name": "a", **options})


@pytest.mark.parametrize(
    "options", [{"key_prefix": "mine"}, {"distance_metric": "L2"}, {"index_schema": {}}], ids=str
)
def test_no_parameter_beside_a_config_is_lost_without_a_word(options: dict[str, Any]) -> None:
    try:
        beside = RedisVectorStore(POINTS, config=RedisConfig(index_name="a"), **options)
    except (TypeError, ValueError):
        return
    alone = RedisVectorStore(POINTS, index_name="a", **options)
    kept = [(one.key_prefix, one.schema, one._grows) for one in (beside, alone)]
    assert kept[0] == kept[1]


# -- from texts, from documents, from what there is ----------------------------------------------


async def test_a_store_is_made_of_texts_and_of_documents(stores: Stores, client: Client) -> None:
    where: dict[str, Any] = {"redis_url": stores.url}
    documents = [Document("a", id="1", metadata={"n": 1}), Document("b", metadata={"n": 2})]
    made = [
        RedisVectorStore.from_texts(
            ["a", "b"], POINTS, [{"n": 1}, {"n": 2}], ids=["1", "2"], index_name="one", **where
        ),
        RedisVectorStore.from_documents(documents, POINTS, index_name="two", **where),
        await RedisVectorStore.afrom_texts(
            ["a", "b"], POINTS, [{"n": 1}, {"n": 2}], keys=["1", "2"], index_name="three", **where
        ),
        await RedisVectorStore.afrom_documents(
            documents, POINTS, config=RedisConfig(index_name="four", **where)
        ),
    ]
    for store in made:
        stores.keep(store)
        assert {one.page_content: one.metadata["n"] for one in store.similarity_search("a")} == {
            "a": 1,
            "b": 2,
        }
        assert store.get_by_ids(["1"]) == [documents[0]]
        assert ids_of(await store.asimilarity_search("b", filter=RedisNum("n") == 1)) == {"1"}
    assert {key.rpartition(":")[0] for key in stored(client)} == {
        f"doc:{name}" for name in ("one", "two", "three", "four")
    }


def test_the_keys_that_are_returned_are_those_of_the_documents(
    stores: Stores, client: Client
) -> None:
    store, keys = RedisVectorStore.from_texts_return_keys(
        ["a", "b"], POINTS, [{"n": 1}, {}], "trips", redis_url=stores.url, ttl=500
    )
    stores.keep(store)
    assert len(keys) == 2
    assert stored(client) == set(keys)
    assert all(key.startswith("doc:trips:") and client.call("TTL", key) > 490 for key in keys)
    assert texts_of(store.get_by_ids(keys)) == ["a", "b"]
    store.delete(keys[:1])
    assert stored(client) == {keys[1]}


def test_from_texts_return_keys_takes_ids(stores: Stores) -> None:
    store, keys = RedisVectorStore.from_texts_return_keys(
        ["a"], POINTS, index_name="trips", redis_url=stores.url, ids=["1"]
    )
    stores.keep(store)
    assert keys == ["doc:trips:1"]


def test_an_index_that_there_is_can_be_opened(stores: Stores) -> None:
    first = stores(distance_metric="L2", key_prefix="mine:here")
    first.add_texts(["a", "b"], [{"n": 1}, {"city": "Rome"}], ids=["1", "2"])
    ways: list[dict[str, Any]] = [{}, {"key_prefix": "mine:here"}]
    for options in [*ways, {"schema": {"text": [{"name": "else"}]}}]:
        store = stores.keep(
            RedisVectorStore.from_existing_index(POINTS, "trips", redis_url=stores.url, **options)
        )
        assert store.key_prefix == "mine:here"
        assert store.schema == first.schema
        assert ids_of(store.similarity_search("a", filter=RedisText("city") == "rome")) == {"2"}
        assert store.get_by_ids(["1"])[0].metadata == {"n": 1}
        scored = store.similarity_search_with_relevance_scores("a")
        relevance = {one.page_content: score for one, score in scored}
        assert relevance["a"] == pytest.approx(1, abs=1e-4)
    with pytest.raises(IndexMismatchError, match="mine:here"):
        RedisVectorStore.from_existing_index(
            POINTS, "trips", redis_url=stores.url, key_prefix="other"
        )


def test_an_index_that_there_is_not_cannot_be_opened(stores: Stores) -> None:
    for options in ({}, {"key_prefix": "other"}):
        with pytest.raises(ValueError, match="nowhere"):
            RedisVectorStore.from_existing_index(POINTS, "nowhere", redis_url=stores.url, **options)


def others_index(client: Client, prefix: str, content: str) -> None:
    """Make the index of another library, with two documents."""
    vector = ("FLAT", 6, "TYPE", "FLOAT32", "DIM", 8, "DISTANCE_METRIC", "COSINE")
    schema = (content, "TEXT", "city", "TAG", "year", "NUMERIC", "embedding", "VECTOR", *vector)
    client.call("FT.CREATE", "theirs", "ON", "HASH", "PREFIX", 1, prefix, "SCHEMA", *schema)
    for name, text, city in (("1", "hello", "Rome"), ("2", "bye", "Oslo")):
        blob = np.array(POINTS.vector(text), "<f4").tobytes()
        fields = (content, text, "city", city, "year", 1999, "embedding", blob)
        client.call("HSET", f"{prefix.removesuffix(':')}:{name}", *fields)


@pytest.mark.parametrize("content", ["content", "text"])
@pytest.mark.parametrize(
    "prefix",
    [
        "doc:theirs:",
        "doc:theirs",  # as langchain-redis makes it without its legacy_key_format
    ],
)
def test_the_index_of_another_library_can_be_searched_and_added_to(
    stores: Stores, client: Client, prefix: str, content: str
) -> None:
    others_index(client, prefix, content)
    store = stores.keep(
        RedisVectorStore.from_existing_index(POINTS, "theirs", redis_url=stores.url)
    )
    eventually(lambda: len(store.similarity_search("x")), 2)
    ((document, distance),) = store.similarity_search_with_score("hello", k=1)
    assert distance == pytest.approx(0, abs=1e-5)
    assert document == Document("hello", id="1", metadata={"city": "Rome", "year": 1999})
    assert store.get_by_ids(["1"]) == [document]
    store.add_texts(["more"], [{"year": 2000}], ids=["3"])
    assert ids_of(store.similarity_search("x", filter=RedisNum("year") > 1999)) == {"3"}
    assert store.similarity_search("more", k=1)[0].page_content == "more"
    assert client.call("EXISTS", "doc:theirs:3") == 1


# -- adding --------------------------------------------------------------------------------------


def test_texts_are_added_under_the_ids_that_are_given(stores: Stores, client: Client) -> None:
    store = stores()
    assert store.add_texts(["a", "b"], ids=["1", "x:y z"]) == ["1", "x:y z"]
    assert store.add_texts(["c"], keys=["3"]) == ["3"]
    assert store.add_texts(["d"], keys=["doc:trips:4"]) == ["4"]
    made = store.add_texts(one for one in ("e", "f"))
    mixed = store.add_texts(["g", "h"], ids=["7", None])
    assert mixed[0] == "7"
    names = ["1", "x:y z", "3", "4", *made, *mixed]
    assert len(set(names)) == 8
    assert stored(client) == {f"doc:trips:{name}" for name in names}
    assert texts_of(store.get_by_ids(names)) == list("abcdefgh")
    assert texts_of(store.get_by_ids([f"doc:trips:{name}" for name in names])) == list("abcdefgh")
    assert store.add_texts([]) == []
    assert store.add_documents([]) == []


async def test_documents_are_added_under_their_own_ids(stores: Stores) -> None:
    store = stores()
    documents = [Document("a", id="1"), Document("b"), Document("c", id="3", metadata={"n": 1})]
    names = store.add_documents(documents)
    assert [names[0], names[2]] == ["1", "3"]
    assert names[1]
    assert store.add_documents([Document("d", id="9")], ids=["4"]) == ["4"]
    assert await store.aadd_documents([Document("e", id="5")]) == ["5"]
    assert texts_of(await store.aget_by_ids([*names, "4", "5", "9"])) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("ids", ["ids", "keys"])
def test_of_texts_under_one_id_the_last_stays(stores: Stores, client: Client, ids: str) -> None:
    store = stores()
    given = ["1", "2", "doc:trips:1", "1"]
    metadatas = [{"n": n} for n in range(4)]
    assert store.add_texts(["a", "b", "c", "d"], metadatas, **{ids: given}) == ["1", "2", "1", "1"]
    assert stored(client) == {"doc:trips:1", "doc:trips:2"}
    kept = store.get_by_ids(["1", "2"])
    assert [(one.page_content, one.metadata) for one in kept] == [("d", {"n": 3}), ("b", {"n": 1})]
    assert store.similarity_search_with_score("d", k=1)[0][1] == pytest.approx(0, abs=1e-5)
    assert ids_of(store.similarity_search("x", filter=RedisNum("n") < 3)) == {"2"}


def test_ready_vectors_are_taken_as_they_are(stores: Stores) -> None:
    store = stores(embeddings=AsyncPoints())
    matrix = np.eye(8)[:3]
    forms: list[Any] = [matrix.tolist(), matrix, matrix.astype("f4"), list(matrix), matrix * 5]
    for number, vectors in enumerate(forms):
        ids = [f"{number}-{row}" for row in range(3)]
        store.add_texts(["a", "b", "c"], embeddings=vectors, ids=ids)
    found = store.similarity_search_with_score_by_vector(matrix[1].tolist(), k=15)
    assert {one.id for one, _ in found[:5]} == {f"{number}-1" for number in range(5)}
    assert [round(distance, 5) for _, distance in found] == [0.0] * 5 + [1.0] * 10


WRONG: list[dict[str, Any]] = [
    {"ids": ["1"]},
    {"ids": ["1", "2", "3"]},
    {"keys": ["1"]},
    {"ids": ["1", "2"], "keys": ["1", "2"]},
    {"ids": ["1", 2]},
    {"ids": ["1", ""]},
    {"ids": ["1", "\0"]},
    {"metadatas": [{}]},
    {"embeddings": [[1.0] * 8]},
    {"embeddings": [[1.0] * 8, [1.0] * 7]},
    {"embeddings": [[1.0] * 8, [0.0] * 8]},
    {"embeddings": [[1.0] * 8, [float("nan")] * 8]},
    {"embeddings": [["x"] * 8] * 2},
    {"ttl": 0},
    {"ttl": "60"},
    {"batch_size": 0},
    {"batch_size": "5"},
    {"unheard_of": 5},
    {"texts": ["a", 5]},
    {"texts": ["a", None]},
]


@pytest.mark.parametrize("options", WRONG, ids=lambda options: ",".join(map(str, options.items())))
async def test_what_cannot_be_added_is_refused_and_nothing_is_written(
    stores: Stores, client: Client, options: dict[str, Any]
) -> None:
    store = stores()
    given: dict[str, Any] = {"texts": ["a", "b"], **options}
    with pytest.raises((TypeError, ValueError)):
        store.add_texts(**given)
    with pytest.raises((TypeError, ValueError)):
        await store.aadd_texts(**given)
    assert client.call("DBSIZE") == 0
    assert store.similarity_search("a") == []


def test_an_addition_that_is_refused_does_not_fix_the_size_of_vectors(stores: Stores) -> None:
    store = stores()
    with pytest.raises(ValueError, match="zero"):
        store.add_texts(["a"], embeddings=[[0.0] * 3])
    assert store.add_texts(["a"], ids=["1"]) == ["1"]


def test_ten_thousand_texts_are_one_call(stores: Stores, client: Client) -> None:
    store = stores()
    ids = [str(i) for i in range(10_000)]
    assert store.add_texts((f"text {i}" for i in ids), ids=ids, batch_size=700) == ids
    assert client.call("DBSIZE") == 10_000
    assert texts_of(store.get_by_ids(ids)) == [f"text {i}" for i in ids]
    assert store.similarity_search("text 9876", k=1)[0].id == "9876"
    assert len(ids_of(store.similarity_search("x", k=2000))) == 2000
    store.delete(ids[:9_990])
    assert ids_of(store.similarity_search("x", k=100)) == set(ids[9_990:])


def test_any_text_can_be_kept(stores: Stores) -> None:
    store = stores()
    said = ["", " ", "\0", "a\r\nb", "日本 🎈", "x" * 1_000_000, "{}", "*"]
    names = store.add_texts(said)
    assert texts_of(store.get_by_ids(names)) == said
    assert sorted(texts_of(store.similarity_search("x", k=20))) == sorted(said)


# -- searching -----------------------------------------------------------------------------------

METRICS = ("COSINE", "L2", "IP")


def scattered(store: RedisVectorStore, count: int = 40) -> np.ndarray[Any, Any]:
    """Fill a store with random documents `0` ...; return their vectors, rounded as it does."""
    rows = np.random.default_rng(5).normal(size=(count, 8)).astype("f4").astype("f8")
    store.add_texts(
        [f"text {i}" for i in range(count)],
        [{"n": i} for i in range(count)],
        ids=[str(i) for i in range(count)],
        embeddings=rows,
    )
    return rows


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("algorithm", ["FLAT", "HNSW"])
async def test_scores_are_the_true_distances(stores: Stores, metric: str, algorithm: str) -> None:
    store = stores(distance_metric=metric, indexing_algorithm=algorithm)
    rows = scattered(store)
    query = POINTS.vector("asked")
    true = distances(metric.lower(), query, rows)
    for k in (1, 4, 15, 40, 100):
        ways = [
            store.similarity_search_with_score("asked", k),
            store.similarity_search_with_score_by_vector(query, k=k),
            await store.asimilarity_search_with_score("asked", k=k),
            await store.asimilarity_search_with_score_by_vector(query, k=k),
        ]
        nearest = [str(i) for i in np.argsort(true)[:k]]
        for found in ways:
            assert [one.id for one, _ in found] == nearest
            for one, distance in found:
                assert distance == pytest.approx(true[int(str(one.id))], abs=1e-4)
                assert (one.page_content, one.metadata) == (
                    f"text {one.id}",
                    {"n": int(one.id or 0)},
                )
        bare = [
            store.similarity_search("asked", k=k),
            store.similarity_search_by_vector(query, k=k),
            store.search("asked", "similarity", k=k),
            await store.asimilarity_search("asked", k=k),
            await store.asimilarity_search_by_vector(query, k=k),
        ]
        assert all([one.id for one in found] == nearest for found in bare)
    assert len(store.similarity_search("asked")) == 4


@pytest.mark.parametrize("metric", METRICS)
async def test_relevance_is_from_0_to_1_and_falls_with_the_distance(
    stores: Stores, metric: str
) -> None:
    store = stores(distance_metric=metric)
    unit = np.array(POINTS.vector("asked"))
    unit /= np.linalg.norm(unit)
    rows = [unit, 0.9 * unit, unit[::-1], -unit, -5 * unit]
    store.add_texts(list("abcde"), embeddings=rows)
    asked = " ".join(map(str, unit))
    for found in (
        store.similarity_search_with_relevance_scores(asked, k=5),
        await store.asimilarity_search_with_relevance_scores(asked, k=5),
    ):
        scores = [score for _, score in found]
        assert len(scores) == 5
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for score in scores)
        assert scores[0] == pytest.approx(1, abs=1e-5)
        assert scores[-1] < 0.3
        true = distances(metric.lower(), unit, rows)
        relevance = 1 / (1 + true) if metric == "L2" else np.clip(1 - true, 0, 1)
        assert scores == pytest.approx(sorted(relevance, reverse=True), abs=1e-5)
    some = store.similarity_search_with_relevance_scores(asked, k=5, score_threshold=0.95)
    assert {one.page_content for one, _ in some} >= {"a"}
    assert {one.page_content for one, _ in some} <= {"a", "b"}


def test_relevance_is_by_a_function_of_one_s_own_if_there_is_one(stores: Stores) -> None:
    store = stores(relevance_score_fn=lambda distance: 0.25 + 0 * distance)
    store.add_texts(["a"])
    assert store.similarity_search_with_relevance_scores("a")[0][1] == 0.25


async def test_a_distance_limits_what_is_found(stores: Stores) -> None:
    store = stores()
    true = distances("cosine", POINTS.vector("asked"), scattered(store))
    for limit in (0.3, 0.7, 1.2, 3.0):
        names = {str(i) for i in np.flatnonzero(true <= limit)}
        for found in (
            store.similarity_search("asked", 100, distance_threshold=limit),
            store.similarity_search_limit_score("asked", k=100, score_threshold=limit),
            await store.asimilarity_search_limit_score("asked", k=100, score_threshold=limit),
            store.max_marginal_relevance_search(
                "asked", k=100, fetch_k=100, distance_threshold=limit
            ),
        ):
            assert ids_of(found) == names
    assert store.similarity_search("asked", distance_threshold=0) == []
    assert all(
        distance <= 0.2
        for one in store.similarity_search_limit_score("asked", k=100)
        for distance in [true[int(str(one.id))]]
    )
    exact = stores("exact", distance_metric="L2")
    exact.add_texts(["1 0 0 0 0 0 0 0", "2 0 0 0 0 0 0 0"])
    assert len(exact.similarity_search("1 0 0 0 0 0 0 0", distance_threshold=0)) == 1


async def test_nothing_is_found_before_anything_was_added(stores: Stores) -> None:
    store = stores()
    assert store.similarity_search("a", filter=RedisNum("n") == 1) == []
    assert store.similarity_search_with_score("a") == []
    assert store.similarity_search_with_relevance_scores("a") == []
    assert store.max_marginal_relevance_search("a") == []
    assert store.get_by_ids(["1"]) == []
    assert await store.asimilarity_search("a") == []
    assert await store.amax_marginal_relevance_search("a") == []
    assert await store.aget_by_ids(["1"]) == []
    assert store.delete(["1"]) is True
    assert await store.adelete(["1"]) is True
    assert store.drop_index(delete_documents=True) is False


MISTAKEN: list[Callable[[RedisVectorStore], object]] = [
    lambda store: store.similarity_search("a", unheard_of=1),
    lambda store: store.similarity_search("a", score_threshold=1),
    lambda store: store.max_marginal_relevance_search("a", unheard_of=1),
    lambda store: store.max_marginal_relevance_search("a", lambda_mult=2),
    lambda store: store.similarity_search("a", k=0),
    lambda store: store.similarity_search("a", k=-1),
    lambda store: store.similarity_search("a", k="4"),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    lambda store: store.max_marginal_relevance_search("a", k=0),
    lambda store: store.similarity_search_by_vector([1.0] * 7),
    lambda store: store.similarity_search_by_vector([0.0] * 8),
    lambda store: store.similarity_search("a", ef_runtime=5),
]


@pytest.mark.parametrize("ask", MISTAKEN)
def test_a_search_with_a_mistake_is_refused(
    stores: Stores, ask: Callable[[RedisVectorStore], object]
) -> None:
    store = stores()
    store.add_texts(["a"])
    with pytest.raises((TypeError, ValueError)):
        ask(store)


def test_an_unknown_option_is_refused_before_anything_was_added(stores: Stores) -> None:
    with pytest.raises(TypeError):
        stores().similarity_search("a", unheard_of=1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("k", "fetch", "share"), [(4, 20, 0.5), (10, 40, 0.0), (7, 12, 1.0)])
async def test_diversity_is_maximal_marginal_relevance(
    stores: Stores, metric: str, k: int, fetch: int, share: float
) -> None:
    store = stores(distance_metric=metric)
    rows = scattered(store)
    query = np.array(POINTS.vector("asked"))
    candidates = np.argsort(distances(metric.lower(), query, rows))[:fetch]
    chosen = maximal_marginal_relevance(query, list(rows[candidates]), share, k)
    names = [str(candidates[at]) for at in chosen]
    options: dict[str, Any] = {"k": k, "fetch_k": fetch, "lambda_mult": share}
    for found in (
        store.max_marginal_relevance_search("asked", **options),
        store.max_marginal_relevance_search_by_vector(query.tolist(), **options),
        await store.amax_marginal_relevance_search("asked", **options),
        await store.amax_marginal_relevance_search_by_vector(query.tolist(), **options),
    ):
        assert [one.id for one in found] == names
        assert [one.metadata for one in found] == [{"n": int(name)} for name in names]


# -- asyncio -------------------------------------------------------------------------------------


async def test_asyncio_s_methods_never_call_the_embeddings_sync_ones(stores: Stores) -> None:
    points = AsyncPoints()
    store = stores.keep(
        await RedisVectorStore.afrom_texts(
            ["a"], points, ids=["1"], index_name="trips", redis_url=stores.url
        )
    )
    await store.aadd_documents([Document("b", id="2")])
    searches: Sequence[Any] = (
        store.asimilarity_search("a"),
        store.asimilarity_search_limit_score("a", score_threshold=2),
        store.asearch("a", "mmr"),
        store.amax_marginal_relevance_search("a"),
        store.as_retriever().ainvoke("a"),
        store.as_retriever(search_type="mmr").ainvoke("a"),
        store.aget_by_ids(["1", "2"]),
    )
    for found in await asyncio.gather(*searches):
        assert ids_of(found) == {"1", "2"}
    scored = await store.asimilarity_search_with_relevance_scores("a")
    assert len(scored) == len(await store.asimilarity_search_with_score("a")) == 2
    await store.adelete(["1"])
    assert ids_of(await store.asimilarity_search("a")) == {"2"}
    with pytest.raises(AssertionError, match="sync call"):
        store.similarity_search("a")


def test_langchain_s_indexing_keeps_a_store_up_to_date(stores: Stores) -> None:
    store = stores()
    manager = InMemoryRecordManager("trips")
    manager.create_schema()
    documents = [Document(f"text {i}", metadata={"source": f"s{i}"}) for i in range(3)]
    options: dict[str, Any] = {"cleanup": "full", "source_id_key": "source"}
    options["key_encoder"] = "sha256"
    assert index(documents, manager, store, **options)["num_added"] == 3
    assert index(documents[:1], manager, store, **options)["num_deleted"] == 2
    assert texts_of(store.similarity_search("x")) == ["text 0"]
