"""Vector memory: what was said before, found again by nearness. Many memories share one index.

A memory's `scope` is digested into each key and into a tag of the pre-filter, so a memory can
neither see nor delete what is another's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from .embedding import as_embedder
from .index.lazy import LazyIndex, owned_by
from .keys import (
    clear_entries,
    digest,
    distance_limit,
    from_json,
    milliseconds,
    require_text,
    to_json,
)
from .protocol.operation import Bound, C_co, Now, Op, Plan, operation
from .retriever import Document
from .search.fields import Numeric
from .search.filters import Filter, number, whole_number
from .search.query import MAX_RESULTS
from .vector_index import Row, VectorIndex

__all__ = ["VectorMemory"]

Turn = str | Mapping[str, Any]

_OWN: Final = ("scope", "text", "turn", "created", "importance")
_WEIGHTS: Final = ("nearness", "recency", "importance")


class VectorMemory(Bound[C_co]):
    """Remembers turns of conversations, and recalls those that matter most for a text.

    A turn's score is nearness x recency x importance, each to the power of its weight in `weights`
    (default 1; 0: it does not count): nearness is the similarity, 0 to 1; recency halves with every
    `half_life` seconds (None: it is 1); importance is given at `save`. Of a scope's turns the
    oldest go beyond `capacity`, and each after `ttl` seconds (None: never).

    Given a client, it keeps an index named `memory`, created when first needed, of the size of the
    embedder's first vector; an embedder of another size needs an index of its own. Given a
    `VectorIndex`, it uses that one, which must have the field `Tag("scope", case_sensitive=True)`,
    with a `capacity` also `Numeric("created")`.
    """

    def __init__(
        self,
        index_or_client: VectorIndex[C_co] | C_co,
        embedder: Any,
        *,
        scope: str,
        k: int = 4,
        half_life: float | None = None,
        weights: Mapping[str, float] | None = None,
        capacity: int | None = None,
        ttl: float | None = None,
    ) -> None:
        self._embedder = as_embedder(embedder)
        self._scope = self._digest(scope)
        self._k = whole_number("k", k)
        milliseconds("half_life", half_life)
        self._half_life = half_life
        self._weights = _weights(weights)
        self._capacity = None if capacity is None else whole_number("capacity", capacity)
        milliseconds("ttl", ttl)
        self._ttl = ttl
        if isinstance(index_or_client, VectorIndex):
            self._bind(index_or_client.client)
            self._index = LazyIndex.over(index_or_client)
        else:
            self._bind(index_or_client)
            self._index = LazyIndex("memory", [Numeric("created"), Numeric("importance")])
        if capacity is not None and not isinstance(self._index.fields.get("created"), Numeric):
            raise ValueError('capacity: the index needs the field Numeric("created")')

    @property
    def plan(self) -> VectorMemory[Plan]:
        """This memory with methods that return ops, for `client.gather`."""
        planned: VectorMemory[Plan] = self._planned()
        return planned

    @operation
    def save(
        self,
        inputs: Turn,
        outputs: Turn,
        *,
        importance: float = 1.0,
        metadata: Mapping[str, Any] | None = None,
    ) -> Op[str]:
        """Remember a turn: what was put in and what came out, texts or dicts; return its id.

        A turn of the same words replaces its predecessor. `importance` is above 0, to 1. Of
        `metadata`, which is found again with the turn, the index has what it has fields for.
        """
        said, answered = _turn("inputs", inputs), _turn("outputs", outputs)
        text = "\n".join(f"{who}: {what}" for who, what in [*said.items(), *answered.items()])
        data = to_json("inputs or outputs", {"inputs": said, "outputs": answered})
        if not 0 < float(number(importance, "importance")) <= 1:
            raise ValueError(f"importance must be above 0, to 1, not {importance!r}")
        if not isinstance(metadata, (Mapping, type(None))):
            raise TypeError(f"metadata must be a dict or None, not {type(metadata).__name__}")
        own = dict(metadata or {})
        if taken := [name for name in own if name in (*_OWN, "inputs", "outputs", "metadata")]:
            raise ValueError(f"metadata: {taken[0]!r} is a turn's own")
        fields = {name: own[name] for name in own if name in self._index.fields}
        fields |= {"scope": self._scope, "text": text, "turn": data, "importance": importance}
        if own:
            fields["metadata"] = to_json("metadata", own)
        vectors = yield from self._embedder.documents([text])
        identity = f"{self._scope}:{digest(data)}"
        fields["created"] = yield from Now()
        yield from self._index.write([identity], vectors, [fields], ttl=self._ttl)
        if self._capacity is not None:
            yield from self._trim(self._capacity)
        return identity

    def _trim(self, capacity: int) -> Op[None]:
        surplus = yield from self._index.matching(
            owned_by(self._scope), [], sort_by="-created", offset=capacity, limit=1000
        )
        yield from self._index.any.delete([row.id for row in surplus])

    @operation
    def load(
        self,
        query: str,
        k: int | None = None,
        *,
        filter: Filter | None = None,  # noqa: A002 - the API's own name
        max_distance: float | None = None,
    ) -> Op[list[Document]]:
        """Return the k turns that score highest for a text, best first; [] if none was ever saved.

        Only turns that match `filter`, and up to `max_distance`, count. A document's text is the
        turn's, its metadata `inputs`, `outputs`, `created`, `importance` and what was saved with
        it; `score` is 0 to 1. Scored are the nearest 4 k turns, 20 at least.
        """
        require_text("query", query)
        most = self._k if k is None else whole_number("k", k)
        limit = None if max_distance is None else distance_limit("max_distance", max_distance)
        condition = self._mine(filter)
        vectors = yield from self._embedder.queries([query])
        wanted = ["text", "turn", "created", "importance", "metadata"]
        wide = min(max(4 * most, 20), MAX_RESULTS)
        [rows] = yield from self._index.nearest(vectors[0], wide, condition, wanted)
        now = yield from Now()
        found = [self._document(row, now) for row in rows if limit is None or row.distance <= limit]
        return sorted(found, key=lambda one: one.score or 0.0, reverse=True)[:most]

    @operation
    def forget(self, filter: Filter) -> Op[int]:  # noqa: A002 - the API's own name
        """Forget this scope's turns that match a filter; return how many."""
        if not isinstance(filter, Filter):
            raise TypeError("filter must be a Filter; all turns go by clear()")
        return (yield from self._index.forget(self._mine(filter)))

    @operation
    def clear(self, scope: str | None = None) -> Op[int]:
        """Forget every turn of this scope, or of another, and nothing else; return how many."""
        owner = self._scope if scope is None else self._digest(scope)
        return (yield from clear_entries(f"{self._index.prefix}{owner}:"))

    def _digest(self, scope: str) -> str:
        return digest("memory", require_text("scope", scope), self._embedder.fingerprint)

    def _mine(self, condition: Filter | None) -> Filter:
        mine = owned_by(self._scope)
        return mine if condition is None else mine & condition

    def _document(self, row: Row, now: float) -> Document:
        created, importance = (_number(row.fields.get(name)) for name in ("created", "importance"))
        recency = 1.0
        if self._half_life is not None and created is not None:
            recency = 0.5 ** (max(now - created, 0.0) / self._half_life)
        important = 1.0 if importance is None else importance
        metadata = {**(from_json(row.fields.get("metadata")) or {}), "created": created}
        metadata |= from_json(row.fields.get("turn")) or {}
        metadata["importance"] = important
        factors = zip((row.similarity or 0.0, recency, important), self._weights, strict=True)
        score = 1.0
        for factor, weight in factors:
            score *= factor**weight
        return Document(row.id, row.fields.get("text", ""), metadata, row.distance, score)


def _weights(weights: Mapping[str, float] | None) -> list[float]:
    given = dict(weights or {})
    if unknown := given.keys() - set(_WEIGHTS):
        raise ValueError(f"weights are of {', '.join(_WEIGHTS)}, not of {min(unknown)!r}")
    found = [float(number(given.get(name, 1.0), f"weights: {name}")) for name in _WEIGHTS]
    if not all(0 <= weight < math.inf for weight in found):
        raise ValueError("weights must be 0 or above, and finite")
    return found


def _number(value: Any) -> float | None:
    """Return a stored number, which comes as text where the index has no such field."""
    try:
        return None if value is None else float(value)
    except ValueError:
        return None


def _turn(name: str, turn: Turn) -> dict[str, Any]:
    if isinstance(turn, str):
        require_text(name, turn)
        turn = {name.removesuffix("s"): turn}
    if not isinstance(turn, Mapping):
        raise TypeError(f"{name} must be a text or a dict, not {type(turn).__name__}")
    if not turn:
        raise ValueError(f"{name} must not be empty")
    return {require_text(name, key): value for key, value in turn.items()}
