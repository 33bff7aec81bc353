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
    Retriever,
    Row,
    SearchResult,
    SemanticCache,
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


async def tasks(client: AsyncClient, index: VectorIndex[AsyncClient]) -> None:
    assert_type(await client.run(Command(("STRLEN", "k"), int)), int)
    assert_type(await LLMCache(client).lookup("p"), CacheHit | None)
    assert_type(await index.search([1.0], k=3), SearchResult)
    assert_type(index.scan(), AsyncIterator[Row])
    assert_type(await VectorIndex.open(client, "docs"), VectorIndex[AsyncClient])
    assert_type(await Retriever(index, len).retrieve("q"), list[Document])
    assert_type(await VectorMemory(client, len, scope="s").clear(), int)


def planned(cache: LLMCache[Client], index: VectorIndex[AsyncClient]) -> None:
    assert_type(cache.plan.lookup("p"), Runnable[CacheHit | None])
    assert_type(index.plan.search([1.0], k=3), Runnable[SearchResult])
