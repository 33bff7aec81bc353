"""Semantic history: a session's messages found by nearness, and nobody else's.

Messages lie on the circle of `test_semantic_cache`: the distance of two is 1 - cos of their angle.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from counting import cost
from rawredis_llm import (
    Client,
    Message,
    Recalled,
    SemanticHistory,
)
from rawredis_llm.search.query import info
from test_semantic_cache import NOBODY, Circle, at

if TYPE_CHECKING:
    from conftest import Clock, Redis

NOW = 1_700_000_000
"""The time at which `clock` stands first; sessions are imported with times before it."""


def make(redis: Redis, session: str = "s", **options: Any) -> SemanticHistory[Any]:
    """Return a semantic history of the fixture's client."""
    return SemanticHistory(
        redis.client, options.pop("embedder", None) or Circle(), session, **options
    )


def said(found: list[Recalled]) -> list[Any]:
    """Return what messages that were found say, best first."""
    return [one.message.content for one in found]


def contents(messages: list[Message]) -> list[Any]:
    """Return what messages say, in order."""
    return [message.content for message in messages]


def stored(redis: Redis) -> set[bytes]:
    """Return the keys of all vectors."""
    return set(redis.do(redis.client.call("KEYS", "*semantic:v:*")))


def settle(redis: Redis, name: str = "chat.semantic") -> None:
    """Wait until an index is whole."""
    while not redis.do(redis.client.run(info(name))).whole:
        sleep(0.01)


def imported(
    redis: Redis, path: Path, ages: dict[str, float], **options: Any
) -> SemanticHistory[Any]:
    """Return a session of messages that are so many seconds old at `NOW`, oldest first."""
    lines = [
        json.dumps(
            {"role": "user", "content": text, "_stream_id": f"{round((NOW - age) * 1000)}-0"}
        )
        for text, age in ages.items()
    ]
    path.write_text("\n".join(lines))
    history = make(redis, **options)
    assert redis.do(history.history.import_(path)) == len(lines)
    assert redis.do(history.index()) == len(lines)
    return history


# -- near and far --------------------------------------------------------------------------------


class Cloud:
    """An embedder of vectors that lie anywhere, always the same for a text."""

    name = "cloud"

    def __call__(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """Embed any texts."""
        seeds = [zlib.crc32(text.encode()) for text in texts]
        return np.array([np.random.default_rng(seed).normal(size=16) for seed in seeds], np.float32)


def test_messages_are_ranked_by_their_exact_distance(redis: Redis) -> None:
    history = make(redis, embedder=Cloud())
    texts = [f"message {i}" for i in range(60)]
    redis.do(history.add_many([{"role": "user", "content": text} for text in texts]))
    units = Cloud()([*texts, "query"]).astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    distances = 1 - units[:-1] @ units[-1]
    order = np.argsort(distances)[:10]
    found = redis.do(history.search("query", 10))
    assert said(found) == [texts[i] for i in order]
    assert [one.distance for one in found] == pytest.approx(distances[order], abs=1e-5)
    assert [one.score for one in found] == pytest.approx(1 - distances[order] / 2, abs=1e-5)
    assert all((one.before, one.after) == ([], []) for one in found)


def test_what_is_found_is_the_whole_message(redis: Redis) -> None:
    history = make(redis)
    id_ = redis.do(
        history.add("user", at(0, "é日本🦜 \0 {}"), name="Ann", metadata={"n": [1, None]})
    )
    [found] = redis.do(history.search(at(0.1)))
    [kept] = redis.do(history.history.messages())
    assert found.message == kept
    assert found.message.id == id_
    assert found.message.extra == {"name": "Ann", "metadata": {"n": [1, None]}}


def test_k_is_how_many_come_back(redis: Redis) -> None:
    history = make(redis, k=3)
    redis.do(history.add_many([{"role": "user", "content": at(i / 10)} for i in range(30)]))
    assert said(redis.do(history.search(at(0)))) == [at(0.0), at(0.1), at(0.2)]
    assert len(redis.do(history.search(at(0), 25))) == 25
    assert len(redis.do(history.search(at(0), k=99))) == 30
    assert len(redis.do(make(redis).search(at(0)))) == 4


ROLES = ["user", "User", "assistant", "tool,x", "a|b", "é {*}", "n\0l", " user"]


def test_only_messages_of_the_roles_are_found(redis: Redis) -> None:
    history = make(redis, k=20)
    redis.do(history.add_many([{"role": role, "content": at(0, role)} for role in ROLES]))
    for role in ROLES:
        assert said(redis.do(history.search(at(0), roles=[role]))) == [at(0, role)]
    both = redis.do(history.search(at(0), roles={"user", "tool,x"}))
    assert sorted(said(both)) == [at(0, "tool,x"), at(0, "user")]
    assert redis.do(history.search(at(0), roles=["nobody"])) == []
    assert len(redis.do(history.search(at(0)))) == len(ROLES)


def test_max_distance_is_a_limit_and_0_is_one(redis: Redis) -> None:
    history = make(redis)
    redis.do(history.add_many([{"role": "user", "content": at(i / 2)} for i in range(4)]))
    limit = 1 - math.cos(0.75)  # between the second and the third
    assert said(redis.do(history.search(at(0), max_distance=limit))) == [at(0.0), at(0.5)]
    assert said(redis.do(history.search(at(0), max_distance=0))) == [at(0.0)]
    assert redis.do(history.search(at(-1), max_distance=0.1)) == []


def test_with_a_half_life_an_older_message_may_lose_to_a_farther_one(
    redis: Redis, clock: Clock, tmp_path: Path
) -> None:
    ages = {at(0.0, "old"): 7200.0, at(0.5, "young"): 1800.0, at(1.5, "new"): 0.0}
    history = imported(redis, tmp_path / "s", ages, half_life=3600)
    found = redis.do(history.search(at(0)))
    scores = {
        text: (1 - (1 - math.cos(float(text.split("@")[1]))) / 2) * 0.5 ** (age / 3600)
        for text, age in ages.items()
    }
    assert said(found) == sorted(scores, key=lambda text: -scores[text])
    assert said(found)[-1] == at(0.0, "old")
    assert [one.score for one in found] == pytest.approx(sorted(scores.values())[::-1], abs=1e-5)
    assert found[-1].distance == pytest.approx(0, abs=1e-5)
    clock.now += 3600
    later = redis.do(history.search(at(0)))
    assert [one.score for one in later] == pytest.approx([one.score / 2 for one in found], abs=1e-5)
    timeless = make(redis)
    assert said(redis.do(timeless.search(at(0))))[0] == at(0.0, "old")


def test_a_message_of_the_future_counts_as_new(redis: Redis, clock: Clock, tmp_path: Path) -> None:
    assert clock.now == NOW
    history = imported(redis, tmp_path / "s", {at(0): -500.0}, half_life=10)
    assert redis.do(history.search(at(0)))[0].score == pytest.approx(1, abs=1e-5)


def test_neighbours_come_oldest_first_and_end_at_the_sessions_ends(redis: Redis) -> None:
    history = make(redis)
    texts = [at(i / 2) for i in range(6)]
    ids = [redis.do(history.add("user" if i % 2 else "assistant", t)) for i, t in enumerate(texts)]
    redis.do(make(redis, "other").add("user", at(1.0, "other")))

    def around(text: str, count: int) -> tuple[list[Any], list[Any]]:
        [one] = redis.do(history.search(text, 1, neighbours=count))
        assert one.message.content == text
        return contents(one.before), contents(one.after)

    assert around(texts[2], 2) == (texts[0:2], texts[3:5])
    assert around(texts[0], 2) == ([], texts[1:3])
    assert around(texts[5], 3) == (texts[2:5], [])
    assert around(texts[3], 99) == (texts[:3], texts[4:])
    assert around(texts[3], 0) == ([], [])
    # Only what is found is of the roles; what stands around it is what was said.
    [one] = redis.do(history.search(texts[2], 1, neighbours=1, roles=["user"]))
    assert one.message.content in (texts[1], texts[3])
    assert {one.before[0].role, one.after[0].role} == {"assistant"}
    first, second = redis.do(history.search(at(0.0), 2, neighbours=1))
    assert [one.id for one in (first.after[0], second.before[0])] == [ids[1], ids[0]]


def test_recent_messages_stand_in_only_where_nothing_is_found(redis: Redis) -> None:
    history = make(redis)
    assert redis.do(history.search(at(0), recent=3)) == []
    redis.do(history.add_many([{"role": "user", "content": at(i / 10)} for i in range(5)]))
    redis.do(history.add("tool", None, tool_call_id="1"))
    far: dict[str, Any] = {"max_distance": 0.01}
    assert said(redis.do(history.search(at(3), recent=3, **far))) == [None, at(0.4), at(0.3)]
    assert said(redis.do(history.search(at(3), recent=1, roles=["user"], **far))) == [at(0.4)]
    assert redis.do(history.search(at(3), **far)) == []
    for one in redis.do(history.search(at(3), recent=9, **far)):
        assert (one.distance, one.score, one.before, one.after) == (None, None, [], [])
    assert said(redis.do(history.search(at(0), recent=3, max_distance=0))) == [at(0.0)]
    assert len(redis.do(history.search(at(3), recent=9, **far))) == 6


def test_messages_without_text_are_kept_and_not_searched(redis: Redis) -> None:
    embedder = Circle()
    history = make(redis, embedder=embedder)
    image = [{"type": "image_url", "image_url": {"url": "data:x"}}]
    silent: list[Any] = [None, "", " \n", image, [], 5]
    for content in silent:
        redis.do(history.add("assistant", content, tool_calls=[{"id": "1"}]))
    assert embedder.calls == []
    assert stored(redis) == set()
    assert contents(redis.do(history.history.messages())) == silent
    assert redis.do(history.search(at(0))) == []
    redis.do(history.add_many([{"role": "user", "content": one} for one in (None, at(0), "")]))
    assert said(redis.do(history.search(at(0), 9))) == [at(0)]


def test_content_in_parts_is_found_by_its_text(redis: Redis) -> None:
    history = make(redis)
    image = {"type": "image_url", "image_url": {"url": "data:x"}}
    parts = [{"type": "text", "text": "look"}, image, {"type": "text", "text": at(1)}]
    redis.do(history.add_many([{"role": "user", "content": c} for c in (at(0), parts, at(2))]))
    [found] = redis.do(history.search(at(1), 1))
    assert found.message.content == parts
    assert found.distance == pytest.approx(0, abs=1e-5)


# -- whose messages ------------------------------------------------------------------------------

SESSIONS = ["s", "S", " s", "s ", " ", "s:1", "s%3A1", "*", "?", "[s]", "s\\", "s\0x", "a,b", "é"]
SESSIONS += ['"} | @scope:{*', "s\n", "s" * 5000]


def everybody(redis: Redis) -> list[SemanticHistory[Any]]:
    """Return histories with names of all kinds, of several namespaces and embedders."""
    found = [make(redis, session) for session in SESSIONS]
    found += [make(redis, namespace=name) for name in ("chat:v", "chat.semantic", "c*t", "Chat")]
    return [*found, make(redis, embedder=Circle(name="another"))]


def test_a_session_finds_its_own_messages_only(redis: Redis) -> None:
    histories = everybody(redis)
    for number, history in enumerate(histories):
        redis.do(history.add("user", at(0, f"secret {number}")))
    for number, history in enumerate(histories):
        assert said(redis.do(history.search(at(0), 99))) == [at(0, f"secret {number}")]


@pytest.mark.parametrize("which", [0, 2, 7, 9, 15, -5, -3])
def test_clear_takes_its_own_messages_and_vectors_only(redis: Redis, which: int) -> None:
    histories = everybody(redis)[:-1]
    for history in histories:
        redis.do(history.add_many([{"role": "user", "content": at(i)} for i in range(2)]))
    before = stored(redis)
    assert redis.do(histories[which].clear()) is True
    gone = before - stored(redis)
    assert len(gone) == 2
    assert len({key.rpartition(b":")[0] for key in gone}) == 1
    for history in histories:
        left = 0 if history is histories[which] else 2
        assert redis.do(history.history.count()) == left
        assert len(redis.do(history.search(at(0)))) == left
    assert redis.do(histories[which].clear()) is False


# -- what it costs -------------------------------------------------------------------------------


def test_an_add_and_a_search_cost_two_round_trips(redis: Redis) -> None:
    history = make(redis, ttl=1000)
    redis.do(history.add_many([{"role": "user", "content": at(i / 10)} for i in range(9)]))
    settle(redis)
    redis.do(history.search(at(0)))
    added = cost(redis, lambda: history.add("user", at(0)))
    assert added.round_trips == 2
    for options in ({}, {"k": 8}, {"neighbours": 2}, {"recent": 3}, {"roles": ["user"]}):
        found = cost(redis, lambda options=options: history.search(at(0), **options))  # type: ignore[misc]  # a default
        assert found.round_trips == 2
        assert found.commands["FT.SEARCH"] == 1
    silent = cost(redis, lambda: history.add("assistant", None))
    assert silent.round_trips == 1


def test_searches_of_many_sessions_walk_together(redis: Redis) -> None:
    embedder = Circle()
    histories = [make(redis, name, embedder=embedder) for name in ("a", "b", "c")]
    for number, history in enumerate(histories):
        redis.do(history.add_many([{"role": "user", "content": at(number + i)} for i in (0, 1)]))
    settle(redis)
    for history in histories:
        redis.do(history.search(at(0)))
    embedder.calls.clear()
    found = cost(
        redis, lambda: redis.client.gather([one.plan.search(at(0), 1) for one in histories])
    )
    assert found.round_trips == 2
    assert len(embedder.calls) == 1
    assert [said(one) for one in found.result] == [[at(0)], [at(1)], [at(2)]]


def test_a_plan_writes_when_it_is_run(redis: Redis) -> None:
    history = make(redis)
    adds = [history.plan.add("user", at(0)), history.plan.add_many([Message("user", at(1))])]
    assert redis.do(history.history.count()) == 0
    one, [other] = redis.do(redis.client.gather(adds))
    found = redis.do(history.search(at(0)))
    assert {one, other} == {each.message.id for each in found}
    plan = history.plan
    assert plan.history.key == history.history.key
    ops = [plan.index(), plan.edit(one, at(2)), plan.delete(other), plan.history.count()]
    assert redis.do(redis.client.gather(ops))[:3] == [0, True, True]
    assert redis.do(redis.client.gather([plan.clear()])) == [True]
    assert redis.do(redis.client.call("DBSIZE")) == 0


# -- the caller's mistakes -----------------------------------------------------------------------

BAD_CALLS: list[tuple[type[Exception], str, Callable[[Any], object]]] = [
    (TypeError, "query", lambda h: h.search(None)),
    (ValueError, "query", lambda h: h.search(" ")),
    (ValueError, "k", lambda h: h.search(at(0), 0)),
    (TypeError, "k", lambda h: h.search(at(0), 1.5)),
    (TypeError, "roles", lambda h: h.search(at(0), roles="user")),
    (ValueError, "role", lambda h: h.search(at(0), roles=[])),
    (TypeError, "role", lambda h: h.search(at(0), roles=[5])),
    (TypeError, "max_distance", lambda h: h.search(at(0), max_distance="1")),
    (ValueError, "max_distance", lambda h: h.search(at(0), max_distance=-1)),
    (ValueError, "max_distance", lambda h: h.search(at(0), max_distance=math.nan)),
    (ValueError, "neighbours", lambda h: h.search(at(0), neighbours=-1)),
    (ValueError, "recent", lambda h: h.search(at(0), recent=-1)),
    (ValueError, "role", lambda h: h.add("", at(0))),
    (TypeError, "role", lambda h: h.add(None, at(0))),
    (TypeError, "message", lambda h: h.add("user", at(0), x={1})),
    (TypeError, "message", lambda h: h.add_many([at(0)])),
    (ValueError, "role and content", lambda h: h.add_many([{"role": "user"}])),
    (ValueError, "message_id", lambda h: h.edit("x", at(0))),
    (ValueError, "message_id", lambda h: h.delete("*")),
]


@pytest.mark.parametrize(("error", "argument", "use"), BAD_CALLS)
def test_a_bad_argument_is_refused_before_any_io(
    error: type[Exception], argument: str, use: Callable[[Any], object]
) -> None:
    with Client(NOBODY) as client, pytest.raises(error, match=argument) as caught:
        use(SemanticHistory(client, Circle(), "s"))
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"session": ""}, ValueError),
        ({"session": None}, TypeError),
        ({"namespace": " "}, ValueError),
        ({"ttl": 0}, ValueError),
        ({"max_messages": 0}, ValueError),
        ({"k": 0}, ValueError),
        ({"k": True}, ValueError),
        ({"half_life": 0}, ValueError),
        ({"half_life": -1}, ValueError),
        ({"half_life": "1"}, TypeError),
        ({"half_life": math.nan}, ValueError),
        ({"embedder": "model"}, TypeError),
    ],
    ids=str,
)
def test_a_bad_option_is_named(options: dict[str, Any], error: type[Exception]) -> None:
    with Client(NOBODY) as client, pytest.raises(error, match=next(iter(options))):
        SemanticHistory(client, **{"embedder": Circle(), "session": "s", **options})
