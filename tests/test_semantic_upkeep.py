"""The semantic cache's own fields, what is deleted from it, how many it keeps, and by which model.

Deleting never leaves the scope; of a bounded cache the least recently used go.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from rawredis_llm import Client, Filter, Numeric, SemanticCache, Tag, Text, errors
from rawredis_llm.protocol.operation import Now
from test_semantic_cache import NOBODY, Circle, answer, at, make, vector

if TYPE_CHECKING:
    from conftest import Redis

TEAM, YEAR, NOTE = Tag("team"), Numeric("year"), Text("note")
FIELDS = [TEAM, YEAR, NOTE]


def kept(redis: Redis, namespace: str = "semantic") -> int:
    """Return how many entries the namespace has, in all scopes."""
    return len(redis.do(redis.client.call("KEYS", f"{namespace}:s:*")))


def then(redis: Redis, op: Any, now: float | Callable[[], float]) -> Any:
    """Run an op whose clock says this time."""
    clock = now if callable(now) else lambda: now

    def timed() -> Any:
        value = None
        while True:
            try:
                request = op.send(value)
            except StopIteration as stop:
                return stop.value
            value = clock() if isinstance(request, Now) else (yield request)

    return redis.do(redis.client.run(timed()))


def used(redis: Redis) -> list[bytes]:
    """Return the sorted sets by last use."""
    found: list[bytes] = redis.do(redis.client.call("KEYS", "*:u:*"))
    return found


# -- fields --------------------------------------------------------------------------------------


def test_fields_are_stored_and_filtered_by(redis: Redis) -> None:
    cache = make(redis, fields=FIELDS, max_distance=2)
    for i, team in enumerate(["red", "blue", "red|blue"]):
        fields = {"team": team, "year": 2000 + i, "note": f"number {i}"}
        redis.do(cache.store(at(i / 10), team, fields=fields))
    redis.do(cache.store(at(0.05), "none"))
    wanted = {
        TEAM == "red": "red",
        TEAM == "blue": "blue",
        TEAM == "red|blue": "red|blue",
        YEAR > 2000: "blue",
        (YEAR > 2000) & (TEAM == "red"): None,
        NOTE.matches("number 2"): "red|blue",
        ~(TEAM == "red"): "none",
    }
    for condition, response in wanted.items():
        hit = redis.do(cache.lookup("q", vector=vector(0), filter=condition))
        assert answer(hit) == response, condition
    assert answer(redis.do(cache.lookup("q", vector=vector(0)))) == "red"
    [key, *_] = redis.do(redis.client.call("KEYS", "semantic:s:*"))
    assert redis.do(redis.client.call("HEXISTS", key, "entry")) == 1


def test_a_filter_and_a_category_hold_both(redis: Redis) -> None:
    cache = make(redis, fields=[TEAM], max_distance=2)
    redis.do(cache.store(at(0), "a", category="x", fields={"team": "red"}))
    redis.do(cache.store(at(0.1), "b", category="y", fields={"team": "red"}))
    asked: dict[str, Any] = {"vector": vector(0), "filter": (TEAM == "blue") | (TEAM == "red")}
    assert answer(redis.do(cache.lookup("q", category="y", **asked))) == "b"
    asked["filter"] = TEAM == "blue"
    assert redis.do(cache.lookup("q", category="y", **asked)) is None


def test_another_caches_fields_are_not_taken(redis: Redis) -> None:
    redis.do(make(redis, fields=[TEAM]).store(at(0), "r"))
    with pytest.raises(errors.IndexMismatchError, match="year"):
        redis.do(make(redis, fields=[TEAM, YEAR]).store(at(0), "r"))


Use = Callable[[SemanticCache[Client]], object]
BAD: list[tuple[type[Exception], str, Use]] = [
    (ValueError, "no field 'colour'", lambda c: c.store(at(0), "r", fields={"colour": "red"})),
    (ValueError, "no field 'scope'", lambda c: c.store(at(0), "r", fields={"scope": "x"})),
    (ValueError, "no field 'model'", lambda c: c.store(at(0), "r", fields={"model": "x"})),
    (ValueError, "no field 'vector'", lambda c: c.store(at(0), "r", fields={"vector": b""})),
    (ValueError, "no field 'entry'", lambda c: c.store(at(0), "r", fields={"entry": "{}"})),
    (TypeError, "year", lambda c: c.store(at(0), "r", fields={"year": "soon"})),
    (ValueError, "colour", lambda c: c.lookup(at(0), filter=Tag("colour") == "red")),
    (ValueError, "year", lambda c: c.lookup(at(0), filter=Tag("year") == "2000")),
    (TypeError, "filter", lambda c: c.lookup(at(0), filter="@team:{red}")),  # type: ignore[arg-type]
    (TypeError, "category", lambda c: c.lookup(at(0), category=1)),  # type: ignore[arg-type]
    (ValueError, "category", lambda c: c.store(at(0), "r", category="")),
    (TypeError, "sources", lambda c: c.store(at(0), "r", sources="a.pdf")),
    (TypeError, "sources", lambda c: c.store(at(0), "r", sources=[1])),  # type: ignore[list-item]
    (ValueError, "source", lambda c: c.delete_source("")),
    (TypeError, "all go by clear", lambda c: c.delete_where(None)),  # type: ignore[arg-type]
    (ValueError, "colour", lambda c: c.delete_where(Tag("colour") == "red")),
]


@pytest.mark.parametrize(("error", "message", "use"), BAD)
def test_what_is_wrong_is_refused_before_any_io(
    error: type[Exception], message: str, use: Use
) -> None:
    with Client(NOBODY) as client:
        cache = SemanticCache(client, Circle(), dim=4, fields=FIELDS, on_error="raise")
        with pytest.raises(error, match=re.escape(message)):
            use(cache)


@pytest.mark.parametrize("name", ["scope", "model", "category", "vector", "entry"])
def test_the_caches_own_names_are_no_fields(client: Client, name: str) -> None:
    with pytest.raises(ValueError, match=f"fields: '{name}' is the cache's own"):
        SemanticCache(client, Circle(), fields=[Tag(name)])


# -- deleting ------------------------------------------------------------------------------------


def test_an_entry_is_deleted_by_its_id(redis: Redis) -> None:
    cache = make(redis, max_entries=9)
    first, second = (redis.do(cache.store(at(i), "r")) for i in range(2))
    assert redis.do(cache.delete(first)) is True
    assert redis.do(cache.delete(first)) is False
    assert redis.do(make(redis, scope="s").delete(second)) is False
    assert kept(redis) == 1
    [name] = used(redis)
    assert redis.do(redis.client.call("ZRANGE", name, 0, -1)) == [second.encode()]


def test_what_was_made_of_a_source_goes_with_it(redis: Redis) -> None:
    mine, theirs = make(redis, scope="mine"), make(redis, scope="theirs")
    sources = [["a.pdf"], ["b.pdf", "a.pdf"], ["b.pdf"], [], ["A.pdf"], ["a.pdf,b.pdf"], ["*"]]
    for i, names in enumerate(sources):
        for cache in (mine, theirs):
            redis.do(cache.store(at(i), str(i), sources=names))
    assert redis.do(mine.delete_source("c.pdf")) == 0
    assert redis.do(mine.delete_source("*")) == 1
    assert redis.do(mine.delete_source("a.pdf")) == 2
    assert redis.do(mine.delete_source("a.pdf")) == 0
    left = [redis.do(mine.lookup(at(i))) for i in range(len(sources))]
    assert [answer(hit) for hit in left] == [None, None, "2", "3", "4", "5", None]
    assert kept(redis) == len(sources) + 4


def test_entries_are_deleted_by_a_filter_in_their_own_scope_only(redis: Redis) -> None:
    mine = make(redis, scope="mine", fields=FIELDS, max_entries=50)
    theirs = make(redis, scope="theirs", fields=FIELDS)
    for i in range(6):
        for cache in (mine, theirs):
            fields = {"team": ["red", "blue"][i % 2], "year": i}
            redis.do(cache.store(at(i), str(i), fields=fields, category="c"))
    condition = (TEAM == "red") & (YEAR > 0)
    assert redis.do(mine.delete_where(condition, dry_run=True)) == 2
    assert kept(redis) == 12
    assert redis.do(mine.delete_where(condition)) == 2
    assert redis.do(mine.delete_where(condition)) == 0
    left = [answer(redis.do(mine.lookup(at(i)))) for i in range(6)]
    assert left == ["0", "1", None, "3", None, "5"]
    assert kept(redis) == 10
    [name] = used(redis)
    assert redis.do(redis.client.call("ZCARD", name)) == 4
    assert redis.do(mine.delete_where(~(TEAM == "red"))) == 3
    assert kept(redis) == 7


INJECTED = [
    TEAM == '"}) | (*',
    TEAM == "red} | *",
    TEAM == "*",
    ~(TEAM == 'x"} (@scope:{*}'),
    NOTE.matches("x) | (y"),
    (Tag("scope", case_sensitive=True) == "x") | (TEAM == "red"),
    # Raw refuses these; nor would the cache return what they let through.
    Filter(("(@team:{red})) | ((@team:{red})",), frozenset(), "unbalanced"),
    Filter(("(@team:{x})) | ((-@scope:{x})",), frozenset(), "unbalanced"),
]


@pytest.mark.parametrize("condition", INJECTED)
def test_no_filter_leaves_the_scope(redis: Redis, condition: Any) -> None:
    options: dict[str, Any] = {"fields": FIELDS, "max_distance": 2}
    mine, theirs = make(redis, scope="mine", **options), make(redis, scope="theirs", **options)
    for i in range(3):
        redis.do(theirs.store(at(i / 10), "secret", fields={"team": "red", "note": "x y"}))
    redis.do(mine.store(at(3), "mine", fields={"team": "red", "note": "x y"}))
    hit = redis.do(mine.lookup("q", vector=vector(0), filter=condition))
    assert answer(hit) in (None, "mine")
    told = redis.do(mine.explain("q", vector=vector(0), filter=condition))
    assert at(0) not in [candidate.prompt for candidate in told.nearest]
    assert redis.do(mine.delete_where(condition, dry_run=True)) <= 1
    assert redis.do(mine.delete_where(condition)) <= 1
    found = [redis.do(theirs.lookup(at(i / 10))) for i in range(3)]
    assert [answer(one) for one in found] == ["secret"] * 3


def test_deleting_where_nothing_was_stored_is_nothing(redis: Redis) -> None:
    cache = make(redis, fields=FIELDS)
    assert redis.do(cache.delete_where(TEAM == "red")) == 0
    assert redis.do(cache.delete_source("a.pdf")) == 0
    assert redis.do(cache.delete("0" * 32)) is False
    assert redis.do(cache.clear()) == redis.do(cache.drop()) == 0


def test_clear_and_drop_forget_the_last_use_too(redis: Redis) -> None:
    scopes = [make(redis, scope=scope, max_entries=5) for scope in "abc"]
    scopes.append(make(redis, namespace="semantic:x", max_entries=5))
    for cache in scopes:
        redis.do(cache.store(at(0), "r"))
        redis.do(cache.lookup(at(0)))
    assert len(used(redis)) == 4
    assert redis.do(scopes[0].clear()) == 1
    redis.do(scopes[0].stats())  # a use that was noted before brings nothing back
    assert len(used(redis)) == 3
    assert redis.do(scopes[1].drop()) == 2
    redis.do(scopes[1].stats())
    [left] = used(redis)
    assert left.startswith(b"semantic:x:u:")
    assert answer(redis.do(scopes[3].lookup(at(0)))) == "r"


# -- how many are kept ---------------------------------------------------------------------------


def present(redis: Redis, cache: SemanticCache[Any], count: int) -> str:
    """Return which of the entries at 0, 1, ... there are, without using any of them."""
    ops = [cache.plan.explain(at(i), max_distance=0.001) for i in range(count)]
    told = redis.do(redis.client.gather(ops))
    return "".join(str(i) for i, one in enumerate(told) if one.hit is not None)


def test_the_least_recently_used_goes_first(redis: Redis) -> None:
    cache = make(redis, max_entries=3)
    for i in range(3):
        then(redis, cache.plan.store(at(i), str(i)), 100 + i)
    assert present(redis, cache, 3) == "012"
    assert answer(then(redis, cache.plan.lookup(at(0)), 110)) == "0"  # word for word
    redis.do(cache.stats())  # takes along what was used
    then(redis, cache.plan.store(at(3), "3"), 120)
    assert present(redis, cache, 4) == "023"
    near = cache.plan.lookup("q", vector=vector(2.001))
    assert answer(then(redis, near, 130)) == "2"
    redis.do(cache.stats())
    then(redis, cache.plan.store(at(4), "4"), 140)
    assert present(redis, cache, 5) == "234"
    then(redis, cache.plan.store(at(3), "3 again"), 150)  # to store is to use
    then(redis, cache.plan.store(at(5), "5"), 160)
    assert present(redis, cache, 6) == "345"


def test_a_miss_and_an_explanation_are_no_use(redis: Redis) -> None:
    cache = make(redis, max_entries=2)
    then(redis, cache.plan.store(at(0), "0"), 100)
    then(redis, cache.plan.store(at(1), "1"), 101)
    assert then(redis, cache.plan.lookup(at(0.5)), 102) is None
    assert then(redis, cache.plan.explain(at(0)), 102).hit is not None
    redis.do(cache.stats())
    then(redis, cache.plan.store(at(2), "2"), 103)
    assert present(redis, cache, 3) == "12"


def test_what_was_just_stored_is_not_what_goes(redis: Redis) -> None:
    cache = make(redis, max_entries=1)
    for i in range(8):
        then(redis, cache.plan.store(at(i), str(i)), 100 + i / 10_000)
        assert present(redis, cache, i + 1) == str(i)


def test_each_scope_has_a_bound_of_its_own(redis: Redis) -> None:
    bounds = {"a": 1, "b": 2, "c": None}
    for scope, limit in bounds.items():
        cache = make(redis, scope=scope, max_entries=limit)
        for i in range(5):
            then(redis, cache.plan.store(at(i), str(i)), 100 + i)
    left = {scope: present(redis, make(redis, scope=scope), 5) for scope in bounds}
    assert left == {"a": "4", "b": "34", "c": "01234"}


def test_models_share_their_scopes_bound(redis: Redis) -> None:
    cache = make(redis, max_entries=2)
    for i in range(4):
        then(redis, cache.plan.store(at(0), "r", f"m{i}"), 100 + i)
        assert kept(redis) == min(i + 1, 2)
    assert redis.do(cache.lookup(at(0), "m1")) is None
    assert answer(redis.do(cache.lookup(at(0), "m2"))) == "r"


def test_many_writers_keep_to_the_bound(client: Client) -> None:
    barrier, failures = threading.Barrier(4), []

    def write(number: int) -> None:
        try:
            cache = SemanticCache(client, Circle(), max_entries=7)
            barrier.wait(20)
            for i in range(25):
                cache.store(at(number * 100 + i), "r")
        except Exception as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    entries = {key[-32:] for key in client.call("KEYS", "semantic:s:*")}
    [name] = client.call("KEYS", "semantic:u:*")
    assert len(entries) == 7
    assert entries == set(client.call("ZRANGE", name, 0, -1))


# -- another embedder ----------------------------------------------------------------------------


@pytest.fixture
def bob(redis: Redis) -> Any:
    """Return a client who may use the cache's keys only, and so not read the manifest."""
    keys = ("~semantic:*", "&*", "+@all")
    redis.do(redis.client.call("ACL", "SETUSER", "bob", "reset", "on", ">pw", *keys))
    yield redis.connect(username="bob", password="pw")
    redis.do(redis.client.call("ACL", "DELUSER", "bob"))


def test_vectors_of_another_embedder_are_refused_naming_both(redis: Redis) -> None:
    redis.do(make(redis, embedder=Circle(name="first")).store(at(0), "r"))
    both = "by the embedder 'first', not 'second'"
    uses: list[Callable[[Any], Any]] = [
        lambda cache: cache.store(at(1), "x"),
        lambda cache: cache.lookup(at(0)),
        lambda cache: cache.lookup("q", vector=vector(0)),
        lambda cache: cache.lookup("q", vector=vector(0), category="c"),
        lambda cache: cache.explain(at(0)),
    ]
    for number, use in enumerate(uses):
        other = make(redis, embedder=Circle(name="second"), scope=str(number % 2))
        for _ in range(2):  # and again
            with pytest.raises(errors.IndexMismatchError, match=both):
                redis.do(use(other))
    assert kept(redis) == 1


def test_vectors_of_another_size_are_refused(redis: Redis) -> None:
    redis.do(make(redis).store(at(0), "r"))
    for name in ("circle", ""):
        other = make(redis, embedder=Circle(dim=8, name=name))
        with pytest.raises(errors.IndexMismatchError, match="dim is 4, not 8"):
            redis.do(other.store(at(0), "x"))
    assert kept(redis) == 1


def test_after_drop_another_embedder_is_taken(redis: Redis) -> None:
    redis.do(make(redis, embedder=Circle(name="first")).store(at(0), "r"))
    other = make(redis, embedder=Circle(dim=8, name="second"))
    assert redis.do(other.drop()) == 1
    redis.do(other.store(at(0), "second's"))
    assert answer(redis.do(other.lookup(at(0.1)))) == "second's"
    with pytest.raises(errors.IndexMismatchError, match="'second', not 'first'"):
        redis.do(make(redis, embedder=Circle(name="first")).lookup(at(0)))


def test_a_dropped_cache_goes_on_with_its_embedder(redis: Redis) -> None:
    cache = make(redis, embedder=Circle(name="first"))
    redis.do(cache.store(at(0), "r"))
    redis.do(cache.drop())
    redis.do(cache.store(at(0), "again"))
    with pytest.raises(errors.IndexMismatchError, match="'first', not 'second'"):
        redis.do(make(redis, embedder=Circle(name="second")).lookup(at(0)))


def test_a_cache_that_another_one_dropped_names_its_embedder_again(redis: Redis) -> None:
    cache = make(redis, embedder=Circle(name="first"))
    redis.do(cache.store(at(0), "r"))
    redis.do(make(redis, embedder=Circle(name="first")).drop())  # by another process
    redis.do(cache.store(at(0), "again"))
    with pytest.raises(errors.IndexMismatchError, match="'first', not 'second'"):
        redis.do(make(redis, embedder=Circle(name="second")).lookup(at(0)))


def test_embedders_without_a_name_are_not_compared(redis: Redis) -> None:
    unnamed = make(redis, embedder=Circle(name=""))
    redis.do(make(redis).store(at(0), "named"))
    assert redis.do(unnamed.lookup(at(0))) is None  # and finds nothing of the other's
    redis.do(unnamed.store(at(0), "unnamed"))
    assert answer(redis.do(unnamed.lookup(at(0.1)))) == "unnamed"
    assert answer(redis.do(make(redis).lookup(at(0.1)))) == "named"


def test_a_named_embedder_after_an_unnamed_one_is_written_down(redis: Redis) -> None:
    redis.do(make(redis, embedder=Circle(name="")).store(at(0), "unnamed"))
    redis.do(make(redis, embedder=Circle(name="first")).store(at(0), "first's"))
    with pytest.raises(errors.IndexMismatchError, match="'first', not 'second'"):
        redis.do(make(redis, embedder=Circle(name="second")).lookup(at(0)))


def test_of_two_embedders_at_once_the_first_is_written_down(redis: Redis) -> None:
    caches = [make(redis, embedder=Circle(name=name), scope=name) for name in ("first", "second")]
    redis.do(redis.client.gather([cache.plan.store(at(0), "r") for cache in caches]))
    with pytest.raises(errors.IndexMismatchError, match="'first', not 'third'"):
        redis.do(make(redis, embedder=Circle(name="third")).lookup(at(0)))


def test_who_may_not_read_the_manifest_still_has_a_cache(redis: Redis, bob: Any) -> None:
    redis.do(make(redis, embedder=Circle(name="first")).store(at(0), "r"))
    with pytest.raises(errors.NoPermissionError):
        redis.do(bob.call("GET", "rawredis_llm:manifest:semantic:semantic"))
    cache: SemanticCache[Any] = SemanticCache(bob, Circle(name="first"), max_entries=5)
    assert answer(redis.do(cache.lookup(at(0)))) == "r"
    assert answer(redis.do(cache.lookup(at(0.1)))) == "r"
    redis.do(cache.store(at(1), "his"))
    assert answer(redis.do(cache.lookup(at(1.1)))) == "his"
    assert redis.do(cache.stats()).hits == 3


def test_who_may_not_create_an_index_stores_in_one_that_is_there(redis: Redis, bob: Any) -> None:
    redis.do(make(redis).store(at(0), "r"))
    redis.do(redis.client.call("ACL", "SETUSER", "bob", "-ft.create"))
    cache: SemanticCache[Any] = SemanticCache(bob, Circle())
    assert answer(redis.do(cache.lookup(at(0.1)))) == "r"
    redis.do(cache.store(at(1), "his"))
    assert answer(redis.do(cache.lookup(at(1.1)))) == "his"


def test_who_may_not_write_the_manifest_still_makes_an_index(redis: Redis, bob: Any) -> None:
    cache: SemanticCache[Any] = SemanticCache(bob, Circle(), on_error="raise")
    redis.do(cache.store(at(0), "r"))
    assert answer(redis.do(cache.lookup(at(0.1)))) == "r"
    assert answer(redis.do(make(redis).lookup(at(0.1)))) == "r"


def test_a_models_answers_are_deleted_and_no_others(redis: Redis) -> None:
    mine, theirs = make(redis, scope="mine"), make(redis, scope="theirs")
    for cache in (mine, theirs):
        for model in ("", "a", "b"):
            for i in range(3):
                redis.do(cache.store(at(i), f"{model} {i}", model))
    assert redis.do(mine.delete_model("a")) == 3
    assert redis.do(mine.delete_model("a")) == 0
    assert redis.do(mine.lookup(at(0), "a")) is None
    assert answer(redis.do(mine.lookup(at(0), "b"))) == "b 0"
    assert answer(redis.do(theirs.lookup(at(0), "a"))) == "a 0"
    assert redis.do(mine.delete_model("")) == 3
    assert kept(redis) == 3 + 9
    nothing: Any = None
    with pytest.raises(TypeError, match="model"):
        redis.do(mine.delete_model(nothing))
