"""Queries and index commands as argument lists; every one is a plain function.

One form of KNN is right on every server (RediSearch 2.10 to 8.4, standalone and cluster, RESP2 and
RESP3): `SORTBY` the distance, `LIMIT 0 K`, `RETURN` that names the distance, `DIALECT 2`; then sort
and cut on the client. Without LIMIT the server sends 10 rows, without RETURN the raw vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from ..errors import IndexExistsError
from ..protocol.operation import Batch, Command, Op, Runnable, steps_of, together
from .replies import IndexInfo, SearchReply, index_info, search_reply, total_results
from .schema import Schema

T = TypeVar("T")

DISTANCE: Final = "__distance"
"""The name of the distance in KNN rows; fields may not begin with `__`, so none can be hidden."""

MAX_RESULTS: Final = 1_000_000
"""The server's limit of LIMIT and, with it, of k."""


def create_index(name: str, prefixes: Sequence[str], schema: Schema) -> Command[bytes]:
    """Return the command that creates an index over hashes under the prefixes."""
    return Command(
        (
            *("FT.CREATE", name, "ON", "HASH", "PREFIX", len(prefixes), *prefixes),
            *("SCHEMA", *schema.declaration()),
        )
    )


def ensure_index(name: str, prefixes: Sequence[str], schema: Schema) -> Op[bool]:
    """Create an index; return False if it was there with these prefixes and fields.

    Raises IndexMismatchError, saying what differs, if it was there with others.
    """
    try:
        yield from create_index(name, prefixes, schema)
    except IndexExistsError:
        found = yield from info(name)
        schema.compare(name, found.attributes, prefixes, found.prefixes)
        return False
    return True


def write_indexed(
    name: str, prefixes: Sequence[str], schema: Schema, write: Runnable[Any] | Batch
) -> Op[None]:
    """Write documents, and in the same write create their index if somebody dropped it meanwhile.

    What is not indexed is not found, and a process that only writes would never notice.
    """
    again = create_index(name, prefixes, schema)
    for outcome in (yield from together([again, steps_of(write)], raise_errors=False)):
        if isinstance(outcome, Exception) and not isinstance(outcome, IndexExistsError):
            raise outcome


def drop_index(name: str, *, documents: bool = False) -> Command[bytes]:
    """Return the command that drops an index, its documents with it if `documents`."""
    return Command(("FT.DROPINDEX", name, "DD") if documents else ("FT.DROPINDEX", name))


def info(name: str) -> Command[IndexInfo]:
    """Return the command that describes an index."""
    return Command(("FT.INFO", name), index_info)


def count(name: str, query: str) -> Command[int]:
    """Return the command that counts the documents a query matches."""
    return Command(("FT.SEARCH", name, query, "LIMIT", 0, 0, "DIALECT", 2), total_results)


def knn(
    name: str,
    query: str,
    field: str,
    blob: bytes | memoryview,
    k: int,
    fields: Sequence[str],
    *,
    ef_runtime: int | None = None,
    decode: Callable[[SearchReply], T],
) -> Command[T]:
    """Return the command that finds the `k` documents nearest to a vector among a query's."""
    params: tuple[Any, ...] = ("vector", blob)
    runtime = ""
    if ef_runtime is not None:
        params += ("ef", ef_runtime)
        runtime = " EF_RUNTIME $ef"
    # k stands in the text: it is a checked number, and 8.x in a cluster rewrites the text's own.
    text = f"({query})" if query != "*" else "*"
    return Command(
        (
            *("FT.SEARCH", name, f"{text}=>[KNN {k} @{field} $vector{runtime} AS {DISTANCE}]"),
            *("PARAMS", len(params), *params, "SORTBY", DISTANCE, "LIMIT", 0, k),
            *("RETURN", len(fields) + 1, DISTANCE, *fields, "DIALECT", 2),
        ),
        lambda reply: decode(search_reply(reply)),
    )
