"""LangChain's cache by meaning: what is embedded, what must be the same, and how it is reached."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.outputs import ChatGeneration, Generation

from rawredis_llm import AsyncClient, Client, HashingEmbedder
from rawredis_llm.langchain import RedisSemanticCache

NOBODY = "redis://127.0.0.1:1/0"
"""An address where no server listens."""


class Recording(Embeddings):
    """Embeddings by spelling, which note what they are given."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._embed = HashingEmbedder(64)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.texts += texts
        return [[float(x) for x in row] for row in self._embed(texts)]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


class Length(Recording):
    """Embeddings by length, of whatever text."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.texts += texts
        return [[float(len(text)), 1.0] for text in texts]


class Native(Recording):
    """Embeddings whose only way is asyncio's, in the thread of the loop."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise AssertionError(f"embedded synchronously: {texts}")

    def embed_query(self, text: str) -> list[float]:
        raise AssertionError(f"embedded synchronously: {text}")

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        assert threading.current_thread() is threading.main_thread()
        return super().embed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        return (await self.aembed_documents([text]))[0]


Keep = Callable[[Any], Any]


@pytest.fixture
def embeddings() -> Recording:
    return Recording()


@pytest.fixture
def cache(url: str, embeddings: Recording, kept: Keep) -> RedisSemanticCache:
    return kept(RedisSemanticCache(embeddings, url))  # type: ignore[no-any-return]


def counting(cache: RedisSemanticCache) -> FakeListChatModel:
    """Return a model whose answer tells how often it was asked."""
    return FakeListChatModel(responses=[f"answer {i}" for i in range(50)], cache=cache)


FRANCE = "What is the capital of France, please?"
ALIKE = "what is the capital of france please"
NEAR = "What is the capital city of France, please?"  # within 0.2, but not the same
OTHER = "How do I bake bread with rye flour?"


# -- what is compared ----------------------------------------------------------------------------


async def test_a_question_of_the_same_meaning_is_answered(cache: RedisSemanticCache) -> None:
    model = counting(cache)
    assert model.invoke(FRANCE).content == "answer 0"
    assert model.invoke(ALIKE).content == "answer 0"
    assert model.invoke(NEAR).content == "answer 0"
    assert (await model.ainvoke(ALIKE + "!")).content == "answer 0"
    assert model.invoke(OTHER).content == "answer 1"


def test_the_last_user_turn_alone_is_embedded(
    cache: RedisSemanticCache, embeddings: Recording
) -> None:
    call = [{"name": "f", "args": {"a": 1}, "id": "c1"}]
    prompts: list[list[BaseMessage]] = [
        [HumanMessage(FRANCE)],
        [SystemMessage("be short"), HumanMessage(FRANCE)],
        [HumanMessage("earlier"), AIMessage("said"), HumanMessage(FRANCE)],
        [HumanMessage(FRANCE), AIMessage("", tool_calls=call), ToolMessage("r", tool_call_id="c1")],
        [HumanMessage([{"type": "text", "text": FRANCE}])],
        [HumanMessage(FRANCE, name="bob", id="1", additional_kwargs={"a": 1})],
        [ChatMessage(content=FRANCE, role="user")],
    ]
    model = counting(cache)
    for prompt in prompts:
        model.invoke(prompt)
    assert set(embeddings.texts) == {FRANCE}
    text = FakeListLLM(responses=["x"], cache=cache)
    text.invoke(OTHER)
    assert set(embeddings.texts) == {FRANCE, OTHER}


TOOLS: Any = [{"name": "f", "args": {"a": 1}, "id": "c1"}]
MORE: Any = [{"name": "f", "args": {"a": 2}, "id": "c1"}]
ASKED = HumanMessage(FRANCE)
APART: dict[str, list[list[BaseMessage]]] = {
    "the system message": [
        [ASKED],
        [SystemMessage("be short"), ASKED],
        [SystemMessage("be long"), ASKED],
    ],
    "earlier turns": [
        [HumanMessage("I am in Paris"), AIMessage("so?"), ASKED],
        [HumanMessage("I am in Rome"), AIMessage("so?"), ASKED],
        [HumanMessage("I am in Rome"), AIMessage("oh!"), ASKED],
    ],
    "who said it": [
        [HumanMessage("no"), ASKED],
        [AIMessage("no"), ASKED],
        [SystemMessage("no"), ASKED],
        [ChatMessage(content="no", role="critic"), ASKED],
    ],
    "what tools were asked, and answered": [
        [ASKED, AIMessage("", tool_calls=TOOLS), ToolMessage("1", tool_call_id="c1")],
        [ASKED, AIMessage("", tool_calls=TOOLS), ToolMessage("2", tool_call_id="c1")],
        [ASKED, AIMessage("", tool_calls=MORE), ToolMessage("1", tool_call_id="c1")],
        [
            ASKED,
            AIMessage("", tool_calls=TOOLS),
            ToolMessage("1", tool_call_id="c1", status="error"),
        ],
    ],
    "what is seen beside the text": [
        [
            HumanMessage(
                [
                    {"type": "text", "text": FRANCE},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
                ]
            )
        ]
        for data in ("AAAA", "BBBB", "A" * 3000, "A" * 3001)
    ],
    "who asks": [[HumanMessage(FRANCE, name="bob")], [HumanMessage(FRANCE, name="eve")]],
}


@pytest.mark.parametrize("prompts", APART.values(), ids=APART)
def test_what_comes_before_the_question_must_be_the_same(
    cache: RedisSemanticCache, prompts: list[list[BaseMessage]]
) -> None:
    model = counting(cache)
    answers = [model.invoke(prompt).content for prompt in prompts]
    assert len(set(answers)) == len(prompts)
    assert [model.invoke(prompt).content for prompt in prompts] == answers


def test_what_says_nothing_does_not_matter(cache: RedisSemanticCache) -> None:
    usage: Any = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    before: list[BaseMessage] = [
        AIMessage("it is", id="run-1", response_metadata={"model_name": "m", "took": 0.5}),
        AIMessage("it is", id="run-2", response_metadata={"took": 0.7}, usage_metadata=usage),
        AIMessage("it is"),
        AIMessageChunk(content="it is", id="run-3"),
    ]
    model = counting(cache)
    for message in before:
        asked = [HumanMessage("hello", id=f"{id(message)}"), message, HumanMessage(FRANCE)]
        assert model.invoke(asked).content == "answer 0"


CHUNK: Any = {"name": "f", "args": '{"a": 1}', "id": "c1", "index": 0, "type": "tool_call_chunk"}
JOINED = {
    "text": (AIMessage("it is"), AIMessageChunk(content="it is", chunk_position="last")),
    "a tool call": (
        AIMessage("", tool_calls=TOOLS),
        AIMessageChunk(content="", tool_call_chunks=[CHUNK]),
    ),
}


@pytest.mark.parametrize("pair", JOINED.values(), ids=JOINED)
def test_an_earlier_answer_may_have_been_streamed(
    cache: RedisSemanticCache, pair: tuple[AIMessage, AIMessage]
) -> None:
    model = counting(cache)
    for message in pair:
        asked = [HumanMessage("hello"), message, HumanMessage(FRANCE)]
        assert model.invoke(asked).content == "answer 0"


def test_how_a_tool_call_is_numbered_does_not_matter(cache: RedisSemanticCache) -> None:
    model = counting(cache)
    for one in ("c1", "c2"):
        call = AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": one}])
        asked = [ASKED, call, ToolMessage("1", tool_call_id=one)]
        assert model.invoke(asked).content == "answer 0"


SILENT: dict[str, list[BaseMessage]] = {
    "a system message": [SystemMessage("do it")],
    "the model's own": [AIMessage("well")],
    "an empty text": [HumanMessage("")],
    "a blank text": [HumanMessage(" \n ")],
    "an image": [HumanMessage([{"type": "image_url", "image_url": {"url": "http://x/y.png"}}])],
    "no parts": [HumanMessage(content=[])],
    "an empty part": [HumanMessage([{"type": "text", "text": ""}])],
}


@pytest.mark.parametrize("prompt", SILENT.values(), ids=SILENT)
async def test_a_prompt_without_a_users_text_is_not_cached(
    cache: RedisSemanticCache, embeddings: Recording, url: str, prompt: list[BaseMessage]
) -> None:
    model = counting(cache)
    assert model.invoke(prompt).content == "answer 0"
    assert (await model.ainvoke(prompt)).content == "answer 1"
    assert embeddings.texts == []
    with Client(url) as client:
        assert client.call("KEYS", "*") == []


@pytest.mark.parametrize("text", ["", "  "])
def test_a_text_models_blank_prompt_is_not_cached(cache: RedisSemanticCache, text: str) -> None:
    model = FakeListLLM(responses=["a", "b"], cache=cache)
    assert [model.invoke(text), model.invoke(text)] == ["a", "b"]


def test_a_users_bare_parts_are_text(cache: RedisSemanticCache, embeddings: Recording) -> None:
    model = counting(cache)
    assert model.invoke([HumanMessage([FRANCE])]).content == "answer 0"
    assert model.invoke([HumanMessage([FRANCE])]).content == "answer 0"
    assert set(embeddings.texts) == {FRANCE}


@pytest.mark.parametrize(
    "text",
    [
        "[INST] hello there [/INST]",
        "[1, 2, 3]",
        '["hello"]',
        "[]",
        '[{"role": "user", "content": "hello"}]',
        '{"lc": 1, "type": "constructor", "id": ["os", "system"], "kwargs": {}}',
        '[{"lc": 1, "type": "constructor", "id": ["os", "system"], "kwargs": {"command": "x"}}]',
        '[{"lc": 1, "kwargs": 5}]',
        '[{"lc": 1, "kwargs": {"type": 5}}]',
        "[" * 5000 + "x",
    ],
    ids=lambda text: text[:30],
)
def test_a_text_models_prompt_is_embedded_as_it_is(url: str, kept: Keep, text: str) -> None:
    embeddings = Length()
    cache = kept(RedisSemanticCache(embeddings, url))
    model = FakeListLLM(responses=["a", "b"], cache=cache)
    assert [model.invoke(text), model.invoke(text)] == ["a", "a"]
    assert set(embeddings.texts) == {text}


def test_an_exact_repeat_needs_no_embedding(
    cache: RedisSemanticCache, embeddings: Recording
) -> None:
    model = counting(cache)
    asked = [SystemMessage("be short"), HumanMessage(FRANCE)]
    model.invoke(asked)
    embeddings.texts.clear()
    assert model.invoke(asked).content == "answer 0"
    assert embeddings.texts == []


# -- extract -------------------------------------------------------------------------------------


def question_of(prompt: Any) -> tuple[str, str]:
    """Return what comes after "Question:", and what before."""
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    context, _, question = text.partition("Question:")
    return question.strip(), context


async def test_an_extract_of_ones_own_says_what_is_compared(
    url: str, embeddings: Recording, kept: Keep
) -> None:
    cache = kept(RedisSemanticCache(embeddings, url, extract=question_of))
    model = counting(cache)
    assert model.invoke(f"Context: A\nQuestion: {FRANCE}").content == "answer 0"
    assert (await model.ainvoke(f"Context: A\nQuestion: {ALIKE}")).content == "answer 0"
    assert model.invoke(f"Context: B\nQuestion: {FRANCE}").content == "answer 1"
    text = FakeListLLM(responses=["x", "y", "z"], cache=cache)
    assert text.invoke(f"A Question: {FRANCE}") == text.invoke(f"A Question: {ALIKE}") == "x"
    assert text.invoke(f"B Question: {ALIKE}") == "y"
    assert set(embeddings.texts) <= {FRANCE, ALIKE}


@pytest.mark.parametrize("message", [SystemMessage("x"), AIMessage("x"), HumanMessage(["x"])])
def test_an_extract_serves_prompts_of_any_kind(url: str, kept: Keep, message: BaseMessage) -> None:
    cache = kept(RedisSemanticCache(Recording(), url, extract=lambda _: ("hello there", "")))
    assert counting(cache).invoke([message]).content == "answer 0"


# -- both colours --------------------------------------------------------------------------------


async def test_sync_and_async_share_their_entries(cache: RedisSemanticCache) -> None:
    answer: list[Generation] = [ChatGeneration(message=AIMessage("x", id="1"))]
    cache.update(FRANCE, "model", answer)
    await cache.aupdate(OTHER, "model", answer)
    for prompt in (FRANCE, ALIKE, OTHER):
        assert cache.lookup(prompt, "model") == answer
        assert await cache.alookup(prompt, "model") == answer
    assert await cache.alookup(FRANCE, "another model") is None


async def test_async_methods_are_native_to_the_last(url: str, kept: Keep) -> None:
    embeddings = Native()
    model = counting(kept(RedisSemanticCache(embeddings, url)))
    assert (await model.ainvoke(FRANCE)).content == "answer 0"
    assert (await model.ainvoke(ALIKE)).content == "answer 0"
    assert embeddings.texts
    before = {thread.name for thread in threading.enumerate()}
    await model.ainvoke(OTHER)
    started = {thread.name for thread in threading.enumerate()} - before
    assert not any("ThreadPool" in name or "asyncio" in name for name in started)


# -- life ----------------------------------------------------------------------------------------


def test_entries_live_as_long_as_the_ttl_says(url: str, embeddings: Recording, kept: Keep) -> None:
    cache = kept(RedisSemanticCache(embeddings, url, ttl=100))
    cache.update(FRANCE, "model", [Generation(text="x")])
    with Client(url) as client:
        lives = [
            client.call("PTTL", key)
            for key in client.call("KEYS", "*")
            if client.call("TYPE", key) == b"hash" and b":c:" not in key
        ]
    assert len(lives) == 1
    assert 1000 < lives[0] <= 100_000


def test_names_and_prefixes_are_apart(url: str, embeddings: Recording, kept: Keep) -> None:
    places: list[dict[str, Any]] = [
        {},
        {"name": "a"},
        {"prefix": "a"},
        {"name": "a", "prefix": "b"},
        {"name": "b", "prefix": "a"},
        {"name": "a:b"},
        {"name": "a*"},
    ]
    caches = [kept(RedisSemanticCache(embeddings, url, **place)) for place in places]
    for at, cache in enumerate(caches):
        cache.update(FRANCE, "model", [Generation(text=f"{at}")])
    for at, cache in enumerate(caches):
        assert cache.lookup(ALIKE, "model") == [Generation(text=f"{at}")]
    with Client(url) as client:
        client.call("SET", "llmcache:mine", "x")
        caches[0].clear()
        assert client.call("GET", "llmcache:mine") == b"x"
    assert [cache.lookup(FRANCE, "model") is None for cache in caches] == [True] + [False] * 6


@pytest.mark.parametrize(
    ("one", "two"), [(("a", "b:c"), ("a:b", "c")), (("a", "b"), ("a:b", "a:b"))]
)
def test_prefix_and_name_are_apart_however_they_are_cut(
    url: str, embeddings: Recording, kept: Keep, one: tuple[str, str], two: tuple[str, str]
) -> None:
    first, second = (
        kept(RedisSemanticCache(embeddings, url, prefix=prefix, name=name))
        for prefix, name in (one, two)
    )
    first.update(FRANCE, "model", [Generation(text="x")])
    assert second.lookup(FRANCE, "model") is None


async def test_clear_deletes_its_own_and_leaves_the_cache_in_order(
    cache: RedisSemanticCache,
) -> None:
    for empty in (cache.clear, cache.aclear):
        cache.update(FRANCE, "model", [Generation(text="x")])
        assert cache.lookup(ALIKE, "model") is not None
        done: Any = empty()
        if done is not None:
            await done
        assert cache.lookup(ALIKE, "model") is None


def test_clear_of_one_model_leaves_the_others(cache: RedisSemanticCache) -> None:
    for model in ("one", "two"):
        cache.update(FRANCE, model, [Generation(text=model)])
    cache.clear(llm_string="one")
    assert cache.lookup(FRANCE, "one") is None
    assert cache.lookup(FRANCE, "two") == [Generation(text="two")]


# -- how it is made ------------------------------------------------------------------------------

FORMS: dict[str, Callable[[str, Embeddings, Any], RedisSemanticCache]] = {
    "embeddings, url": lambda url, e, _: RedisSemanticCache(e, url),
    "embeddings, redis_url=": lambda url, e, _: RedisSemanticCache(e, redis_url=url),
    "all by name": lambda url, e, _: RedisSemanticCache(embeddings=e, redis_url=url),
    "the older order": lambda url, e, _: RedisSemanticCache(url, e),
    "the older names": lambda url, e, _: RedisSemanticCache(redis_url=url, embedding=e),
    "client=": lambda _, e, client: RedisSemanticCache(e, client=client),
    "redis_client=": lambda _, e, client: RedisSemanticCache(e, redis_client=client),
    "older, client=": lambda _, e, client: RedisSemanticCache(embedding=e, client=client),
}


@pytest.mark.parametrize("colour", [Client, AsyncClient])
@pytest.mark.parametrize("form", FORMS)
async def test_every_way_to_make_it_is_understood(
    url: str, kept: Keep, form: str, colour: Any
) -> None:
    theirs = colour(url)
    cache = kept(FORMS[form](url, Recording(), theirs))
    cache.update(FRANCE, "model", [Generation(text="x")])
    assert await cache.alookup(ALIKE, "model") == [Generation(text="x")]
    await cache.aclose()
    closing = theirs.close()
    if closing is not None:
        await closing


def test_a_threshold_of_zero_is_a_value(url: str, kept: Keep) -> None:
    options: dict[str, Any]
    for options in ({"distance_threshold": 0}, {"score_threshold": 0.0}):
        cache = kept(RedisSemanticCache(Recording(), url, **options))
        cache.update(FRANCE, "model", [Generation(text="x")])
        assert cache.lookup(FRANCE, "model") is not None
        assert cache.lookup(NEAR, "model") is None
        cache.clear()


def test_a_threshold_says_how_far_is_near(url: str, kept: Keep) -> None:
    narrow = kept(RedisSemanticCache(Recording(), url, 0.05))
    wide = kept(RedisSemanticCache(url, Recording(), 1.9))
    narrow.update(FRANCE, "model", [Generation(text="x")])
    asked = "What is the capital of Italy, please?"
    assert narrow.lookup(asked, "model") is None
    assert wide.lookup(asked, "model") == [Generation(text="x")]
    older = kept(RedisSemanticCache(redis_url=url, embedding=Recording(), score_threshold=1.9))
    assert older.lookup(asked, "model") == [Generation(text="x")]


def test_what_is_given_twice_or_not_at_all_is_refused(url: str) -> None:
    embeddings = Recording()
    with Client(url) as client:
        wrong: list[Callable[[], Any]] = [
            lambda: RedisSemanticCache(embeddings, url, embedding=embeddings),
            lambda: RedisSemanticCache(embeddings, url, 0.1, score_threshold=0.1),
            lambda: RedisSemanticCache(embeddings, url, 0, score_threshold=0),
            lambda: RedisSemanticCache(embeddings, url, client=client),
            lambda: RedisSemanticCache(embeddings, client=client, redis_client=client),
            lambda: RedisSemanticCache(redis_url=url),
            lambda: RedisSemanticCache(embeddings, client=object()),
        ]
        for make in wrong:
            with pytest.raises(TypeError):
                make()


def test_the_environment_says_where_if_nobody_else_does(
    url: str, kept: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    cache = kept(RedisSemanticCache(Recording()))
    cache.update(FRANCE, "model", [Generation(text="x")])
    with Client(url) as client:
        assert client.call("DBSIZE") > 0


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_a_server_that_is_away_is_a_miss_which_is_logged(
    kept: Keep, caplog: pytest.LogCaptureFixture, colour: str
) -> None:
    cache = kept(RedisSemanticCache(Recording(), NOBODY))
    model = counting(cache)
    with caplog.at_level(logging.WARNING, "rawredis_llm"):
        for wanted in ("answer 0", "answer 1"):
            found = model.invoke(FRANCE) if colour == "sync" else await model.ainvoke(FRANCE)
            assert found.content == wanted
    assert any("out of reach" in record.getMessage() for record in caplog.records)


def test_a_client_may_stand_where_the_url_does(url: str, kept: Any) -> None:
    with Client(url) as client:
        cache = kept(RedisSemanticCache(Recording(), client))
        assert cache.link.sync is client
        with pytest.raises(TypeError, match="only one"):
            RedisSemanticCache(Recording(), client, client=client)
