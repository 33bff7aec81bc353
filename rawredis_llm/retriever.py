"""Retrieval: a question in, documents out. An embedder and an index, joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .embedding import as_embedder
from .keys import distance_limit, require_text
from .protocol.operation import Bound, C_co, Op, Plan, Runnable, operation, together
from .search.fields import Numeric, Tag
from .search.filters import Filter, whole_number
from .vector_index import Row, SearchResult, VectorIndex

__all__ = ["Document", "Retriever"]


@dataclass(slots=True)
class Document:
    """A text that was found. `metadata` are its other fields; `distance` in the metric's unit.

    `score` is what a hybrid search ranks by, higher being better. `neighbours` are the texts before
    and after it, by position, where the retriever looks for them.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    distance: float | None = None
    score: float | None = None
    neighbours: list[Document] = field(default_factory=list)


class Retriever(Bound[C_co]):
    """Finds the documents of a `VectorIndex` that suit a question.

    `search_type` is "similarity" (the `k` nearest), "threshold" (of these, those up to
    `max_distance`, in the metric's unit), "mmr" (near, and unlike each other) or "hybrid" (by
    nearness and by words). `filter` is for every search. `text_field` names the field that holds a
    document's text, which is "" where there is none; `return_fields` what else to fetch (default:
    the schema's).

    `neighbours` is how many chunks before and after each are fetched, in one round trip more: those
    whose `source_field`, a Tag, is the same, by `position_field`, a Numeric of whole numbers.
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
        neighbours: int = 0,
        source_field: str = "source",
        position_field: str = "position",
    ) -> None:
        if search_type not in ("similarity", "threshold", "mmr", "hybrid"):
            raise ValueError(
                f"search_type must be similarity, threshold, mmr or hybrid, not {search_type!r}"
            )
        if (max_distance is None) != (search_type != "threshold"):
            raise ValueError('max_distance goes with search_type="threshold", and only with it')
        if not isinstance(index, VectorIndex):
            raise TypeError(f"index must be a VectorIndex, not {type(index).__name__}")
        index.schema.check_filter(filter)
        self._bind(index.client)
        self._index = index.plan
        self._embedder = as_embedder(embedder)
        if index.embedder and self._embedder.fingerprint not in ("", index.embedder):
            raise ValueError(
                f"embedder: the index is for {index.embedder!r}, not {self._embedder.fingerprint!r}"
            )
        self._k = whole_number("k", k)
        self._search_type = search_type
        self._max_distance = max_distance
        if max_distance is not None and index.schema.vector.metric != "ip":  # ip may be below 0
            self._max_distance = distance_limit("max_distance", max_distance)
        self._filter = filter
        self._text_field = require_text("text_field", text_field)
        self._neighbours = whole_number("neighbours", neighbours, 0)
        needed: list[str] = [text_field]
        if neighbours:
            fields = index.schema.fields
            source = fields.get(source_field)
            if not isinstance(source, Tag):
                raise ValueError(f"neighbours: the index has no Tag field {source_field!r}")
            self._separator = source.separator
            if not isinstance(fields.get(position_field), Numeric):
                raise ValueError(f"neighbours: the index has no Numeric field {position_field!r}")
            needed += [source_field, position_field]
        self._source, self._position = source_field, position_field
        self._fields = self._fetched(index, return_fields, needed)

    @staticmethod
    def _fetched(
        index: VectorIndex[Any], chosen: Sequence[str] | None, needed: Sequence[str]
    ) -> list[str] | None:
        if isinstance(chosen, str):
            raise TypeError("return_fields must be a list of names, not one name")
        if chosen is not None:
            return list(dict.fromkeys([*chosen, *needed]))
        if needed[0] in index.schema.fields:
            return None
        return [*(f for f in index.schema.fields if f != index.schema.vector.name), needed[0]]

    @property
    def plan(self) -> Retriever[Plan]:
        """This retriever with methods that return ops, for `client.gather`."""
        planned: Retriever[Plan] = self._planned()
        return planned

    @operation
    def retrieve(self, query: str) -> Op[list[Document]]:
        """Return the documents that suit a question best, best first."""
        require_text("query", query)
        vectors = yield from self._embedder.queries([query])
        return (yield from self._found(query, vectors[0]))

    @operation
    def retrieve_many(self, queries: Sequence[str]) -> Op[list[list[Document]]]:
        """Return the documents for each of many questions, in one round trip."""
        if isinstance(queries, str):
            raise TypeError("queries must be a list of texts, not one text")
        texts = [require_text("queries", query) for query in queries]
        if not texts:
            return []
        vectors = yield from self._embedder.queries(texts)
        pairs = zip(texts, vectors, strict=True)
        return (yield from together([self._found(text, vector) for text, vector in pairs]))

    def _found(self, query: str, vector: Any) -> Op[list[Document]]:
        result = yield from self._search(query, vector)
        limit = self._max_distance
        found = [
            self._document(row)
            for row in result.rows
            if limit is None or (row.distance is not None and row.distance <= limit)
        ]
        if self._neighbours and found:
            around = yield from together([self._around(document) for document in found])
            for document, neighbours in zip(found, around, strict=True):
                document.neighbours = neighbours
        return found

    def _search(self, query: str, vector: Any) -> Runnable[SearchResult]:
        chosen: dict[str, Any] = {"filter": self._filter, "return_fields": self._fields}
        if self._search_type == "hybrid":
            return self._index.hybrid(query, vector, self._k, **chosen)
        if self._search_type == "mmr":
            return self._index.mmr(vector, self._k, **chosen)
        return self._index.search(vector, self._k, **chosen)

    def _around(self, document: Document) -> Op[list[Document]]:
        """Return the chunks before and after one."""
        source = document.metadata.get(self._source)
        position = document.metadata.get(self._position)
        if not isinstance(source, (str, list)) or not isinstance(position, (int, float)):
            return []
        low, high = position - self._neighbours, position + self._neighbours
        try:
            sources = source.split(self._separator) if isinstance(source, str) else source
            same = Tag(self._source).one_of(sources)
        except (TypeError, ValueError):  # none, or one that this library would not have written
            return []
        same &= Numeric(self._position).between(low, high)
        rows = yield from self._index.query(
            same, limit=2 * self._neighbours + 1, sort_by=self._position, return_fields=self._fields
        )
        found = [self._document(row) for row in rows.rows if row.id != document.id]
        return sorted(found, key=lambda near: near.metadata.get(self._position, 0))

    def _document(self, row: Row) -> Document:
        metadata = dict(row.fields)
        text = metadata.pop(self._text_field, "")
        return Document(row.id, str(text), metadata, row.distance, row.score)
