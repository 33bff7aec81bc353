"""Documents as commands: ids, vectors and fields checked, and brought to what HSET takes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..keys import indexed_key_part, require_text, to_json
from ..protocol.operation import Command, Ready
from ..protocol.resp import encode_many
from ..protocol.script import Script
from ..search.bulk import arguments, hset_portions, stored_column
from ..search.fields import Field, Geo, GeoShape
from ..search.query import UNLIMITED
from ..search.schema import Schema
from ..search.vectors import Array, as_matrix, from_blob

__all__ = ["Encoder", "Part", "made_ids"]

# A document that was deleted meanwhile must not come back as a stump.
_UPDATE = Script("""
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local last = tonumber(ARGV[1]) + 1
if last > 1 then redis.call('HSET', KEYS[1], unpack(ARGV, 2, last)) end
if #ARGV > last then redis.call('HDEL', KEYS[1], unpack(ARGV, last + 1)) end
return 1""")
# A merge would keep what an object holds beside the new.
_MERGE = Script("""
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
for i = 2, #ARGV do redis.call('JSON.DEL', KEYS[1], ARGV[i]) end
redis.call('JSON.MERGE', KEYS[1], '$', ARGV[1])
return 1""")

# How many of the keys are indexed: an index that drops a document does so without a word.
_COUNT = ("NOCONTENT", "LIMIT", 0, 0, *UNLIMITED)
_PATH = re.compile(r"\$((?:\.[A-Za-z_]\w*)+)(?:\[\*\])?", re.ASCII)


class Part(NamedTuple):
    """Checked documents: ids, vectors of shape (n, dim), columns by name, milliseconds to live."""

    ids: list[str]
    matrix: Array
    columns: dict[str, list[Any]]
    px: list[int | None] | None
    raw: bool

    def parts(self, size: int) -> Iterator[Part]:
        """Return the documents in parts of so many."""
        for start in range(0, len(self.ids), size):
            cut = slice(start, start + size)
            columns = {name: column[cut] for name, column in self.columns.items()}
            px = self.px and self.px[cut]
            yield Part(self.ids[cut], self.matrix[cut], columns, px, self.raw)


class Encoder:
    """Makes commands of documents. What is wrong raises ValueError or TypeError, by its name."""

    def __init__(self, schema: Schema, prefixes: Sequence[str], prefix: str) -> None:
        self.schema = schema
        self.vector = schema.vector
        self.prefix = prefix
        self._prefixes = tuple(prefixes)

    def ids(self, ids: Sequence[str | int], *, repeated: bool = False) -> list[str]:
        """Return ids as text; each but once, unless `repeated`."""
        if isinstance(ids, (str, bytes, set, frozenset, Mapping)):
            raise TypeError(f"ids must be a list of ids, not {type(ids).__name__}")
        names: list[Any] = list(ids)
        plain = set(map(type, names)) == {str} and all(map(str.strip, names))
        if not plain or "\0" in "".join(names) or not _is_unicode("".join(names)):
            names = [_id(one) for one in names]  # which says what is wrong
        if not repeated and len(set(names)) != len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise ValueError(f"ids: {twice!r} is given twice, one document would be lost")
        if not self.prefix:
            for name in names:
                if not name.startswith(self._prefixes):
                    raise ValueError(f"ids: {name!r} begins with none of {list(self._prefixes)}")
        return names

    def checked(
        self,
        ids: Sequence[str | int] | None,
        vectors: Any,
        fields: Any,
        px: int | Sequence[int | None] | None,
        *,
        raw: bool = False,
    ) -> Part:
        """Return documents checked; ids are made if they are None.

        `raw`: the fields are what was read from documents, so that they are right as they are.
        """
        matrix = as_matrix(
            vectors, self.vector.dim, dtype=self.vector.dtype, metric=self.vector.metric
        )
        names = made_ids(len(matrix)) if ids is None else self.ids(ids)
        if len(matrix) != len(names):
            raise ValueError(f"{len(names)} ids, but {len(matrix)} vectors")
        columns = self._columns(fields, len(names), raw=raw)
        each = [px] * len(names) if isinstance(px, int) else px
        return Part(names, matrix, columns, None if each is None else list(each), raw)

    def request(self, part: Part, index: str) -> Ready:
        """Return one write: DEL of all, a write of each, how many are indexed, times to live."""
        keys = [(self.prefix + name).encode() for name in part.ids]
        times = zip(keys, part.px or (), strict=part.px is not None)
        lives = [("PEXPIRE", key, px) for key, px in times if px is not None]
        asked: list[Any] = ["FT.SEARCH", index, "*", "INKEYS", len(keys)]
        if self.schema.json:
            texts = zip(keys, self._texts(part), strict=True)
            sets = [("JSON.SET", key, "$", text) for key, text in texts]
            everything = [("DEL", *keys), *sets, (*asked, *keys, *_COUNT), *lives]
            wire, names = encode_many(everything), [one[0] for one in everything]
            return Ready(wire, names, lambda: everything, raise_errors=False)
        columns = [(name.encode(), column) for name, column in part.columns.items()]
        blobs = part.matrix.view(np.uint8).reshape(len(keys), -1)
        name = self.vector.name.encode()

        def again() -> Iterator[tuple[Any, ...]]:
            yield ("DEL", *keys)
            for i, key in enumerate(keys):
                row = [(n, column[i]) for n, column in columns if column[i] is not None]
                yield ("HSET", key, *(part for pair in row for part in pair), name, blobs[i])
            yield (*asked, *keys, *_COUNT)
            yield from lives

        targets = arguments(keys)
        before = b"*%d\r\n$3\r\nDEL\r\n%b" % (1 + len(keys), targets)
        # The same, encoded: its keys are the largest part of it, and are written already.
        first, last = (arguments([str(arg).encode() for arg in args]) for args in (asked, _COUNT))
        after = b"*%d\r\n%b%b%b" % (len(asked) + len(keys) + len(_COUNT), first, targets, last)
        after += b"".join(data for data, _ in encode_many(lives))
        portions = hset_portions(keys, name, blobs, columns, before, after)
        portions[0] = (portions[0][0], portions[0][1] + 1)
        portions[-1] = (portions[-1][0], portions[-1][1] + 1 + len(lives))
        names = ["DEL", *["HSET"] * len(keys), "FT.SEARCH", *["PEXPIRE"] * len(lives)]
        return Ready(portions, names, again, raise_errors=False)

    def change(self, key: str, fields: Mapping[str, Any], vector: Any = None) -> Command[int]:
        """Return the command that changes fields of a document, if it is there; None: away."""
        if self.schema.json:
            document: dict[str, Any] = {}
            for name, value in fields.items():
                self._place(document, name, self._stored(name, [value])[0])
            if vector is not None:
                self.put_vector(document, vector)
            paths = [self._path(name) for name, value in fields.items() if value is not None]
            inner = ["$" + "".join(f"[{to_json('fields', step)}]" for step in p) for p in paths]
            return _MERGE([key], [to_json("fields", document), *inner])
        pairs: list[Any] = []
        gone: list[str] = []
        for name, value in fields.items():
            if value is None:
                gone.append(require_text("fields", name))
            else:
                pairs += (name, self._stored(name, [value])[0])
        if self.vector.name in gone:
            raise ValueError(f"field {self.vector.name!r}: a document needs its vector; delete it")
        if vector is not None:
            pairs += (self.vector.name, vector)
        return _UPDATE([key], [len(pairs), *pairs, *gone])

    def rows(self, fields: Any, total: int) -> list[dict[str, Any]]:
        """Return each document's fields, of columns or of dicts."""
        if isinstance(fields, Mapping):
            columns = {name: _column(name, column, total) for name, column in fields.items()}
            return [{name: column[i] for name, column in columns.items()} for i in range(total)]
        if fields is None:
            return [{} for _ in range(total)]
        if not isinstance(fields, Sequence) or isinstance(fields, (str, bytes)):
            raise TypeError("fields must be a dict of columns or a list of dicts")
        if len(fields) != total:
            raise ValueError(f"fields: {len(fields)} documents, but {total} ids")
        for document in fields:
            if not isinstance(document, Mapping):
                raise TypeError(f"fields: a document is a dict, not {type(document).__name__}")
        return [dict(document) for document in fields]

    def _columns(self, fields: Any, total: int, *, raw: bool) -> dict[str, list[Any]]:
        if not isinstance(fields, Mapping):
            rows = self.rows(fields, total)
            names = dict.fromkeys(name for row in rows for name in row)
            fields = {name: [row.get(name) for row in rows] for name in names}
        return {
            name: self._stored(name, _column(name, column, total), raw=raw)
            for name, column in fields.items()
        }

    def _stored(self, name: str, values: Any, *, raw: bool = False) -> list[Any]:
        """Return a column's values as HSET takes them, or, in JSON documents, as JSON has them."""
        if require_text("fields", name) == self.vector.name:
            raise ValueError(f"field {name!r} is the vector; it is the argument `vectors`")
        known = self.schema.fields.get(name)
        if raw:
            if isinstance(known, Geo) and not self.schema.json:
                values = [known.stored(v) if isinstance(v, (tuple, list)) else v for v in values]
            known = None
        if not self.schema.json:
            return stored_column(name, known, values)
        return [None if value is None else _json_value(known, value) for value in values]

    def _texts(self, part: Part) -> Iterator[str]:
        """Return JSON documents as text."""
        for i in range(len(part.ids)):
            document: dict[str, Any] = {}
            for name, column in part.columns.items():
                if column[i] is not None and part.raw:
                    document[name] = column[i]
                elif column[i] is not None:
                    self._place(document, name, column[i])
            self.put_vector(document, part.matrix[i])
            yield to_json("fields", document)

    def put_vector(self, document: dict[str, Any], row: Array) -> None:
        """Put a checked vector into a JSON document."""
        vector = from_blob(row.tobytes(), self.vector.dtype)
        self._place(document, self.vector.name, vector.tolist())

    def take(self, document: dict[str, Any], name: str, *, away: bool = False) -> Any:
        """Return a field of a JSON document, taken `away` from it or not; None if it has none."""
        *inner, last = self._path(name)
        for step in inner:
            document = document.get(step, {})
        return document.pop(last, None) if away else document.get(last)

    def _place(self, document: dict[str, Any], name: str, value: Any) -> None:
        """Put a field's value into a JSON document, where its path leads."""
        *inner, last = self._path(name)
        for step in inner:
            document = document.setdefault(step, {})
        document[last] = value

    def _path(self, name: str) -> list[str]:
        """Return the steps to a field's place in a JSON document."""
        field = self.schema.fields.get(name)
        if field is None or field.path is None:
            return [name]
        found = _PATH.fullmatch(field.path)
        if found is None:
            raise ValueError(f"field {name!r}: nothing can be written to {field.path}")
        return found[1].split(".")[1:]


def made_ids(count: int) -> list[str]:
    """Return so many new ids: 32 hex digits, 128 random bits each."""
    digits = os.urandom(16 * count).hex()
    return [digits[i : i + 32] for i in range(0, len(digits), 32)]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _id(one: Any) -> str:
    """Return an id as text; whole numbers are."""
    if isinstance(one, (int, np.integer)) and not isinstance(one, bool):
        one = str(int(one))
    return indexed_key_part("ids", one)


def _column(name: str, column: Any, total: int) -> Any:
    unordered = (str, bytes, set, frozenset, Mapping)
    if isinstance(column, unordered) or not hasattr(column, "__len__"):
        raise TypeError(f"field {name!r}: a column is a list or an array")
    if len(column) != total:
        raise ValueError(f"field {name!r}: {len(column)} values, but {total} ids")
    return column


def _json_value(field: Field | None, value: Any) -> Any:
    """Return a value as JSON has it, checked by its field if it has one."""
    if isinstance(value, np.generic):
        value = value.item()
    if field is None:
        return value
    stored = field.stored(value)
    if isinstance(field, (Geo, GeoShape)):
        return stored
    return sorted(value) if isinstance(value, (set, frozenset)) else value
