"""Managed services: servers that refuse what only their owner may do, and a user with few rights.

`bare` knows no CONFIG, INFO, COMMAND, CLIENT, SELECT and the like, as on services that take such
commands away. `user` is a server on which we are somebody with the rights that the README states,
and `tls` the same one behind TLS.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

from conftest import Redis
from rawredis_llm import (
    ChatHistory,
    ChatSessions,
    Client,
    EmbeddedServer,
    EmbeddingCache,
    HashingEmbedder,
    LLMCache,
    Numeric,
    Retriever,
    Script,
    SemanticCache,
    SemanticHistory,
    SemanticRouter,
    Tag,
    Text,
    TieredCache,
    Vector,
    VectorIndex,
    VectorMemory,
    errors,
    profile,
)
from rawredis_llm.latency.live import Sample, block, sample
from rawredis_llm.protocol.commands import as_mapping, get
from rawredis_llm.search.aggregate import count, group_by, load, sort_by
from tls import TlsProxy

WITHHELD = """ACL BGREWRITEAOF BGSAVE CLIENT CLUSTER COMMAND CONFIG DEBUG FAILOVER FLUSHALL FLUSHDB
    INFO KEYS LASTSAVE LATENCY MEMORY MIGRATE MODULE MONITOR OBJECT PSYNC REPLICAOF RESTORE SAVE
    SCRIPT SELECT SHUTDOWN SLAVEOF SLOWLOG SWAPDB SYNC""".split()  # noqa: SIM905
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
_, _, SECTION = README.partition("### Managed services\n")
SECTION = re.split("\n##+ ", SECTION)[0]
EMBEDDER = HashingEmbedder(64)
TEXTS = ["museums and wine by the river", "surfing and beaches", "wine bars at night"]


def rules() -> list[str]:
    """Return the rights that the README states, as ACL SETUSER takes them."""
    (stated,) = re.findall(r"```text\nACL SETUSER app (.*?)```", SECTION, re.DOTALL)
    return str(stated).replace("\\\n", " ").split()


@pytest.fixture(scope="module")
def bare() -> Iterator[str]:
    """A real server without all that a service may withhold, and with one database."""
    extra = [word for name in WITHHELD for word in ("--rename-command", name, "")]
    with EmbeddedServer(extra=["--databases", "1", *extra]) as server:
        yield server.url


@pytest.fixture(scope="module")
def owned() -> Iterator[EmbeddedServer]:
    """A real server whose owner is not us."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture(scope="module")
def owner(owned: EmbeddedServer) -> Iterator[Client]:
    """One who may do everything."""
    with Client(owned.url) as owner:
        owner.call("ACL", "SETUSER", "app", "reset", *rules())
        yield owner


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """What a TLS server needs, and the file of the authority that a client trusts."""
    authority = trustme.CA()
    file = tmp_path_factory.mktemp("papers") / "ca.pem"
    authority.cert_pem.write_to_path(file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context, file


@pytest.fixture(scope="module")
def tls(owned: EmbeddedServer, papers: tuple[ssl.SSLContext, Path]) -> Iterator[str]:
    """The address of that server behind TLS."""
    context, file = papers
    with TlsProxy(owned.url, context) as proxy:
        yield f"rediss://localhost:{proxy.port}?tls_ca_cert_file={file}"


@pytest.fixture(params=["bare", "user", "tls"])
def place(request: pytest.FixtureRequest, owner: Client, owned: EmbeddedServer) -> dict[str, Any]:
    """Return what a client of each kind of service is told; nothing is stored there."""
    owner.call("ACL", "LOG", "RESET")
    if request.param == "bare":
        url = request.getfixturevalue("bare")
        with Client(url) as anybody:
            tidy(anybody)
        return {"url": url}
    tidy(owner)
    url = owned.url if request.param == "user" else request.getfixturevalue("tls")
    return {"url": url, "username": "app", "password": "secret"}


def tidy(client: Client) -> None:
    """Delete everything, without FLUSHALL."""
    for index in client.call("FT._LIST"):
        client.call("FT.DROPINDEX", index)
    for key in list(client.scan()):
        client.call("UNLINK", key)


@pytest.fixture
def client(redis: Redis, place: dict[str, Any], owner: Client) -> Iterator[Any]:
    """A client of a service; what it was refused is nothing that it needs."""
    yield redis.connect(**place, client_name="me")
    assert refused(owner) <= HARMLESS


def refused(owner: Client) -> set[bytes]:
    """Return what somebody was not allowed to do, or not on these keys, since the test began."""
    return {as_mapping(entry)[b"object"].lower() for entry in owner.call("ACL", "LOG", 100)}


# What a user with few rights is refused, and no harm is done by it.
HARMLESS = {b"client|setinfo", b"info", b"command|info", b"latency|histogram", b"slowlog|get"}


def every(redis: Redis, iterator: Any) -> list[Any]:
    """Return all that an iterator of either colour gives."""

    async def collect() -> list[Any]:
        return [item async for item in iterator]

    return list(iterator) if redis.kind == "sync" else redis.do(collect())


# -- what the server says, and does not --------------------------------------------------------


def test_it_is_known_what_the_server_can_do(redis: Redis, client: Any) -> None:
    told = redis.do(redis.client.server_info)
    assert redis.do(client.server_info) == told
    assert told.search


def test_a_name_is_given_and_no_database_is_selected(
    redis: Redis, client: Any, place: dict[str, Any], owner: Client
) -> None:
    url = f"{place['url']}{'&' if '?' in place['url'] else '?'}db=0"
    named = redis.connect(**{**place, "url": url}, client_name="ada")
    assert redis.do(named.pipeline([("PING",), ("PING",)])) == [b"PONG"] * 2
    if "username" in place:
        assert b" name=ada " in owner.call("CLIENT", "LIST")
        assert b"select" not in refused(owner)
    with pytest.raises(ValueError, match="SELECT"):
        redis.do(client.call("SELECT", 0))


def test_what_is_withheld_is_an_error_that_says_so(
    redis: Redis, client: Any, place: dict[str, Any], owner: Client
) -> None:
    kind = errors.NoPermissionError if "username" in place else errors.ReplyError
    for call in (("CONFIG", "GET", "save"), ("KEYS", "*"), ("FLUSHALL",)):
        with pytest.raises(kind) as caught:
            redis.do(client.call(*call))
        assert type(caught.value) is kind
    owner.call("ACL", "LOG", "RESET")


def test_a_profile_says_what_was_withheld(redis: Redis, client: Any) -> None:
    profiling = profile(client)
    if redis.kind == "sync":
        with profiling:
            client.call("SET", "app:k", "v")
    else:

        async def inside() -> None:
            async with profiling:
                await client.call("SET", "app:k", "v")

        redis.do(inside())
    report = profiling.report()
    assert report.commands["SET"].count == 1
    assert report.server is not None
    assert report.server.commands == {}
    assert len(report.server.missing) == 5
    assert "commandstats" in profiling.table()


def test_top_says_what_was_withheld(redis: Redis, client: Any) -> None:
    samples = [Sample(at, *redis.do(client.run(sample()))) for at in (1.0, 2.0)]
    assert "not told: INFO commandstats" in block(*samples)


# -- the library underneath --------------------------------------------------------------------


def test_calls_pipelines_transactions_and_scripts(redis: Redis, client: Any) -> None:
    run = redis.do
    assert run(client.pipeline([("SET", "app:n", 1), ("INCR", "app:n")])) == [b"OK", 2]
    assert run(client.transaction([("INCR", "app:n"), ("INCR", "app:n")])) == [3, 4]

    def double() -> Any:
        value = yield from get("app:n")
        return [("SET", "app:n", int(value or 0) * 2)]

    assert run(client.transaction(double, watch=["app:n"])) == [b"OK"]
    add = Script(f"return redis.call('INCRBY', KEYS[1], ARGV[1]) -- {redis.kind}{redis.protocol}")
    assert run(client.run(add(["app:n"], [2]))) == 10  # by EVAL
    assert run(client.run(add(["app:n"], [2]))) == 12  # by EVALSHA
    assert run(client.pipeline([add(["app:n"], [1]), ("GET", "app:n")])) == [13, b"13"]
    assert every(redis, client.scan("app:*")) == [b"app:n"]


def test_every_write_can_be_proven(redis: Redis, place: dict[str, Any], client: Any) -> None:
    proving = redis.connect(**place, integrity="echo")
    assert redis.do(proving.call("SET", "app:k", "v")) == b"OK"
    assert redis.do(client.call("GET", "app:k")) == b"v"


def test_messages_arrive(redis: Redis, client: Any) -> None:
    news = redis.do(client.subscribe("app:news"))
    both = redis.do(client.subscribe("app:*", pattern=True))
    assert redis.do(client.call("PUBLISH", "app:news", "hello")) == 2
    assert redis.do(news.get(timeout=5)).data == b"hello"
    assert redis.do(both.get(timeout=5)).pattern == b"app:*"
    for subscription in (news, both):
        redis.do(subscription.close())


# -- what an application keeps -----------------------------------------------------------------


def test_an_exact_cache(redis: Redis, client: Any) -> None:
    run = redis.do
    cache = LLMCache(client, namespace="app:llm", ttl=60, refresh="on_hit", on_error="raise")
    run(cache.store("Why?", "Because.", "m", sources=["doc"]))
    assert run(cache.lookup("Why?", "m")).response == "Because."
    assert run(cache.get_or_compute("How?", lambda prompt: f"Like {prompt}", "m")) == "Like How?"
    assert run(cache.delete_source("doc")) == 1
    assert run(cache.stats()).exact == 1
    assert run(cache.clear()) == 1


def test_a_semantic_cache_and_both_tiers(redis: Redis, client: Any) -> None:
    run = redis.do
    semantic = SemanticCache(
        client,
        EmbeddingCache(client, EMBEDDER, namespace="app:embedding"),
        namespace="app:near",
        max_distance=0.4,
        fields=[Tag("lang")],
        max_entries=10,
        on_error="raise",
    )
    english = Tag("lang") == "en"
    question = "How do I reset my password?"
    run(semantic.store(question, "Settings.", "m", fields={"lang": "en"}, sources=["doc"]))
    near = "How can I reset my password?"
    assert run(semantic.lookup(near, "m", filter=english)).response == "Settings."
    assert run(semantic.lookup(near, "another")) is None
    assert len(run(semantic.explain(near, "m")).nearest) == 1
    exact = LLMCache(client, namespace="app:llm", on_error="raise")
    assert run(TieredCache(exact, semantic).lookup(near, "m")).response == "Settings."
    assert run(semantic.delete_where(english, dry_run=True)) == 1
    assert run(semantic.delete_source("doc")) == 1
    assert run(semantic.stats()).semantic == 2
    assert run(semantic.clear()) == 0


def trips(client: Any) -> Any:
    """Return an index of the fields that the tests need."""
    fields = [Text("text"), Tag("city"), Numeric("year", sortable=True), Vector("vector", 64)]
    return VectorIndex(client, "app:trips", fields, prefix="app:trips:", embedder=EMBEDDER)


def test_an_index_and_its_retriever(redis: Redis, client: Any) -> None:
    run, index = redis.do, trips(client)
    run(index.create())
    columns = {"text": TEXTS, "city": ["Paris", "Lisbon", "Paris"], "year": [2019, 2021, 2023]}
    assert run(index.load(["a", "b", "c"], EMBEDDER(TEXTS), columns)) == 3
    run(index.wait_until_indexed())
    run(index.check())
    wine = EMBEDDER(["wine"])[0]
    paris = Tag("city") == "Paris"
    later = paris & (Numeric("year") > 2020)
    assert [row.id for row in run(index.search(wine, k=5, filter=later)).rows] == ["c"]
    assert run(index.range(wine, 2.0, filter=paris)).total == 2
    assert [row.id for row in run(index.text("surfing")).rows] == ["b"]
    assert len(run(index.hybrid("wine", wine, k=2)).rows) == 2
    assert len(run(index.mmr(wine, k=2)).rows) == 2
    assert sorted(row.id for row in every(redis, index.scan(paris))) == ["a", "c"]
    assert run(index.update(["a"], {"city": ["Rome"]})) == 1
    assert run(index.count(paris)) == 1
    for kind in ("similarity", "hybrid", "mmr"):
        retriever = Retriever(index, EMBEDDER, k=1, search_type=kind)
        assert run(retriever.retrieve(TEXTS[1]))[0].id == "b"
    assert run(index.delete_where(paris)) == 1
    by_city = run(index.aggregate(group_by("city", trips=count()), sort_by("city")))
    assert by_city.rows == [{"city": "Lisbon", "trips": 1}, {"city": "Rome", "trips": 1}]
    run(index.drop(delete_documents=True))
    assert run(index.exists()) is False


@pytest.mark.parametrize("place", ["user"], indirect=True)
def test_an_index_that_is_read_by_cursors(redis: Redis, client: Any) -> None:
    index, number = trips(client), 1100
    redis.do(index.create())
    vectors = np.random.default_rng(5).random((number, 64), np.float32)
    redis.do(index.load([str(i) for i in range(number)], vectors))
    assert len({row.id for row in every(redis, index.scan())}) == number
    assert len(redis.do(index.aggregate(load("__key"))).rows) == number


def test_histories_and_sessions(redis: Redis, client: Any) -> None:
    run = redis.do
    chat = ChatHistory(client, "s", namespace="app:chat", ttl=60, max_messages=10)
    ids = run(chat.add_many([{"role": "user", "content": text} for text in TEXTS]))
    assert run(chat.edit(ids[0], "museums")) is True
    assert [message.content for message in run(chat.messages(last=3))] == ["museums", *TEXTS[1:]]
    draft = run(chat.fork("draft"))
    assert (run(draft.truncate(last=1)), run(draft.count())) == (2, 1)
    sessions = ChatSessions(client, "app:chat")
    assert sorted(one.session for one in run(sessions.list())) == ["draft", "s"]
    assert run(sessions.delete(idle=3600)) == 0
    assert run(chat.clear()) is True
    said = SemanticHistory(client, EMBEDDER, "s", namespace="app:said")
    run(said.add_many([{"role": "user", "content": text} for text in TEXTS]))
    assert run(said.search("surfing beaches", k=1))[0].message.content == TEXTS[1]


def test_memory_and_router(redis: Redis, client: Any) -> None:
    run = redis.do
    numbers = [Numeric("created"), Numeric("importance")]
    fields = [Tag("scope", case_sensitive=True), *numbers, Vector("vector", 64)]
    index = VectorIndex(client, "app:memory", fields, prefix="app:memory:")
    run(index.create())
    memory = VectorMemory(index, EMBEDDER, scope="ada", capacity=10)
    run(memory.save("I am allergic to peanuts", "Noted."))
    [turn] = run(memory.load("allergic reactions"))
    assert turn.metadata["outputs"] == {"output": "Noted."}
    assert run(memory.clear()) == 1
    router = SemanticRouter(client, EMBEDDER, namespace="app:router", max_distance=0.8)
    run(router.add("trip", TEXTS))
    assert run(router.route("museums and wine by the river")).name == "trip"


@pytest.fixture
def writer(redis: Redis, owner: Client, owned: EmbeddedServer) -> Any:
    """A client that may create no index."""
    owner.call("ACL", "SETUSER", "writer", "reset", *rules(), "-ft.create", "-ft.dropindex")
    return redis.connect(url=owned.url, username="writer", password="secret")


@pytest.mark.parametrize("place", ["user"], indirect=True)
def test_an_index_may_be_what_somebody_else_creates(
    redis: Redis, writer: Any, client: Any, owner: Client
) -> None:
    run = redis.do

    def history(of: Any) -> Any:
        return SemanticHistory(of, EMBEDDER, "s", namespace="app:said")

    def cache(of: Any) -> Any:
        return SemanticCache(of, EMBEDDER, namespace="app:near", max_distance=0.4)

    message = {"role": "user", "content": TEXTS[1]}
    with pytest.raises(errors.NoPermissionError):
        run(history(writer).add_many([message]))
    with pytest.raises(errors.NoPermissionError):
        run(cache(writer).store("Why?", "Because."))
    run(history(client).add_many([{"role": "user", "content": TEXTS[0]}]))
    run(cache(client).store(TEXTS[0], "yes"))
    said = history(writer)
    run(said.add_many([message]))
    assert run(said.search("surfing beaches", k=1))[0].message.content == TEXTS[1]
    run(cache(writer).store(TEXTS[1], "no"))
    assert run(cache(writer).lookup("surfing and beach")).response == "no"
    other = SemanticHistory(writer, HashingEmbedder(32), "s", namespace="app:said")
    with pytest.raises(errors.IndexMismatchError):
        run(other.add_many([message]))
    assert refused(owner) == {b"ft.create", b"client|setinfo"}
    owner.call("ACL", "LOG", "RESET")


# -- credentials that change -------------------------------------------------------------------


@pytest.mark.parametrize("place", ["user", "tls"], indirect=True)
def test_credentials_are_exchanged_while_the_client_lives(
    redis: Redis, place: dict[str, Any], owner: Client
) -> None:
    vault = ["secret"]
    client = redis.connect(url=place["url"], credentials=lambda: ("app", vault[0]))
    cache = LLMCache(client, namespace="app:llm", on_error="raise")
    redis.do(cache.store("Why?", "Because."))
    owner.call("ACL", "SETUSER", "app", "<secret", ">next")
    try:
        assert redis.do(cache.lookup("Why?")).response == "Because."  # the connection is open
        vault[0] = "next"
        redis.do(client.reauthenticate())
        assert redis.do(cache.lookup("Why?")).response == "Because."
        assert client.connections.dropped == {"reauthenticated": 1}
        owner.call("CLIENT", "KILL", "USER", "app")  # as where a token has expired
        assert redis.do(cache.lookup("Why?")).response == "Because."
        assert redis.do(cache.clear()) == 1
    finally:
        owner.call("ACL", "SETUSER", "app", "<next", ">secret")
