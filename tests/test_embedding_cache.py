"""Vectors that are kept: what was embedded once needs no embedder, and nothing is mixed up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from counting import cost
from rawredis_llm import (
    Client,
    EmbeddedServer,
    EmbeddingCache,
    HashingEmbedder,
    Retriever,
    SemanticCache,
    Text,
    Vector,
    VectorIndex,
    VectorMemory,
    errors,
)
from test_semantic_cache import NOBODY, Circle, Documents, answer, at, vector

if TYPE_CHECKING:
    from conftest import Redis


@pytest.fixture(scope="module", params=["search", "plain"])
def either(
    request: pytest.FixtureRequest, server: EmbeddedServer, plain_server: EmbeddedServer
) -> EmbeddedServer:
    """Either server: what is kept needs no search module."""
    return server if request.param == "search" else plain_server


def make(redis: Redis, embedder: Any = None, **options: Any) -> EmbeddingCache[Any]:
    """Return a cache of the fixture's client."""
    return EmbeddingCache(redis.client, embedder or Circle(), **options)


class Kinds(Documents):
    """An embedder that counts, and whose queries lie elsewhere than its documents."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.calls.append(texts)
        return super().embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        self.calls.append(text)
        return super().embed_query(text)


def texts(count: int) -> list[str]:
    """Return texts at the angles 0.0, 0.1, ..."""
    return [at(i / 10) for i in range(count)]


# -- kept ----------------------------------------------------------------------------------------


def test_what_was_embedded_once_needs_no_embedder(redis: Redis) -> None:
    embedder = Circle()
    cache = make(redis, embedder)
    first = redis.do(cache.embed(texts(4)))
    np.testing.assert_array_equal(first, embedder(texts(4)))
    embedder.calls.clear()
    again = redis.do(cache.embed(texts(4)[::-1]))
    np.testing.assert_array_equal(again, first[::-1])
    assert again.dtype == np.float32
    assert embedder.calls == []
    more = redis.do(cache.embed([at(7), at(0.2), at(8)]))
    np.testing.assert_array_equal(more, [vector(7), vector(0.2), vector(8)])
    assert embedder.calls == [[at(7), at(8)]]


def test_what_it_costs(redis: Redis) -> None:
    cache = make(redis)
    missed = cost(redis, lambda: cache.embed(texts(3)))
    assert (missed.commands, missed.round_trips) == ({"MGET": 1, "SET": 3}, 2)
    hit = cost(redis, lambda: cache.embed(texts(3)))
    assert (hit.commands, hit.round_trips) == ({"MGET": 1}, 1)
    nothing = cost(redis, lambda: cache.embed([]))
    assert (len(nothing.result), nothing.commands) == (0, {})


def test_a_text_that_comes_twice_is_embedded_once(redis: Redis) -> None:
    embedder = Circle()
    cache = make(redis, embedder)
    found = redis.do(cache.embed([at(1), at(2), at(1), at(1)]))
    np.testing.assert_array_equal(found, [vector(1), vector(2), vector(1), vector(1)])
    assert embedder.calls == [[at(1), at(2)]]


def test_documents_and_queries_are_apart(redis: Redis) -> None:
    embedder = Kinds()
    cache = make(redis, embedder)
    for _ in range(2):
        document = redis.do(redis.client.run(cache.documents([at(0)])))
        query = redis.do(redis.client.run(cache.queries([at(0)])))
        np.testing.assert_allclose(document, [[1, 0, 0, 0]], atol=1e-6)
        np.testing.assert_allclose(query, [[-1, 0, 0, 0]], atol=1e-6)
    assert embedder.calls == [[at(0)], at(0)]


def test_embedders_and_namespaces_are_apart(redis: Redis) -> None:
    embedders = [Circle(name="a"), Circle(name="b"), Circle(name="a", dim=8), Circle(name="a")]
    caches = [make(redis, one) for one in embedders[:2]]
    caches.append(make(redis, embedders[2], namespace="other"))
    caches.append(make(redis, embedders[3]))  # the same one, in another process
    sizes = [redis.do(cache.embed([at(0)])).shape for cache in caches]
    assert sizes == [(1, 4), (1, 4), (1, 8), (1, 4)]
    assert [len(one.calls) for one in embedders] == [1, 1, 1, 0]
    assert redis.do(caches[0].clear()) == 1
    for cache in caches[1:3]:
        redis.do(cache.embed([at(0)]))
    assert [len(one.calls) for one in embedders] == [1, 1, 1, 0]
    redis.do(caches[0].embed([at(0)]))
    assert len(embedders[0].calls) == 2
    assert redis.do(caches[0].clear()) == 1
    assert redis.do(caches[0].clear()) == 0


@pytest.mark.parametrize(
    ("dtype", "error"), [("float32", 0), ("float64", 0), ("float16", 1e-3), ("bfloat16", 1e-2)]
)
def test_vectors_are_kept_as_told(client: Client, dtype: str, error: float) -> None:
    cache = EmbeddingCache(client, Circle(), dtype=dtype)
    other = EmbeddingCache(client, Circle(), dtype="float32")
    first, again = cache.embed(texts(9)), cache.embed(texts(9))
    np.testing.assert_array_equal(first, again)  # not only the second time
    np.testing.assert_allclose(first, [vector(i / 10) for i in range(9)], atol=error)
    np.testing.assert_array_equal(other.embed(texts(9)), [vector(i / 10) for i in range(9)])
    assert client.call("DBSIZE") == (9 if dtype == "float32" else 18)


def test_any_text_is_kept(redis: Redis) -> None:
    given = ['\0 日本語 🦜 "quotes"', "x" * 100_000, "A", "a", " a"]
    seen: list[str] = []

    class Spelling:
        name = "spelling"

        def __call__(self, texts: list[str]) -> Any:
            seen.extend(texts)
            return HashingEmbedder(64)([f"{len(text)} {text[:9]} x" for text in texts])

    cache = make(redis, Spelling())
    first = redis.do(cache.embed(given))
    np.testing.assert_array_equal(redis.do(cache.embed(given)), first)
    assert seen == given
    for key in redis.do(redis.client.call("KEYS", "*:e:*")):
        assert len(key) < 100


def test_vectors_go_after_their_time(redis: Redis) -> None:
    embedder = Circle()
    redis.do(make(redis, embedder, ttl=100).embed([at(0)]))
    [key] = redis.do(redis.client.call("KEYS", "embedding:e:*"))
    assert 99_000 < redis.do(redis.client.call("PTTL", key)) <= 100_000
    redis.do(make(redis, embedder, namespace="ever").embed([at(0)]))
    [key] = redis.do(redis.client.call("KEYS", "ever:e:*"))
    assert redis.do(redis.client.call("PTTL", key)) == -1
    short = make(redis, embedder, ttl=0.001, namespace="short")
    redis.do(short.embed([at(0)]))
    while redis.do(redis.client.call("KEYS", "short:e:*")):
        pass
    redis.do(short.embed([at(0)]))
    assert len(embedder.calls) == 4


def test_it_needs_no_search_module(either: EmbeddedServer) -> None:
    embedder = Circle()
    with Client(either.url) as client:
        client.call("FLUSHALL")
        cache = EmbeddingCache(client, embedder)
        for _ in range(2):
            np.testing.assert_array_equal(cache.embed([at(1)]), [vector(1)])
    assert len(embedder.calls) == 1


# -- what does not belong there ------------------------------------------------------------------


@pytest.mark.parametrize("foreign", [b"", b"x", b"\0" * 16, b"0" * 48, np.ones(4).tobytes()])
def test_a_foreign_value_is_none(redis: Redis, foreign: bytes) -> None:
    cache = make(redis)
    redis.do(cache.embed([at(0)]))
    [key] = redis.do(redis.client.call("KEYS", "*:e:*"))
    redis.do(redis.client.call("SET", key, foreign))
    np.testing.assert_array_equal(redis.do(cache.embed([at(0), at(1)])), [vector(0), vector(1)])
    value = redis.do(redis.client.call("GET", key))
    assert value.endswith(vector(0).tobytes())  # and was replaced


def test_another_texts_vector_is_none(redis: Redis) -> None:
    cache = make(redis)
    redis.do(cache.embed([at(0)]))
    [one] = redis.do(redis.client.call("KEYS", "*:e:*"))
    redis.do(cache.embed([at(1)]))
    [other] = set(redis.do(redis.client.call("KEYS", "*:e:*"))) - {one}
    redis.do(redis.client.call("COPY", one, other, "REPLACE"))
    np.testing.assert_array_equal(redis.do(cache.embed([at(1)])), [vector(1)])


def test_a_key_of_another_kind_is_none(redis: Redis) -> None:
    cache = make(redis)
    redis.do(cache.embed([at(0)]))
    [key] = redis.do(redis.client.call("KEYS", "*:e:*"))
    redis.do(redis.client.call("DEL", key))
    redis.do(redis.client.call("RPUSH", key, "x"))
    np.testing.assert_array_equal(redis.do(cache.embed([at(0)])), [vector(0)])


@pytest.mark.parametrize("left", [0, 3, 8])
def test_a_cut_value_is_none(redis: Redis, left: int) -> None:
    cache = make(redis)
    redis.do(cache.embed([at(0)]))
    [key] = redis.do(redis.client.call("KEYS", "*:e:*"))
    whole = redis.do(redis.client.call("GET", key))
    redis.do(redis.client.call("SET", key, whole[: len(whole) - 16 + left]))
    np.testing.assert_array_equal(redis.do(cache.embed([at(0)])), [vector(0)])


def test_two_embedders_of_one_name_are_noticed(redis: Redis) -> None:
    redis.do(make(redis).embed([at(0)]))
    with pytest.raises(errors.IndexMismatchError, match="'circle' are of several sizes"):
        redis.do(make(redis, Circle(dim=8)).embed([at(0), at(1)]))


def test_vectors_that_are_none_are_refused_and_not_kept(redis: Redis) -> None:
    class Broken:
        name = "broken"

        def __call__(self, texts: list[str]) -> Any:
            return [[0.0] * 4] * len(texts)

    with pytest.raises(ValueError, match="length of zero"):
        redis.do(make(redis, Broken()).embed([at(0)]))
    assert redis.do(redis.client.call("DBSIZE")) == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"embedder": lambda texts: texts}, ValueError, "no fingerprint, name or model"),
        ({"embedder": Circle(name="")}, ValueError, "no fingerprint, name or model"),
        ({"embedder": 7}, TypeError, "embedder"),
        ({"dtype": "int7"}, ValueError, "dtype"),
        ({"ttl": 0}, ValueError, "ttl"),
        ({"namespace": ""}, ValueError, "namespace"),
        ({"on_error": "ignore"}, ValueError, "on_error"),
    ],
)
def test_a_bad_option_is_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with Client(NOBODY) as client, pytest.raises(error, match=message):
        EmbeddingCache(client, options.pop("embedder", Circle()), **options)


def test_one_text_is_no_list_of_texts(redis: Redis) -> None:
    bad: Any = at(0)
    with pytest.raises(TypeError, match="list of texts"):
        redis.do(make(redis).embed(bad))
    wrong: Any = [1]
    with pytest.raises(TypeError, match="texts must"):
        redis.do(make(redis).embed(wrong))


# -- out of reach --------------------------------------------------------------------------------


def test_a_server_out_of_reach_only_costs_the_embedding(redis: Redis) -> None:
    embedder = Circle()
    cache: EmbeddingCache[Any] = EmbeddingCache(redis.connect(url=NOBODY), embedder)
    for _ in range(2):
        np.testing.assert_array_equal(redis.do(cache.embed([at(1)])), [vector(1)])
    assert len(embedder.calls) == 2


def test_a_server_out_of_reach_raises_if_told_so(redis: Redis) -> None:
    client = redis.connect(url=NOBODY)
    cache: EmbeddingCache[Any] = EmbeddingCache(client, Circle(), on_error="raise")
    with pytest.raises(errors.ConnectionError):
        redis.do(cache.embed([at(1)]))


# -- with the others -----------------------------------------------------------------------------


def test_many_texts_of_many_ops_are_embedded_by_one_call(redis: Redis) -> None:
    embedder = Circle()
    cache = make(redis, embedder)
    ops = [cache.plan.embed([at(i), at(i + 1)]) for i in range(0, 6, 2)]
    found = cost(redis, lambda: redis.client.gather(ops))
    np.testing.assert_array_equal(np.concatenate(found.result), [vector(i) for i in range(6)])
    assert embedder.calls == [[at(i) for i in range(6)]]
    assert (found.round_trips, found.commands) == (2, {"MGET": 3, "SET": 6})


def test_as_the_embedder_of_a_semantic_cache(redis: Redis) -> None:
    embedder = Circle()
    cache = SemanticCache(redis.client, make(redis, embedder))
    redis.do(cache.store(at(0), "r"))
    assert answer(redis.do(cache.lookup(at(0.1)))) == "r"
    assert embedder.calls == [[at(0)], [at(0.1)]]
    assert answer(redis.do(cache.lookup(at(0.1)))) == "r"
    redis.do(cache.store(at(0.1), "s"))
    assert embedder.calls == [[at(0)], [at(0.1)]]
    # It is known by its embedder's name: what one stored, the other finds.
    assert answer(redis.do(SemanticCache(redis.client, embedder).lookup(at(0.1, "x")))) == "s"


def test_as_the_embedder_of_an_index_and_a_retriever(redis: Redis) -> None:
    embedder = Kinds()
    cache = make(redis, embedder)
    index: VectorIndex[Any] = VectorIndex(
        redis.client, "docs", [Text("text"), Vector("vec", 4)], embedder=cache
    )
    redis.do(index.create())
    assert index.embedder == "circle"
    stored = [at(math.pi), at(0)]
    vectors = redis.do(redis.client.run(cache.documents(stored)))
    redis.do(index.load(["opposite", "same"], vectors, {"text": stored}))
    retriever = Retriever(index, cache, k=1)
    for _ in range(2):
        [document] = redis.do(retriever.retrieve(at(0)))
        assert document.id == "opposite"  # where this embedder's queries lie
    assert embedder.calls == [stored, at(0)]


def test_as_the_embedder_of_a_memory(redis: Redis) -> None:
    calls: list[list[str]] = []

    class Counted(HashingEmbedder):
        def __call__(self, texts: list[str]) -> Any:
            calls.append(texts)
            return super().__call__(texts)

    memory = VectorMemory(redis.client, make(redis, Counted(64)), scope="u", k=1)
    redis.do(memory.save("my dog is called Rex", "nice"))
    redis.do(memory.save("I live in Lisbon", "nice"))
    for _ in range(2):
        [turn] = redis.do(memory.load("what is my dog called?"))
        assert turn.metadata["inputs"] == {"input": "my dog is called Rex"}
    assert len(calls) == 3


def test_an_asynchronous_embedder_is_awaited(redis: Redis) -> None:
    calls = []

    async def embed(texts: list[str]) -> Any:
        calls.append(texts)
        return Circle()(texts)

    embed.name = "async circle"  # type: ignore[attr-defined]  # functions take any
    cache = make(redis, embed)
    if redis.kind == "sync":
        with pytest.raises(TypeError, match="AsyncClient"):
            redis.do(cache.embed([at(0)]))
        return
    for _ in range(2):
        np.testing.assert_array_equal(redis.do(cache.embed([at(0)])), [vector(0)])
    assert calls == [[at(0)]]


def test_one_cache_serves_many(redis: Redis) -> None:
    embedder = Circle()
    cache = make(redis, embedder)
    caches = [SemanticCache(redis.client, cache, scope=scope) for scope in "ab"]
    for one in caches:
        redis.do(one.store(at(0), "r"))
    assert embedder.calls == [[at(0)]]
