"""LangChain's vector store over a `VectorIndex`: texts with metadata in, nearest documents out.

What it holds, and how, is in `texts`; here is what can be asked of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from langchain_core.documents import Document

from ..errors import IndexNotFoundError
from ..protocol.operation import Op
from ..search.filters import whole_number
from ..search.fusion import diverse
from ..search.query import Options
from ..vector_index import Row
from .filters import as_filter
from .retriever import RedisVectorStoreRetriever
from .texts import METADATA, RedisConfig, StoredTexts

__all__ = ["Redis", "RedisConfig", "RedisVectorStore"]

Found = list[tuple[Document, float]]

_OPTIONS = {*Options.__annotations__, "include_vectors", "offset"}


class RedisVectorStore(StoredTexts):
    """Texts, found by nearness of their vectors and by filters on their metadata.

    `embeddings` (or `embedding`) is any of LangChain's. `redis_url` or `client` say where (default:
    the environment's REDIS_URL, else localhost). `index_name` (default: a random one) may be any
    text; `key_prefix` is `doc:<index_name>` by default. `ttl` (seconds) is each document's.

    Metadata is indexed by what it is (text, number, list of texts: tags) unless `index_schema` (a
    dict, or the path of a YAML file) or `metadata_schema` (a list) says what; other names are then
    kept and not indexed. The vector is flat, cosine, float32 unless `vector_schema`, or
    `indexing_algorithm`, `distance_metric` and `vector_datatype`, say otherwise. `config` is a
    `RedisConfig`, which holds any of these. The older order of arguments, (redis_url, index_name,
    embedding), is understood, too.

    Methods that search return [] as long as there is no index. Those with `a` before their names
    are their twins for asyncio.
    """

    _warned = False

    def similarity_search(self, query: str, k: int = 4, **options: Any) -> list[Document]:
        """Return the `k` documents nearest to a text, nearest first.

        `options`: `filter` (of RedisTag and its like, of ours, or text in the server's language),
        `distance_threshold` (the distance up to which they come, in the metric's unit),
        `return_metadata` (default True), and those of `VectorIndex.search`, such as `ef_runtime`.
        """
        return _bare(self.link.run(self._search(query, k, **options)))

    async def asimilarity_search(self, query: str, k: int = 4, **options: Any) -> list[Document]:
        """Do what `similarity_search` does."""
        return _bare(await self.link.arun(self._search(query, k, **options)))

    def similarity_search_with_score(self, query: str, k: int = 4, **options: Any) -> Found:
        """Return the nearest documents, each with its distance; see `similarity_search`."""
        return self.link.run(self._search(query, k, **options))

    async def asimilarity_search_with_score(self, query: str, k: int = 4, **options: Any) -> Found:
        """Do what `similarity_search_with_score` does."""
        return await self.link.arun(self._search(query, k, **options))

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **options: Any
    ) -> list[Document]:
        """Return the documents nearest to a vector of shape (dim,); see `similarity_search`."""
        return _bare(self.link.run(self._near(embedding, k, **options)))

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **options: Any
    ) -> list[Document]:
        """Do what `similarity_search_by_vector` does."""
        return _bare(await self.link.arun(self._near(embedding, k, **options)))

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, **options: Any
    ) -> Found:
        """Return the documents nearest to a vector, each with its distance."""
        return self.link.run(self._near(embedding, k, **options))

    async def asimilarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, **options: Any
    ) -> Found:
        """Do what `similarity_search_with_score_by_vector` does."""
        return await self.link.arun(self._near(embedding, k, **options))

    def similarity_search_limit_score(
        self, query: str, k: int = 4, score_threshold: float = 0.2, **options: Any
    ) -> list[Document]:
        """Return the nearest documents up to the distance `score_threshold`."""
        return self.similarity_search(query, k, distance_threshold=score_threshold, **options)

    async def asimilarity_search_limit_score(
        self, query: str, k: int = 4, score_threshold: float = 0.2, **options: Any
    ) -> list[Document]:
        """Do what `similarity_search_limit_score` does."""
        return await self.asimilarity_search(
            query, k, distance_threshold=score_threshold, **options
        )

    def _search(self, query: str, k: int, **options: Any) -> Op[Found]:
        vectors = yield from self._embedder.queries([query])
        return (yield from self._near(vectors[0], k, **options))

    def _near(
        self,
        vector: Any,
        k: int,
        *,
        filter: Any = None,  # noqa: A002 - LangChain's name
        distance_threshold: float | None = None,
        return_metadata: bool = True,
        **options: Any,
    ) -> Op[Found]:
        rows = yield from self._rows(vector, k, filter, distance_threshold, options)
        return [
            (self._document(row, metadata=return_metadata), row.distance or 0.0) for row in rows
        ]

    def _rows(
        self, vector: Any, k: int, given: Any, limit: float | None, options: dict[str, Any]
    ) -> Op[list[Row]]:
        condition = as_filter(given)
        if unknown := options.keys() - _OPTIONS:
            raise TypeError(f"a search has no option {min(unknown)!r}")
        if condition is not None:
            yield from self.knows([name for name, _ in condition.fields])
        index = yield from self._open()
        if index is None:
            return []
        try:
            result = yield from index.search(
                vector, k, filter=condition, return_fields=[self._content, METADATA], **options
            )
        except IndexNotFoundError:
            self._index = None
            return []
        if result.partial and not self._warned:
            self._warned = True  # once: new fields of the index make each search say so for a while
            told = "; ".join(result.warnings)
            logging.getLogger("rawredis_llm").warning("the search saw a part only: %s", told)
        rows = [
            row for row in result.rows if limit is None or (row.distance or 0.0) <= float(limit)
        ]
        others = [row for row in rows if METADATA not in row.fields]  # another library's
        for row, whole in zip(others, (yield from index.get([r.id for r in others])), strict=True):
            row.fields = row.fields if whole is None else whole.fields
        return rows

    # -- diversity ---------------------------------------------------------------------------------

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **options: Any
    ) -> list[Document]:
        """Return `k` documents near to a text and unlike each other, of the nearest `fetch_k`.

        `lambda_mult` 1 looks at nearness alone, 0 at difference alone; `options` are those of
        `similarity_search`.
        """
        return self.link.run(self._diverse(query, None, k, fetch_k, lambda_mult, **options))

    async def amax_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **options: Any
    ) -> list[Document]:
        """Do what `max_marginal_relevance_search` does."""
        return await self.link.arun(self._diverse(query, None, k, fetch_k, lambda_mult, **options))

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **options: Any,
    ) -> list[Document]:
        """Return what `max_marginal_relevance_search` does, for a vector."""
        return self.link.run(self._diverse("", embedding, k, fetch_k, lambda_mult, **options))

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **options: Any,
    ) -> list[Document]:
        """Do what `max_marginal_relevance_search_by_vector` does."""
        return await self.link.arun(
            self._diverse("", embedding, k, fetch_k, lambda_mult, **options)
        )

    def _diverse(
        self,
        query: str,
        vector: Any,
        k: int,
        fetch_k: int,
        lambda_mult: float,
        *,
        filter: Any = None,  # noqa: A002 - LangChain's name
        distance_threshold: float | None = None,
        return_metadata: bool = True,
        **options: Any,
    ) -> Op[list[Document]]:
        if not 0 <= lambda_mult <= 1:
            raise ValueError(f"lambda_mult must be from 0 to 1, not {lambda_mult!r}")
        if vector is None:
            vector = (yield from self._embedder.queries([query]))[0]
        wide = {"include_vectors": True, **options}
        rows = yield from self._rows(vector, max(k, fetch_k), filter, distance_threshold, wide)
        if not rows:
            return []
        vectors = np.array([row.vector for row in rows])
        chosen = diverse(np.asarray(vector), vectors, whole_number("k", k), lambda_mult)
        return [self._document(rows[at], metadata=return_metadata) for at in chosen]

    # -- relevance, retrievers ---------------------------------------------------------------------

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return self.relevance_score_fn or self._relevance

    def _relevance(self, distance: float) -> float:
        """Return a distance as relevance, 0 to 1: 1 - d, for l2 1 / (1 + d)."""
        index = self._made(1) if self._index is None else self._index
        metric = index.schema.vector.metric
        if metric == "l2":
            return 1.0 / (1.0 + max(distance, 0.0))
        return min(max(1.0 - distance, 0.0), 1.0)

    def as_retriever(self, **kwargs: Any) -> RedisVectorStoreRetriever:
        """Return a retriever over this store; see `RedisVectorStoreRetriever`."""
        tags = [*(kwargs.pop("tags", None) or ()), *self._get_retriever_tags()]
        return RedisVectorStoreRetriever(vectorstore=self, tags=tags, **kwargs)


Redis = RedisVectorStore


def _bare(found: Found) -> list[Document]:
    return [document for document, _ in found]
