"""The contenders of loads and searches, and what they load and search.

* `ready bytes, socket + hiredis`: a bare socket that sends bytes made before the clock starts, the
  same HSETs and FT.SEARCHes that ours sends, and leaves the replies as hiredis makes them.
* The same over RESP2, where it makes a difference: hiredis takes several times longer for the maps
  of a RESP3 search reply than for the same reply as RESP2's flat lists.
* `rawredis_llm`: this library, by its public API. Unlike the others, its `load` checks every vector
  and value, and replaces whole hashes.
* `rawredis_llm, one by one`: many searches in a loop, each with a round trip of its own.
* `redis-py`: RESP2, which is faster here than its RESP3, hiredis, and the fastest of its own ways.
* `redisvl`: a `SearchIndex` over redis-py, as its manual shows it, vectors given as bytes. It
  chooses RESP2 itself.

All but the bare sockets end a search by touching id, distance and every field of every row, so that
nobody gains by putting off what the caller needs; numbers are left as the contender gives them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import numpy as np

from bench.calls import Bare
from bench.race import Contender, Run
from bench.results import OURS, installed
from rawredis_llm import Client, Numeric, Tag, Text, Vector, VectorIndex
from rawredis_llm.protocol.operation import steps_of
from rawredis_llm.protocol.resp import encode

FLOOR = "ready bytes, socket + hiredis"
BATCH = 500  # rows a write when loading, for all
RETURNED = ("text", "kind", "year")

Row: TypeAlias = "tuple[str, float, str, str, int]"
"""Id, distance, text, tag and number; a rival's id is the whole key, and its numbers are text."""


@dataclass(frozen=True)
class Documents:
    """Hashes `name:0` and on: a float32 array of shape (n, dim), and columns of other fields."""

    name: str
    vectors: Any
    columns: dict[str, list[Any]]
    algorithm: str = "flat"

    KINDS: ClassVar[dict[str, Any]] = {"text": Text, "kind": Tag, "year": Numeric}

    @property
    def ids(self) -> range:
        """All ids, in order."""
        return range(len(self.vectors))

    @property
    def keys(self) -> list[str]:
        """All keys, in order."""
        return [f"{self.name}:{i}" for i in self.ids]

    def hashes(self) -> Iterator[dict[str, Any]]:
        """Yield each document's fields; what the columns are to us, a dict is to the others."""
        for vector, *values in zip(self.vectors, *self.columns.values(), strict=True):
            document = dict(zip(self.columns, values, strict=True))
            document["v"] = vector.tobytes()
            yield document

    def part(self, name: str, count: int, *columns: str, algorithm: str = "flat") -> Documents:
        """Return the first of these documents under another name, with some of the columns."""
        chosen = {column: self.columns[column][:count] for column in columns}
        return Documents(name, self.vectors[:count], chosen, algorithm)

    def indexed(self, client: Client) -> Documents:
        """Return these documents, once they are there, and indexed."""
        index = self.index(client)
        index.create()
        index.load(self.ids, self.vectors, self.columns)
        return self

    def queries(self, count: int) -> Any:
        """Return vectors, each near to two of the documents."""
        return self.vectors[:count] + self.vectors[1 : count + 1]

    @cached_property
    def _units(self) -> Any:
        stored = self.vectors.astype(float)
        return stored / np.linalg.norm(stored, axis=1, keepdims=True)

    def distances(self, vector: Any) -> Any:
        """Return the cosine distances of all of them from a vector."""
        # Not by `@`, whose threads go on for a while and would count as a contender's.
        return 1 - np.einsum("ij,j->i", self._units, vector) / np.linalg.norm(vector)

    def check(self, found: list[Row], distances: Any, k: int) -> None:
        """Assert that the nearest documents were found, whole, and in order."""
        ids = [int(row[0]) for row in found]
        assert len(set(ids)) == k
        for expected in (np.sort(distances)[:k], distances[ids]):
            np.testing.assert_allclose([row[1] for row in found], expected, atol=1e-4)
        fields = [tuple(self.columns[name][i] for name in RETURNED) for i in ids]
        assert [row[2:] for row in found] == fields

    def index(self, client: Client) -> VectorIndex[Client]:
        """Return an index that covers them, once it is created."""
        vector = Vector("v", self.vectors.shape[1], algorithm=self.algorithm)
        others = [self.KINDS[name](name) for name in self.columns if name in self.KINDS]
        return VectorIndex(client, self.name, [vector, *others])


class Searcher(Contender):
    """A client that loads and searches."""

    def load(self, documents: Documents) -> Run | None:
        """Write all documents."""
        return None

    def knn(self, documents: Documents, vector: Any, k: int) -> Run | None:
        """Find the documents nearest to a vector."""
        return None

    def many(self, documents: Documents, vectors: Any, k: int) -> Run | None:
        """Find the documents nearest to each of many vectors: a list of what `knn` finds."""
        return None

    def rows(self, found: Any) -> list[Row]:
        """Return what `knn` found in one form for all, to be compared."""
        return [
            (key.rpartition(":")[2], float(distance), text, kind, int(year))
            for key, distance, text, kind, year in found
        ]


class _Floor(Bare, Searcher):
    """The bare socket. It is given ours' own bytes, but for the DEL before each batch of a load."""

    name = FLOOR

    def load(self, documents: Documents) -> Run | None:
        requests = [
            encode(["HSET", key, *(part for pair in document.items() for part in pair)])
            for key, document in zip(documents.keys, documents.hashes(), strict=True)
        ]
        batches = [requests[start : start + BATCH] for start in range(0, len(requests), BATCH)]
        ready = [(b"".join(batch), len(batch)) for batch in batches]
        return lambda: [self.exchange(data, width) for data, width in ready]

    def knn(self, documents: Documents, vector: Any, k: int) -> Run:
        request = _request(documents, vector, k)
        return lambda: self.ask(request)

    def many(self, documents: Documents, vectors: Any, k: int) -> Run:
        data = b"".join(_request(documents, vector, k) for vector in vectors)
        return lambda: self.exchange(data, len(vectors))

    def rows(self, found: Any) -> list[Row]:
        pairs = [(row[b"id"], row[b"extra_attributes"]) for row in found[b"results"]]
        names = [b"__distance", *(name.encode() for name in RETURNED)]
        return super().rows(
            [[key.decode(), *(fields[name].decode() for name in names)] for key, fields in pairs]
        )


class _FlatFloor(_Floor):
    name = f"{FLOOR}, RESP2"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.ask(encode(["HELLO", "2"]))

    def load(self, documents: Documents) -> None:
        return None  # the replies are numbers in both

    def rows(self, found: Any) -> list[Row]:
        hashes = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in found[2::2]]
        pairs = zip(found[1::2], hashes, strict=True)
        results = [{b"id": key, b"extra_attributes": fields} for key, fields in pairs]
        return super().rows({b"results": results})


def _request(documents: Documents, vector: Any, k: int) -> bytes:
    """Return the bytes by which ours asks for the nearest documents."""
    with Client() as client:  # it never connects
        request: Any = next(steps_of(documents.index(client).plan.search(vector, k)))
    # The first search of an index object asks with the same write whether it is being built.
    _, queries = request.members
    return encode(queries.members[0].args)


class _Ours(Searcher):
    name = OURS

    def __init__(self, url: str) -> None:
        self._client = Client(url)

    def load(self, documents: Documents) -> Run | None:
        index = documents.index(self._client)
        vectors, columns = documents.vectors, documents.columns
        return lambda: index.load(documents.ids, vectors, columns, batch_size=BATCH)

    def knn(self, documents: Documents, vector: Any, k: int) -> Run | None:
        search = documents.index(self._client).search
        return lambda: _touched(search(vector, k))

    def many(self, documents: Documents, vectors: Any, k: int) -> Run | None:
        index: Any = documents.index(self._client)
        return lambda: [_touched(result) for result in index.search_many(vectors, k)]

    def close(self) -> None:
        self._client.close()


class _OursFlat(_Ours):
    name = f"{OURS}, RESP2"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._client = Client(url, protocol=2)

    def load(self, documents: Documents) -> None:
        return None


class _OneByOne(_Ours):
    name = f"{OURS}, one by one"

    def load(self, documents: Documents) -> None:
        return None

    def knn(self, documents: Documents, vector: Any, k: int) -> None:
        return None

    def many(self, documents: Documents, vectors: Any, k: int) -> Run:
        search = documents.index(self._client).search
        return lambda: [_touched(search(vector, k)) for vector in vectors]


def _touched(result: Any) -> list[Any]:
    return [
        (row.id, row.distance, fields["text"], fields["kind"], fields["year"])
        for row in result.rows
        for fields in (row.fields,)
    ]


class _RedisPy(Searcher):
    """It has no way to send many searches at once."""

    name = "redis-py"

    def __init__(self, url: str) -> None:
        self._client = importlib.import_module("redis").Redis.from_url(url, protocol=2)

    def load(self, documents: Documents) -> Run:
        def run() -> None:
            hashes = documents.hashes()
            keys = documents.keys
            for start in range(0, len(keys), BATCH):
                pipe = self._client.pipeline(transaction=False)
                for key in keys[start : start + BATCH]:
                    pipe.hset(key, mapping=next(hashes))
                pipe.execute()

        return run

    def knn(self, documents: Documents, vector: Any, k: int) -> Run:
        # The query is built once: only the vector changes from call to call.
        text = f"*=>[KNN {k} @v $vector AS distance]"
        query = importlib.import_module("redis.commands.search.query").Query(text)
        query.sort_by("distance").paging(0, k).return_fields("distance", *RETURNED).dialect(2)
        search = self._client.ft(documents.name).search

        def run() -> list[Any]:
            found = search(query, {"vector": vector.tobytes()}).docs
            return [(row.id, row.distance, row.text, row.kind, row.year) for row in found]

        return run

    def close(self) -> None:
        self._client.close()


class _RedisVL(Searcher):
    name = "redisvl"

    def __init__(self, url: str) -> None:
        self._query = importlib.import_module("redisvl.query").VectorQuery
        self._index_class = importlib.import_module("redisvl.index").SearchIndex
        self._url = url
        self._opened: list[Any] = []

    def load(self, documents: Documents) -> Run:
        load = self._index(documents).load
        return lambda: load(list(documents.hashes()), keys=documents.keys, batch_size=BATCH)

    def knn(self, documents: Documents, vector: Any, k: int) -> Run:
        ask = self._index(documents).query
        return lambda: self._touched(ask(self._nearest(vector, k)))

    def many(self, documents: Documents, vectors: Any, k: int) -> Run:
        ask = self._index(documents).batch_query

        def run() -> list[Any]:
            found = ask([self._nearest(vector, k) for vector in vectors], batch_size=len(vectors))
            return [self._touched(one) for one in found]

        return run

    def close(self) -> None:
        for index in self._opened:
            index.disconnect()

    def _index(self, documents: Documents) -> Any:
        """Return an index object; the index itself is made by ours, if there is to be one."""
        vector = {
            "dims": documents.vectors.shape[1],
            "distance_metric": "cosine",
            "algorithm": documents.algorithm,
        }
        kinds = {name: documents.KINDS.get(name) for name in documents.columns}
        fields = [{"name": name, "type": kind.kind.lower()} for name, kind in kinds.items() if kind]
        schema = {
            "index": {"name": documents.name, "prefix": documents.name},
            "fields": [{"name": "v", "type": "vector", "attrs": vector}, *fields],
        }
        self._opened.append(self._index_class.from_dict(schema, redis_url=self._url))
        return self._opened[-1]

    def _nearest(self, vector: Any, k: int) -> Any:
        return self._query(vector.tobytes(), "v", return_fields=list(RETURNED), num_results=k)

    @staticmethod
    def _touched(found: Any) -> list[Any]:
        return [
            (row["id"], row["vector_distance"], row["text"], row["kind"], row["year"])
            for row in found
        ]


def searchers(url: str) -> list[Searcher]:
    """Return all that are installed, connected to a server."""
    rivals: dict[str, type[_RedisPy | _RedisVL]] = {"redis": _RedisPy, "redisvl": _RedisVL}
    there = [make(url) for module, make in rivals.items() if installed(module)]
    return [_Floor(url), _FlatFloor(url), _Ours(url), _OursFlat(url), _OneByOne(url), *there]
