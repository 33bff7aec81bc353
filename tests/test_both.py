"""Writers go on while an index is moved: at the end both hold what the writers meant, no more."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from counting import cost
from documents import DIM, both_kinds, contents, made, make, meanwhile, vectors
from rawredis_llm import (
    AsyncClient,
    Client,
    EmbeddedServer,
    Numeric,
    Tag,
    Text,
    Vector,
    VectorIndex,
    errors,
)
from rawredis_llm.index import documents as pages
from test_reindex import Embedder

if TYPE_CHECKING:
    from conftest import Redis

PLAIN = [Tag("owner"), Numeric("year"), Text("text")]
OLD = [*PLAIN, Vector("vec", DIM)]


def two(redis: Redis, on: str, dim: int = DIM, **options: Any) -> tuple[Any, Any]:
    """Return an old index and a new one, both created."""
    return made(redis, on, "old", OLD, **options), made(
        redis, on, "new", [*PLAIN, Vector("vec", dim)]
    )


# -- each write ----------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("embedder", [None, Embedder(7)], ids=["converted", "embedded"])
def test_what_is_written_is_in_both(redis: Redis, on: str, embedder: Embedder | None) -> None:
    old, new = two(redis, on, 7 if embedder else DIM)
    both = old.both(new, embedder=embedder)
    texts = [f"t{i}" for i in range(9)]
    fields = {"text": texts, "year": range(9), "owner": ["a"] * 9, "extra": ["é"] * 9}
    assert redis.do(both.load(range(9), vectors(9), fields, batch_size=4, ttl=1000)) == 9
    changed = vectors(2, seed=8)
    change = {"text": ["t1", "new"], "year": [100, None]}
    assert redis.do(both.update([1, 2, "nowhere"], {"owner": ["b"] * 3})) == 2
    assert redis.do(both.update([1, 2], change, vectors=changed)) == 2
    assert redis.do(both.update_where(Numeric("year") == 3, {"extra": None, "owner": "c"})) == 1
    assert redis.do(both.delete([4, "nowhere"])) == 1
    assert redis.do(both.delete_where(Numeric("year") >= 7, dry_run=True)) == 3
    assert redis.do(both.delete_where(Numeric("year").between(7, 8))) == 2
    documents = [{"id": "s", "vec": vectors(1)[0], "text": "stream"}]
    assert redis.do(both.load_documents(documents)) == 1
    expected: dict[str, Any] = {
        str(i): {"text": f"t{i}", "year": i, "owner": "a", "extra": "é"} for i in (0, 1, 2, 3, 5, 6)
    }
    expected["1"] |= {"year": 100, "owner": "b"}
    expected["2"] = {"text": "new", "owner": "b", "extra": "é"}
    expected["3"] = {"text": "t3", "year": 3, "owner": "c"}
    expected["s"] = {"text": "stream"}
    given = {str(i): vectors(9)[i] for i in range(9)} | {"s": vectors(1)[0]}
    given |= {"1": changed[0], "2": changed[1]}
    names = sorted(expected)
    for index in (old, new):
        rows = redis.do(index.get(names))
        assert {row.id: row.fields for row in rows} == expected
        assert redis.do(index.count()) == len(expected)
        for row in rows:
            made_of_text = embedder is not None and index is new
            wanted = embedder.one(row.fields["text"]) if made_of_text else given[row.id]  # type: ignore[union-attr]
            assert (row.vector == wanted).all()
            left = redis.do(redis.client.call("PTTL", index.prefix + row.id))
            assert left == -1 if row.id == "s" else left > 900_000
    assert redis.do(redis.client.call("DBSIZE")) == 2 * len(expected)


@both_kinds
def test_both_are_written_in_one_round_trip(redis: Redis, on: str) -> None:
    old, new = two(redis, on)
    both = old.both(new)
    assert cost(redis, lambda: both.load(range(5), vectors(5))).round_trips == 1
    redis.do(both.update([0], {"year": [1]}))  # the server knows the script from here on
    assert cost(redis, lambda: both.update([1], {"year": [1]})).round_trips == 1
    assert cost(redis, lambda: both.delete([1, 2])).round_trips == 1


@both_kinds
def test_what_is_wrong_for_one_is_written_to_none(redis: Redis, on: str) -> None:
    old, new = two(redis, on)
    both = old.both(new, embedder=Embedder())
    with pytest.raises(ValueError, match="'b' has no text"):
        redis.do(both.load(["a", "b"], vectors(2), {"text": ["x", None]}))
    wrong = old.both(new, embedder=Embedder(5))
    with pytest.raises(ValueError, match="5 dimensions"):
        redis.do(wrong.load(["a"], vectors(1), {"text": ["x"]}))
    assert redis.do(redis.client.call("DBSIZE")) == 0


@both_kinds
def test_what_the_new_index_does_not_take_is_told(redis: Redis, on: str) -> None:
    old = made(redis, on, "old", OLD)
    new = made(redis, on, "new", [Numeric("extra"), Vector("vec", DIM)])
    both = old.both(new)
    with pytest.raises(errors.NotIndexedError) as caught:
        redis.do(
            both.load(
                range(3), vectors(3), {"extra": ["5", "x", "7"] if on == "hash" else [5, "x", 7]}
            )
        )
    assert caught.value.ids == ("1",)
    assert (redis.do(old.count()), redis.do(new.count())) == (3, 2)


@both_kinds
def test_searches_ask_the_old_index(redis: Redis, on: str) -> None:
    old, new = two(redis, on)
    redis.do(old.load(["a"], vectors(1)))
    redis.do(new.load(["b"], vectors(1)))
    both = old.both(new)
    assert redis.do(both.search(vectors(1)[0])).rows[0].id == "a"
    assert redis.do(both.count()) == 1
    assert redis.do(both.get(["a", "b"]))[1] is None
    assert redis.do(old.load(["c"], vectors(1))) == 1  # the old object itself writes to one
    assert redis.do(new.count()) == 1


@both_kinds
def test_a_text_that_changes_is_embedded_anew(redis: Redis, on: str) -> None:
    old, new = two(redis, on)
    embedder = Embedder()
    both = old.both(new, embedder=embedder)
    redis.do(both.load(["a"], vectors(1), {"text": ["before"]}))
    redis.do(both.update(["a"], {"text": ["after"]}))
    row = redis.do(new.get(["a"]))[0]
    assert row.fields["text"] == "after"
    assert (row.vector == embedder.one("after")).all()


@both_kinds
def test_a_vector_may_change_without_its_text(redis: Redis, on: str) -> None:
    old, new = two(redis, on)
    embedder = Embedder()
    both = old.both(new, embedder=embedder)
    redis.do(both.load(["a"], vectors(1), {"text": ["words"]}))
    assert redis.do(both.update(["a"], vectors=vectors(1, seed=9))) == 1
    assert (redis.do(old.get(["a"]))[0].vector == vectors(1, seed=9)[0]).all()
    assert (redis.do(new.get(["a"]))[0].vector == embedder.one("words")).all()


@both_kinds
def test_what_is_changed_before_it_was_copied_arrives(
    client: Client, on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_PAGE", 5)
    old, new = make(client, on, "old", OLD), make(client, on, "new", OLD)
    old.load(range(10), vectors(10), {"year": range(10)})
    both = old.both(new)
    meanwhile(
        client,
        old.plan.reindex(new),
        lambda: both.update(range(10), {"year": range(10, 20)}),
        lambda name: name == "SCAN",
    )
    assert contents(new.get(range(10))) == contents(old.get(range(10)))
    assert new.count() == 10


# -- writers at the same time --------------------------------------------------------------------

Model = dict[str, dict[str, Any]]
N = 150
WRITERS = 4


class Writer:
    """Writes at random to ids of its own, and keeps what should be there."""

    def __init__(self, number: int, seed: int, kinds: str) -> None:
        self.name = f"w{number}"
        self.kinds = kinds.split()
        self.random = random.Random(f"{number} {seed}")  # noqa: S311, RUF100 - a test's own
        ids = range(number, N, WRITERS)
        self.ids = [str(i) for i in ids]
        self.model: Model = {str(i): first(i, self.name) for i in ids}
        self.changes = 0

    def step(self, both: Any) -> Any:
        """Return the next call, and note what it does."""
        self.changes += 1
        some = self.random.sample(self.ids, 3)
        text = f"{self.name} {self.changes}"
        how = self.random.choice(self.kinds)
        if how == "load":
            rows = [{"owner": self.name, "year": self.changes, "text": f"{text} {i}"} for i in some]
            self.model.update(zip(some, [dict(row) for row in rows], strict=True))
            return both.load(some, old_vectors(rows), rows)
        if how == "text":
            rows = [{"text": f"{text} {i}"} for i in some]
            for i, row in zip(some, rows, strict=True):
                if i in self.model:
                    self.model[i].update(row)
            return both.update(some, rows, vectors=old_vectors(rows))
        if how == "year":
            for i in some:
                if i in self.model:
                    self.model[i]["year"] = self.changes
            return both.update(some, {"year": [self.changes] * 3})
        if how == "where":
            for row in self.model.values():
                row["year"] = self.changes
            return both.update_where(Tag("owner") == self.name, {"year": self.changes})
        if how == "delete":
            for i in some:
                self.model.pop(i, None)
            return both.delete(some)
        doomed = self.random.randrange(self.changes)
        self.model = {i: row for i, row in self.model.items() if row["year"] != doomed}
        return both.delete_where((Tag("owner") == self.name) & (Numeric("year") == doomed))


def first(i: int, owner: str) -> dict[str, Any]:
    return {"owner": owner, "year": 0, "text": f"first {i}"}


BEFORE = Embedder(DIM, "old model")


def old_vectors(rows: list[dict[str, Any]]) -> Any:
    """Return the old model's vectors of some texts."""
    return -np.array([BEFORE.one(row["text"]) for row in rows])


def verify(server: EmbeddedServer, on: str, model: Model, embedder: Embedder) -> None:
    """Compare both indexes, document by document, with what the writers meant."""
    with Client(server.url) as client:
        old: Any = VectorIndex(client, "old", OLD, on=on)
        new: Any = VectorIndex(client, "new", [*PLAIN, Vector("vec", embedder.dim)], on=on)
        assert contents(list(old.scan())) == {
            i: (row, old_vectors([row])[0].tobytes()) for i, row in model.items()
        }
        assert contents(list(new.scan())) == {
            i: (row, embedder.one(row["text"]).tobytes()) for i, row in model.items()
        }
        assert client.call("DBSIZE") == 2 * len(model)
        assert client.call("FT.SEARCH", "live", "*", "LIMIT", 0, 0)[b"total_results"] == len(model)


def begin(server: EmbeddedServer, on: str) -> None:
    with Client(server.url) as client:
        client.call("FLUSHALL")
        old = VectorIndex(client, "old", OLD, on=on)
        old.create()
        old.alias("live")
        rows = [first(i, f"w{i % WRITERS}") for i in range(N)]
        old.load(range(N), old_vectors(rows), rows)


class Searcher:
    """Searches by the alias, and notes which model's vectors it saw."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self.seen: list[str] = []

    def search(self, client: Any) -> Any:
        index: Any = VectorIndex(client, "live", OLD, prefix="old:")  # as long as the new one's
        return index.search(vectors(1)[0], 20, include_vectors=True, return_fields=["text"])

    def note(self, rows: list[Any]) -> None:
        for row in rows:
            text = row.fields["text"]
            if (row.vector == old_vectors([row.fields])[0]).all():
                kind = "old"
            else:
                assert (row.vector == self.embedder.one(text)).all(), "of neither model"
                kind = "new"
            if self.seen[-1:] != [kind]:
                self.seen.append(kind)


WHOLE = "load delete purge"
CHANGES = "text year where"


def cases(seeds: int) -> pytest.MarkDecorator:
    """Return kinds of documents, kinds of writes, and seeds; most of them for the long run."""
    return pytest.mark.parametrize(
        ("on", "kinds", "seed"),
        [
            pytest.param(
                on,
                kinds,
                seed,
                marks=[pytest.mark.long] * (seed > 0),
            )
            for on in ("hash", "json")
            for kinds in (WHOLE, f"{WHOLE} {CHANGES}")
            for seed in range(seeds)
        ],
    )


def thread(failures: list[BaseException], work: Callable[[], None]) -> threading.Thread:
    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it fails the test, in its own thread
            failures.append(error)

    started = threading.Thread(target=run)
    started.start()
    return started


@cases(30)
def test_writers_in_threads_lose_nothing(
    server: EmbeddedServer, on: str, kinds: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_PAGE", 7)  # so that there are many pages
    begin(server, on)
    embedder = Embedder(DIM)
    fields = [*PLAIN, Vector("vec", DIM)]
    writers = [Writer(n, seed, kinds) for n in range(WRITERS)]
    searcher = Searcher(embedder)
    ready, done = threading.Barrier(WRITERS + 2), threading.Event()
    failures: list[BaseException] = []

    def write(writer: Writer) -> None:
        with Client(server.url) as client:
            both = VectorIndex(client, "old", OLD, on=on).both(
                VectorIndex(client, "new", fields, on=on), embedder=embedder
            )
            ready.wait(10)
            while not done.is_set() or writer.changes < 20:
                writer.step(both)

    def look() -> None:
        with Client(server.url) as client:
            ready.wait(10)
            while on == "hash" and not done.is_set():
                searcher.note(searcher.search(client).rows)
            if on == "hash":
                searcher.note(searcher.search(client).rows)

    with Client(server.url) as client:
        old = VectorIndex(client, "old", OLD, on=on)
        new = VectorIndex(client, "new", fields, on=on)
        new.create()
        threads = [thread(failures, lambda w=w: write(w)) for w in writers]  # type: ignore[misc]
        threads.append(thread(failures, look))
        try:
            ready.wait(10)
            old.reindex(new, embedder=embedder, alias="live")
        finally:
            done.set()
            for one in threads:
                one.join()
    assert failures == []
    verify(server, on, {i: r for w in writers for i, r in w.model.items()}, embedder)
    if on == "hash":
        assert searcher.seen in (["old", "new"], ["new"])


@cases(20)
def test_writers_in_tasks_lose_nothing(
    server: EmbeddedServer, on: str, kinds: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_PAGE", 7)
    begin(server, on)
    embedder = Embedder(DIM)
    writers = [Writer(n, seed, kinds) for n in range(WRITERS)]

    async def main() -> None:
        async with AsyncClient(server.url) as one, AsyncClient(server.url) as other:
            new: Any = VectorIndex(one, "new", [*PLAIN, Vector("vec", DIM)], on=on)
            await new.create()
            done = asyncio.Event()

            async def write(writer: Writer) -> None:
                client = other if writer.name in ("w0", "w1") else one
                both = VectorIndex(client, "old", OLD, on=on).both(
                    VectorIndex(client, "new", [*PLAIN, Vector("vec", DIM)], on=on),
                    embedder=embedder,
                )
                while not done.is_set() or writer.changes < 20:
                    await writer.step(both)

            async def move() -> None:
                try:
                    old = VectorIndex(one, "old", OLD, on=on)
                    await old.reindex(new, embedder=embedder, alias="live")
                finally:
                    done.set()

            await asyncio.gather(move(), *map(write, writers))

    asyncio.run(main())
    verify(server, on, {i: r for w in writers for i, r in w.model.items()}, embedder)
