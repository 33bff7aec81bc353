"""The contenders of a cluster: those of calls, by their clients that know one.

* `rawredis_llm`: `ClusterClient` and `AsyncClusterClient`.
* `rawredis_llm, one server`: the plain clients, to a single server that holds all keys: what it
  costs to know the way.
* `redis-py`: its cluster clients, sync and asyncio, over RESP3 and with hiredis.
"""

from __future__ import annotations

from bench.calls import Caller, Ours, RedisPy
from bench.results import OURS, installed
from rawredis_llm import AsyncClusterClient, ClusterClient


class _OneServer(Ours):
    """This library, without a cluster."""

    name = f"{OURS}, one server"


def members(url: str, single: str) -> list[Caller]:
    """Return all that are installed, connected to a cluster, and to a single server."""
    found: list[Caller] = [_OneServer(single), Ours(url, ClusterClient, AsyncClusterClient)]
    if installed("redis"):
        found.append(RedisPy(url, "RedisCluster"))
    return found
