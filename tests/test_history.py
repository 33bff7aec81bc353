"""Chat history: whole messages in the server's order, session by session; no search needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import time
from typing import TYPE_CHECKING, Any

import pytest

from counting import cost
from rawredis_llm import ChatHistory, Client, EmbeddedServer, Message, errors

if TYPE_CHECKING:
    from conftest import Redis

NOBODY = "redis://127.0.0.1:1/0"
"""An address where no server listens: any I/O raises ConnectError."""


@pytest.fixture(scope="module", params=["search", "plain"])
def server(
    request: pytest.FixtureRequest, server: EmbeddedServer, plain_server: EmbeddedServer
) -> EmbeddedServer:
    """Either server, so that all of this file runs on both."""
    return server if request.param == "search" else plain_server


def keys(redis: Redis) -> set[bytes]:
    """Return every key there is."""
    return set(redis.do(redis.client.call("KEYS", "*")))


def contents(messages: list[Message]) -> list[Any]:
    """Return what messages say, in order."""
    return [message.content for message in messages]


# -- messages ------------------------------------------------------------------------------------


def test_messages_come_back_in_order(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    assert redis.do(history.messages()) == []
    ids = [redis.do(history.add("user", f"{i}")) for i in range(3)]
    ids += redis.do(history.add_many([{"role": "user", "content": f"{i}"} for i in range(3, 25)]))
    messages = redis.do(history.messages())
    assert contents(messages) == [f"{i}" for i in range(25)]
    assert [message.id for message in messages] == ids
    assert len(set(ids)) == 25
    assert redis.do(history.count()) == 25
    assert all(abs(message.created - time()) < 60 for message in messages)
    assert [m.created for m in messages] == sorted(m.created for m in messages)


@pytest.mark.parametrize(
    ("last", "wanted"), [(1, [4]), (3, [2, 3, 4]), (5, range(5)), (9, range(5))]
)
def test_the_last_so_many_are_the_newest_oldest_first(
    redis: Redis, last: int, wanted: list[int]
) -> None:
    history = ChatHistory(redis.client, "s")
    redis.do(history.add_many({"role": "user", "content": i} for i in range(5)))
    assert contents(redis.do(history.messages(last=last))) == list(wanted)
    assert contents(redis.do(history.messages(last))) == list(wanted)


WHOLE: list[dict[str, Any]] = [
    {"role": "user", "content": "hello"},
    {"role": "user", "content": ""},
    {"role": "user", "content": None},
    {"role": "user", "content": 'é日本🦜 \0 \r\n "quotes" \\ {}'},
    {"role": "user", "content": "x" * 300_000},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "what is this?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        ],
    },
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "function": {"name": "f", "arguments": '{"a": [1, 2.5, null]}'}}
        ],
        "usage": {"input": 10, "output": 2, "cost": 0.001, "cached": False},
    },
    {"role": "tool", "content": "42", "tool_call_id": "call_1", "name": "f"},
    {"role": "a role of one's own", "content": {"deep": {"er": [[[]]]}}, "self": 1, "": "x"},
    {
        "role": "user",
        "content": "x",
        "id": "mine",
        "created": "then",
        "key": "k",
        "extra": {"a": 1},
    },
]


@pytest.mark.parametrize("message", WHOLE, ids=lambda message: str(message)[:40])
def test_a_message_comes_back_whole(redis: Redis, message: dict[str, Any]) -> None:
    extra = {name: value for name, value in message.items() if name not in ("role", "content")}
    expected = Message(message["role"], message["content"], extra=extra)
    ways: dict[str, Callable[[ChatHistory[Any]], Any]] = {
        "by add": lambda history: history.add(message["role"], message["content"], **extra),
        "as a dict": lambda history: history.add_many([message]),
        "as a Message": lambda history: history.add_many([expected]),
    }
    for session, way in ways.items():
        history = ChatHistory(redis.client, session)
        given = redis.do(way(history))
        [found] = redis.do(history.messages())
        assert (found.role, found.content, found.extra) == (
            expected.role,
            expected.content,
            expected.extra,
        )
        assert found.id == (given if isinstance(given, str) else given[0])
        assert found.to_dict() == message


def test_messages_can_be_copied_to_another_session(redis: Redis) -> None:
    old, new = ChatHistory(redis.client, "old"), ChatHistory(redis.client, "new")
    redis.do(old.add_many(WHOLE))
    messages = redis.do(old.messages())
    redis.do(new.add_many(messages))
    assert [(m.role, m.content, m.extra) for m in redis.do(new.messages())] == [
        (m.role, m.content, m.extra) for m in messages
    ]


def test_an_empty_list_adds_nothing(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s", ttl=5)
    assert redis.do(history.add_many([])) == []
    assert keys(redis) == set()


# -- sessions ------------------------------------------------------------------------------------

SESSIONS = [
    ("chat", "u1"),
    ("chat", "U1"),
    ("chat", " u1"),
    ("chat", "u1 "),
    ("chat", " "),
    ("chat", "u1,u2"),
    ("chat", "u2"),
    ("chat", "u1\0x"),
    ("chat", "*"),
    ("chat", "u?"),
    ("chat", "[u]1"),
    ("chat", "a:b"),
    ("chat", "a%3Ab"),
    ("chat", "a%3ab"),
    ("chat", "a%253Ab"),
    ("chat", "%"),
    ("chat", "%25"),
    ("chat", ":"),
    ("chat", "b"),
    ("chat:a", "b"),
    ("chat:", "a:b"),
    ("chat:a:b", ":"),
    ("ch", "at:b"),
    ("*", "u1"),
    ("chat", "日本"),
    ("chat", "é"),
    ("chat", "e\u0301"),
    ("chat", "x" * 10_000),
]


def test_sessions_are_exact(redis: Redis) -> None:
    histories = [ChatHistory(redis.client, name, namespace=space) for space, name in SESSIONS]
    for i, history in enumerate(histories):
        assert redis.do(history.messages()) == [], SESSIONS[i]
        redis.do(history.add("user", i))
    assert [contents(redis.do(h.messages())) for h in histories] == [
        [i] for i in range(len(SESSIONS))
    ]
    assert len(keys(redis)) == len(SESSIONS)


@pytest.mark.parametrize("which", range(len(SESSIONS)), ids=[f"{s[:20]!r}" for _, s in SESSIONS])
def test_clear_forgets_this_session_only(redis: Redis, which: int) -> None:
    histories = [ChatHistory(redis.client, name, namespace=space) for space, name in SESSIONS]
    for history in histories:
        redis.do(history.add("user", "x"))
    before = keys(redis)
    assert redis.do(histories[which].clear()) is True
    assert len(before - keys(redis)) == 1
    assert redis.do(histories[which].count()) == 0
    assert [redis.do(h.count()) for h in histories].count(1) == len(SESSIONS) - 1
    assert redis.do(histories[which].clear()) is False


# -- how long, how many --------------------------------------------------------------------------


def test_max_messages_drops_the_oldest(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s", max_messages=3)
    for i in range(5):
        redis.do(history.add("user", i))
    assert contents(redis.do(history.messages())) == [2, 3, 4]
    redis.do(history.add_many([{"role": "user", "content": i} for i in (5, 6)]))
    assert contents(redis.do(history.messages())) == [4, 5, 6]
    redis.do(history.add_many([{"role": "user", "content": i} for i in range(10)]))
    assert contents(redis.do(history.messages())) == [7, 8, 9]
    assert redis.do(history.count()) == 3
    ChatHistory(redis.client, "s")
    assert redis.do(ChatHistory(redis.client, "s").count()) == 3


def test_without_a_limit_nothing_is_dropped(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    redis.do(history.add_many([{"role": "user", "content": i} for i in range(3000)]))
    assert contents(redis.do(history.messages())) == list(range(3000))


def test_ttl_is_the_sessions_and_renewed_by_each_write(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s", ttl=100)

    def left() -> float:
        seconds: float = redis.do(redis.client.call("PTTL", history.key)) / 1000
        return seconds

    writes: list[Callable[[], Any]] = [
        lambda: history.add("user", "x"),
        lambda: history.add_many([{"role": "user", "content": "x"}] * 2),
    ]
    for write, count in zip(writes, (1, 2), strict=True):
        ids = redis.do(write())
        assert (ids if count > 1 else [ids]) == [m.id for m in redis.do(history.messages(count))]
        assert 90 < left() <= 100
        redis.do(redis.client.call("PEXPIRE", history.key, 5000))
    redis.do(history.messages())
    redis.do(history.count())
    assert left() <= 5
    redis.do(ChatHistory(redis.client, "for ever").add("user", "x"))
    assert redis.do(redis.client.call("PTTL", "chat:for ever")) == -1


# -- what it costs, all or none ------------------------------------------------------------------


def test_each_call_is_one_round_trip(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    message = {"role": "user", "content": "x"}
    redis.do(history.add("user", "the server has the script now"))
    added = cost(redis, lambda: history.add("user", "x"))
    assert (added.round_trips, added.commands) == (1, {"EVALSHA": 1, "XREVRANGE": 1, "XADD": 1})
    many = cost(redis, lambda: history.add_many([message] * 20))
    assert (many.round_trips, many.commands) == (1, {"EVALSHA": 1, "XREVRANGE": 1, "XADD": 20})
    lasting = ChatHistory(redis.client, "t", ttl=5, max_messages=10)
    timed = cost(redis, lambda: lasting.add("user", "x"))
    assert timed.round_trips == 1
    inside = {"XREVRANGE": 1, "XADD": 1, "XTRIM": 1, "PEXPIRE": 1}
    assert timed.commands == {"EVALSHA": 1, **inside}
    read = cost(redis, lambda: history.messages(last=10))
    assert (read.round_trips, read.commands) == (1, {"XREVRANGE": 1})
    assert len(read.result) == 10


def test_many_are_added_all_or_none(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    with pytest.raises(TypeError, match="message"):
        redis.do(history.add_many([{"role": "u", "content": 1}, {"role": "u", "content": {1}}]))
    assert keys(redis) == set()
    redis.do(redis.client.call("SET", history.key, "no stream"))
    with pytest.raises(errors.WrongTypeError):
        redis.do(history.add_many([{"role": "u", "content": 1}] * 2))
    with pytest.raises(errors.WrongTypeError):
        redis.do(history.messages())
    with pytest.raises(errors.WrongTypeError):
        redis.do(history.add("u", 1))
    assert redis.do(redis.client.call("GET", history.key)) == b"no stream"


@pytest.mark.parametrize(
    "fields",
    [
        ("foo", "bar"),
        ("message", ""),
        ("message", "text"),
        ("message", b"\xff"),
        ("message", "[]"),
        ("message", "null"),
        ("message", '{"content":"x"}'),
    ],
)
def test_a_foreign_entry_is_not_passed_over_in_silence(
    redis: Redis, fields: tuple[str, str]
) -> None:
    history = ChatHistory(redis.client, "s")
    redis.do(history.add("user", "ours"))
    id_ = redis.do(redis.client.call("XADD", history.key, "*", *fields)).decode()
    with pytest.raises(errors.UnexpectedReplyError, match=f"{id_} is not a message of ours"):
        redis.do(history.messages())
    with pytest.raises(errors.UnexpectedReplyError, match=id_):
        redis.do(history.messages(last=1))


# -- the caller's mistakes -----------------------------------------------------------------------

BAD_CALLS: list[tuple[type[Exception], str, Callable[[Any], object]]] = [
    (ValueError, "role", lambda h: h.add("", "x")),
    (ValueError, "role", lambda h: h.add(" ", "x")),
    (TypeError, "role", lambda h: h.add(None, "x")),
    (TypeError, "role", lambda h: h.add(b"user", "x")),
    (TypeError, "message", lambda h: h.add("user", b"bytes")),
    (TypeError, "message", lambda h: h.add("user", {1, 2})),
    (ValueError, "message", lambda h: h.add("user", math.nan)),
    (ValueError, "message", lambda h: h.add("user", "\ud800")),
    (TypeError, "message", lambda h: h.add("user", "x", extra=object())),
    (TypeError, "a Message or a dict", lambda h: h.add_many(["text"])),
    (TypeError, "a Message or a dict", lambda h: h.add_many([("user", "x")])),
    (ValueError, "role and content", lambda h: h.add_many([{"role": "user"}])),
    (ValueError, "role and content", lambda h: h.add_many([{"content": "x"}])),
    (TypeError, "role", lambda h: h.add_many([{"role": 5, "content": "x"}])),
    (ValueError, "role", lambda h: h.add_many([Message("user", "x"), Message("", "x")])),
    (ValueError, "last", lambda h: h.messages(last=0)),
    (ValueError, "last", lambda h: h.messages(last=-1)),
    (ValueError, "last", lambda h: h.messages(last=True)),
    (TypeError, "last", lambda h: h.messages(last="5")),
    (TypeError, "last", lambda h: h.messages(last=1.5)),
]


@pytest.mark.parametrize(("error", "argument", "use"), BAD_CALLS)
def test_a_bad_argument_is_refused_before_any_io(
    error: type[Exception], argument: str, use: Callable[[Any], object]
) -> None:
    with Client(NOBODY) as client, pytest.raises(error, match=argument) as caught:
        use(ChatHistory(client, "s"))
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"session": ""}, ValueError),
        ({"session": None}, TypeError),
        ({"session": 5}, TypeError),
        ({"session": "\ud800"}, ValueError),
        ({"namespace": ""}, ValueError),
        ({"namespace": None}, TypeError),
        ({"ttl": 0}, ValueError),
        ({"ttl": -1}, ValueError),
        ({"ttl": True}, TypeError),
        ({"max_messages": 0}, ValueError),
        ({"max_messages": -1}, ValueError),
        ({"max_messages": True}, ValueError),
        ({"max_messages": 1.5}, TypeError),
    ],
    ids=str,
)
def test_a_bad_option_is_named(options: dict[str, Any], error: type[Exception]) -> None:
    with Client(NOBODY) as client, pytest.raises(error, match=next(iter(options))):
        ChatHistory(client, **{"session": "s", **options})


def test_a_server_out_of_reach_raises(redis: Redis) -> None:
    history = ChatHistory(redis.connect(url=NOBODY), "s")
    calls: list[Callable[[], Any]] = [
        history.messages,
        history.count,
        history.clear,
        lambda: history.add("user", "x"),
    ]
    for call in calls:
        with pytest.raises(errors.ConnectError):
            redis.do(call())
