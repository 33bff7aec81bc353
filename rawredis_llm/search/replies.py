"""Replies of the search module as values, from RESP2 and RESP3 alike; an unknown shape raises.

Nothing here guesses: a reply that is not of a form written down below is an UnexpectedReplyError,
never "0 found".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import UnexpectedReplyError
from ..protocol.commands import as_mapping


class SearchReply(NamedTuple):
    """Rows are (key, fields); fields are None where the document expired during the search."""

    total: int
    rows: list[tuple[bytes, dict[bytes, bytes] | None]]
    warnings: list[str]


def search_reply(reply: Any) -> SearchReply:
    """Return an FT.SEARCH reply with contents.

    RESP3: `{total_results, results: [{id, extra_attributes}], warning}`;
    RESP2: `[total, id, [field, value, ...] or None, ...]`, which has no warnings.
    """
    if isinstance(reply, dict):
        try:
            rows = [(row[b"id"], row[b"extra_attributes"]) for row in reply[b"results"]]
            return SearchReply(reply[b"total_results"], rows, _warnings(reply))
        except (KeyError, TypeError):
            raise _unknown("FT.SEARCH", reply) from None
    if isinstance(reply, list) and len(reply) % 2 == 1 and isinstance(reply[0], int):
        rows = [
            (key, None if fields is None else as_mapping(fields))
            for key, fields in zip(reply[1::2], reply[2::2], strict=True)
        ]
        return SearchReply(reply[0], rows, [])
    raise _unknown("FT.SEARCH", reply)


def total_results(reply: Any) -> int:
    """Return how many documents an FT.SEARCH found."""
    total = reply.get(b"total_results") if isinstance(reply, dict) else reply[0] if reply else None
    if not isinstance(total, int):
        raise _unknown("FT.SEARCH", reply)
    return total


def _warnings(reply: dict[bytes, Any]) -> list[str]:
    return [text.decode(errors="replace") for text in reply.get(b"warning", [])]


@dataclass(frozen=True)
class IndexInfo:
    """What FT.INFO says of an index.

    `failures` counts documents that are in the keyspace and not in the index; `last_failure` says
    why for the last of them. `indexing` is True while the index is being built from existing keys:
    until then, searches miss documents without a warning; `percent_indexed` is from 0 to 1.
    """

    name: str
    prefixes: list[str]
    attributes: list[dict[str, str]]
    documents: int
    indexing: bool
    percent_indexed: float
    failures: int
    last_failure: str
    memory_mb: float
    raw: dict[str, Any]


def index_info(reply: Any) -> IndexInfo:
    """Return an FT.INFO reply, which is a map in RESP3 and a flat list in RESP2."""
    raw = {_text(key): value for key, value in as_mapping(reply).items()}
    try:
        definition = {_text(k): v for k, v in as_mapping(raw["index_definition"]).items()}
        errors = raw.get("Index Errors")
        problems = {_text(k): v for k, v in as_mapping(errors).items()} if errors else {}
        last = _text(problems.get("last indexing error", b""))
        return IndexInfo(
            name=_text(raw["index_name"]),
            prefixes=[_text(prefix) for prefix in definition["prefixes"]],
            attributes=[_attribute(attribute) for attribute in raw["attributes"]],
            documents=int(raw["num_docs"]),
            indexing=bool(int(raw["indexing"])),
            percent_indexed=float(raw["percent_indexed"]),
            failures=int(raw["hash_indexing_failures"]),
            last_failure="" if last == "N/A" else last,
            memory_mb=float(raw["total_index_memory_sz_mb"]),
            raw=raw,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnexpectedReplyError(f"FT.INFO: no usable {error}") from None


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
