"""An index that comes into being with its first documents, of the size of their vectors.

What memories, histories and routers share: nobody creates their index by hand, nobody need know the
embedder's dimensions, and a flushed server is healed by the next write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import IndexNotFoundError
from ..protocol.operation import Op, Plan, Runnable, together
from ..search.fields import Field, Tag
from ..search.filters import Filter
from ..search.query import ensure_index, write_indexed
from ..search.schema import Vector
from ..vector_index import Row, VectorIndex


def owned_by(scope: str) -> Filter:
    """Return the filter of one scope's documents."""
    return Tag("scope") == scope


class LazyIndex:
    """Documents of many scopes in one index; each has the field `scope`, a digest.

    It is shared by the copies of its owner, of whatever colour.
    """

    def __init__(self, name: str, fields: Sequence[Field] = ()) -> None:
        self._name = name
        self.prefix = f"{name}:v:"
        self._fields = [Tag("scope", case_sensitive=True), *fields]
        self._index: VectorIndex[Plan] | None = None
        self._ready = False

    @staticmethod
    def over(index: VectorIndex[Any]) -> LazyIndex:
        """Return what keeps its documents in an index of the user's. Raises ValueError."""
        if len(index.prefixes) != 1:
            raise ValueError("the index must have one prefix, not several")
        tag = index.schema.fields.get("scope")
        if not isinstance(tag, Tag) or not tag.case_sensitive:
            raise ValueError('the index needs the field Tag("scope", case_sensitive=True)')
        lazy = LazyIndex(index.name)
        lazy.prefix = index.prefix
        lazy._index = index.plan
        return lazy

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields that documents have beside their vectors, by name."""
        fields = self._fields if self._index is None else self._index.schema.fields.values()
        return {field.name: field for field in fields if not isinstance(field, Vector)}

    @property
    def any(self) -> VectorIndex[Plan]:
        """The index, for what has to do with no vector."""
        return self._made(1) if self._index is None else self._index

    def _made(self, dim: int) -> VectorIndex[Plan]:
        fields = [*self._fields, Vector("vector", dim)]
        return VectorIndex(Plan(), self._name, fields, prefix=self.prefix)

    def prepare(self, vectors: Any, fields: Sequence[Mapping[str, Any]]) -> Op[VectorIndex[Plan]]:
        """See that documents can be written, and create the index where there is none.

        Raises ValueError or TypeError, before anything is sent, for what cannot be, and
        IndexMismatchError.
        """
        index = self._index or self._made(len(vectors[0]))
        index.check_load(None, vectors, fields)
        if not self._ready:
            yield from ensure_index(index.name, index.prefixes, index.schema)
            self._index, self._ready = index, True
        return index

    def write(
        self,
        ids: Sequence[str],
        vectors: Any,
        fields: Sequence[Mapping[str, Any]],
        *,
        ttl: float | None = None,
    ) -> Op[None]:
        """Write documents, and the index where there is none; see `prepare`."""
        index = yield from self.prepare(vectors, fields)
        load = index.load(ids, vectors, fields, ttl=ttl)
        yield from write_indexed(index.name, index.prefixes, index.schema, load)

    def nearest(
        self,
        vector: Any,
        k: int,
        condition: Filter,
        fields: Sequence[str],
        *others: Runnable[Any],
    ) -> Op[list[Any]]:
        """Return the nearest documents that meet a condition, and what others ops give.

        All in one round trip. Where there is no index there are no documents.
        """
        index = self._index or self._made(len(vector))
        search = index.search(vector, k, filter=condition, return_fields=fields)
        found, *rest = yield from together([search, *others], raise_errors=False)
        if isinstance(found, IndexNotFoundError):
            self._ready = False
            found = None
        for one in (found, *rest):
            if isinstance(one, Exception):
                raise one
        return [[] if found is None else found.rows, *rest]

    def matching(self, condition: Filter, fields: Sequence[str], **options: Any) -> Op[list[Row]]:
        """Return documents that meet a condition; see `VectorIndex.query`."""
        try:
            query = self.any.query(condition, return_fields=fields, **options)
            return (yield from query).rows
        except IndexNotFoundError:
            return []

    def forget(self, condition: Filter) -> Op[int]:
        """Delete the documents that meet a condition; return how many."""
        try:
            return (yield from self.any.delete_where(condition))
        except IndexNotFoundError:
            return 0
