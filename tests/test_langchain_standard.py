"""LangChain's own suites for caches, vector stores and retrievers, whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.caches import BaseCache
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import (
    AsyncCacheTestSuite,
    RetrieversIntegrationTests,
    SyncCacheTestSuite,
    VectorStoreIntegrationTests,
)

from rawredis_llm import Client, EmbeddedServer
from rawredis_llm.langchain import (
    RedisCache,
    RedisSemanticCache,
    RedisVectorStore,
    RedisVectorStoreRetriever,
)

EMBEDDINGS = DeterministicFakeEmbedding(size=32)


@pytest.fixture
def url(server: EmbeddedServer, client: Client) -> str:
    """Return the URL of a server that holds nothing."""
    assert client.call("DBSIZE") == 0
    return server.url


class TestRedisCache(SyncCacheTestSuite):
    """The exact cache."""

    @pytest.fixture
    def cache(self, url: str) -> Iterator[BaseCache]:
        cache = RedisCache(redis_url=url)
        yield cache
        cache.close()


class TestRedisCacheAsync(AsyncCacheTestSuite):
    """The exact cache in asyncio."""

    @pytest.fixture
    async def cache(self, url: str) -> Any:
        cache = RedisCache(redis_url=url)
        yield cache
        await cache.aclose()


class TestRedisSemanticCache(SyncCacheTestSuite):
    """The semantic cache."""

    @pytest.fixture
    def cache(self, url: str) -> Iterator[BaseCache]:
        cache = RedisSemanticCache(EMBEDDINGS, redis_url=url)
        yield cache
        cache.close()


class TestRedisSemanticCacheAsync(AsyncCacheTestSuite):
    """The semantic cache in asyncio."""

    @pytest.fixture
    async def cache(self, url: str) -> Any:
        cache = RedisSemanticCache(EMBEDDINGS, redis_url=url)
        yield cache
        await cache.aclose()


class TestRedisVectorStore(VectorStoreIntegrationTests):
    """The vector store, in both colours."""

    @pytest.fixture
    async def vectorstore(self, url: str) -> Any:
        store = RedisVectorStore(self.get_embeddings(), index_name="standard", redis_url=url)
        yield store
        await store.aclose()


class _Retriever(RetrieversIntegrationTests):
    search_type = "similarity"

    @pytest.fixture(autouse=True)
    async def _filled(self, url: str) -> Any:
        self.store = RedisVectorStore(EMBEDDINGS, index_name="standard", redis_url=url)
        self.store.add_documents([Document(f"text {i}", id=f"{i}") for i in range(20)])
        yield
        await self.store.aclose()

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return RedisVectorStoreRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"vectorstore": self.store, "search_type": self.search_type}

    @property
    def retriever_query_example(self) -> str:
        return "text 3"


class TestRetrieverBySimilarity(_Retriever):
    """The retriever's own kind of search."""


class TestRetrieverByDiversity(_Retriever):
    """The retriever by maximal marginal relevance."""

    search_type = "mmr"
