"""The semantic router: a text goes where its nearest example is, if that is near enough.

Examples lie on the circle of `test_semantic_cache`: the distance of two is 1 - cos of their angle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import sleep
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import pytest

from counting import cost
from rawredis_llm import Client, EmbeddedServer, HashingEmbedder, Route, SemanticRouter, errors
from rawredis_llm.search.query import info
from test_semantic_cache import NOBODY, Circle, Documents, at, vector

if TYPE_CHECKING:
    from conftest import Redis


def make(redis: Redis, **options: Any) -> SemanticRouter[Any]:
    """Return a router of the fixture's client."""
    return SemanticRouter(redis.client, options.pop("embedder", None) or Circle(), **options)


def apart(angle: float) -> float:
    """Return the distance of what is this angle apart."""
    return 1 - math.cos(angle)


def way(redis: Redis, router: SemanticRouter[Any], angle: float) -> str | None:
    """Return where a text at an angle goes."""
    name: str | None = redis.do(router.route(at(angle, "text"))).name
    return name


def known(redis: Redis, router: SemanticRouter[Any]) -> dict[str, list[str]]:
    """Return the routes that there are, and their examples."""
    return {route.name: route.examples for route in redis.do(router.routes())}


def settle(redis: Redis, router: SemanticRouter[Any], name: str = "router") -> None:
    """Wait until the index is whole, and let the router see it."""
    while not redis.do(redis.client.run(info(name))).whole:
        sleep(0.01)
    redis.do(router.route(at(0)))


# -- near and far --------------------------------------------------------------------------------


def test_a_text_goes_where_its_nearest_example_is(redis: Redis) -> None:
    router = make(redis, max_distance=0.3)
    assert redis.do(router.add("north", [at(1.5), at(1.7)])) == 2
    assert redis.do(router.add("east", [at(0), at(0.2)])) == 2
    found = redis.do(router.route(at(0.6)))
    assert (found.name, found.example) == ("east", at(0.2))
    assert found.distance == pytest.approx(apart(0.4), abs=1e-5)
    assert [(one.name, one.example) for one in found.considered] == [
        ("east", at(0.2)),
        ("north", at(1.5)),
    ]
    distances = [one.distance for one in found.considered]
    assert distances == pytest.approx([apart(0.4), apart(0.9)], abs=1e-5)
    assert [one.max_distance for one in found.considered] == [0.3, 0.3]
    assert way(redis, router, 1.4) == "north"


def test_where_none_is_near_enough_it_is_said_how_far_they_were(redis: Redis) -> None:
    router = make(redis)
    limits = {"a": 0.01, "b": None, "c": 0.001}
    for number, (name, limit) in enumerate(limits.items()):
        redis.do(router.add(name, [at(number)], max_distance=limit))
    found = redis.do(router.route(at(3)))
    assert (found.name, found.distance, found.example) == (None, None, "")
    assert [one.name for one in found.considered] == ["c", "b", "a"]
    assert [one.max_distance for one in found.considered] == [0.001, 0.3, 0.01]
    distances = [one.distance for one in found.considered]
    assert distances == pytest.approx([apart(1), apart(2), apart(3)], abs=1e-5)
    assert [one.example for one in found.considered] == [at(2), at(1), at(0)]


def test_without_routes_a_text_goes_nowhere(redis: Redis) -> None:
    router = make(redis)
    for _ in range(2):
        found = redis.do(router.route(at(0)))
        assert (found.name, found.considered) == (None, [])
        assert redis.do(router.routes()) == []
        assert redis.do(router.remove("nobody")) == 0
        assert redis.do(router.remove("nobody", [at(0)])) == 0
        assert redis.do(router.clear()) == 0
        redis.do(make(redis, embedder=Circle(name="another")).add("theirs", [at(0)]))


def test_the_next_route_takes_what_the_nearest_refuses(redis: Redis) -> None:
    router = make(redis)
    redis.do(router.add("strict", [at(0.1)], max_distance=0.001))
    redis.do(router.add("lax", [at(1)], max_distance=0.9))
    redis.do(router.add("laxer", [at(1.1)], max_distance=1.5))
    found = redis.do(router.route(at(0)))
    assert (found.name, found.example) == ("lax", at(1))
    assert found.distance == pytest.approx(apart(1), abs=1e-5)
    assert [one.name for one in found.considered] == ["strict", "lax", "laxer"]
    assert way(redis, router, 0.1) == "strict"


@pytest.mark.parametrize("limit", [0, 0.0])
def test_a_threshold_of_0_is_one(redis: Redis, limit: float) -> None:
    router = make(redis, max_distance=2)
    redis.do(router.add("exact", [at(0)], max_distance=limit))
    assert way(redis, router, 0) == "exact"
    assert way(redis, router, 0.1) is None
    assert redis.do(router.routes())[0].max_distance == 0
    nowhere = make(redis, namespace="exact", max_distance=limit)
    redis.do(nowhere.add("all", [at(0)]))
    assert way(redis, nowhere, 0) == "all"
    assert way(redis, nowhere, 0.1) is None


def test_a_threshold_is_a_routes_until_it_is_given_another(redis: Redis) -> None:
    router, later = make(redis, max_distance=0.1), make(redis, max_distance=2)
    redis.do(router.add("own", [at(0)], max_distance=0.01))
    redis.do(router.add("none", [at(3)]))
    redis.do(router.add("own", [at(0.01)]))
    redis.do(later.add("own", [at(0.02)]))

    def limits(one: SemanticRouter[Any]) -> dict[str, float]:
        return {route.name: route.max_distance for route in redis.do(one.routes())}

    assert limits(router) == {"own": 0.01, "none": 0.1}
    assert limits(later) == {"own": 0.01, "none": 2}  # what has none follows its router
    assert way(redis, router, 0.5) is None
    redis.do(router.add("own", [at(0)], max_distance=0.2))
    assert limits(later)["own"] == 0.2
    assert way(redis, router, 0.5) == "own"
    redis.do(later.add("none", [at(3)], max_distance=1))
    assert limits(router) == {"own": 0.2, "none": 1}
    redis.do(router.remove("own"))
    redis.do(router.add("own", [at(0)]))
    assert limits(router)["own"] == 0.1


def test_a_route_is_considered_once_by_its_nearest_example(redis: Redis) -> None:
    router = make(redis)
    redis.do(router.add("many", [at(i / 100) for i in range(30)]))
    redis.do(router.add("one", [at(1)]))
    found = redis.do(router.route(at(0.001)))
    assert [one.name for one in found.considered] == ["many", "one"]
    assert found.example == at(0.0)


# -- examples and routes come and go -------------------------------------------------------------


def test_examples_are_added_and_removed(redis: Redis) -> None:
    router = make(redis)
    assert redis.do(router.add("a", [at(0), at(1), at(0)])) == 2
    assert redis.do(router.add("a", [at(1), at(2)])) == 2
    assert redis.do(router.routes()) == [Route("a", 0.3, examples=[at(0), at(1), at(2)])]
    assert way(redis, router, 2) == "a"
    assert redis.do(router.remove("a", [at(2), at(9)])) == 1
    assert way(redis, router, 2.3) is None
    assert redis.do(router.remove("a", [])) == 0
    assert known(redis, router) == {"a": [at(0), at(1)]}
    assert redis.do(router.remove("a")) == 2
    assert known(redis, router) == {}
    assert way(redis, router, 0) is None


def test_an_example_of_two_routes_is_each_ones_own(redis: Redis) -> None:
    router = make(redis)
    for name in ("a", "b"):
        redis.do(router.add(name, [at(0)]))
    assert known(redis, router) == {"a": [at(0)], "b": [at(0)]}
    found = redis.do(router.route(at(0)))
    assert {one.name for one in found.considered} == {"a", "b"}
    redis.do(router.remove("a", [at(0)]))
    assert way(redis, router, 0) == "b"
    redis.do(router.add("a", [at(0)]))
    redis.do(router.remove("b"))
    assert way(redis, router, 0) == "a"


NAMES = [
    "a",
    "A",
    " a",
    "a ",
    "a:b",
    "a%3Ab",
    "%",
    "a b",
    "a,b",
    "a|b",
    "*",
    "é日本🦜",
    "a\0b",
    "a\0c",
]
NAMES += ['"} | @route:{*', "a\nb", "\\", "name", "x" * 5000]


def test_routes_may_have_any_name(redis: Redis) -> None:
    router = make(redis, max_distance=0.0001)
    for number, name in enumerate(NAMES):
        redis.do(router.add(name, [at(number / 5)]))
    for number, name in enumerate(NAMES):
        assert way(redis, router, number / 5) == name
    assert known(redis, router) == {name: [at(i / 5)] for i, name in enumerate(NAMES)}
    assert list(known(redis, router)) == sorted(NAMES)
    for number, name in enumerate(NAMES):
        assert redis.do(router.remove(name)) == 1
        assert set(known(redis, router)) == set(NAMES[number + 1 :])


def test_examples_may_be_any_text(redis: Redis) -> None:
    router = make(redis)
    texts = [
        at(0, word) for word in ("é日本🦜", "a\0b", "a\0c", "*", "a,b", '"} {', " ", "x" * 9000)
    ]
    assert redis.do(router.add("a", texts)) == len(texts)
    assert known(redis, router) == {"a": sorted(texts)}
    assert redis.do(router.remove("a", texts[1:])) == len(texts) - 1
    assert redis.do(router.route(at(0.1))).example == texts[0]


def test_clear_takes_all_routes_of_this_router_only(redis: Redis) -> None:
    routers = [make(redis), make(redis, namespace="b"), make(redis, namespace="router:v")]
    routers += [make(redis, embedder=Circle(name="another")), make(redis, namespace="rout*")]
    for number, router in enumerate(routers):
        redis.do(router.add("same", [at(0, f"{number}")], max_distance=number / 10))
    for number, router in enumerate(routers):
        [route] = redis.do(router.routes())
        assert (route.max_distance, route.examples) == (number / 10, [at(0, f"{number}")])
        found = redis.do(router.route(at(0)))
        assert (found.name, found.example) == ("same", at(0, f"{number}"))
    for number, router in enumerate(routers):
        assert redis.do(router.clear()) == 1
        assert [bool(redis.do(one.routes())) for one in routers] == [
            other > number for other in range(len(routers))
        ]
    assert redis.do(redis.client.call("DBSIZE")) == 0


def test_another_process_sees_the_routes(redis: Redis) -> None:
    redis.do(make(redis).add("a", [at(0)], max_distance=0.5))
    other = SemanticRouter(redis.connect(), Circle())
    assert redis.do(other.route(at(0.5))).name == "a"
    assert redis.do(other.routes()) == [Route("a", 0.5, examples=[at(0)])]
    redis.do(other.add("b", [at(2)]))
    assert way(redis, make(redis), 2) == "b"
    assert redis.do(make(redis).remove("a")) == 1
    assert redis.do(other.route(at(0))).name is None


# -- vectors and embedders -----------------------------------------------------------------------


def test_a_given_vector_spares_the_embedder(redis: Redis) -> None:
    embedder = Circle()
    router = make(redis, embedder=embedder)
    redis.do(router.add("a", [at(0)]))
    embedder.calls.clear()
    assert redis.do(router.route("no angle", vector=vector(0.1))).name == "a"
    assert redis.do(router.route("no angle", vector=list(vector(2)))).name is None
    assert embedder.calls == []


def test_a_text_is_embedded_as_a_question_and_an_example_as_a_document(redis: Redis) -> None:
    router = make(redis, embedder=Documents())
    redis.do(router.add("a", [at(0)]))
    assert redis.do(router.route(at(-math.pi))).name == "a"


def test_a_wrong_vector_teaches_nothing(redis: Redis) -> None:
    router = make(redis)
    assert redis.do(router.route(at(0), vector=[1.0, 2.0])).name is None  # no index yet
    redis.do(router.add("a", [at(0)]))
    assert way(redis, router, 0) == "a"


def test_vectors_of_another_size_are_refused_loudly(redis: Redis) -> None:
    redis.do(make(redis).add("a", [at(0)]))
    before = set(redis.do(redis.client.call("KEYS", "*")))
    with pytest.raises(errors.IndexMismatchError, match="dim is 4, not 8"):
        redis.do(make(redis, embedder=Circle(8)).add("a", [at(0)]))
    with pytest.raises(errors.ReplyError, match="size"):
        redis.do(make(redis, embedder=Circle(8)).route(at(0)))
    assert set(redis.do(redis.client.call("KEYS", "*"))) == before


def test_an_async_embedder_needs_an_async_client(redis: Redis) -> None:
    async def circle(texts: list[str]) -> list[npt.NDArray[Any]]:
        return Circle()(texts)

    router = make(redis, embedder=circle)
    if redis.kind == "sync":
        with pytest.raises(TypeError, match="AsyncClient"):
            redis.do(router.add("a", [at(0)]))
        assert redis.do(redis.client.call("DBSIZE")) == 0
        return
    redis.do(router.add("a", [at(0)]))
    assert way(redis, router, 0.1) == "a"


def test_an_embedders_error_adds_no_route(redis: Redis) -> None:
    def broken(texts: list[str]) -> None:
        raise RuntimeError(f"no model for {len(texts)}")

    router = make(redis, embedder=broken)
    with pytest.raises(RuntimeError, match="no model"):
        redis.do(router.add("a", [at(0)]))
    assert redis.do(redis.client.call("DBSIZE")) == 0


# -- the index, the server -----------------------------------------------------------------------


def test_a_flush_under_the_client_heals_with_the_next_write(redis: Redis) -> None:
    router = make(redis)
    redis.do(router.add("a", [at(0)], max_distance=0.5))
    redis.do(redis.client.call("FLUSHALL"))
    assert way(redis, router, 0) is None
    assert redis.do(router.routes()) == []
    redis.do(router.add("a", [at(0)]))
    assert redis.do(router.routes())[0].max_distance == 0.3
    redis.do(redis.client.call("FLUSHALL"))
    redis.do(router.add("b", [at(0)]))  # nobody looked in between
    assert way(redis, router, 0) == "b"


def test_a_dropped_index_heals_with_the_next_write(redis: Redis) -> None:
    router = make(redis)
    redis.do(router.add("a", [at(0)]))
    redis.do(redis.client.call("FT.DROPINDEX", "router"))
    assert redis.do(router.route(at(0))).considered == []
    assert known(redis, router) == {"a": []}
    redis.do(router.add("b", [at(2)]))
    settle(redis, router)
    assert (way(redis, router, 0), way(redis, router, 2)) == ("a", "b")


@pytest.mark.parametrize("how", ["clear", "remove"])
def test_what_was_removed_without_an_index_does_not_come_back(redis: Redis, how: str) -> None:
    router = make(redis)
    redis.do(router.add("a", [at(0)]))
    redis.do(redis.client.call("FT.DROPINDEX", "router"))
    redis.do(router.clear() if how == "clear" else router.remove("a"))
    redis.do(router.add("a", [at(2)]))
    settle(redis, router)
    assert way(redis, router, 0) is None
    assert known(redis, router) == {"a": [at(2)]}


def test_a_server_without_search_is_said_to_have_none(
    redis: Redis, plain_server: EmbeddedServer
) -> None:
    client = redis.connect(url=plain_server.url)
    redis.do(client.call("FLUSHALL"))
    router = SemanticRouter(client, Circle())
    calls: list[Callable[[], Any]] = [lambda: router.add("a", [at(0)]), lambda: router.route(at(0))]
    for call in calls:
        with pytest.raises(errors.SearchUnavailableError):
            redis.do(call())
    assert redis.do(client.call("DBSIZE")) == 0


# -- what it costs -------------------------------------------------------------------------------


def test_routing_costs_one_round_trip(redis: Redis) -> None:
    router = make(redis)
    for number in range(5):
        redis.do(router.add(f"{number}", [at(number), at(number + 0.1)], max_distance=0.01))
    settle(redis, router)
    for angle in (0, 1.1, 5):
        found = cost(redis, lambda angle=angle: router.route(at(angle)))  # type: ignore[misc]  # a default
        assert (found.round_trips, found.connections) == (1, 0)
        assert found.commands == {"FT.SEARCH": 1, "HGETALL": 1}
    given = cost(redis, lambda: router.route("x", vector=vector(1)))
    assert (given.round_trips, given.result.name) == (1, "1")


def test_routers_walk_together_in_gather(redis: Redis) -> None:
    embedder = Circle()
    one, other = (make(redis, embedder=embedder, namespace=name) for name in ("a", "b"))
    adds = [router.plan.add("r", [at(i)]) for i, router in enumerate((one, other))]
    assert redis.do(redis.client.call("DBSIZE")) == 0
    assert redis.do(redis.client.gather(adds)) == [1, 1]
    assert len(embedder.calls) == 1
    settle(redis, one, "a")
    settle(redis, other, "b")
    embedder.calls.clear()
    ops = [one.plan.route(at(0)), other.plan.route(at(0)), other.plan.route(at(1))]
    found = cost(redis, lambda: redis.client.gather(ops))
    assert found.round_trips == 1
    assert [routing.name for routing in found.result] == ["r", None, "r"]
    assert len(embedder.calls) == 1
    planned = [one.plan.routes(), one.plan.remove("r", [at(0)]), other.plan.remove("r")]
    assert redis.do(redis.client.gather(planned))[1:] == [1, 1]
    assert redis.do(redis.client.gather([one.plan.clear(), other.plan.clear()])) == [0, 0]


# -- the caller's mistakes -----------------------------------------------------------------------

BAD_CALLS: list[tuple[type[Exception], str, Callable[[Any], object]]] = [
    (ValueError, "name", lambda r: r.add("", [at(0)])),
    (TypeError, "name", lambda r: r.add(None, [at(0)])),
    (ValueError, "name", lambda r: r.add("\ud800", [at(0)])),
    (TypeError, "examples", lambda r: r.add("a", at(0))),
    (ValueError, "examples", lambda r: r.add("a", [])),
    (ValueError, "examples", lambda r: r.add("a", [at(0), " "])),
    (TypeError, "examples", lambda r: r.add("a", [at(0), 5])),
    (ValueError, "max_distance", lambda r: r.add("a", [at(0)], max_distance=-0.1)),
    (ValueError, "max_distance", lambda r: r.add("a", [at(0)], max_distance=math.nan)),
    (TypeError, "max_distance", lambda r: r.add("a", [at(0)], max_distance="1")),
    (TypeError, "max_distance", lambda r: r.add("a", [at(0)], max_distance=True)),
    (ValueError, "name", lambda r: r.remove(" ")),
    (TypeError, "name", lambda r: r.remove(5)),
    (TypeError, "examples", lambda r: r.remove("a", at(0))),
    (ValueError, "text", lambda r: r.route("")),
    (TypeError, "text", lambda r: r.route(None)),
    (ValueError, "vector", lambda r: r.route(at(0), vector=[0.0] * 4)),
    (ValueError, "vector", lambda r: r.route(at(0), vector=[math.nan, 0, 0, 1])),
    (ValueError, "vector", lambda r: r.route(at(0), vector=[[1.0] * 4])),
]


@pytest.mark.parametrize(("error", "argument", "use"), BAD_CALLS)
def test_a_bad_argument_is_refused_before_any_io(
    error: type[Exception], argument: str, use: Callable[[Any], object]
) -> None:
    with Client(NOBODY) as client, pytest.raises(error, match=argument) as caught:
        use(SemanticRouter(client, Circle()))
    assert type(caught.value) is error


@pytest.mark.parametrize("limit", [math.inf])
def test_a_threshold_beyond_all_distances_is_refused_before_any_io(limit: float) -> None:
    with Client(NOBODY) as client, pytest.raises(ValueError, match="max_distance"):
        SemanticRouter(client, Circle()).add("a", [at(0)], max_distance=limit)


@pytest.mark.parametrize(
    "use", [lambda r: r.remove("a", [5]), lambda r: r.add("a", None)], ids=["remove", "add"]
)
def test_examples_that_are_no_texts_are_refused_by_name(use: Callable[[Any], object]) -> None:
    with Client(NOBODY) as client, pytest.raises(TypeError, match="examples"):
        use(SemanticRouter(client, Circle()))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"namespace": ""}, ValueError),
        ({"namespace": "a\0b"}, ValueError),
        ({"namespace": None}, TypeError),
        ({"max_distance": -1}, ValueError),
        ({"max_distance": math.nan}, ValueError),
        ({"max_distance": None}, TypeError),
        ({"embedder": "model"}, TypeError),
    ],
    ids=str,
)
def test_a_bad_option_is_named(options: dict[str, Any], error: type[Exception]) -> None:
    with Client(NOBODY) as client, pytest.raises(error, match=next(iter(options))):
        SemanticRouter(client, **{"embedder": Circle(), **options})


def test_an_example_is_near_enough_to_itself_whatever_rounding_leaves(client: Client) -> None:
    router = SemanticRouter(client, HashingEmbedder(64), max_distance=0.0)
    texts = [f"example number {i} of many" for i in range(50)]
    router.add("a", texts)
    assert [router.route(text).name for text in texts] == ["a"] * 50
    assert router.route("nothing of the kind").name is None
