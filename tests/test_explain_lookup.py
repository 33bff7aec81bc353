"""An explanation says what a lookup would say, why, and by which very commands; it counts not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from time import sleep
from typing import TYPE_CHECKING, Any

import pytest

from rawredis_llm import Client, EmbeddedServer, Lookup, SemanticCache, Tag
from rawredis_llm.explain import shown
from test_semantic_cache import FAR, NEAR, NOBODY, Circle, answer, at, make, vector
from test_semantic_upkeep import then

if TYPE_CHECKING:
    from conftest import Redis


def refusals(told: Lookup) -> list[tuple[str, str | None]]:
    """Return what was looked at, and why it was refused."""
    return [(near.prompt, near.refused) for near in told.nearest]


def only_key(redis: Redis) -> bytes:
    """Return the key of the only entry."""
    [key] = redis.do(redis.client.call("KEYS", "semantic:s:*"))
    assert isinstance(key, bytes)
    return key


# -- gates ---------------------------------------------------------------------------------------


def test_a_hit_is_told_with_all_that_was_looked_at(redis: Redis) -> None:
    cache = make(redis, scope="s", guards=[lambda _, b: "no" if "veto" in b else None])
    redis.do(cache.store(at(0.1, "veto"), "no", "m"))
    redis.do(cache.store(at(NEAR), "r", "m"))
    told = redis.do(cache.explain(at(0), "m"))
    assert (told.gate, answer(told.hit)) == ("hit", "r")
    assert refusals(told) == [(at(0.1, "veto"), "guard: no"), (at(NEAR), None)]
    distances = [near.distance for near in told.nearest]
    assert distances == pytest.approx([1 - math.cos(0.1), 1 - math.cos(NEAR)], abs=1e-5)
    assert told.nearest[-1].id == told.hit.id
    assert (told.max_distance, told.scope, told.model) == (0.1, "s", "m")
    assert told.hit.distance == told.nearest[-1].distance
    told = redis.do(cache.explain(at(0), "m", max_distance=0.01))
    assert (told.max_distance, told.gate, told.hit) == (0.01, "guard", None)


def test_the_very_question_is_told_without_the_embedder(redis: Redis) -> None:
    embedder = Circle()
    cache = make(redis, embedder=embedder)
    redis.do(cache.store(at(0), "r"))
    embedder.calls.clear()
    redis.do(cache.stats())
    told = redis.do(cache.explain(at(0)))
    assert (told.gate, answer(told.hit), embedder.calls) == ("hit", "r", [])
    assert refusals(told) == [(at(0), None)]
    assert told.argv == [f"HMGET {only_key(redis).decode()} scope model entry"]
    assert "embed" not in told.phases


def test_what_is_far_is_told_nearest_first(redis: Redis) -> None:
    cache = make(redis)
    for angle in (2.0, FAR, 3.0, 2.5, 2.2, 2.8):
        redis.do(cache.store(at(angle), "r"))
    told = redis.do(cache.explain(at(0)))
    assert (told.gate, told.hit) == ("far", None)
    assert refusals(told) == [(at(angle), "far") for angle in (FAR, 2.0, 2.2, 2.5, 2.8)]
    assert all(type(near.distance) is float for near in told.nearest)


def test_what_a_judge_refused_is_told(redis: Redis) -> None:
    cache = make(redis, judge=lambda _, __: False)
    redis.do(cache.store(at(0), "r"))
    told = redis.do(cache.explain(at(0.1)))
    assert (told.gate, told.hit, refusals(told)) == ("judge", None, [(at(0), "judge")])
    assert set(told.phases) >= {"server", "embed", "judge"}


def test_what_is_not_there_is_told(redis: Redis) -> None:
    cache = make(redis)
    told = redis.do(cache.explain(at(0)))  # and there is no index
    assert (told.gate, told.hit, told.nearest) == ("absent", None, [])
    redis.do(cache.store(at(0), "r", "another model"))
    told = redis.do(cache.explain(at(0)))
    assert (told.gate, told.hit, told.nearest) == ("absent", None, [])


def test_another_category_is_told(redis: Redis) -> None:
    cache = make(redis)
    redis.do(cache.store(at(0), "r", category="a"))
    told = redis.do(cache.explain(at(0), category="b"))
    assert (told.hit, refusals(told)) == (None, [(at(0), "category")])
    told = redis.do(cache.explain(at(0.1), category="b"))
    assert (told.gate, told.hit, told.nearest) == ("absent", None, [])


def test_another_category_is_the_gate(redis: Redis) -> None:
    cache = make(redis)
    redis.do(cache.store(at(0), "r", category="a"))
    assert redis.do(cache.explain(at(0), category="b")).gate == "category"


def test_what_is_damaged_is_told(redis: Redis) -> None:
    cache = make(redis)
    redis.do(cache.store(at(0), "r"))
    key = only_key(redis)
    entry = json.loads(redis.do(redis.client.call("HGET", key, "entry")))
    entry["response"] = 7
    redis.do(redis.client.call("HSET", key, "entry", json.dumps(entry)))
    for prompt in (at(0), at(0.1)):
        told = redis.do(cache.explain(prompt))
        assert (told.gate, told.hit, told.nearest) == ("damaged", None, [])


@pytest.mark.parametrize("protocol", [2, 3])
def test_what_expired_is_told(protocol: int) -> None:
    with (
        EmbeddedServer(extra=("--enable-debug-command", "yes")) as server,
        Client(server.url, protocol=protocol) as client,
    ):
        client.call("DEBUG", "SET-ACTIVE-EXPIRE", 0)
        cache = SemanticCache(client, Circle())
        cache.store(at(0), "r", ttl=0.001)
        sleep(0.01)
        told = cache.explain("q", vector=vector(0))
        assert (told.gate, told.hit, told.nearest) == ("expired", None, [])


def test_a_server_out_of_reach_is_told(redis: Redis) -> None:
    cache = SemanticCache(redis.connect(url=NOBODY), Circle())
    for given in (None, vector(0)):
        told = redis.do(cache.explain(at(0), vector=given))
        assert (told.gate, told.hit, told.nearest) == ("unreachable", None, [])


# -- as a lookup ---------------------------------------------------------------------------------


CATEGORIES = {"categories": {"loose": 0.5}, "max_distance": 0.001}


@pytest.mark.parametrize("options", [CATEGORIES, {**CATEGORIES, "k": 1}], ids=["default", "k=1"])
def test_an_explanation_comes_to_what_a_lookup_does(redis: Redis, options: dict[str, Any]) -> None:
    cache = make(redis, **options)
    redis.do(cache.store(at(0.1), "far"))
    redis.do(cache.store(at(0.2), "near enough for its category", category="loose"))
    hit = redis.do(cache.lookup(at(0)))
    assert answer(redis.do(cache.explain(at(0))).hit) == answer(hit)


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_an_explanation_agrees_where_one_limit_holds(redis: Redis, k: int) -> None:
    cache = make(redis, k=k)
    for i in range(8):
        redis.do(cache.store(at(i * 0.5), str(i)))
    for i in range(12):
        told, hit = redis.do(
            redis.client.gather([cache.plan.explain(at(i / 3)), cache.plan.lookup(at(i / 3))])
        )
        assert answer(told.hit) == answer(hit)
        assert len(told.nearest) == (1 if hit else max(k, 5))


def test_an_explanation_is_not_counted(redis: Redis) -> None:
    cache = make(redis, max_entries=9)
    redis.do(cache.store(at(0), "r"))
    for angle in (0, NEAR, FAR):
        redis.do(cache.explain(at(angle)))
    stats = redis.do(cache.stats())
    assert (stats.lookups, stats.hits, stats.misses, stats.judged) == (0, 0, {}, {})


def test_a_verdict_in_an_explanation_is_not_counted(redis: Redis) -> None:
    cache = make(redis, judge=lambda _, __: True)
    redis.do(cache.store(at(0), "r"))
    assert redis.do(cache.explain(at(0.1))).gate == "hit"
    assert redis.do(cache.stats()).judged == {}


# -- commands and times --------------------------------------------------------------------------


@pytest.fixture
def seen(redis: Redis) -> Iterator[Any]:
    """Return what gives the commands that the server was sent, as a shell would take them."""
    call = redis.client.call
    redis.do(call("CONFIG", "SET", "slowlog-log-slower-than", 0))

    def commands() -> list[str]:
        entries = redis.do(call("SLOWLOG", "GET", 20))
        argvs = [entry[3] for entry in reversed(entries)]
        return [" ".join(map(shown, argv)) for argv in argvs if argv[0] != b"SLOWLOG"]

    yield commands
    redis.do(call("CONFIG", "SET", "slowlog-log-slower-than", 10_000))
    redis.do(call("SLOWLOG", "RESET"))


def test_its_argv_are_the_very_commands(redis: Redis, seen: Any) -> None:
    cache = make(redis, fields=[Tag("team")])
    redis.do(cache.store(at(1, 'other "words" '), "r", category="c", fields={"team": "red"}))
    redis.do(cache.lookup(at(0)))
    redis.do(cache.stats())
    asked: list[dict[str, Any]] = [
        {"prompt": at(0)},
        {"prompt": at(0), "category": "c"},
        {"prompt": at(0), "filter": Tag("team") == "red blue"},
        {"prompt": "q", "vector": vector(0)},
    ]
    for given in asked:
        redis.do(redis.client.call("SLOWLOG", "RESET"))
        told = redis.do(cache.explain(**given))
        embedded = [line for line in told.argv if line.startswith("(")]
        assert embedded == ([] if "vector" in given else ["(embed 1 text)"])
        sent = seen()
        for line, logged in zip((x for x in told.argv if x not in embedded), sent, strict=True):
            whole, *rest = logged.split("... (")  # of long arguments the log has the beginning
            assert line.startswith(whole)
            assert line.endswith(rest[0].partition(" more bytes)")[2] if rest else whole)
        assert any(line.startswith("FT.SEARCH semantic:semantic ") for line in sent)
        assert any(line.startswith("HMGET") for line in sent) == (given in asked[:2])
        assert "<16 bytes>" in sent[-1]


def test_phases_are_where_the_time_went(redis: Redis) -> None:
    clock = [1000.0]

    class Slow(Circle):
        def __call__(self, texts: list[str]) -> Any:
            clock[0] += 30
            return super().__call__(texts)

    def judge(_: str, __: str) -> bool:
        clock[0] += 2
        return False

    cache = make(redis, embedder=Slow(), judge=judge)
    for angle in (0, 0.01):
        redis.do(cache.store(at(angle), "r"))
    told = then(redis, cache.plan.explain(at(0.1)), lambda: clock[0])
    assert told.phases == {"server": 0, "embed": 30, "judge": 4}
    told = redis.do(cache.explain(at(0.1)))
    assert told.phases["server"] > 0
