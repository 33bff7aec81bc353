"""The retriever of a `RedisVectorStore`, with all the kinds of search that LangChain's had."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStoreRetriever
from pydantic import model_validator

__all__ = ["RedisVectorStoreRetriever"]

_LIMIT = 0.4  # of the cosine distance, as LangChain's retriever had it


class RedisVectorStoreRetriever(VectorStoreRetriever):
    """Finds documents by `search_type`.

    * "similarity": the `k` nearest (default 4);
    * "similarity_limit": of these, those up to the distance `score_threshold` (default 0.4);
    * "similarity_distance_threshold": up to `distance_threshold`, which must be given;
    * "similarity_score_threshold": those of a relevance of `score_threshold`, 0 to 1, or more;
    * "mmr": near, and unlike each other; `fetch_k` and `lambda_mult` as in the store.

    All of these are keys of `search_kwargs`, `filter` too; `k` and `score_threshold` may be given
    to `as_retriever` by themselves. Raises ValueError for another search type.
    """

    allowed_search_types: ClassVar[Collection[str]] = (
        "similarity",
        "similarity_limit",
        "similarity_distance_threshold",
        "similarity_score_threshold",
        "mmr",
    )

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Take what was given beside search_kwargs into it, and see that it is complete."""
        kwargs = dict(values.get("search_kwargs") or {})
        for name in ("k", "score_threshold", "distance_threshold"):
            if values.get(name) is not None:
                kwargs[name] = values[name]
        values = {name: v for name, v in values.items() if name not in kwargs}
        if values.get("search_type") == "similarity_distance_threshold":
            if kwargs.get("distance_threshold") is None:
                raise ValueError("similarity_distance_threshold needs a distance_threshold")
        elif kwargs.get("distance_threshold", 0) is None:
            del kwargs["distance_threshold"]
        return {**values, "search_kwargs": kwargs}

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        how, options = self._search(kwargs)
        if how is None:
            return super()._get_relevant_documents(query, run_manager=run_manager, **kwargs)
        found: list[Document] = getattr(self.vectorstore, how)(query, **options)
        return found

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        how, options = self._search(kwargs)
        if how is None:
            return await super()._aget_relevant_documents(query, run_manager=run_manager, **kwargs)
        found: list[Document] = await getattr(self.vectorstore, f"a{how}")(query, **options)
        return found

    def _search(self, kwargs: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Return the store's method, None for those that the base knows, and its arguments."""
        options = {**self.search_kwargs, **kwargs}
        if self.search_type == "similarity_limit":
            options.setdefault("score_threshold", _LIMIT)
            return "similarity_search_limit_score", options
        if self.search_type == "similarity_distance_threshold":
            return "similarity_search", options
        return None, options
