"""Chat history that is read in part and changed: which messages come, what stays as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from chats import NOBODY, contents, left, place, put, said, together
from rawredis_llm import ChatHistory, ChatSessions, Client, EmbeddedServer, errors
from rawredis_llm.history import _EDIT
from test_history import WHOLE

if TYPE_CHECKING:
    from conftest import Redis

FAR = 9_999_999_999_999
"""A moment, in milliseconds, that no clock has reached: ids after it depend on no clock."""


@pytest.fixture(scope="module")
def server(plain_server: EmbeddedServer) -> EmbeddedServer:
    """A server without a search module: history needs none."""
    return plain_server


# -- which messages come -------------------------------------------------------------------------

BASE = 1_700_000_000_000
COUNT = 700  # more than two pages of a search for roles
ROLES = ("user", "assistant", "tool", "user", "system")
STORED = [
    ((BASE + at // 2 * 10, at % 2), ROLES[at % 5] if at < 690 else "user", at)
    for at in range(COUNT)
]
"""Two messages in each ten milliseconds; tools have not spoken lately."""

EAST = timezone(timedelta(hours=5, minutes=30))
SINCE: dict[str, tuple[Any, Callable[[tuple[int, int]], bool]]] = {
    "none": (None, lambda _: True),
    "the beginning": (0, lambda _: True),
    "the first": (f"{BASE}-0", lambda id_: id_ > (BASE, 0)),
    "the second of two": (f"{BASE + 1000}-1", lambda id_: id_ > (BASE + 1000, 1)),
    "none that is there": (f"{BASE + 1005}-7", lambda id_: id_ > (BASE + 1005, 7)),
    "the last": (f"{BASE + 3490}-1", lambda _: False),
    "after all": (f"{FAR}-0", lambda _: False),
    "seconds": (BASE // 1000 + 2, lambda id_: id_ >= (BASE + 2000, 0)),
    "a fraction": (BASE / 1000 + 0.5, lambda id_: id_ >= (BASE + 500, 0)),
    "utc": (
        datetime.fromtimestamp(BASE // 1000 + 3, timezone.utc),
        lambda id_: id_ >= (BASE + 3000, 0),
    ),
    "the east": (
        datetime.fromtimestamp(BASE // 1000 + 1, EAST),
        lambda id_: id_ >= (BASE + 1000, 0),
    ),
    "the future": (FAR / 1000, lambda _: False),
}


@pytest.fixture
def stored(redis: Redis) -> Any:
    """Return a history of all in `STORED`."""
    history: Any = ChatHistory(redis.client, "s")
    body = '{"role":"%s","content":%d}'
    redis.do(
        redis.client.pipeline(
            [
                ("XADD", history.key, f"{id_[0]}-{id_[1]}", "message", body % (role, at))
                for id_, role, at in STORED
            ]
        )
    )
    return history


def test_last_since_and_roles_choose_together(redis: Redis, stored: Any) -> None:
    for since, after in SINCE.values():
        for roles in (None, ["user"], {"assistant", "tool"}, ("tool",), ["nobody"], []):
            wanted = [
                at for id_, role, at in STORED if after(id_) and (roles is None or role in roles)
            ]
            for last in (None, 1, 7, 256, COUNT, 10_000):
                found = redis.do(stored.messages(last, since=since, roles=roles))
                expected = wanted if last is None else wanted[-last:]
                assert contents(found) == expected, (last, since, roles)


def test_roles_are_found_over_many_pages(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    redis.do(history.add("rare", "first"))
    for start in range(0, 1024, 256):  # so that pages end just before, at and behind one
        redis.do(history.add_many(said(*range(start, start + 255))))
        redis.do(history.add("rare", start))
    assert contents(redis.do(history.messages(9, roles=["rare"]))) == ["first", 0, 256, 512, 768]
    assert contents(redis.do(history.messages(3, roles=["rare"]))) == [256, 512, 768]
    assert contents(redis.do(history.messages(1, roles=["rare"]))) == [768]
    every = redis.do(history.messages())
    for last in (256, 257, 513, 1024):  # none comes twice where a page ends
        assert redis.do(history.messages(last, roles=["user", "rare"])) == every[-last:]
    assert redis.do(history.messages(5, roles=["Rare", "rare "])) == []


def test_what_is_read_has_its_id_and_time(redis: Redis, stored: Any) -> None:
    for message in redis.do(stored.messages(3, roles=["tool"])):
        moment, _ = place(message.id)
        assert message.created == moment / 1000
        assert redis.do(stored.messages(since=message.id))[0].content == message.content + 1
        assert message.id in [m.id for m in redis.do(stored.messages(since=message.created))]


@pytest.mark.parametrize("as_datetime", [False, True])
def test_since_a_time_leaves_out_what_was_written_a_millisecond_before(
    redis: Redis, as_datetime: bool
) -> None:
    history = ChatHistory(redis.client, "s")
    moment = 1_085_607_456_376 if not as_datetime else 1_085_928_369_748
    put(redis, history.key, f"{moment - 1}-0", "before")
    put(redis, history.key, f"{moment}-0", "at")
    created = redis.do(history.messages(1))[0].created
    since = datetime.fromtimestamp(created, timezone.utc) if as_datetime else created
    assert contents(redis.do(history.messages(since=since))) == ["at"]


# -- edit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1, 2, 3, -1])
def test_an_edited_message_keeps_its_id_its_place_and_the_rest(redis: Redis, which: int) -> None:
    history = ChatHistory(redis.client, "s")
    ids = [redis.do(history.add("user", i, name="n", n={"i": i})) for i in range(5)]
    before = redis.do(history.messages())
    assert redis.do(history.edit(ids[which], ["new", "é\n"], n=None, more=[1])) is True
    changed = before[which]
    changed.content = ["new", "é\n"]
    changed.extra = {"name": "n", "n": None, "more": [1]}
    assert redis.do(history.messages()) == before
    assert redis.do(history.messages(1)) == before[-1:]
    assert redis.do(history.count()) == 5
    assert place(redis.do(history.add("user", "next"))) > place(ids[-1])


def test_the_only_message_can_be_edited_again_and_again(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    id_ = redis.do(history.add("assistant", "", done=False))
    for i in range(5):
        assert redis.do(history.edit(id_, "x" * i)) is True
    assert redis.do(history.edit(id_, "whole", done=True)) is True
    [message] = redis.do(history.messages())
    assert (message.id, message.role, message.content) == (id_, "assistant", "whole")
    assert message.extra == {"done": True}


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_an_edit_gives_no_id_a_second_time(redis: Redis, gone: int) -> None:
    history = ChatHistory(redis.client, "s")
    ids = [f"{FAR}-{i}" for i in range(4)]
    for id_ in ids:
        put(redis, history.key, id_, "old")
    for id_ in ids[4 - gone :]:
        assert redis.do(history.delete(id_)) is True
    assert redis.do(history.edit(ids[0], "new")) is True
    assert redis.do(history.add("user", "next")) == f"{FAR}-4"
    assert contents(redis.do(history.messages())) == ["new", *["old"] * (3 - gone), "next"]


def test_to_edit_what_is_not_there_changes_nothing(redis: Redis) -> None:
    history, other = ChatHistory(redis.client, "s", ttl=50), ChatHistory(redis.client, "t")
    assert redis.do(history.edit("5-0", "x")) is False
    assert redis.do(redis.client.call("DBSIZE")) == 0
    ids = redis.do(history.add_many(said(*range(3))))
    elsewhere = redis.do(other.add("user", "x"))
    assert redis.do(history.delete(ids[1])) is True
    before = redis.do(history.messages())
    for id_ in (ids[1], "1-0", f"{FAR}-0", *{elsewhere} - set(ids)):
        assert redis.do(history.edit(id_, "y")) is False
    assert redis.do(history.messages()) == before
    assert contents(redis.do(other.messages())) == ["x"]


@pytest.mark.parametrize("message", WHOLE, ids=lambda message: str(message)[:40])
def test_whatever_can_be_added_can_be_edited_in_and_away(
    redis: Redis, message: dict[str, Any]
) -> None:
    history = ChatHistory(redis.client, "s")
    first, second = redis.do(history.add_many([message, {"role": "user", "content": "plain"}]))
    extra = {name: value for name, value in message.items() if name not in ("role", "content")}
    assert redis.do(history.edit(second, message["content"], **extra)) is True
    assert redis.do(history.edit(first, "gone")) is True
    one, two = redis.do(history.messages())
    assert one.to_dict() == {**message, "content": "gone"}
    assert two.to_dict() == {**message, "role": "user"}


def test_edits_at_once_are_all_kept(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    id_ = redis.do(history.add("user", "x"))

    def editor(number: int) -> Callable[[Any], list[Callable[[], Any]]]:
        def work(client: Any) -> list[Callable[[], Any]]:
            own: Any = ChatHistory(client, "s")
            return [partial(own.edit, id_, "y", **{f"{number}.{i}": i}) for i in range(8)]

        return work

    together(redis, [editor(number) for number in range(6)])
    [message] = redis.do(history.messages())
    assert message.extra == {f"{n}.{i}": i for n in range(6) for i in range(8)}


def test_an_edit_loses_nothing_that_is_added_meanwhile(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    id_ = redis.do(history.add("user", "first"))

    def edit(client: Any) -> list[Callable[[], Any]]:
        own: Any = ChatHistory(client, "s")
        return [partial(own.edit, id_, i) for i in range(40)]

    def add(client: Any) -> list[Callable[[], Any]]:
        own: Any = ChatHistory(client, "s")
        return [partial(own.add, "user", i) for i in range(100)]

    together(redis, [edit, add])
    assert contents(redis.do(history.messages())) == [39, *range(100)]


def test_a_server_without_memory_loses_no_session_to_an_edit(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    ids = redis.do(history.add_many(said(*range(50))))
    assert redis.do(history.edit(ids[0], "new")) is True
    redis.do(redis.client.call("CONFIG", "SET", "maxmemory", 1))
    try:
        with pytest.raises(errors.OutOfMemoryError):
            redis.do(history.add("user", "x"))
        with suppress(errors.OutOfMemoryError):
            redis.do(history.edit(ids[7], 7))
    finally:
        redis.do(redis.client.call("CONFIG", "SET", "maxmemory", 0))
    assert contents(redis.do(history.messages())) == ["new", *range(1, 50)]


@pytest.mark.parametrize("content", [{1, 2}, b"x", math.nan, "\ud800"], ids=repr)
def test_bad_new_content_is_refused_before_any_io(content: Any) -> None:
    with Client(NOBODY) as client, pytest.raises((TypeError, ValueError), match="message"):
        ChatHistory(client, "s").edit("1-0", content)


def test_an_edit_gives_no_message_a_role_that_add_refuses(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    id_ = redis.do(history.add("user", "x"))
    for role in (5, "", None):
        with pytest.raises((TypeError, ValueError)):
            redis.do(history.edit(id_, "y", role=role))
    assert redis.do(history.messages())[0].role == "user"


def test_an_edit_takes_one_content_only(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    id_ = redis.do(history.add("user", "x"))
    with pytest.raises(TypeError):
        redis.do(history.edit(id_, "y", content="z"))
    assert contents(redis.do(history.messages())) == ["x"]


# -- delete, truncate, clear ---------------------------------------------------------------------


def test_a_deleted_message_is_gone_and_no_other(redis: Redis) -> None:
    history, other = ChatHistory(redis.client, "s"), ChatHistory(redis.client, "t")
    for key in (history.key, other.key):
        for i in range(3):
            put(redis, key, f"{FAR}-{i}", i)
    assert redis.do(history.delete(f"{FAR}-1")) is True
    assert redis.do(history.delete(f"{FAR}-1")) is False
    assert redis.do(history.delete(f"{FAR}-9")) is False
    assert contents(redis.do(history.messages())) == [0, 2]
    assert contents(redis.do(history.messages(2))) == [0, 2]
    assert redis.do(history.count()) == 2
    assert redis.do(other.count()) == 3
    for i in (0, 2):
        assert redis.do(history.delete(f"{FAR}-{i}")) is True
    assert redis.do(history.messages()) == []
    assert redis.do(history.add("user", "next")) == f"{FAR}-3"


@pytest.mark.parametrize("ttl", [None, 100])
@pytest.mark.parametrize("last", [0, 1, 4, 5, 6])
def test_truncate_keeps_the_last_so_many(redis: Redis, last: int, ttl: float | None) -> None:
    history = ChatHistory(redis.client, "s", ttl=ttl)
    assert redis.do(history.truncate(last)) == 0
    redis.do(history.add_many(said(*range(5))))
    assert redis.do(history.truncate(last)) == max(5 - last, 0)
    assert contents(redis.do(history.messages())) == list(range(5))[max(5 - last, 0) :]
    assert redis.do(history.truncate(last)) == 0


@pytest.mark.parametrize("ttl", [None, 100])
def test_truncate_after_a_message_takes_back_what_followed(redis: Redis, ttl: float | None) -> None:
    history = ChatHistory(redis.client, "s", ttl=ttl)
    assert redis.do(history.truncate(after="5-0")) == 0
    ids = [f"{FAR + i // 2 * 10}-{i % 2}" for i in range(10)]
    for i, id_ in enumerate(ids):
        put(redis, history.key, id_, i)
    assert redis.do(history.truncate(after=ids[9])) == 0
    assert redis.do(history.truncate(after=ids[7])) == 2
    assert redis.do(history.delete(ids[6])) is True
    assert redis.do(history.truncate(after=ids[6])) == 1  # where it was
    redis.do(redis.client.call("SCRIPT", "FLUSH"))
    assert redis.do(history.truncate(after=f"{FAR + 15}-3")) == 2  # where none ever was
    assert contents(redis.do(history.messages())) == [0, 1, 2, 3]
    assert redis.do(history.truncate(after="1-0")) == 4
    assert redis.do(history.messages()) == []
    assert place(redis.do(history.add("user", "next"))) > place(ids[9])


def test_truncated_ids_are_not_given_again(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    put(redis, history.key, f"{FAR}-0", "kept")
    put(redis, history.key, f"{FAR}-8", "gone")
    assert redis.do(history.truncate(after=f"{FAR}-0")) == 1
    assert redis.do(history.edit(f"{FAR}-0", "kept on")) is True
    assert redis.do(history.add("user", "next")) == f"{FAR}-9"


# -- fork ----------------------------------------------------------------------------------------


def test_a_fork_has_all_and_goes_its_own_way(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s", namespace="n")
    redis.do(history.add_many(WHOLE))
    before = redis.do(history.messages())
    for name in ("t", "S", "a:b", "a%3Ab", " s", "*"):
        fork = redis.do(history.fork(name))
        assert (fork.session, fork.client) == (name, redis.client)
        assert redis.do(fork.messages()) == before
        redis.do(fork.add("user", "there"))
        redis.do(fork.delete(before[0].id))
        redis.do(fork.edit(before[1].id, "changed there"))
        assert redis.do(history.messages()) == before
        again = ChatHistory(redis.client, name, namespace="n")
        assert redis.do(again.messages()) == redis.do(fork.messages())
    fork = redis.do(history.fork("u"))
    redis.do(history.edit(before[0].id, "changed here"))
    redis.do(history.add("user", "here"))
    assert redis.do(fork.messages()) == before
    assert redis.do(history.clear()) is True
    assert redis.do(fork.messages()) == before
    assert history.session == "s"


def test_a_fork_takes_nobodys_place(redis: Redis) -> None:
    history, other = ChatHistory(redis.client, "s"), ChatHistory(redis.client, "t", ttl=50)
    redis.do(history.add("user", "ours"))
    redis.do(other.add("user", "theirs"))
    with pytest.raises(ValueError, match="to_session"):
        redis.do(history.fork("t"))
    assert contents(redis.do(other.messages())) == ["theirs"]
    assert contents(redis.do(history.messages())) == ["ours"]
    assert 40_000 < left(redis, other) <= 50_000


def test_the_fork_of_an_empty_session_is_empty(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s", ttl=50)
    fork = redis.do(history.fork("t"))
    assert redis.do(fork.messages()) == []
    assert redis.do(redis.client.call("DBSIZE")) == 0
    redis.do(fork.add("user", "x"))
    assert (redis.do(fork.count()), redis.do(history.count())) == (1, 0)


def test_a_fork_lives_as_long_as_its_history_says(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s", ttl=100, max_messages=3)
    redis.do(history.add_many(said(*range(3))))
    redis.do(redis.client.call("PEXPIRE", history.key, 5000))
    fork = redis.do(history.fork("t"))
    assert 90_000 < left(redis, fork) <= 100_000
    assert left(redis, history) <= 5000
    redis.do(redis.client.call("PEXPIRE", fork.key, 5000))
    redis.do(fork.add("user", 3))
    assert 90_000 < left(redis, fork) <= 100_000
    assert contents(redis.do(fork.messages())) == [1, 2, 3]
    lasting = ChatHistory(redis.client, "u")
    redis.do(lasting.add("user", "x"))
    assert left(redis, redis.do(lasting.fork("v"))) == -1


@pytest.mark.parametrize("how", ["delete", "truncate"])
def test_a_session_without_any_message_can_be_forked_to(redis: Redis, how: str) -> None:
    history, other = ChatHistory(redis.client, "s"), ChatHistory(redis.client, "t")
    redis.do(history.add("user", "x"))
    id_ = redis.do(other.add("user", "gone"))
    redis.do(other.delete(id_) if how == "delete" else other.truncate(0))
    assert redis.do(ChatSessions(redis.client).list())[0].session == "s"
    assert contents(redis.do(redis.do(history.fork("t")).messages())) == ["x"]


def test_a_session_cannot_be_forked_to_itself(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    redis.do(history.add("user", "x"))
    with pytest.raises(ValueError, match="to_session"):
        redis.do(history.fork("s"))
    assert contents(redis.do(history.messages())) == ["x"]


# -- how long ------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[Any, list[str]], Any]] = {
    "add": lambda h, _: h.add("user", "x"),
    "add_many": lambda h, _: h.add_many(said("x", "y")),
    "add again": lambda h, _: h.add_many(said("mine", id="mine")),
    "edit": lambda h, ids: h.edit(ids[0], "x"),
    "delete": lambda h, ids: h.delete(ids[1]),
    "truncate": lambda h, _: h.truncate(3),
    "truncate after": lambda h, ids: h.truncate(after=ids[2]),
}


@pytest.mark.parametrize("write", WRITES)
def test_each_write_renews_the_time_to_live(redis: Redis, write: str) -> None:
    history = ChatHistory(redis.client, "s", ttl=100)
    ids = redis.do(history.add_many([*said(*range(5)), *said("mine", id="mine")]))
    redis.do(redis.client.call("PEXPIRE", history.key, 5000))
    redis.do(history.messages(since=1, roles=["user"]))
    redis.do(history.window(100))
    redis.do(history.count())
    assert redis.do(history.edit("1-0", "not there")) is False
    assert left(redis, history) <= 5000
    redis.do(WRITES[write](history, ids))
    assert 90_000 < left(redis, history) <= 100_000
    before = left(redis, history)
    longer = ChatHistory(redis.client, "s", ttl=1000)
    redis.do(longer.add("user", "x"))
    assert left(redis, history) > before


@pytest.mark.parametrize("write", WRITES)
def test_without_a_ttl_of_ones_own_a_write_leaves_the_sessions(redis: Redis, write: str) -> None:
    history = ChatHistory(redis.client, "s")
    ids = redis.do(history.add_many([*said(*range(5)), *said("mine", id="mine")]))
    redis.do(WRITES[write](history, ids))
    assert left(redis, history) == -1
    redis.do(history.clear())
    ids = redis.do(history.add_many([*said(*range(5)), *said("mine", id="mine")]))
    redis.do(redis.client.call("PEXPIRE", history.key, 50_000))
    redis.do(WRITES[write](history, ids))
    assert 0 < left(redis, history) <= 50_000


def test_an_edit_in_the_last_moment_makes_no_session_immortal(client: Client) -> None:
    edit = _EDIT(["chat:s"], ["1-1", "{}", "{}", ""])
    for _ in range(60):
        client.call("DEL", "chat:s")
        client.call("XADD", "chat:s", "1-1", "message", "{}")
        client.pipeline([("PEXPIRE", "chat:s", 2), *[edit] * 200])
        assert client.call("PTTL", "chat:s") != -1


# -- the caller's mistakes -----------------------------------------------------------------------

BAD_CALLS: list[tuple[type[Exception], str, Callable[[Any], object]]] = [
    *[
        (ValueError, name, use)
        for bad in (
            "",
            "x",
            "5",
            "5-",
            "-0",
            "5-0-0",
            "5-0 ",
            " 5-0",
            "5-0\n",
            "+",
            "-",
            "$",
            "(5-0",
        )
        for name, use in {
            "message_id": lambda h, bad=bad: h.edit(bad, "x"),
            "after": lambda h, bad=bad: h.truncate(after=bad),
            "since": lambda h, bad=bad: h.messages(since=bad),
        }.items()
    ],
    (ValueError, "message_id", lambda h: h.delete("")),
    (ValueError, "message_id", lambda h: h.delete("latest")),
    (ValueError, "message_id", lambda h: h.delete("\u0665-\u0660")),
    (ValueError, "message_id", lambda h: h.delete(None)),
    (ValueError, "message_id", lambda h: h.delete(5)),
    (ValueError, "message_id", lambda h: h.delete(b"5-0")),
    (TypeError, "last or after", lambda h: h.truncate()),
    (TypeError, "last or after", lambda h: h.truncate(5, after="5-0")),
    (TypeError, "last or after", lambda h: h.truncate(0, after="5-0")),
    (ValueError, "last", lambda h: h.truncate(-1)),
    (ValueError, "last", lambda h: h.truncate(True)),  # noqa: FBT003 - the fault
    (TypeError, "last", lambda h: h.truncate("5")),
    (TypeError, "last", lambda h: h.truncate(1.5)),
    (ValueError, "since", lambda h: h.messages(since=-1)),
    (ValueError, "since", lambda h: h.messages(since=math.nan)),
    (ValueError, "since", lambda h: h.messages(since=math.inf)),
    (ValueError, "since", lambda h: h.messages(since=datetime(1960, 1, 1, tzinfo=timezone.utc))),
    (TypeError, "since", lambda h: h.messages(since=True)),
    (TypeError, "since", lambda h: h.messages(since=b"5-0")),
    (TypeError, "since", lambda h: h.messages(since=timedelta(1))),
    (TypeError, "roles", lambda h: h.messages(roles="user")),
    (TypeError, "roles", lambda h: h.messages(roles=b"user")),
    (TypeError, "roles", lambda h: h.messages(roles=["user", None])),
    (ValueError, "last", lambda h: h.messages(0, roles=["user"], since=5)),
    (ValueError, "since", lambda h: h.watch(since="x")),
    (ValueError, "since", lambda h: h.watch(since=-1)),
    (TypeError, "since", lambda h: h.watch(since=[])),
    (ValueError, "max_tokens", lambda h: h.window(0)),
    (ValueError, "max_tokens", lambda h: h.window(-5)),
    (ValueError, "max_tokens", lambda h: h.window(True)),  # noqa: FBT003 - the fault
    (TypeError, "max_tokens", lambda h: h.window("100")),
    (TypeError, "max_tokens", lambda h: h.window(None)),
    (TypeError, "max_tokens", lambda h: h.window(1e3)),
    (ValueError, "session", lambda h: h.fork("")),
    (TypeError, "session", lambda h: h.fork(None)),
    (TypeError, "session", lambda h: h.fork(b"t")),
    (ValueError, "session", lambda h: h.fork("\ud800")),
    (ValueError, "role", lambda h: h.add_many([*said("x"), {"role": "", "content": "x"}])),
    (TypeError, "message", lambda h: h.add_many([*said("x"), *said({1})])),
]


@pytest.mark.parametrize(("error", "argument", "use"), BAD_CALLS)
def test_a_bad_argument_is_refused_before_any_io(
    error: type[Exception], argument: str, use: Callable[[Any], object]
) -> None:
    with Client(NOBODY) as client, pytest.raises(error, match=argument) as caught:
        use(ChatHistory(client, "s"))
    assert type(caught.value) is error
