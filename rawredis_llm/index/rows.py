"""Rows and results: what queries return, and how replies become it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from json import loads
from operator import le
from typing import Any

import numpy as np

from ..errors import UnexpectedReplyError
from ..search.fields import Field, Geo, Numeric, text_or_bytes
from ..search.query import DISTANCE, returning
from ..search.replies import SearchReply
from ..search.schema import Schema
from ..search.vectors import DTYPES, Array, from_blob, similarity

__all__ = ["Row", "SearchResult"]


@dataclass(slots=True)
class Row:
    """A document. `id` is without the prefix; `distance` is in the metric's own unit.

    `similarity` is the distance as 0 to 1. `score` is what a text or hybrid query ranks by:
    higher is better. `vector` is there where it was asked for: a read-only array of shape (dim,).
    Numeric fields are numbers, places (longitude, latitude), the others text (bytes where not
    UTF-8); in JSON documents, what JSON holds.
    """

    id: str
    fields: dict[str, Any]
    distance: float | None = None
    similarity: float | None = None
    score: float | None = None
    vector: Array | None = None


@dataclass(slots=True)
class SearchResult:
    """Rows, best first. `total` is how many were found.

    Of a vector's neighbours at most k + offset are (see `count()`); in a cluster the server's
    figure for other queries may be that of a part.

    `partial` is True if the server could not look at everything: its time was up, or the index was
    being built; why is in `warnings`. Over RESP2 a server does not tell that its time was up.
    """

    rows: list[Row]
    total: int
    partial: bool = False
    warnings: list[str] = field(default_factory=list)


class Decoder:
    """Makes rows of what an index's documents hold."""

    def __init__(self, schema: Schema, prefix: str) -> None:
        self.schema = schema
        self.vector = schema.vector
        self._key = schema.vector.name.encode()
        self._apart = (self._key, _DISTANCE)
        self._prefix = prefix.encode()
        self._json = schema.json
        self._l2 = schema.vector.metric == "l2"
        self.learn()

    def learn(self) -> None:
        """Prepare for the fields of the schema as it is now."""
        plain = [field for field in self.schema.fields.values() if field is not self.vector]
        self.plain = [field.name for field in plain]
        self.near = returning(self.plain, self.schema, DISTANCE)
        self._careful = {f.name.encode(): (f.name, _loader(f, json=self._json)) for f in plain}
        # Most documents have all the fields, and nearly all text is UTF-8: then a row is made in
        # half the time.
        self._quick = [
            (name, label, bytes.decode if load is text_or_bytes else load)
            for name, (label, load) in self._careful.items()
        ]

    def id(self, key: bytes) -> str:
        """Return a document's id."""
        # Without the prefix, unless an alias led to an index of another one.
        return key.removeprefix(self._prefix).decode(errors="replace")

    def row(
        self,
        key: bytes,
        found: dict[bytes, bytes],
        distance: float | None = None,
        score: float | None = None,
    ) -> Row:
        """Return a row of a hash's fields, or of a query's."""
        fields: dict[str, Any] = {}
        array = near = None
        try:
            if len(found) - (distance is not None) != len(self._quick):
                raise KeyError
            for name, label, load in self._quick:
                fields[label] = load(found[name])
        except (KeyError, UnicodeDecodeError):
            fields = self._fields(found)
            if self._key in found:
                array = self._array(found[self._key], key)
        if distance is not None:
            near = 1.0 - distance / 2.0
            if self._l2 or not 0.0 <= near <= 1.0:
                near = similarity(distance, self.vector.metric)
        return Row(self.id(key), fields, distance, near, score, array)

    def _fields(self, found: dict[bytes, bytes]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, value in found.items():
            known = self._careful.get(name)
            if known is not None:
                fields[known[0]] = known[1](value)
            elif name not in self._apart:
                other = _from_json if self._json else text_or_bytes
                fields[name.decode(errors="replace")] = other(value)
        return fields

    def document(self, key: bytes, fields: dict[str, Any], vector: Any) -> Row:
        """Return a row of a whole JSON document, from which the vector was taken."""
        array = None if vector is None else self._read_only(vector)
        return Row(self.id(key), fields, vector=array)

    def _read_only(self, numbers: Any) -> Array:
        array = np.array(numbers, plain_dtype(self.vector.dtype))
        array.flags.writeable = False
        return array

    def nearest(self, reply: SearchReply, start: int, end: int) -> SearchResult:
        """Return the rows of a KNN or range reply, nearest first, from `start` up to `end`."""
        try:
            found = [(float(fields[_DISTANCE]), k, fields) for k, fields, _ in reply.rows if fields]
        except (KeyError, ValueError):
            raise UnexpectedReplyError("FT.SEARCH: a row without a distance") from None
        # The server's order is not to be relied on everywhere; NaN, which is nobody's, goes last.
        distances = [row[0] for row in found]
        if not all(map(le, distances, distances[1:])):
            found.sort(key=_nearness)
        rows = [self.row(key, fields, distance) for distance, key, fields in found[start:end]]
        return SearchResult(rows, len(found), bool(reply.warnings), reply.warnings)

    def ranked(self, reply: SearchReply) -> SearchResult:
        """Return the rows of a reply in its own order, with the scores that it has."""
        rows = [
            self.row(key, fields, None, score)
            for key, fields, score in reply.rows
            if fields is not None
        ]
        return SearchResult(rows, reply.total, bool(reply.warnings), reply.warnings)

    def _array(self, value: bytes, key: bytes) -> Array:
        if self._json:
            array = self._read_only(_from_json(value))
        else:
            array = from_blob(value, self.vector.dtype)
        if array.shape != (self.vector.dim,):
            raise UnexpectedReplyError(f"{self.id(key)!r} holds a vector of {array.size} numbers")
        return array


_DISTANCE = DISTANCE.encode()


def _nearness(row: tuple[float, bytes, dict[bytes, bytes]]) -> float:
    return math.inf if math.isnan(row[0]) else row[0]


def plain_dtype(dtype: str) -> str:
    """Return the type of a vector's numbers in Python; of bfloat16 it is float32."""
    return "<f4" if dtype == "bfloat16" else DTYPES[dtype]


def _loader(field: Field, *, json: bool) -> Callable[[bytes], Any]:
    if not json:
        return field.loaded if isinstance(field, (Numeric, Geo)) else text_or_bytes
    # A path that may lead to several places (`$..x`, `$.x[*]`) gives them all.
    many = field.path is not None and any(sign in field.path for sign in ("*", "..", "?", ":", ","))
    return loads if many else partial(_from_json, raw=field.loaded)


def _from_json(value: bytes, raw: Callable[[bytes], Any] = text_or_bytes) -> Any:
    """Return the one value in the list that dialect 3 gives for a path.

    What documents are sorted by comes raw, as it was put aside for sorting.
    """
    try:
        found = loads(value)
    except ValueError:
        found = None
    return found[0] if isinstance(found, list) and found else raw(value)
