"""What loads and searches cost the client: ours, redis-py, redisvl, and ready bytes on a socket.

    pytest bench/test_search.py                      prints the table
    pytest bench/test_search.py --write-results      writes it to SEARCH.md too

The rules are those of `conftest.py`; who takes part is told in `search.py`. Where the server is the
slow one (an index that is being filled, a KNN of many documents) wall ratios say little, and CPU
times are those of a client that has just been woken: the index of 1,000 documents shows more of the
client than that of 10,000.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.conftest import RIVAL, Outcome, Race, Report, environment, installed
from bench.search import BESIDE, FLOOR, OURS, RIVALS, Documents, Searcher, beside, searchers
from rawredis_llm import Client, EmbeddedServer, VectorIndex

SEARCH = Path(__file__).with_name("SEARCH.md")
LEGEND = f"""\
Microseconds per operation: median (least) of the rounds. CPU: the client process, user and system.
{BESIDE}"""
HEAD = """\
# What loads and searches cost the client

Written by `pytest bench/test_search.py --write-results`; `search.py` says what is measured, and
`conftest.py` how. Contenders took turns in short rounds, so the ratios hold better than the
microseconds.
"""


def rows(outcome: Outcome) -> Iterator[list[str]]:
    """Yield a scenario's rows of the table, and who took no part."""
    yield from beside(outcome)
    for module, name in RIVALS.items():
        if not installed(module):
            yield [outcome.scenario, name, "not installed", "", ""]


@pytest.fixture(scope="module")
def contenders(server: EmbeddedServer) -> Iterator[list[Searcher]]:
    """Return all clients, connected to the same server."""
    contenders = searchers(server.url)
    yield contenders
    for contender in contenders:
        contender.close()


@pytest.fixture(scope="module")
def report(pytestconfig: pytest.Config, client: Client) -> Report:
    """Return what the outcomes are to be put into."""
    columns = ["scenario", "contender", "CPU us", "wall us", "ours / it: CPU (wall)"]
    packages = [name for name in RIVALS if installed(name)]
    report = Report(SEARCH, HEAD, LEGEND, columns, rows, environment(client, packages))
    pytestconfig.pluginmanager.register(report)
    return report


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
    return indexed(client, documents, "bench-large", 10_000)


@pytest.fixture(scope="module")
def small(client: Client, documents: Documents) -> Documents:
    """Return 1,000 documents that are indexed."""
    return indexed(client, documents, "bench-small", 1000)


def indexed(client: Client, documents: Documents, name: str, count: int) -> Documents:
    part = documents.part(name, count, "text", "kind", "year")
    index = part.index(client)
    index.create()
    index.load(part.ids, part.vectors, part.columns)
    return part


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
        names={FLOOR, OURS, RIVAL},
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


def knn(race: Race[Searcher], scenario: str, documents: Documents, k: int, rounds: int) -> None:
    """Measure one search."""
    [vector] = queries(documents, 1)
    [expected] = nearest(documents, [vector], k)

    def check(contender: Searcher, result: Any) -> None:
        assert contender.rows(result) == expected

    race(scenario, lambda c: c.knn(documents, vector, k), check, rounds=rounds, repeats=5)


only_with_many = pytest.mark.skipif(
    not hasattr(VectorIndex, "search_many"), reason="VectorIndex has no search_many"
)


@only_with_many
def test_many_of_10_000(race: Race[Searcher], large: Documents) -> None:
    many(race, "100 times KNN 4 of 10,000 x 768 (per query)", large, rounds=8)


@only_with_many
def test_many_of_1_000(race: Race[Searcher], small: Documents) -> None:
    many(race, "100 times KNN 4 of 1,000 x 768 (per query)", small, rounds=30)


def many(race: Race[Searcher], scenario: str, documents: Documents, rounds: int) -> None:
    """Measure a hundred searches that are asked for at once."""
    vectors = queries(documents, 100)
    expected = nearest(documents, vectors, 4)

    def check(contender: Searcher, result: Any) -> None:
        assert [contender.rows(found) for found in result] == expected

    race(
        scenario,
        lambda c: c.many(documents, vectors, 4),
        check,
        rounds=rounds,
        operations=len(vectors),
    )


def queries(documents: Documents, count: int) -> Any:
    """Return vectors, each near to two of the documents."""
    return documents.vectors[:count] + documents.vectors[1 : count + 1]


def nearest(documents: Documents, vectors: Any, k: int) -> list[list[Any]]:
    """Return what a search for each of the vectors must find."""
    columns = documents.columns
    stored = documents.vectors.astype(float)
    lengths = np.linalg.norm(stored, axis=1)
    found = []
    for vector in vectors:
        distances = 1 - stored @ vector / lengths / np.linalg.norm(vector)
        found.append(
            [
                (
                    *(str(i), pytest.approx(distances[i], abs=1e-4)),
                    *(columns["text"][i], columns["kind"][i], columns["year"][i]),
                )
                for i in np.argsort(distances)[:k]
            ]
        )
    return found


@pytest.mark.skipif(
    not hasattr(VectorIndex, "load_documents"), reason="VectorIndex has no load_documents"
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
