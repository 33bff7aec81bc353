"""What a near entry of the semantic cache must pass: its limit, then guards, then a judge.

And what needs no embedder: the very question that was stored.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from counting import cost
from rawredis_llm import Client, SemanticCache, Tag
from test_semantic_cache import FAR, Circle, answer, at, make, vector

if TYPE_CHECKING:
    from conftest import Redis


class Judge:
    """A judge that knows which stored texts are right, and what it was asked."""

    def __init__(self, *right: str) -> None:
        self.right = right
        self.calls: list[tuple[str, str]] = []

    def __call__(self, asked: str, stored: str) -> bool:
        """Say whether the stored text is a right one."""
        self.calls.append((asked, stored))
        return stored in self.right


# -- guards --------------------------------------------------------------------------------------


def test_a_guard_vetoes_and_the_next_candidate_is_taken(redis: Redis) -> None:
    cache = make(redis, guards=["numbers", "negations"])
    redis.do(cache.store("top 5 lakes", "5", vector=vector(0.01)))
    redis.do(cache.store("not the top 3 lakes", "not", vector=vector(0.02)))
    redis.do(cache.store("the three top lakes", "3", vector=vector(0.03)))
    redis.do(cache.store("top 3 lakes of all", "farther", vector=vector(0.04)))
    assert answer(redis.do(cache.lookup("top 3 lakes", vector=vector(0)))) == "3"
    assert redis.do(cache.lookup("top 4 lakes", vector=vector(0))) is None
    unguarded = make(redis)
    assert answer(redis.do(unguarded.lookup("top 3 lakes", vector=vector(0)))) == "5"
    stats = redis.do(cache.stats())
    assert (stats.semantic, stats.misses) == (2, {"guard": 1})


def test_only_k_candidates_are_looked_at(redis: Redis) -> None:
    prompts = [f"top {i} lakes" for i in range(1, 8)]
    default, two = make(redis, guards=["numbers"]), make(redis, guards=["numbers"], k=2)
    for i, prompt in enumerate(prompts):
        redis.do(default.store(prompt, prompt, vector=vector(i / 100)))
    for k, cache in ((5, default), (2, two)):
        for i, prompt in enumerate(prompts):
            hit = redis.do(cache.lookup(f"the {prompt}", vector=vector(0)))
            assert answer(hit) == (prompt if i < k else None)


def test_a_guard_of_ones_own_is_given_both_texts(redis: Redis) -> None:
    seen: list[tuple[str, str]] = []

    def guard(asked: str, stored: str) -> str | None:
        seen.append((asked, stored))
        return "I say so" if "secret" in stored else None

    cache = make(redis, guards=[guard])
    redis.do(cache.store(at(0.01, "secret"), "no"))
    redis.do(cache.store(at(0.02), "yes"))
    redis.do(cache.store(at(FAR), "far"))
    assert answer(redis.do(cache.lookup(at(0)))) == "yes"
    assert seen == [(at(0), at(0.01, "secret")), (at(0), at(0.02))]


def test_guards_and_judge_compare_the_last_turn_only(redis: Redis) -> None:
    judge, system = Judge(), {"role": "system", "content": "never say 7"}
    cache = make(redis, guards=["negations"], judge=judge)
    redis.do(cache.store([system, {"role": "user", "content": at(0, "old ")}], "r"))
    redis.do(cache.lookup([system, {"role": "user", "content": " new  @0.1 "}]))
    assert judge.calls == [("new @0.1", "old @0")]


def test_an_error_of_a_guard_reaches_the_caller(redis: Redis) -> None:
    def guard(asked: str, stored: str) -> str | None:
        raise RuntimeError(f"{asked} {stored}")

    cache = make(redis, guards=[guard])
    redis.do(cache.store(at(0), "r"))
    with pytest.raises(RuntimeError, match=r"@0\.1 @0"):
        redis.do(cache.lookup(at(0.1)))


# -- the judge -----------------------------------------------------------------------------------


def test_a_judge_decides_above_its_distance_only(redis: Redis) -> None:
    judge = Judge()
    cache = make(redis, judge=judge, judge_from=0.005)  # an angle of 0.1
    redis.do(cache.store(at(0), "r"))
    assert answer(redis.do(cache.lookup(at(0.05)))) == "r"
    assert judge.calls == []
    assert redis.do(cache.lookup(at(0.2))) is None
    assert judge.calls == [(at(0.2), at(0))]
    assert redis.do(cache.lookup(at(FAR))) is None  # far is far
    assert judge.calls == [(at(0.2), at(0))]
    judge.right = (at(0),)
    assert answer(redis.do(cache.lookup(at(0.2)))) == "r"
    stats = redis.do(cache.stats())
    assert (stats.semantic, stats.misses) == (2, {"judge": 1, "far": 1})
    assert stats.judged == {"no": 1, "yes": 1}


def test_without_a_distance_a_judge_decides_on_all_but_the_same_place(redis: Redis) -> None:
    judge = Judge()
    cache = make(redis, judge=judge)
    redis.do(cache.store("p", "r", vector=[1.0, 0, 0, 0]))
    assert answer(redis.do(cache.lookup("q", vector=[1.0, 0, 0, 0]))) == "r"
    assert answer(redis.do(cache.lookup("p"))) == "r"  # word for word
    assert judge.calls == []
    assert redis.do(cache.lookup("q", vector=[1.0, 0.01, 0, 0])) is None
    assert judge.calls == [("q", "p")]


def test_a_judge_is_asked_of_one_candidate_after_the_other(redis: Redis) -> None:
    judge = Judge(at(0.03), at(0.04))
    cache = make(redis, judge=judge)
    for angle in (0.02, 0.03, 0.04, FAR):
        redis.do(cache.store(at(angle), str(angle)))
    assert answer(redis.do(cache.lookup(at(0)))) == "0.03"
    assert judge.calls == [(at(0), at(0.02)), (at(0), at(0.03))]
    assert redis.do(cache.stats()).judged == {"no": 1, "yes": 1}


def test_the_limit_comes_first_then_the_guards_then_the_judge(redis: Redis) -> None:
    order: list[str] = []

    def guard(_: str, stored: str) -> str | None:
        order.append(f"guard {stored}")
        return "no" if "veto" in stored else None

    def judge(_: str, stored: str) -> bool:
        order.append(f"judge {stored}")
        return False

    cache = make(redis, guards=[guard], judge=judge)
    for prompt in (at(0.01, "veto"), at(0.02), at(FAR)):
        redis.do(cache.store(prompt, "r"))
    assert redis.do(cache.lookup(at(0))) is None
    assert order == [f"guard {at(0.01, 'veto')}", f"guard {at(0.02)}", f"judge {at(0.02)}"]


@pytest.mark.parametrize("verdict", [1, None, "yes", 0.0])
def test_a_verdict_is_a_bool(redis: Redis, verdict: Any) -> None:
    cache = make(redis, judge=lambda _, __: verdict)
    redis.do(cache.store(at(0), "r"))
    with pytest.raises(TypeError, match=f"judge must return a bool, not {type(verdict).__name__}"):
        redis.do(cache.lookup(at(0.1)))
    assert redis.do(cache.stats()).judged == {}


def test_what_a_judge_raises_reaches_the_caller(redis: Redis) -> None:
    def judge(asked: str, stored: str) -> bool:
        raise RuntimeError(f"no model: {asked} {stored}")

    cache = make(redis, judge=judge)
    redis.do(cache.store(at(0), "r"))
    with pytest.raises(RuntimeError, match=r"no model: @0\.1 @0"):
        redis.do(cache.lookup(at(0.1)))
    assert answer(redis.do(cache.lookup(at(0)))) == "r"


def test_a_judge_may_be_asynchronous_with_an_async_client(redis: Redis) -> None:
    async def judge(asked: str, stored: str) -> bool:
        await asyncio.sleep(0)
        return (asked, stored) == (at(0.1), at(0))

    cache = make(redis, judge=judge)
    redis.do(cache.store(at(0), "r"))
    if redis.kind == "sync":
        with pytest.raises(TypeError, match="judge must return a bool, not coroutine"):
            redis.do(cache.lookup(at(0.1)))
    else:
        assert answer(redis.do(cache.lookup(at(0.1)))) == "r"
        assert redis.do(cache.lookup(at(0.11))) is None
        assert redis.do(cache.stats()).judged == {"yes": 1, "no": 1}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"judge": 1}, TypeError, "judge must be a function"),
        ({"judge_from": -1}, ValueError, "judge_from"),
        ({"guards": "numbers"}, ValueError, "guards"),
        ({"guards": ["figures"]}, ValueError, "guards"),
        ({"k": 0}, ValueError, "k must"),
        ({"k": True}, ValueError, "k must"),
        ({"max_entries": 0}, ValueError, "max_entries"),
        ({"categories": {"a": -1}}, ValueError, "categories"),
        ({"categories": {"": 1}}, ValueError, "categories"),
    ],
)
def test_a_bad_option_is_named(
    client: Client, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        SemanticCache(client, Circle(), **options)


# -- exact repeats -------------------------------------------------------------------------------


def test_an_exact_repeat_needs_no_embedder(redis: Redis) -> None:
    embedder = Circle()
    cache = make(redis, embedder=embedder)
    redis.do(cache.store(at(0), "r", "m", params={"seed": 1}))
    embedder.calls.clear()
    found = cost(redis, lambda: cache.lookup(at(0), "m", params={"seed": 1}))
    assert (answer(found.result), found.result.distance) == ("r", 0)
    assert embedder.calls == []
    assert found.round_trips == 1
    redis.do(cache.lookup(at(0), "m"))
    redis.do(cache.lookup(at(0), "m2", params={"seed": 1}))
    redis.do(cache.lookup(f"{at(0)} ", "m", params={"seed": 1}))
    assert len(embedder.calls) == 3
    stats = redis.do(cache.stats())
    assert (stats.exact, stats.semantic, stats.misses) == (1, 1, {"absent": 2})


def test_an_exact_repeat_that_must_match_a_filter_is_searched_for(redis: Redis) -> None:
    embedder = Circle()
    cache = make(redis, embedder=embedder, fields=[Tag("team")])
    redis.do(cache.store(at(0), "r", fields={"team": "red"}))
    embedder.calls.clear()
    assert redis.do(cache.lookup(at(0), filter=Tag("team") == "blue")) is None
    assert answer(redis.do(cache.lookup(at(0), filter=Tag("team") == "red"))) == "r"
    assert embedder.calls == [[at(0)]] * 2


def test_an_exact_repeat_is_of_its_category(redis: Redis) -> None:
    embedder = Circle()
    cache = make(redis, embedder=embedder)
    redis.do(cache.store(at(0), "r", category="a"))
    embedder.calls.clear()
    assert answer(redis.do(cache.lookup(at(0), category="a"))) == "r"
    assert embedder.calls == []
    assert redis.do(cache.lookup(at(0), category="b")) is None
    assert embedder.calls == [[at(0)]]


def test_storing_the_same_question_twice_makes_one_entry(redis: Redis) -> None:
    cache = make(redis)
    ids = {redis.do(cache.store(at(0), str(i), "m", vector=vector(i / 10))) for i in range(3)}
    assert len(ids) == 1
    assert len(redis.do(redis.client.call("KEYS", "semantic:s:*"))) == 1
    assert answer(redis.do(cache.lookup(at(0), "m"))) == "2"
    assert redis.do(cache.store(at(0), "r", "m2")) not in ids
    assert redis.do(make(redis, scope="s").store(at(0), "r", "m")) not in ids


def test_a_near_duplicate_is_an_entry_of_its_own(redis: Redis) -> None:
    cache = make(redis)
    redis.do(cache.store(at(0), "a"))
    redis.do(cache.store(at(0, "again"), "b"))
    assert answer(redis.do(cache.lookup(at(0)))) == "a"
    assert answer(redis.do(cache.lookup(at(0, "again")))) == "b"


def test_an_entry_that_says_another_model_is_no_hit(redis: Redis) -> None:
    cache = make(redis)
    redis.do(cache.store(at(0), "r", "m"))
    [key] = redis.do(redis.client.call("KEYS", "semantic:s:*"))
    entry = json.loads(redis.do(redis.client.call("HGET", key, "entry")))
    for model, wanted in (("m2", None), ("m", "r")):
        entry["model"] = model
        redis.do(redis.client.call("HSET", key, "entry", json.dumps(entry)))
        for prompt in (at(0), at(0.1)):
            assert answer(redis.do(cache.lookup(prompt, "m"))) == wanted


def test_an_entry_that_was_moved_is_no_exact_repeat(redis: Redis) -> None:
    cache = make(redis, max_distance=0)
    theirs = redis.do(cache.store(at(1), "theirs"))
    ours = redis.do(cache.store(at(0), "ours"))
    keys = {k[-32:].decode(): k for k in redis.do(redis.client.call("KEYS", "semantic:s:*"))}
    redis.do(redis.client.call("COPY", keys[theirs], keys[ours], "REPLACE"))
    assert redis.do(cache.lookup(at(0))) is None
