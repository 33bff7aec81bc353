"""What rows of a search lack is fetched, and put in its place: no server, only its replies."""

from __future__ import annotations

from typing import Any

import pytest

from rawredis_llm.errors import ReplyError, UnsupportedError, reply_error
from rawredis_llm.protocol.fetching import Fetch
from rawredis_llm.protocol.scattered import scatter

SEARCH = ("FT.SEARCH", "docs", "*", "SORTBY", "n")


def reply(protocol: int, *rows: tuple[bytes, bytes | None, dict[bytes, bytes] | None]) -> Any:
    """Return what nodes say, with sort keys."""
    if protocol == 3:
        found = [
            {b"id": name, b"sortkey": key, b"extra_attributes": fields}
            for name, key, fields in rows
        ]
        return {b"total_results": len(rows), b"results": found}
    flat: list[Any] = [len(rows)]
    for name, key, fields in rows:
        pairs = None if fields is None else [part for pair in fields.items() for part in pair]
        flat += [name, key, pairs]
    return flat


def fields(reply: Any) -> dict[bytes, Any]:
    """Return the fields of each row of a joined reply."""
    if isinstance(reply, dict):
        return {row[b"id"]: row[b"extra_attributes"] for row in reply[b"results"]}
    return {
        name: None if flat is None else dict(zip(flat[::2], flat[1::2], strict=True))
        for name, flat in zip(reply[1::2], reply[2::2], strict=True)
    }


both = pytest.mark.parametrize("protocol", [3, 2])
READ, UNREAD, GONE = b"docs:1", b"docs:2", b"docs:3"
ROWS: Any = [(READ, b"#1", {b"n": b"1"}), (UNREAD, b"#2", None), (GONE, b"#3", None)]


def joined(fetch: Fetch, protocol: int) -> Any:
    """Return what is joined of these rows, when the fetch has taken note of them."""
    replies = [reply(protocol, *ROWS[:1]), reply(protocol, *ROWS[1:])]
    fetch.note(replies)
    return scatter(SEARCH, len(replies)).join(replies)


@both
def test_what_was_not_read_is_fetched_and_what_has_gone_is_not(protocol: int) -> None:
    fetch = Fetch(SEARCH)
    whole = joined(fetch, protocol)
    assert fetch.lacking(whole) == [UNREAD, GONE]
    assert fetch.commands(UNREAD) == [("EXISTS", UNREAD), ("HGETALL", UNREAD)]
    found = {UNREAD: [1, [b"color", b"red"]], GONE: [0, []]}
    assert fields(fetch.filled(whole, found)) == {
        READ: {b"n": b"1"},
        UNREAD: {b"n": b"2", b"color": b"red"},
        GONE: None,
    }


@both
def test_fields_come_as_they_were_asked_for(protocol: int) -> None:
    fetch = Fetch((*SEARCH, "RETURN", 4, "color", "n", "AS", "number"))
    whole = joined(fetch, protocol)
    assert fetch.commands(UNREAD) == [("EXISTS", UNREAD), ("HMGET", UNREAD, b"color")]
    found = {UNREAD: [1, [b"red"]], GONE: [1, [None]]}
    filled = fields(fetch.filled(whole, found))
    assert list(filled[UNREAD].items()) == [(b"color", b"red"), (b"number", b"2")]
    assert filled[GONE] == {b"number": b"3"}  # it is there, without that field


@both
def test_a_document_that_cannot_be_read_is_the_reply(protocol: int) -> None:
    fetch = Fetch(SEARCH)
    refusal = reply_error("WRONGTYPE it is a list now")
    assert isinstance(refusal, ReplyError)
    for told in ([1, refusal], [refusal, []]):
        found = {UNREAD: told, GONE: [0, []]}
        assert fetch.filled(joined(fetch, protocol), found) is refusal


@both
def test_an_order_of_what_nobody_could_read_is_refused(protocol: int) -> None:
    fetch = Fetch(SEARCH)
    with pytest.raises(UnsupportedError, match="SORTABLE"):
        fetch.note([reply(protocol, (UNREAD, None, None)), reply(protocol, (GONE, None, None))])
    fetch.note([reply(protocol, (UNREAD, None, None), (READ, b"#1", None))])
    fetch.note([reply(protocol)])


def test_json_is_not_fetched() -> None:
    fetch = Fetch((*SEARCH, "RETURN", 1, "$.a"))
    with pytest.raises(UnsupportedError, match="JSON"):
        fetch.commands(UNREAD)
