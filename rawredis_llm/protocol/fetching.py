"""What the rows of a search lack where a node could not read the documents that it found.

Redis 8 looks a key up in the slot of the command's own key, which for a search module without a
coordinator is that of the index's name: such a module finds documents of other slots, and cannot
read them. Their fields are then read by HMGET, each from its own slot. Seen on Redis 8.2.3 with
RediSearch 2.10.5.

Must not import another ring.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import ReplyError, UnsupportedError
from .commands import as_mapping
from .scattered import search_options

_UNREAD = (
    "these nodes cannot read what to sort by: make the field SORTABLE (this search module reads no"
    " documents of other slots than its index's)"
)


class Fetch:
    """What there is to read for one FT.SEARCH, given by its arguments."""

    def __init__(self, args: Sequence[Any]) -> None:
        found = search_options(args)
        self._sorted, self._added, self._fields = found.sort, found.adds_keys, found.fields
        self._bare = found.bare
        self._wide = 1 + found.scores + found.keys + (not found.bare)  # parts of a row in RESP2
        self._keys: dict[Any, Any] = {}  # what rows without fields are sorted by

    def note(self, replies: Sequence[Any]) -> None:
        """Keep what the rows are sorted by: once they are joined, that has gone."""
        rows = [row for reply in replies for row in self._rows(reply, joined=False)]
        if self._sorted and rows and all(key is None for _, key, _ in rows):
            raise UnsupportedError(_UNREAD, command="FT.SEARCH")
        self._keys = {name: key for name, key, fields in rows if fields is None}

    def _rows(self, reply: Any, *, joined: bool) -> Iterator[tuple[Any, Any, Any]]:
        """Yield the id, the sort key and the fields of each row; no fields are (), unread None."""
        if isinstance(reply, dict):
            for row in reply[b"results"]:
                fields = () if self._bare else row.get(b"extra_attributes", ())
                yield row.get(b"id"), row.get(b"sortkey"), fields
        elif isinstance(reply, list):
            wide = self._wide - (joined and self._added)
            for at in range(1, len(reply), wide):
                row = reply[at : at + wide]
                key = None if joined and self._added else row[-1 if self._bare else -2]
                yield row[0], key, () if self._bare else row[-1]

    def lacking(self, reply: Any) -> list[bytes]:
        """Return the ids of the rows of a joined reply that have no fields."""
        return [name for name, _, fields in self._rows(reply, joined=True) if fields is None]

    def commands(self, key: bytes) -> list[tuple[Any, ...]]:
        """Return what reads one document: whether it is there, and its fields."""
        if self._fields is None:
            return [("EXISTS", key), ("HGETALL", key)]
        if any(field.startswith(b"$") for field, _ in self._fields):
            raise UnsupportedError("JSON documents cannot be fetched so", command="FT.SEARCH")
        names = [field for field, _ in self._fields if field != self._sorted]
        return [("EXISTS", key), ("HMGET", key, *names) if names else ("ECHO", b"")]

    def filled(self, reply: Any, found: dict[bytes, list[Any]]) -> Any:
        """Return the reply with the fields that were found; one that has gone stays without."""
        maps = isinstance(reply, dict)
        for name, (there, values) in found.items():
            for refusal in (there, values):
                if isinstance(refusal, ReplyError):
                    return refusal
            found[name] = [self._named(name, values) if there else None]
        if maps:
            for row in reply[b"results"]:
                if row.get(b"id") in found:
                    row[b"extra_attributes"] = found[row[b"id"]][0]
            return reply
        wide = self._wide - self._added
        for at in range(1, len(reply), wide):
            if reply[at] in found:
                pairs = found[reply[at]][0]
                flat = None if pairs is None else [part for pair in pairs.items() for part in pair]
                reply[at + wide - 1] = flat
        return reply

    def _named(self, name: bytes, values: Any) -> dict[bytes, Any]:
        key = self._keys.get(name)
        told = {self._sorted: key[1:]} if key is not None and self._sorted else {}
        if self._fields is None:
            return {**told, **as_mapping(values)}
        others = iter(values if isinstance(values, list) else ())
        pairs = [
            (alias, told.get(field) if field == self._sorted else next(others))
            for field, alias in self._fields
        ]
        return {alias: value for alias, value in pairs if value is not None}
