"""The life of LangChain's vector store: names that stay apart, what is dropped, lost and healed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rawredis_llm import AsyncClient, Client, SearchResult, VectorIndex
from rawredis_llm.errors import IndexMismatchError
from rawredis_llm.langchain import RedisNum, RedisText, RedisVectorStore
from rawredis_llm.protocol.operation import Now
from stores import Points, Stores, eventually, ids_of, texts_of


def stored(client: Client) -> set[str]:
    """Return the keys of all documents."""
    return {key.decode() for key in client.call("KEYS", "doc:*")}


def indexes(client: Client) -> set[str]:
    """Return the names of all indexes."""
    return {name.decode() for name in client.call("FT._LIST")}


# -- names ---------------------------------------------------------------------------------------

NAMES = ["a b", "my-index", "the", "日本 🎈", "a:b", "-", "*", "a*", "%3A", "{x}", "'\"\\", "doc:a"]


@pytest.mark.parametrize("name", NAMES)
def test_an_index_may_have_any_name(stores: Stores, client: Client, name: str) -> None:
    store = stores(name)
    _, keys = RedisVectorStore.from_texts_return_keys(
        ["a"], store.embeddings, [{"n": 1}], name, client=client
    )
    assert stored(client) == set(keys)
    assert indexes(client) == {name}
    store.add_texts(["b"], [{"n": 2}], ids=["x:1"])
    assert texts_of(store.get_by_ids([*keys, "x:1"])) == ["a", "b"]
    assert ids_of(store.similarity_search("a", filter=RedisNum("n") == 2)) == {"x:1"}
    assert RedisVectorStore.from_existing_index(store.embeddings, name, client=client).get_by_ids(
        ["x:1"]
    )
    assert store.delete(keys) is True
    assert texts_of(store.similarity_search("a")) == ["b"]
    assert store.drop_index(delete_documents=True) is True
    assert (stored(client), indexes(client)) == (set(), set())


ALIKE = ["trip", "trips", "trips:old", "trip:", "trip:s", "trip%3A", "trips:", "Trip", "doc:trip"]


def test_indexes_whose_names_begin_alike_stay_apart(stores: Stores, client: Client) -> None:
    made = {name: stores(name) for name in ALIKE}
    for name, store in made.items():
        store.add_texts([f"of {name}", "same"], [{"n": 1}, {}], ids=["1", "s:1"])
    for name, store in made.items():
        assert texts_of(store.get_by_ids(["1"])) == [f"of {name}"]
        found = store.similarity_search("same", k=50)
        assert sorted(texts_of(found)) == sorted([f"of {name}", "same"])
    left = len(ALIKE)
    for name, store in made.items():
        store.delete(["1"])
        assert texts_of(store.similarity_search("same", k=50)) == ["same"]
        store.drop_index(delete_documents=True)
        left -= 1
        assert len(stored(client)) == 2 * left
        assert indexes(client) == {*ALIKE[len(ALIKE) - left :]}, name


def test_stores_with_their_own_prefixes_stay_apart(stores: Stores, client: Client) -> None:
    one, two = stores("one", key_prefix="mine:one"), stores("two", key_prefix="mine:two:")
    for store in (one, two):
        store.add_texts([store.index_name], ids=["1"])
    assert {key.decode() for key in client.call("KEYS", "mine:*")} == {"mine:one:1", "mine:two:1"}
    assert texts_of(one.similarity_search("x")) == ["one"]
    assert texts_of(two.get_by_ids(["mine:two:1", "1", "mine:one:1"])) == ["two", "two"]
    two.drop_index(delete_documents=True)
    assert texts_of(one.similarity_search("x")) == ["one"]


@pytest.mark.parametrize("name", ["", " ", "a\0", "a\nb", 5])
def test_a_name_that_no_index_can_have_is_refused_at_once(name: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="name"):
        RedisVectorStore(Points(), index_name=name)


# -- read, deleted, dropped ----------------------------------------------------------------------


async def test_documents_are_read_by_their_ids_in_order(stores: Stores) -> None:
    store = stores()
    store.add_texts(["a", "b", "c"], ids=["1", "2", "3"])
    asked = ["3", "nobody", "1", "doc:trips:2", "3", "", "*"][:5]
    for found in (store.get_by_ids(asked), await store.aget_by_ids(asked)):
        assert texts_of(found) == ["c", "a", "b", "c"]
        assert [one.id for one in found] == ["3", "1", "2", "3"]
    assert store.get_by_ids([]) == []
    assert store.get_by_ids(["nobody"]) == []


async def test_documents_are_deleted_by_their_ids(stores: Stores, client: Client) -> None:
    store = stores()
    store.add_texts(list("abcd"), ids=["1", "2", "3", "4"])
    assert store.delete(["1", "nobody", "1"]) is True
    assert store.delete(ids=["doc:trips:2"]) is True
    assert await store.adelete(["3"]) is True
    assert store.delete([]) is True
    assert await store.adelete([]) is True
    assert stored(client) == {"doc:trips:4"}
    assert texts_of(store.similarity_search("x")) == ["d"]
    everything: list[Any] = [None, "4"]
    for all_of_them in everything:
        with pytest.raises(ValueError, match="drop_index"):
            store.delete(all_of_them)
        with pytest.raises(ValueError, match="drop_index"):
            await store.adelete(all_of_them)
    assert stored(client) == {"doc:trips:4"}


def test_keys_are_deleted_through_the_class(stores: Stores, client: Client) -> None:
    store = stores()
    store.add_texts(["a", "b", "c"], ids=["1", "2", "3"])
    assert RedisVectorStore.delete(["doc:trips:1", "doc:trips:9"], redis_url=stores.url) is True
    assert RedisVectorStore.delete(ids=["doc:trips:2"], redis_url=stores.url) is True
    assert stored(client) == {"doc:trips:3"}
    with pytest.raises(ValueError, match="ids"):
        RedisVectorStore.delete(None, redis_url=stores.url)


def test_no_keys_can_be_deleted_through_the_class(stores: Stores) -> None:
    assert RedisVectorStore.delete([], redis_url=stores.url) is True


@pytest.mark.parametrize(
    "call",
    [
        lambda client: RedisVectorStore.delete(["doc:trips:1"], client=client),
        lambda client: RedisVectorStore.drop_index("trips", client=client),
    ],
    ids=["delete", "drop_index"],
)
def test_a_client_that_is_lent_to_the_class_stays_open(
    stores: Stores, call: Callable[[Client], bool]
) -> None:
    stores().add_texts(["a"], ids=["1"])
    with Client(stores.url) as lent:
        assert call(lent) is True
        assert lent.call("PING")


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("how", ["instance", "by name", "class", "class, by names"])
def test_an_index_is_dropped_with_or_without_its_documents(
    stores: Stores, client: Client, how: str, documents: bool
) -> None:
    store, other = stores(), stores("other")
    for one in (store, other):
        one.add_texts(["a", "b"], ids=["1", "2"])
    drop: dict[str, Callable[[], bool]] = {
        "instance": lambda: store.drop_index(delete_documents=documents),
        "by name": lambda: store.drop_index("trips", documents),
        "class": lambda: RedisVectorStore.drop_index("trips", documents, redis_url=stores.url),
        "class, by names": lambda: RedisVectorStore.drop_index(
            index_name="trips", delete_documents=documents, redis_url=stores.url
        ),
    }
    assert drop[how]() is True
    assert drop[how]() is False
    kept = {"doc:other:1", "doc:other:2"}
    assert stored(client) == kept | (set() if documents else {"doc:trips:1", "doc:trips:2"})
    assert indexes(client) == {"other"}
    assert store.similarity_search("a") == []
    assert texts_of(store.get_by_ids(["1"])) == []
    store.add_texts(["c"], ids=["3"])
    expected = {"3"} if documents else {"1", "2", "3"}
    eventually(lambda: ids_of(store.similarity_search("a")), expected)
    assert ids_of(other.similarity_search("a")) == {"1", "2"}


def test_an_index_is_dropped_by_its_own_store_or_by_its_name(stores: Stores) -> None:
    stores().add_texts(["a"])
    with pytest.raises(ValueError, match="trips"):
        stores().drop_index("other")
    with pytest.raises(ValueError, match="index_name"):
        RedisVectorStore.drop_index(redis_url=stores.url)
    assert len(stores().similarity_search("a")) == 1


def test_nothing_is_dropped_when_documents_are_only_deleted(stores: Stores) -> None:
    store = stores()
    store.delete(store.add_texts(["a"], [{"n": 1}]))
    assert store.similarity_search("a", filter=RedisNum("n") == 1) == []
    (name,) = store.add_texts(["b"], [{"n": 1}])
    assert ids_of(store.similarity_search("a", filter=RedisNum("n") == 1)) == {name}


# -- time, loss and others -----------------------------------------------------------------------


async def test_documents_live_as_long_as_they_are_told(stores: Stores, client: Client) -> None:
    store = stores(ttl=1000)
    store.add_texts(["a"], ids=["1"])
    store.add_documents(store.get_by_ids(["1"]), ids=["2"], ttl=2000)
    await store.aadd_texts(["a"], ids=["3"], ttl=3000.5)
    plain = stores()
    plain.add_texts(["a"], ids=["4"])
    left = {name: client.call("TTL", f"doc:trips:{name}") for name in "1234"}
    assert left["4"] == -1
    for name, seconds in (("1", 1000), ("2", 2000), ("3", 3000)):
        assert seconds - 100 < left[name] <= seconds + 1
    plain.add_texts(["again"], ids=["1"])
    assert client.call("TTL", "doc:trips:1") == -1


def test_what_has_expired_is_found_no_more(stores: Stores) -> None:
    store = stores()
    store.add_texts(["a"], [{"n": 1}], ids=["1"])
    store.add_texts(["b"], [{"n": 1}], ids=["2"], ttl=0.05)
    eventually(lambda: store.get_by_ids(["2"]), [])
    eventually(lambda: ids_of(store.similarity_search("b")), {"1"})
    eventually(lambda: ids_of(store.max_marginal_relevance_search("b")), {"1"})
    eventually(lambda: ids_of(store.similarity_search("b", filter=RedisNum("n") == 1)), {"1"})


@pytest.mark.parametrize("how", ["flushed", "dropped", "dropped with documents"])
async def test_a_store_that_was_lost_heals_by_the_next_addition(
    stores: Stores, client: Client, how: str
) -> None:
    store = stores(distance_metric="L2")
    store.add_texts(["a"], [{"n": 1}], ids=["1"])
    assert len(store.similarity_search("a")) == 1
    command: dict[str, tuple[str, ...]] = {
        "flushed": ("FLUSHALL",),
        "dropped": ("FT.DROPINDEX", "trips"),
        "dropped with documents": ("FT.DROPINDEX", "trips", "DD"),
    }
    kept = {"1"} if how == "dropped" else set()
    for attempt in range(3):  # each begins by something else
        client.call(*command[how])
        if attempt == 0:
            assert store.similarity_search("a") == []
            assert await store.asimilarity_search("a") == []
            assert store.similarity_search_with_relevance_scores("a") == []
            assert store.max_marginal_relevance_search("a") == []
            assert store.similarity_search("a", filter=RedisNum("n") == 1) == []
            assert len(store.get_by_ids(["1"])) <= len(kept)
        if attempt == 1:
            assert store.delete(["nobody"]) is True
        await store.aadd_texts(["b"], [{"n": 2}], ids=["2"])
        kept = kept | {"2"}
        eventually(lambda: ids_of(store.similarity_search("a")), kept)
        assert ids_of(store.similarity_search("a", filter=RedisNum("n") == 2)) == {"2"}
        # It is as it was, in the metric, too.
        assert store.schema["vector"][0]["distance_metric"] == "L2"
        info = client.call("FT.INFO", "trips")
        assert b"L2" in repr(info).encode()


def test_a_store_that_was_lost_heals_by_an_addition_with_new_names(
    stores: Stores, client: Client
) -> None:
    store = stores()
    store.add_texts(["a"], [{"n": 1}], ids=["1"])
    client.call("FLUSHALL")
    store.add_texts(["b"], [{"city": "Rome"}], ids=["2"])
    assert ids_of(store.similarity_search("a", filter=RedisText("city") == "rome")) == {"2"}


def test_another_embedder_of_the_same_size_is_refused(stores: Stores) -> None:
    stores(embeddings=Points(name="one")).add_texts(["a"], ids=["1"])
    asks: list[Callable[[RedisVectorStore], object]] = [
        lambda store: store.similarity_search("a"),
        lambda store: store.add_texts(["b"]),
        lambda store: store.max_marginal_relevance_search("a"),
    ]
    for ask in asks:
        with pytest.raises(IndexMismatchError, match=r"one.*two"):
            ask(stores(embeddings=Points(name="two")))
    with pytest.raises(IndexMismatchError, match=r"one.*two"):
        RedisVectorStore.from_existing_index(Points(name="two"), "trips", redis_url=stores.url)
    for name in ("one", ""):
        assert ids_of(stores(embeddings=Points(name=name)).similarity_search("a")) == {"1"}


def test_another_embedder_is_refused_after_the_index_was_healed(
    stores: Stores, client: Client
) -> None:
    store = stores(embeddings=Points(name="one"))
    store.add_texts(["a"])
    client.call("FLUSHALL")
    store.add_texts(["a"])
    with pytest.raises(IndexMismatchError):
        stores(embeddings=Points(name="two")).similarity_search("a")


def test_an_index_that_was_dropped_may_be_another_embedder_s(stores: Stores) -> None:
    first, second = stores(embeddings=Points(name="one")), stores(embeddings=Points(4, "two"))
    first.add_texts(["a"])
    first.drop_index(delete_documents=True)
    second.add_texts(["b"], ids=["2"])
    assert ids_of(second.similarity_search("a")) == {"2"}
    with pytest.raises(IndexMismatchError, match=r"two.*one"):
        first.similarity_search("a")


async def test_vectors_of_another_size_are_refused_in_words(stores: Stores, client: Client) -> None:
    stores().add_texts(["a"], ids=["1"])
    other = stores(embeddings=Points(5))
    asks: list[Callable[[], object]] = [
        lambda: other.similarity_search("a"),
        lambda: other.add_texts(["b"]),
        lambda: other.add_texts(["b"], embeddings=[[1.0] * 5]),
        lambda: other.max_marginal_relevance_search("a"),
        lambda: other.similarity_search_by_vector([1.0] * 5),
    ]
    for ask in asks:
        with pytest.raises(ValueError, match=r"5 dimensions.*8"):
            ask()
    with pytest.raises(ValueError, match=r"5 dimensions.*8"):
        await other.aadd_texts(["b"])
    assert stored(client) == {"doc:trips:1"}


async def test_many_additions_at_once_are_all_there(stores: Stores) -> None:
    store = stores()
    await asyncio.gather(
        *(store.aadd_texts([f"text {i}"], [{"n": i}], ids=[str(i)]) for i in range(40))
    )
    found = await asyncio.gather(
        *(store.asimilarity_search("x", filter=RedisNum("n") == i) for i in range(40))
    )
    assert [ids_of(one) for one in found] == [{str(i)} for i in range(40)]
    assert len(store.similarity_search("x", k=100)) == 40


async def test_a_client_that_is_lent_to_a_store_stays_open(stores: Stores, client: Client) -> None:
    aio = AsyncClient(stores.url)
    options: list[dict[str, Any]] = [{"client": client}, {"client": aio}]
    for given in options:
        store = RedisVectorStore(Points(), index_name="trips", **given)
        await store.aadd_texts(["a"])
        store.add_texts(["b"])
        store.close()
        await store.aclose()
    assert client.call("PING")
    assert await aio.call("PING")
    await aio.close()


async def test_a_closed_store_closes_its_connections_only_once(stores: Stores) -> None:
    store = RedisVectorStore(Points(), index_name="trips", redis_url=stores.url)
    await store.aadd_texts(["a"])
    store.add_texts(["b"])
    for _ in range(2):
        store.close()
        await store.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        store.similarity_search("a")


def test_a_search_that_saw_a_part_only_is_told_of_once(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = stores()
    store.add_texts(["a"])

    def search(*_: Any, **__: Any) -> Any:
        yield from Now()
        return SearchResult([], 0, partial=True, warnings=["its time was up"])

    monkeypatch.setattr(VectorIndex, "search", search)
    for _ in range(3):
        assert store.similarity_search("a") == []
    assert [record.message for record in caplog.records] == [
        "the search saw a part only: its time was up"
    ]
