"""Documents of an index: written, changed, read and deleted, by id or by filter.

A document is a hash, or a JSON object, under `prefix + id`. What the server would drop from the
index without a word (a vector of another size, a number that is none) is refused before it is sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from itertools import groupby, islice
from typing import Any

from ..errors import (
    IndexNotFoundError,
    NoPermissionError,
    NotIndexedError,
    SearchUnavailableError,
)
from ..keys import milliseconds
from ..protocol import commands
from ..protocol.client import iterated
from ..protocol.operation import Batch, C_co, Call, Command, Op, operation
from ..search import query
from ..search.filters import Filter, whole_number
from ..search.replies import aggregate_reply, found_keys, total_results
from ..search.schema import Schema
from .life import Life
from .rows import Decoder, Row
from .writing import Encoder, Part, made_ids

Progress = Callable[[int, "int | None"], object]

_PAGE = 1000  # keys that one page of a scan, or of a deletion, holds


class Loaded(int):
    """How many documents were written. `ids` are those that were made, `failed` not indexed."""

    ids: list[str]
    failed: list[str]


class Documents(Life[C_co]):
    """What is stored in an index."""

    def __init__(self, client: C_co, name: str, schema: Schema, **options: Any) -> None:
        super().__init__(client, name, schema, **options)
        self._decoder = Decoder(schema, self.prefix)
        self._encoder = Encoder(schema, self.prefixes, self.prefix)

    def _altered(self) -> None:
        self._decoder.learn()

    @operation
    def load(
        self,
        ids: Sequence[str | int] | None,
        vectors: Any,
        fields: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]] | None = None,
        *,
        ttl: float | None = None,
        batch_size: int = 500,
        progress: Progress | None = None,
        raise_errors: bool = True,
    ) -> Op[Loaded]:
        """Write documents, each replacing whole what was under its id; return how many.

        `ids` None: they are made, 32 hex digits each, and are the result's `ids`. `vectors` is
        array-like of shape (n, dim), one row per id. `fields` is `{name: column}` or a list of
        dicts, one per id; a None leaves that field out of that document. Fields outside of the
        schema are stored and not indexed. `ttl` in seconds. A batch of `batch_size` documents is
        one write, and holds a copy of their vectors; `progress(done, total)` is called after each.

        All arguments are checked before the first byte is sent: ValueError or TypeError name what
        is wrong. Raises NotIndexedError, when all are written, if the server did not index some of
        them; with `raise_errors=False` they are the result's `failed`.
        """
        whole_number("batch_size", batch_size)
        documents = self._encoder.checked(ids, vectors, fields, milliseconds("ttl", ttl))
        writing = Writing()
        for part in documents.parts(batch_size):
            yield from self._write(writing, part)
            if progress is not None:
                progress(writing.done, len(documents.ids))
        return writing.result(documents.ids if ids is None else [], raise_errors=raise_errors)

    def check_load(self, ids: Sequence[str | int] | None, vectors: Any, fields: Any = None) -> None:
        """Raise what `load` would raise for these arguments, and send nothing."""
        self._encoder.checked(ids, vectors, fields, None)

    @operation
    def load_documents(
        self,
        documents: Iterable[Mapping[str, Any] | Row],
        *,
        ttl: float | None = None,
        batch_size: int = 500,
        progress: Progress | None = None,
        raise_errors: bool = True,
    ) -> Op[Loaded]:
        """Write documents from an iterable, of which no more than a batch is held; see `load`.

        A document is a `Row` (of `scan`, say), or a dict with its vector under the vector field's
        name, its fields, and its `id`, which is made where there is none. The total that `progress`
        is told is None where the iterable has no length. What is wrong with a document raises
        before its batch is sent; the batches before it are written by then.
        """
        px = milliseconds("ttl", ttl)
        whole_number("batch_size", batch_size)
        total = len(documents) if isinstance(documents, Sized) else None
        writing, made = Writing(), list[str]()
        remaining = iter(documents)
        while True:
            # In a thread where there is an event loop: the iterable may read files.
            found: list[Any] = yield from Call(lambda: list(islice(remaining, batch_size)))
            if not found:
                return writing.result(made, raise_errors=raise_errors)
            for raw, group in groupby(found, lambda document: isinstance(document, Row)):
                ids, vectors, fields = self._split(group)
                new = iter(made_ids(ids.count(None)))
                names = [next(new) if i is None else i for i in ids]
                made += [name for name, i in zip(names, ids, strict=True) if i is None]
                part = self._encoder.checked(names, vectors, fields, px, raw=raw)
                yield from self._write(writing, part)
            if progress is not None:
                progress(writing.done, total)

    @operation
    def update(
        self,
        ids: Sequence[str | int],
        fields: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]] | None = None,
        *,
        vectors: Any = None,
    ) -> Op[int]:
        """Change some fields, or the vectors, of documents; return how many of them there were.

        `fields` and `vectors` are as in `load`, but a None takes a field away. What is not named
        stays, the time to live too. Ids without a document are passed over.
        """
        names = self._encoder.ids(ids)
        rows = self._encoder.rows(fields, len(names))
        matrix: Any = [None] * len(names)
        if vectors is not None:
            matrix = self._encoder.checked(names, vectors, None, None).matrix
        return (yield from self._change(list(zip(names, rows, matrix, strict=True))))

    @operation
    def update_where(self, filter: Filter, fields: Mapping[str, Any]) -> Op[int]:  # noqa: A002 - the API's name
        """Give all documents that match a filter these fields (None: take away); return how many.

        Documents that begin to match meanwhile may stay as they are.
        """
        if not isinstance(fields, Mapping):
            raise TypeError(f"fields must be a dict, not {type(fields).__name__}")
        self._encoder.change("", fields)
        keys = yield from self._matching(filter)
        return (yield from self._change([(self._decoder.id(key), fields, None) for key in keys]))

    @operation
    def get(self, ids: Sequence[str | int]) -> Op[list[Row | None]]:
        """Return documents by id, vectors included, in order; None for each that is missing."""
        names = self._encoder.ids(ids, repeated=True)
        return (yield from self._fetch([(self.prefix + name).encode() for name in names]))

    @operation
    def delete(self, ids: Sequence[str | int]) -> Op[int]:
        """Delete documents by id; return how many there were."""
        return (yield from self._delete(self._encoder.ids(ids, repeated=True)))

    @operation
    def delete_where(self, filter: Filter, dry_run: bool = False) -> Op[int]:  # noqa: A002, FBT001, FBT002 - the API's name
        """Delete all documents that match a filter; return how many, with `dry_run` without it."""
        names = list(map(self._decoder.id, (yield from self._matching(filter))))
        return len(names) if dry_run else (yield from self._delete(names))

    @operation
    def count(self, filter: Filter | None = None) -> Command[int]:  # noqa: A002 - the API's name
        """Return how many documents are indexed by now, or match the filter."""
        text = self.schema.check_filter(filter)
        return query.count(self.name, text, () if filter is None else filter.params)

    @iterated
    def scan(self, filter: Filter | None = None) -> Iterator[Row]:  # noqa: A002 - the API's name
        """Iterate over all documents, or those that match a filter: whole, vectors included.

        With a filter they are those that match when it begins. Without, one that is written
        meanwhile may come twice or not at all, and the server forgets an iteration that rests for
        five minutes: then ReplyError is raised. While the index is being built, the first page
        waits up to a minute, then TimeoutError is raised.
        """
        self.schema.check_filter(filter)
        client: Any = self.client
        forget = self._forget if filter is None else None
        rows: Iterator[Row] = client.pages(self._pages(filter), forget)
        return rows

    def _forget(self, cursor: bytes) -> Command[bytes]:
        return Command(("FT.CURSOR", "DEL", self.name, cursor))

    def _pages(self, filter: Filter | None) -> Callable[[bytes], Op[tuple[bytes, list[Row]]]]:  # noqa: A002 - the API's name
        """Return what fetches a page of documents and the next cursor; b"0" begins, and ends."""
        found: list[bytes] = []

        def page(cursor: bytes) -> Op[tuple[bytes, list[Row]]]:
            if filter is None:
                following, keys = yield from self._keys(cursor)
            else:
                # All keys at once: a cursor loses documents where others are written meanwhile.
                if cursor == b"0":
                    found[:] = yield from self._matching(filter)
                start, end = int(cursor), int(cursor) + _PAGE
                keys, following = found[start:end], b"%d" % end if end < len(found) else b"0"
            rows = yield from self._fetch(keys)
            return following, [row for row in rows if row is not None]

        return page

    def _matching(self, filter: Filter) -> Op[list[bytes]]:  # noqa: A002 - the API's name
        """Return the keys of the documents that match, at one moment."""
        if not isinstance(filter, Filter):
            raise TypeError("filter must be a Filter; all go by drop(delete_documents=True)")
        text = self.schema.check_filter(filter)
        yield from self._wait_until_whole()
        args = ("FT.SEARCH", self.name, text, "NOCONTENT", *query.with_params(filter.params))
        keys = yield from Command(
            (*args, "LIMIT", 0, query.MAX_RESULTS, *query.UNLIMITED), found_keys
        )
        if len(keys) == query.MAX_RESULTS:
            raise ValueError(
                f"filter: it matches {len(keys)} documents or more; take them in parts"
            )
        return keys

    def _keys(self, cursor: bytes) -> Op[tuple[bytes, list[bytes]]]:
        """Return a page of the keys of all documents, and the cursor of the next."""
        args: tuple[Any, ...] = ("FT.CURSOR", "READ", self.name, cursor)
        if cursor == b"0":
            yield from self._wait_until_whole()
            args = ("FT.AGGREGATE", self.name, "*", "LOAD", 1, "@__key", "WITHCURSOR", "COUNT")
            args = (*args, _PAGE, *query.UNLIMITED)
        page = yield from Command(args, partial(aggregate_reply, cursor=True))
        return b"%d" % page.cursor, [row[b"__key"] for row in page.rows if b"__key" in row]

    def _fetch(self, keys: Sequence[bytes]) -> Op[list[Row | None]]:
        if not self.schema.json:
            found = yield from Batch([commands.hgetall(key) for key in keys])
            pairs = zip(keys, found, strict=True)
            return [self._decoder.row(key, one) if one else None for key, one in pairs]
        rows: list[Row | None] = []
        for key, text in zip(
            keys, (yield from Batch([("JSON.GET", k) for k in keys])), strict=True
        ):
            document = None if text is None else json.loads(text)
            if isinstance(document, dict):
                vector = self._encoder.take(document, self.schema.vector.name, away=True)
                rows.append(self._decoder.document(key, document, vector))
            else:
                rows.append(None)  # or no object, which is no document of this index
        return rows

    def _write(self, writing: Writing, part: Part) -> Op[None]:
        """Write a batch, and see if the server has indexed it."""
        replies = yield from self._encoder.request(part, self.name)
        said = replies[len(part.ids) + 1]
        for one in replies:
            if isinstance(one, Exception) and (one is not said or not isinstance(one, _NO_INDEX)):
                raise one
        writing.done += len(part.ids)
        if not isinstance(said, Exception) and total_results(said) < len(part.ids):
            yield from self._look_for(writing, part.ids)

    def _look_for(self, writing: Writing, ids: Sequence[str]) -> Op[None]:
        """See which stored documents are not indexed."""
        if not ids or self.schema.filter_expression is not None:  # which leaves out what it should
            return
        keys = [self.prefix + name for name in ids]
        found = ("FT.SEARCH", self.name, "*", "INKEYS", len(keys), *keys, "NOCONTENT")
        indexed, info, *there = yield from Batch(
            [
                Command((*found, "LIMIT", 0, len(keys), *query.UNLIMITED), found_keys),
                query.info(self.name),
                # What somebody deleted meanwhile has not failed.
                *(("EXISTS", key) for key in keys),
            ]
        )
        known = set(map(self._decoder.id, indexed))
        left = [i for i, exists in zip(ids, there, strict=True) if exists and i not in known]
        writing.failed += left
        writing.why = info.last_failure if left else writing.why

    def _change(self, changes: Sequence[tuple[str, Mapping[str, Any], Any]]) -> Op[int]:
        """Change fields and vectors, (id, fields, vector or None) each."""
        runs = [self._encoder.change(self.prefix + i, fields, v) for i, fields, v in changes]
        changed = 0
        for start in range(0, len(runs), _PAGE):
            changed += sum((yield from Batch(runs[start : start + _PAGE])))
        return changed

    def _delete(self, ids: Sequence[str]) -> Op[int]:
        keys = [self.prefix + name for name in ids]
        parts = [keys[i : i + _PAGE] for i in range(0, len(keys), _PAGE)]
        return sum((yield from Batch([commands.unlink(part) for part in parts])))

    def _split(self, documents: Iterable[Any]) -> tuple[list[Any], list[Any], list[dict[str, Any]]]:
        """Return ids (None where there is none), vectors and fields of documents."""
        ids, vectors, fields = list[Any](), list[Any](), list[dict[str, Any]]()
        name = self.schema.vector.name
        for document in documents:
            if isinstance(document, Row):
                rest, vector, own = document.fields, document.vector, document.id
            elif isinstance(document, Mapping):
                rest = dict(document)
                vector, own = rest.pop(name, None), rest.pop("id", None)
            else:
                raise TypeError(f"a document is a Row or a dict, not {type(document).__name__}")
            if vector is None:
                raise ValueError(f"a document has no vector in its field {name!r}")
            vectors.append(vector)
            ids.append(own)
            fields.append(rest)
        return ids, vectors, fields


class Writing:
    """What a load has done so far, and what the server said of it."""

    def __init__(self) -> None:
        self.done = 0
        self.failed: list[str] = []
        self.why = ""

    def result(self, made: list[str], *, raise_errors: bool) -> Loaded:
        """Return the result, or raise NotIndexedError."""
        if self.failed and raise_errors:
            shown = ", ".join(map(repr, self.failed[:3])) + ", ..." * (len(self.failed) > 3)
            error = NotIndexedError(
                f"{len(self.failed)} of {self.done} documents were stored and not indexed, such as"
                f" {shown}; the last because: {self.why or 'the server does not say'}"
            )
            error.ids = tuple(self.failed[:1000])
            raise error
        loaded = Loaded(self.done)
        loaded.ids, loaded.failed = made, self.failed
        return loaded


# Then documents are only stored, or this user may not look.
_NO_INDEX = (IndexNotFoundError, NoPermissionError, SearchUnavailableError)
