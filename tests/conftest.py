"""A real server for the tests, and one behaviour suite in four colours.

`redis` gives each test a client that is sync or asyncio and speaks RESP2 or RESP3; `redis.do(...)`
is the result of a call either way, so that a behaviour is written once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from clusters import Cluster
from rawredis_llm import AsyncClient, AsyncClusterClient, Client, ClusterClient, EmbeddedServer

# How long an example takes says nothing here, on a machine that others use too.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """A real Redis with search, for the whole run."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture(scope="session")
def plain_server() -> Iterator[EmbeddedServer]:
    """A real Redis without a search module."""
    with EmbeddedServer(search=False) as server:
        yield server


class Redis:
    """A client of one colour and protocol on an empty database."""

    makers: tuple[Any, Any] = Client, AsyncClient

    def __init__(self, url: Any, kind: str, protocol: int) -> None:
        self.url = url
        self.kind = kind
        self.protocol = protocol
        self._loop = asyncio.new_event_loop() if kind == "aio" else None
        self._clients: list[Any] = []
        self.client = self.connect()

    def connect(self, **options: Any) -> Any:
        """Return another client of the same kind, to the same server unless `url` is given."""
        maker = self.makers[bool(self._loop)]
        client = maker(options.pop("url", self.url), **{"protocol": self.protocol, **options})
        self._clients.append(client)
        return client

    def do(self, result: Any) -> Any:
        """Return the result of a call: as it is, or awaited."""
        return self._loop.run_until_complete(result) if self._loop else result

    def close(self) -> None:
        """Close every client that was made."""
        for client in self._clients:
            self.do(client.close())
        if self._loop:
            self._loop.close()


@pytest.fixture(params=["sync-2", "sync-3", "aio-2", "aio-3"])
def redis(request: pytest.FixtureRequest, server: EmbeddedServer) -> Iterator[Redis]:
    """A client on an empty database, once for each colour and protocol."""
    kind, _, protocol = request.param.partition("-")
    redis = Redis(server.url, kind, int(protocol))
    redis.do(redis.client.call("FLUSHALL"))
    yield redis
    redis.close()


class ClusterRedis(Redis):
    """A client of a cluster, of one colour and protocol."""

    makers = ClusterClient, AsyncClusterClient
    cluster: Cluster


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three primaries with a replica each, and a search module without a coordinator.

    Who moves slots or ends nodes has one of its own.
    """
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), replicas=1, search=True)
    yield cluster
    cluster.stop()


@pytest.fixture(params=["sync-2", "sync-3", "aio-2", "aio-3"])
def cluster(request: pytest.FixtureRequest, shared_cluster: Cluster) -> Iterator[ClusterRedis]:
    """A client on an empty cluster, once for each colour and protocol."""
    kind, _, protocol = request.param.partition("-")
    shared_cluster.flush()
    redis = ClusterRedis(shared_cluster.urls[0], kind, int(protocol))
    redis.cluster = shared_cluster
    yield redis
    redis.close()


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[Client]:
    """A sync RESP3 client on an empty database, where the colour does not matter."""
    with Client(server.url) as client:
        client.call("FLUSHALL")
        yield client


@pytest.fixture(params=["search", "plain"])
def url(
    request: pytest.FixtureRequest, server: EmbeddedServer, plain_server: EmbeddedServer
) -> str:
    """Return the address of an empty server, with and without a search module."""
    url = server.url if request.param == "search" else plain_server.url
    with Client(url) as client:
        client.call("FLUSHALL")
    return url


@pytest.fixture
async def kept() -> Any:
    """Give what is opened an end, in the loop of the test: `kept(RedisCache(url))`."""
    opened: list[Any] = []

    def keep(one: Any) -> Any:
        opened.append(one)
        return one

    yield keep
    for one in opened:
        await one.aclose()


@pytest.fixture
async def stores(server: EmbeddedServer, client: Client) -> Any:
    """Make LangChain's vector stores on an empty server."""
    from stores import Stores

    assert client.call("DBSIZE") == 0
    stores = Stores(server.url)
    yield stores
    await stores.aclose()


class Clock:
    """What time clients think it is; servers know better."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_700_000_000.0
        for module in ("rawredis_llm.sync.client", "rawredis_llm.aio.client"):
            monkeypatch.setattr(f"{module}.time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands until the test sets it."""
    return Clock(monkeypatch)


@pytest.fixture
def scripted() -> Iterator[Any]:
    """Make servers that answer by scripts: see `test_faults`, which needs what is here."""
    from test_faults import Scripted

    made: list[Scripted] = []

    def make(*scripts: Any) -> Scripted:
        made.append(Scripted(*scripts))
        return made[-1]

    yield make
    for server in made:
        server.close()
