"""Vectors of texts that were embedded before: one string key per (embedder, text).

Must not import a client.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .caching.upkeep import OUT_OF_REACH, Tally, Upkeep
from .embedding import Embedder, as_embedder
from .errors import IndexMismatchError
from .keys import clear_entries, digest, milliseconds, require_text
from .protocol import commands
from .protocol.operation import Batch, Bound, C_co, Op, Plan, operation
from .search.vectors import as_matrix, from_blob

__all__ = ["EmbeddingCache"]


class EmbeddingCache(Embedder, Bound[C_co]):
    """An embedder that keeps what another one gave, for any place that takes an embedder.

    `embedder` must have a fingerprint, name or model, by which its vectors are told from those of
    others. They are kept as `dtype` (float32, or another one of `Vector`), for `ttl` seconds (None:
    for ever). `on_error` as in `LLMCache`. The commands are sent by the client of whoever embeds.
    """

    def __init__(
        self,
        client: C_co,
        embedder: Any,
        *,
        namespace: str = "embedding",
        ttl: float | None = None,
        dtype: str = "float32",
        on_error: str = "miss",
    ) -> None:
        self._bind(client)
        self._embedder = as_embedder(embedder)
        self.fingerprint = self._embedder.fingerprint
        if not self.fingerprint:
            raise ValueError("embedder: it has no fingerprint, name or model to know it by")
        self._dtype = dtype
        self._ttl = milliseconds("ttl", ttl)
        self._owner = digest("embedding", require_text("namespace", namespace), self.fingerprint)
        self._prefix = f"{namespace}:e:{self._owner}:"
        # It counts nothing, and another client than this one may send its commands: none of
        # what was counted here is to go there.
        self._upkeep = Upkeep(client, "", on_error, Tally())
        as_matrix([[1]], dtype=dtype)  # which names a dtype that there is not

    @property
    def plan(self) -> EmbeddingCache[Plan]:
        """This cache with methods that return ops, for `client.gather`."""
        planned: EmbeddingCache[Plan] = self._planned()
        return planned

    @operation
    def embed(self, texts: list[str]) -> Op[Any]:
        """Return the vectors of texts, shape (n, dim), those that are not there by the embedder."""
        return (yield from self.documents(texts))

    @operation
    def clear(self) -> Op[int]:
        """Delete every vector of this namespace and embedder; return how many."""
        return (yield from clear_entries(self._prefix))

    def documents(self, texts: list[str]) -> Op[Any]:
        """Embed texts that will be stored; an array of shape (n, dim)."""
        return (yield from self._kept("documents", texts, self._embedder.documents))

    def queries(self, texts: list[str]) -> Op[Any]:
        """Embed texts that search for stored ones; an array of shape (n, dim)."""
        return (yield from self._kept("queries", texts, self._embedder.queries))

    def _kept(self, kind: str, texts: list[str], embed: Any) -> Op[Any]:
        given: Any = texts
        if isinstance(given, str):
            raise TypeError("texts must be a list of texts, not one text")
        names = {
            require_text("texts", text, empty=True): digest(kind, self._dtype, text)
            for text in texts
        }
        if not names:
            return []
        asked = commands.mget([self._prefix + name for name in names.values()])
        found = yield from self._upkeep.ask(asked)
        if found is OUT_OF_REACH:
            found = [None] * len(names)
        known: dict[str, Any] = {}
        for (text, name), value in zip(names.items(), found, strict=True):
            # The value repeats its name, and tells its size, so that a foreign or cut one is none.
            if value is not None and value[:40] == _head(name, len(value) - 40):
                known[text] = from_blob(value[40:], self._dtype)
        missing = [text for text in names if text not in known]
        if missing:
            matrix = as_matrix((yield from embed(missing)), dtype=self._dtype)
            writes = []
            for text, row in zip(missing, matrix, strict=True):
                blob = row.tobytes()
                known[text] = from_blob(blob, self._dtype)
                value = _head(names[text], len(blob)) + blob
                writes.append(commands.set_value(self._prefix + names[text], value, self._ttl))
            yield from self._upkeep.ask(Batch(writes))
        rows = [known[text] for text in texts]
        if len({len(row) for row in rows}) > 1:
            raise IndexMismatchError(
                f"vectors by {self.fingerprint!r} are of several sizes: is it two embedders?"
            )
        return np.stack(rows)


def _head(name: str, size: int) -> bytes:
    """Return what stands before a vector of so many bytes."""
    return f"{name}{size:08x}".encode()
