"""Queries of an index: by vector, by words, by both, by filter alone, and aggregated."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..errors import IndexNotFoundError, NoPermissionError, PartialResultError
from ..explain import shown
from ..keys import distance_limit, require_text
from ..protocol.operation import Batch, C_co, Command, Op, Ready, Runnable, operation, steps_of
from ..search import query as commands
from ..search.aggregate import Step, numeric_names
from ..search.bulk import with_each
from ..search.fields import Numeric, text_or_bytes
from ..search.filters import Filter, number, whole_number
from ..search.fusion import diverse, reciprocal_ranks, weighted
from ..search.query import DISTANCE, FOR_KNN, Options
from ..search.replies import (
    IndexInfo,
    aggregate_reply,
    hybrid_reply,
    profile_reply,
    search_reply,
)
from ..search.schema import Schema
from ..search.vectors import as_matrix, as_vector
from .documents import Documents
from .rows import SearchResult

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")


@dataclass(slots=True)
class AggregateResult:
    """Rows as dicts of names to values; numbers where a numeric field or reducer gives them.

    `partial` and `warnings` are as in `SearchResult`.
    """

    rows: list[dict[str, Any]]
    partial: bool
    warnings: list[str]


@dataclass(slots=True)
class Explanation:
    """How the server performs a query: `argv` as sent (binary arguments as their number of bytes).

    `plan` is what FT.EXPLAIN makes of the query, `profile` what FT.PROFILE measured: nested dicts,
    times in milliseconds.
    """

    argv: list[str]
    plan: str
    profile: dict[str, Any]


class Queries(Documents[C_co]):
    """What can be asked of an index."""

    def __init__(self, client: C_co, name: str, schema: Schema, **options: Any) -> None:
        super().__init__(client, name, schema, **options)
        self._dialect = 3 if schema.json else 2

    @operation
    def search(
        self,
        vector: Any,
        k: int = 10,
        *,
        filter: Filter | None = None,  # noqa: A002 - the API's own name
        return_fields: Sequence[str] | None = None,
        include_vectors: bool = False,
        offset: int = 0,
        **options: Unpack[Options],
    ) -> Runnable[SearchResult]:
        """Return the `k` documents nearest to a vector of shape (dim,), nearest first.

        Only documents that match `filter` are considered. `return_fields` (default: the schema's)
        may name fields outside of the schema. `offset` skips the nearest. Fewer than k matches give
        fewer rows. `options`: see `search.query.Options`; `ef_runtime`, `search_window_size`,
        `hybrid_policy` and `batch_size` are for this one.
        """
        blob = self._vector(vector)
        returned = self._returned(return_fields, include_vectors=include_vectors)
        return self._answered(self._knn(blob, k, filter, returned, offset, options), options)

    @operation
    def search_many(
        self,
        vectors: Any,
        k: int = 10,
        *,
        filter: Filter | None = None,  # noqa: A002 - the API's own name
        return_fields: Sequence[str] | None = None,
        include_vectors: bool = False,
        **options: Unpack[Options],
    ) -> Op[list[SearchResult]]:
        """Return the `k` documents nearest to each of many vectors, shape (n, dim), in one write.

        The parameters are those of `search`.
        """
        target = self.schema.vector
        matrix = as_matrix(vectors, target.dim, dtype=target.dtype, metric=target.metric)
        returned = self._returned(return_fields, include_vectors=include_vectors)
        if not len(matrix):
            return []
        first = self._knn(matrix[0].tobytes(), k, filter, returned, 0, options)
        at = next(i for i, part in enumerate(first.args) if isinstance(part, bytes))
        head, tail = first.args[:at], first.args[at + 1 :]
        blobs = matrix.view(np.uint8).reshape(len(matrix), -1)

        def each() -> Iterator[tuple[Any, ...]]:
            return ((*head, blob, *tail) for blob in blobs)

        before, after = ([str(part).encode() for part in parts] for parts in (head, tail))
        queries = Ready(with_each(before, blobs, after), ["FT.SEARCH"] * len(matrix), each)
        return (yield from self._answers(queries, options, first.value))

    @operation
    def range(
        self,
        vector: Any,
        max_distance: float,
        *,
        filter: Filter | None = None,  # noqa: A002 - the API's own name
        limit: int | None = None,
        offset: int = 0,
        return_fields: Sequence[str] | None = None,
        include_vectors: bool = False,
        **options: Unpack[Options],
    ) -> Runnable[SearchResult]:
        """Return all documents up to `max_distance` (in the metric's unit), nearest first.

        `limit` is how many of them at most, from `offset` on (default: the server's 1,000,000). In
        an index that is not flat some of the farthest may be missing; `epsilon` says how far beyond
        the distance the server looks for them (default: 1 time it). Under ip the distance cannot be
        below 0, although distances can.
        """
        target = self.schema.vector
        text = self.schema.check_filter(filter)
        commands.check_options(options, "epsilon", schema=self.schema)
        radius = number(distance_limit("max_distance", max_distance), "max_distance")
        params = [*_params(filter), ("vector", self._vector(vector)), ("radius", radius)]
        args = (
            *("FT.SEARCH", self.name, commands.around(target, text, options.get("epsilon"))),
            *(*commands.with_params(params), "SORTBY", DISTANCE, *_limit(offset, limit)),
            *self._returned(return_fields, include_vectors=include_vectors),
            *commands.tail(options, self._dialect),
        )

        def rows(reply: Any) -> SearchResult:
            found = search_reply(reply)
            result = self._decoder.nearest(found, 0, len(found.rows))
            result.total = found.total
            return result

        return self._answered(Command(args, rows), options)

    @operation
    def query(
        self,
        filter: Filter | None = None,  # noqa: A002 - the API's own name
        *,
        sort_by: str | None = None,
        limit: int = 10,
        offset: int = 0,
        return_fields: Sequence[str] | None = None,
        include_vectors: bool = False,
        **options: Unpack[Options],
    ) -> Runnable[SearchResult]:
        """Return documents that match a filter (None: all), `limit` of them from `offset` on.

        `sort_by` is a field's name, with a `-` before it for downwards; without it the order is the
        server's own. `total` counts all that match.
        """
        text = self.schema.check_filter(filter)
        commands.check_options(options, schema=self.schema)
        order: tuple[str, ...] = ()
        if sort_by is not None:
            name = require_text("sort_by", sort_by).removeprefix("-")
            if name not in self.schema.fields or name == self.schema.vector.name:
                raise ValueError(f"sort_by: {name!r} is none of {', '.join(self._decoder.plain)}")
            order = ("SORTBY", name, "DESC" if sort_by.startswith("-") else "ASC")
        args = (
            *("FT.SEARCH", self.name, text, *commands.with_params(_params(filter)), *order),
            *_limit(offset, limit),
            *self._returned(return_fields, include_vectors=include_vectors, near=False),
            *commands.tail(options, self._dialect),
        )
        return self._answered(Command(args, self._ranked), options)

    @operation
    def text(
        self,
        query: str,
        k: int = 10,
        *,
        filter: Filter | None = None,  # noqa: A002 - the API's own name
        fields: Sequence[str] | None = None,
        scorer: str = "BM25STD",
        offset: int = 0,
        return_fields: Sequence[str] | None = None,
        include_vectors: bool = False,
        **options: Unpack[Options],
    ) -> Runnable[SearchResult]:
        """Return the documents that words suit best, with their scores, best first.

        A document need not hold all words of `query`, nor in these forms: stems count. `fields`
        are the Text fields to look in (default: all). `scorer` is the server's: BM25STD (default),
        BM25, TFIDF, TFIDF.DOCNORM, DISMAX. Raises ValueError if there are none but stop words.
        """
        returned = self._returned(return_fields, include_vectors=include_vectors, near=False)
        ending = (*_limit(offset, k), *returned)
        return self._answered(self._text(query, filter, fields, scorer, options, ending), options)

    @operation
    def hybrid(
        self,
        text: str,
        vector: Any,
        k: int = 10,
        *,
        filter: Filter | None = None,  # noqa: A002 - the API's own name
        fields: Sequence[str] | None = None,
        method: str = "rrf",
        window: int | None = None,
        constant: float = 60.0,
        alpha: float = 0.3,
        scorer: str = "BM25STD",
        return_fields: Sequence[str] | None = None,
        include_vectors: bool = False,
        **options: Unpack[Options],
    ) -> Op[SearchResult]:
        """Return the documents that a text and a vector suit best together, best first.

        Of each ranking the first `window` (default: k, 100 at least) count. `method` rrf adds up
        1 / (`constant` + rank): FT.HYBRID where the server has it, else both queries in one round
        trip, fused here. `linear` is always fused here: `alpha` times the text's score (as a share
        of the best one's) plus 1 - `alpha` times the vector's similarity, both from 0 to 1; 0.3 is
        next to the best of tenths on the Cranfield collection. A row's
        `score` is the sum; `distance` is there for those of the vector's ranking fused here.
        """
        whole_number("k", k)
        if method not in ("rrf", "linear"):
            raise ValueError(f"method must be rrf or linear, not {method!r}")
        share, steepness = float(number(alpha, "alpha")), float(number(constant, "constant"))
        if not 0 <= share <= 1 or not steepness > 0:
            raise ValueError("alpha must be from 0 to 1, and constant above 0")
        window = max(k, 100) if window is None else whole_number("window", window, k)
        blob = self._vector(vector)
        plain = self._returned(return_fields, include_vectors=include_vectors, near=False)
        near = self._returned(return_fields, include_vectors=include_vectors)
        ending = (*_limit(0, window), *plain)
        by_text = self._text(text, filter, fields, scorer, _common(options), ending)
        by_vector = self._knn(blob, window, filter, near, 0, options)
        ours = method == "linear" or options or scorer != "BM25STD" or self.schema.json
        if not ours and (yield from self._server()).hybrid:
            names = [f"@{name}" for name in ("__key", "__score", *plain[2:])]
            combine = ("COMBINE", "RRF", 4, "WINDOW", window, "CONSTANT", steepness)
            tail = (*combine, "LOAD", len(names), *names, "LIMIT", 0, k)
            native = self._native(by_text.args[2], blob, window, filter, tail)
            return (yield from self._answered(native, options))
        found = yield from self._answers(Batch([by_text, by_vector]), options)
        return _fused(found, k, method, steepness, share)

    @operation
    def mmr(
        self,
        vector: Any,
        k: int = 10,
        *,
        relevance: float = 0.5,
        candidates: int | None = None,
        filter: Filter | None = None,  # noqa: A002 - the API's own name
        return_fields: Sequence[str] | None = None,
        include_vectors: bool = False,
        **options: Unpack[Options],
    ) -> Op[SearchResult]:
        """Return `k` documents that are near to a vector and unlike each other, in that order.

        Chosen by maximal marginal relevance (`search.fusion.diverse`) from the nearest `candidates`
        (default: 4 k, 20 at least); `relevance` 1 looks at nearness alone, 0 at difference alone.
        """
        if not 0 <= float(number(relevance, "relevance")) <= 1:
            raise ValueError(f"relevance must be from 0 to 1, not {relevance!r}")
        most = whole_number("k", k)
        wide = max(4 * k, 20) if candidates is None else whole_number("candidates", candidates, k)
        returned = self._returned(return_fields, include_vectors=True)
        command = self._knn(self._vector(vector), wide, filter, returned, 0, options)
        result = yield from self._answered(command, options)
        rows = [row for row in result.rows if row.vector is not None]
        if rows:
            found = np.array([row.vector for row in rows])
            chosen = diverse(np.asarray(vector), found, most, relevance)
            result.rows = [rows[i] for i in chosen]
        if not include_vectors:
            for row in result.rows:
                row.vector = None
        return result

    @operation
    def aggregate(
        self,
        *steps: Step,
        filter: Filter | None = None,  # noqa: A002 - the API's own name
        **options: Unpack[Options],
    ) -> Op[AggregateResult]:
        """Return what steps (see `search.aggregate`) make of documents that match a filter.

        All rows come, through a cursor; a `limit` step makes them fewer.
        """
        commands.check_options(options, schema=self.schema)
        fields = self.schema.fields.items()
        numbers = numeric_names(steps, [name for name, f in fields if isinstance(f, Numeric)])
        text = self.schema.check_filter(filter)
        args = (
            *("FT.AGGREGATE", self.name, text, *(arg for step in steps for arg in step.args)),
            *("WITHCURSOR", "COUNT", 1000, *commands.with_params(_params(filter))),
            *commands.tail(options),
        )
        decode = partial(aggregate_reply, cursor=True)
        result = AggregateResult([], partial=False, warnings=[])
        page = yield from self._answered(Command(args, decode), options)
        while True:
            result.rows += [self._values(row, numbers) for row in page.rows]
            result.warnings = [*dict.fromkeys(result.warnings + page.warnings)]
            result.partial = bool(result.warnings)
            if not page.cursor:
                return result
            page = yield from Command(("FT.CURSOR", "READ", self.name, page.cursor), decode)

    @operation
    def explain(self, what: Any, /, *args: Any, **kwargs: Any) -> Op[Explanation]:
        """Return how the server performs a query: an op of this index's `plan`, or `search`'s own.

        `index.explain(index.plan.text("raw protocol"))`; `index.explain(vector, k=4)`. The query is
        run once, for its profile.
        """
        if not isinstance(what, (Command, Generator)):  # a vector
            what = self._planned().search(what, *args, **kwargs)
        sent = _first(what)
        kind = sent.name.removeprefix("FT.")
        profile = ("FT.PROFILE", self.name, kind, "QUERY", *_profiled(sent.args))
        plan = ("FT.EXPLAIN", *sent.args[1:3], *_explained(sent.args))
        said, measured = yield from Batch([plan, Command(profile, profile_reply)])
        return Explanation([shown(arg) for arg in sent.args], said.decode(), measured)

    def _vector(self, vector: Any) -> bytes:
        target = self.schema.vector
        array = as_vector(vector, target.dim, dtype=target.dtype, metric=target.metric)
        return array.tobytes()  # a copy, and cheaper to encode than a view

    def _knn(
        self,
        blob: bytes,
        k: int,
        filter: Filter | None,  # noqa: A002 - the API's own name
        returned: tuple[Any, ...],
        offset: int,
        options: Options,
    ) -> Command[SearchResult]:
        wanted = whole_number("k", k) + (whole_number("offset", offset, 0) if offset else 0)
        if wanted > commands.MAX_RESULTS:
            raise ValueError(
                f"k and offset: the server returns {commands.MAX_RESULTS} rows at most"
            )
        text = self.schema.check_filter(filter)
        if options:
            filtered = filter is not None
            commands.check_options(options, *FOR_KNN, schema=self.schema, filtered=filtered)
        return commands.knn(
            *(self.name, text, self.schema.vector.name, blob, wanted, returned),
            params=_params(filter),
            options=options,
            dialect=self._dialect,
            decode=partial(self._decoder.nearest, start=offset, end=wanted),
        )

    def _text(
        self,
        words: str,
        filter: Filter | None,  # noqa: A002 - the API's own name
        fields: Sequence[str] | None,
        scorer: str,
        options: Options,
        ending: tuple[Any, ...],
    ) -> Command[SearchResult]:
        commands.check_options(options, schema=self.schema)
        known = [f.name for f in self.schema.fields.values() if f.kind == "TEXT"]
        chosen = known if fields is None else list(fields)
        if not chosen or not set(chosen) <= set(known):
            raise ValueError(f"fields: {chosen} are not Text fields of the index, only {known}")
        found = f"@{'|'.join(chosen)}:({self.schema.words(require_text('query', words))})"
        if filter is not None:
            found = f"({self.schema.check_filter(filter)}) ({found})"
        args = (
            *("FT.SEARCH", self.name, found, "WITHSCORES"),
            *("SCORER", require_text("scorer", scorer)),
            *(*commands.with_params(_params(filter)), *ending),
            *commands.tail(options, self._dialect),
        )
        decode = partial(search_reply, scores=True)
        return Command(args, lambda reply: self._decoder.ranked(decode(reply)))

    def _native(
        self,
        words: str,
        blob: bytes,
        window: int,
        filter: Filter | None,  # noqa: A002 - the API's own name
        ending: tuple[Any, ...],
    ) -> Command[SearchResult]:
        """Ask FT.HYBRID, which has no DIALECT, and whose LOAD drops key and score unless named."""
        among = () if filter is None else ("FILTER", self.schema.check_filter(filter))
        near = ("VSIM", f"@{self.schema.vector.name}", "$vector", "KNN", 2, "K", window, *among)
        params = commands.with_params([*_params(filter), ("vector", blob)])
        return Command(
            ("FT.HYBRID", self.name, "SEARCH", words, *near, *ending, *params),
            lambda reply: self._decoder.ranked(hybrid_reply(reply)),
        )

    def _returned(
        self, fields: Sequence[str] | None, *, include_vectors: bool, near: bool = True
    ) -> tuple[Any, ...]:
        """Return the RETURN part of a query, with the distance if it has one."""
        if fields is None and near and not include_vectors:
            return self._decoder.near
        if isinstance(fields, str):
            raise TypeError("return_fields must be a list of names, not one name")
        if any(str(name).upper() == "AS" for name in fields or ()):
            raise ValueError("return_fields: the server reads AS as a word of its own")
        names = (
            self._decoder.plain
            if fields is None
            else [require_text("return_fields", f) for f in fields]
        )
        if include_vectors:
            names = [*dict.fromkeys([*names, self.schema.vector.name])]
        near = near or not names  # of nothing at all, a reply has another shape
        return commands.returning(names, self.schema, *((DISTANCE,) if near else ()))

    def _ranked(self, reply: Any) -> SearchResult:
        return self._decoder.ranked(search_reply(reply))

    def _answered(self, command: Command[T], options: Options) -> Runnable[T]:
        """Return the op of a query; while the index may be being built, FT.INFO goes with it."""
        if self._known.settled and options.get("on_partial") != "raise":
            return command
        return self._one_of(Batch([command]), options)

    def _one_of(self, queries: Batch, options: Options) -> Op[Any]:
        return (yield from self._answers(queries, options))[0]

    def _answers(
        self, queries: Batch, options: Options, value: Callable[[Any], Any] | None = None
    ) -> Op[list[Any]]:
        strict = options.get("on_partial") == "raise"
        info: Any = None
        if strict or not self._known.settled:
            # Before the queries: what was complete then was so when they ran.
            both = Batch([commands.info(self.name), queries], raise_errors=False)
            info, found = yield from both
        else:
            found = yield from queries
        if isinstance(found, Exception):
            raise found
        results = found if value is None else list(map(value, found))
        if info is not None:
            self._note(info, results)
        warned = [text for one in results for text in one.warnings] if strict else []
        if warned:
            raise PartialResultError(f"index {self.name!r}: {'; '.join(dict.fromkeys(warned))}")
        return results

    def _note(self, info: IndexInfo | Exception, results: Sequence[Any]) -> None:
        """Mark results as partial if the index was being built."""
        if isinstance(info, (NoPermissionError, IndexNotFoundError)):
            self._known.settled = isinstance(info, NoPermissionError)  # it cannot be known
        elif isinstance(info, Exception):
            raise info
        elif info.whole:
            self._known.settled = True
        else:
            for result in results:
                result.warnings.append(f"the index is being built: {info.percent_indexed:.1%} done")
                if hasattr(result, "partial"):
                    result.partial = True

    @staticmethod
    def _values(row: dict[bytes, Any], numbers: frozenset[str]) -> dict[str, Any]:
        return {
            (name := key.decode(errors="replace")): _value(value, numeric=name in numbers)
            for key, value in row.items()
        }


def _value(value: Any, *, numeric: bool) -> Any:
    """Return a value of an aggregation; numbers come as text, and what is missing as None."""
    if isinstance(value, list):
        return [_value(one, numeric=numeric) for one in value]
    if isinstance(value, bytes):
        return _NUMBER.loaded(value) if numeric else text_or_bytes(value)
    return value


_NUMBER = Numeric("number")


def _fused(
    found: Sequence[SearchResult], k: int, method: str, constant: float, alpha: float
) -> SearchResult:
    """Join the rows of a text query and of a vector's neighbours."""
    by_text, by_vector = found
    if method == "rrf":
        ranks = reciprocal_ranks([[row.id for row in one.rows] for one in found], constant)
    else:
        best = max((row.score or 0.0 for row in by_text.rows), default=0.0) or 1.0
        scores = {row.id: (row.score or 0.0) / best for row in by_text.rows}
        near = {row.id: row.similarity or 0.0 for row in by_vector.rows}
        ranks = weighted([scores, near], [alpha, 1.0 - alpha])
    rows = {row.id: row for one in found for row in one.rows}  # the vector's, where both have it
    for name, score in ranks.items():
        rows[name].score = score
    warnings = [*dict.fromkeys(text for one in found for text in one.warnings)]
    return SearchResult([rows[name] for name in [*ranks][:k]], len(rows), bool(warnings), warnings)


def _params(filter: Filter | None) -> Sequence[tuple[str, Any]]:  # noqa: A002 - the API's own name
    return () if filter is None else filter.params


def _limit(offset: int, rows: int | None) -> tuple[Any, ...]:
    first = whole_number("offset", offset, 0)
    most = commands.MAX_RESULTS - first if rows is None else whole_number("limit", rows)
    if first + most > commands.MAX_RESULTS or most < 1:
        raise ValueError(
            f"offset and limit: the server returns {commands.MAX_RESULTS} rows at most"
        )
    return ("LIMIT", first, most)


def _common(options: Options) -> Options:
    common: Any = {name: value for name, value in options.items() if name in commands.COMMON}
    return common  # type: ignore[no-any-return]  # a part of a TypedDict


def _first(what: Any) -> Command[Any]:
    """Return the one query that an op sends first."""
    request: Any = next(steps_of(what))
    sent = [one for one in _flat(request) if one.name != "FT.INFO" or one is request]
    if len(sent) != 1 or sent[0].name not in ("FT.SEARCH", "FT.AGGREGATE"):
        raise ValueError(f"{request.name} has no explanation: give one search or aggregation")
    return sent[0]


def _flat(request: Any) -> list[Command[Any]]:
    if isinstance(request, Batch):
        return [command for member in request.members for command in _flat(member)]
    return [Command(request) if isinstance(request, tuple) else request]


def _last(args: tuple[Any, ...], word: str) -> int:
    """Return where a word stands last: before that it may be a name that somebody chose."""
    return len(args) - 1 - args[::-1].index(word)


def _explained(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what FT.EXPLAIN needs of a query's arguments."""
    ending = ("DIALECT", args[-1])
    if args[0] == "FT.SEARCH":
        at = args.index("PARAMS") if "PARAMS" in args[:7] else 0
    else:
        at = _last(args, "WITHCURSOR") + 3
        at = at if args[at] == "PARAMS" else 0
    return (*args[at : at + 2 + args[at + 1]], *ending) if at else ending


def _profiled(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a query's arguments without a cursor, which FT.PROFILE does not take."""
    if args[0] == "FT.SEARCH":
        return args[2:]
    at = _last(args, "WITHCURSOR")
    return args[2:at] + args[at + 3 :]
