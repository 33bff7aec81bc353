"""Retrieval: a question in, documents out. An embedder and an index, joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .embedding import as_embedder
from .keys import distance_limit, require_text
from .protocol.operation import Bound, C_co, Op, Plan, operation, together
from .search.filters import Filter
from .search.schema import whole_number
from .vector_index import Row, VectorIndex

__all__ = ["Document", "Retriever"]


@dataclass(slots=True)
class Document:
    """A text that was found. `metadata` are its other fields; `distance` in the metric's unit."""

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    distance: float | None = None


class Retriever(Bound[C_co]):
    """Finds the documents of a `VectorIndex` nearest to a question.

    `search_type` is "similarity" (the `k` nearest) or "threshold" (of these, those up to
    `max_distance`, in the metric's unit). `filter` is for every search. `text_field` names the
    field that holds a document's text, which is "" where there is none; `return_fields` what else
    to fetch (default: the schema's).
    """

    def __init__(
        self,
        index: VectorIndex[C_co],
        embedder: Any,
        *,
        k: int = 4,
        search_type: str = "similarity",
        max_distance: float | None = None,
        filter: Filter | None = None,  # noqa: A002 - the API's own name
        text_field: str = "text",
        return_fields: Sequence[str] | None = None,
    ) -> None:
        if search_type not in ("similarity", "threshold"):
            raise ValueError(f"search_type must be similarity or threshold, not {search_type!r}")
        if (max_distance is None) != (search_type == "similarity"):
            raise ValueError('max_distance goes with search_type="threshold", and only with it')
        if not isinstance(index, VectorIndex):
            raise TypeError(f"index must be a VectorIndex, not {type(index).__name__}")
        index.schema.check_filter(filter)
        self._bind(index.client)
        self._index = index.plan
        self._embedder = as_embedder(embedder)
        self._k = whole_number("k", k)
        self._max_distance = max_distance
        if max_distance is not None and index.schema.vector.metric != "ip":  # ip may be below 0
            self._max_distance = distance_limit("max_distance", max_distance)
        self._filter = filter
        self._text_field = require_text("text_field", text_field)
        self._fields = None
        if return_fields is not None:
            if isinstance(return_fields, str):
                raise TypeError("return_fields must be a list of names, not one name")
            self._fields = list(dict.fromkeys([*return_fields, text_field]))
        elif text_field not in index.schema.fields:
            self._fields = [*index.schema.fields, text_field]
            self._fields.remove(index.schema.vector.name)

    @property
    def plan(self) -> Retriever[Plan]:
        """This retriever with methods that return ops, for `client.gather`."""
        planned: Retriever[Plan] = self._planned()
        return planned

    @operation
    def retrieve(self, query: str) -> Op[list[Document]]:
        """Return the documents nearest to a question, nearest first."""
        require_text("query", query)
        vectors = yield from self._embedder.queries([query])
        return (yield from self._nearest(vectors[0]))

    @operation
    def retrieve_many(self, queries: Sequence[str]) -> Op[list[list[Document]]]:
        """Return the documents for each of many questions, in one round trip."""
        if isinstance(queries, str):
            raise TypeError("queries must be a list of texts, not one text")
        texts = [require_text("queries", query) for query in queries]
        if not texts:
            return []
        vectors = yield from self._embedder.queries(texts)
        return (yield from together([self._nearest(vector) for vector in vectors]))

    def _nearest(self, vector: Any) -> Op[list[Document]]:
        result = yield from self._index.search(
            vector, self._k, filter=self._filter, return_fields=self._fields
        )
        limit = self._max_distance
        return [
            self._document(row)
            for row in result.rows
            if limit is None or (row.distance is not None and row.distance <= limit)
        ]

    def _document(self, row: Row) -> Document:
        metadata = dict(row.fields)
        text = metadata.pop(self._text_field, "")
        return Document(row.id, str(text), metadata, row.distance)
