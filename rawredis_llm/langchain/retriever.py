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
_SCORED = "similarity_score_threshold"
_METHODS = {
    "similarity": "similarity_search",
    "similarity_limit": "similarity_search_limit_score",
    "similarity_distance_threshold": "similarity_search",
    _SCORED: "similarity_search_with_relevance_scores",
    "mmr": "max_marginal_relevance_search",
}


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

    allowed_search_types: ClassVar[Collection[str]] = tuple(_METHODS)

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
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002 - as the base has it
        **kwargs: Any,
    ) -> list[Document]:
        options = self._options(kwargs)
        found: Any = getattr(self.vectorstore, _METHODS[self.search_type])(query, **options)
        return [one[0] for one in found] if self.search_type == _SCORED else found

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,  # noqa: ARG002 - as the base has it
        **kwargs: Any,
    ) -> list[Document]:
        options = self._options(kwargs)
        search = getattr(self.vectorstore, f"a{_METHODS[self.search_type]}")
        found: Any = await search(query, **options)
        return [one[0] for one in found] if self.search_type == _SCORED else found

    def _options(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        options = {**self.search_kwargs, **kwargs}
        if self.search_type == "similarity_limit" and options.get("score_threshold") is None:
            options["score_threshold"] = _LIMIT
        if self.search_type not in ("similarity_limit", _SCORED):
            options.pop("score_threshold", None)  # of LangChain's defaults; the others have none
        return options
