"""LangChain's byte store, the link under all its drop-ins, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_tests.integration_tests.base_store import BaseStoreAsyncTests, BaseStoreSyncTests

from rawredis_llm import AsyncClient, Client, errors
from rawredis_llm.langchain import RedisCache, RedisChatMessageHistory, RedisStore

NOBODY = "redis://127.0.0.1:1/0"
"""An address where no server listens."""


Keep = Callable[[Any], Any]


@pytest.fixture
def store(url: str, kept: Keep) -> RedisStore:
    return kept(RedisStore(redis_url=url))  # type: ignore[no-any-return]


class _Suite:
    @pytest.fixture
    def kv_store(self, store: RedisStore) -> RedisStore:
        return store

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:
        return (b"foo", b"\0\r\n\xff", b"")


class TestStandard(_Suite, BaseStoreSyncTests[bytes]):
    """LangChain's own suite."""


class TestStandardAsync(_Suite, BaseStoreAsyncTests[bytes]):
    """LangChain's own suite in asyncio."""


# -- the store -----------------------------------------------------------------------------------

KEYS = [
    "a",
    "A",
    " a",
    "a ",
    "a:b",
    "a/b",
    "a*",
    "a?",
    "[a]",
    "a\\",
    "é日本🦜",
    "a\0b",
    "\r\n.",
    "^",
    "-",
]


async def test_any_text_is_a_key_of_its_own(store: RedisStore) -> None:
    store.mset([(key, key.encode()) for key in KEYS])
    assert store.mget(KEYS) == await store.amget(KEYS) == [key.encode() for key in KEYS]
    assert sorted(store.yield_keys()) == sorted(KEYS)
    assert sorted([key async for key in store.ayield_keys()]) == sorted(KEYS)
    for key in KEYS:
        wanted = sorted(other for other in KEYS if other.startswith(key))
        assert sorted(store.yield_keys(prefix=key)) == wanted
        assert sorted([one async for one in store.ayield_keys(prefix=key)]) == wanted
    for at, key in enumerate(KEYS):
        if at % 2:
            store.mdelete([key, "missing"])
        else:
            await store.amdelete([key, "missing"])
        assert [value is not None for value in store.mget(KEYS)] == [
            other > at for other in range(len(KEYS))
        ]


async def test_a_thousand_keys_are_each_yielded_once(store: RedisStore) -> None:
    names = {f"key {i}" for i in range(2500)}
    await store.amset([(name, b"x") for name in names])
    found = list(store.yield_keys())
    assert len(found) == len(names)
    assert set(found) == names
    assert len([key async for key in store.ayield_keys(prefix="key 1")]) == 1111


async def test_nothing_is_asked_for_nothing(kept: Keep) -> None:
    store = kept(RedisStore(redis_url=NOBODY))
    assert store.mget([]) == await store.amget([]) == []
    store.mset([])
    store.mdelete([])
    await store.amset([])
    await store.amdelete([])


def test_values_are_bytes_and_all_are_written_or_none(store: RedisStore) -> None:
    wrong: Any
    for wrong in ("text", 5, None, bytearray(b"x")):
        with pytest.raises(TypeError, match=type(wrong).__name__):
            store.mset([("first", b"x"), ("second", wrong)])
    with pytest.raises(TypeError, match="keys"):
        store.mset([("first", b"x"), (5, b"x")])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    assert list(store.yield_keys()) == []
    one: Any = "key"
    for method in (store.mget, store.mdelete):
        with pytest.raises(TypeError, match="keys"):
            method(one)


def test_the_last_value_of_a_key_counts(store: RedisStore) -> None:
    store.mset([("a", b"1"), ("a", b"2")])
    assert store.mget(["a", "missing", "a"]) == [b"2", None, b"2"]


def apart(url: str, kept: Keep, names: list[str]) -> None:
    """Assert that stores of these namespaces know nothing of each other."""
    stores = [kept(RedisStore(redis_url=url, namespace=name)) for name in names]
    keys = ["k", "b/k", "b:k", "b", "/k", ":k"]
    for at, store in enumerate(stores):
        store.mset([(key, f"{at} {key}".encode()) for key in keys])
    for at, store in enumerate(stores):
        assert store.mget(keys) == [f"{at} {key}".encode() for key in keys]
        assert sorted(store.yield_keys()) == sorted(keys)
    for at, store in enumerate(stores):
        store.mdelete(list(store.yield_keys()))
        left = [len(list(other.yield_keys())) for other in stores]
        assert left == [0] * (at + 1) + [len(keys)] * (len(stores) - at - 1)


def test_namespaces_are_apart(url: str, kept: Keep) -> None:
    apart(url, kept, ["a", "a:b", "a:", "A", "a*", "a?", "[a]", "b", " a"])


@pytest.mark.parametrize("other", ["a/b", "a/"])
def test_namespaces_with_a_slash_are_apart(url: str, kept: Keep, other: str) -> None:
    apart(url, kept, ["a", other])


def test_other_keys_of_the_server_are_none_of_the_stores(url: str, store: RedisStore) -> None:
    with Client(url) as client:
        for key in ("langchain.store", "langchain.storex", "langchainXstore/k", "k"):
            client.call("SET", key, "x")
    assert list(store.yield_keys()) == []
    assert store.mget(["k"]) == [None]


@pytest.mark.parametrize("namespace", ["", " ", None, 5])
def test_a_namespace_is_a_text_with_something_in_it(namespace: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="namespace"):
        RedisStore(redis_url=NOBODY, namespace=namespace)


async def test_values_live_as_long_as_the_ttl_says(url: str, kept: Keep) -> None:
    long, brief = (kept(RedisStore(redis_url=url, namespace=f"{ttl}", ttl=ttl)) for ttl in (100, 1))
    long.mset([("a", b"1")])
    await long.amset([("b", b"2")])
    brief.mset([("a", b"1"), ("b", b"2")])
    with Client(url) as client:
        lives = [client.call("PTTL", key) for key in client.call("KEYS", "100:*")]
    assert len(lives) == 2
    assert all(1000 < left <= 100_000 for left in lives)
    until = time.monotonic() + 20
    while brief.mget(["a", "b"]) != [None, None]:
        assert time.monotonic() < until
        time.sleep(0.2)  # noqa: ASYNC251 - nothing else runs
    with pytest.raises(ValueError, match="ttl"):
        RedisStore(redis_url=url, ttl=0)


def test_a_server_that_is_away_raises(kept: Keep) -> None:
    store = kept(RedisStore(redis_url=NOBODY))
    with pytest.raises(errors.ConnectionError):
        store.mget(["a"])
    with pytest.raises(errors.ConnectionError):
        store.mset([("a", b"x")])


class Counted(DeterministicFakeEmbedding):
    """Embeddings that note what they are given."""

    seen: list[str] = []  # noqa: RUF012 - pydantic copies it

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.seen.extend(texts)
        return super().embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        self.seen.append(text)
        return super().embed_query(text)


async def test_embeddings_are_kept_in_it(store: RedisStore) -> None:
    below = Counted(size=8)
    cached = CacheBackedEmbeddings.from_bytes_store(
        below, store, namespace="model", query_embedding_cache=True, key_encoder="sha256"
    )
    first = cached.embed_documents(["a", "b"])
    assert below.seen == ["a", "b"]
    assert cached.embed_documents(["b", "a", "c"])[:2] == first[::-1]
    assert await cached.aembed_documents(["a", "b"]) == first
    assert below.seen == ["a", "b", "c"]
    assert cached.embed_query("q") == await cached.aembed_query("q")
    assert below.seen == ["a", "b", "c", "q"]
    assert len(list(store.yield_keys(prefix="model"))) == 4


# -- the link ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["client", "redis_client"])
@pytest.mark.parametrize("colour", [Client, AsyncClient])
async def test_a_client_of_either_colour_serves_both_and_stays_open(
    url: str, name: str, colour: Any
) -> None:
    theirs = colour(url)
    options: Any = {name: theirs}
    store = RedisStore(**options)
    store.mset([("a", b"1")])
    assert await store.amget(["a"]) == [b"1"]
    await store.amset([("a", b"2")])
    assert store.mget(["a"]) == [b"2"]
    store.close()
    await store.aclose()
    pong = theirs.call("PING")
    assert (await pong if colour is AsyncClient else pong) == b"PONG"
    closing = theirs.close()
    if closing is not None:
        await closing


async def test_the_twin_has_the_settings_of_the_client_that_was_given(
    url: str,
) -> None:
    with Client(f"{url}?db=3") as theirs:
        store = RedisStore(client=theirs)
        await store.amset([("a", b"1")])
        assert theirs.call("DBSIZE") == 1
        theirs.call("FLUSHDB")
        await store.aclose()


async def test_many_tasks_share_one_store(store: RedisStore) -> None:
    import asyncio

    async def work(i: int) -> None:
        await store.amset([(f"{i}", f"{i}".encode())])
        assert await store.amget([f"{i}"]) == [f"{i}".encode()]

    await asyncio.gather(*(work(i) for i in range(50)))
    assert len(list(store.yield_keys())) == 50


def test_two_ways_to_say_where_are_refused(url: str) -> None:
    with Client(url) as client:
        options: dict[str, Any]
        for options in (
            {"client": client, "redis_client": client},
            {"client": client, "redis_url": url},
            {"redis_client": object()},
        ):
            with pytest.raises(TypeError):
                RedisStore(**options)


@pytest.mark.parametrize(
    "make", [RedisStore, RedisCache, lambda **o: RedisChatMessageHistory("s", **o)]
)
def test_two_urls_are_refused(make: Any) -> None:
    with pytest.raises(TypeError):
        make(client="redis://localhost:1", redis_url="redis://localhost:2")


# -- imports -------------------------------------------------------------------------------------


def loaded(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has after some code."""
    program = f"{code}\nimport sys\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


NAMES = ["RedisCache", "RedisSemanticCache", "RedisChatMessageHistory", "RedisStore"]


@pytest.mark.parametrize("name", ["*", *NAMES, "cached_stream"])
def test_importing_loads_nobody_elses_client(name: str) -> None:
    found = loaded(f"from rawredis_llm.langchain import {name}")
    assert found.isdisjoint({"redis", "redisvl", "langchain", "langchain_classic"})
    assert "langchain_core" in found


def test_importing_the_package_loads_nothing_of_langchain() -> None:
    found = loaded("import rawredis_llm.langchain as one; dir(one)")
    assert found.isdisjoint({"langchain_core", "pydantic", "numpy", "redis"})


@pytest.mark.parametrize(
    "name",
    [
        "RedisChatMessageHistory",
        "RedisStore",
        "cached_stream",
        "RedisCache",
    ],
)
def test_what_needs_no_vectors_needs_no_numpy(name: str) -> None:
    assert "numpy" not in loaded(f"from rawredis_llm.langchain import {name}")


def test_unknown_names_are_attribute_errors() -> None:
    import rawredis_llm.langchain as package

    with pytest.raises(AttributeError, match="Nothing"):
        _ = package.Nothing  # pyright: ignore[reportAttributeAccessIssue]
    assert {*NAMES, "cached_stream"} <= set(dir(package))
