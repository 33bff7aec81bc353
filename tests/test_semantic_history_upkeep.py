"""Semantic history, kept in step: vectors come, change and go with the messages they are of."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from counting import cost
from rawredis_llm import (
    ChatHistory,
    Client,
    EmbeddedServer,
    Message,
    SemanticHistory,
    errors,
)
from rawredis_llm.protocol.operation import watched
from test_memory_scores import words
from test_semantic_cache import Circle, at
from test_semantic_history import contents, make, said, settle, stored

if TYPE_CHECKING:
    from conftest import Clock, Redis


# -- kept in step --------------------------------------------------------------------------------


def test_an_edited_message_is_found_where_it_is_now(redis: Redis) -> None:
    history = make(redis)
    id_, other = redis.do(history.add_many([{"role": "user", "content": at(a)} for a in (0, 3)]))
    assert redis.do(history.edit(id_, at(1.5), edited=True)) is True
    [near] = redis.do(history.search(at(1.5), max_distance=0.01))
    assert (near.message.id, near.message.extra) == (id_, {"edited": True})
    assert redis.do(history.search(at(0), max_distance=0.01)) == []
    assert redis.do(history.edit(id_, [{"type": "image_url"}])) is True
    assert [one.message.id for one in redis.do(history.search(at(1.5), 9))] == [other]
    assert redis.do(history.edit(id_, at(0.5))) is True
    assert said(redis.do(history.search(at(0.5), 1))) == [at(0.5)]
    assert redis.do(history.edit("1-1", at(0.5))) is False
    assert len(stored(redis)) == 2


def test_an_edited_message_keeps_its_role(redis: Redis) -> None:
    history = make(redis)
    id_ = redis.do(history.add("tool", at(0)))
    redis.do(history.edit(id_, at(1)))
    assert said(redis.do(history.search(at(1), roles=["tool"]))) == [at(1)]
    assert redis.do(history.search(at(1), roles=["user"])) == []


def test_a_deleted_message_is_not_found_and_has_no_vector(redis: Redis) -> None:
    history = make(redis)
    one, other = redis.do(history.add_many([{"role": "user", "content": at(a)} for a in (0, 1)]))
    assert redis.do(history.delete(one)) is True
    assert redis.do(history.delete(one)) is False
    assert [key.decode().rpartition(":")[2] for key in stored(redis)] == [other]
    assert said(redis.do(history.search(at(0)))) == [at(1)]


def trim(redis: Redis, _: SemanticHistory[Any], ids: list[str]) -> Any:
    """Add to the session by a history that keeps no more than its newest message."""
    assert len(ids) == 6
    return ChatHistory(redis.client, "s", max_messages=1).add("user", None)


BEHIND: dict[str, tuple[Callable[[Redis, SemanticHistory[Any], list[str]], Any], list[int]]] = {
    "delete": (lambda _, history, ids: history.history.delete(ids[0]), [1, 2, 3, 4, 5]),
    "truncate": (lambda _, history, __: history.history.truncate(1), [5]),
    "truncate after": (
        lambda _, history, ids: history.history.truncate(after=ids[3]),
        [0, 1, 2, 3],
    ),
    "max_messages": (trim, []),
    "clear": (lambda _, history, __: history.history.clear(), []),
    "expiry": (lambda redis, history, _: redis.client.call("PEXPIRE", history.history.key, 0), []),
}


@pytest.mark.parametrize("how", BEHIND)
def test_what_is_gone_from_the_session_is_never_found(redis: Redis, how: str) -> None:
    history = make(redis, k=2)
    texts = [at(i / 10) for i in range(6)]
    ids = redis.do(history.add_many([{"role": "user", "content": text} for text in texts]))
    do, left = BEHIND[how]
    redis.do(do(redis, history, ids))
    # What is left comes although what is gone is nearer.
    assert said(redis.do(history.search(at(0)))) == [texts[i] for i in left[:2]]
    assert len(redis.do(history.search(at(0), 9))) == len(left)
    kept = {key.decode().rpartition(":")[2] for key in stored(redis)}
    assert kept == {ids[i] for i in left}


def test_what_others_added_is_found_after_index(redis: Redis, tmp_path: Path) -> None:
    plain = ChatHistory(redis.client, "s")
    redis.do(plain.add_many([{"role": "user", "content": at(a)} for a in (0, 1)]))
    redis.do(plain.add("assistant", None))
    history = make(redis)
    assert redis.do(history.search(at(0))) == []
    assert redis.do(history.index()) == 2
    assert redis.do(history.index()) == 0
    assert said(redis.do(history.search(at(0)))) == [at(0), at(1)]
    redis.do(history.add("user", at(2)))
    assert redis.do(history.index()) == 0

    redis.do(history.history.fork("t"))
    fork = make(redis, "t")
    assert redis.do(fork.search(at(0))) == []
    assert redis.do(fork.index()) == 3
    assert said(redis.do(fork.search(at(2), 1))) == [at(2)]
    redis.do(fork.clear())
    assert len(redis.do(history.search(at(0)))) == 3

    redis.do(history.history.export(tmp_path / "s"))
    copy = make(redis, "u")
    redis.do(copy.history.import_(tmp_path / "s"))
    assert redis.do(copy.index()) == 3
    assert said(redis.do(copy.search(at(1), 1))) == [at(1)]
    assert redis.do(make(redis, "nobody's").index()) == 0


def test_the_callers_messages_stay_as_they_are(redis: Redis) -> None:
    history = make(redis)
    given = [Message("user", at(0), extra={"a": [1]}), {"role": "user", "content": at(1), "b": {}}]
    before = deepcopy(given)
    ids = redis.do(history.add_many(given))
    assert given == before
    assert len(set(ids)) == 2
    assert redis.do(history.add_many(iter(()))) == []
    assert redis.do(history.add_many(m for m in given[:1])) != ids[:1]


def test_a_message_that_is_sent_again_is_there_once(redis: Redis) -> None:
    history = make(redis)
    message = Message("user", at(0), id="mine")
    first = redis.do(history.add_many([message]))
    assert redis.do(history.add_many([message])) == first
    assert len(redis.do(history.search(at(0)))) == len(stored(redis)) == 1


def test_a_message_that_is_sent_again_after_its_edit_stays_edited(redis: Redis) -> None:
    history = make(redis)
    message = Message("user", at(0), id="mine")
    [id_] = redis.do(history.add_many([message]))
    redis.do(history.edit(id_, at(1)))
    redis.do(history.add_many([message]))
    [found] = redis.do(history.search(at(1)))
    assert found.message.content == at(1)
    assert found.distance == pytest.approx(0, abs=1e-5)


def test_index_sees_what_a_plain_history_edited(redis: Redis) -> None:
    history = make(redis)
    redis.do(history.history.edit(redis.do(history.add("user", at(0))), at(1)))
    redis.do(history.index())
    [found] = redis.do(history.search(at(1)))
    assert found.distance == pytest.approx(0, abs=1e-5)


def test_vectors_of_trimmed_messages_do_not_pile_up(redis: Redis) -> None:
    history = make(redis, max_messages=3)
    for i in range(60):
        redis.do(history.add("user", at(i / 100)))
    assert len(stored(redis)) < 30


def test_a_search_after_much_was_trimmed_costs_a_few_round_trips(redis: Redis) -> None:
    history = make(redis, k=1)
    redis.do(history.add_many([{"role": "user", "content": at(i / 100)} for i in range(60)]))
    redis.do(history.history.truncate(2))
    settle(redis)
    found = cost(redis, lambda: history.search(at(0)))
    assert said(found.result) == [at(0.58)]
    assert found.round_trips < 20


def test_the_vector_is_that_of_the_edit_which_was_last(client: Client) -> None:
    one, other = (SemanticHistory(client, Circle(), "s") for _ in range(2))
    id_ = one.add("user", at(0))
    left = [at(2)]

    def see(request: Any) -> None:
        if "FT.CREATE" in words(request) and left:  # now it writes its vector
            other.edit(id_, left.pop())

    client.run(watched(one.plan.edit(id_, at(1)), see))
    assert left == []
    [found] = one.search(at(2), 1)
    assert found.message.content == at(2)
    assert found.distance == pytest.approx(0, abs=1e-5)


# -- time to live --------------------------------------------------------------------------------


def lives(redis: Redis) -> list[int]:
    """Return for how many seconds each vector is there yet."""
    return [redis.do(redis.client.call("TTL", key)) for key in sorted(stored(redis))]


def test_vectors_outlive_the_messages_and_do_not_stay_for_ever(redis: Redis) -> None:
    history = make(redis, ttl=1000)
    first = redis.do(history.add("user", at(0)))
    redis.do(history.history.add("user", at(1)))
    redis.do(history.index())
    redis.do(history.edit(first, at(2)))
    assert 900 < redis.do(redis.client.call("TTL", history.history.key)) <= 1000
    assert len(lives(redis)) == 2
    assert all(1000 < left < 10_000 for left in lives(redis))
    redis.do(make(redis, "t").add("user", at(0)))
    assert min(lives(redis)) == -1  # who has no ttl keeps all


def wait(redis: Redis, clock: Clock, seconds: int) -> None:
    """Let time pass for clients and for vectors; messages stay, as the server's time does not."""
    clock.now += seconds
    for key in stored(redis):
        left = redis.do(redis.client.call("TTL", key)) - seconds
        redis.do(redis.client.call("EXPIRE", key, left))  # below 0 it is gone


def test_vectors_live_on_while_the_session_does(redis: Redis, clock: Clock) -> None:
    history = make(redis, ttl=1000)
    for number in range(8):
        redis.do(history.add("user", at(0)))
        assert len(lives(redis)) == number + 1
        assert all(left > 900 for left in lives(redis))
        wait(redis, clock, 900)  # the session lives on, for it is written to again in time
    assert len(redis.do(history.search(at(0), 20))) == 8


def test_another_process_renews_what_the_first_one_wrote(redis: Redis, clock: Clock) -> None:
    for number in range(5):
        redis.do(make(redis, ttl=1000).add("user", at(0)))
        assert len(lives(redis)) == number + 1
        wait(redis, clock, 900)
    redis.do(make(redis, "t", ttl=1000).add("user", at(0)))
    assert max(lives(redis)) > 2900 > min(lives(redis))  # it renews its own only


@pytest.mark.parametrize("how", ["edit", "delete"])
def test_every_write_that_lets_messages_live_on_lets_vectors(
    redis: Redis, clock: Clock, how: str
) -> None:
    history = make(redis, ttl=1000)
    ids = redis.do(history.add_many([{"role": "user", "content": at(0)}] * 6))
    for id_ in ids[:5]:
        wait(redis, clock, 900)
        assert redis.do(history.edit(id_, at(1)) if how == "edit" else history.delete(id_))
        assert redis.do(redis.client.call("TTL", history.history.key)) > 900
    assert said(redis.do(history.search(at(0), max_distance=0.01))) == [at(0)]


def cut(op: Any, word: str) -> Any:
    """Run an op whose requests fail that have a certain argument."""
    request = next(op)
    try:
        while True:
            if word in words(request):
                request = op.throw(errors.ConnectionError("cut"))
            else:
                request = op.send((yield request))
    except StopIteration as stop:
        return stop.value


def test_a_renewal_that_failed_is_made_up_for(client: Client, clock: Clock) -> None:
    history = SemanticHistory(client, Circle(), "s", ttl=1000)
    history.add("user", at(0))
    clock.now += 1100
    [key] = client.call("KEYS", "*semantic:v:*")
    client.call("EXPIRE", key, 900)
    silent = history.plan.add("user", None)
    try:
        client.run(cut(silent, "FT.SEARCH"))  # for the vectors that are to be renewed
    except errors.ConnectionError:
        pass
    else:
        raise RuntimeError("nothing was cut")
    history.add("user", None)
    assert client.call("TTL", key) > 1000


# -- embedders, the index, the server ------------------------------------------------------------


def test_an_embedders_error_is_the_callers_and_nothing_is_written(redis: Redis) -> None:
    history = make(redis)
    id_ = redis.do(history.add("user", at(0)))
    before = redis.do(redis.client.call("DBSIZE"))

    def broken(texts: list[str]) -> None:
        raise RuntimeError(f"no model for {len(texts)}")

    broken.name = "circle"  # type: ignore[attr-defined]  # the fingerprint of the other one
    failing = make(redis, embedder=broken)
    calls: list[Callable[[], Any]] = [
        lambda: failing.add("user", at(1)),
        lambda: failing.add_many([{"role": "user", "content": c} for c in (None, at(1), at(2))]),
        lambda: failing.edit(id_, at(1)),
        lambda: failing.search(at(0)),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="no model"):
            redis.do(call())
    assert contents(redis.do(history.history.messages())) == [at(0)]
    assert redis.do(redis.client.call("DBSIZE")) == before
    assert said(redis.do(history.search(at(0), max_distance=0.01))) == [at(0)]


def bad_vector(texts: list[str]) -> list[list[float]]:
    """Embed as a model does that has lost its mind."""
    return [[math.nan] * 4 for _ in texts]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"embedder": bad_vector}, ValueError),
        ({"embedder": lambda texts: [[0.0] * 4 for _ in texts]}, ValueError),
        ({"embedder": Circle(8)}, errors.IndexMismatchError),
        ({"namespace": "a\0b"}, ValueError),
        ({"ttl": 10.0**12}, ()),
    ],
    ids=["not finite", "no direction", "another size", "namespace", "ttl"],
)
def test_a_message_that_cannot_be_indexed_is_not_added_either(
    client: Client, options: dict[str, Any], error: Any
) -> None:
    SemanticHistory(client, Circle(), "other").add("user", at(0))
    before = client.call("DBSIZE")
    try:
        SemanticHistory(client, **{"embedder": Circle(), "session": "s", **options}).add(
            "user", at(0)
        )
    except error:
        assert client.call("DBSIZE") == before
    else:
        assert error == ()


def test_a_server_without_search_gets_no_message(
    redis: Redis, plain_server: EmbeddedServer
) -> None:
    client = redis.connect(url=plain_server.url)
    redis.do(client.call("FLUSHALL"))
    with pytest.raises(errors.SearchUnavailableError):
        redis.do(SemanticHistory(client, Circle(), "s").add("user", at(0)))
    assert redis.do(client.call("DBSIZE")) == 0


def test_an_async_embedder_needs_an_async_client(redis: Redis) -> None:
    async def circle(texts: list[str]) -> list[npt.NDArray[np.float32]]:
        return Circle()(texts)

    history = make(redis, embedder=circle)
    if redis.kind == "sync":
        with pytest.raises(TypeError, match="AsyncClient"):
            redis.do(history.add("user", at(0)))
        assert redis.do(redis.client.call("DBSIZE")) == 0
        return
    id_ = redis.do(history.add("user", at(0)))
    redis.do(history.edit(id_, at(1)))
    assert said(redis.do(history.search(at(1), max_distance=0.01))) == [at(1)]


def test_a_flush_under_the_client_heals_with_the_next_write(redis: Redis) -> None:
    history, other = make(redis), make(redis, "t")
    redis.do(history.add("user", at(0)))
    redis.do(redis.client.call("FLUSHALL"))
    assert redis.do(history.search(at(0), recent=3)) == []
    redis.do(history.add("user", at(1)))
    assert said(redis.do(history.search(at(0)))) == [at(1)]
    redis.do(redis.client.call("FLUSHALL"))
    redis.do(other.add("user", at(2)))  # nobody looked in between
    assert said(redis.do(other.search(at(0)))) == [at(2)]


def test_a_dropped_index_heals_with_the_next_write(redis: Redis) -> None:
    history = make(redis)
    redis.do(history.add("user", at(0)))
    redis.do(redis.client.call("FT.DROPINDEX", "chat.semantic"))
    assert redis.do(history.search(at(0))) == []
    redis.do(history.add("user", at(1)))
    settle(redis)
    assert said(redis.do(history.search(at(0)))) == [at(0), at(1)]
