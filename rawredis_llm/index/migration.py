"""From one index to another without downtime: both written, the old one copied, the alias moved.

The new index has a prefix of its own, so old and new vectors are never in one index. While
`reindex` copies, writers write to both, through `both`. A copy is a script: it copies what the old
document is *then*, if its vector still fits it, and neither replaces what was written to the new
index meanwhile nor brings back what was deleted.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..embedding import as_embedder
from ..keys import escape_glob, require_text, to_json
from ..protocol import commands
from ..protocol.commands import as_mapping
from ..protocol.operation import Batch, C_co, Command, Op, operation, together
from ..protocol.script import Script
from ..search.vectors import Array, as_matrix, from_blob
from .documents import Progress, Writing
from .queries import Queries
from .writing import Part

if TYPE_CHECKING:
    from typing_extensions import Self

# KEYS old, new; ARGV: the field that the new vector was made of, what it was, the name of the old
# vector's field, the new one's, the new vector. -1: the field has changed, make the vector anew.
_COPY = Script("""
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return -1 end
local old, new = redis.call('HGETALL', KEYS[1]), {ARGV[4], ARGV[5]}
for i = 1, #old, 2 do
  if old[i] ~= ARGV[3] then new[#new + 1], new[#new + 2] = old[i], old[i + 1] end
end
redis.call('HSET', KEYS[2], unpack(new))
local left = redis.call('PTTL', KEYS[1])
if left > 0 then redis.call('PEXPIRE', KEYS[2], left) end
return 1""")
_COPY_JSON = Script("""
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
if redis.call('JSON.GET', KEYS[1]) ~= ARGV[1] then return -1 end
redis.call('JSON.SET', KEYS[2], '$', ARGV[2])
local left = redis.call('PTTL', KEYS[1])
if left > 0 then redis.call('PEXPIRE', KEYS[2], left) end
return 1""")


class Migration(Queries[C_co]):
    """What moves the documents of an index into another one."""

    _route: _Route | None = None

    def both(self, to: Any, *, embedder: Any = None, text_field: str = "text") -> Self:
        """Return this index with writes, changes and deletions that go to `to` as well.

        For the time of a `reindex` with the same arguments. What both get leaves in one write;
        searches still ask this index.
        """
        twin = copy.copy(self)
        twin._route = _Route(self, to, embedder, text_field)
        return twin

    @operation
    def reindex(
        self,
        to: Any,
        *,
        embedder: Any = None,
        text_field: str = "text",
        alias: str | None = None,
        progress: Progress | None = None,
    ) -> Op[int]:
        """Copy all documents into another index, then move an alias to it; return how many.

        `to` is a `VectorIndex` of another name and prefix, created here if need be. With `embedder`
        its vectors are made anew from the text in `text_field`, else the old ones are converted.
        Documents that are there already stay as they are: run again, it goes on where it was cut
        off. The alias is moved when all are copied and indexed; the old index stays as it is.
        Writers use `both(to)` meanwhile, or their changes may not be seen.

        Raises ValueError for an index under the same keys, of another kind of documents or
        embedder, and for a document without the text; NotIndexedError, before the alias is moved,
        if the server did not index some.
        """
        route = _Route(self, to, embedder, text_field)
        yield from route.new.create(exist_ok=True)
        total = yield from self._planned().count()
        cursor, copied, writing = b"0", 0, Writing()
        kind = "ReJSON-RL" if self.schema.json else "hash"
        keys_of = f"{escape_glob(self.prefix)}*"
        while True:
            # By SCAN and not through the index: a document that is written anew meanwhile has moved
            # to the end of the index, and not in the keyspace.
            cursor, keys = yield from commands.scan(cursor, keys_of, 500, kind)
            ids = [*dict.fromkeys(map(self._decoder.id, keys))]
            copied += yield from route.copy(ids)
            yield from route.new._look_for(writing, ids)
            writing.done += len(ids)
            if progress is not None:
                progress(writing.done, max(total, writing.done))
            if cursor == b"0":
                break
        writing.result([], raise_errors=True)
        yield from route.new.wait_until_indexed()
        if alias is not None:
            yield from route.new.alias(alias, move=True)
        return copied

    def _write(self, writing: Writing, part: Part) -> Op[None]:
        write = super()._write(writing, part)
        if self._route is None:
            yield from write
            return
        twin = yield from self._route.part(part)
        second = Writing()
        yield from together([write, self._route.new._write(second, twin)])
        writing.failed += second.failed
        writing.why = second.why or writing.why

    def _change(self, changes: Sequence[tuple[str, Mapping[str, Any], Any]]) -> Op[int]:
        change = super()._change(changes)
        if self._route is None:
            return (yield from change)
        twins = yield from self._route.changes(changes)
        return (yield from together([change, self._route.new._change(twins)]))[0]  # type: ignore[no-any-return]

    def _delete(self, ids: Sequence[str]) -> Op[int]:
        delete = super()._delete(ids)
        if self._route is None:
            return (yield from delete)
        # The old one first: then no copy can bring it back.
        return (yield from together([delete, self._route.new._delete(ids)]))[0]  # type: ignore[no-any-return]


class _Route:
    """From an index to another: checked, and how a vector becomes the other's."""

    def __init__(self, old: Migration[Any], to: Any, embedder: Any, text_field: str) -> None:
        if not isinstance(to, Migration):
            raise TypeError(f"to must be a VectorIndex, not {type(to).__name__}")
        self.old, self.new = old._planned(), to._planned()
        self._embedder = None if embedder is None else as_embedder(embedder)
        self._text_field = require_text("text_field", text_field)
        if old.schema.json != to.schema.json or not (old.prefix and to.prefix):
            raise ValueError(
                "to: both indexes need the same kind of documents, and one prefix each"
            )
        if to.prefix.startswith(old.prefix) or old.prefix.startswith(to.prefix):
            raise ValueError(f"to: its prefix {to.prefix!r} has keys in common with {old.prefix!r}")
        made_by = self._embedder.fingerprint if self._embedder else old.embedder
        if to.embedder and made_by != to.embedder:
            raise ValueError(f"to: it is for the embedder {to.embedder!r}, not {made_by!r}")

    def copy(self, ids: Sequence[str]) -> Op[int]:
        """Copy documents that the new index does not have; return how many."""
        copied = 0
        present = yield from Batch([("EXISTS", self.new.prefix + name) for name in ids])
        left = [name for name, there in zip(ids, present, strict=True) if not there]
        read = "JSON.GET" if self.old.schema.json else "HGETALL"
        while left:
            found = yield from Batch([(read, self.old.prefix + name) for name in left])
            pairs = [(name, one) for name, one in zip(left, found, strict=True) if one]
            runs = yield from (self._json if self.old.schema.json else self._hashes)(pairs)
            outcomes = yield from Batch(runs)
            copied += outcomes.count(1)
            left = [pair[0] for pair, outcome in zip(pairs, outcomes, strict=True) if outcome < 0]
        return copied

    def part(self, part: Part) -> Op[Part]:
        """Return written documents as the new index takes them."""
        texts = [
            _text(value) for value in part.columns.get(self._text_field, [None] * len(part.ids))
        ]
        vectors = [from_blob(row.tobytes(), self.old.schema.vector.dtype) for row in part.matrix]
        return part._replace(matrix=(yield from self._vectors(part.ids, texts, vectors)))

    def changes(self, changes: Sequence[tuple[str, Mapping[str, Any], Any]]) -> Op[list[Any]]:
        """Return changes with the vectors of the new index, where they change vectors."""
        field = self._text_field
        with_vector = [
            (name, fields.get(field), vector)
            for name, fields, vector in changes
            if (vector is not None if self._embedder is None else field in fields)
        ]
        if not with_vector:
            return [(name, fields, None) for name, fields, _ in changes]
        names, texts, vectors = zip(*with_vector, strict=True)
        dtype = self.old.schema.vector.dtype
        old = [None if one is None else from_blob(one.tobytes(), dtype) for one in vectors]
        made = dict(zip(names, (yield from self._vectors(names, texts, old)), strict=True))
        return [(name, fields, made.get(name)) for name, fields, _ in changes]

    def _vectors(self, ids: Sequence[str], texts: Sequence[Any], old: Sequence[Any]) -> Op[Array]:
        needed = old if self._embedder is None else texts
        what = "vector" if self._embedder is None else f"text in {self._text_field!r} to embed"
        for name, one in zip(ids, needed, strict=True):
            if one is None or not len(one):
                raise ValueError(f"{name!r} has no {what}")
        if self._embedder is not None:
            several = list(dict.fromkeys(texts))
            made = dict(zip(several, (yield from self._embedder.documents(several)), strict=True))
            old = [made[text] for text in texts]
        vector = self.new.schema.vector
        return as_matrix(old, vector.dim, dtype=vector.dtype, metric=vector.metric)

    def _hashes(self, pairs: Sequence[tuple[str, Any]]) -> Op[list[Command[int]]]:
        names = [name for name, _ in pairs]
        raw = [as_mapping(one) for _, one in pairs]
        field = self.old.schema.vector.name.encode()
        blobs = [one.get(field, b"") for one in raw]
        texts = [one.get(self._text_field.encode()) for one in raw]
        old = [from_blob(blob, self.old.schema.vector.dtype) for blob in blobs]
        matrix = yield from self._vectors(names, [_text(text) for text in texts], old)
        source = field if self._embedder is None else self._text_field
        values = blobs if self._embedder is None else texts
        name = self.new.schema.vector.name
        return [
            _COPY([self.old.prefix + i, self.new.prefix + i], [source, value, field, name, row])
            for i, value, row in zip(names, values, matrix, strict=True)
        ]

    def _json(self, pairs: Sequence[tuple[str, Any]]) -> Op[list[Command[int]]]:
        names = [name for name, _ in pairs]
        documents = [json.loads(text) for _, text in pairs]
        encoder, vector = self.old._encoder, self.old.schema.vector.name
        old = [encoder.take(document, vector, away=True) for document in documents]
        texts = [encoder.take(document, self._text_field) for document in documents]
        matrix = yield from self._vectors(names, texts, old)
        runs: list[Command[int]] = []
        for (name, text), document, row in zip(pairs, documents, matrix, strict=True):
            self.new._encoder.put_vector(document, row)
            keys = [self.old.prefix + name, self.new.prefix + name]
            runs.append(_COPY_JSON(keys, [text, to_json("document", document)]))
        return runs


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
