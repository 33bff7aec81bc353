"""What both type checkers must see; never run: a wrong type is an error of mypy and pyright."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from rawredis_llm import (
    AsyncClient,
    CacheHit,
    ChatHistory,
    Client,
    Command,
    Document,
    LLMCache,
    Message,
    Recalled,
    Retriever,
    Route,
    Routing,
    Row,
    SearchResult,
    SemanticCache,
    SemanticHistory,
    SemanticRouter,
    Tag,
    VectorIndex,
    VectorMemory,
)
from rawredis_llm.protocol.operation import Runnable
from rawredis_llm.vector_index import AggregateResult, Explanation

if TYPE_CHECKING:
    from typing_extensions import assert_type  # noqa: TC004 - never run


def sync(client: Client, index: VectorIndex[Client]) -> None:
    assert_type(client.run(Command(("STRLEN", "k"), int)), int)
    assert_type(LLMCache(client).lookup("p"), CacheHit | None)
    assert_type(SemanticCache(client, len).store("p", "r"), str)
    assert_type(index.search([1.0], k=3, ef_runtime=20, timeout=0.1), SearchResult)
    assert_type(index.search_many([[1.0]], k=3), list[SearchResult])
    assert_type(index.aggregate(), AggregateResult)
    assert_type(index.explain([1.0]), Explanation)
    assert_type(index.scan(), Iterator[Row])
    assert_type(VectorIndex.open(client, "docs"), VectorIndex[Client])
    assert_type(VectorIndex.from_dict(client, {}).get(["1"]), list[Row | None])
    assert_type(Retriever(index, len).retrieve("q"), list[Document])
    assert_type(ChatHistory(client, "s").messages(last=3), list[Message])
    assert_type(VectorMemory(client, len, scope="s").load("q"), list[Document])
    assert_type(VectorMemory(index, len, scope="s").clear(), int)
    assert_type(VectorMemory(index, len, scope="s", ttl=1.5).forget(Tag("a") == "b"), int)
    assert_type(VectorMemory(client, len, scope="s").save("i", {"o": 1}, importance=1), str)
    history = SemanticHistory(client, len, "s", half_life=60)
    assert_type(history, SemanticHistory[Client])
    assert_type(history.history, ChatHistory[Client])
    assert_type(history.search("q", roles=("user",), neighbours=1), list[Recalled])
    assert_type(history.add("user", "x", name="n"), str)
    assert_type(history.add_many([Message("user", "x"), {"role": "user"}]), list[str])
    assert_type(history.edit("1-1", ["x"]), bool)
    assert_type(history.index(), int)
    router = SemanticRouter(client, len)
    assert_type(router.route("t"), Routing)
    assert_type(router.route("t").name, str | None)
    assert_type(router.routes(), list[Route])
    assert_type(router.add("r", ("x",), max_distance=0), int)


async def tasks(client: AsyncClient, index: VectorIndex[AsyncClient]) -> None:
    assert_type(await client.run(Command(("STRLEN", "k"), int)), int)
    assert_type(await LLMCache(client).lookup("p"), CacheHit | None)
    assert_type(await index.search([1.0], k=3), SearchResult)
    assert_type(index.scan(), AsyncIterator[Row])
    assert_type(await VectorIndex.open(client, "docs"), VectorIndex[AsyncClient])
    assert_type(await Retriever(index, len).retrieve("q"), list[Document])
    assert_type(await VectorMemory(client, len, scope="s").clear(), int)
    assert_type(await VectorMemory(index, len, scope="s").load("q", 3), list[Document])
    history = SemanticHistory(client, len, "s")
    assert_type(await history.search("q"), list[Recalled])
    assert_type(await history.add_many([]), list[str])
    assert_type(await history.history.messages(), list[Message])
    assert_type(await SemanticRouter(client, len).route("t", vector=[1.0]), Routing)
    assert_type(await SemanticRouter(client, len).remove("r", ["x"]), int)


def planned(
    cache: LLMCache[Client], index: VectorIndex[AsyncClient], history: SemanticHistory[Client]
) -> None:
    assert_type(cache.plan.lookup("p"), Runnable[CacheHit | None])
    assert_type(index.plan.search([1.0], k=3), Runnable[SearchResult])
    assert_type(history.plan.search("q"), Runnable[list[Recalled]])
    assert_type(history.plan.history.count(), Runnable[int])
    assert_type(SemanticRouter(index.client, len).plan.route("t"), Runnable[Routing])
    assert_type(VectorMemory(index, len, scope="s").plan.save("i", "o"), Runnable[str])
