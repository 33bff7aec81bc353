"""What the nodes of a cluster said to one FT.* command, made one reply: see `scattered`.

Every function takes the replies of all nodes, none of them an error, and may take them apart. A
shape that is not known raises AttributeError, LookupError, TypeError or ValueError.

Must not import another ring.
"""

from __future__ import annotations

import math
from binascii import crc_hqx
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain, product
from operator import itemgetter
from typing import Any, Final, NamedTuple

from ..errors import IndexMismatchError
from .commands import as_mapping
from .slots import SLOTS, key_slot


def local_name(name: bytes, slot: int) -> bytes:
    """Return the name of an index on the node that serves `slot`: `name{tag}`, always the same.

    Raises ValueError for a name that holds a `{`: it may be a hash tag's, which has one slot.
    """
    if b"{" in name:
        raise ValueError("an index on every node must not have a { in its name")
    return b"%b{~%b}" % (name, _tags()[slot])


def asked_name(name: bytes) -> bytes:
    """Return the name that `local_name` made this one of; another name as it is."""
    asked, brace, _ = name.partition(b"{~")
    if not brace or b"{" in asked or local_name(asked, key_slot(name)) != name:
        return name
    return asked


@cache
def _tags() -> dict[int, bytes]:
    """Return a tag for each slot. Five of these letters are enough to meet all (0.02 s, once)."""
    few, many = b"hijklmno", b"HIJKLMNOhijklmno"  # 16 bits, by which the checksum meets each slot
    tags = map(bytes, product(few, many, few, few, few))
    start = crc_hqx(b"~", 0)
    return {crc_hqx(tag, start) % SLOTS: tag for tag in tags}


class Page(NamedTuple):
    """Which rows are wanted, how they are told apart in RESP2, and what they are merged by."""

    start: int
    stop: int
    most: int | None  # the K of a KNN
    by: bytes  # sortkey or score
    descending: bool
    added: bool  # whether `by` was not asked for
    columns: list[bytes]  # of a row in RESP2


def searched(page: Page, replies: list[Any]) -> Any:
    """Return one FT.SEARCH reply."""
    mapped = _are_maps(replies)
    totals = [reply[b"total_results" if mapped else 0] for reply in replies]
    found = [row for reply in replies for row in (_in_map if mapped else _in_list)(page, reply)]
    ranked = [row for row in found if row[0] is not None]
    ranked.sort(key=itemgetter(0), reverse=page.descending)  # which keeps the order of equals
    once: dict[Any, Any] = {}
    for _, key, row in chain(ranked, (row for row in found if row[0] is None)):
        once.setdefault(key, row)  # one that is on its way to another node may be on both
    total = sum(totals) - (len(found) - len(once))
    stop = page.stop
    if page.most is not None:
        total, stop = min(total, page.most), min(stop, page.most)
    rows = list(once.values())[page.start : stop]
    if not mapped:
        return [total, *chain.from_iterable(rows)]
    return {**_warned(replies), b"total_results": total, b"results": rows}


def _in_map(page: Page, reply: dict[bytes, Any]) -> Iterator[tuple[Any, Any, Any]]:
    """Yield the rank, the key and the row of each in RESP3; a search cut short may leave stumps."""
    for row in reply[b"results"]:
        rank = _rank(row.get(page.by))
        if page.added:
            row.pop(page.by, None)
        yield rank, row.get(b"id", id(row)), row


def _in_list(page: Page, reply: list[Any]) -> Iterator[tuple[Any, Any, Any]]:
    """Yield the rank, the key and the parts of each row in RESP2."""
    width, at = len(page.columns), page.columns.index(page.by)
    if len(reply) % width != 1:
        raise ValueError
    for start in range(1, len(reply), width):
        row = reply[start : start + width]
        rank = _rank(row[at])
        if page.added:
            del row[at]
        yield rank, row[0], row


def _rank(told: Any) -> tuple[int, Any] | None:
    """Return what a score or a sort key (`#1.5`, `$text`) is compared by; None comes last."""
    if told is None:
        return None
    kind = told[:1] if isinstance(told, bytes) else b""
    if kind == b"$":
        return 1, told
    number = float(told[1:] if kind == b"#" else told)
    return None if math.isnan(number) else (0, number)


def _are_maps(replies: list[Any]) -> bool:
    """Return whether replies are RESP3's maps or RESP2's lists; raise TypeError for a mixture."""
    kinds = set(map(type, replies))
    if kinds not in ({dict}, {list}):
        raise TypeError
    return kinds == {dict}


def _warned(replies: list[dict[bytes, Any]]) -> dict[bytes, Any]:
    """Return the first reply with the warnings of all, each once."""
    warnings = [one for reply in replies for one in reply.get(b"warning", ())]
    return {**replies[0], b"warning": list(dict.fromkeys(warnings))}


def counted(replies: list[Any]) -> Any:
    """Return one reply of a count: one row of one value, or none where nothing was found."""
    mapped = _are_maps(replies)
    full = [reply for reply in replies if (reply[b"results"] if mapped else reply[1:])]
    if not full:
        return _warned(replies) if mapped else replies[0]
    if not mapped:
        total = sum(int(count) for _, [_, count] in full)
        return [1, [full[0][1][0], b"%d" % total]]
    rows = [row for reply in full for row in reply[b"results"]]
    total = sum(int(count) for row in rows for count in row[b"extra_attributes"].values())
    [name] = rows[0][b"extra_attributes"]
    row = {**rows[0], b"extra_attributes": {name: b"%d" % total}}
    return {**_warned(replies), b"total_results": 1, b"results": [row]}


def agreed(replies: list[Any]) -> Any:
    """Return what all nodes said."""
    if any(reply != replies[0] for reply in replies):
        raise ValueError
    return replies[0]


def union(replies: list[Any]) -> list[Any]:
    """Return what any node said, each once, in order."""
    return sorted({value for reply in replies for value in reply})


def listed(replies: list[Any]) -> list[bytes]:
    """Return the names of the indexes of any node, as they were asked for."""
    return sorted(set(map(asked_name, union(replies))))


_SUMMED: Final = (b"num_docs", b"num_records", b"hash_indexing_failures", b"indexing failures")
_FOLDS: Final[dict[bytes, Callable[[list[Any]], Any]]] = {
    **dict.fromkeys(_SUMMED, sum),
    b"indexing": max,
    b"cleaning": max,
    b"percent_indexed": min,
}
"""How a number of FT.INFO is made of the nodes' (and `..._mb` by sum); others are the first's."""


def described(replies: list[Any]) -> Any:
    """Return one FT.INFO reply: of all nodes where that means something, else of the first."""
    mapped = _are_maps(replies)
    nodes = list(map(as_mapping, replies))
    for part in (b"index_definition", b"attributes"):
        if any(node[part] != nodes[0][part] for node in nodes):
            raise IndexMismatchError(f"the nodes' indexes differ in {part.decode()}")
    whole = _folded(nodes)
    whole[b"index_name"] = asked_name(whole[b"index_name"])
    if b"Index Errors" in whole:
        problems = [as_mapping(node[b"Index Errors"]) for node in nodes]
        problems.sort(key=lambda one: not one[b"indexing failures"])  # which says why goes first
        told = _folded(problems)
        whole[b"Index Errors"] = told if mapped else list(chain.from_iterable(told.items()))
    return whole if mapped else list(chain.from_iterable(whole.items()))


def _folded(nodes: list[dict[Any, Any]]) -> dict[Any, Any]:
    """Return a map of numbers made of the nodes'; in RESP2 most of them are texts, and stay so."""
    whole = dict(nodes[0])
    for name, first in whole.items():
        fold = sum if name.endswith(b"_mb") else _FOLDS.get(name)
        if fold and isinstance(first, bytes):
            whole[name] = b"%.17g" % fold([float(node[name]) for node in nodes])
        elif fold:
            whole[name] = fold([node[name] for node in nodes])
    return whole
