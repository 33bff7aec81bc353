"""Appends whose answer is lost, and many writers: each message is there once, in its place."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from chats import calls, contents, place, said, together, wait_until
from documents import meanwhile
from proxy import TO_CLIENT, TO_SERVER, Proxy
from rawredis_llm import ChatHistory, Client, EmbeddedServer, Message, Retry, errors
from rawredis_llm.protocol.address import parse_url
from rawredis_llm.protocol.operation import watched

if TYPE_CHECKING:
    from conftest import Redis


@pytest.fixture(scope="module")
def server(plain_server: EmbeddedServer) -> EmbeddedServer:
    """A server without a search module: history needs none."""
    return plain_server


@pytest.fixture
def proxy(redis: Redis) -> Iterator[Proxy]:
    """A proxy to the server."""
    with Proxy(redis.url) as proxy:
        yield proxy
        for client in redis._clients[1:]:  # a proxy waits for those who left their sockets open
            redis.do(client.close())


def reached(redis: Redis, proxy: Proxy, **options: Any) -> Any:
    """Return a client that is connected through the proxy."""
    client = redis.connect(url=proxy.url, **options)
    redis.do(client.call("PING"))
    return client


WAYS: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
    "add": (lambda h: h.add("user", "new"), ["new"]),
    "add with an id": (lambda h: h.add("user", "new", id="mine"), ["new"]),
    "add_many": (lambda h: h.add_many(said("a", "b", "b")), ["a", "b", "b"]),
    "250 at once": (lambda h: h.add_many(said(*range(250))), list(range(250))),
    "some with ids": (
        lambda h: h.add_many([*said("a", id="1"), *said("b"), *said("c", id="2")]),
        ["a", "b", "c"],
    ),
    "planned": (lambda h: h.client.gather([h.plan.add("user", "new")]), ["new"]),
    "planned, many": (
        lambda h: h.client.gather(
            [h.plan.add("user", "a"), h.plan.add_many(said("b")), h.plan.add_many(said("c"))]
        ),
        ["a", "b", "c"],
    ),
}


# -- answers that are lost -----------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False], ids=["script known", "script unknown"])
@pytest.mark.parametrize("direction", [TO_CLIENT, TO_SERVER], ids=["answer", "request"])
@pytest.mark.parametrize("way", WAYS)
def test_what_was_cut_off_is_there_once(
    redis: Redis, proxy: Proxy, way: str, direction: int, known: bool
) -> None:
    add, wanted = WAYS[way]
    direct = ChatHistory(redis.client, "s")
    redis.do(direct.add_many(said("x", "y", "new", "a")))  # the same words, but not these
    if not known:
        redis.do(redis.client.call("SCRIPT", "FLUSH"))
    history = ChatHistory(reached(redis, proxy), "s")
    proxy.arm("rst" if known else "fin", direction)
    given = redis.do(add(history))
    assert proxy.fired
    found = redis.do(direct.messages())
    assert contents(found) == ["x", "y", "new", "a", *wanted]
    ids = [message.id for message in found[4:]]
    if way.startswith("planned"):
        given = [id_ for one in given for id_ in ([one] if isinstance(one, str) else one)]
    assert ([given] if isinstance(given, str) else given) == ids


def test_an_append_that_was_done_is_found_among_what_others_added_meanwhile(
    redis: Redis, proxy: Proxy
) -> None:
    history: Any = ChatHistory(reached(redis, proxy), "s", ttl=100)
    direct = ChatHistory(redis.client, "s")
    redis.do(direct.add("user", "x"))
    proxy.arm("rst", TO_CLIENT)
    sent = 0

    def see(request: Any) -> None:
        nonlocal sent
        sent += "EVAL" in getattr(request, "name", "")
        if sent == 2:
            others.add_many(said(*range(99)))

    with Client(redis.url) as other:
        others = ChatHistory(other, "s")
        redis.do(history.client.run(watched(history.plan.add_many(said("a", "b")), see)))
    assert sent == 2
    assert contents(redis.do(direct.messages())) == ["x", "a", "b", *range(99)]


@pytest.mark.parametrize("most", [1, 3])
def test_a_batch_larger_than_max_messages_leaves_its_newest_when_sent_again(
    redis: Redis, proxy: Proxy, most: int
) -> None:
    history = ChatHistory(reached(redis, proxy), "s", max_messages=most)
    direct = ChatHistory(redis.client, "s", max_messages=most)
    redis.do(direct.add_many(said(*range(5))))
    assert contents(redis.do(direct.messages())) == list(range(5))[-most:]
    proxy.arm("rst", TO_CLIENT)
    redis.do(history.add_many(said(*range(10, 20))))
    assert contents(redis.do(direct.messages())) == list(range(10, 20))[-most:]


def test_max_messages_and_ttl_hold_when_sent_again(redis: Redis, proxy: Proxy) -> None:
    history = ChatHistory(reached(redis, proxy), "s", max_messages=5, ttl=100)
    direct = ChatHistory(redis.client, "s")
    redis.do(direct.add_many(said(*range(4))))
    for direction, wanted in ((TO_CLIENT, [2, 3, "a", "b", "c"]), (TO_SERVER, [*"bcabc"])):
        proxy.arm("rst", direction)
        redis.do(history.add_many(said("a", "b", "c")))
        assert contents(redis.do(direct.messages())) == wanted
        assert redis.do(redis.client.call("PTTL", direct.key)) > 90_000


def test_the_time_that_is_up_is_told_and_nothing_sent_again(redis: Redis, proxy: Proxy) -> None:
    direct = ChatHistory(redis.client, "s")
    redis.do(direct.add("user", "x"))
    history = ChatHistory(reached(redis, proxy, timeout=1.0), "s")
    before = calls(redis, "evalsha")
    proxy.arm("stall", TO_CLIENT)
    with pytest.raises(errors.ReadTimeoutError):
        redis.do(history.add("user", "y"))
    wait_until(lambda: calls(redis, "evalsha") > before)
    assert calls(redis, "evalsha") == before + 1
    assert contents(redis.do(direct.messages())) == ["x", "y"]


def test_an_append_that_a_server_refuses_is_not_sent_again(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    redis.do(history.add("user", "x"))
    redis.do(redis.client.call("CONFIG", "SET", "maxmemory", 1))
    try:
        before = calls(redis, "evalsha")
        with pytest.raises(errors.OutOfMemoryError):
            redis.do(history.add("user", "y"))
        assert calls(redis, "evalsha") - before <= 1
    finally:
        redis.do(redis.client.call("CONFIG", "SET", "maxmemory", 0))
    assert contents(redis.do(history.messages())) == ["x"]


def test_an_append_that_may_have_run_is_never_said_not_to_have_been_sent(redis: Redis) -> None:
    direct = ChatHistory(redis.client, "s")
    redis.do(direct.add("user", "x"))
    with Proxy(redis.url) as proxy:
        history = ChatHistory(reached(redis, proxy, retry=Retry(attempts=2)), "s")
        proxy.arm("rst", TO_CLIENT)
        with suppress(OSError):
            proxy._listener.shutdown(socket.SHUT_RDWR)  # nobody gets through any more
        proxy._listener.close()
        with pytest.raises(errors.RedisError) as caught:
            redis.do(history.add("user", "y"))
        redis.do(history.client.close())
    assert contents(redis.do(direct.messages())) == ["x", "y"]
    assert isinstance(caught.value, errors.OutcomeUnknownError)


class Late:
    """A proxy that resets its client when a request comes, and passes the request on later."""

    def __init__(self, upstream: str) -> None:
        self._upstream = parse_url(upstream)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self.holding = False  # what comes next is held
        self.release = threading.Event()
        self.passed_on = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End it."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                front, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[front], daemon=True).start()

    def _serve(self, front: socket.socket) -> None:
        with front, socket.socket(socket.AF_UNIX) as back, suppress(OSError):
            back.connect(self._upstream.path)
            threading.Thread(target=self._bring_back, args=[front, back], daemon=True).start()
            while data := front.recv(65536):
                if self.holding:
                    self.holding = False
                    front.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    front.close()
                    self.release.wait(20)
                    back.sendall(data)
                    back.shutdown(socket.SHUT_WR)
                    self.passed_on.set()
                    threading.Event().wait(0.2)  # for the answer, which goes nowhere
                    return
                back.sendall(data)
            back.shutdown(socket.SHUT_RDWR)

    def _bring_back(self, front: socket.socket, back: socket.socket) -> None:
        with suppress(OSError):
            while data := back.recv(65536):
                with suppress(OSError):
                    front.sendall(data)


def test_a_request_that_comes_late_adds_nothing_again(redis: Redis) -> None:
    direct = ChatHistory(redis.client, "s")
    redis.do(direct.add("user", "x"))
    late = Late(redis.url)
    history = ChatHistory(redis.connect(url=late.url), "s")
    redis.do(history.client.call("PING"))
    before = calls(redis, "evalsha")
    late.holding = True
    redis.do(history.add("user", "y"))
    assert contents(redis.do(direct.messages())) == ["x", "y"]
    late.release.set()
    assert late.passed_on.wait(20)
    wait_until(lambda: calls(redis, "evalsha") == before + 2)
    redis.do(history.client.close())
    late.close()
    assert contents(redis.do(direct.messages())) == ["x", "y"]


def test_a_read_whose_answer_was_lost_is_asked_again(redis: Redis, proxy: Proxy) -> None:
    direct = ChatHistory(redis.client, "s")
    redis.do(direct.add_many(said(*range(300))))
    history = ChatHistory(reached(redis, proxy), "s")
    reads: list[Callable[[], Any]] = [
        history.messages,
        lambda: history.messages(5, roles=["user"]),
        lambda: history.window(100),
        history.count,
    ]
    for read in reads:
        proxy.arm("rst", TO_CLIENT)
        assert redis.do(read())


@pytest.mark.parametrize("ttl", [None, 100])
def test_other_writes_say_that_they_may_have_run(
    redis: Redis, proxy: Proxy, ttl: float | None
) -> None:
    direct = ChatHistory(redis.client, "s", ttl=ttl)
    ids = redis.do(direct.add_many(said(*range(4))))
    redis.do(direct.truncate(after=ids[3]))  # the server knows the script from here on
    history: Any = ChatHistory(reached(redis, proxy), "s", ttl=ttl)
    writes: list[tuple[Callable[[], Any], list[Any]]] = [
        (lambda: history.delete(ids[0]), [1, 2, 3]),
        (lambda: history.truncate(2), [2, 3]),
        (lambda: history.truncate(after=ids[2]), [2]),
        (history.clear, []),
    ]
    for write, wanted in writes:
        redis.do(history.count())
        proxy.arm("rst", TO_CLIENT)
        with pytest.raises(errors.OutcomeUnknownError):
            redis.do(write())
        assert contents(redis.do(direct.messages())) == wanted


# -- messages that the caller sends again --------------------------------------------------------


def test_a_message_with_an_id_is_added_once(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    message = {"role": "user", "content": "é", "id": "m1", "name": "n"}
    first = redis.do(history.add("user", "é", id="m1", name="n"))
    redis.do(history.add_many(said(*range(98))))
    assert redis.do(history.add("user", "é", id="m1", name="n")) == first
    assert redis.do(history.add_many([message])) == [first]
    [again, new, once_more] = redis.do(history.add_many([message, *said("new"), message]))
    assert (again, once_more) == (first, first)
    assert place(new) > place(first)
    assert redis.do(history.count()) == 100
    assert redis.do(history.add_many([message])) == [first]  # the 100th from the end
    redis.do(history.add_many(said(*range(200))))
    assert redis.do(history.add_many([message])) != [first]  # no longer among the newest
    assert redis.do(history.count()) == 301


def test_another_message_under_the_same_id_is_added(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    messages = [
        {"role": "user", "content": "x", "id": "m1"},
        {"role": "user", "content": "y", "id": "m1"},
        {"role": "assistant", "content": "x", "id": "m1"},
        {"role": "user", "content": "x", "id": "m1", "name": "n"},
        {"role": "user", "content": "x", "id": "m2"},
        {"role": "user", "content": "x", "id": "M1"},
        {"role": "user", "content": "x"},
        {"role": "user", "content": "x"},
    ]
    ids = redis.do(history.add_many(messages))
    assert len(set(ids)) == 8
    assert [m.to_dict() for m in redis.do(history.messages())] == messages
    assert redis.do(history.add_many(messages[:6])) == ids[:6]
    assert len(set(redis.do(history.add_many(messages)))) == 8
    assert redis.do(history.count()) == 10  # two more that have no id


def test_messages_of_another_session_are_copied_once(redis: Redis) -> None:
    old, new = ChatHistory(redis.client, "old"), ChatHistory(redis.client, "new")
    redis.do(old.add_many(said("same", "same", "other")))
    messages = redis.do(old.messages())
    ids = redis.do(new.add_many(messages))
    assert redis.do(new.add_many(messages)) == ids
    assert redis.do(new.add_many(messages[1:])) == ids[1:]
    assert contents(redis.do(new.messages())) == ["same", "same", "other"]
    changed = Message("user", "changed", messages[0].id)
    redis.do(new.add_many([changed]))
    assert contents(redis.do(new.messages())) == ["same", "same", "other", "changed"]


def test_many_who_send_the_same_message_add_it_once(redis: Redis) -> None:
    given: list[Any] = []

    def work(client: Any) -> list[Callable[[], Any]]:
        history: Any = ChatHistory(client, "s")
        return [partial(history.add, "user", "x", id="mine")] * 5

    together(redis, [work] * 8)
    history = ChatHistory(redis.client, "s")
    given = redis.do(history.messages())
    assert [m.to_dict() for m in given] == [{"role": "user", "content": "x", "id": "mine"}]


# -- many messages, many writers -----------------------------------------------------------------


def test_ten_thousand_and_five_messages_come_back_in_order(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    ids = redis.do(history.add_many(said(*range(10_005))))
    assert len(set(ids)) == 10_005
    assert sorted(ids, key=place) == ids
    messages = redis.do(history.messages())
    assert contents(messages) == list(range(10_005))
    assert [message.id for message in messages] == ids
    assert redis.do(history.count()) == 10_005
    assert contents(redis.do(history.messages(1001))) == list(range(9004, 10_005))
    assert contents(redis.do(history.messages(1001, roles=["user"]))) == list(range(9004, 10_005))
    assert contents(redis.do(history.messages(since=ids[5000]))) == list(range(5001, 10_005))
    assert redis.do(history.edit(ids[5], "new")) is True
    assert redis.do(history.truncate(after=ids[9000])) == 1004
    wanted = [*range(5), "new", *range(6, 9001)]
    assert contents(redis.do(history.messages())) == wanted


def test_of_eight_writers_none_loses_a_message_or_its_order(redis: Redis) -> None:
    writers, count = 8, 500

    def writer(number: int) -> Callable[[Any], list[Callable[[], Any]]]:
        def work(client: Any) -> list[Callable[[], Any]]:
            history: Any = ChatHistory(client, "s")
            singly = [partial(history.add, f"w{number}", i) for i in range(200)]
            batches = [
                partial(
                    history.add_many,
                    [{"role": f"w{number}", "content": j} for j in range(i, i + 10)],
                )
                for i in range(200, count, 10)
            ]
            return [*singly, *batches]

        return work

    together(redis, [writer(number) for number in range(writers)])
    history = ChatHistory(redis.client, "s")
    messages = redis.do(history.messages())
    assert len(messages) == writers * count
    for number in range(writers):
        own = [m.content for m in messages if m.role == f"w{number}"]
        assert own == list(range(count))
    batches = [(m.role, m.content) for m in messages if m.content >= 200]
    for at in range(len(batches)):  # nobody writes within another's batch
        if batches[at][1] % 10 and at:
            assert batches[at - 1] == (batches[at][0], batches[at][1] - 1)


def test_writers_whose_connection_is_cut_again_and_again_lose_nothing(
    redis: Redis, proxy: Proxy
) -> None:
    client = reached(redis, proxy)
    direct = ChatHistory(redis.client, "s")
    redis.do(direct.add("user", "script"))
    for turn in range(5):

        def writer(number: int, turn: int = turn) -> Callable[[Any], list[Callable[[], Any]]]:
            def work(_: Any) -> list[Callable[[], Any]]:
                history: Any = ChatHistory(client, "s")
                return [partial(history.add, f"w{number}", [turn, i]) for i in range(20)]

            return work

        redis.do(client.call("PING"))
        proxy.arm("rst", TO_CLIENT if turn % 2 else TO_SERVER)
        together(redis, [writer(number) for number in range(4)])
    messages = redis.do(direct.messages())
    for number in range(4):
        own = [m.content for m in messages if m.role == f"w{number}"]
        assert own == [[turn, i] for turn in range(5) for i in range(20)]


def test_an_edit_that_another_one_overtakes_begins_anew(client: Client) -> None:
    history = ChatHistory(client, "s")
    id_ = history.add("user", "x", a=1)
    edited = meanwhile(
        client,
        history.plan.edit(id_, "mine", mine=1),
        lambda: history.edit(id_, "theirs", theirs=1),
        lambda name: name.startswith("EVAL"),
    )
    assert edited is True
    [message] = history.messages()
    assert (message.content, message.extra) == ("mine", {"a": 1, "theirs": 1, "mine": 1})
    for act in (partial(history.delete, id_), history.clear):
        edited = meanwhile(
            client, history.plan.edit(id_, "z"), act, lambda name: name.startswith("EVAL")
        )
        assert edited is False
        assert history.messages() == []
        id_ = history.add("user", "x")
