"""What loads and searches cost the client: ours, redis-py, redisvl, and ready bytes on a socket.

    pytest bench/test_search.py                      prints the section "Loads and searches"
    pytest bench/test_search.py --write-results      writes it to RESULTS.md too

The rules are those of `race.py`; who takes part is told in `search.py`. Where the server is the
slow one (an index that is being filled, a KNN of many documents) wall ratios say little, and CPU
times are those of a client that has just been woken: the index of 1,000 documents shows more of the
client than that of 10,000.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bench.results import OURS, Report, Section
from bench.search import FLOOR, Documents, Searcher, searchers
from rawredis_llm import Client

if TYPE_CHECKING:
    from bench.race import Race

CONTENDERS = searchers
SECTION = Section(
    "Loads and searches",
    f"{FLOOR}: the floor, for which nothing is encoded and nothing decoded.",
    ("redis-py", "redisvl"),
)


@pytest.fixture(scope="module")
def documents() -> Documents:
    """Return 10,000 documents of 768 dimensions, the same at each run."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((10_000, 768), dtype=np.float32)
    words = np.array([f"{a}{b}{c}" for a in "bdfklmnprst" for b in "aeiou" for c in "dlmnrst"])

    def texts(least: int, most: int) -> list[str]:
        lengths = random.integers(least, most, len(vectors), endpoint=True)
        return [" ".join(random.choice(words, n // 4 + 1))[:n] for n in lengths]

    numbers = range(len(vectors))
    columns: dict[str, list[Any]] = {
        "text": texts(380, 420),
        "body": texts(100, 800),
        "meta": [json.dumps({"source": text, "page": 7}) for text in texts(85, 95)],
        "kind": [("book", "film", "song")[i % 3] for i in numbers],
        "year": [1900 + i % 100 for i in numbers],
    }
    return Documents("all", vectors, columns)


@pytest.fixture(scope="module")
def large(client: Client, documents: Documents) -> Documents:
    """Return 10,000 documents that are indexed."""
    return documents.part("bench-large", 10_000, "text", "kind", "year").indexed(client)


@pytest.fixture(scope="module")
def small(client: Client, documents: Documents) -> Documents:
    """Return 1,000 documents that are indexed."""
    return documents.part("bench-small", 1000, "text", "kind", "year").indexed(client)


def test_load(race: Race[Searcher], client: Client, documents: Documents) -> None:
    part = documents.part("bench-load", 10_000, "kind", "year")
    load(race, client, "load 10,000 x 768, no index (per row)", part, rounds=10)


def test_load_metadata(race: Race[Searcher], client: Client, documents: Documents) -> None:
    part = documents.part("bench-metadata", 10_000, "body", "meta", "kind")
    load(race, client, "load 10,000 x 768 with text and JSON, no index (per row)", part, rounds=10)


def test_load_flat(race: Race[Searcher], client: Client, documents: Documents) -> None:
    part = documents.part("bench-flat", 2000, "kind", "year")
    load_indexed(race, client, "load 2,000 x 768, flat index (per row)", part, rounds=15)


def test_load_hnsw(race: Race[Searcher], client: Client, documents: Documents) -> None:
    part = documents.part("bench-hnsw", 2000, "kind", "year", algorithm="hnsw")
    load_indexed(race, client, "load 2,000 x 768, hnsw index (per row)", part, rounds=3)


def load_indexed(
    race: Race[Searcher], client: Client, scenario: str, documents: Documents, rounds: int
) -> None:
    """Measure the filling of an index, by those two who are compared all through."""
    index = documents.index(client)

    def anew() -> None:
        if index.exists():
            index.drop(delete_documents=True)
        index.create()

    def indexes_all() -> None:
        assert index.count() == len(documents.ids)

    load(
        race,
        client,
        scenario,
        documents,
        rounds=rounds,
        before=anew,
        after=indexes_all,
        names={FLOOR, OURS, "redis-py"},
    )
    index.drop(delete_documents=True)


def load(
    race: Race[Searcher],
    client: Client,
    scenario: str,
    documents: Documents,
    *,
    rounds: int,
    before: Callable[[], object] | None = None,
    after: Callable[[], object] = lambda: None,
    names: set[str] | None = None,
) -> None:
    """Measure the writing of documents that are not there yet."""
    keys = documents.keys
    expected = [
        {
            name.encode(): value if name == "v" else str(value).encode()
            for name, value in document.items()
        }
        for document in documents.hashes()
    ]

    def check(_: Searcher, _result: Any) -> None:
        assert client.pipeline([("HGETALL", key) for key in keys]) == expected
        after()

    def delete() -> None:
        client.call("DEL", *keys)

    race(
        scenario,
        lambda c: c.load(documents) if names is None or c.name in names else None,
        check,
        rounds=rounds,
        operations=len(keys),
        before=before or delete,
    )
    delete()


def test_knn_4_of_10_000(race: Race[Searcher], large: Documents) -> None:
    knn(race, "KNN 4 of 10,000 x 768 to rows", large, 4, rounds=100)


def test_knn_4_of_1_000(race: Race[Searcher], small: Documents) -> None:
    knn(race, "KNN 4 of 1,000 x 768 to rows", small, 4, rounds=300)


def test_knn_100_of_10_000(race: Race[Searcher], large: Documents) -> None:
    knn(race, "KNN 100 of 10,000 x 768 to rows", large, 100, rounds=60)


def test_knn_100_of_1_000(race: Race[Searcher], small: Documents) -> None:
    knn(race, "KNN 100 of 1,000 x 768 to rows", small, 100, rounds=100)


def knn(race: Race[Searcher], scenario: str, documents: Documents, k: int, **options: Any) -> None:
    """Measure one search."""
    [vector] = documents.queries(1)
    distances = documents.distances(vector)

    def check(contender: Searcher, result: Any) -> None:
        documents.check(contender.rows(result), distances, k)

    race(scenario, lambda c: c.knn(documents, vector, k), check, **{"repeats": 5, **options})


def test_many_of_10_000(race: Race[Searcher], large: Documents) -> None:
    many(race, "100 times KNN 4 of 10,000 x 768 (per query)", large, rounds=8)


def test_many_of_1_000(race: Race[Searcher], small: Documents) -> None:
    many(race, "100 times KNN 4 of 1,000 x 768 (per query)", small, rounds=30)


def many(race: Race[Searcher], scenario: str, documents: Documents, rounds: int) -> None:
    """Measure a hundred searches that are asked for at once."""
    vectors = documents.queries(100)
    distances = [documents.distances(vector) for vector in vectors]

    def check(contender: Searcher, result: Any) -> None:
        for expected, found in zip(distances, result, strict=True):
            documents.check(contender.rows(found), expected, 4)

    race(
        scenario,
        lambda c: c.many(documents, vectors, 4),
        check,
        rounds=rounds,
        operations=len(vectors),
    )


def test_memory_of_load(client: Client, documents: Documents, report: Report) -> None:
    part = documents.part("bench-stream", 1000, "text", "kind")
    part = Documents(part.name, np.ascontiguousarray(part.vectors[:, :256]), part.columns)
    index: Any = part.index(client)
    total = 50_000

    def stream() -> Iterator[dict[str, Any]]:
        # A thousand in turns: what is loaded must come from somewhere, and shall not count.
        texts, kinds = part.columns["text"], part.columns["kind"]
        for i in range(total):
            n = i % len(texts)
            yield {"id": i, "v": part.vectors[n], "text": texts[n], "kind": kinds[n]}

    tracemalloc.start()
    try:
        assert index.load_documents(stream(), batch_size=500) == total
        peak = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    held = total * 256 * 4 / 2**20
    report.notes.append(
        f"Loading {total:,} x 256 from a generator of documents, 500 at a time, took {peak:.1f} MiB"
        f" of memory at most (tracemalloc); the vectors alone are {held:.0f} MiB."
    )
    client.call("DEL", *[f"{part.name}:{i}" for i in range(total)])
