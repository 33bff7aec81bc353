"""LangChain's chat message history: every message whole, every session its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables.history import RunnableWithMessageHistory

from rawredis_llm import AsyncClient, ChatHistory, Client, EmbeddedServer, errors
from rawredis_llm.langchain import RedisCache, RedisChatMessageHistory

NOBODY = "redis://127.0.0.1:1/0"
"""An address where no server listens."""


@pytest.fixture(scope="module", params=["search", "plain"])
def server(
    request: pytest.FixtureRequest, server: EmbeddedServer, plain_server: EmbeddedServer
) -> EmbeddedServer:
    """Either server, so that all of this file runs on both."""
    return server if request.param == "search" else plain_server


@pytest.fixture
def url(server: EmbeddedServer, client: Client) -> str:
    """Return the address of a server that holds nothing."""
    assert client.call("DBSIZE") == 0
    return server.url


Keep = Callable[[Any], Any]


@pytest.fixture
def history(url: str, kept: Keep) -> RedisChatMessageHistory:
    return kept(RedisChatMessageHistory("s", url))  # type: ignore[no-any-return]


# -- whole messages ------------------------------------------------------------------------------

USAGE: Any = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
CALL: Any = {"name": "f", "args": {"a": [1, None]}, "id": "c1", "type": "tool_call"}
INVALID: Any = {
    "name": "f",
    "args": "{",
    "id": "c2",
    "error": "no JSON",
    "type": "invalid_tool_call",
}
PIECE: Any = {"name": "f", "args": '{"a', "id": "c1", "index": 0, "type": "tool_call_chunk"}
PARTS: Any = [
    {"type": "text", "text": "look"},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    "bare",
]
WHOLE: list[BaseMessage] = [
    HumanMessage("hello"),
    HumanMessage(""),
    HumanMessage('é日本🦜 \0\r\n "quotes" \\ {}', name="bob", id="h1"),
    HumanMessage(PARTS),
    HumanMessage(content=[]),
    HumanMessage(
        "x", additional_kwargs={"a": {"b": [None, 1.5, True]}}, response_metadata={"c": 1}
    ),
    AIMessage("hi", id="a1", name="ai", response_metadata={"model_name": "m", "logprobs": [-0.5]}),
    AIMessage("", tool_calls=[CALL], invalid_tool_calls=[INVALID], usage_metadata=USAGE),
    AIMessage(PARTS, additional_kwargs={"refusal": None}),
    AIMessage("", additional_kwargs={"function_call": {"name": "f", "arguments": "{}"}}),
    AIMessageChunk(content="par", id="run-1", tool_call_chunks=[PIECE], usage_metadata=USAGE),
    AIMessageChunk(content="t", chunk_position="last"),
    SystemMessage("be short", id="s1", name="boss"),
    SystemMessage("be short", additional_kwargs={"__openai_role__": "developer"}),
    ToolMessage("42", tool_call_id="c1", name="f", id="t1", artifact={"raw": [1, {"x": None}]}),
    ToolMessage("oh", tool_call_id="c2", status="error", artifact="text"),
    ToolMessage(PARTS, tool_call_id="c3", response_metadata={"a": 1}),
    FunctionMessage(content="42", name="f", id="f1"),
    ChatMessage(content="hm", role="critic", name="bob"),
    ChatMessage(content="hm", role="user"),
    RemoveMessage(id="a1"),
]


@pytest.mark.parametrize("message", WHOLE, ids=lambda one: f"{one.type}: {one.content}"[:30])
async def test_a_message_comes_back_equal(
    history: RedisChatMessageHistory, message: BaseMessage
) -> None:
    copy = message.model_copy(deep=True)
    history.add_message(message)
    for [found] in (history.messages, await history.aget_messages()):
        assert found == copy
        assert type(found) is type(message)
    assert message == copy


async def test_messages_of_all_types_keep_their_order(history: RedisChatMessageHistory) -> None:
    history.add_messages(WHOLE[:7])
    await history.aadd_messages(WHOLE[7:])
    assert history.messages == await history.aget_messages() == WHOLE
    history.add_messages([HumanMessage(f"{i}") for i in range(300)])
    assert [m.content for m in history.messages[len(WHOLE) :]] == [f"{i}" for i in range(300)]
    assert len(history) == len(WHOLE) + 300


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
DICT = st.dictionaries(TEXT.filter(lambda key: "call" not in key), JSON, max_size=3)
COMMON: dict[str, Any] = {
    "content": TEXT | st.lists(TEXT | DICT, max_size=3),
    "name": st.none() | TEXT,
    "id": st.none() | TEXT,
    "additional_kwargs": DICT,
    "response_metadata": DICT,
}
CALLS = st.lists(
    st.fixed_dictionaries({"name": TEXT, "args": DICT, "id": st.none() | TEXT}), max_size=2
)
INVALIDS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.none() | TEXT,
            "args": st.none() | TEXT,
            "id": st.none() | TEXT,
            "error": st.none() | TEXT,
            "type": st.just("invalid_tool_call"),
        }
    ),
    max_size=2,
)
COUNT = st.integers(0, 2**31)
USAGES = st.none() | st.builds(
    lambda a, b: {"input_tokens": a, "output_tokens": b, "total_tokens": a + b}, COUNT, COUNT
)
ANY_MESSAGE: st.SearchStrategy[BaseMessage] = st.one_of(
    st.builds(HumanMessage, **COMMON),
    st.builds(SystemMessage, **COMMON),
    st.builds(
        AIMessage, **COMMON, tool_calls=CALLS, invalid_tool_calls=INVALIDS, usage_metadata=USAGES
    ),
    st.builds(AIMessageChunk, **COMMON, tool_calls=CALLS, usage_metadata=USAGES),
    st.builds(
        ToolMessage,
        **COMMON,
        tool_call_id=TEXT,
        status=st.sampled_from(["success", "error"]),
        artifact=JSON,
    ),
    st.builds(FunctionMessage, **{**COMMON, "content": TEXT, "name": TEXT}),
    st.builds(ChatMessage, **COMMON, role=TEXT.filter(lambda role: bool(role.strip()))),
)


@given(messages=st.lists(ANY_MESSAGE, max_size=4, unique_by=lambda one: one.id or object()))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_messages_come_back_equal(client: Client, messages: list[BaseMessage]) -> None:
    history = RedisChatMessageHistory("s", client=client)
    history.clear()
    history.add_messages(messages)
    assert history.messages == messages


def test_what_json_does_not_have_is_refused_and_nothing_is_written(
    history: RedisChatMessageHistory,
) -> None:
    for value, name in ((b"\xff", "bytes"), ({1}, "set"), (object(), "object")):
        wrong = ToolMessage("x", tool_call_id="c", artifact={"deep": [value]})
        with pytest.raises(TypeError, match=name):
            history.add_messages([HumanMessage("first"), wrong, HumanMessage("last")])
    none: Any = "a text"
    with pytest.raises(TypeError, match="BaseMessage"):
        history.add_messages([HumanMessage("first"), none])
    assert history.messages == []


class _OfTheirOwn(HumanMessage):
    """A class of the user's, which nothing could load again."""


def test_a_message_of_a_users_own_class_comes_back_as_what_it_is_a_kind_of(
    history: RedisChatMessageHistory,
) -> None:
    history.add_message(_OfTheirOwn(content="x", id="1"))
    assert history.messages == [HumanMessage("x", id="1")]


def test_an_answer_from_a_cache_can_be_remembered(
    url: str, kept: Keep, history: RedisChatMessageHistory
) -> None:
    model = FakeListChatModel(responses=["hi"], cache=kept(RedisCache(redis_url=url)))
    model.invoke("hello")
    answer = model.invoke("hello")  # LangChain writes total_cost=0 into the usage it has not
    history.add_messages([HumanMessage("hello"), answer])
    assert [message.content for message in history.messages] == ["hello", "hi"]


def test_what_is_said_twice_is_there_twice(history: RedisChatMessageHistory) -> None:
    answer = AIMessage("yes", id="run-1")  # from a cache, for one
    for question in ("really?", "and now?"):
        history.add_messages([HumanMessage(question), answer])
    assert [m.content for m in history.messages] == ["really?", "yes", "and now?", "yes"]


def test_a_field_of_a_users_own_is_kept(history: RedisChatMessageHistory) -> None:
    extra: dict[str, Any] = {"role": "moderator", "mood": "good"}
    message = AIMessage("x", **extra)
    history.add_message(message)
    assert history.messages == [message]


# -- the list ------------------------------------------------------------------------------------


async def test_what_is_done_to_the_messages_does_not_touch_the_store(
    history: RedisChatMessageHistory,
) -> None:
    given_ = HumanMessage("x", additional_kwargs={"a": [1]})
    history.add_message(given_)
    given_.content = "y"
    for found in (history.messages, await history.aget_messages()):
        found[0].content = "z"
        found[0].additional_kwargs["a"].append(2)
        found.append(AIMessage("w"))
    expected = [HumanMessage("x", additional_kwargs={"a": [1]})]
    assert history.messages == expected
    changed: Any = history
    with pytest.raises(AttributeError):
        changed.messages = []
    assert history.messages == expected


async def test_every_way_to_add_adds_in_order(history: RedisChatMessageHistory) -> None:
    history.add_user_message("1")
    history.add_user_message(HumanMessage("2", name="bob"))
    history.add_ai_message("3")
    history.add_ai_message(AIMessage("4", id="a"))
    history.add_message(SystemMessage("5"))
    await history.aadd_messages([HumanMessage("6"), AIMessage("7")])
    history.add_messages([])
    assert [(m.type, m.content) for m in history.messages] == [
        ("human", "1"),
        ("human", "2"),
        ("ai", "3"),
        ("ai", "4"),
        ("system", "5"),
        ("human", "6"),
        ("ai", "7"),
    ]
    assert str(history).startswith("Human: 1\nHuman: 2\nAI: 3")
    assert len(history) == 7


def test_a_history_is_true_without_a_question_to_the_server(kept: Keep) -> None:
    assert bool(kept(RedisChatMessageHistory("s", NOBODY)))


def test_a_server_that_is_away_raises(kept: Keep) -> None:
    history = kept(RedisChatMessageHistory("s", NOBODY))
    with pytest.raises(errors.ConnectionError):
        history.add_user_message("x")
    with pytest.raises(errors.ConnectionError):
        _ = history.messages


async def test_search_finds_the_newest_messages_that_hold_every_word(
    history: RedisChatMessageHistory,
) -> None:
    history.add_messages(
        [
            HumanMessage("Hello World"),
            AIMessage("the WORLD is round"),
            SystemMessage("nothing"),
            HumanMessage([{"type": "text", "text": "hello, brave new world"}]),
        ]
    )
    every = [message.model_dump() for message in history.messages]
    assert history.search_messages("world") == [every[0], every[1], every[3]]
    assert history.search_messages("hello WORLD") == [every[0], every[3]]
    assert history.search_messages("world", limit=2) == [every[1], every[3]]
    assert await history.asearch_messages("world", 1) == [every[3]]
    assert history.search_messages("no such word") == []
    assert history.search_messages("") == history.search_messages("  ") == []
    with pytest.raises(ValueError, match="limit"):
        history.search_messages("world", limit=0)


def test_search_finds_bare_parts(history: RedisChatMessageHistory) -> None:
    history.add_user_message(HumanMessage(["hello world"]))
    assert len(history.search_messages("world")) == 1


# -- sessions ------------------------------------------------------------------------------------

SESSIONS = ["u1", "U1", " u1", "u1 ", " ", "u1,u2", "u2", "u1\0x", "u1:x", "u1%3Ax", "u*"]
SESSIONS += ["\u00e9", "e\u0301"]  # the same to the eye


async def test_sessions_are_apart(url: str, kept: Keep) -> None:
    histories = [kept(RedisChatMessageHistory(session, url)) for session in SESSIONS]
    for at, history in enumerate(histories):
        assert history.messages == []
        assert history.session_id == SESSIONS[at]
        history.add_user_message(f"of {at}")
    assert len({history.key for history in histories}) == len(SESSIONS)
    for at, history in enumerate(histories):
        assert [message.content for message in history.messages] == [f"of {at}"]
    for at, history in enumerate(histories):
        if at % 2:
            history.clear()
        else:
            await history.aclear()
        left = [bool(await other.aget_messages()) for other in histories]
        assert left == [False] * (at + 1) + [True] * (len(SESSIONS) - at - 1)


def test_prefixes_are_apart(url: str, client: Client, kept: Keep) -> None:
    places = [("a", "b"), ("a:b", "c"), ("a", "b:c"), ("A", "b"), ("chat", "b")]
    histories = [kept(RedisChatMessageHistory(s, url, key_prefix=p)) for p, s in places]
    for at, history in enumerate(histories):
        history.add_user_message(f"{at}")
    client.call("SET", "a:other", "x")
    histories[0].clear()
    assert [[m.content for m in h.messages] for h in histories] == [[], ["1"], ["2"], ["3"], ["4"]]
    assert client.call("GET", "a:other") == b"x"
    assert kept(RedisChatMessageHistory("b", url, "chat:")).messages == histories[4].messages


@pytest.mark.parametrize("session", ["", None, 5])
def test_a_session_must_have_an_id(session: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="session"):
        RedisChatMessageHistory(session, NOBODY)


async def test_each_message_renews_the_whole_sessions_ttl(
    url: str, client: Client, kept: Keep
) -> None:
    history = kept(RedisChatMessageHistory("s", url, ttl=100))
    writes: list[Callable[[], Any]] = [
        lambda: history.add_user_message("x"),
        lambda: history.add_messages([AIMessage("x")]),
        lambda: history.aadd_messages([AIMessage("y")]),
    ]
    for write in writes:
        client.call("PEXPIRE", history.key, 5000)
        done = write()
        if done is not None:
            await done
        assert 50_000 < client.call("PTTL", history.key) <= 100_000
    _ = history.messages
    assert len(history) == 3
    [key] = client.call("KEYS", "*")  # nothing else can stay behind
    assert key.decode() == history.key


def test_a_session_goes_when_its_time_is_up(url: str, kept: Keep) -> None:
    history = kept(RedisChatMessageHistory("s", url, ttl=1))
    history.add_messages([HumanMessage("x"), AIMessage("y")])
    until = time.monotonic() + 20
    while history.messages:
        assert time.monotonic() < until
        time.sleep(0.2)


def test_without_a_ttl_a_session_stays(history: RedisChatMessageHistory, client: Client) -> None:
    history.add_user_message("x")
    assert client.call("PTTL", history.key) == -1


# -- where ---------------------------------------------------------------------------------------

FORMS: dict[str, Callable[[str, Any], RedisChatMessageHistory]] = {
    "url": lambda url, _: RedisChatMessageHistory("s", url),
    "url=": lambda url, _: RedisChatMessageHistory("s", url=url),
    "redis_url=": lambda url, _: RedisChatMessageHistory(session_id="s", redis_url=url),
    "client=": lambda _, client: RedisChatMessageHistory("s", client=client),
    "redis_client=": lambda _, client: RedisChatMessageHistory("s", redis_client=client),
}


@pytest.mark.parametrize("colour", [Client, AsyncClient])
@pytest.mark.parametrize("form", FORMS)
async def test_every_way_to_say_where_is_understood(url: str, form: str, colour: Any) -> None:
    theirs = colour(url)
    history = FORMS[form](url, theirs)
    history.add_user_message("x")
    await history.aadd_messages([AIMessage("y")])
    assert [m.content for m in history.messages] == ["x", "y"]
    await history.aclose()
    closing = theirs.close()
    if closing is not None:
        await closing


def test_where_is_said_once_and_by_one_of_ours(url: str, client: Client) -> None:
    wrong: list[dict[str, Any]] = [
        {"url": url, "redis_url": url},
        {"url": url, "client": client},
        {"redis_url": url, "client": client},
        {"client": client, "redis_client": client},
        {"client": object()},
    ]
    for options in wrong:
        with pytest.raises(TypeError):
            RedisChatMessageHistory("s", **options)


def test_the_environment_says_where_if_nobody_else_does(
    url: str, client: Client, kept: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    kept(RedisChatMessageHistory("s")).add_user_message("x")
    assert client.call("DBSIZE") == 1


# -- end to end ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory is deprecated")
async def test_a_chain_remembers_each_session(url: str, kept: Keep) -> None:
    seen: list[list[str]] = []

    class Model(FakeListChatModel):
        def _call(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> str:
            seen.append([str(message.content) for message in messages])
            return super()._call(messages, *args, **kwargs)

    def history_of(session_id: str) -> BaseChatMessageHistory:
        return kept(RedisChatMessageHistory(session_id, url))  # type: ignore[no-any-return]

    prompt = ChatPromptTemplate.from_messages(
        [("system", "be kind"), MessagesPlaceholder("past"), ("human", "{question}")]
    )
    chain: Any = RunnableWithMessageHistory(
        prompt | Model(responses=[f"answer {i}" for i in range(9)]),
        history_of,
        input_messages_key="question",
        history_messages_key="past",
    )
    one: Any = {"configurable": {"session_id": "one"}}
    two: Any = {"configurable": {"session_id": "two"}}
    assert chain.invoke({"question": "a"}, one).content == "answer 0"
    assert (await chain.ainvoke({"question": "b"}, one)).content == "answer 1"
    assert chain.invoke({"question": "c"}, two).content == "answer 2"
    assert seen == [
        ["be kind", "a"],
        ["be kind", "a", "answer 0", "b"],
        ["be kind", "c"],
    ]
    assert [m.content for m in history_of("one").messages] == ["a", "answer 0", "b", "answer 1"]
    assert [m.content for m in await history_of("two").aget_messages()] == ["c", "answer 2"]


OPENAI: list[dict[str, Any]] = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "what is f?", "name": "bob"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "f", "arguments": '{"a": [1, null]}'},
            }
        ],
    },
    {"role": "tool", "content": "42", "tool_call_id": "c1"},
    {"role": "assistant", "content": "it is 42"},
    {"role": "user", "content": [{"type": "text", "text": "thanks"}]},
    {"role": "developer", "content": "be longer"},
    {"role": "user", "content": None},
]


async def test_what_other_code_wrote_is_read(
    client: Client, history: RedisChatMessageHistory
) -> None:
    ChatHistory(client, "s").add_many(OPENAI)
    found = history.messages
    assert found == await history.aget_messages()
    assert found[:6] == [
        SystemMessage("be short"),
        HumanMessage("what is f?", name="bob"),
        AIMessage("", tool_calls=[CALL]),
        ToolMessage("42", tool_call_id="c1"),
        AIMessage("it is 42"),
        HumanMessage([{"type": "text", "text": "thanks"}]),
    ]
    assert (found[6].type, found[6].content) == ("system", "be longer")
    assert found[7] == HumanMessage("")


def test_a_role_of_ones_own_is_a_chat_message(
    client: Client, history: RedisChatMessageHistory
) -> None:
    ChatHistory(client, "s").add("moderator", "order!")
    [found] = history.messages
    assert isinstance(found, ChatMessage)
    assert (found.role, found.content) == ("moderator", "order!")


def test_a_call_with_damaged_arguments_is_an_invalid_one(
    client: Client, history: RedisChatMessageHistory
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": '}}
    ChatHistory(client, "s").add("assistant", None, tool_calls=[call])
    [found] = history.messages
    assert isinstance(found, AIMessage)
    assert not found.tool_calls
    assert [(one["name"], one["args"]) for one in found.invalid_tool_calls] == [("f", '{"a": ')]


def test_other_code_reads_what_langchain_wrote(
    client: Client, history: RedisChatMessageHistory
) -> None:
    history.add_messages(
        [
            SystemMessage("be short"),
            HumanMessage("what is f?", name="bob"),
            AIMessage("", tool_calls=[CALL]),
            ToolMessage("42", tool_call_id="c1"),
            AIMessage("it is 42"),
            ChatMessage(content="hm", role="critic"),
        ]
    )
    ours = ChatHistory(client, "s")
    found = ours.messages()
    roles = ["system", "user", "assistant", "tool", "assistant", "critic"]
    assert [message.role for message in found] == roles
    contents = ["be short", "what is f?", "", "42", "it is 42", "hm"]
    assert [message.content for message in found] == contents
    assert found[1].extra["name"] == "bob"
    assert found[3].extra["tool_call_id"] == "c1"
    calls = ours.window(10_000)  # which keeps a call and its result together
    assert [message.content for message in calls] == contents
    assert [message.role for message in ours.messages(roles=["user"])] == ["user"]
