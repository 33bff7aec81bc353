"""The sessions of a namespace: exactly its own, whatever they and other keys are called."""

from __future__ import annotations

from collections.abc import Callable
from time import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from chats import NOBODY, contents, left, put, said
from counting import cost
from documents import meanwhile
from rawredis_llm import ChatHistory, ChatSessions, Client, EmbeddedServer, LLMCache, errors

if TYPE_CHECKING:
    from conftest import Redis

NAMES = [
    "u1", "U1", " u1", "u1 ", "u1,u2", "u2", "u1\0x", "u1\0", "a:b", "a%3Ab", "a%253Ab", "a%3ab",
    "a", "b", ":", "::", "%", "%%", "%25", "*", "u?", "[u]1", "u\\1", "日本", "é", "e\u0301", "\n",
    "a\nb", " ", "x" * 3000, "5-0", "-", "^",
]  # fmt: skip
SPACES = ["chat", "chat:a", "chat:a:b", "ch", "Chat", "c?at", "*", "[c]hat", "c\\hat", "a:*", "é "]
"""Namespaces of which some are patterns that others match, or what others begin with."""


@pytest.fixture(scope="module")
def server(plain_server: EmbeddedServer) -> EmbeddedServer:
    """A server without a search module: history needs none."""
    return plain_server


def listed(redis: Redis, namespace: str = "chat") -> dict[str, int]:
    """Return the sessions of a namespace that are listed, and how many messages they have."""
    sessions = redis.do(ChatSessions(redis.client, namespace).list())
    found = {one.session: one.count for one in sessions}
    assert len(found) == len(sessions), "one is listed twice"
    return found


def dump(redis: Redis) -> dict[bytes, Any]:
    """Return all that is stored, by keys."""
    keys = redis.do(redis.client.call("KEYS", "*"))
    dumps = redis.do(redis.client.pipeline([("DUMP", key) for key in keys]))
    return dict(zip(keys, dumps, strict=True))


# -- which there are -----------------------------------------------------------------------------


def test_all_sessions_of_a_namespace_are_listed_by_their_names(redis: Redis) -> None:
    assert listed(redis) == {}
    for i, name in enumerate(NAMES):
        redis.do(ChatHistory(redis.client, name).add_many(said(*range(i + 1))))
    assert listed(redis) == {name: i + 1 for i, name in enumerate(NAMES)}
    for name in listed(redis):  # each leads back to its messages
        history = ChatHistory(redis.client, name)
        assert contents(redis.do(history.messages())) == list(range(NAMES.index(name) + 1))


def test_each_namespace_lists_its_own(redis: Redis) -> None:
    for space in SPACES:
        for name in ("u1", "a:b", f"of {space}"):
            history = ChatHistory(redis.client, name, namespace=space)
            redis.do(history.add_many(said(space, name)))
    for space in SPACES:
        assert listed(redis, space) == {"u1": 2, "a:b": 2, f"of {space}": 2}, space
    assert listed(redis, "chat:") == listed(redis, "nobody") == listed(redis, "c") == {}


def test_the_one_that_was_last_active_is_first(redis: Redis) -> None:
    moments = {"b": 1_700_000_000_123, "a": 1_700_000_000_000, "d": 1_800_000_000_500, "c": 5}
    for name, moment in moments.items():
        key = ChatHistory(redis.client, name).key
        put(redis, key, "1-0", "x")
        put(redis, key, f"{moment}-3", "y")
    redis.do(ChatHistory(redis.client, "now").add("user", "x"))
    sessions = redis.do(ChatSessions(redis.client).list())
    by_name = {one.session: one for one in sessions}
    assert abs(by_name.pop("now").last_activity - time()) < 3600
    assert {name: one.last_activity for name, one in by_name.items()} == {
        name: moment / 1000 for name, moment in moments.items()
    }
    active = [one.last_activity for one in sessions]
    assert active == sorted(active, reverse=True)
    assert {one.count for one in by_name.values()} == {2}


def test_what_has_no_messages_is_no_session(redis: Redis) -> None:
    acts: dict[str, Callable[[Any, str], Any]] = {
        "cleared": lambda h, _: h.clear(),
        "deleted": lambda h, id_: h.delete(id_),
        "truncated": lambda h, _: h.truncate(0),
        "taken back": lambda h, _: h.truncate(after="1-0"),
    }
    for name, act in acts.items():
        history = ChatHistory(redis.client, name)
        id_ = redis.do(history.add("user", "x"))
        assert listed(redis) == {name: 1}
        redis.do(act(history, id_))
        assert listed(redis) == {}


def test_thousands_are_listed_over_many_pages(redis: Redis) -> None:
    names = [f"s{i}" for i in range(3000)]
    commands = [("SET", f"chat:{name}:other", 1) for name in names]
    redis.do(redis.client.pipeline(commands))
    histories: list[Any] = [ChatHistory(redis.client, name) for name in names]
    redis.do(redis.client.gather([history.plan.add("user", "x") for history in histories]))
    assert listed(redis) == dict.fromkeys(names, 1)
    assert redis.do(ChatSessions(redis.client).delete(idle=1000)) == 0
    assert redis.do(redis.client.call("DBSIZE")) == 6000


def test_a_session_was_active_when_something_was_added_though_it_is_gone(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    put(redis, history.key, "1000-0", "old")
    redis.do(history.delete(redis.do(history.add("user", "by mistake"))))
    [session] = redis.do(ChatSessions(redis.client).list())
    assert (session.session, session.count) == ("s", 1)
    assert abs(session.last_activity - time()) < 3600


FOREIGN: list[tuple[Any, ...]] = [
    ("SET", "chat:text", "x"),
    ("RPUSH", "chat:list", "x"),
    ("SADD", "chat:set", "x"),
    ("ZADD", "chat:sorted", 1, "x"),
    ("HSET", "chat:hash", "f", "x"),
    ("XADD", "chat:a:b", "5-0", "of", "another namespace"),
    ("XADD", "chat:", "5-0", "no", "name"),
    ("XADD", "chat", "5-0", "no", "session"),
    ("XADD", "chats:s", "5-0", "another", "namespace"),
]


def test_what_is_no_session_is_neither_listed_nor_deleted(redis: Redis) -> None:
    redis.do(redis.client.pipeline(FOREIGN))
    redis.do(LLMCache(redis.client, namespace="chat").store("p", "r"))
    before = dump(redis)
    old, new = ChatHistory(redis.client, "old"), ChatHistory(redis.client, "new")
    put(redis, old.key, "1-0", "x")
    redis.do(new.add("user", "x"))
    assert listed(redis) == {"old": 1, "new": 1}
    assert redis.do(ChatSessions(redis.client).delete(idle=1000)) == 1
    assert listed(redis) == {"new": 1}
    redis.do(new.clear())
    assert dump(redis) == before


@pytest.mark.parametrize("key", [b"chat:50%", b"chat:a%3ab", b"chat:\xff"])
def test_a_stream_whose_key_no_session_can_have_is_no_session(redis: Redis, key: bytes) -> None:
    redis.do(redis.client.call("XADD", key, "5-0", "foreign", "x"))
    before = dump(redis)
    assert listed(redis) == {}
    assert redis.do(ChatSessions(redis.client).delete(idle=1)) == 0
    assert dump(redis) == before


# -- which are deleted ---------------------------------------------------------------------------


def test_only_idle_sessions_are_deleted(redis: Redis) -> None:
    now = int(redis.do(redis.client.call("TIME"))[0]) * 1000
    for space in ("chat", "chat:a"):
        for name, ago in {"a:b": 5000, "u1": 2000, " u1": 500, "ahead": -9000}.items():
            key = ChatHistory(redis.client, name, namespace=space).key
            put(redis, key, "1-0", "old")
            put(redis, key, f"{now - ago * 1000}-7", "x")
    sessions = ChatSessions(redis.client)
    assert redis.do(sessions.delete(idle=10**8)) == 0
    assert redis.do(sessions.delete(idle=4000.5)) == 1
    assert set(listed(redis)) == {"u1", " u1", "ahead"}
    redis.do(redis.client.call("SCRIPT", "FLUSH"))
    assert redis.do(sessions.delete(idle=1000)) == 1
    assert set(listed(redis)) == {" u1", "ahead"}
    assert redis.do(sessions.delete(idle=1000)) == 0
    assert redis.do(sessions.delete(idle=100)) == 1
    assert set(listed(redis)) == {"ahead"}
    assert set(listed(redis, "chat:a")) == {"a:b", "u1", " u1", "ahead"}


def test_a_session_to_which_something_was_added_is_not_idle_though_it_is_gone(
    redis: Redis,
) -> None:
    history = ChatHistory(redis.client, "s")
    put(redis, history.key, "1-0", "old")
    redis.do(history.delete(redis.do(history.add("user", "by mistake"))))
    redis.do(history.edit("1-0", "edited"))
    assert redis.do(ChatSessions(redis.client).delete(idle=1000)) == 0
    assert contents(redis.do(history.messages())) == ["edited"]


def test_a_session_to_which_something_is_added_meanwhile_stays(client: Client) -> None:
    sessions = ChatSessions(client)
    for name in ("a", "b"):
        client.call("XADD", f"chat:{name}", "1-0", "message", '{"role":"user","content":"x"}')
    gone = meanwhile(
        client,
        sessions.plan.delete(idle=1000),
        lambda: ChatHistory(client, "a").add("user", "y"),
        lambda name: name.startswith("EVAL"),
    )
    assert gone == 1
    assert [one.session for one in sessions.list()] == ["a"]
    assert contents(ChatHistory(client, "a").messages()) == ["x", "y"]


def test_a_session_that_goes_meanwhile_is_no_error(client: Client) -> None:
    sessions = ChatSessions(client)
    for name in ("a", "b"):
        ChatHistory(client, name).add("user", "x")
    listed_ = meanwhile(
        client,
        sessions.plan.list(),
        ChatHistory(client, "a").clear,
        lambda name: name.startswith("EVAL"),
    )
    assert [one.session for one in listed_] == ["b"]
    gone = meanwhile(
        client,
        sessions.plan.delete(idle=1000),
        ChatHistory(client, "b").clear,
        lambda name: name.startswith("EVAL"),
    )
    assert gone == 0


BAD_CALLS: list[tuple[type[Exception], str, Callable[[Client], object]]] = [
    (ValueError, "idle", lambda c: ChatSessions(c).delete(idle=0)),
    (ValueError, "idle", lambda c: ChatSessions(c).delete(idle=-1)),
    (ValueError, "idle", lambda c: ChatSessions(c).delete(idle=float("nan"))),
    (TypeError, "idle", lambda c: ChatSessions(c).delete(idle="5")),  # type: ignore[arg-type]
    (TypeError, "idle", lambda c: ChatSessions(c).delete(idle=True)),
    (ValueError, "namespace", lambda c: ChatSessions(c, "")),
    (ValueError, "namespace", lambda c: ChatSessions(c, "\ud800")),
    (TypeError, "namespace", lambda c: ChatSessions(c, 5)),  # type: ignore[arg-type]
    (TypeError, "client", lambda _: ChatSessions("redis://")),  # type: ignore[type-var]
    (TypeError, "idle", lambda c: ChatSessions(c).delete()),  # type: ignore[call-arg]
    (TypeError, "idle", lambda c: ChatSessions(c).delete(idle=cast("Any", None))),
]


@pytest.mark.parametrize(("error", "argument", "use"), BAD_CALLS)
def test_a_bad_argument_is_refused_before_any_io(
    error: type[Exception], argument: str, use: Callable[[Client], object]
) -> None:
    with Client(NOBODY) as client, pytest.raises(error, match=argument) as caught:
        use(client)
    assert type(caught.value) is error


def test_a_server_out_of_reach_raises(redis: Redis) -> None:
    sessions = ChatSessions(redis.connect(url=NOBODY))
    calls: list[Callable[[], Any]] = [sessions.list, lambda: sessions.delete(idle=5)]
    for call in calls:
        with pytest.raises(errors.ConnectError):
            redis.do(call())


# -- each by itself ------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Any], Any]] = {
    "add": lambda h: h.add("user", "new", id="mine"),
    "add_many": lambda h: h.add_many(said("new", "newer", id="mine")),
    "edit": lambda h: h.edit("5-0", "new"),
    "delete": lambda h: h.delete("5-0"),
    "truncate": lambda h: h.truncate(1),
    "truncate after": lambda h: h.truncate(after="5-0"),
    "clear": lambda h: h.clear(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_one_session_is_seen_in_no_other(redis: Redis, change: str) -> None:
    histories = [
        ChatHistory(redis.client, name, namespace=space)
        for space in ("chat", "chat:a", "*")
        for name in NAMES
    ]
    assert len({history.key for history in histories}) == len(histories)
    body = '{"role":"user","content":"x"}'
    redis.do(
        redis.client.pipeline(
            [
                ("XADD", history.key, f"{i}-0", "message", body)
                for history in histories
                for i in (5, 6, 7)
            ]
        )
    )
    before = dump(redis)
    for history in histories:
        redis.do(CHANGES[change](history))
        after = dump(redis)
        key = history.key.encode()
        changed = {one for one in before if after.get(one) != before[one]}
        assert changed == {key}
        assert after.keys() - {key} == before.keys() - {key}
        redis.do(redis.client.pipeline([("DEL", key), ("RESTORE", key, 0, before[key])]))


def test_the_same_id_in_two_sessions_is_two_messages(redis: Redis) -> None:
    one, two = ChatHistory(redis.client, "1", ttl=50), ChatHistory(redis.client, "2")
    for history in (one, two, one, two):
        redis.do(history.add("user", "x", id="mine"))
    assert listed(redis) == {"1": 1, "2": 1}
    assert 0 < left(redis, one) <= 50_000
    assert left(redis, two) == -1


# -- many in one round trip ----------------------------------------------------------------------


def test_what_is_planned_of_many_sessions_is_one_round_trip(redis: Redis) -> None:
    histories: list[Any] = [ChatHistory(redis.client, f"s{i}") for i in range(4)]
    for i, history in enumerate(histories):
        redis.do(history.add_many(said(*range(i + 5))))
    read = cost(
        redis,
        lambda: redis.client.gather(
            [
                histories[0].plan.messages(),
                histories[1].plan.messages(2),
                histories[1].plan.messages(2, roles=["user"]),
                histories[2].plan.window(10, lambda _: 5),
                histories[3].plan.count(),
                histories[3].plan.messages(since="5-0"),
            ]
        ),
    )
    assert (read.round_trips, read.commands) == (1, {"XRANGE": 3, "XREVRANGE": 2, "XLEN": 1})
    every, last, of_roles, window, count, since = read.result
    assert contents(every) == list(range(5))
    assert contents(last) == contents(of_roles) == [4, 5]
    assert contents(window) == [5, 6]
    assert (count, len(since)) == (8, 8)
    write = cost(
        redis,
        lambda: redis.client.gather(
            [
                histories[0].plan.add("user", "new"),
                histories[1].plan.add_many(said("new", "newer")),
                histories[2].plan.delete(window[0].id),
                histories[3].plan.truncate(1),
            ]
        ),
    )
    assert write.round_trips == 1
    id_, ids, deleted, truncated = write.result
    assert (len(ids), deleted, truncated) == (2, True, 7)
    assert redis.do(histories[0].messages(1))[0].id == id_
    assert listed(redis) == {"s0": 6, "s1": 8, "s2": 6, "s3": 1}


def test_one_sessions_failure_is_not_anothers(redis: Redis) -> None:
    good, bad = ChatHistory(redis.client, "good"), ChatHistory(redis.client, "bad")
    redis.do(redis.client.call("SET", bad.key, "no stream"))
    added, refused, read = redis.do(
        redis.client.gather(
            [good.plan.add("user", "x"), bad.plan.add("user", "x"), bad.plan.messages()],
            raise_errors=False,
        )
    )
    assert isinstance(added, str)
    assert isinstance(refused, errors.WrongTypeError)
    assert isinstance(read, errors.WrongTypeError)
    assert contents(redis.do(good.messages())) == ["x"]
    sessions, count = redis.do(
        redis.client.gather([ChatSessions(redis.client).plan.list(), good.plan.count()])
    )
    assert ([one.session for one in sessions], count) == (["good"], 1)
