"""Where a semantic cache keeps its entries: one hash each, and how the nearest are found.

With a search module by its index, over all scopes of a namespace, in whose pre-filter scope and
model stand. Without one by numpy: the vectors of the scope's entries are fetched and compared here,
which bounds how many a scope may have. A sorted set by last use says which go first, where their
number is bounded. Must not import a client.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache, partial
from types import NoneType
from typing import Any, Final, NamedTuple

import numpy as np

from ..errors import (
    IndexExistsError,
    IndexNotFoundError,
    NoPermissionError,
    SearchUnavailableError,
    UnexpectedReplyError,
    UnsupportedError,
    WrongTypeError,
)
from ..index.life import MANIFESTS, embedder_differences, embedder_in, manifest
from ..keys import escape_glob
from ..protocol import commands
from ..protocol.operation import Batch, Command, Member, Op
from ..search import query
from ..search.fields import Field, Tag
from ..search.filters import Filter, whole_number
from ..search.query import DISTANCE, knn
from ..search.replies import SearchReply, found_keys, search_reply
from ..search.schema import Schema, Vector
from ..search.vectors import from_blob
from .upkeep import OUT_OF_REACH, OutOfReach, Upkeep, passes

SCANNED: Final = 1000
"""Entries of a scope on a server without a search module, of which each lookup fetches all
vectors: 6 MB of 1,536 dimensions, some 30 ms."""

OWN: Final = ("scope", "model", "category")
"""The tags that every entry has."""

_LOOKED_AT: Final = 16  # entries beyond the surplus that may have expired, and then go first
_FORGIVEN: Final = (IndexExistsError, NoPermissionError, SearchUnavailableError)
"""What creating an index again may fail by: it is there, or it is not ours to create."""

_RETURNED: Final = ("RETURN", 4, DISTANCE, "scope", "model", "entry")


class Near(NamedTuple):
    """An entry's key, its distance, and its fields; None where it expired meanwhile."""

    key: bytes
    distance: float
    fields: dict[bytes, bytes] | None


class Shelf:
    """The entries of one scope; one object for a cache and its copies bound to a plan."""

    def __init__(
        self,
        namespace: str,
        owner: str,
        upkeep: Upkeep,
        *,
        vector: Vector,
        dim: int | None,
        fields: Sequence[Field],
        embedder: str,
        max_entries: int | None,
    ) -> None:
        if max_entries is not None:
            whole_number("max_entries", max_entries)
        for field in fields:
            if field.name in (*OWN, "vector", "entry"):
                raise ValueError(f"fields: {field.name!r} is the cache's own")
        self.index = f"{namespace}:semantic"
        self.all = f"{namespace}:s:"
        self.prefix = f"{self.all}{owner}:"
        self.dim = dim
        self.dtype = vector.dtype
        self._owner = owner
        self._upkeep = upkeep
        self._vector = vector
        self._fields = list(fields)
        self._embedder = embedder
        self._limit = max_entries
        self._used = f"{namespace}:u:{owner}"
        self._created = False
        self._same_embedder = not embedder  # or it was seen to be
        self._scans = False  # there is no search module
        self.schema = self._schema(dim or 1)  # of any size: filters are checked by it
        self._around = lru_cache(maxsize=64)(partial(_around, self.index))

    def _schema(self, dim: int) -> Schema:
        vector = Vector("vector", dim, algorithm=self._vector.algorithm, dtype=self.dtype)
        tags = [Tag(name, case_sensitive=True) for name in OWN]
        return Schema([*tags, *self._fields, vector])

    # -- finding -----------------------------------------------------------------------------------

    @property
    def plain(self) -> bool:
        """Whether a lookup is a search and nothing else."""
        return self._same_embedder and not self._scans

    def search(
        self, vector: Any, k: int, model: str, narrowed: str = "", condition: Filter | None = None
    ) -> Command[list[Near]]:
        """Return the command that finds the entries of a model nearest to a vector, nearest first.

        `model` tells them from those of other scopes, too: one tag is found faster than two.
        `narrowed` is query text that is put before that of the condition.
        """
        text = f'@model:{{"{model}"}}{narrowed}'
        if condition is not None:
            text = f"{text} ({self.schema.check_filter(condition)})"
            blob = vector.tobytes()
            given = (self.index, text, "vector", blob, k, _RETURNED)
            return knn(*given, params=condition.params, decode=_rows)
        before, after = self._around(text, k)
        return Command((*before, vector.tobytes(), *after), _near)

    def nearest(
        self, vector: Any, k: int, model: str, narrowed: str, condition: Filter | None
    ) -> Op[list[Near] | OutOfReach]:
        """Return what `search` finds, or what there is without a search module."""
        if not self._scans:
            try:
                search = self.search(vector, k, model, narrowed, condition)
                found: list[Near] | OutOfReach = yield from self._asked(search)
            except IndexNotFoundError:
                self._forget()  # nothing was ever stored, or somebody flushed
                return []
            except SearchUnavailableError:
                self._scans = True
            else:
                return found
        if condition is not None or narrowed:
            raise UnsupportedError("filter and category need a server with a search module")
        return (yield from self._scanned(vector, k, model))

    def exact(self, key: str) -> Op[Near | OutOfReach]:
        """Return the one entry of a key."""
        try:
            fields = yield from self._asked(Command(("HMGET", key, "scope", "model", "entry")))
        except WrongTypeError:
            return Near(key.encode(), 0.0, {})
        return fields if fields is OUT_OF_REACH else _whole(key.encode(), 0.0, fields)

    def _asked(self, request: Command[Any]) -> Op[Any]:
        """Ask, and the first time see to it that the entries are by the same embedder."""
        if self._same_embedder:
            return (yield from self._upkeep.ask(request))
        # In a batch of its own: who may not read it learns nothing, and finds what there is.
        written = Batch([commands.get(MANIFESTS + self.index)], raise_errors=False)
        replies = yield from self._upkeep.ask(Batch([written, request]))
        if replies is OUT_OF_REACH:
            return replies
        [named], value = replies
        self._compare(named)
        return value

    def _compare(self, named: Any) -> None:
        embedder = "" if isinstance(named, Exception) else embedder_in(named)
        query.refuse_differences(self.index, embedder_differences(embedder, self._embedder))
        self._same_embedder = self._same_embedder or bool(embedder)

    def _scanned(self, vector: Any, k: int, model: str) -> Op[list[Near] | OutOfReach]:
        """Return the nearest entries by comparing all there are."""
        names = yield from self._asked(commands.zrange(self._used, -SCANNED))
        if names is OUT_OF_REACH or not names:
            return names
        keys = [self.prefix.encode() + name for name in names]
        fetch = [("HMGET", key, "scope", "model", "vector") for key in keys]
        replies = yield from self._upkeep.ask(Batch(fetch, raise_errors=False))
        if replies is OUT_OF_REACH:
            return replies
        tags = [self._owner.encode(), model.encode()]
        asked = vector.tobytes()
        there = [
            (key, found[2])
            for key, found in zip(keys, replies, strict=True)
            if isinstance(found, list)  # else a key of another kind
            and found[:2] == tags
            and found[2] is not None
            and len(found[2]) == len(asked)
        ]
        if not there:
            return []
        stored = from_blob(b"".join(blob for _, blob in there), self.dtype)
        matrix = np.asarray(stored, np.float64).reshape(len(there), -1)
        target = np.asarray(from_blob(asked, self.dtype), np.float64)
        lengths = np.linalg.norm(matrix, axis=1) * np.linalg.norm(target)
        with np.errstate(divide="ignore", invalid="ignore"):
            distances = 1 - matrix @ target / lengths
        first = np.argsort(distances, kind="stable")[:k].tolist()
        fetch = [("HMGET", there[row][0], "scope", "model", "entry") for row in first]
        replies = yield from self._upkeep.ask(Batch(fetch))
        if replies is OUT_OF_REACH:
            return replies
        return [
            _whole(there[row][0], float(distances[row]), fields)
            for row, fields in zip(first, replies, strict=True)
        ]

    # -- storing, deleting -------------------------------------------------------------------------

    def write(
        self,
        name: str,
        fields: dict[str, Any],
        px: int | None,
        now: float,
        noted: Sequence[Member] = (),
    ) -> Op[None]:
        """Replace an entry whole, and see to it that there is an index to find it by.

        `noted` is sent before it.
        """
        schema = self._schema(len(fields["vector"]))
        key = self.prefix + name
        before: list[Member] = []
        if not self._created:
            reachable = yield from self._ensure(schema)
            if not reachable:
                return
        if not self._scans:
            # Again: what is not indexed is not found, and somebody may have dropped it meanwhile.
            before.append(query.create_index(self.index, (self.all,), schema))
        entry = [commands.delete(key), commands.hset(key, fields)]
        if px is not None:
            entry.append(commands.pexpire(key, px))
        steps: list[Member] = [Batch(before, raise_errors=False), *noted, Batch(entry, atomic=True)]
        limit = min(self._limit or SCANNED, SCANNED) if self._scans else self._limit
        if limit is not None:
            steps.append(("ZADD", self._used, round(now * 1e6), name))
            steps.append(commands.zrange(self._used, 0, -limit - 1))
        replies = yield from self._upkeep.ask(Batch(steps))
        if replies is OUT_OF_REACH:
            return
        for failure in replies[0]:
            if not isinstance(failure, (bytes, NoneType, *_FORGIVEN)) and not passes(failure):
                raise failure
        if before and self._embedder and not isinstance(replies[0][-1], Exception):
            # Somebody had dropped the index, and with it what was written down of it.
            yield from self._name_embedder()
        if limit is not None and replies[-1]:
            yield from self._trim(limit, len(replies[-1]))

    def _trim(self, limit: int, surplus: int) -> Op[None]:
        """Delete the entries used least recently; those that have expired count first."""
        oldest = commands.zrange(self._used, 0, surplus + _LOOKED_AT)
        reply = yield from self._upkeep.ask(Batch([("ZCARD", self._used), oldest]))
        if reply is OUT_OF_REACH:
            return
        number, found = reply
        names = [name.decode() for name in found]
        # What somebody else has just trimmed is not there either, so it is not made up for.
        there = yield from self._upkeep.ask(Batch([("EXISTS", self.prefix + n) for n in names]))
        if there is OUT_OF_REACH:
            return
        gone = [name for name, exists in zip(names, there, strict=True) if not exists]
        live = [name for name, exists in zip(names, there, strict=True) if exists]
        surplus = max(number - limit - len(gone), 0)
        if gone or surplus:
            yield from self._upkeep.ask(self._removal([*gone, *live[:surplus]]))

    def _ensure(self, schema: Schema) -> Op[bool]:
        """Create the index, or see that it is the same; return whether the server was there."""
        asked = [
            query.create_index(self.index, (self.all,), schema),
            query.info(self.index),
            commands.get(MANIFESTS + self.index),
        ]
        replies = yield from self._upkeep.ask(Batch([Batch(asked, raise_errors=False)]))
        if replies is OUT_OF_REACH:
            return False
        created, info, named = replies[0]
        unknown = isinstance(info, NoPermissionError)  # to us: then it is taken as it is
        if isinstance(created, SearchUnavailableError):
            self._scans = True
        elif isinstance(created, Exception) and not isinstance(created, _FORGIVEN):
            raise created
        elif not isinstance(info, Exception):
            query.refuse_differences(self.index, schema.differences(info, (self.all,)))
        elif not unknown:
            raise created if isinstance(created, NoPermissionError) else info
        self._compare(named)
        self._created, self.dim = True, schema.vector.dim
        if not self._same_embedder:
            yield from self._name_embedder()
        return True

    def _name_embedder(self) -> Op[None]:
        """Write down whose vectors they are, where nobody has."""
        named = ("SET", MANIFESTS + self.index, manifest(self._embedder), "NX")
        yield from self._upkeep.ask(Batch([Batch([named], raise_errors=False)]))
        self._same_embedder = True

    def touch(self, name: str, now: float) -> None:
        """Take notice that an entry was used."""
        if self._limit is not None or self._scans:
            self._upkeep.tally.touch(self._used, name, now)

    def matching(self, condition: Filter) -> Op[list[str]]:
        """Return the names of the scope's entries that match."""
        wanted = f'@scope:{{"{self._owner}"}} ({self.schema.check_filter(condition)})'
        search = (
            *("FT.SEARCH", self.index, wanted, "NOCONTENT", *query.with_params(condition.params)),
            *("LIMIT", 0, query.MAX_RESULTS, *query.UNLIMITED),
        )
        try:
            keys = yield from Command(search, found_keys)
        except IndexNotFoundError:
            cursor: bytes | None = None
            while cursor != b"0":  # with nothing to find, there is nothing wrong
                pattern = f"{escape_glob(self.prefix)}*"
                cursor, found = yield from commands.scan(cursor or 0, pattern, 1000)
                if found:
                    raise
            return []
        start = self.prefix.encode()
        return [key[len(start) :].decode() for key in keys if key.startswith(start)]

    def remove(self, names: Sequence[str]) -> Op[int]:
        """Delete entries; return how many there were."""
        if not names:
            return 0
        deleted, _ = yield from self._removal(names)
        return int(deleted)

    def _removal(self, names: Sequence[str]) -> Batch:
        unlinked = commands.unlink([self.prefix + name for name in names])
        return Batch([unlinked, ("ZREM", self._used, *names)])

    def _forget(self) -> None:
        """Begin anew: there is no index, nor what was written down of it."""
        self._created = False
        self._same_embedder = not self._embedder

    def drop(self) -> Op[None]:
        """Drop the index, and what is written down of it."""
        self._forget()
        with suppress(IndexNotFoundError, SearchUnavailableError):
            yield from query.drop_index(self.index)
        yield from commands.unlink([MANIFESTS + self.index])


def _whole(key: bytes, distance: float, fields: list[bytes | None]) -> Near:
    scope, model, entry = fields
    if scope is None or model is None or entry is None:
        return Near(key, distance, None)
    return Near(key, distance, {b"scope": scope, b"model": model, b"entry": entry})


_VECTOR: Final = b"?"


def _around(index: str, text: str, k: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return what stands before and behind the vector in a search, which is always the same."""
    args = knn(index, text, "vector", _VECTOR, k, _RETURNED, decode=_rows).args
    at = args.index(_VECTOR)
    return args[:at], args[at + 1 :]


_DISTANCE: Final = DISTANCE.encode()


def _near(reply: Any) -> list[Near]:
    """Return the rows of a KNN; that of one row in RESP3, the usual one, on a short way."""
    if type(reply) is dict:
        try:
            [row] = reply[b"results"]
            key, fields = row[b"id"], row[b"extra_attributes"]
            if type(key) is bytes and type(fields) is dict:
                return [Near(key, float(fields[_DISTANCE]), fields)]
        except (KeyError, TypeError, ValueError):
            pass
    return _rows(search_reply(reply))


def _rows(reply: SearchReply) -> list[Near]:
    """Return the rows of a KNN; one that expired meanwhile may have a distance of anything."""
    try:
        return [
            Near(key, float(fields[_DISTANCE]), fields) if fields else Near(key, float("nan"), None)
            for key, fields, _ in reply.rows
        ]
    except (KeyError, ValueError):
        raise UnexpectedReplyError("FT.SEARCH: a row without a distance") from None
