"""A vector index: documents in, nearest documents out, by raw FT.* commands and binary blobs.

`VectorIndex` stands on `index.life` (what it is), `index.documents` (what is in it) and
`index.queries` (what can be asked of it).
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar, overload

from .index.life import read_manifest
from .index.queries import AggregateResult, Explanation
from .index.rows import Row, SearchResult
from .index.transfer import Transfer
from .protocol.operation import AsyncRunner, C_co, Op, Plan, Runner
from .search import query
from .search.fields import Field
from .search.schema import Schema

C = TypeVar("C", bound="Runner | AsyncRunner | Plan")
R = TypeVar("R", bound=Runner)
A = TypeVar("A", bound=AsyncRunner)

__all__ = ["AggregateResult", "Explanation", "Row", "SearchResult", "VectorIndex"]


class VectorIndex(Transfer[C_co]):
    """An index of the given fields, one of them a `Vector`, over documents under `prefix`.

    `prefix` is `name:` by default (a `:` in the name is percent-encoded, so that the documents of
    "trips:old" are not also those of "trips"). It may be a list: then ids are whole keys, each of
    which begins with one of them. `on` says what documents are: hash or json. `language` is what
    stems follow (english), `stopwords` the words that are not indexed (default: the server's list,
    []: none); `filter_expression` is a condition in FT.AGGREGATE's language that documents must
    meet to be indexed, sent as it is. `embedder`, one that `as_embedder` takes or the text of its
    fingerprint, is written down with the index, so that another one's vectors are refused.

    Creating the object does no I/O; `create()` does.
    """

    def __init__(
        self,
        client: C_co,
        name: str,
        fields: Sequence[Field],
        *,
        prefix: str | Sequence[str] | None = None,
        on: str = "hash",
        language: str | None = None,
        stopwords: Iterable[str] | None = None,
        filter_expression: str | None = None,
        embedder: Any = None,
    ) -> None:
        schema = Schema(
            fields,
            on=on,
            language=language,
            stopwords=stopwords,
            filter_expression=filter_expression,
        )
        super().__init__(client, name, schema, prefix=prefix, embedder=embedder)

    @property
    def plan(self) -> VectorIndex[Plan]:
        """This index with methods that return ops, for `client.gather`."""
        planned: VectorIndex[Plan] = self._planned()
        return planned

    @staticmethod
    def from_dict(client: C, described: Mapping[str, Any]) -> VectorIndex[C]:
        """Return the index that plain values describe, as `to_dict` gives them."""
        given = dict(described)
        schema = Schema.from_dict({k: v for k, v in given.items() if k not in _OWN})
        options = {key: given[key] for key in ("prefix", "embedder") if key in given}
        fields = list(schema.fields.values())
        return VectorIndex(client, given["name"], fields, **schema.options(), **options)

    @overload
    @staticmethod
    def open(client: R, name: str) -> VectorIndex[R]: ...
    @overload
    @staticmethod
    def open(client: A, name: str) -> Coroutine[Any, Any, VectorIndex[A]]: ...
    @staticmethod
    def open(client: Any, name: str) -> Any:
        """Return an index that exists, by its name or an alias; from an AsyncClient, awaited.

        Its fields are those that the server tells of: parameters that FT.INFO leaves out
        (ef_runtime, phonetic, ...) are not known. Raises IndexNotFoundError, and ValueError for an
        index that has no vector field, more than one, or a field of unknown kind.
        """
        return client.run(opening(client, name))


_OWN = ("name", "prefix", "embedder")


def opening(client: Any, name: str) -> Op[VectorIndex[Any]]:
    """Return the index of this name, bound to a client, in an op of its own."""
    info = yield from query.info(name)
    embedder = yield from read_manifest(info.name)
    schema = Schema.from_info(info)
    fields = list(schema.fields.values())
    return VectorIndex(
        *(client, info.name, fields),
        **schema.options(),
        prefix=info.prefixes,
        embedder=embedder or None,
    )
