"""Streams of chat models through a cache: replayed whole, shared with invoke, stored when ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel, FakeListChatModel, FakeListLLM
from langchain_core.language_models.fake_chat_models import (
    FakeListChatModelError,
    FakeMessagesListChatModel,
)
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate

from rawredis_llm import Client, EmbeddedServer, HashingEmbedder
from rawredis_llm.langchain import RedisCache, RedisSemanticCache, cached_stream

NOBODY = "redis://127.0.0.1:1/0"
"""An address where no server listens."""


Keep = Callable[[Any], Any]


@pytest.fixture
def cache(server: EmbeddedServer, client: Client, kept: Keep) -> RedisCache:
    assert client.call("DBSIZE") == 0
    return kept(RedisCache(redis_url=server.url))  # type: ignore[no-any-return]


def counting(cache: Any = None, **options: Any) -> FakeListChatModel:
    """Return a model whose answer tells how often it was asked."""
    return FakeListChatModel(responses=[f"answer {i}" for i in range(50)], cache=cache, **options)


async def streamed(model: Any, asked: Any, colour: str, **options: Any) -> list[Any]:
    """Return all chunks of a stream of either colour."""
    if colour == "sync":
        return list(model.stream(asked, **options))
    return [chunk async for chunk in model.astream(asked, **options)]


def joined(chunks: list[Any]) -> Any:
    """Return what chunks make together."""
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    return whole


def text(chunks: list[Any]) -> str:
    return "".join(str(chunk.content) for chunk in chunks)


class Scripted(BaseChatModel):
    """Streams given chunks, and counts how often it was asked."""

    script: list[Any]
    asked: list[int] = []  # noqa: RUF012 - pydantic copies it

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=tools, **kwargs)

    def _generate(self, messages: list[BaseMessage], *_: Any, **kwargs: Any) -> ChatResult:
        whole = joined(list(self._stream(messages, **kwargs))).message
        data = whole.model_dump(exclude={"type", "tool_call_chunks", "chunk_position"})
        return ChatResult(generations=[ChatGeneration(message=AIMessage(**data))])

    def _stream(self, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        self.asked.append(1)
        for chunk in self.script:
            yield ChatGenerationChunk(message=chunk.model_copy(deep=True))


PIECES: Any = [
    {"name": "f", "args": '{"a": ', "id": "c1", "index": 0, "type": "tool_call_chunk"},
    {"name": None, "args": '[1, "é"]}', "id": None, "index": 0, "type": "tool_call_chunk"},
    {"name": "g", "args": "{}", "id": "c2", "index": 1, "type": "tool_call_chunk"},
]
DAMAGED: Any = {**PIECES[0], "args": "no JSON"}
USAGE: Any = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
SCRIPTS: dict[str, list[AIMessageChunk]] = {
    "text": [AIMessageChunk(content=one) for one in ("hel", "", "lo ", "é日本🦜")],
    "one chunk": [AIMessageChunk(content="hello")],
    "nothing said": [AIMessageChunk(content="")],
    "tool calls": [AIMessageChunk(content="", tool_call_chunks=[piece]) for piece in PIECES],
    "damaged calls": [AIMessageChunk(content="", tool_call_chunks=[DAMAGED])],
    "usage": [
        AIMessageChunk(content="a", usage_metadata=USAGE),
        AIMessageChunk(content="b", usage_metadata=USAGE, response_metadata={"model_name": "m"}),
    ],
    "parts": [
        AIMessageChunk(content=[{"type": "text", "text": one, "index": 0}]) for one in ("hel", "lo")
    ],
    "additional": [
        AIMessageChunk(content="", additional_kwargs={"refusal": one}) for one in ("n", "o")
    ],
    "ended": [AIMessageChunk(content="a"), AIMessageChunk(content="b", chunk_position="last")],
}


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
async def test_a_replay_makes_what_was_streamed(
    cache: RedisCache, script: list[AIMessageChunk], colour: str
) -> None:
    model = Scripted(script=script, cache=cache)
    first = await streamed(cached_stream(model), "hello", colour)
    assert [chunk.content for chunk in first][: len(script)] == [one.content for one in script]
    for again in ("sync", "async"):
        found = await streamed(cached_stream(model), "hello", again)
        assert all(isinstance(chunk, AIMessageChunk) for chunk in found)
        one, two = joined(first), joined(found)
        for name in (
            "content",
            "tool_calls",
            "invalid_tool_calls",
            "usage_metadata",
            "response_metadata",
            "additional_kwargs",
            "id",
        ):
            assert getattr(two, name) == getattr(one, name), name
        assert found[-1].chunk_position == "last"
    assert len(model.asked) == 1


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
async def test_what_was_streamed_is_invoked_and_the_reverse(
    cache: RedisCache, script: list[AIMessageChunk], colour: str
) -> None:
    model = Scripted(script=script, cache=cache)
    stream = cached_stream(model)
    for first in ("stream", "invoke"):
        cache.clear()
        model.asked.clear()
        invoked: Any = model.invoke("hello") if first == "invoke" else None
        whole = joined(await streamed(stream, "hello", colour))
        if first == "stream":
            invoked = await model.ainvoke("hello")
        assert len(model.asked) == 1
        assert type(invoked) is AIMessage
        assert (whole.content, whole.tool_calls) == (invoked.content, invoked.tool_calls)
        assert whole.invalid_tool_calls == invoked.invalid_tool_calls
        assert stream.invoke("hello").content == (await stream.ainvoke("hello")).content
        assert len(model.asked) == 1


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_chunks_come_while_the_model_still_speaks(cache: RedisCache, colour: str) -> None:
    said: list[str] = []

    class Speaking(FakeListChatModel):
        def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
            for chunk in super()._stream(*args, **kwargs):
                said.append(str(chunk.message.content))
                yield chunk

        async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
            async for chunk in super()._astream(*args, **kwargs):
                said.append(str(chunk.message.content))
                yield chunk

    model = cached_stream(Speaking(responses=["hello"], cache=cache))
    heard: list[str] = []
    if colour == "sync":
        for chunk in model.stream("x"):
            heard.append(chunk.content)
            assert said == heard
    else:
        async for chunk in model.astream("x"):
            heard.append(chunk.content)
            assert said == heard
    assert "".join(heard) == "hello"


# -- what is not stored --------------------------------------------------------------------------


async def test_a_stream_left_early_is_not_stored(cache: RedisCache) -> None:
    model = cached_stream(counting(cache))
    left: Any = model.stream("hello")
    assert next(left).content == "a"
    left.close()
    awaited: Any = model.astream("hello")
    assert (await anext(awaited)).content == "a"
    await awaited.aclose()
    assert text(list(model.stream("hello"))) == "answer 2"
    assert text(list(model.stream("hello"))) == "answer 2"


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_a_stream_that_fails_is_not_stored(cache: RedisCache, colour: str) -> None:
    model = counting(cache, error_on_chunk_number=3)
    with pytest.raises(FakeListChatModelError):
        await streamed(cached_stream(model), "hello", colour)
    model.error_on_chunk_number = None
    assert text(await streamed(cached_stream(model), "hello", colour)) == "answer 1"
    assert text(await streamed(cached_stream(model), "hello", colour)) == "answer 1"


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_a_model_that_is_not_to_be_cached_is_not(cache: RedisCache, colour: str) -> None:
    set_llm_cache(cache)
    try:
        for model in (
            cached_stream(counting(cache=False)),
            cached_stream(counting(cache=False), cache),
        ):
            assert text(await streamed(model, "hello", colour)) == "answer 0"
            assert text(await streamed(model, "hello", colour)) == "answer 1"
    finally:
        set_llm_cache(None)
    uncached = cached_stream(counting())  # no cache is set
    assert text(await streamed(uncached, "hello", colour)) == "answer 0"
    assert text(await streamed(uncached, "hello", colour)) == "answer 1"


# -- which cache, which question -----------------------------------------------------------------


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_the_default_cache_is_looked_up_when_it_is_needed(
    cache: RedisCache, colour: str
) -> None:
    model = counting()
    stream = cached_stream(model)
    set_llm_cache(cache)
    try:
        assert text(await streamed(stream, "hello", colour)) == "answer 0"
        assert text(await streamed(stream, "hello", colour)) == "answer 0"
        assert model.invoke("hello").content == "answer 0"
    finally:
        set_llm_cache(None)
    assert text(await streamed(stream, "hello", colour)) == "answer 1"


async def test_a_cache_of_its_own_serves_streams(cache: RedisCache) -> None:
    stream = cached_stream(counting(), cache)
    assert text(await streamed(stream, "hello", "sync")) == "answer 0"
    assert text(await streamed(stream, "hello", "async")) == "answer 0"


async def test_a_cache_of_its_own_serves_whole_answers_too(cache: RedisCache) -> None:
    stream = cached_stream(counting(), cache)
    assert text(await streamed(stream, "hello", "sync")) == "answer 0"
    assert stream.invoke("hello").content == "answer 0"
    assert (await stream.ainvoke("hello")).content == "answer 0"


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_bound_arguments_are_part_of_the_question(cache: RedisCache, colour: str) -> None:
    model = counting(cache)
    bound = [
        model,
        model.bind(stop=["x"]),
        model.bind(stop=["y"]),
        model.bind(tools=[{"name": "f"}]),
        model.bind(tools=[{"name": "g"}]),
        model.bind(tools=[{"name": "g"}]).bind(stop=["x"]),
    ]
    for at, one in enumerate(bound):
        assert text(await streamed(cached_stream(one), "hello", colour)) == f"answer {at}"
    for at, one in enumerate(bound):
        assert text(await streamed(cached_stream(one), "hello", colour)) == f"answer {at}"
        assert one.invoke("hello").content == f"answer {at}"
    assert text(await streamed(cached_stream(model), "hello", colour, stop=["y"])) == "answer 2"
    assert text(await streamed(cached_stream(bound[1]), "hello", colour, stop=["y"])) == "answer 2"
    named = model.with_config(tags=["a"], run_name="b")
    assert text(await streamed(cached_stream(named), "hello", colour)) == "answer 0"
    assert (
        text(await streamed(cached_stream(model).bind(stop=["x"]), "hello", colour)) == "answer 1"
    )


async def test_a_model_with_tools_replays_its_calls(cache: RedisCache) -> None:
    model = Scripted(script=SCRIPTS["tool calls"], cache=cache)
    tools = [{"name": "f", "description": "d", "parameters": {}}]
    stream = cached_stream(model.bind_tools(tools))
    for _ in range(2):
        whole = joined(await streamed(stream, "hello", "async"))
        assert [(call["name"], call["args"]) for call in whole.tool_calls] == [
            ("f", {"a": [1, "é"]}),
            ("g", {}),
        ]
    assert len(model.asked) == 1


ASKED: dict[str, Any] = {
    "a text": "hello",
    "messages": [SystemMessage("be short"), HumanMessage("hello", id="h1")],
    "pairs": [("system", "be short"), ("human", "hello")],
    "a prompt": ChatPromptTemplate.from_messages([("human", "hello {x}")]).invoke({"x": "you"}),
    "an image": [HumanMessage([{"type": "image_url", "image_url": {"url": "http://x/y.png"}}])],
}
IMAGE: Any = {"type": "image", "source_type": "base64", "data": "AAAA", "mime_type": "image/png"}
NORMALISED = {"an older image": [HumanMessage([IMAGE])]}
KINDS = [
    *(pytest.param(one, id=name) for name, one in ASKED.items()),
    *(pytest.param(one, id=name) for name, one in NORMALISED.items()),
]


@pytest.mark.parametrize("asked", KINDS)
async def test_whatever_is_asked_is_the_same_question_as_invokes(
    cache: RedisCache, asked: Any
) -> None:
    model = counting(cache)
    assert model.invoke(asked).content == "answer 0"
    for colour in ("sync", "async"):
        assert text(await streamed(cached_stream(model), asked, colour)) == "answer 0"


async def test_how_a_trace_describes_the_output_is_no_part_of_the_question(
    cache: RedisCache,
) -> None:
    described: Any = {"kwargs": {"method": "json_mode"}, "schema": {"title": "a"}}
    model = counting(cache).bind(ls_structured_output_format=described)
    assert model.invoke("hello").content == "answer 0"
    assert text(await streamed(cached_stream(model), "hello", "sync")) == "answer 0"


async def test_a_model_that_does_not_stream_is_replayed_too(cache: RedisCache) -> None:
    model = FakeMessagesListChatModel(responses=[AIMessage("one"), AIMessage("two")], cache=cache)
    for colour in ("sync", "async", "sync"):
        assert text(await streamed(cached_stream(model), "hello", colour)) == "one"


def test_what_is_no_chat_model_is_refused(cache: RedisCache) -> None:
    wrong: list[Any] = [FakeListLLM(responses=["x"]), StrOutputParser(), "model", None]
    for one in wrong:
        with pytest.raises(TypeError, match="chat model"):
            cached_stream(one, cache)


# -- around it -----------------------------------------------------------------------------------


async def test_a_chain_streams_through_the_cache(cache: RedisCache) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "be short"), ("human", "{question}")])
    model = counting(cache)
    chain = prompt | cached_stream(model) | StrOutputParser()
    first = list(chain.stream({"question": "hello"}))
    assert len(first) > 1
    assert "".join(first) == "answer 0"
    assert "".join(chain.stream({"question": "hello"})) == "answer 0"
    again = [part async for part in chain.astream({"question": "hello"})]
    assert "".join(again) == "answer 0"
    assert chain.invoke({"question": "hello"}) == "answer 0"
    assert chain.batch([{"question": "hello"}, {"question": "hello"}]) == ["answer 0"] * 2
    assert await chain.ainvoke({"question": "else"}) == "answer 1"
    assert "".join(chain.stream({"question": "else"})) == "answer 1"


async def test_a_semantic_cache_serves_streams(server: EmbeddedServer, client: Client) -> None:
    client.call("FLUSHALL")

    class Embeddings:
        def embed_documents(self, texts: list[str]) -> Any:
            return HashingEmbedder(64)(texts)

        def embed_query(self, text: str) -> Any:
            return self.embed_documents([text])[0]

    cache = RedisSemanticCache(Embeddings(), server.url)
    model = cached_stream(counting(cache))
    assert text(await streamed(model, "What is the capital of France?", "sync")) == "answer 0"
    assert text(await streamed(model, "what is the capital of france", "async")) == "answer 0"
    assert text(await streamed(model, [SystemMessage("no user's text")], "sync")) == "answer 1"
    assert text(await streamed(model, [SystemMessage("no user's text")], "sync")) == "answer 2"
    await cache.aclose()


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_a_server_that_is_away_does_not_keep_a_stream(kept: Keep, colour: str) -> None:
    model = cached_stream(counting(kept(RedisCache(redis_url=NOBODY))))
    assert text(await streamed(model, "hello", colour)) == "answer 0"
    assert text(await streamed(model, "hello", colour)) == "answer 1"
