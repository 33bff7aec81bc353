"""Documents to files and back: exact, whole or not at all, and nothing read by halves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from documents import (
    DIM,
    FIELDS,
    NOBODY,
    both_kinds,
    collected,
    contents,
    made,
    make,
    meanwhile,
    stored,
    vectors,
)
from proxy import TO_CLIENT, Fault, Proxy
from rawredis_llm import Client, EmbeddedServer, Numeric, Tag, Vector, VectorIndex, errors
from rawredis_llm.search.vectors import from_blob, to_blob

if TYPE_CHECKING:
    from conftest import Redis

COLUMNS: dict[str, list[Any]] = {
    "color": ["red", ["green", "blue", "dark red"], None, "日本"],
    "year": [0.1, 2**53, -1e300, 5e-324],
    "text": ["", 'héllo "world"\n\t\\ \x00\x7f', "\u2028😀", None],
    "place": [(-180, -85), (2.25, 48.5), None, (0.1, 0.2)],
    "with space": ["x", None, "é", ""],
}
RAW = {"raw": [b"\xff\xfe\x00", b"", b"\n", None], "number": [5, None, 0.5, 10**30]}
NESTED = {
    "meta": [{"a": [1, None, {"b": "c"}]}, [], True, 1.5e-7],
    "none": [{"x": None}, 0, "", False],
}


def filled(redis: Redis, on: str, name: str = "docs", ttl: float | None = None) -> Any:
    """Return an index with documents of everything there is."""
    index = made(redis, on, name)
    columns = COLUMNS | (RAW if on == "hash" else NESTED)
    redis.do(index.load(["a", "b:c", "日", "d e"], vectors(4), columns, ttl=ttl))
    return index


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "docs.jsonl"


# -- there and back ------------------------------------------------------------------------------


@both_kinds
def test_what_was_exported_is_imported_exactly(redis: Redis, on: str, path: Path) -> None:
    index = filled(redis, on)
    with Client(redis.url) as client:
        before = contents(redis.do(index.get(["a", "b:c", "日", "d e"])))
        labels = redis.do(index.count(Tag("color") == "dark red"))
        text = stored(client)
        assert redis.do(index.export(path)) == 4
        redis.do(index.delete(["a", "b:c", "日", "d e"]))
        redis.do(index.load(["a"], vectors(1, seed=5), {"year": [1], "more": ["x"]}, ttl=1000))
        assert redis.do(index.import_(path)) == 4
        assert contents(redis.do(index.get(["a", "b:c", "日", "d e"]))) == before
        assert redis.do(index.count()) == 4
        assert redis.do(index.count(Tag("color") == "dark red")) == labels == 1
        assert client.call("PTTL", "docs:a") == -1
        if on == "json":
            after = stored(client)
            assert {key: json.loads(value) for key, value in after.items()} == {
                key: json.loads(value) for key, value in text.items()
            }
    again = path.with_name("again.jsonl")
    redis.do(index.export(again))

    def lines(file: Path) -> list[Any]:
        array = np.load(file.with_suffix(".npy"))
        found = map(json.loads, file.read_bytes().splitlines())
        return sorted(({**d, "vector": array[d["vector"]].tolist()} for d in found), key=str)

    assert lines(again) == lines(path)


@both_kinds
def test_the_files_are_what_they_are_said_to_be(client: Client, on: str, path: Path) -> None:
    index = make(client, on)
    index.load(["a", "b", "c"], vectors(3), {"year": [1, 2, 3]}, ttl=1000)
    index.load(["c"], vectors(1, seed=7))
    index.export(path)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    array = np.load(path.with_suffix(".npy"), allow_pickle=False)
    assert array.shape == (3, DIM)
    assert sorted(line["vector"] for line in lines) == [0, 1, 2]
    expected = {row.id: row for row in index.get(["a", "b", "c"])}
    for line in lines:
        assert set(line) == {"id", "fields", "vector", "ttl"}
        row = expected.pop(line["id"])
        assert line["fields"] == row.fields
        assert (array[line["vector"]] == row.vector).all()
        if line["id"] == "c":
            assert line["ttl"] is None
        else:
            assert 900_000 < line["ttl"] <= 1_000_000
    assert sorted(one.name for one in path.parent.iterdir()) == ["docs.jsonl", "docs.npy"]


@both_kinds
def test_documents_live_as_long_as_they_had_left(redis: Redis, on: str, path: Path) -> None:
    index = filled(redis, on, ttl=1000)
    redis.do(redis.client.call("PERSIST", "docs:a"))
    redis.do(redis.client.call("PEXPIRE", "docs:d e", 500_000))
    redis.do(index.export(path))
    redis.do(index.delete(["a", "b:c", "日", "d e"]))
    redis.do(index.import_(path))
    lives = [redis.do(redis.client.call("PTTL", f"docs:{i}")) for i in ("a", "b:c", "日", "d e")]
    assert lives[0] == -1
    assert 400_000 < lives[3] <= 500_000
    assert all(900_000 < life <= 1_000_000 for life in lives[1:3])


@both_kinds
def test_an_empty_index(redis: Redis, on: str, path: Path) -> None:
    index = made(redis, on)
    seen: list[Any] = []
    assert redis.do(index.export(path, progress=lambda *a: seen.append(a))) == 0
    assert path.read_bytes() == b""
    assert np.load(path.with_suffix(".npy")).shape == (0, DIM)
    assert redis.do(index.import_(path)) == 0
    assert redis.do(redis.client.call("DBSIZE")) == 0
    assert seen == [(0, 0)]


@both_kinds
def test_a_part_of_an_index(redis: Redis, on: str, path: Path) -> None:
    index = made(redis, on)
    redis.do(index.load(range(20), vectors(20), {"year": range(20)}))
    assert redis.do(index.export(path, filter=Numeric("year") < 7)) == 7
    redis.do(index.delete(range(20)))
    assert redis.do(index.import_(path)) == 7
    rows = collected(redis, index.scan())
    assert contents(rows) == {str(i): ({"year": i}, vectors(20)[i].tobytes()) for i in range(7)}


@both_kinds
def test_more_than_a_page_and_progress(redis: Redis, on: str, path: Path) -> None:
    index = made(redis, on)
    redis.do(index.load(range(1200), vectors(1200), {"year": range(1200)}, batch_size=2000))
    seen: list[tuple[int, int]] = []
    assert redis.do(index.export(path, progress=lambda *a: seen.append(a))) == 1200
    assert seen[-1] == (1200, 1200)
    assert seen == sorted(seen)
    redis.do(index.delete(range(1200)))
    seen.clear()
    assert redis.do(index.import_(path, batch_size=500, progress=lambda *a: seen.append(a))) == 1200
    assert seen == [(500, 1200), (1000, 1200), (1200, 1200)]
    assert [row.fields["year"] for row in redis.do(index.get(range(1200)))] == list(range(1200))


@both_kinds
@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_vectors_of_other_types(client: Client, on: str, dtype: str, path: Path) -> None:
    index = make(client, on, fields=[Vector("vec", DIM, dtype=dtype)])
    index.load(range(50), vectors(50).astype("f8"))
    before = stored(client)
    rows = contents(index.get(range(50)))
    index.export(path)
    array = np.load(path.with_suffix(".npy"))
    assert array.dtype == ("f4" if dtype == "bfloat16" else dtype)
    if on == "hash":
        for line in map(json.loads, path.read_bytes().splitlines()):
            blob = before[f"docs:{line['id']}".encode()][b"vec"]
            assert to_blob(array[line["vector"]], dtype) == blob
            assert (from_blob(blob, dtype) == array[line["vector"]]).all()
    index.delete(range(50))
    index.import_(path)
    if on == "json" and dtype == "float64":  # whose last digit is RedisJSON's own affair
        after = np.array([row.vector for row in index.get(range(50))])
        assert after == pytest.approx(np.array([np.frombuffer(rows[str(i)][1]) for i in range(50)]))
    else:
        assert contents(index.get(range(50))) == rows
        assert on == "json" or stored(client) == before


def test_documents_of_one_kind_go_into_another_index(client: Client, path: Path) -> None:
    source = make(client, "hash", "a")
    source.load(["x"], vectors(1), {"color": [["red", "blue"]], "extra": ["e"]})
    source.export(path)
    target = make(client, "hash", "b", [*FIELDS, Tag("extra")], prefix="elsewhere/")
    target.import_(path)
    assert contents(target.get(["x"])) == contents(source.get(["x"]))
    assert target.count(Tag("extra") == "e") == target.count(Tag("color") == "blue") == 1


def test_a_json_value_may_look_like_bytes(client: Client, path: Path) -> None:
    index = make(client, "json")
    index.load(["a"], vectors(1), {"meta": [{"base64": "aGk="}]})
    index.export(path)
    index.import_(path)
    assert index.get(["a"])[0].fields == {"meta": {"base64": "aGk="}}


@both_kinds
def test_a_document_that_goes_meanwhile_is_left_out(client: Client, on: str, path: Path) -> None:
    index = make(client, on)
    index.load(range(3), vectors(3), ttl=1000)
    plan = index.plan.export(path)
    meanwhile(client, plan, lambda: client.call("DEL", "docs:1"), lambda name: name == "PTTL")
    assert {json.loads(line)["id"] for line in path.read_bytes().splitlines()} == {"0", "2"}


def test_of_a_document_that_came_twice_the_last_counts(client: Client, path: Path) -> None:
    index = make(client, "hash")
    index.load(range(3), vectors(3), {"year": [1, 2, 3]})
    index.export(path)
    lines = path.read_text().splitlines()
    again = json.loads(lines[0])
    again["fields"]["year"] = 5
    path.write_text("\n".join([*lines, json.dumps(again)]))
    assert index.import_(path) == 3
    assert index.get([again["id"]])[0].fields == {"year": 5}


# -- not by halves -------------------------------------------------------------------------------


def cut(redis: Redis, index: Any, path: Path, share: float) -> None:
    """Export through a connection that dies when so much of it has come."""
    with Proxy(redis.url) as proxy:
        client = redis.connect(url=proxy.url)
        through: Any = VectorIndex(client, "docs", FIELDS, on=_on(index))
        redis.do(through.export(path.with_name("whole.jsonl")))
        size = proxy.passed[TO_CLIENT]
        redis.do(client.close())
    for name in ("whole.jsonl", "whole.npy"):
        path.with_name(name).unlink()
    fault = Fault("rst", TO_CLIENT, int(size * share))
    with Proxy(redis.url, fault) as proxy:
        client = redis.connect(url=proxy.url, retry=None)
        through = VectorIndex(client, "docs", FIELDS, on=_on(index))
        with pytest.raises(errors.ConnectionError):
            redis.do(through.export(path))
        assert proxy.fired
        redis.do(client.close())


def _on(index: Any) -> str:
    return "json" if index.schema.json else "hash"


@both_kinds
@pytest.mark.parametrize("share", [0.1, 0.7, 0.95])
@pytest.mark.parametrize("there", [False, True], ids=["new", "old files"])
def test_an_export_that_is_cut_off_leaves_no_file(
    redis: Redis, on: str, share: float, *, there: bool, path: Path
) -> None:
    index = made(redis, on)
    redis.do(index.load(range(1100), vectors(1100), batch_size=2000))
    if there:
        path.write_text("old lines")
        path.with_suffix(".npy").write_bytes(b"old vectors")
    cut(redis, index, path, share)
    left = {one.name: one.read_bytes() for one in path.parent.iterdir()}
    assert left == ({"docs.jsonl": b"old lines", "docs.npy": b"old vectors"} if there else {})


def test_an_export_that_its_progress_stops_leaves_no_file(redis: Redis, path: Path) -> None:
    index = filled(redis, "hash")

    def stop(*_: object) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError):
        redis.do(index.export(path, progress=stop))
    assert list(path.parent.iterdir()) == []


def test_an_export_of_an_index_that_is_missing_leaves_no_file(redis: Redis, path: Path) -> None:
    index: Any = VectorIndex(redis.client, "nowhere", FIELDS)
    with pytest.raises(errors.IndexNotFoundError):
        redis.do(index.export(path))
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["docs", "docs.json", "docs.npy", "docs.jsonl.gz", ".jsonl"])
def test_documents_go_to_a_jsonl_file(client: Client, tmp_path: Path, name: str) -> None:
    index = make(client, "hash")
    with pytest.raises(ValueError, match=r"\.jsonl"):
        index.export(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing(client: Client, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        make(client, "hash").export(tmp_path / "nowhere" / "docs.jsonl")


# -- damage --------------------------------------------------------------------------------------

GOOD = '{"id": "good", "fields": {}, "vector": 0, "ttl": null}'
DAMAGED: dict[str, str] = {
    "empty line": "",
    "no json": "{",
    "cut": GOOD[:30],
    "list": "[]",
    "number": "5",
    "no id": '{"fields": {}, "vector": 1, "ttl": null}',
    "no fields": '{"id": "a", "vector": 1, "ttl": null}',
    "no vector": '{"id": "a", "fields": {}, "ttl": null}',
    "no ttl": '{"id": "a", "fields": {}, "vector": 1}',
    "null vector": '{"id": "a", "fields": {}, "vector": null, "ttl": null}',
    "vector beyond": '{"id": "a", "fields": {}, "vector": 2, "ttl": null}',
    "vector float": '{"id": "a", "fields": {}, "vector": 1.0, "ttl": null}',
    "vector text": '{"id": "a", "fields": {}, "vector": "1", "ttl": null}',
    "fields list": '{"id": "a", "fields": [], "vector": 1, "ttl": null}',
    "fields text": '{"id": "a", "fields": "x", "vector": 1, "ttl": null}',
    "bad base64": '{"id": "a", "fields": {"x": {"base64": "?"}}, "vector": 1, "ttl": null}',
    "base64 number": '{"id": "a", "fields": {"x": {"base64": 5}}, "vector": 1, "ttl": null}',
}
UNNAMED: dict[str, str] = {
    "vector from behind": '{"id": "a", "fields": {}, "vector": -1, "ttl": null}',
    "vector true": '{"id": "a", "fields": {}, "vector": true, "ttl": null}',
    "vector list": '{"id": "a", "fields": {}, "vector": [0, 1], "ttl": null}',
    "id null": '{"id": null, "fields": {}, "vector": 1, "ttl": null}',
    "id true": '{"id": true, "fields": {}, "vector": 1, "ttl": null}',
    "id empty": '{"id": "", "fields": {}, "vector": 1, "ttl": null}',
    "ttl below zero": '{"id": "a", "fields": {}, "vector": 1, "ttl": -5}',
    "ttl zero": '{"id": "a", "fields": {}, "vector": 1, "ttl": 0}',
    "ttl text": '{"id": "a", "fields": {}, "vector": 1, "ttl": "x"}',
    "ttl float": '{"id": "a", "fields": {}, "vector": 1, "ttl": 1.5}',
    "ttl true": '{"id": "a", "fields": {}, "vector": 1, "ttl": true}',
    "field list": '{"id": "a", "fields": {"year": [1]}, "vector": 1, "ttl": null}',
    "field true": '{"id": "a", "fields": {"x": true}, "vector": 1, "ttl": null}',
    "field vector": '{"id": "a", "fields": {"vec": "x"}, "vector": 1, "ttl": null}',
}


@pytest.mark.parametrize(
    "damage",
    [
        *DAMAGED,
        *UNNAMED,
    ],
)
def test_damaged_lines_are_named_and_their_batch_is_not_written(
    redis: Redis, damage: str, path: Path
) -> None:
    index = made(redis, "hash")
    line = {**DAMAGED, **UNNAMED}[damage]
    path.write_text(f"{GOOD}\n{line}\n")
    np.save(path.with_suffix(".npy"), vectors(2))
    with pytest.raises(ValueError, match=r"docs\.jsonl, line 2"):
        redis.do(index.import_(path))
    assert redis.do(redis.client.call("DBSIZE")) == 0
    with pytest.raises(ValueError, match=r"docs\.jsonl, line 2"):
        redis.do(index.import_(path, batch_size=1))
    assert redis.do(redis.client.call("KEYS", "*")) == [b"docs:good"]


@both_kinds
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_file_that_was_cut_short(client: Client, on: str, path: Path, share: float) -> None:
    index = make(client, on)
    index.load(range(30), vectors(30), {"text": ["words"] * 30})
    index.export(path)
    client.call("FLUSHDB")
    index.create()
    whole = path.read_bytes()
    end = int(len(whole) * share)
    while whole[end - 1 : end] == b"\n" or whole[end : end + 1] == b"\n":
        end += 1
    path.write_bytes(whole[:end])
    line = whole[:end].count(b"\n") + 1
    with pytest.raises(ValueError, match=f"line {line}:"):
        index.import_(path)
    assert index.count() == 0


def damaged(array: npt.NDArray[Any], how: str) -> npt.NDArray[Any]:
    """Return an array that is no export's."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "another size": np.ones((2, DIM + 1), "f4"),
        "flat": np.ones(2 * DIM, "f4"),
        "cube": np.ones((2, 1, DIM), "f4"),
        "objects": np.array([[None] * DIM] * 2, object),
        "texts": np.array([["x"] * DIM] * 2),
        "bools": np.ones((2, DIM), bool),
        "nan": np.where(np.arange(2)[:, None] == 1, math.nan, array),
        "zero": array * np.array([[1], [0]]),
    }
    return arrays[how]


@pytest.mark.parametrize(
    "how", ["another size", "flat", "cube", "objects", "texts", "bools", "nan", "zero"]
)
def test_damaged_vectors_are_refused(client: Client, how: str, path: Path) -> None:
    index = make(client, "hash")
    path.write_text(f"{GOOD}\n{GOOD.replace('good', 'b').replace('0', '1')}\n")
    np.save(path.with_suffix(".npy"), damaged(vectors(2), how), allow_pickle=True)
    with pytest.raises(
        (ValueError, TypeError), match=r"vectors|pickle|allow_pickle|Python objects"
    ):
        index.import_(path)
    assert client.call("DBSIZE") == 0


def test_a_file_that_is_missing_or_cut(client: Client, path: Path) -> None:
    index = make(client, "hash")
    index.load(range(3), vectors(3))
    index.export(path)
    beside = path.with_suffix(".npy")
    whole = beside.read_bytes()
    for content in (whole[:-1], whole[:100], b"", b"no array"):
        beside.write_bytes(content)
        with pytest.raises((ValueError, EOFError)):
            index.import_(path)
    beside.unlink()
    with pytest.raises(FileNotFoundError, match=r"docs\.npy"):
        index.import_(path)
    beside.write_bytes(whole)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"docs\.jsonl"):
        index.import_(path)


def test_wrong_options_are_refused_before_any_io(path: Path) -> None:
    with Client(NOBODY) as client:
        index: Any = VectorIndex(client, "docs", FIELDS)
        for size in (0, True, 1.5):
            with pytest.raises((ValueError, TypeError), match="batch_size"):
                index.import_(path, batch_size=size)


def test_an_import_that_is_cut_off_can_be_run_again(
    redis: Redis, server: EmbeddedServer, path: Path
) -> None:
    index = made(redis, "hash")
    redis.do(index.load(range(300), vectors(300), {"year": range(300)}))
    redis.do(index.export(path))
    expected = contents(redis.do(index.get(range(300))))
    redis.do(index.delete(range(300)))
    with Proxy(server.url, Fault("rst", TO_CLIENT, 900)) as proxy:
        client = redis.connect(url=proxy.url)
        through: Any = VectorIndex(client, "docs", FIELDS)
        with pytest.raises(errors.OutcomeUnknownError):
            redis.do(through.import_(path, batch_size=50))
        assert proxy.fired
        assert redis.do(through.import_(path, batch_size=50)) == 300
        redis.do(client.close())
    assert contents(redis.do(index.get(range(300)))) == expected
