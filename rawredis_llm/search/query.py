"""Queries and index commands as argument lists; every one is a plain function.

One form of KNN is right on every server (RediSearch 2.10 to 8.4, standalone and cluster, RESP2 and
RESP3): `SORTBY` the distance, `LIMIT 0 K`, `RETURN` that names the distance, `DIALECT 2`; then sort
and cut on the client. Without LIMIT the server sends 10 rows, without RETURN the raw vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypedDict, TypeVar

from ..errors import (
    IndexExistsError,
    IndexMismatchError,
    IndexNotFoundError,
    NoPermissionError,
)
from ..keys import milliseconds
from ..protocol.operation import Batch, Command, Op, Runnable, steps_of, together
from .filters import number, whole_number
from .replies import IndexInfo, SearchReply, index_info, search_reply, total_results
from .schema import Schema, Vector

T = TypeVar("T")
Params = Sequence[tuple[str, Any]]

DISTANCE: Final = "__distance"
"""The name of the distance in KNN rows; fields may not begin with `__`, so none can be hidden."""

MAX_RESULTS: Final = 1_000_000
"""The server's limit of LIMIT and, with it, of k."""


class Options(TypedDict, total=False):
    """What every query of an index takes beside its own parameters; None is unset.

    `timeout` is how long the server may work, in seconds (its default: 0.5), `dialect` the query
    language's version (2 to 4, default 2; JSON documents 3). `on_partial` is flag (default) or
    raise: what happens where the server could not look at everything. For a vector's neighbours:
    `ef_runtime` candidates of an hnsw index, `search_window_size` of an svs-vamana one;
    `hybrid_policy` (adhoc_bf or batches) and `batch_size`, how a filter is combined with them. For
    a range in such an index: `epsilon`, how far beyond it candidates are looked for.
    """

    timeout: float | None
    dialect: int | None
    on_partial: str | None
    ef_runtime: int | None
    search_window_size: int | None
    hybrid_policy: str | None
    batch_size: int | None
    epsilon: float | None


UNLIMITED: Final = ("TIMEOUT", 0, "DIALECT", 2)
"""How what counts or lists documents ends: the answer must be whole, however long it takes."""

COMMON: Final = ("timeout", "dialect", "on_partial")
FOR_KNN: Final = ("ef_runtime", "search_window_size", "hybrid_policy", "batch_size")
_ONLY_OF: Final = {"ef_runtime": ("hnsw",), "search_window_size": ("svs-vamana",)} | {
    "epsilon": ("hnsw", "svs-vamana")
}


def check_options(options: Options, *takes: str, schema: Schema, filtered: bool = False) -> None:
    """Raise TypeError for an option that a query does not take, ValueError for a wrong value."""
    vector = schema.vector
    dialects = (3, 4) if schema.json else (2, 3, 4)  # in 2, lists of JSON lose all but one
    for name, value in options.items():
        if name not in COMMON and name not in takes:
            raise TypeError(f"{name!r} is no option of this query")
        if value is None or name in ("timeout", "on_partial"):
            continue
        if name in _ONLY_OF and vector.algorithm not in _ONLY_OF[name]:
            raise ValueError(f"{name}: only an index of {' or '.join(_ONLY_OF[name])} has it")
        if name == "hybrid_policy" and value not in ("adhoc_bf", "batches"):
            raise ValueError(f"hybrid_policy must be adhoc_bf or batches, not {value!r}")
        if name in ("hybrid_policy", "batch_size") and not filtered:
            raise ValueError(f"{name}: only a search with a filter has it")
        if name == "dialect" and value not in dialects:
            raise ValueError(f"dialect must be one of {dialects}, not {value!r}")
        if name in ("ef_runtime", "search_window_size", "batch_size"):
            whole_number(name, value)
        if name == "epsilon" and float(number(value, name)) <= 0:
            raise ValueError(f"epsilon must be above 0, not {value!r}")
    milliseconds("timeout", options.get("timeout"))
    if (partial := options.get("on_partial")) not in ("flag", "raise", None):
        raise ValueError(f"on_partial must be flag or raise, not {partial!r}")


def tail(options: Options, dialect: int = 2) -> tuple[Any, ...]:
    """Return the arguments that end a query."""
    timeout = milliseconds("timeout", options.get("timeout"))
    limit = () if timeout is None else ("TIMEOUT", timeout)
    return (*limit, "DIALECT", options.get("dialect") or dialect)


def create_index(name: str, prefixes: Sequence[str], schema: Schema) -> Command[bytes]:
    """Return the command that creates an index over documents under the prefixes."""
    return Command(("FT.CREATE", name, *schema.definition(prefixes)))


def ensure_index(name: str, prefixes: Sequence[str], schema: Schema) -> Op[bool]:
    """Create an index; return False if it was there with these prefixes and fields.

    Raises IndexMismatchError, saying what differs, if it was there with others, and
    NoPermissionError, if it was not there and is not ours to create.
    """
    try:
        yield from create_index(name, prefixes, schema)
    except _NOT_OURS as error:
        try:
            there = yield from info(name)
        except IndexNotFoundError:
            raise error from None
        except NoPermissionError:
            if isinstance(error, NoPermissionError):
                raise  # who may do neither is not told whether there is one
            return False  # it is taken as it is
        refuse_differences(name, schema.differences(there, prefixes))
        return False
    return True


def refuse_differences(name: str, differences: Sequence[str]) -> None:
    """Raise IndexMismatchError, which says what differs, if anything does."""
    if differences:
        raise IndexMismatchError(f"index {name!r} is another one: {'; '.join(differences)}")


def write_indexed(
    name: str, prefixes: Sequence[str], schema: Schema, write: Runnable[Any] | Batch
) -> Op[None]:
    """Write documents, and in the same write create their index if somebody dropped it meanwhile.

    What is not indexed is not found, and a process that only writes would never notice. Who may
    create none has been told by `ensure_index`.
    """
    again = create_index(name, prefixes, schema)
    created, written = yield from together([again, steps_of(write)], raise_errors=False)
    if isinstance(created, Exception) and not isinstance(created, _NOT_OURS):
        raise created
    if isinstance(written, Exception):
        raise written


# Why FT.CREATE fails where there is an index, or somebody else is to create it.
_NOT_OURS: Final = (IndexExistsError, NoPermissionError)


def drop_index(name: str, *, documents: bool = False) -> Command[bytes]:
    """Return the command that drops an index, its documents with it if `documents`."""
    return Command(("FT.DROPINDEX", name, "DD") if documents else ("FT.DROPINDEX", name))


def info(name: str) -> Command[IndexInfo]:
    """Return the command that describes an index."""
    return Command(("FT.INFO", name), index_info)


def count(name: str, query: str, params: Params = ()) -> Command[int]:
    """Return the command that counts the documents a query matches."""
    args = ("FT.SEARCH", name, query, *with_params(params), "LIMIT", 0, 0, *UNLIMITED)
    return Command(args, total_results)


def with_params(params: Params) -> tuple[Any, ...]:
    """Return the PARAMS part of a query; nothing for none."""
    if not params:
        return ()
    return ("PARAMS", 2 * len(params), *(part for pair in params for part in pair))


def returning(fields: Iterable[str], schema: Schema, *extra: str) -> tuple[Any, ...]:
    """Return the RETURN part of a query: what the documents hold under these names."""
    names: list[str] = [*extra]
    for name in fields:
        if schema.json:
            known = schema.fields.get(name)
            names += [known.path if known and known.path else f"$.{name}", "AS", name]
        else:
            names.append(name)
    return ("RETURN", len(names), *names)


def knn(
    name: str,
    query: str,
    field: str,
    blob: bytes,
    k: int,
    returned: tuple[Any, ...],
    *,
    params: Params = (),
    options: Options | None = None,
    dialect: int = 2,
    decode: Callable[[SearchReply], T],
) -> Command[T]:
    """Return the command that finds the `k` documents nearest to a vector among a query's.

    `returned` is a RETURN part that names `DISTANCE`.
    """
    how = ""
    ending: tuple[Any, ...] = ("DIALECT", dialect)
    if options:
        ending = tail(options, dialect)
        for option in FOR_KNN:
            value = options.get(option)
            if value is not None:
                how += f" {option.upper()} {str(value).upper()}"
    # k stands in the text: it is a checked number, and 8.x in a cluster rewrites the text's own.
    text = f"({query})" if query != "*" else "*"
    filled = (
        ("PARAMS", 2, "vector", blob) if not params else with_params([*params, ("vector", blob)])
    )
    return Command(
        (
            *("FT.SEARCH", name, f"{text}=>[KNN {k} @{field} $vector{how} AS {DISTANCE}]"),
            *(*filled, "SORTBY", DISTANCE, "LIMIT", 0, k, *returned, *ending),
        ),
        lambda reply: decode(search_reply(reply)),
    )


def around(field: Vector, query: str, epsilon: float | None) -> str:
    """Return the query of the documents up to `$radius` from `$vector`, among a query's.

    A graph index misses near-duplicates at its own default of 0.01 (on RediSearch 2.10 15 of 500
    under cosine, 93 under l2); at 0.1 a few under cosine, at 1 none.
    """
    how = "" if field.algorithm == "flat" else f"$EPSILON: {float(epsilon or 1.0)!r}; "
    near = f"@{field.name}:[VECTOR_RANGE $radius $vector]=>{{{how}$YIELD_DISTANCE_AS: {DISTANCE}}}"
    return near if query == "*" else f"({near}) ({query})"
