"""What the tests of documents share: a schema, vectors, and ways to look at an index."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from rawredis_llm import Client, Command, Numeric, Tag, Text, Vector, VectorIndex
from rawredis_llm.protocol.operation import Batch, watched
from rawredis_llm.search.fields import Field, Geo

if TYPE_CHECKING:
    from conftest import Redis

NOBODY = "redis://127.0.0.1:1/0"
"""An address where no server listens: any I/O raises ConnectError."""

DIM = 4
FIELDS: tuple[Field, ...] = (
    Tag("color"),
    Numeric("year"),
    Text("text"),
    Geo("place"),
    Vector("vec", DIM),
)

both_kinds = pytest.mark.parametrize("on", ["hash", "json"])


def vectors(count: int, dim: int = DIM, seed: int = 1) -> npt.NDArray[np.float32]:
    """Return random vectors, the same each time."""
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def make(client: Any, on: str, name: str = "docs", fields: Any = FIELDS, **options: Any) -> Any:
    """Create an index by a sync client."""
    index = VectorIndex(client, name, fields, on=on, **options)
    index.create()
    return index


def made(redis: Redis, on: str, name: str = "docs", fields: Any = FIELDS, **options: Any) -> Any:
    """Create an index by the fixture's client."""
    index: Any = VectorIndex(redis.client, name, fields, on=on, **options)
    redis.do(index.create())
    return index


def collected(redis: Redis, iterator: Any) -> list[Any]:
    """Return what an iterator of the fixture's colour brings."""
    if redis.kind == "sync":
        return list(iterator)

    async def collect() -> list[Any]:
        return [one async for one in iterator]

    return list(redis.do(collect()))


def contents(rows: list[Any]) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Return documents by id: fields, and the vector to the bit."""
    return {row.id: (row.fields, row.vector.tobytes()) for row in rows if row is not None}


def stored(client: Client, prefix: str = "") -> dict[bytes, Any]:
    """Return all documents under a prefix as the server holds them."""
    found: dict[bytes, Any] = {}
    for key in client.call("KEYS", prefix + "*"):
        kind = client.call("TYPE", key)
        found[key] = client.call("HGETALL" if kind == b"hash" else "JSON.GET", key)
    return found


def meanwhile(
    client: Client, op: Any, act: Callable[[], object], before: Callable[[str], bool]
) -> Any:
    """Run an op, and do something just before the first of its requests that `before` names."""
    waiting = [act]

    def see(request: Any) -> None:
        wire = isinstance(request, (Command, Batch))
        if waiting and wire and before(request.name):
            waiting.pop()()

    result = client.run(watched(op, see))
    assert not waiting, "there was no such request"
    return result
