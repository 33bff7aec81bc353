"""The commands we use, one short typed function each: arguments in, a `Command` out.

The decoders are forgiving about RESP2 and RESP3 (a map may come as a flat list) and about nothing
else. Must not import another ring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from ..errors import UnexpectedReplyError
from .operation import Command

T = TypeVar("T")


def as_mapping(reply: Any) -> dict[Any, Any]:
    """Return a map reply as a dict, whether it came as a map (RESP3) or as a flat list (RESP2)."""
    if isinstance(reply, dict):
        return reply
    if isinstance(reply, list) and len(reply) % 2 == 0:
        parts = iter(reply)
        try:
            return dict(zip(parts, parts))  # noqa: B905 - their number is even, and `strict` costs
        except TypeError:  # a key that is a list
            pass
    raise UnexpectedReplyError(f"expected a map, got {type(reply).__name__}")


def get(key: str | bytes) -> Command[bytes | None]:
    """Return the value of a string key, or None."""
    return Command(("GET", key))


def mget(keys: Iterable[str | bytes]) -> Command[list[bytes | None]]:
    """Return the values of string keys, None for each that is missing."""
    return Command(("MGET", *keys))


def set_value(key: str | bytes, value: bytes | str, px: int | None = None) -> Command[bytes]:
    """Set a string key; `px` is its time to live in milliseconds."""
    return Command(("SET", key, value) if px is None else ("SET", key, value, "PX", px))


def delete(*keys: str | bytes) -> Command[int]:
    """Delete keys; return how many there were."""
    return Command(("DEL", *keys))


def unlink(keys: Iterable[str | bytes]) -> Command[int]:
    """Delete keys, freeing their memory in the background; return how many there were."""
    return Command(("UNLINK", *keys))


def pexpire(key: str | bytes, milliseconds: int) -> Command[int]:
    """Set a key's time to live; return 1, or 0 if there is no such key."""
    return Command(("PEXPIRE", key, milliseconds))


def hset(key: str | bytes, fields: Mapping[str, Any]) -> Command[int]:
    """Set fields of a hash; return how many of them are new."""
    return Command(("HSET", key, *(part for pair in fields.items() for part in pair)))


def hgetall(key: str | bytes) -> Command[dict[bytes, bytes]]:
    """Return all fields of a hash; {} if there is no such key."""
    return Command(("HGETALL", key), as_mapping)


def zrange(key: str | bytes, start: int = 0, stop: int = -1) -> Command[list[bytes]]:
    """Return members of a sorted set by their rank, the least first."""
    return Command(("ZRANGE", key, start, stop))


def scan(
    cursor: bytes | int,
    match: str | bytes | None = None,
    count: int | None = None,
    of_type: str | None = None,
) -> Command[tuple[bytes, list[bytes]]]:
    """Return the next cursor (b"0" at the end) and a page of keys; a key may come twice."""
    return page(("SCAN", cursor), list, match, count, of_type)


def page(
    head: tuple[Any, ...],
    decode: Callable[[list[Any]], list[T]],
    match: str | bytes | None,
    count: int | None,
    of_type: str | None = None,
) -> Command[tuple[bytes, list[T]]]:
    """Return the next cursor and a page of SCAN or its kin; `decode` makes it of a flat list."""
    options = {"MATCH": match, "COUNT": count, "TYPE": of_type}
    given = [part for pair in options.items() if pair[1] is not None for part in pair]
    return Command((*head, *given), lambda reply: (reply[0], decode(reply[1])))


def pairs(flat: list[Any]) -> list[tuple[Any, Any]]:
    """Return a page of fields and values, or of members and scores."""
    return list(zip(flat[::2], flat[1::2], strict=True))


def scored(flat: list[Any]) -> list[tuple[Any, float]]:
    """Return a page of a sorted set's members with their scores."""
    return [(member, float(score)) for member, score in pairs(flat)]
