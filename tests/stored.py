"""What a cache has stored: its keys and entries, to be looked at and to be tampered with."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Redis


def keys(redis: Redis, kind: str = "x") -> list[bytes]:
    """Return the keys of one kind (x: entries, o: sources, f: flights, c: counts), sorted."""
    found = redis.do(redis.client.call("KEYS", "*"))
    return sorted(
        key for key in found if re.match(rb"[^{]*:%b:(?:[0-9a-f]{32}|{)" % kind.encode(), key)
    )


def leases(redis: Redis) -> list[bytes]:
    """Return the leases of computations under way."""
    return [key for key in keys(redis, "f") if key.endswith(b"}")]


def entry(redis: Redis) -> dict[str, Any]:
    """Return the one entry that is stored."""
    [key] = keys(redis)
    found: dict[str, Any] = json.loads(redis.do(redis.client.call("GET", key)))
    return found


def change(redis: Redis, **fields: Any) -> None:
    """Rewrite fields of the one entry that is stored; how long it stays is left alone."""
    [key] = keys(redis)
    value = json.dumps({**entry(redis), **fields})
    redis.do(redis.client.call("SET", key, value, "KEEPTTL"))


def left(redis: Redis, key: bytes) -> int:
    """Return a key's time to live in milliseconds."""
    return int(redis.do(redis.client.call("PTTL", key)))
