"""One server, reached in both colours: LangChain's objects have sync and async methods alike.

Must not import langchain.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

from ..aio.client import AsyncClient
from ..aio.cluster import AsyncClusterClient
from ..aio.sentinel import AsyncSentinelClient
from ..protocol.client import BaseClient
from ..protocol.operation import Runnable
from ..sync.client import Client
from ..sync.cluster import ClusterClient
from ..sync.sentinel import SentinelClient

T = TypeVar("T")

# Those of several servers first: they are clients, too.
_TWINS: tuple[tuple[Any, Any], ...] = (
    (ClusterClient, AsyncClusterClient),
    (SentinelClient, AsyncSentinelClient),
    (Client, AsyncClient),
)
_DEFAULT = "redis://localhost:6379"


class Link:
    """A `Client` and an `AsyncClient` of the same settings, neither of which connects before use.

    `client` is one of ours, sync or asyncio; its twin is made beside it. Without it `url` counts,
    else REDIS_URL in the environment, else localhost; `options` are the clients' own.
    """

    def __init__(self, client: Any, url: Any, **options: Any) -> None:
        if isinstance(client, str):  # each may stand in the other's place
            client, url = None, first(client, url, of="the URLs")
        elif isinstance(url, BaseClient):
            client, url = first(client, url, of="the clients"), None
        given = client
        if client is None:
            client = Client(url or os.environ.get("REDIS_URL") or _DEFAULT, **options)
        elif url is not None or options:
            raise TypeError("give either a client, or a URL with its options")
        if not isinstance(client, BaseClient):
            raise TypeError(
                "client must be a rawredis_llm Client or AsyncClient, not"
                f" {type(client).__module__}.{type(client).__name__}; a URL does as well"
            )
        sync, aio = next(pair for pair in _TWINS if isinstance(client, pair))
        there: Any = client
        self.sync: Client = there if isinstance(there, sync) else sync.like(there)
        self.aio: AsyncClient = there if isinstance(there, aio) else aio.like(there)
        self._theirs = given

    def run(self, op: Runnable[T]) -> T:
        """Run an op now."""
        return self.sync.run(op)

    async def arun(self, op: Runnable[T]) -> T:
        """Run an op in the event loop."""
        return await self.aio.run(op)

    def close(self) -> None:
        """Close the connections of the synchronous methods, but those of a client of the user's."""
        if self.sync is not self._theirs:
            self.sync.close()

    async def aclose(self) -> None:
        """Close all connections, but those of a client of the user's."""
        self.close()
        if self.aio is not self._theirs:
            await self.aio.close()


class Linked:
    """What the drop-in classes have in common: connections, and an end to them."""

    link: Link

    def close(self) -> None:
        """Close the connections of the synchronous methods; not those of a client that was given.

        What is not closed goes with the object.
        """
        self.link.close()

    async def aclose(self) -> None:
        """Close all connections; not those of a client that was given."""
        await self.link.aclose()


def first(*values: Any, of: str) -> Any:
    """Return the one that was given of several names for the same; raise TypeError for two."""
    given = [value for value in values if value is not None]
    if len(given) > 1:
        raise TypeError(f"give only one of {of}")
    return given[0] if given else None
