"""Replies of the search module as values, from RESP2 and RESP3 alike; an unknown shape raises.

Nothing here guesses: a reply that is not of a form written down below is an UnexpectedReplyError,
never "0 found".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from types import NoneType
from typing import Any, NamedTuple

from ..errors import UnexpectedReplyError
from ..protocol.commands import as_mapping


class SearchReply(NamedTuple):
    """Rows are (key, fields, score); fields are None where the document expired meanwhile.

    `score` is None unless it was asked for.
    """

    total: int
    rows: list[tuple[bytes, dict[bytes, bytes] | None, float | None]]
    warnings: list[str]


def search_reply(reply: Any, *, scores: bool = False) -> SearchReply:
    """Return an FT.SEARCH reply with contents, and with scores if they were asked for.

    RESP3: `{total_results, results: [{id, score, extra_attributes}], warning}`;
    RESP2: `[total, id, score, [field, value, ...] or None, ...]`, which has no warnings.
    """
    if isinstance(reply, dict):
        try:
            warnings, results = _warnings(reply), reply[b"results"]
            rows = [
                (row[b"id"], row[b"extra_attributes"], row[b"score"] if scores else None)
                for row in results
                if b"id" in row or not warnings  # a search that timed out may leave stumps
            ]
        except (KeyError, TypeError):
            raise _unknown("FT.SEARCH", reply) from None
        if type(results) is list:
            whole = SearchReply(reply.get(b"total_results", -1), rows, warnings)
            return _checked("FT.SEARCH", reply, whole, scores=scores)
    width = 3 if scores else 2
    kinds = set(map(type, reply[width::width])) if isinstance(reply, list) else {dict}
    if kinds <= {list, NoneType} and len(reply) % width == 1:
        try:
            ranks = map(float, reply[2::3]) if scores else repeat(None)
            rows = [
                (key, None if fields is None else as_mapping(fields), score)
                for key, fields, score in zip(  # noqa: B905 - the ranks may be endless
                    reply[1::width], reply[width::width], ranks
                )
            ]
        except (TypeError, ValueError):
            raise _unknown("FT.SEARCH", reply) from None
        return _checked("FT.SEARCH", reply, SearchReply(reply[0], rows, []), scores=scores)
    raise _unknown("FT.SEARCH", reply)


def _checked(command: str, reply: Any, found: SearchReply, *, scores: bool) -> SearchReply:
    """Return a reply whose parts are of their types; raise for another."""
    columns = zip(*found.rows, strict=True)
    rank = {float if scores else NoneType}
    allowed: tuple[set[type], ...] = ({bytes}, {dict, NoneType}, rank)
    right = all(set(map(type, one)) <= kinds for one, kinds in zip(columns, allowed, strict=False))
    if type(found.total) is not int or found.total < 0 or not right:
        raise _unknown(command, reply)
    return found


class AggregateReply(NamedTuple):
    """Rows as maps of bytes; `cursor` is 0 at the end, and where none was asked for."""

    rows: list[dict[bytes, Any]]
    warnings: list[str]
    cursor: int


def aggregate_reply(reply: Any, *, cursor: bool = False) -> AggregateReply:
    """Return an FT.AGGREGATE reply: RESP3 a map, RESP2 `[total, [name, value, ...], ...]`.

    With a cursor it is `[that, cursor]`.
    """
    position = 0
    if cursor:
        if not isinstance(reply, list) or len(reply) != 2 or not isinstance(reply[1], int):
            raise _unknown("FT.AGGREGATE", reply)
        reply, position = reply
    try:
        if isinstance(reply, dict):
            rows = [row[b"extra_attributes"] for row in reply[b"results"]]
            if type(reply[b"results"]) is list and set(map(type, rows)) <= {dict}:
                return AggregateReply(rows, _warnings(reply), position)
        elif type(reply[0]) is int and set(map(type, reply[1:])) <= {list}:
            return AggregateReply([as_mapping(row) for row in reply[1:]], [], position)
    except (KeyError, TypeError, IndexError):
        pass
    raise _unknown("FT.AGGREGATE", reply)


def hybrid_reply(reply: Any) -> SearchReply:
    """Return an FT.HYBRID reply: flat rows, in which the key and the score stand among the fields.

    RESP3 a map, RESP2 the same as a flat list: `total_results, results, warnings, ...`.
    """
    try:
        whole = as_mapping(reply)
        rows: list[Any] = []
        for found in whole[b"results"]:
            row = dict(as_mapping(found))
            rows.append((row.pop(b"__key"), row, float(row.pop(b"__score"))))
        result = SearchReply(whole[b"total_results"], rows, _warnings(whole, b"warnings"))
    except (KeyError, TypeError, ValueError):
        raise _unknown("FT.HYBRID", reply) from None
    names = {type(name) for _, row, _ in rows for name in row}
    if type(whole[b"results"]) is not list or not names <= {bytes}:
        raise _unknown("FT.HYBRID", reply)
    return _checked("FT.HYBRID", reply, result, scores=True)


def profile_reply(reply: Any) -> dict[str, Any]:
    """Return what FT.PROFILE says of the work, as nested dicts; times are in milliseconds."""
    profile = None
    if isinstance(reply, dict):
        profile = reply.get(b"profile", reply.get(b"Profile"))
    elif isinstance(reply, list) and len(reply) == 2:
        profile = reply[1]
    if not isinstance(profile, (dict, list)):
        raise _unknown("FT.PROFILE", reply)
    tree = _tree(profile)
    return tree if isinstance(tree, dict) else {"profile": tree}


def _tree(node: Any) -> Any:
    """Return nested maps with texts for keys; in RESP2 a map is a list of pairs, or flat."""
    if isinstance(node, dict):
        return {_text(key): _tree(value) for key, value in node.items()}
    if isinstance(node, list):
        named = [part for part in node if isinstance(part, list) and _named(part)]
        if node and named == node and len({pair[0] for pair in node}) == len(node):
            return {_text(name): _tree(rest[0] if len(rest) == 1 else rest) for name, *rest in node}
        if _named(node) and b"Child iterators" in node:  # its children stand behind it
            at = node.index(b"Child iterators")
            return _tree(node[:at]) | {
                "Child iterators": [_tree(child) for child in node[at + 1 :]]
            }
        if _named(node) and len(node) % 2 == 0:
            return {_text(k): _tree(v) for k, v in zip(node[::2], node[1::2], strict=True)}
        return [_tree(part) for part in node]
    if isinstance(node, bytes):
        text = _text(node)
        try:
            return float(text)
        except ValueError:
            return text
    return node


def _named(pair: list[Any]) -> bool:
    return bool(pair) and isinstance(pair[0], bytes)


def total_results(reply: Any) -> int:
    """Return how many documents an FT.SEARCH found."""
    plain = isinstance(reply, list) and reply
    total = reply.get(b"total_results") if isinstance(reply, dict) else plain and plain[0]
    if type(total) is not int:
        raise _unknown("FT.SEARCH", reply)
    return total


def found_keys(reply: Any) -> list[bytes]:
    """Return the keys in the reply to an FT.SEARCH without contents."""
    keys: Any = None
    if isinstance(reply, dict) and type(reply.get(b"results")) is list:
        total_results(reply)
        _warnings(reply)
        keys = [row.get(b"id") if type(row) is dict else None for row in reply[b"results"]]
    elif isinstance(reply, list) and reply and type(reply[0]) is int:
        keys = reply[1:]
    if keys is None or not set(map(type, keys)) <= {bytes}:
        raise _unknown("FT.SEARCH", reply)
    found: list[bytes] = keys
    return found


def _warnings(reply: dict[bytes, Any], name: bytes = b"warning") -> list[str]:
    warnings = reply.get(name, [])
    if type(warnings) is not list or not set(map(type, warnings)) <= {bytes}:
        raise _unknown("a search", reply)
    return [_text(text) for text in warnings]


@dataclass(frozen=True)
class IndexInfo:
    """What FT.INFO says of an index.

    `failures` counts documents that are in the keyspace and not in the index; `last_failure` says
    why for the last of them, `last_failed_key` which it was. `indexing` is True while the index is
    being built from existing keys: until then, searches miss documents without a warning;
    `percent_indexed` is from 0 to 1. `stopwords` is None where the server's default list is used.
    """

    name: str
    prefixes: list[str]
    on: str
    language: str | None
    stopwords: list[str] | None
    filter_expression: str | None
    attributes: list[dict[str, str]]
    documents: int
    indexing: bool
    percent_indexed: float
    failures: int
    last_failure: str
    last_failed_key: str
    memory_mb: float
    raw: dict[str, Any]

    @property
    def whole(self) -> bool:
        """Whether all documents that were there before the index are in it."""
        return not self.indexing and self.percent_indexed >= 1.0


def index_info(reply: Any) -> IndexInfo:
    """Return an FT.INFO reply, which is a map in RESP3 and a flat list in RESP2."""
    raw = {_text(key): value for key, value in as_mapping(reply).items()}
    try:
        definition = {_text(k): v for k, v in as_mapping(raw["index_definition"]).items()}
        errors = raw.get("Index Errors")
        problems = {_text(k): v for k, v in as_mapping(errors).items()} if errors else {}
        last, key = (_text(problems.get(f"last indexing error{which}", b"")) for which in _LAST)
        language, only = definition.get("default_language"), definition.get("filter")
        stopwords = raw.get("stopwords_list")
        return IndexInfo(
            name=_text(raw["index_name"]),
            prefixes=[_text(prefix) for prefix in definition["prefixes"]],
            on=_text(definition["key_type"]).lower(),
            language=None if language is None else _text(language).lower(),
            stopwords=None if stopwords is None else [_text(word) for word in stopwords],
            filter_expression=None if only is None else _text(only),
            attributes=[_attribute(attribute) for attribute in raw["attributes"]],
            documents=int(raw["num_docs"]),
            indexing=bool(int(raw["indexing"])),
            percent_indexed=float(raw["percent_indexed"]),
            failures=int(raw["hash_indexing_failures"]),
            last_failure="" if last == "N/A" else last,
            last_failed_key="" if key == "N/A" else key,
            memory_mb=float(raw["total_index_memory_sz_mb"]),
            raw=raw,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnexpectedReplyError(f"FT.INFO: no usable {error}") from None


_LAST = ("", " key")


def _attribute(reply: Any) -> dict[str, str]:
    """Return one field's description; words without a value (flags) stand for themselves."""
    if isinstance(reply, dict):
        flags = reply.get(b"flags", [])
        pairs = {_text(k).lower(): _text(v) for k, v in reply.items() if k != b"flags"}
    else:
        # RESP2: three pairs that every field has, then pairs and, among them, flags: single words.
        pairs = {_text(k).lower(): _text(v) for k, v in zip(reply[:6:2], reply[1:6:2], strict=True)}
        flags = []
        rest = iter(reply[6:])
        for part in rest:
            if part in _FLAGS:
                flags.append(part)
            else:
                pairs[_text(part).lower()] = _text(next(rest, b""))
    return pairs | {_text(flag).lower(): "yes" for flag in flags}


_FLAGS = {b"CASESENSITIVE", b"SORTABLE", b"UNF", b"NOSTEM", b"NOINDEX", b"WITHSUFFIXTRIE"} | {
    b"INDEXEMPTY",
    b"INDEXMISSING",
}


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _unknown(command: str, reply: Any) -> UnexpectedReplyError:
    return UnexpectedReplyError(f"{command}: a reply of unknown shape ({type(reply).__name__})")
