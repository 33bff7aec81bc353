"""LangChain's exact cache, as its models use it: whole answers, apart, and never in the way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any, TypeVar

import pytest
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import FakeListChatModel, FakeListLLM, GenericFakeChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
)
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    Generation,
    GenerationChunk,
)
from pydantic import BaseModel

from rawredis_llm import AsyncClient, Client
from rawredis_llm.langchain import RedisCache

T = TypeVar("T")

NOBODY = "redis://127.0.0.1:1/0"
"""An address where no server listens."""


Keep = Callable[[Any], Any]


@pytest.fixture
def cache(url: str, kept: Keep) -> RedisCache:
    return kept(RedisCache(redis_url=url))  # type: ignore[no-any-return]


@pytest.fixture
def as_default(cache: RedisCache) -> Iterator[None]:
    """Make the cache the one of all models."""
    set_llm_cache(cache)
    yield
    set_llm_cache(None)


def counting(**options: Any) -> FakeListChatModel:
    """Return a model whose answer tells how often it was asked."""
    return FakeListChatModel(responses=[f"answer {i}" for i in range(50)], **options)


# -- whole answers -------------------------------------------------------------------------------

USAGE: Any = {
    "input_tokens": 10,
    "output_tokens": 3,
    "total_tokens": 13,
    "input_token_details": {"cache_read": 4},
}
CALLS: Any = [
    {"name": "f", "args": {"a": [1, 2.5, None], "é": "日本"}, "id": "c1", "type": "tool_call"},
    {"name": "g", "args": {}, "id": None, "type": "tool_call"},
]
INVALID: Any = [
    {
        "name": "f",
        "args": '{"a": ',
        "id": "c2",
        "error": "no JSON",
        "type": "invalid_tool_call",
    }
]
PARTS: Any = [
    {"type": "text", "text": "what I see", "index": 0},
    {"type": "reasoning", "reasoning": "because"},
    "a bare text",
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
]


def said(message: BaseMessage, **options: Any) -> ChatGeneration:
    return ChatGeneration(message=message, **options)


ANSWERS: dict[str, list[Generation]] = {
    "a text": [Generation(text="hello")],
    "no text": [Generation(text="")],
    "text of all kinds": [Generation(text='é日本🦜 \0\r\n "quotes" \\ {}')],
    "info": [Generation(text="x", generation_info={"finish_reason": "stop", "logprobs": [-0.5]})],
    "empty info": [Generation(text="x", generation_info={})],
    "several, in order": [Generation(text=f"{i}") for i in (3, 1, 2, 1)],
    "a chunk": [GenerationChunk(text="x", generation_info={"a": 1})],
    "a message": [said(AIMessage("hi"))],
    "messages, in order": [said(AIMessage(f"{i}", id=f"m{i}")) for i in (2, 0, 1)],
    "an id and a name": [said(AIMessage("hi", id="run-1", name="bob"))],
    "tool calls": [said(AIMessage("", tool_calls=CALLS, invalid_tool_calls=INVALID))],
    "usage": [said(AIMessage("hi", usage_metadata=USAGE))],
    "metadata": [said(AIMessage("hi", response_metadata={"model_name": "m", "deep": [{"a": 1}]}))],
    "parts": [said(AIMessage(content=PARTS))],
    "no parts": [said(AIMessage(content=[]))],
    "additional": [said(AIMessage("", additional_kwargs={"refusal": None, "lc": 1}))],
    "info beside a message": [said(AIMessage("hi"), generation_info={"finish_reason": "stop"})],
    "a message's chunk": [
        ChatGenerationChunk(
            message=AIMessageChunk(
                content="x",
                tool_call_chunks=[
                    {
                        "name": "f",
                        "args": '{"a":',
                        "id": "1",
                        "index": 0,
                        "type": "tool_call_chunk",
                    }
                ],
                chunk_position="last",
                usage_metadata=USAGE,
            )
        )
    ],
    "a message of another role": [said(ChatMessage(content="hm", role="critic"))],
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_a_hit_equals_what_was_stored(cache: RedisCache, answer: list[Generation]) -> None:
    cache.update("sync", "model", answer)
    await cache.aupdate("async", "model", answer)
    for prompt in ("sync", "async"):
        found = cache.lookup(prompt, "model")
        awaited = await cache.alookup(prompt, "model")
        for one in (found, awaited):
            assert type(one) is list
            assert one == answer
            assert list(map(type, one)) == list(map(type, answer))
            assert [one.text for one in one] == [one.text for one in answer]


def test_what_is_done_to_an_answer_does_not_touch_the_store(cache: RedisCache) -> None:
    given = [Generation(text="x", generation_info={"list": [1]})]
    cache.update("prompt", "model", given)
    (given[0].generation_info or {})["list"].append(2)
    found = cache.lookup("prompt", "model")
    assert found is not None
    (found[0].generation_info or {})["list"].append(3)
    assert cache.lookup("prompt", "model") == [Generation(text="x", generation_info={"list": [1]})]


class Parsed(BaseModel):
    """What structured output is parsed into."""

    name: str
    ages: list[int]


async def test_a_parsed_object_is_kept_as_what_it_holds(cache: RedisCache) -> None:
    parsed = {"parsed": Parsed(name="bob", ages=[1, 2])}
    await cache.aupdate("prompt", "model", [said(AIMessage("{}", additional_kwargs=parsed))])
    found: Any = cache.lookup("prompt", "model")
    assert found[0].message.additional_kwargs == {"parsed": {"name": "bob", "ages": [1, 2]}}
    assert isinstance(parsed["parsed"], Parsed)  # the model's own answer is left as it was


FOREIGN = {
    "datetime": datetime(2020, 1, 1, tzinfo=timezone.utc),
    "set": {1, 2},
    "bytes": b"\xff",
    "complex": 1j,
    "Decimal": Decimal("1.5"),
    "object": object(),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("where", ["info", "response_metadata", "additional_kwargs"])
async def test_what_json_does_not_have_is_refused_by_name(
    cache: RedisCache, name: str, where: str
) -> None:
    data: dict[str, Any] = {"deep": [{"value": FOREIGN[name]}]}
    answer: list[Generation]
    if where == "info":
        answer = [Generation(text="x", generation_info=data)]
    else:
        answer = [said(AIMessage("x", **{where: data}))]
    with pytest.raises(TypeError, match=name):
        cache.update("prompt", "model", answer)
    with pytest.raises(TypeError, match=name):
        await cache.aupdate("prompt", "model", answer)
    assert cache.lookup("prompt", "model") is None


# -- models --------------------------------------------------------------------------------------


async def test_a_chat_model_asks_its_cache_first(cache: RedisCache) -> None:
    model = counting(cache=cache)
    first = model.invoke("hello")
    assert model.invoke("hello").content == first.content == "answer 0"
    assert (await model.ainvoke("hello")).content == "answer 0"
    assert model.invoke([HumanMessage("hello", id="another")]).content == "answer 0"
    assert (await model.ainvoke("other")).content == "answer 1"
    assert model.invoke("other").content == "answer 1"
    assert model.invoke([SystemMessage("be short"), HumanMessage("other")]).content == "answer 2"


@pytest.mark.usefixtures("as_default")
async def test_the_default_cache_serves_every_model(cache: RedisCache) -> None:
    assert counting().invoke("hello").content == "answer 0"
    model = counting()
    model.i = 7  # it would say something else
    assert model.invoke("hello").content == "answer 0"
    uncached = counting(cache=False)
    uncached.i = 7
    assert (await uncached.ainvoke("hello")).content == "answer 7"
    text = FakeListLLM(responses=["x", "y"])
    assert text.invoke("hello") == (await text.ainvoke("hello")) == "x"
    cache.clear()
    assert model.invoke("hello").content == "answer 7"


async def test_a_text_model_asks_for_each_of_its_prompts(cache: RedisCache) -> None:
    model = FakeListLLM(responses=["a", "b", "c", "d"], cache=cache)
    first = model.generate(["one", "two"]).generations
    assert [[g.text for g in one] for one in first] == [["a"], ["b"]]
    again = (await model.agenerate(["two", "three", "one"])).generations
    assert [[g.text for g in one] for one in again] == [["b"], ["c"], ["a"]]


def test_a_whole_message_comes_back_through_a_model(cache: RedisCache) -> None:
    answer = AIMessage(
        "hi", id="m1", tool_calls=CALLS, usage_metadata=USAGE, response_metadata={"model": "m"}
    )
    model = GenericFakeChatModel(messages=iter([answer]), cache=cache)
    first = model.invoke("hello")
    again = model.invoke("hello")  # the model has no more
    assert again.usage_metadata == {**USAGE, "total_cost": 0}  # as LangChain counts a hit
    again.usage_metadata = first.usage_metadata
    assert again == first
    assert again.tool_calls == CALLS


def test_models_and_what_they_are_given_are_apart(cache: RedisCache) -> None:
    one, two = counting(cache=cache), FakeListChatModel(responses=["another"], cache=cache)
    assert one.invoke("hello").content == "answer 0"
    assert two.invoke("hello").content == "another"
    assert one.invoke("hello", stop=["x"]).content == "answer 1"
    assert one.bind(tools=[{"name": "f"}]).invoke("hello").content == "answer 2"
    assert one.invoke("hello", stop=["x"]).content == "answer 1"
    assert one.invoke("hello").content == "answer 0"


def test_prompts_and_models_are_apart_however_they_are_cut(cache: RedisCache) -> None:
    pairs = [("a", "bc"), ("ab", "c"), ("", "abc"), ("a:b", "c"), ("a", "b:c"), ("A", "bc")]
    pairs = [pair for pair in pairs if pair[0]]
    for prompt, model in pairs:
        cache.update(prompt, model, [Generation(text=f"{prompt}|{model}")])
    for prompt, model in pairs:
        assert cache.lookup(prompt, model) == [Generation(text=f"{prompt}|{model}")]
    assert cache.lookup("abc", "") is None


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_a_prompt_without_text_is_answered(cache: RedisCache, prompt: str) -> None:
    assert FakeListLLM(responses=["a"], cache=cache).invoke(prompt) == "a"


# -- life ----------------------------------------------------------------------------------------


async def test_entries_live_as_long_as_the_ttl_says(url: str, kept: Keep) -> None:
    cache = kept(RedisCache(redis_url=url, ttl=100))
    brief = kept(RedisCache(redis_url=url, ttl=1, prefix="brief"))
    cache.update("sync", "model", [Generation(text="x")])
    await cache.aupdate("async", "model", [Generation(text="x")])
    with Client(url) as client:
        lives = [client.call("PTTL", key) for key in client.call("KEYS", "*:x:*")]
    assert len(lives) == 2
    assert all(1000 < left <= 100_000 for left in lives)
    brief.update("prompt", "model", [Generation(text="x")])
    until = time.monotonic() + 20
    while brief.lookup("prompt", "model") is not None:
        assert time.monotonic() < until
        time.sleep(0.2)  # noqa: ASYNC251 - nothing else runs


def test_without_a_ttl_entries_stay(cache: RedisCache, url: str) -> None:
    cache.update("prompt", "model", [Generation(text="x")])
    with Client(url) as client:
        assert [client.call("PTTL", key) for key in client.call("KEYS", "*:x:*")] == [-1]


@pytest.mark.parametrize("ttl", [0, -1, "1"])
def test_a_ttl_that_is_none_is_refused(ttl: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="ttl"):
        RedisCache(redis_url=NOBODY, ttl=ttl)


def test_prefixes_are_apart_and_clear_deletes_its_own_only(url: str, kept: Keep) -> None:
    prefixes = ["a", "a:b", "A", "a*", "a?", "[a]", "b"]
    caches = {prefix: kept(RedisCache(redis_url=url, prefix=prefix)) for prefix in prefixes}
    for prefix, cache in caches.items():
        cache.update("prompt", "model", [Generation(text=prefix)])
    with Client(url) as client:
        for key in ("mine", "a:mine", "a:x:mine", "a", "a:x"):
            client.call("SET", key, "value")
        for prefix in ("a*", "a", "a?"):
            caches.pop(prefix).clear()
        for other, cache in caches.items():
            assert cache.lookup("prompt", "model") == [Generation(text=other)]
        for key in ("mine", "a:mine", "a:x:mine", "a", "a:x"):
            assert client.call("GET", key) == b"value"
    for prefix in ("a*", "a", "a?"):
        assert kept(RedisCache(redis_url=url, prefix=prefix)).lookup("prompt", "model") is None


async def test_clear_may_be_of_one_model_only(cache: RedisCache) -> None:
    for model in ("one", "two", "three"):
        for prompt in ("a", "b"):
            cache.update(prompt, model, [Generation(text=model)])
    cache.clear(llm_string="one")
    await cache.aclear(llm_string="two")
    found = {m: [cache.lookup(p, m) is not None for p in "ab"] for m in ("one", "two", "three")}
    assert found == {"one": [False] * 2, "two": [False] * 2, "three": [True] * 2}
    await cache.aclear()
    assert cache.lookup("a", "three") is None
    cache.clear()  # of nothing


def test_clear_refuses_what_it_does_not_know(cache: RedisCache) -> None:
    cache.update("a", "model", [Generation(text="x")])
    with pytest.raises(TypeError):
        cache.clear(prompt="a")
    assert cache.lookup("a", "model") is not None


# -- where ---------------------------------------------------------------------------------------

FORMS: dict[str, Callable[[str, Any], RedisCache]] = {
    "redis_url=": lambda url, _: RedisCache(redis_url=url),
    "a URL": lambda url, _: RedisCache(url),
    "redis_=": lambda _, client: RedisCache(redis_=client),
    "client=": lambda _, client: RedisCache(client=client),
    "redis_client=": lambda _, client: RedisCache(redis_client=client),
    "a client": lambda _, client: RedisCache(client),
}


@pytest.mark.parametrize("colour", [Client, AsyncClient])
@pytest.mark.parametrize("form", FORMS)
async def test_every_way_to_say_where_is_understood(
    url: str, kept: Keep, form: str, colour: Any
) -> None:
    theirs = colour(url)
    cache = kept(FORMS[form](url, theirs))
    cache.update("sync", "model", [Generation(text="x")])
    await cache.aupdate("async", "model", [Generation(text="y")])
    assert (await cache.alookup("sync", "model")) == [Generation(text="x")]
    assert cache.lookup("async", "model") == [Generation(text="y")]
    with Client(url) as other:
        assert len(other.call("KEYS", "*:x:*")) == 2
    cache.close()
    await cache.aclose()
    if colour is Client:  # a client that was given stays open
        assert theirs.call("PING") == b"PONG"
        theirs.close()
    else:
        assert await theirs.call("PING") == b"PONG"
        await theirs.close()


def test_the_environment_says_where_if_nobody_else_does(
    url: str, kept: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    cache = kept(RedisCache())
    cache.update("prompt", "model", [Generation(text="x")])
    monkeypatch.setenv("REDIS_URL", NOBODY)
    other = kept(RedisCache(redis_url=url))
    assert other.lookup("prompt", "model") == [Generation(text="x")]


def test_to_say_where_twice_is_refused(url: str) -> None:
    with Client(url) as client:
        doubled: list[dict[str, Any]] = [
            {"redis_": client, "client": client},
            {"client": client, "redis_client": client},
            {"redis_": client, "redis_client": client},
            {"redis_": client, "redis_url": url},
            {"client": client, "redis_url": url},
        ]
        for options in doubled:
            with pytest.raises(TypeError, match="give"):
                RedisCache(**options)


def test_two_urls_are_refused(url: str) -> None:
    with pytest.raises(TypeError):
        RedisCache(url, redis_url=NOBODY)


def test_a_foreign_client_is_refused_with_a_word_on_what_to_do() -> None:
    class Redis:
        """As redis-py has it."""

    Redis.__module__ = "redis.client"
    for name in ("redis_", "client", "redis_client"):
        options: Any = {name: Redis()}
        with pytest.raises(TypeError, match=r"(?s)rawredis_llm.*redis\.client\.Redis.*URL"):
            RedisCache(**options)


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_a_server_that_is_away_is_a_miss_which_is_logged(
    kept: Keep, caplog: pytest.LogCaptureFixture, colour: str
) -> None:
    cache = kept(RedisCache(redis_url=NOBODY))
    model = counting(cache=cache)
    with caplog.at_level(logging.WARNING, "rawredis_llm"):
        for wanted in ("answer 0", "answer 1"):
            found = model.invoke("hello") if colour == "sync" else await model.ainvoke("hello")
            assert found.content == wanted
    assert any("out of reach" in record.getMessage() for record in caplog.records)


async def test_to_close_twice_does_no_harm(cache: RedisCache) -> None:
    await cache.aupdate("prompt", "model", [Generation(text="x")])
    for _ in range(2):
        cache.close()
        await cache.aclose()
