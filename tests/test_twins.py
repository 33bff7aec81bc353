"""Objects and clients of one colour that stand beside those of the other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rawredis_llm import (
    AsyncClient,
    ChatHistory,
    Client,
    EmbeddedServer,
    HashingEmbedder,
    LLMCache,
    SemanticHistory,
)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_like_another_has_all_its_settings(server: EmbeddedServer, kind: Any) -> None:
    seen: list[Any] = []

    class Seeing:
        def exchange(self, what: Any, *_: Any) -> None:
            seen.append(what[0])

        def connection(self, event: str) -> None:
            pass

    given = kind(server.url, timeout=3.0, client_name="me", protocol=2, observer=Seeing())

    async def name(client: AsyncClient) -> Any:
        async with client:
            return await client.call("CLIENT", "GETNAME")

    asynchronous = AsyncClient.like(given)
    assert asyncio.run(name(asynchronous)) == b"me"
    with Client.like(given) as synchronous:
        assert synchronous.call("CLIENT", "GETNAME") == b"me"
        assert synchronous.call("HGETALL", "nothing") == []  # RESP2 has no maps
    assert seen == ["CLIENT", "CLIENT", "HGETALL"]
    assert (
        repr(given).split()[1:] == repr(synchronous).split()[1:] == repr(asynchronous).split()[1:]
    )


def test_an_object_works_with_a_client_of_the_other_colour(client: Client) -> None:
    history = SemanticHistory(client, HashingEmbedder(64), "s")
    cache = LLMCache(client)
    cache.store("p", "r")

    async def use() -> list[Any]:
        async with AsyncClient.like(client) as other:
            twin: SemanticHistory[AsyncClient] = history.bound_to(other)
            assert twin.history.client is other
            await twin.add("user", "a word to find")
            await twin.history.add("user", "and another")
            hit = await cache.bound_to(other).lookup("p")
            return [len(await twin.search("a word to find", 1)), hit.response]

    assert asyncio.run(use()) == [1, "r"]
    assert history.client is client
    assert history.history.client is client
    assert history.history.count() == 2
    with pytest.raises(TypeError, match="client"):
        ChatHistory(client, "s").bound_to("redis://")


def test_what_is_nested_too_deeply_is_refused_by_name(client: Client) -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="message"):
        ChatHistory(client, "s").add("user", deep)
    assert client.call("DBSIZE") == 0
