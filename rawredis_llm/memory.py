"""Vector memory: what was said before, found again by nearness. Many memories share one index.

A memory's `scope` is digested into each key and into a tag of the pre-filter, so a memory can
neither see nor delete what is another's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

from .embedding import as_embedder
from .errors import IndexNotFoundError
from .keys import clear_entries, digest, from_json, require_text, to_json
from .protocol.operation import Bound, C_co, Now, Op, Plan, operation
from .retriever import Document
from .search.fields import Tag
from .search.filters import whole_number
from .search.query import ensure_index, write_indexed
from .search.schema import Vector
from .vector_index import Row, VectorIndex

__all__ = ["VectorMemory"]

Turn = str | Mapping[str, Any]


class VectorMemory(Bound[C_co]):
    """Remembers turns of conversations, and recalls those nearest to a text.

    Given a client, it keeps an index named `memory`, created when first needed, of the size of the
    embedder's first vector; an embedder of another size needs an index of its own. Given a
    `VectorIndex`, it uses that one, which must have the field `Tag("scope", case_sensitive=True)`.
    """

    @overload
    def __init__(
        self, index_or_client: VectorIndex[C_co], embedder: Any, *, scope: str, k: int = 4
    ) -> None: ...
    @overload
    def __init__(self, index_or_client: C_co, embedder: Any, *, scope: str, k: int = 4) -> None: ...
    def __init__(self, index_or_client: Any, embedder: Any, *, scope: str, k: int = 4) -> None:
        self._embedder = as_embedder(embedder)
        self._scope = digest("memory", require_text("scope", scope), self._embedder.fingerprint)
        self._k = whole_number("k", k)
        self._index: list[VectorIndex[Plan]] = []  # a list, so that copies bound to a plan share it
        self._ready: list[bool] = []
        if isinstance(index_or_client, VectorIndex):
            tag = index_or_client.schema.fields.get("scope")
            if not isinstance(tag, Tag) or not tag.case_sensitive:
                raise ValueError('the index needs the field Tag("scope", case_sensitive=True)')
            self._index.append(index_or_client.plan)
            index_or_client = index_or_client.client
        self._bind(index_or_client)

    @property
    def plan(self) -> VectorMemory[Plan]:
        """This memory with methods that return ops, for `client.gather`."""
        planned: VectorMemory[Plan] = self._planned()
        return planned

    @operation
    def save(self, inputs: Turn, outputs: Turn) -> Op[str]:
        """Remember a turn: what was put in and what came out, texts or dicts; return its id.

        A turn of the same words replaces its predecessor.
        """
        said, answered = _turn("inputs", inputs), _turn("outputs", outputs)
        turn = [*said.items(), *answered.items()]
        text = "\n".join(f"{who}: {what}" for who, what in turn)
        data = to_json("inputs or outputs", {"inputs": said, "outputs": answered})
        vectors = yield from self._embedder.documents([text])
        index = self._ensured(len(vectors[0]))
        if not self._ready:
            yield from ensure_index(index.name, (index.prefix,), index.schema)
            self._ready.append(True)
        identity = f"{self._scope}:{digest(data)}"
        fields = {"scope": self._scope, "text": text, "turn": data, "created": (yield from Now())}
        write = index.load([identity], vectors, [fields])
        yield from write_indexed(index.name, (index.prefix,), index.schema, write)
        return identity

    @operation
    def load(self, query: str) -> Op[list[Document]]:
        """Return the k turns nearest to a text, nearest first; [] if nothing was ever saved.

        A document's text is the turn's, its metadata `inputs`, `outputs` and `created`.
        """
        require_text("query", query)
        vectors = yield from self._embedder.queries([query])
        index = self._ensured(len(vectors[0]))
        try:
            result = yield from index.search(
                vectors[0],
                self._k,
                filter=Tag("scope") == self._scope,
                return_fields=["text", "turn", "created"],
            )
        except IndexNotFoundError:
            self._ready.clear()
            return []
        return [_document(row) for row in result.rows]

    @operation
    def clear(self) -> Op[int]:
        """Forget every turn of this scope, and nothing else; return how many."""
        prefix = f"{self._index[0].prefix if self._index else _PREFIX}{self._scope}:"
        return (yield from clear_entries(prefix))

    def _ensured(self, dim: int) -> VectorIndex[Plan]:
        if not self._index:
            fields = [Tag("scope", case_sensitive=True), Vector("vector", dim)]
            self._index.append(VectorIndex(Plan(), "memory", fields, prefix=_PREFIX))
        return self._index[0]


_PREFIX = "memory:v:"


def _turn(name: str, turn: Turn) -> dict[str, Any]:
    if isinstance(turn, str):
        require_text(name, turn)
        turn = {name.removesuffix("s"): turn}
    if not isinstance(turn, Mapping):
        raise TypeError(f"{name} must be a text or a dict, not {type(turn).__name__}")
    if not turn:
        raise ValueError(f"{name} must not be empty")
    return {require_text(name, key): value for key, value in turn.items()}


def _document(row: Row) -> Document:
    turn = from_json(row.fields.get("turn")) or {}
    created = float(row.fields.get("created", "nan"))
    return Document(row.id, row.fields.get("text", ""), {**turn, "created": created}, row.distance)
