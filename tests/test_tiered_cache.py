"""The exact and the semantic cache as one: one round trip, one write, one answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from counting import cost
from rawredis_llm import Client, LLMCache, SemanticCache, Tag, TieredCache, errors
from test_semantic_cache import FAR, NEAR, NOBODY, Circle, answer, at, vector

if TYPE_CHECKING:
    from conftest import Redis


def make(
    redis: Redis, client: Any = None, *, promote: bool = False, **options: Any
) -> tuple[TieredCache[Any], Circle]:
    """Return a cache of the fixture's client, and its embedder."""
    client = client or redis.client
    embedder = Circle()
    both: dict[str, Any] = {k: options[k] for k in ("scope", "on_error") if k in options}
    exact: LLMCache[Any] = LLMCache(client, **both, **options.get("exact", {}))
    semantic: SemanticCache[Any] = SemanticCache(
        client, embedder, **both, **options.get("semantic", {})
    )
    return TieredCache(exact, semantic, promote=promote), embedder


def counts(redis: Redis, tiered: TieredCache[Any]) -> tuple[Any, Any]:
    """Return what each tier counted: (exact hits, semantic hits, misses)."""
    found = [redis.do(cache.stats()) for cache in (tiered.exact, tiered.semantic)]
    exact, semantic = ((one.exact, one.semantic, one.misses) for one in found)
    return exact, semantic


# -- looking up ----------------------------------------------------------------------------------


def test_a_hit_in_either_tier_and_a_miss(redis: Redis) -> None:
    tiered, _ = make(redis)
    assert redis.do(tiered.lookup(at(0), "m")) is None
    id_ = redis.do(tiered.store(at(0), "r", "m", metadata={"a": 1}))
    exact = redis.do(tiered.lookup(at(0), "m"))
    assert (answer(exact), exact.distance, exact.metadata) == ("r", None, {"a": 1})
    near = redis.do(tiered.lookup(at(NEAR), "m"))
    assert (answer(near), near.id, near.prompt) == ("r", id_, at(0))
    assert near.distance == pytest.approx(0.02, abs=1e-3)
    assert redis.do(tiered.lookup(at(FAR), "m")) is None
    assert redis.do(tiered.lookup(at(0), "m2")) is None
    assert answer(redis.do(tiered.lookup(at(FAR), "m", max_distance=2))) == "r"
    stats = counts(redis, tiered)
    assert stats[0] == (1, 0, {"absent": 5})
    assert stats[1] == (0, 2, {"absent": 2, "far": 1})


def test_chat_messages_and_parameters_are_part_of_both(redis: Redis) -> None:
    tiered, _ = make(redis)
    system = {"role": "system", "content": "be brief"}
    messages = [system, {"role": "user", "content": at(0)}]
    redis.do(tiered.store(messages, "r", params={"seed": 1}))
    near = [system, {"role": "user", "content": at(NEAR)}]
    assert redis.do(tiered.lookup(messages, params={"seed": 1})).distance is None
    assert redis.do(tiered.lookup(near, params={"seed": 1})).distance is not None
    for other, seed in ((messages, 2), (near, 2), (near[1:], 1), (messages[1:], 1)):
        assert redis.do(tiered.lookup(other, params={"seed": seed})) is None


@pytest.mark.parametrize("given", [True, False], ids=["vector", "embedder"])
def test_both_tiers_are_asked_in_one_round_trip(redis: Redis, *, given: bool) -> None:
    tiered, embedder = make(redis)
    redis.do(tiered.store(at(0), "r"))
    redis.do(tiered.lookup(at(0)))
    for prompt, wanted in ((at(0), "r"), (at(NEAR), "r"), (at(FAR), None)):
        redis.do(tiered.exact.stats())  # takes along what was counted so far
        embedder.calls.clear()
        known = {"vector": embedder([prompt])[0]} if given else {}
        embedder.calls.clear()
        found = cost(redis, lambda p=prompt, k=known: tiered.lookup(p, **k))  # type: ignore[misc]
        assert answer(found.result) == wanted
        assert (found.round_trips, found.commands) == (1, {"GET": 1, "FT.SEARCH": 1})
        assert embedder.calls == ([] if given else [[prompt]])


def test_the_exact_answer_comes_first(redis: Redis) -> None:
    tiered, _ = make(redis)
    redis.do(tiered.exact.store(at(0), "exact"))
    redis.do(tiered.semantic.store(at(0), "semantic"))
    assert answer(redis.do(tiered.lookup(at(0)))) == "exact"
    assert answer(redis.do(tiered.lookup(at(NEAR)))) == "semantic"


def test_a_stored_failure_does_not_answer(redis: Redis) -> None:
    tiered, _ = make(redis)
    redis.do(tiered.exact.store_error(at(0), "no model"))
    assert redis.do(tiered.lookup(at(0))) is None
    redis.do(tiered.semantic.store(at(NEAR), "near"))
    hit = redis.do(tiered.lookup(at(0)))
    assert (answer(hit), hit.error) == ("near", None)
    stats = counts(redis, tiered)
    assert stats == ((0, 0, {"error": 2}), (0, 1, {"absent": 1}))


def test_many_lookups_are_gathered(redis: Redis) -> None:
    tiered, embedder = make(redis)
    for i in range(3):
        redis.do(tiered.store(at(i), str(i)))
    redis.do(tiered.lookup(at(0)))
    redis.do(tiered.exact.stats())
    embedder.calls.clear()
    ops = [tiered.plan.lookup(at(angle)) for angle in (0, 1.1, 2, 2.1)]
    found = cost(redis, lambda: redis.client.gather(ops))
    assert [answer(hit) for hit in found.result] == ["0", "1", "2", "2"]
    assert found.round_trips == 1
    assert embedder.calls == [[at(angle) for angle in (0, 1.1, 2, 2.1)]]


# -- storing, deleting ---------------------------------------------------------------------------


def test_an_answer_is_stored_in_one_write(redis: Redis) -> None:
    tiered, _ = make(redis)
    redis.do(tiered.store(at(1), "r"))
    stored = cost(redis, lambda: tiered.store(at(0), "r", ttl=50))
    assert stored.round_trips == 1
    transaction = {"MULTI": 1, "DEL": 1, "HSET": 1, "PEXPIRE": 1, "EXEC": 1}
    assert stored.commands == {"SET": 1, "FT.CREATE": 1, **transaction}


def test_everything_is_stored_in_both(redis: Redis) -> None:
    tiered, embedder = make(redis, semantic={"fields": [Tag("team")]})
    options: dict[str, Any] = {"metadata": {"a": 1}, "ttl": 100, "fields": {"team": "red"}}
    sources = (name for name in ["a.pdf", "b.pdf"])
    redis.do(tiered.store("q", [1], vector=vector(0), sources=sources, category="c", **options))
    assert embedder.calls == []
    exact = redis.do(tiered.exact.lookup("q"))
    semantic = redis.do(
        tiered.semantic.lookup("x", vector=vector(0), category="c", filter=Tag("team") == "red")
    )
    for hit in (exact, semantic):
        assert (hit.response, hit.metadata) == ([1], {"a": 1})
        assert 99 < hit.ttl <= 100
    assert redis.do(tiered.delete_source("b.pdf")) == 2
    assert redis.do(tiered.lookup("q", vector=vector(0))) is None


def test_clear_empties_both(redis: Redis) -> None:
    tiered, _ = make(redis, scope="mine")
    other, _ = make(redis, scope="theirs")
    for cache in (tiered, other):
        redis.do(cache.store(at(0), "r"))
        redis.do(cache.store(at(2), "s"))
    assert redis.do(tiered.clear()) == 4
    assert redis.do(tiered.lookup(at(0))) is None
    assert redis.do(other.lookup(at(0))).distance is None
    assert answer(redis.do(other.lookup(at(NEAR)))) == "r"


@pytest.mark.parametrize(
    "wrong",
    [
        {"category": ""},
        {"fields": {"unknown": 1}},
        pytest.param({"vector": [1.0, 2.0]}, id="vector of another size"),
        {"vector": [0.0, 0, 0, 0]},
    ],
    ids=str,
)
def test_what_one_tier_refuses_is_stored_in_neither(redis: Redis, wrong: dict[str, Any]) -> None:
    tiered, _ = make(redis, semantic={"dim": 4})
    with pytest.raises(ValueError, match=next(iter(wrong))):
        redis.do(tiered.store(at(0), "r", **wrong))
    assert redis.do(tiered.exact.lookup(at(0))) is None


@pytest.mark.parametrize(
    "wrong",
    [{"response": 7}, {"ttl": 0}, {"metadata": {"a": {1}}}, {"prompt": ""}, {"model": None}],
    ids=str,
)
def test_what_both_refuse_is_refused_before_any_io(wrong: dict[str, Any]) -> None:
    given = {"prompt": at(0), "response": "r", "vector": vector(0), **wrong}
    with Client(NOBODY) as client:
        exact = LLMCache(client, on_error="raise")
        tiered = TieredCache(exact, SemanticCache(client, Circle(), on_error="raise"))
        with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
            tiered.store(**given)


def test_one_text_is_no_list_of_sources(redis: Redis) -> None:
    tiered, _ = make(redis)
    with pytest.raises(TypeError, match="sources must be a list"):
        redis.do(tiered.store(at(0), "r", sources="a.pdf"))


# -- promoting -----------------------------------------------------------------------------------


def test_what_was_found_near_is_stored_under_the_new_question(redis: Redis) -> None:
    tiered, _ = make(redis, promote=True, exact={"ttl": 9999})
    store: dict[str, Any] = {"metadata": {"a": [1]}, "ttl": 100, "sources": ["a.pdf"]}
    redis.do(tiered.store(at(0), "r", "m", **store))
    assert redis.do(tiered.exact.lookup(at(NEAR), "m")) is None
    assert answer(redis.do(tiered.lookup(at(NEAR), "m"))) == "r"
    hit = redis.do(tiered.exact.lookup(at(NEAR), "m"))
    assert (answer(hit), hit.metadata, hit.prompt) == ("r", {"a": [1]}, at(NEAR))
    assert 99 < hit.ttl <= 100
    assert redis.do(tiered.exact.lookup(at(NEAR), "m2")) is None
    again = redis.do(tiered.lookup(at(NEAR), "m"))
    assert (answer(again), again.distance) == ("r", None)
    assert redis.do(tiered.delete_source("a.pdf")) == 3
    assert redis.do(tiered.lookup(at(NEAR), "m")) is None


def test_what_is_kept_for_ever_is_promoted_so(redis: Redis) -> None:
    tiered, _ = make(redis, promote=True)
    redis.do(tiered.store(at(0), "r"))
    messages = [{"role": "user", "content": at(0)}]
    redis.do(tiered.store(messages, "chat", params={"seed": 1}))
    asked = [{"role": "user", "content": at(NEAR)}]
    assert answer(redis.do(tiered.lookup(asked, params={"seed": 1}))) == "chat"
    hit = redis.do(tiered.exact.lookup(asked, params={"seed": 1}))
    assert (answer(hit), hit.ttl) == ("chat", None)
    redis.do(tiered.lookup(at(NEAR)))
    assert redis.do(tiered.exact.lookup(at(NEAR))).ttl is None


def test_only_what_was_found_near_is_promoted_and_only_if_told(redis: Redis) -> None:
    for promote, hits in ((False, 0), (True, 1)):
        tiered, _ = make(redis, promote=promote)
        redis.do(tiered.store(at(0), "r"))
        for angle in (0, NEAR, FAR):
            redis.do(tiered.lookup(at(angle)))
        found = [redis.do(tiered.exact.lookup(at(angle))) for angle in (NEAR, FAR)]
        assert [answer(hit) for hit in found] == ["r" if hits else None, None]


def test_a_promotion_replaces_a_stored_failure(redis: Redis) -> None:
    tiered, _ = make(redis, promote=True)
    redis.do(tiered.semantic.store(at(NEAR), "near"))
    redis.do(tiered.exact.store_error(at(0), "no model"))
    assert answer(redis.do(tiered.lookup(at(0)))) == "near"
    assert answer(redis.do(tiered.exact.lookup(at(0)))) == "near"


def test_a_hit_at_the_end_of_its_time_is_a_hit(redis: Redis) -> None:
    tiered, _ = make(redis, promote=True)
    redis.do(tiered.semantic.store(at(0), "r", ttl=100))
    [key] = redis.do(redis.client.call("KEYS", "semantic:s:*"))
    entry = json.loads(redis.do(redis.client.call("HGET", key, "entry")))
    entry["created"] -= 101  # written by a process whose clock is behind
    redis.do(redis.client.call("HSET", key, "entry", json.dumps(entry)))
    assert answer(redis.do(tiered.semantic.lookup(at(NEAR)))) == "r"
    assert answer(redis.do(tiered.lookup(at(NEAR)))) == "r"


# -- what goes together --------------------------------------------------------------------------


def test_both_must_have_the_same_client(redis: Redis) -> None:
    exact: LLMCache[Any] = LLMCache(redis.client)
    semantic: SemanticCache[Any] = SemanticCache(redis.connect(), Circle())
    with pytest.raises(ValueError, match="the same client"):
        TieredCache(exact, semantic)
    wrong: Any = semantic
    with pytest.raises(TypeError, match="an LLMCache and a SemanticCache"):
        TieredCache(wrong, semantic)
    wrong = exact
    with pytest.raises(TypeError, match="an LLMCache and a SemanticCache"):
        TieredCache(exact, wrong)


def test_a_server_out_of_reach_is_a_miss(redis: Redis) -> None:
    tiered, _ = make(redis, redis.connect(url=NOBODY), promote=True)
    for _ in range(2):
        assert redis.do(tiered.lookup(at(0))) is None
    assert len(redis.do(tiered.store(at(0), "r"))) == 32
    with pytest.raises(errors.ConnectionError):
        redis.do(tiered.clear())
    with pytest.raises(errors.ConnectionError):
        redis.do(tiered.delete_source("a"))


def test_a_server_out_of_reach_raises_if_told_so(redis: Redis) -> None:
    tiered, _ = make(redis, redis.connect(url=NOBODY), on_error="raise")
    with pytest.raises(errors.ConnectionError):
        redis.do(tiered.lookup(at(0)))
    with pytest.raises(errors.ConnectionError):
        redis.do(tiered.store(at(0), "r"))


def test_another_embedders_vectors_are_refused(redis: Redis) -> None:
    redis.do(make(redis)[0].store(at(0), "r"))
    semantic: SemanticCache[Any] = SemanticCache(redis.client, Circle(name="second"))
    tiered = TieredCache(LLMCache(redis.client), semantic)
    with pytest.raises(errors.IndexMismatchError, match="'circle', not 'second'"):
        redis.do(tiered.lookup(at(1)))
