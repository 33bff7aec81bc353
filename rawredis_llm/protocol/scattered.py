"""One FT.* command asked of every node of a cluster, and one reply made of theirs.

A search module without a coordinator (RediSearch 2) indexes on each node the documents of that node
alone, and a cluster routes FT.* by the slot of the index's name. So each node has an index of its
own, under a name whose slot it serves (`local_name`); all are asked, and their replies are merged.

Rules:

1. What is joined is what one server with all documents would say, in the server's own shape. What
   cannot be joined rightly is an UnsupportedError before anything is sent.
2. No partial answer: an error of any node is the reply (returned, as replies are, not raised).
   Two are none beside an OK, because they say that a command which once failed midway now has
   healed: FT.CREATE's "already exists", FT.DROPINDEX's "no such index".
3. Rows of equal rank stand in the order of the nodes, and on a node in its own order. To sort them
   by their keys would look better and be wrong: a page ends somewhere among equals, and the next
   would begin with others.
4. Scores of text are local: a node knows only how rare a word is among its own documents.

Must not import another ring.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Final, NamedTuple

from ..errors import (
    IndexExistsError,
    IndexNotFoundError,
    ReplyError,
    UnexpectedReplyError,
    UnsupportedError,
    reply_error,
)
from .joining import Page, agreed, counted, described, listed, local_name, searched, union
from .vetting import command_name

__all__ = ["Scattered", "local_name", "scatter"]

MAX_ROWS: Final = 1_000_000
"""The server's limit of LIMIT."""


class Scattered:
    """What each node is sent, and how their replies become one."""

    __slots__ = ("_args", "_join", "_names", "_nodes", "command")

    def __init__(
        self,
        command: str,
        args: Sequence[Any],
        names: Sequence[bytes],
        nodes: int,
        join: Callable[[list[Any]], Any],
    ) -> None:
        self.command = command
        self._args = tuple(args)
        self._names = names
        self._nodes = nodes
        self._join = join

    def args_for(self, slot: int) -> tuple[Any, ...]:
        """Return the arguments for the node that serves `slot`.

        Of a node's slots always the same one: it is in the name that the node's index has.
        """
        names = (local_name(name, slot) for name in self._names)
        return (self._args[0], *names, *self._args[1 + len(self._names) :])

    def join(self, replies: list[Any], protocol: int | None = None) -> Any:  # noqa: ARG002 - see below
        """Return the one reply; a ReplyError (not raised) if that is what any node said.

        Whether they are RESP2's or RESP3's is seen by their types, so `protocol` need not be
        given. They are taken apart. Raises UnexpectedReplyError for a shape that is not known,
        and IndexMismatchError where the nodes have different indexes under this name (FT.INFO).
        """
        if len(replies) != self._nodes:
            raise ValueError(f"{len(replies)} replies, but {self._nodes} nodes were asked")
        refused = [one for one in replies if isinstance(one, Exception)]
        serious = [one for one in refused if not self._healed(one)]
        if serious or len(refused) == len(replies):
            return (serious or refused)[0]
        try:
            return self._join([one for one in replies if not isinstance(one, Exception)])
        except (AttributeError, LookupError, TypeError, ValueError):
            raise UnexpectedReplyError("replies of unknown shapes", command=self.command) from None

    def _healed(self, error: Exception) -> bool:
        """Return whether an error is none beside an OK; the search module's tell it by a text."""
        kind = _HEALED.get(self.command)
        if kind is None or not isinstance(error, ReplyError):
            return False
        return isinstance(reply_error(error.message, self.command), kind)


def scatter(args: Sequence[Any], nodes: int) -> Scattered:
    """Return an FT.* command (its name first) as one for each of `nodes` nodes.

    Raises UnsupportedError for what cannot be asked so, ValueError for arguments that no server
    would take, and for an index whose name holds a `{`.
    """
    command = command_name(args)
    if nodes < 1:
        raise ValueError("nodes: at least one")
    if command not in _JOINS:
        raise _unsupported(command, _WHY_NOT.get(command, "it is none of those that can be joined"))
    count = _NAMES.get(command, 1)
    names = [_word(arg) for arg in args[1 : 1 + count]]
    if len(names) < count or not all(names):
        raise ValueError(f"{command} takes the name of an index")
    for name in names:
        local_name(name, 0)  # refuses what has no local name
    join = _JOINS[command]
    if command == "FT.SEARCH":
        args, page = _search(args)
        join = partial(searched, page)
    elif command == "FT.AGGREGATE":
        _require_count(args)
    return Scattered(command, args, names, nodes, join)


def _unsupported(command: str, why: str) -> UnsupportedError:
    return UnsupportedError(f"{why} (each node is asked for itself)", command=command)


def _word(arg: Any) -> bytes:
    """Return an argument that may be a word or a whole number; b"" for any other."""
    if isinstance(arg, bytes):
        return arg
    if isinstance(arg, str):
        return arg.encode()
    try:
        return b"%d" % operator.index(arg)
    except TypeError:
        return b""


def _whole(arg: Any) -> int:
    word = _word(arg)
    if not word.isdigit():
        raise ValueError("a whole number of 0 or more is missing in the query")
    return int(word)


# --- the arguments of a query


_COUNTED: Final = -1
_TAKES: Final[dict[bytes, int]] = {
    **dict.fromkeys(b"NOCONTENT VERBATIM NOSTOPWORDS WITHSCORES WITHSORTKEYS INORDER".split(), 0),
    **dict.fromkeys(b"SUMMARIZE HIGHLIGHT".split(), 0),  # what belongs to them follows as options
    **dict.fromkeys(b"SLOP TIMEOUT LANGUAGE EXPANDER SCORER PAYLOAD DIALECT FORMAT".split(), 1),
    **dict.fromkeys(b"SORTBY FRAGS LEN SEPARATOR".split(), 1),
    **dict.fromkeys(b"LIMIT TAGS".split(), 2),
    b"FILTER": 3,
    b"GEOFILTER": 5,
    **dict.fromkeys(b"INKEYS INFIELDS RETURN PARAMS FIELDS".split(), _COUNTED),
}
"""How many arguments an option of FT.SEARCH has; those that are not here are not understood."""

_ONCE: Final = set(b"LIMIT SORTBY RETURN PARAMS GROUPBY REDUCE".split())


def _options(command: str, args: Sequence[Any], takes: dict[bytes, int]) -> dict[bytes, slice]:
    """Return the options behind a query, each with where that stands which belongs to it."""
    found: dict[bytes, slice] = {}
    at = 3
    while at < len(args):
        word = _word(args[at]).upper()
        if word not in takes or (word in found and word in _ONCE):
            raise _unsupported(command, f"argument {at} is no option that can be joined")
        size = takes[word]
        at += 1
        if size == _COUNTED:
            size = 1 + _whole(args[at] if at < len(args) else b"")
        elif word == b"SORTBY" and at + 1 < len(args) and _word(args[at + 1]).upper() in _WAYS:
            size = 2
        found[word] = slice(at, at + size)
        at += size
    if at > len(args):
        raise ValueError(f"{command}: arguments are missing at its end")
    return found


def _order(args: Sequence[Any], options: dict[bytes, slice]) -> tuple[bytes, bool]:
    """Return what a query sorts by, b"" for nothing, and whether downwards."""
    name, way = (*map(_word, args[options.get(b"SORTBY", slice(0))]), b"", b"")[:2]
    return name, way.upper() == b"DESC"


_WAYS: Final = (b"ASC", b"DESC")
_KNN: Final = re.compile(
    rb"=>\s*\[\s*KNN\s+(?P<k>\$?\w+)\s+@(?P<field>\S+)\s+\$\w+(?P<how>[^\]]*)\]"
    rb"\s*(?:=>\s*\{(?P<named>[^}]*)\}\s*)?$",
    re.IGNORECASE,
)
_KNN_BEGINS: Final = re.compile(rb"\[\s*KNN\b", re.IGNORECASE)
_QUOTED: Final = re.compile(rb'"(?:\\.|[^"\\])*"|\\.', re.DOTALL)
_ALIAS: Final = re.compile(rb"(?:\sAS\s+|\$YIELD_DISTANCE_AS\s*:\s*)([^\s;]+)", re.IGNORECASE)


def _knn(command: str, query: Any) -> re.Match[bytes] | None:
    """Return the KNN part of a query, where it has one."""
    text = _word(query)
    if not _KNN_BEGINS.search(text):
        return None
    text = _QUOTED.sub(b'""', text)  # what a user named like it is none
    found = _KNN.search(text)
    if found is None and _KNN_BEGINS.search(text):
        raise _unsupported(command, "its KNN is not written as it is known here")
    return found


def _nearest(args: Sequence[Any], options: dict[bytes, slice]) -> int | None:
    """Return the K of a KNN, None for another query; raise for a KNN in another order."""
    found = _knn("FT.SEARCH", args[2])
    if found is None:
        return None
    named = _ALIAS.search(found["how"] + b" " + (found["named"] or b""))
    alias = named[1] if named else b"__%b_score" % found["field"]
    if _order(args, options) != (alias, False):
        raise _unsupported("FT.SEARCH", "a KNN is joined by its distance: SORTBY that, ascending")
    if not found["k"].startswith(b"$"):
        return _whole(found["k"])
    pairs = args[options.get(b"PARAMS", slice(0))][1:]
    params = {_word(name): value for name, value in zip(pairs[::2], pairs[1::2], strict=False)}
    return _whole(params.get(found["k"][1:], b""))


# --- FT.SEARCH


def _search(args: Sequence[Any]) -> tuple[Sequence[Any], Page]:
    """Return an FT.SEARCH by which the nodes tell what to merge by, and what is wanted of it."""
    if len(args) < 3:
        raise ValueError("FT.SEARCH takes an index and a query")
    options = _options("FT.SEARCH", args, _TAKES)
    most = _nearest(args, options)
    limit = options.get(b"LIMIT")
    start, count = map(_whole, args[limit]) if limit else (0, 10)
    if start + count > MAX_ROWS:
        raise _unsupported("FT.SEARCH", f"LIMIT: {MAX_ROWS} rows, with those before, are the most")
    name, descending = _order(args, options)
    wanted = b"WITHSORTKEYS" if name else b"WITHSCORES"
    told = {*options, wanted}
    bare = b"NOCONTENT" in told or (b"RETURN" in told and not _whole(args[options[b"RETURN"]][0]))
    shown = (True, b"WITHSCORES" in told, b"WITHSORTKEYS" in told, not bare)
    columns = (b"id", b"score", b"sortkey", b"fields")
    page = Page(
        start=start,
        stop=start + count,
        most=most,
        by=b"sortkey" if name else b"score",
        descending=descending if name else True,
        added=wanted not in options,
        columns=[column for column, is_shown in zip(columns, shown, strict=True) if is_shown],
    )
    sent = list(args)
    if limit and start and count:
        sent[limit] = (0, start + count)
    if page.added:
        sent.insert(3, wanted)  # right behind the query, where no option can swallow it
    return sent, page


class SearchOptions(NamedTuple):
    """What an FT.SEARCH shows of each row, as the caller wrote it.

    `sort` is what it sorts by (b"": nothing), `fields` are (field, name) pairs of RETURN, None for
    all; `bare` rows have none. `keys`: whether the nodes tell sort keys, `adds_keys`: unasked.
    """

    sort: bytes
    fields: list[tuple[bytes, bytes]] | None
    bare: bool
    scores: bool
    keys: bool
    adds_keys: bool


def search_options(args: Sequence[Any]) -> SearchOptions:
    """Return what an FT.SEARCH that `scatter` takes shows of each row."""
    options = _options("FT.SEARCH", args, _TAKES)
    sort, _ = _order(args, options)
    told = [_word(arg) for arg in args[options.get(b"RETURN", slice(0))]]
    fields: list[tuple[bytes, bytes]] | None = None
    if told:
        fields = []
        words = iter(told[1:])
        for word in words:
            if word.upper() == b"AS" and fields:
                fields[-1] = (fields[-1][0], next(words, b""))
            else:
                fields.append((word, word))
    wanted = b"WITHSORTKEYS" if sort else b"WITHSCORES"
    return SearchOptions(
        sort=sort,
        fields=fields,
        bare=b"NOCONTENT" in options or fields == [],
        scores=b"WITHSCORES" in options or not sort,
        keys=bool(sort) or b"WITHSORTKEYS" in options,
        adds_keys=wanted not in options,
    )


_COUNTING: Final = {
    **{word: _TAKES[word] for word in (b"VERBATIM", b"TIMEOUT", b"PARAMS", b"DIALECT")},
    b"GROUPBY": 1,
    b"REDUCE": 2,
    b"AS": 1,
}


def _require_count(args: Sequence[Any]) -> None:
    """Raise UnsupportedError for an FT.AGGREGATE that does more than count."""
    if len(args) < 3:
        raise ValueError("FT.AGGREGATE takes an index and a query")
    why = "of the aggregations only GROUPBY 0 REDUCE COUNT 0 can be joined"
    if _knn("FT.AGGREGATE", args[2]):
        raise _unsupported("FT.AGGREGATE", f"{why}, and not of a KNN")
    asked = [_word(arg).upper() for arg in args[3:]]
    options = _options("FT.AGGREGATE", args, _COUNTING)
    at = options.get(b"GROUPBY", slice(0)).start
    if at is None or asked[at - 3 : at + 1] != [b"0", b"REDUCE", b"COUNT", b"0"]:
        raise _unsupported("FT.AGGREGATE", why)


_JOINS: Final[dict[str, Callable[..., Any]]] = {
    "FT.AGGREGATE": counted,
    "FT.ALIASADD": agreed,
    "FT.ALIASDEL": agreed,
    "FT.ALIASUPDATE": agreed,
    "FT.ALTER": agreed,
    "FT.CREATE": agreed,
    "FT.DROPINDEX": agreed,
    "FT.EXPLAIN": itemgetter(0),
    "FT.INFO": described,
    "FT.SEARCH": searched,
    "FT.TAGVALS": union,
    "FT._LIST": listed,
}
_NAMES: Final = {"FT._LIST": 0, "FT.ALIASADD": 2, "FT.ALIASUPDATE": 2}
"""How many names of indexes stand behind the command, where it is not one."""

_HEALED: Final[dict[str, type[ReplyError]]] = {
    "FT.CREATE": IndexExistsError,
    "FT.DROPINDEX": IndexNotFoundError,
}
_WHY_NOT: Final = {
    "FT.CURSOR": "a cursor lives on the node that opened it",
    "FT.HYBRID": "a place in one node's ranking says nothing of another's",
    "FT.PROFILE": "a profile is one node's work",
}
