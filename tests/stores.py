"""Vector stores for the tests of LangChain's drop-in, and embeddings whose vectors are known."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from rawredis_llm.langchain import RedisVectorStore


class Points(Embeddings):
    """A text of so many numbers is that vector; any other text is a random one, always the same.

    `name` is what tells it from others, '' for nothing.
    """

    def __init__(self, size: int = 8, name: str = "") -> None:
        self.size = size
        self.name = name

    def vector(self, text: str) -> list[float]:
        """Return the vector of a text."""
        try:
            numbers = [float(one) for one in text.split()]
        except ValueError:
            numbers = []
        if len(numbers) == self.size:
            return numbers
        rng = np.random.default_rng(zlib.crc32(text.encode()))
        return [float(one) for one in rng.normal(size=self.size)]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.vector(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.vector(text)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.vector(text) for text in texts]

    async def aembed_query(self, text: str) -> list[float]:
        return self.vector(text)


class AsyncPoints(Points):
    """The same for an event loop only."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise AssertionError(f"sync call for {texts}")

    def embed_query(self, text: str) -> list[float]:
        raise AssertionError(f"sync call for {text}")


class Stores:
    """Makes stores on one server, and closes them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: list[RedisVectorStore] = []

    def __call__(
        self, name: str = "trips", embeddings: Embeddings | None = None, **options: Any
    ) -> RedisVectorStore:
        """Return a store of the index `name`; its texts are points in a plane of 8 dimensions."""
        given = Points() if embeddings is None else embeddings
        return self.keep(RedisVectorStore(given, index_name=name, redis_url=self.url, **options))

    def keep(self, store: RedisVectorStore) -> RedisVectorStore:
        """Return a store, which will be closed."""
        self._made.append(store)
        return store

    async def aclose(self) -> None:
        """Close them."""
        for store in self._made:
            await store.aclose()


def texts_of(documents: list[Document]) -> list[str]:
    """Return what documents say."""
    return [document.page_content for document in documents]


def ids_of(documents: list[Document]) -> set[str]:
    """Return the ids of documents, each of which has one, and no two the same."""
    names = [document.id for document in documents if document.id]
    assert len(set(names)) == len(names) == len(documents)
    return set(names)


def eventually(look: Callable[[], Any], expected: Any) -> None:
    """Assert that something is seen within half a minute: an index may be being built."""
    until = time.monotonic() + 30
    while (found := look()) != expected and time.monotonic() < until:
        time.sleep(0.02)
    assert found == expected
