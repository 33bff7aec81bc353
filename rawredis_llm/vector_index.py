"""A vector index: documents in, nearest documents out, by raw FT.* commands and binary blobs.

Documents are hashes under `prefix + id`. What the server would drop from the index without a word
(a vector of another size, a number that is none) is refused before it is sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import IndexNotFoundError, UnexpectedReplyError
from .keys import indexed_key_part, key_segment, milliseconds, require_text
from .protocol import commands
from .protocol.operation import Batch, Bound, C_co, Command, Op, Plan, operation
from .search import query
from .search.filters import Filter
from .search.replies import IndexInfo, SearchReply
from .search.schema import Field, Schema, text_or_bytes, whole_number
from .search.vectors import Array, as_matrix, as_vector, from_blob, similarity

__all__ = ["Row", "SearchResult", "VectorIndex"]


@dataclass(slots=True)
class Row:
    """A document. `id` is without the prefix; `distance` is in the metric's own unit.

    `similarity` is the distance as 0 to 1. `vector` is there where it was asked for: a read-only
    array of shape (dim,). Numeric fields are numbers, the others text (bytes where not UTF-8).
    """

    id: str
    fields: dict[str, Any]
    distance: float | None = None
    similarity: float | None = None
    score: float | None = None
    vector: Array | None = None


@dataclass(slots=True)
class SearchResult:
    """Rows, nearest first. `total` is how many were found, at most k + offset; see `count()`.

    `partial` is True if the server said that it could not look at everything; why is in `warnings`.
    Over RESP2 a server says nothing.
    """

    rows: list[Row]
    total: int
    partial: bool = False
    warnings: list[str] = field(default_factory=list)


class VectorIndex(Bound[C_co]):
    """An index of the given fields, one of them a `Vector`, over hashes under `prefix`.

    `prefix` is `name:` by default (a `:` in the name is percent-encoded, so that the documents of
    "trips:old" are not also those of "trips"). Creating the object does no I/O; `create()` does.
    """

    def __init__(
        self, client: C_co, name: str, fields: Sequence[Field], *, prefix: str | None = None
    ) -> None:
        self._bind(client)
        self.name = indexed_key_part("name", name)
        self.schema = Schema(fields)
        self._vector_key = self.schema.vector.name.encode()
        self._loaders = {
            known.name.encode(): (known.name, known.loaded) for known in self.schema.fields.values()
        }
        self.prefix = f"{key_segment(name)}:"
        if prefix is not None:
            self.prefix = indexed_key_part("prefix", prefix)

    @property
    def plan(self) -> VectorIndex[Plan]:
        """This index with methods that return ops, for `client.gather`."""
        planned: VectorIndex[Plan] = self._planned()
        return planned

    @operation
    def create(self, exist_ok: bool = False) -> Op[None]:  # noqa: FBT001, FBT002 - as os.makedirs
        """Create the index; documents already under the prefix are indexed in the background.

        Raises IndexExistsError if there is one of this name; with `exist_ok`, only
        IndexMismatchError, if it has another prefix or other fields.
        """
        if exist_ok:
            yield from query.ensure_index(self.name, (self.prefix,), self.schema)
        else:
            yield from query.create_index(self.name, (self.prefix,), self.schema)

    @operation
    def drop(self, delete_documents: bool = False) -> Op[None]:  # noqa: FBT001, FBT002 - see above
        """Drop the index, and its documents only if told so. Raises IndexNotFoundError."""
        yield from query.drop_index(self.name, documents=delete_documents)

    @operation
    def exists(self) -> Op[bool]:
        """Return whether there is an index of this name."""
        try:
            yield from query.info(self.name)
        except IndexNotFoundError:
            return False
        return True

    @operation
    def info(self) -> Command[IndexInfo]:
        """Return what the server says of the index. Raises IndexNotFoundError."""
        return query.info(self.name)

    @operation
    def load(
        self,
        ids: Sequence[str | int],
        vectors: Any,
        fields: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]] | None = None,
        *,
        ttl: float | None = None,
        batch_size: int = 500,
        progress: Callable[[int, int], object] | None = None,
    ) -> Op[int]:
        """Write documents, each replacing whole what was under its id; return how many.

        `vectors` is array-like of shape (n, dim), one row per id. `fields` is `{name: column}` or
        a list of dicts, one per id; a None leaves that field out of that document. Fields outside
        of the schema are stored and not indexed. `ttl` in seconds. A batch of `batch_size`
        documents is one write. `progress(done, total)` is called after each.

        All arguments are checked before the first byte is sent: ValueError or TypeError name what
        is wrong.
        """
        names = self._ids(ids)
        vector = self.schema.vector
        matrix = as_matrix(vectors, vector.dim, dtype=vector.dtype, metric=vector.metric)
        if len(matrix) != len(names):
            raise ValueError(f"{len(names)} ids, but {len(matrix)} vectors")
        rows = self._rows(fields, len(names))
        px = milliseconds("ttl", ttl)
        whole_number("batch_size", batch_size)
        for start in range(0, len(names), batch_size):
            keys = [self.prefix + name for name in names[start : start + batch_size]]
            blobs = matrix[start : start + batch_size].data.cast("B")
            size = matrix.itemsize * vector.dim
            batch: list[Command[Any] | tuple[Any, ...]] = [commands.delete(*keys)]
            for i, key in enumerate(keys):
                blob = blobs[i * size : (i + 1) * size]
                batch.append(("HSET", key, vector.name, blob, *rows[start + i]))
            if px is not None:
                batch += [commands.pexpire(key, px) for key in keys]
            yield from Batch(batch)
            if progress is not None:
                progress(start + len(keys), len(names))
        return len(names)

    @operation
    def get(self, ids: Sequence[str | int]) -> Op[list[Row | None]]:
        """Return documents by id, vectors included, in order; None for each that is missing."""
        names = self._ids(ids, repeated=True)
        found = yield from Batch([commands.hgetall(self.prefix + name) for name in names])
        return [
            self._row(name, fields) if fields else None
            for name, fields in zip(names, found, strict=True)
        ]

    @operation
    def delete(self, ids: Sequence[str | int]) -> Op[int]:
        """Delete documents by id; return how many there were."""
        names = self._ids(ids, repeated=True)
        if not names:
            return 0
        return (yield from commands.unlink([self.prefix + name for name in names]))

    @operation
    def count(self, filter: Filter | None = None) -> Command[int]:  # noqa: A002 - the API's name
        """Return how many documents are indexed, or match the filter."""
        return query.count(self.name, self.schema.check_filter(filter))

    @operation
    def search(
        self,
        vector: Any,
        k: int = 10,
        *,
        filter: Filter | None = None,  # noqa: A002 - the API's own name
        return_fields: Sequence[str] | None = None,
        include_vectors: bool = False,
        offset: int = 0,
        ef_runtime: int | None = None,
    ) -> Command[SearchResult]:
        """Return the `k` documents nearest to a vector of shape (dim,), nearest first.

        Only documents that match `filter` are considered. `return_fields` (default: the schema's)
        may name fields outside of the schema. `offset` skips the nearest; `ef_runtime` is how many
        candidates an hnsw index looks at. Fewer than k matches give fewer rows.
        """
        target = self.schema.vector
        array = as_vector(vector, target.dim, dtype=target.dtype, metric=target.metric)
        wanted = whole_number("k", k) + whole_number("offset", offset, 0)
        if wanted > query.MAX_RESULTS:
            raise ValueError(f"k and offset: the server returns {query.MAX_RESULTS} rows at most")
        if ef_runtime is not None and target.algorithm != "hnsw":
            raise ValueError("ef_runtime: only an hnsw index has it")
        names = [name for name in self.schema.fields if name != target.name]
        if isinstance(return_fields, str):
            raise TypeError("return_fields must be a list of names, not one name")
        if return_fields is not None:
            names = [require_text("return_fields", name) for name in return_fields]
        if include_vectors and target.name not in names:
            names.append(target.name)

        def rows(reply: SearchReply) -> SearchResult:
            return self._result(reply, offset, offset + k)

        return query.knn(
            self.name,
            self.schema.check_filter(filter),
            target.name,
            array.data.cast("B"),
            wanted,
            names,
            ef_runtime=None if ef_runtime is None else whole_number("ef_runtime", ef_runtime),
            decode=rows,
        )

    def _ids(self, ids: Sequence[str | int], *, repeated: bool = False) -> list[str]:
        if isinstance(ids, (str, bytes)):
            raise TypeError("ids must be a list of ids, not one id")
        names = [
            indexed_key_part("ids", i if isinstance(i, (str, bool)) else _whole(i)) for i in ids
        ]
        if not repeated and len(set(names)) != len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise ValueError(f"ids: {twice!r} is given twice, one document would be lost")
        return names

    def _rows(self, fields: Any, total: int) -> list[list[Any]]:
        """Return each document's fields as HSET arguments."""
        rows: list[list[Any]] = [[] for _ in range(total)]
        if isinstance(fields, Mapping):
            self._add_columns(rows, fields)
        elif fields is not None:
            self._add_documents(rows, fields)
        return rows

    def _add_columns(self, rows: list[list[Any]], columns: Mapping[str, Any]) -> None:
        for name, column in columns.items():
            if isinstance(column, (str, bytes)) or not hasattr(column, "__len__"):
                raise TypeError(f"field {name!r}: a column is a list or an array")
            if len(column) != len(rows):
                raise ValueError(f"field {name!r}: {len(column)} values, but {len(rows)} ids")
            stored = self._storing(name)
            for row, value in zip(rows, column, strict=True):
                if value is not None:
                    row.extend((name, stored(value)))

    def _add_documents(self, rows: list[list[Any]], documents: Any) -> None:
        if not isinstance(documents, Sequence) or isinstance(documents, (str, bytes)):
            raise TypeError("fields must be a dict of columns or a list of dicts")
        if len(documents) != len(rows):
            raise ValueError(f"fields: {len(documents)} documents, but {len(rows)} ids")
        for row, document in zip(rows, documents, strict=True):
            if not isinstance(document, Mapping):
                raise TypeError(f"fields: a document is a dict, not {type(document).__name__}")
            for name, value in document.items():
                if value is not None:
                    row.extend((name, self._storing(name)(value)))

    def _storing(self, name: str) -> Callable[[Any], Any]:
        known = self.schema.fields.get(require_text("fields", name))
        if known is self.schema.vector:
            raise ValueError(f"field {name!r} is the vector; it is the argument `vectors`")
        return known.stored if known is not None else lambda value: _unindexed(name, value)

    def _row(self, name: str, found: dict[bytes, bytes], distance: float | None = None) -> Row:
        vector = self.schema.vector
        array = None
        fields: dict[str, Any] = {}
        loaders = self._loaders
        for key, value in found.items():
            if key == self._vector_key:
                array = from_blob(value, vector.dtype)
                if len(array) != vector.dim:
                    raise UnexpectedReplyError(f"{name!r} holds a vector of {len(array)} numbers")
            elif key == _DISTANCE:
                pass
            elif key in loaders:
                label, load = loaders[key]
                fields[label] = load(value)
            else:
                fields[key.decode(errors="replace")] = text_or_bytes(value)
        near = None if distance is None else similarity(distance, vector.metric)
        return Row(name, fields, distance, near, None, array)

    def _result(self, reply: SearchReply, start: int, end: int) -> SearchResult:
        try:
            found = [
                (float(fields[_DISTANCE]), key, fields) for key, fields in reply.rows if fields
            ]
        except (KeyError, ValueError):
            raise UnexpectedReplyError("FT.SEARCH: a row without a distance") from None
        # The server's order is not to be relied on everywhere; NaN, which is nobody's, goes last.
        found.sort(key=_nearness)
        cut = len(self.prefix.encode())  # every key of this index begins with the prefix
        rows = [
            self._row(key[cut:].decode(errors="replace"), fields, distance)
            for distance, key, fields in found[start:end]
        ]
        return SearchResult(rows, len(found), bool(reply.warnings), reply.warnings)


_DISTANCE = query.DISTANCE.encode()


def _nearness(row: tuple[float, bytes, dict[bytes, bytes]]) -> float:
    return math.inf if math.isnan(row[0]) else row[0]


def _whole(id_: Any) -> Any:
    """Return a whole number as text, anything else as it is."""
    return str(int(id_)) if isinstance(id_, (int, np.integer)) else id_


def _unindexed(name: str, value: Any) -> Any:
    """Return a value that is only stored; what has no form on the wire is refused by its name."""
    if isinstance(value, np.number):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (str, bytes, int, float)):
        raise TypeError(f"field {name!r} takes text, bytes or a number, not {type(value).__name__}")
    return value
