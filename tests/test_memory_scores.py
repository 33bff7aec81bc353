"""Vector memory: what counts how much, what stays for how long, and what is forgotten.

Turns lie on the circle of `test_semantic_cache`: the distance of two is 1 - cos of their angle. A
turn's text ends in its output, so that is what says where it lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from time import sleep
from typing import TYPE_CHECKING, Any

import pytest

from counting import cost
from rawredis_llm import (
    Batch,
    Client,
    Command,
    Document,
    Filter,
    Numeric,
    Raw,
    Tag,
    Text,
    Vector,
    VectorIndex,
    VectorMemory,
)
from rawredis_llm.protocol.operation import watched
from rawredis_llm.search.query import info
from test_semantic_cache import NOBODY, Circle, at

if TYPE_CHECKING:
    from conftest import Clock, Redis

SCOPE = Tag("scope", case_sensitive=True)


def make(redis: Redis, scope: str = "u1", **options: Any) -> VectorMemory[Any]:
    """Return a memory of the fixture's client."""
    return VectorMemory(
        redis.client, options.pop("embedder", None) or Circle(), scope=scope, **options
    )


def save(redis: Redis, memory: VectorMemory[Any], angle: float, word: str = "", **own: Any) -> str:
    """Save a turn that lies at an angle; return its id."""
    id_: str = redis.do(memory.save(word or "x", at(angle, word), **own))
    return id_


def said(found: list[Document]) -> list[Any]:
    """Return what came out at each turn, best first."""
    return [one.metadata["outputs"]["output"] for one in found]


def keys(redis: Redis) -> set[bytes]:
    """Return every key there is."""
    return set(redis.do(redis.client.call("KEYS", "*")))


def similar(angle: float) -> float:
    """Return the similarity of what is this angle apart: 1 - d/2."""
    return (1 + math.cos(angle)) / 2


# -- the score -----------------------------------------------------------------------------------

WEIGHTS: list[dict[str, float] | None] = [
    None,
    {},
    {"recency": 0},
    {"nearness": 0},
    {"importance": 0},
    {"nearness": 2.5, "recency": 0.5, "importance": 3},
    {"nearness": 0, "recency": 0, "importance": 0},
]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_the_score_is_the_product_of_powers(
    redis: Redis, clock: Clock, weights: dict[str, float] | None
) -> None:
    memory = make(redis, half_life=100, weights=weights)
    turns = {
        at(0.1): (0.5, 0.0),
        at(0.9): (1.0, 300.0),
        at(1.7): (0.25, 50.0),
        at(3.0): (1.0, 350.0),
    }
    start = clock.now
    for text, (importance, when) in turns.items():
        clock.now = start + when
        redis.do(memory.save("x", text, importance=importance))
    clock.now = start + 400
    given = {"nearness": 1.0, "recency": 1.0, "importance": 1.0, **(weights or {})}
    scores = {
        text: similar(float(text[1:])) ** given["nearness"]
        * (0.5 ** ((400 - when) / 100)) ** given["recency"]
        * importance ** given["importance"]
        for text, (importance, when) in turns.items()
    }
    found = redis.do(memory.load(at(0)))
    assert len(found) == 4
    for one in found:
        text = one.metadata["outputs"]["output"]
        assert one.score == pytest.approx(scores[text], abs=1e-5)
        assert one.distance == pytest.approx(1 - math.cos(float(text[1:])), abs=1e-5)
        assert one.metadata["importance"] == turns[text][0]
        assert one.metadata["created"] == pytest.approx(start + turns[text][1], abs=0.01)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    if len(set(scores.values())) == 4:
        assert said(found) == sorted(scores, key=lambda text: -scores[text])


def test_without_a_half_life_age_does_not_count(redis: Redis, clock: Clock) -> None:
    memory = make(redis)
    save(redis, memory, 0.5)
    clock.now += 10**9
    assert redis.do(memory.load(at(0)))[0].score == pytest.approx(similar(0.5), abs=1e-5)


def test_what_is_important_and_new_wins_over_what_is_near(redis: Redis, clock: Clock) -> None:
    memory = make(redis, k=1, half_life=3600)
    save(redis, memory, 0.0, "old")
    clock.now += 4 * 3600
    save(redis, memory, 0.1, "trifle", importance=0.01)
    save(redis, memory, 0.8, "vital", importance=1)
    assert said(redis.do(memory.load(at(0)))) == [at(0.8, "vital")]
    near = make(redis, k=1, half_life=3600, weights={"recency": 0, "importance": 0})
    assert said(redis.do(near.load(at(0)))) == [at(0.0, "old")]


def test_a_turn_of_the_future_counts_as_new(redis: Redis, clock: Clock) -> None:
    memory = make(redis, half_life=1)
    save(redis, memory, 0.0)
    clock.now -= 1000  # another machine's clock
    assert redis.do(memory.load(at(0)))[0].score == pytest.approx(1, abs=1e-5)


def test_a_very_old_turn_has_a_score_of_nothing(redis: Redis, clock: Clock) -> None:
    memory = make(redis, half_life=1e-300)
    save(redis, memory, 0.0)
    clock.now += 10**9
    assert redis.do(memory.load(at(0)))[0].score == 0


def test_the_nearest_20_or_4_k_are_scored(redis: Redis) -> None:
    memory = make(redis, weights={"nearness": 0})
    for i in range(30):
        save(redis, memory, i / 10, importance=(i + 1) / 30)
    assert said(redis.do(memory.load(at(0), 1))) == [at(1.9)]
    assert said(redis.do(memory.load(at(0), 6)))[0] == at(2.3)
    assert said(redis.do(memory.load(at(0), 8)))[0] == at(2.9)


def test_max_distance_is_a_limit_whatever_the_score(redis: Redis) -> None:
    memory = make(redis)
    save(redis, memory, 0.0, importance=0.1)
    save(redis, memory, 1.0)
    save(redis, memory, 2.0)
    limit = 1 - math.cos(1.5)
    assert said(redis.do(memory.load(at(0), max_distance=limit))) == [at(1.0), at(0.0)]
    assert said(redis.do(memory.load(at(0), max_distance=0))) == [at(0.0)]
    assert said(redis.do(memory.load(at(0), 1, max_distance=limit))) == [at(1.0)]


# -- what a turn has -----------------------------------------------------------------------------

OWN: dict[str, Any] = {"tags": ["a", None, {"é": 1.5}], "user": "Ann", "n": 0, "no": None, "": "!"}


def test_metadata_are_found_again_as_they_were(redis: Redis) -> None:
    memory = make(redis)
    save(redis, memory, 0.0, metadata=OWN, importance=0.125)
    [found] = redis.do(memory.load(at(0)))
    own = ("inputs", "outputs", "created", "importance")
    assert {name: found.metadata[name] for name in found.metadata if name not in own} == OWN
    assert found.metadata["importance"] == 0.125
    assert found.text == "input: x\noutput: @0.0"


RESERVED = ["scope", "text", "turn", "created", "importance", "inputs", "outputs", "metadata"]


@pytest.mark.parametrize("name", RESERVED)
def test_metadata_cannot_take_a_turns_own_names(name: str) -> None:
    with Client(NOBODY) as client, pytest.raises(ValueError, match=f"metadata: '{name}'"):
        VectorMemory(client, Circle(), scope="u1").save("x", at(0), metadata={"a": 1, name: "x"})


@pytest.mark.parametrize("name", ["vector"])
def test_a_name_of_metadata_is_as_good_the_second_time(redis: Redis, name: str) -> None:
    memory = make(redis)
    for word in ("first", "second"):
        save(redis, memory, 0.0, word, metadata={name: word})
    assert {one.metadata[name] for one in redis.do(memory.load(at(0)))} == {"first", "second"}


def test_the_same_words_replace_importance_metadata_and_time(redis: Redis, clock: Clock) -> None:
    memory = make(redis)
    first = save(redis, memory, 0.0, importance=0.5, metadata={"a": 1})
    clock.now += 60
    assert save(redis, memory, 0.0, importance=0.75, metadata={"b": 2}) == first
    [found] = redis.do(memory.load(at(0)))
    assert (found.metadata["importance"], found.metadata["b"]) == (0.75, 2)
    assert "a" not in found.metadata
    assert found.metadata["created"] == clock.now
    save(redis, memory, 0.0)
    [found] = redis.do(memory.load(at(0)))
    assert found.metadata["importance"] == 1
    assert set(found.metadata) == {"inputs", "outputs", "created", "importance"}
    assert save(redis, make(redis, "u2"), 0.0) != first


# -- what stays ----------------------------------------------------------------------------------


def test_beyond_the_capacity_the_oldest_go_of_this_scope(redis: Redis, clock: Clock) -> None:
    memory, other = make(redis, capacity=3, k=9), make(redis, "u2", k=9)
    for i in range(6):
        save(redis, other, i)
    for i in range(6):
        clock.now += 1
        save(redis, memory, i, importance=1 if i < 3 else 0.1)
        assert len(redis.do(memory.load(at(0)))) == min(i + 1, 3)
    assert sorted(said(redis.do(memory.load(at(0))))) == [at(3), at(4), at(5)]
    assert len(redis.do(other.load(at(0)))) == 6
    clock.now += 1
    save(redis, memory, 3)  # said again, it is the newest
    clock.now += 1
    save(redis, memory, 7)
    assert sorted(said(redis.do(memory.load(at(0))))) == [at(3), at(5), at(7)]
    smaller = make(redis, capacity=1, k=9)
    clock.now += 1
    save(redis, smaller, 8)
    assert said(redis.do(smaller.load(at(0)))) == [at(8)]
    assert len(keys(redis)) == 7


def words(request: Any) -> Iterator[str]:
    """Yield the words in all commands of a request."""
    if isinstance(request, Batch):
        for member in request.members:
            yield from words(member)
    elif isinstance(request, (Command, tuple)):
        args = request if isinstance(request, tuple) else request.args
        yield from (one for one in args if isinstance(one, str))


def test_two_who_save_at_once_keep_as_many_as_there_is_room_for(
    client: Client, clock: Clock
) -> None:
    one, other = (VectorMemory(client, Circle(), scope="u1", capacity=2, k=9) for _ in range(2))
    for angle in (0, 1):
        clock.now += 1
        one.save("x", at(angle))
    left = [at(3)]

    def see(request: Any) -> None:
        if "SORTBY" in words(request) and left:  # now it asks which are the oldest
            clock.now += 1
            other.save("x", left.pop())

    clock.now += 1
    client.run(watched(one.plan.save("x", at(2)), see))
    assert left == []
    assert sorted(said(one.load(at(0)))) == [at(2), at(3)]


def test_turns_end_with_their_ttl(redis: Redis) -> None:
    memory = make(redis, ttl=1000)
    save(redis, memory, 0.0)
    [key] = keys(redis)
    assert 900 < redis.do(redis.client.call("TTL", key)) <= 1000
    redis.do(redis.client.call("EXPIRE", key, 10))
    save(redis, memory, 0.0)
    assert redis.do(redis.client.call("TTL", key)) > 900  # it was said anew
    redis.do(redis.client.call("PEXPIRE", key, 0))
    assert redis.do(memory.load(at(0))) == []
    save(redis, make(redis), 0.0)
    assert redis.do(redis.client.call("TTL", key)) == -1


# -- what is forgotten ---------------------------------------------------------------------------

SCOPES = ["u1", "U1", "u1 ", " u1", "u1,u2", "u2", "*", "u?", '"} | @scope:{*', "u1\0x", "é", "u:1"]


@pytest.mark.parametrize("which", [0, 3, 6, 8, 9])
def test_forget_and_clear_keep_to_one_scope(redis: Redis, which: int) -> None:
    memories = [make(redis, scope) for scope in SCOPES]
    for memory in memories:
        for i in range(4):
            save(redis, memory, i, importance=(i + 1) / 4)
    one = memories[which]
    anything = (Numeric("importance") > 0) | (Tag("scope") != "x")
    assert redis.do(one.forget(Numeric("importance") <= 0.5)) == 2
    assert sorted(said(redis.do(one.load(at(0))))) == [at(2), at(3)]
    assert redis.do(one.forget(anything)) == 2
    assert redis.do(one.forget(anything)) == 0
    assert [len(redis.do(m.load(at(0)))) for m in memories if m is not one] == [4] * 11
    neighbour = SCOPES[(which + 1) % 12]
    assert redis.do(one.clear(neighbour)) == 4
    assert redis.do(one.clear(neighbour)) == 0
    assert len(keys(redis)) == 40


def test_forget_takes_what_is_older_than_a_time(redis: Redis, clock: Clock) -> None:
    memory = make(redis)
    for i in range(5):
        save(redis, memory, i)
        clock.now += 3600
    assert redis.do(memory.forget(Numeric("created") < clock.now - 3 * 3600 + 60)) == 3
    assert sorted(said(redis.do(memory.load(at(0))))) == [at(3), at(4)]


def test_what_was_never_saved_is_forgotten_at_once(redis: Redis) -> None:
    memory = make(redis)
    assert redis.do(memory.forget(Numeric("created") > 0)) == 0
    assert redis.do(memory.clear("u2")) == 0
    assert redis.do(memory.load(at(0), filter=Numeric("created") > 0)) == []


def test_another_embedders_turns_of_the_scope_are_not_forgotten(redis: Redis) -> None:
    memory, other = make(redis), make(redis, embedder=Circle(name="another"))
    save(redis, memory, 0.0)
    assert redis.do(other.load(at(0))) == []
    assert redis.do(other.forget(Numeric("created") > 0)) == 0
    assert (
        redis.do(other.clear())
        == redis.do(make(redis, "x", embedder=Circle(name="b")).clear("u1"))
        == 0
    )
    assert redis.do(memory.clear("u1")) == 1


# -- an index of the user's ----------------------------------------------------------------------


def own(redis: Redis, *fields: Any, **options: Any) -> VectorIndex[Any]:
    """Return an index of the user's, of the circle's vectors and these fields."""
    return VectorIndex(redis.client, "mine", [SCOPE, *fields, Vector("v", 4)], **options)


@pytest.mark.parametrize("on", ["hash", "json"])
@pytest.mark.parametrize("fields", [[], [Numeric("created"), Numeric("importance")]], ids=len)
def test_scores_are_the_same_whether_the_index_has_the_fields(
    redis: Redis, clock: Clock, fields: list[Any], on: str
) -> None:
    memory = VectorMemory(own(redis, *fields, on=on), Circle(), scope="u1", half_life=100)
    save(redis, memory, 0.5, importance=0.5, metadata=OWN)
    clock.now += 100
    [found] = redis.do(memory.load(at(0)))
    assert found.score == pytest.approx(similar(0.5) / 4, abs=1e-5)
    assert found.metadata["created"] == clock.now - 100
    assert {name: found.metadata[name] for name in OWN} == OWN


@pytest.mark.parametrize("on", ["hash", "json"])
def test_the_capacity_holds_in_an_index_of_the_users(redis: Redis, clock: Clock, on: str) -> None:
    index = own(redis, Numeric("created"), on=on)
    memory = VectorMemory(index, Circle(), scope="u1", capacity=2)
    for i in range(4):
        clock.now += 1
        save(redis, memory, i)
    assert sorted(said(redis.do(memory.load(at(0))))) == [at(2), at(3)]


def test_a_capacity_needs_to_know_which_is_the_oldest() -> None:
    for fields in ([], [Tag("created")], [Numeric("Created")]):
        with Client(NOBODY) as client:
            index = VectorIndex(client, "mine", [SCOPE, *fields, Vector("v", 4)])
            with pytest.raises(ValueError, match=r'capacity.*Numeric\("created"\)'):
                VectorMemory(index, Circle(), scope="u1", capacity=2)


def test_metadata_that_the_index_has_fields_for_can_be_filtered_by(redis: Redis) -> None:
    index = own(redis, Tag("topic"), Numeric("stars"), Text("note"), Tag("labels"))
    memory = VectorMemory(index, Circle(), scope="u1")
    other = VectorMemory(index, Circle(), scope="u2")
    for owner in (memory, other):
        for i, topic in enumerate(["a", "b", "c"]):
            own_ = {"topic": topic, "stars": i, "note": f"number {i}", "labels": ["x", topic]}
            save(redis, owner, i, metadata={**own_, "else": topic})

    def found(condition: Filter) -> list[Any]:
        return said(redis.do(memory.load(at(0), filter=condition)))

    assert found(Tag("topic") == "b") == [at(1)]
    assert found(Numeric("stars") >= 1) == [at(1), at(2)]
    assert found((Tag("topic") == "c") | (Numeric("stars") == 0)) == [at(0), at(2)]
    assert found(~(Tag("labels") == "a") & Text("note").matches("2")) == [at(2)]
    [one] = redis.do(memory.load(at(0), filter=Tag("labels") == "c"))
    assert one.metadata["labels"] == ["x", "c"]
    assert redis.do(memory.forget(Tag("topic") != "c")) == 2
    assert said(redis.do(memory.load(at(0)))) == [at(2)]
    assert len(redis.do(other.load(at(0)))) == 3


def test_metadata_that_the_index_cannot_hold_are_refused_before_any_io() -> None:
    with Client(NOBODY) as client:
        index = VectorIndex(client, "mine", [SCOPE, Numeric("stars"), Vector("v", 4)])
        memory = VectorMemory(index, Circle(), scope="u1")
        for metadata in ({"stars": "many"}, {"stars": [1]}):
            with pytest.raises((TypeError, ValueError), match="|".join(metadata)):
                memory.save("x", at(0), metadata=metadata)


def test_an_index_whose_ids_are_whole_keys_is_refused() -> None:
    with Client(NOBODY) as client:
        index = VectorIndex(client, "mine", [SCOPE, Vector("v", 4)], prefix=["a:", "b:"])
        with pytest.raises(ValueError, match="prefix"):
            VectorMemory(index, Circle(), scope="u1")


# -- what it costs -------------------------------------------------------------------------------


def test_a_load_costs_one_round_trip_however_it_is_scored(redis: Redis) -> None:
    memory = make(redis, half_life=10, weights={"nearness": 2})
    save(redis, memory, 0.0)
    while not redis.do(redis.client.run(info("memory"))).whole:
        sleep(0.01)
    redis.do(memory.load(at(0)))
    condition = Numeric("importance") > 0.5
    found = cost(redis, lambda: memory.load(at(0), 9, filter=condition, max_distance=1))
    assert (found.round_trips, found.commands) == (1, {"FT.SEARCH": 1})
    assert said(found.result) == [at(0.0)]


def test_what_is_planned_runs_in_gather(redis: Redis) -> None:
    embedder = Circle()
    one, other = (make(redis, scope, embedder=embedder, capacity=2) for scope in ("u1", "u2"))
    saves = [memory.plan.save("x", at(i)) for memory in (one, other) for i in range(4)]
    assert keys(redis) == set()
    assert len(set(redis.do(redis.client.gather(saves)))) == 8
    assert len(embedder.calls) == 1
    loads = [
        one.plan.load(at(0)),
        other.plan.load(at(3), 1),
        one.plan.forget(Numeric("created") < 0),
    ]
    first, second, gone = redis.do(redis.client.gather(loads))
    assert (len(first), len(second), gone) == (2, 1, 0)
    assert redis.do(redis.client.gather([one.plan.clear(), one.plan.clear("u2")])) == [2, 2]


# -- the caller's mistakes -----------------------------------------------------------------------

BAD_CALLS: list[tuple[type[Exception], str, Callable[[Any], object]]] = [
    (ValueError, "importance", lambda m: m.save("x", at(0), importance=0)),
    (ValueError, "importance", lambda m: m.save("x", at(0), importance=1.01)),
    (ValueError, "importance", lambda m: m.save("x", at(0), importance=-0.5)),
    (ValueError, "importance", lambda m: m.save("x", at(0), importance=math.nan)),
    (ValueError, "importance", lambda m: m.save("x", at(0), importance=math.inf)),
    (TypeError, "importance", lambda m: m.save("x", at(0), importance="1")),
    (TypeError, "importance", lambda m: m.save("x", at(0), importance=True)),
    (TypeError, "importance", lambda m: m.save("x", at(0), importance=None)),
    (TypeError, "metadata", lambda m: m.save("x", at(0), metadata={"a": {1}})),
    (ValueError, "metadata", lambda m: m.save("x", at(0), metadata={"a": math.nan})),
    (ValueError, "k", lambda m: m.load(at(0), 0)),
    (TypeError, "k", lambda m: m.load(at(0), "4")),
    (TypeError, "max_distance", lambda m: m.load(at(0), max_distance="1")),
    (ValueError, "max_distance", lambda m: m.load(at(0), max_distance=-1)),
    (TypeError, "Filter", lambda m: m.load(at(0), filter="@scope:{x}")),
    (ValueError, "nobody", lambda m: m.load(at(0), filter=Tag("nobody") == "x")),
    (TypeError, "filter", lambda m: m.forget(None)),
    (TypeError, "filter", lambda m: m.forget("*")),
    (ValueError, "nobody", lambda m: m.forget(Tag("nobody") == "x")),
    (ValueError, "scope", lambda m: m.clear("")),
    (TypeError, "scope", lambda m: m.clear(5)),
]


@pytest.mark.parametrize(("error", "argument", "use"), BAD_CALLS)
def test_a_bad_argument_is_refused_before_any_io(
    error: type[Exception], argument: str, use: Callable[[Any], object]
) -> None:
    with Client(NOBODY) as client, pytest.raises(error, match=argument) as caught:
        use(VectorMemory(client, Circle(), scope="u1"))
    assert type(caught.value) is error


@pytest.mark.parametrize("metadata", [[1], "ab", 5, [], [("a", 1)]], ids=str)
def test_metadata_that_are_no_dict_are_refused_by_name(metadata: Any) -> None:
    with Client(NOBODY) as client, pytest.raises(TypeError, match="metadata"):
        VectorMemory(client, Circle(), scope="u1").save("x", at(0), metadata=metadata)


def test_k_may_be_what_a_server_gives(client: Client) -> None:
    memory = VectorMemory(client, Circle(), scope="u1")
    memory.save("x", at(0))
    assert len(memory.load(at(0), 300_000)) == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"half_life": 0}, ValueError),
        ({"half_life": -1}, ValueError),
        ({"half_life": math.nan}, ValueError),
        ({"half_life": "1"}, TypeError),
        ({"weights": {"nearness": -1}}, ValueError),
        ({"weights": {"recency": math.nan}}, ValueError),
        ({"weights": {"importance": "1"}}, TypeError),
        ({"weights": {"importance": True}}, TypeError),
        ({"weights": {"importance": None}}, TypeError),
        ({"weights": {"nearnes": 1}}, ValueError),
        ({"capacity": 0}, ValueError),
        ({"capacity": 1.5}, TypeError),
        ({"capacity": True}, ValueError),
        ({"ttl": 0}, ValueError),
        ({"ttl": "1"}, TypeError),
    ],
    ids=str,
)
def test_a_bad_option_is_named(options: dict[str, Any], error: type[Exception]) -> None:
    with Client(NOBODY) as client, pytest.raises(error, match=next(iter(options))):
        VectorMemory(client, Circle(), scope="u1", **options)


def test_a_weight_is_finite() -> None:
    with Client(NOBODY) as client, pytest.raises(ValueError, match="weights"):
        VectorMemory(client, Circle(), scope="u1", weights={"nearness": math.inf})


@pytest.mark.parametrize(
    "query", ["@created:[0 1]) | (@created:[0 inf]", '@scope:{"x"}) | (*', "a) (b", "(a", "a)"]
)
def test_no_raw_filter_reaches_beyond_the_scope(redis: Redis, query: str) -> None:
    with pytest.raises(ValueError, match="brackets"):
        redis.do(make(redis).forget(Raw(query)))
