"""Recorded replies: what they mean, and that one which is damaged is never taken for another.

`record_golden.py` says where they come from, and writes them anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rawredis_llm import Client, VectorIndex, errors
from rawredis_llm.index.rows import Decoder as Rows
from rawredis_llm.protocol.resp import NOT_ENOUGH, Decoder
from rawredis_llm.search.replies import (
    aggregate_reply,
    found_keys,
    hybrid_reply,
    index_info,
    profile_reply,
    search_reply,
    total_results,
)
from record_golden import ALL, COMMANDS, ERRORS, FIELDS, FOLDER, NEWER
from reference import read

PROTOCOLS = [2, 3]


def golden(name: str, protocol: int) -> Any:
    """Return a reply as the client's decoder gives it."""
    decoder = Decoder()
    decoder.feed((FOLDER / f"{name}.{protocol}.resp").read_bytes())
    reply = decoder.gets()
    assert decoder.gets() is NOT_ENOUGH
    return reply


def index(**options: Any) -> VectorIndex[Any]:
    """Return the index of the recorder's documents; nothing is sent."""
    fields = options.pop("fields", FIELDS)
    return VectorIndex(Client("redis://127.0.0.1:1/0"), "docs", fields, **options)


def test_every_file_is_known_and_read_as_a_second_reader_reads_it() -> None:
    files = sorted(FOLDER.glob("*.resp"))
    names = {f"{name}.{p}.resp" for name in [*COMMANDS, *NEWER, *ERRORS] for p in PROTOCOLS}
    assert {path.name for path in files} == names
    for path in files:
        [frame] = read(path.read_bytes()).frames
        name, protocol, _ = path.name.split(".")
        assert repr(frame.value) == repr(golden(name, int(protocol)))


# -- what they mean ------------------------------------------------------------------------------

A: dict[bytes, Any] = {b"body": b"wine by the river", b"n": b"1"}
B: dict[bytes, Any] = {b"body": b"wine bars", b"n": b"2.5"}
C: dict[bytes, Any] = {b"body": b"a beach", b"n": b"3"}
HALF = 1 - 0.5**0.5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_neighbours(protocol: int) -> None:
    found = search_reply(golden("search_knn", protocol))
    assert (found.total, found.warnings) == (4, [])
    assert [key for key, _, _ in found.rows] == [b"docs:a", b"docs:b", b"docs:c", b"docs:d"]
    assert [score for _, _, score in found.rows] == [None] * 4
    result = Rows(index().schema, "docs:").nearest(found, 1, 3)
    assert [(row.id, row.fields) for row in result.rows] == [
        ("b", {"body": "wine bars", "n": 2.5}),
        ("c", {"body": "a beach", "n": 3}),
    ]
    assert [row.distance for row in result.rows] == pytest.approx([HALF, 1])
    assert [row.similarity for row in result.rows] == pytest.approx([1 - HALF / 2, 0.5])
    assert (result.total, result.partial) == (4, False)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_row_that_expired(protocol: int) -> None:
    found = search_reply(golden("search_expired", protocol))
    assert [(key, fields is None) for key, fields, _ in found.rows] == [
        (b"dying:a", False),
        (b"dying:b", True),
        (b"dying:c", False),
        (b"dying:d", False),
    ]
    result = Rows(index().schema, "dying:").nearest(found, 0, 4)
    assert [row.id for row in result.rows] == ["a", "c", "d"]
    assert result.rows[2].fields == {}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scores(protocol: int) -> None:
    found = search_reply(golden("search_withscores", protocol), scores=True)
    assert [(key, fields) for key, fields, _ in found.rows] == [(b"docs:a", A), (b"docs:b", B)]
    assert [score for _, _, score in found.rows] == [
        pytest.approx(1.6303374623811981),
        pytest.approx(0.5956733567807101),
    ]
    rows = Rows(index().schema, "docs:").ranked(found).rows
    assert [(row.id, row.fields["n"]) for row in rows] == [("a", 1), ("b", 2.5)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_keys_and_counts(protocol: int) -> None:
    keys = found_keys(golden("search_nocontent", protocol))
    assert sorted(keys) == [b"docs:a", b"docs:b", b"docs:c", b"docs:d"]
    assert found_keys(golden("search_count", protocol)) == []
    assert total_results(golden("search_count", protocol)) == 4
    assert total_results(golden("search_nocontent", protocol)) == 4
    assert total_results(golden("search_knn", protocol)) == 4


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_groups(protocol: int) -> None:
    found = aggregate_reply(golden("aggregate", protocol), cursor=True)
    assert (found.cursor, found.warnings) == (0, [])
    rows = {row[b"color"]: row for row in found.rows}
    assert rows.keys() == {None, b"blue", b"red"}
    assert [rows[color][b"many"] for color in (None, b"blue", b"red")] == [b"1", b"1", b"2"]
    assert sorted(rows[b"red"][b"all"]) == [b"1", b"2.5"]
    assert rows[None][b"all"] == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_page_and_its_cursor(protocol: int) -> None:
    found = aggregate_reply(golden("aggregate_cursor", protocol), cursor=True)
    assert found.rows == [{b"n": b"1"}, {b"n": b"2.5"}]
    assert found.cursor > 0
    with pytest.raises(errors.UnexpectedReplyError):
        aggregate_reply(golden("aggregate_cursor", 3))  # which none was asked for


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("on", ["hash", "json"])
def test_what_an_index_is(on: str, protocol: int) -> None:
    info = index_info(golden(f"info_{on}", protocol))
    name = {"hash": "docs", "json": "json"}[on]
    assert (info.name, info.prefixes, info.on, info.documents) == (name, [f"{name}:"], on, 4)
    assert (info.language, info.stopwords, info.filter_expression) == (None, None, None)
    assert (info.indexing, info.percent_indexed) == (False, 1.0)
    assert info.failures == (1 if on == "hash" else 0)
    assert (info.last_failed_key, bool(info.last_failure)) == (
        ("docs:bad", True) if on == "hash" else ("", False)
    )
    assert info.memory_mb > 0
    assert index(on=on).schema.differences(info, [f"{name}:"]) == []
    assert index(on="json").schema.differences(info, ["x"]) != []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_kind_of_field(protocol: int) -> None:
    info = index_info(golden("info_all", protocol))
    assert (info.prefixes, info.language) == (["p:", "q:"], "german")
    assert sorted(info.stopwords or []) == ["der", "die"]
    schema = index(fields=ALL, language="german", stopwords=["die", "der"]).schema
    assert schema.differences(info, ["q:", "p:"]) == []
    told = {attribute["attribute"]: attribute for attribute in info.attributes}
    assert [told[name]["type"].lower() for name in "abcdefgh"] == [
        *("text", "text", "tag", "tag", "numeric", "geo", "geoshape", "vector")
    ]
    assert (told["a"]["nostem"], told["a"]["sortable"]) == ("yes", "yes")
    assert (told["b"]["indexmissing"], told["b"]["indexempty"]) == ("yes", "yes")
    assert (told["c"]["separator"], told["c"]["casesensitive"]) == ("|", "yes")


PROFILED = {"Total profile time", "Parsing time", "Pipeline creation time", "Warning"} | {
    "Iterators profile",
    "Result processors profile",
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("name", "kind"), [("knn", "VECTOR"), ("aggregate", "TAG")])
def test_profiles(name: str, kind: str, protocol: int) -> None:
    found = profile_reply(golden(f"profile_{name}", protocol))
    assert set(found) == PROFILED
    inner = found["Iterators profile"]
    assert (inner[0] if isinstance(inner, list) else inner)["Type"] == kind
    assert found["Result processors profile"][0]["Type"] == "Index"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_fuses(protocol: int) -> None:
    found = hybrid_reply(golden("newer_hybrid", protocol))
    assert found.total == 3
    assert found.rows == [
        (b"docs:a", {b"body": b"wine", b"n": b"1"}, 0.0325224748810153),
        (b"docs:c", {b"color": b"blue"}, 0.0161290322580645),
    ]
    assert found.warnings == []
    warned = hybrid_reply(golden("newer_hybrid_warnings", protocol))
    assert warned.warnings == ["Timeout limit was reached (VSIM)"]
    assert hybrid_reply(golden("newer_hybrid_empty", protocol))[:2] == (0, [])


@pytest.mark.parametrize(
    ("name", "command", "kind"),
    [
        ("newer_error_search", "FT.SEARCH", errors.IndexNotFoundError),
        ("newer_error_info", "FT.INFO", errors.IndexNotFoundError),
        ("newer_error_info", "FT.DROPINDEX", errors.IndexNotFoundError),
        ("newer_error_cluster", "FT.SEARCH", errors.ClusterDownError),
        ("newer_error_field", "FT.SEARCH", errors.ReplyError),
    ],
)
def test_errors_of_newer_servers(name: str, command: str, kind: type[errors.ReplyError]) -> None:
    reply = golden(name, 3)
    assert isinstance(reply, errors.ReplyError)
    assert type(errors.reply_error(reply.message, command)) is kind


# -- damaged -------------------------------------------------------------------------------------

OTHERS: list[Any] = [None, 7, b"text", [], {}, [7], {b"x": 7}]


def damaged(node: Any, depth: int) -> Iterator[Any]:
    """Return a reply with one part away or of another type, each in turn, down to a depth."""
    yield from (other for other in OTHERS if type(other) is not type(node))
    if not depth:
        return
    if isinstance(node, dict):
        for key, value in node.items():
            yield {k: v for k, v in node.items() if k != key}
            yield from ({**node, key: other} for other in damaged(value, depth - 1))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield [*node[:i], *node[i + 1 :]]
            yield from ([*node[:i], other, *node[i + 1 :]] for other in damaged(value, depth - 1))


def is_map(value: Any) -> bool:
    """Return whether a value is a map from names, in either protocol."""
    if isinstance(value, list):
        return len(value) % 2 == 0 and all(isinstance(name, bytes) for name in value[::2])
    return isinstance(value, dict) and all(isinstance(name, bytes) for name in value)


def is_whole(reply: Any) -> bool:
    """Return whether a RESP3 reply has what each has: a total, results, and perhaps warnings."""
    return (
        isinstance(reply, dict)
        and isinstance(reply.get(b"total_results"), int)
        and isinstance(reply.get(b"results"), list)
        and all(isinstance(row, dict) for row in reply[b"results"])
        and isinstance(reply.get(b"warning", []), list)
        and all(isinstance(text, bytes) for text in reply.get(b"warning", []))
    )


def is_search(reply: Any, *, scores: bool) -> bool:
    """Return whether this is a reply of FT.SEARCH with contents."""
    if isinstance(reply, list):
        width = 3 if scores else 2
        keys, last = reply[1::width], reply[width::width]
        return (
            len(reply) % width == 1
            and isinstance(reply[0], int)
            and all(isinstance(key, bytes) for key in keys)
            and all(fields is None or is_map(fields) for fields in last)
            and (not scores or all(is_number(score) for score in reply[2::3]))
        )
    return is_whole(reply) and all(
        isinstance(row.get(b"id"), bytes)
        and b"extra_attributes" in row
        and (row[b"extra_attributes"] is None or isinstance(row[b"extra_attributes"], dict))
        and is_map(row[b"extra_attributes"] or {})
        and (not scores or is_number(row.get(b"score")))
        for row in reply[b"results"]
    )


def is_number(value: Any) -> bool:
    """Return whether a value is a number or the text of one."""
    try:
        return isinstance(value, (bytes, float, int)) and float(value) is not None
    except ValueError:
        return False


def is_near(reply: Any) -> bool:
    """Return whether each row has a distance, too."""
    if not is_search(reply, scores=False):
        return False
    rows = (
        reply[2::2]
        if isinstance(reply, list)
        else [row[b"extra_attributes"] for row in reply[b"results"]]
    )
    maps = [
        dict(zip(row[::2], row[1::2], strict=True)) if isinstance(row, list) else row
        for row in rows
    ]
    return all(row is None or is_number(row.get(b"__distance")) for row in maps)


def is_keys(reply: Any) -> bool:
    """Return whether this is a reply of FT.SEARCH without contents."""
    if isinstance(reply, list):
        return (
            bool(reply)
            and isinstance(reply[0], int)
            and all(isinstance(key, bytes) for key in reply[1:])
        )
    return is_whole(reply) and all(isinstance(row.get(b"id"), bytes) for row in reply[b"results"])


def is_count(reply: Any) -> bool:
    """Return whether this has a total."""
    if isinstance(reply, list):
        return bool(reply) and isinstance(reply[0], int)
    return isinstance(reply, dict) and isinstance(reply.get(b"total_results"), int)


def is_page(reply: Any) -> bool:
    """Return whether this is a reply of FT.AGGREGATE with a cursor."""
    if not (isinstance(reply, list) and len(reply) == 2 and isinstance(reply[1], int)):
        return False
    rows = reply[0]
    if isinstance(rows, list):
        return (
            bool(rows)
            and isinstance(rows[0], int)
            and all(isinstance(row, list) and is_map(row) for row in rows[1:])
        )
    if not isinstance(rows, dict):
        return False
    whole = {**rows, b"total_results": 0}  # which is not looked at: it counts other things here
    return is_whole(whole) and all(
        isinstance(row.get(b"extra_attributes"), dict) and is_map(row[b"extra_attributes"])
        for row in whole[b"results"]
    )


def is_fused(reply: Any) -> bool:
    """Return whether this is a reply of FT.HYBRID."""
    if not is_map(reply):
        return False
    whole = dict(zip(reply[::2], reply[1::2], strict=True)) if isinstance(reply, list) else reply
    rows, warnings = whole.get(b"results"), whole.get(b"warnings", [])
    if not (isinstance(whole.get(b"total_results"), int) and isinstance(rows, list)):
        return False
    if not (isinstance(warnings, list) and all(isinstance(text, bytes) for text in warnings)):
        return False
    maps = [
        dict(zip(row[::2], row[1::2], strict=True)) if isinstance(row, list) else row
        for row in rows
        if is_map(row)
    ]
    return len(maps) == len(rows) and all(
        isinstance(row.get(b"__key"), bytes) and is_number(row.get(b"__score")) for row in maps
    )


def neighbours(reply: Any) -> Any:
    """Return a KNN's result."""
    return Rows(index().schema, "docs:").nearest(search_reply(reply), 0, 9)


def best(reply: Any) -> Any:
    """Return a text search's result."""
    return Rows(index().schema, "docs:").ranked(search_reply(reply, scores=True))


def page(reply: Any) -> Any:
    """Return an aggregation's page."""
    return aggregate_reply(reply, cursor=True)


# How it is read, how one knows it, and how deep the parts are that belong to the reply itself.
DECODERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], bool], dict[int, int]]] = {
    "search_knn": (neighbours, is_near, {2: 1, 3: 3}),
    "search_withscores": (best, lambda r: is_search(r, scores=True), {2: 1, 3: 3}),
    "search_nocontent": (found_keys, is_keys, {2: 1, 3: 3}),
    "search_count": (total_results, is_count, {2: 1, 3: 1}),
    "aggregate": (page, is_page, {2: 2, 3: 4}),
    "newer_hybrid": (hybrid_reply, is_fused, {2: 1, 3: 3}),
}


@pytest.mark.parametrize(
    ("name", "protocol"),
    # Of flat rows in a flat list, nobody can tell a name from a value.
    [(n, p) for n in DECODERS for p in PROTOCOLS if (n, p) != ("newer_hybrid", 2)],
)
def test_a_damaged_reply_is_refused(name: str, protocol: int) -> None:
    decode, is_good, depths = DECODERS[name]
    whole = golden(name, protocol)
    assert is_good(whole)
    decode(whole)
    wrong, bad = [], 0
    for reply in damaged(whole, depths[protocol]):
        bad += not is_good(reply)
        try:
            found = repr(decode(reply))
        except errors.UnexpectedReplyError:
            found = "refused"
        except Exception as error:  # noqa: BLE001 - any other is what is looked for
            found = repr(error)
        if found != "refused" and not is_good(reply):
            wrong.append((reply, found))
    assert bad > 5
    assert wrong == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ["search_knn", "search_withscores", "aggregate", "newer_hybrid"])
def test_rows_that_are_no_list_are_not_taken_for_none(name: str, protocol: int) -> None:
    decode = DECODERS[name][0]
    whole = golden(name, protocol)
    for other in (None, 7, b"text", [7], {b"x": 7}):
        reply: Any = other
        if protocol == 3:
            inner = whole[0] if name == "aggregate" else whole
            reply = {**inner, b"results": other}
            reply = [reply, 0] if name == "aggregate" else reply
        elif name == "newer_hybrid":
            reply = [other if part == whole[3] else part for part in whole]
        elif other == [7]:
            continue  # a page behind the last row
        with pytest.raises(errors.UnexpectedReplyError):
            decode(reply)


@pytest.mark.parametrize("name", ["id", "extra_attributes", "score"])
def test_a_row_that_lacks_a_part_is_refused(name: str) -> None:
    whole = golden("search_withscores", 3)
    first = {key: value for key, value in whole[b"results"][0].items() if key != name.encode()}
    with pytest.raises(errors.UnexpectedReplyError):
        best({**whole, b"results": [first, *whole[b"results"][1:]]})


@pytest.mark.parametrize("name", ["search_knn", "search_withscores", "aggregate", "newer_hybrid"])
@pytest.mark.parametrize("other", [{}, b""])
def test_nor_are_those_of_nothing_else(name: str, other: Any) -> None:
    whole = golden(name, 3)
    inner = {**(whole[0] if name == "aggregate" else whole), b"results": other}
    with pytest.raises(errors.UnexpectedReplyError):
        DECODERS[name][0]([inner, 0] if name == "aggregate" else inner)


@pytest.mark.parametrize(
    ("name", "protocol"),
    [(name, protocol) for name in ("info_hash", "info_json") for protocol in PROTOCOLS],
)
def test_a_damaged_description_is_refused_or_read(name: str, protocol: int) -> None:
    wrong = []
    for reply in damaged(golden(name, protocol), 3):
        try:
            index_info(reply)
        except errors.UnexpectedReplyError:
            pass
        except Exception as error:  # noqa: BLE001 - any other is what is looked for
            wrong.append(error)
    assert wrong == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_description_without_what_is_needed_is_refused(protocol: int) -> None:
    whole = golden("info_hash", protocol)
    needed = {b"index_name", b"index_definition", b"attributes", b"num_docs", b"indexing"}
    needed |= {b"percent_indexed", b"hash_indexing_failures", b"total_index_memory_sz_mb"}
    for name in needed:
        if protocol == 3:
            reply: Any = {key: value for key, value in whole.items() if key != name}
        else:
            at = whole.index(name)
            reply = [*whole[:at], *whole[at + 2 :]]
        with pytest.raises(errors.UnexpectedReplyError, match=r"FT\.INFO"):
            index_info(reply)
