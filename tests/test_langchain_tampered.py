"""What somebody else wrote where LangChain's things are kept: nothing of it is ever loaded.

A cache's entry that is not as we write it is a miss; a history's message of that kind raises an
error of ours, which names it, as to leave it out would change what was said.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.outputs import Generation

from rawredis_llm import ChatHistory, Client, HashingEmbedder, errors
from rawredis_llm.langchain import RedisCache, RedisChatMessageHistory, RedisSemanticCache

EVIL: dict[str, Any] = {
    "lc": 1,
    "type": "constructor",
    "id": ["os", "system"],
    "kwargs": {"command": "true"},
}
ANTIGRAVITY: dict[str, Any] = {
    "lc": 1,
    "type": "constructor",
    "id": ["antigravity", "Anything"],
    "kwargs": {},
}
SECRET = {"lc": 1, "type": "secret", "id": ["PATH"]}


@pytest.fixture(autouse=True)
def _nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> Any:
    ran: list[Any] = []
    monkeypatch.setattr(os, "system", ran.append)
    assert "antigravity" not in sys.modules
    yield
    assert ran == []
    assert "antigravity" not in sys.modules


class Embeddings:
    """Embeddings by spelling."""

    def embed_documents(self, texts: list[str]) -> Any:
        return HashingEmbedder(32)(texts)

    def embed_query(self, text: str) -> Any:
        return self.embed_documents([text])[0]


def make(kind: str, client: Client) -> Any:
    """Return a cache of either kind."""
    if kind == "exact":
        return RedisCache(client)
    return RedisSemanticCache(Embeddings(), client=client)


def tamper(client: Client, response: Any) -> None:
    """Put another response into the only entry there is."""
    for key in client.call("KEYS", "*"):
        kind = client.call("TYPE", key)
        if kind == b"string":
            entry = json.loads(client.call("GET", key))
            client.call("SET", key, json.dumps({**entry, "response": response}))
        elif kind == b"hash" and (data := client.call("HGET", key, "entry")):
            entry = json.loads(data)
            client.call("HSET", key, "entry", json.dumps({**entry, "response": response}))


def wrong(*values: Any, **named: Any) -> Any:
    """Return a shape that led to an error from within."""
    return pytest.param(*values, id=named["id"])


SHAPES = [
    pytest.param("a text", id="a text"),
    pytest.param({"class": "Generation", "text": "x"}, id="no list"),
    pytest.param(EVIL, id="a constructor"),
    wrong([5], id="numbers"),
    wrong([None], id="nulls"),
    wrong([["class", "Generation"]], id="lists"),
    pytest.param([{}], id="an empty one"),
    pytest.param([EVIL], id="a constructor in a list"),
    pytest.param([{"class": "os.system", "text": "true"}], id="a class of another module"),
    pytest.param([{"class": "BaseModel", "text": "x"}], id="a class that is no generation"),
    pytest.param([{"class": "_MESSAGES", "text": "x"}], id="another name of the module's"),
    wrong([{"class": ["Generation"], "text": "x"}], id="a class that is a list"),
    wrong([{"class": "Generation"}], id="without a text"),
    wrong([{"class": "Generation", "text": 5}], id="a text that is a number"),
    wrong([{"class": "Generation", "text": EVIL}], id="a text that is a constructor"),
    wrong([{"class": "Generation", "text": "x", "info": 5}], id="an info that is a number"),
    wrong([{"class": "ChatGeneration", "text": "x"}], id="a chat without a message"),
    wrong([{"class": "ChatGeneration", "message": {}}], id="a message without a type"),
    wrong([{"class": "ChatGeneration", "type": "ai", "message": 5}], id="a message that is none"),
    wrong(
        [{"class": "Generation", "type": "ai", "message": {"content": "x"}}],
        id="a message in a text's place",
    ),
    pytest.param(
        [{"class": "ChatGeneration", "type": "os.system", "message": {"content": "x"}}],
        id="a message of unknown type",
    ),
    wrong(
        [{"class": "ChatGeneration", "type": ["ai"], "message": {"content": "x"}}],
        id="a type that is a list",
    ),
    wrong(
        [{"class": "ChatGeneration", "type": "ai", "message": {"content": 5}}],
        id="a content that is a number",
    ),
    wrong(
        [{"class": "ChatGeneration", "type": "ai", "message": {"content": "", "tool_calls": 5}}],
        id="tool calls that are none",
    ),
    wrong(
        [{"class": "ChatGeneration", "type": "tool", "message": {"content": ""}}],
        id="a result of no tool call",
    ),
]


@pytest.mark.parametrize("kind", ["exact", "semantic"])
@pytest.mark.parametrize("response", SHAPES)
async def test_an_entry_of_another_form_is_a_miss_or_an_error_of_ours(
    client: Client, kind: str, response: Any
) -> None:
    cache = make(kind, client)
    cache.update("hello", "model", [Generation(text="x")])
    assert cache.lookup("hello", "model") == [Generation(text="x")]
    tamper(client, response)
    try:
        found = [cache.lookup("hello", "model"), await cache.alookup("hello", "model")]
    except errors.RedisError:
        pass
    else:
        assert found == [None, None]
    finally:
        await cache.aclose()


@pytest.mark.parametrize("kind", ["exact", "semantic"])
def test_an_entry_of_another_form_does_not_keep_a_model_from_answering(
    client: Client, kind: str
) -> None:
    cache = make(kind, client)
    model = FakeListChatModel(responses=["one", "two"], cache=cache)
    model.invoke("hello")
    tamper(client, [{"class": "of a later version", "text": "x"}])
    assert model.invoke("hello").content == "two"


@pytest.mark.parametrize("evil", [EVIL, ANTIGRAVITY, SECRET], ids=["os", "a module", "a secret"])
@pytest.mark.parametrize("kind", ["exact", "semantic"])
def test_what_looks_like_a_constructor_stays_data(client: Client, kind: str, evil: Any) -> None:
    cache = make(kind, client)
    cache.update("hello", "model", [Generation(text="x", generation_info={"a": evil})])
    assert cache.lookup("hello", "model") == [Generation(text="x", generation_info={"a": evil})]
    message = {"content": [evil], "additional_kwargs": {"a": evil}, "response_metadata": evil}
    tamper(client, [{"class": "ChatGeneration", "type": "ai", "message": message}])
    [found] = cache.lookup("hello", "model") or [None]
    assert found is not None
    assert found.message.content == [evil]
    assert found.message.additional_kwargs == {"a": evil}
    assert found.message.response_metadata == evil
    cache.close()


@pytest.mark.parametrize("data", ["", "x", "{", "[]", "null", "5", "\\xff", "x\x9c\x00"])
def test_an_entry_that_is_no_json_is_a_miss(client: Client, data: str) -> None:
    cache = RedisCache(client)
    cache.update("hello", "model", [Generation(text="x")])
    [key] = client.call("KEYS", "*:x:*")
    client.call("SET", key, data)
    assert cache.lookup("hello", "model") is None


def test_a_key_of_another_type_is_a_miss(client: Client) -> None:
    cache = RedisCache(client)
    cache.update("hello", "model", [Generation(text="x")])
    [key] = client.call("KEYS", "*:x:*")
    client.call("DEL", key)
    client.call("LPUSH", key, "x")
    assert cache.lookup("hello", "model") is None


def test_an_entry_under_another_key_is_a_miss(client: Client) -> None:
    cache = RedisCache(client)
    cache.update("hello", "model", [Generation(text="x")])
    [one] = client.call("KEYS", "*:x:*")
    cache.update("another", "model", [Generation(text="y")])
    [two] = set(client.call("KEYS", "*:x:*")) - {one}
    client.call("COPY", one, two, "REPLACE")
    assert cache.lookup("another", "model") is None


# -- histories -----------------------------------------------------------------------------------

MESSAGES = [
    pytest.param({"role": "user", "content": "x", "langchain": "os.system"}, id="an unknown type"),
    pytest.param({"role": "user", "content": "x", "langchain": "lc"}, id="another unknown type"),
    wrong({"role": "user", "content": "x", "langchain": ["ai"]}, id="a type that is a list"),
    wrong({"role": "user", "content": "x", "langchain": {"a": 1}}, id="a type that is a dict"),
    wrong({"role": "user", "content": None, "langchain": "human"}, id="no content"),
    wrong({"role": "user", "content": 5, "langchain": "human"}, id="a content that is a number"),
    wrong({"role": "user", "content": "", "langchain": "ai", "tool_calls": 5}, id="no tool calls"),
    wrong({"role": "tool", "content": "x", "langchain": "tool"}, id="no tool_call_id"),
    wrong({"role": "user", "content": EVIL}, id="a content that is a constructor"),
    wrong({"role": "user", "content": 5}, id="a number from other code"),
    wrong({"role": "tool", "content": "x"}, id="a result of no call from other code"),
    wrong({"role": "assistant", "content": "", "tool_calls": 5}, id="no calls from other code"),
    wrong({"role": "assistant", "content": "", "tool_calls": [{}]}, id="an empty call"),
]


@pytest.mark.parametrize("message", MESSAGES)
async def test_a_message_of_another_form_raises_an_error_of_ours(
    client: Client, message: dict[str, Any]
) -> None:
    ChatHistory(client, "s").add_many([message])
    history = RedisChatMessageHistory("s", client=client)
    try:
        with pytest.raises(errors.RedisError):
            _ = history.messages
        with pytest.raises(errors.RedisError):
            await history.aget_messages()
    finally:
        await history.aclose()


@pytest.mark.parametrize("field", ["message", "other"])
@pytest.mark.parametrize("data", ["", "x", "[]", "null", '{"content": "x"}'])
def test_an_entry_that_is_no_message_raises_an_error_of_ours(
    client: Client, field: str, data: str
) -> None:
    history = RedisChatMessageHistory("s", client=client)
    client.call("XADD", history.key, "*", field, data)
    with pytest.raises(errors.RedisError):
        _ = history.messages


@pytest.mark.parametrize("evil", [EVIL, ANTIGRAVITY, SECRET], ids=["os", "a module", "a secret"])
def test_a_constructor_in_a_message_stays_data(client: Client, evil: Any) -> None:
    ChatHistory(client, "s").add_many(
        [
            {"role": "user", "content": [evil], "langchain": "human", "additional_kwargs": evil},
            {"role": "user", "content": json.dumps(evil), "name": "x"},
        ]
    )
    one, two = RedisChatMessageHistory("s", client=client).messages
    assert one.content == [evil]
    assert one.additional_kwargs == evil
    assert two.content == json.dumps(evil)
