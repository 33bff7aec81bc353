"""The semantic answer cache: one hash per entry, found by nearness within its scope and model.

Scope, model and embedder are digested into the key *and* into tags of the KNN pre-filter, so a
nearer entry of another tenant can neither be returned nor hide one's own. The threshold is applied
here, on the one nearest entry, because VECTOR_RANGE on HNSW misses near-duplicates.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from .cache import TROUBLE, CacheHit, check_policy, forgiven, hit_of, require_metadata
from .embedding import as_embedder
from .errors import IndexNotFoundError, UnexpectedReplyError
from .keys import (
    clear_entries,
    digest,
    distance_limit,
    from_json,
    indexed_key_part,
    milliseconds,
    require_text,
    to_json,
)
from .protocol import commands
from .protocol.operation import Batch, Bound, C_co, Command, Now, Op, Plan, operation
from .search.fields import Tag
from .search.query import DISTANCE, drop_index, ensure_index, knn, write_indexed
from .search.replies import SearchReply
from .search.schema import Schema, Vector
from .search.vectors import as_vector, similarity

__all__ = ["SemanticCache"]

_RETURNED = ("RETURN", 4, DISTANCE, "scope", "model", "entry")


class _Known:
    """What was learnt of the index; one object for a cache and its copies bound to a plan."""

    __slots__ = ("created", "dim")

    def __init__(self, dim: int | None) -> None:
        self.dim = dim
        self.created = False


class SemanticCache(Bound[C_co]):
    """Answers by a question that means the same, kept apart by `scope` and model.

    A stored question counts as the same up to `max_distance` (cosine distance, 0 to 2). `embedder`
    is any that `as_embedder` takes; `dim` is learnt from its first vector unless given.
    `algorithm` is flat or hnsw. `ttl` and `on_error` as in `LLMCache`. Needs the search module.
    """

    def __init__(
        self,
        client: C_co,
        embedder: Any,
        *,
        namespace: str = "semantic",
        scope: str = "",
        max_distance: float = 0.1,
        ttl: float | None = None,
        dim: int | None = None,
        algorithm: str = "flat",
        dtype: str = "float32",
        on_error: str = "miss",
    ) -> None:
        self._bind(client)
        self._embedder = as_embedder(embedder)
        indexed_key_part("namespace", namespace)
        self._scope = require_text("scope", scope, empty=True)
        self._max_distance = distance_limit("max_distance", max_distance)
        self._ttl = milliseconds("ttl", ttl)
        self._on_error = check_policy(on_error)
        self._field = Vector("vector", 1 if dim is None else dim, algorithm=algorithm, dtype=dtype)
        self._index = f"{namespace}:semantic"
        self._owner = digest("semantic", namespace, scope)
        self._all = f"{namespace}:s:"
        self._prefix = f"{self._all}{self._owner}:"
        self._known = _Known(None if dim is None else self._field.dim)

    @property
    def plan(self) -> SemanticCache[Plan]:
        """This cache with methods that return ops, for `client.gather`."""
        planned: SemanticCache[Plan] = self._planned()
        return planned

    @operation
    def lookup(
        self,
        prompt: str,
        model: str = "",
        *,
        vector: Any = None,
        max_distance: float | None = None,
    ) -> Op[CacheHit | None]:
        """Return the answer to the nearest stored question of this scope and model, or None.

        `vector` is the prompt's, shape (dim,), if it is known; `max_distance` replaces the cache's.
        """
        require_text("prompt", prompt)
        limit = (
            self._max_distance
            if max_distance is None
            else distance_limit("max_distance", max_distance)
        )
        tag = self._model_tag(model)
        query = yield from self._vector(prompt, vector)
        try:
            nearest = yield from knn(
                self._index,
                self._filter(tag),
                "vector",
                query.tobytes(),
                1,
                _RETURNED,
                decode=_nearest,
            )
        except IndexNotFoundError:
            self._known.created = False  # nothing was ever stored, or somebody flushed
            return None
        except TROUBLE as error:
            forgiven(error, self._on_error)
            return None
        now = yield from Now()
        # Not `distance > limit`: NaN must be a miss.
        if nearest is None or not nearest[1] <= limit:
            return None
        return self._hit(*nearest, model, now)

    @operation
    def store(
        self,
        prompt: str,
        response: str,
        model: str = "",
        *,
        vector: Any = None,
        ttl: float | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Op[str]:
        """Store an answer, replacing that of the same prompt whole; return the entry's id.

        `vector` is the prompt's, shape (dim,), if it is known. `ttl` in seconds (default: the
        cache's). `metadata` is anything JSON can hold. The index is created when first needed.
        """
        require_text("prompt", prompt)
        require_text("response", response, empty=True)
        px = self._ttl if ttl is None else milliseconds("ttl", ttl)
        require_metadata(metadata)
        to_json("metadata", metadata)
        tag = self._model_tag(model)
        identity = digest(self._owner, tag, prompt)
        key = self._prefix + identity
        blob = yield from self._vector(prompt, vector)
        entry: dict[str, Any] = {"model": model, "prompt": prompt, "response": response, "px": px}
        entry |= {"created": (yield from Now()), "metadata": metadata or {}}
        fields = {"scope": self._owner, "model": tag, "vector": blob}
        fields["entry"] = to_json("metadata", entry)
        write = [commands.delete(key), commands.hset(key, fields)]
        if px is not None:
            write.append(commands.pexpire(key, px))
        try:
            yield from self._write(write, self._schema(len(blob)))
        except TROUBLE as error:
            forgiven(error, self._on_error)
        return identity

    def _write(self, write: list[Command[int]], schema: Schema) -> Op[None]:
        """Write an entry, and see to it that there is an index to find it by."""
        if not self._known.created:
            yield from ensure_index(self._index, (self._all,), schema)
            self._known.created, self._known.dim = True, schema.vector.dim
        transaction = Batch(write, atomic=True)
        yield from write_indexed(self._index, (self._all,), schema, transaction)

    @operation
    def delete(self, id: str) -> Op[bool]:  # noqa: A002 - the API's own name
        """Delete an entry of this scope by its id; return whether there was one."""
        if not re.fullmatch("[0-9a-f]{32}", require_text("id", id)):
            raise ValueError("id must be one that store() returned")
        return (yield from commands.delete(self._prefix + id)) > 0

    @operation
    def clear(self) -> Op[int]:
        """Delete every entry of this namespace and scope, and nothing else; return how many."""
        return (yield from clear_entries(self._prefix))

    @operation
    def drop(self) -> Op[int]:
        """Drop the index and the entries of *all* scopes of this namespace; return how many."""
        self._known.created = False
        with suppress(IndexNotFoundError):
            yield from drop_index(self._index)
        return (yield from clear_entries(self._all, digests=2))

    def _vector(self, prompt: str, vector: Any) -> Op[Any]:
        """Return the prompt's vector, checked, as an array of the index's type."""
        if vector is None:
            vector = (yield from self._embedder.documents([prompt]))[0]
        return as_vector(vector, self._known.dim, dtype=self._field.dtype)

    def _model_tag(self, model: str) -> str:
        return digest(require_text("model", model, empty=True), self._embedder.fingerprint)

    def _filter(self, model_tag: str) -> str:
        return f'@scope:{{"{self._owner}"}} @model:{{"{model_tag}"}}'

    def _schema(self, dim: int) -> Schema:
        vector = Vector("vector", dim, algorithm=self._field.algorithm, dtype=self._field.dtype)
        tags = [Tag(name, case_sensitive=True) for name in ("scope", "model")]
        return Schema([*tags, vector])

    def _hit(
        self, key: bytes, distance: float, fields: dict[bytes, bytes], model: str, now: float
    ) -> CacheHit | None:
        identity = key[-32:].decode(errors="replace")
        entry = from_json(fields.get(b"entry"))
        if not isinstance(entry, dict) or key != (self._prefix + identity).encode():
            return None
        tags = (fields.get(b"scope"), fields.get(b"model"))
        if tags != (self._owner.encode(), self._model_tag(model).encode()):
            return None
        if entry.get("model") != model:
            return None
        return hit_of(entry, identity, now, distance, similarity(distance, "cosine"))


def _nearest(reply: SearchReply) -> tuple[bytes, float, dict[bytes, bytes]] | None:
    """Return key, distance and fields of the one row; None where it expired meanwhile."""
    if not reply.rows or not reply.rows[0][1]:
        return None
    key, fields, _ = reply.rows[0]
    assert fields is not None
    try:
        return key, float(fields[DISTANCE.encode()]), fields
    except (KeyError, ValueError):
        raise UnexpectedReplyError("FT.SEARCH: a row without a distance") from None
