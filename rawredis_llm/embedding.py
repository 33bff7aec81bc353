"""Embedders: whatever turns texts into vectors, brought to one form.

Ops ask for vectors by yielding `Embed`; the client calls the user's code. Must not import a client.
"""

from __future__ import annotations

import inspect
import re
import weakref
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .protocol.operation import Embed, Op, one_each

__all__ = ["Embedder", "HashingEmbedder", "as_embedder"]

Call = Callable[[list[str]], Any]
AsyncCall = Callable[[list[str]], Awaitable[Any]]


class Embedder:
    """The one form: ops that embed, and the fingerprint that tells this embedder from others.

    The fingerprint is the object's `fingerprint`, `name` or `model` attribute, the first that is
    text, or '' where it has none: then vectors of another model cannot be told apart by it.
    """

    def __init__(
        self,
        fingerprint: str,
        documents: tuple[Call | None, AsyncCall | None],
        queries: tuple[Call | None, AsyncCall | None],
    ) -> None:
        self.fingerprint = fingerprint
        self._documents = documents
        self._queries = queries

    def documents(self, texts: list[str]) -> Op[Any]:
        """Embed texts that will be stored; an array-like of shape (n, dim)."""
        vectors = yield from Embed(texts, *self._documents)
        return one_each(vectors, texts)

    def queries(self, texts: list[str]) -> Op[Any]:
        """Embed texts that search for stored ones; an array-like of shape (n, dim)."""
        vectors = yield from Embed(texts, *self._queries)
        return one_each(vectors, texts)


# The one form of each embedder in use, by its id: it holds the embedder, so ids stay unique; and
# what one embedder is asked for in one `gather` is one call, whoever asks.
_made: weakref.WeakValueDictionary[int, Embedder] = weakref.WeakValueDictionary()


def as_embedder(embedder: Any) -> Embedder:
    """Return any embedder in the one form, the same one each time.

    Takes a callable `list[str] -> (n, dim) array-like`, plain or async, and objects with
    `embed_documents(list)` and `embed_query(text)` (and `aembed_...`, if they have them). Raises
    TypeError for anything else.
    """
    if isinstance(embedder, Embedder):
        return embedder
    made = _made.get(id(embedder))
    if made is None:
        made = _made[id(embedder)] = _make(embedder)
    return made


def _make(embedder: Any) -> Embedder:
    if hasattr(embedder, "embed_documents") and hasattr(embedder, "embed_query"):
        return _from_object(embedder)
    if not callable(embedder):
        raise TypeError(
            "embedder must be a callable list[str] -> vectors, or have embed_documents and"
            f" embed_query; {type(embedder).__name__} is neither"
        )
    function: Any = embedder

    # A function of our own around theirs, because that one may not be hashable.
    def wrapped(texts: list[str]) -> Any:
        return function(texts)

    is_async = _is_async(embedder) or _is_async(type(embedder).__call__)
    call = (None, wrapped) if is_async else (wrapped, None)
    return Embedder(_fingerprint(embedder), call, call)


def _from_object(embedder: Any) -> Embedder:
    documents: tuple[Call | None, AsyncCall | None]
    queries: tuple[Call | None, AsyncCall | None]
    documents = (embedder.embed_documents, getattr(embedder, "aembed_documents", None))
    if _is_async(embedder.embed_documents):
        documents = (None, embedder.embed_documents)
    afterwards = getattr(embedder, "aembed_query", None)
    queries = (
        lambda texts: [embedder.embed_query(text) for text in texts],
        _each_async(afterwards) if afterwards is not None else None,
    )
    if _is_async(embedder.embed_query):
        queries = (None, _each_async(embedder.embed_query))
    return Embedder(_fingerprint(embedder), documents, queries)


def _each_async(embed_query: Callable[[str], Awaitable[Any]]) -> AsyncCall:
    async def queries(texts: list[str]) -> list[Any]:
        return [await embed_query(text) for text in texts]

    return queries


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function)


def _fingerprint(embedder: Any) -> str:
    for name in ("fingerprint", "name", "model"):
        value = getattr(embedder, name, None)
        if isinstance(value, str) and value:
            return value
    return ""


class HashingEmbedder:
    """An embedder of numpy alone: *lexical*, so it knows spelling and no meaning.

    Words and their three-letter pieces are hashed into `dim` signed buckets (feature hashing,
    Weinberger et al. 2009), and the vector is normalised to length 1. "car" and "automobile" are
    strangers to it; good for tests, demos, and near-identical wording. Returns float32 (n, dim).
    """

    def __init__(self, dim: int = 512) -> None:
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 8:
            raise ValueError(f"dim must be a whole number from 8, not {dim!r}")
        self.dim = dim
        self.fingerprint = f"rawredis-hashing-1-{dim}"

    def __call__(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """Return one vector per text. Raises ValueError for a text without a letter or digit."""
        given: Any = texts
        if isinstance(given, str):
            raise TypeError("texts must be a list of texts, not one text")
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):
            for feature, weight in _features(text):
                code = zlib.crc32(feature.encode("utf-8", "replace"))
                vectors[row, (code >> 1) % self.dim] += weight if code & 1 else -weight
            if not vectors[row].any():
                raise ValueError("a text without letters or digits has no vector")
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def _features(text: str) -> list[tuple[str, float]]:
    """Return words (longer ones, which carry more, count more) and their three-letter pieces."""
    features: list[tuple[str, float]] = []
    for word in re.findall(r"\w+", text.lower()):
        weight = min(len(word), 8) / 8
        features.append((word, weight))
        padded = f"^{word}$"
        pieces = [padded[i : i + 3] for i in range(len(padded) - 2)]
        features += [(piece, weight / len(pieces)) for piece in pieces]
    return features
