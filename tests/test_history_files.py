"""Sessions in files: what was exported comes back as it was, and a bad file changes nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chats import NOBODY, contents, left, place, put, said
from rawredis_llm import ChatHistory, Client, EmbeddedServer, errors
from rawredis_llm.protocol.operation import watched
from test_history import WHOLE

if TYPE_CHECKING:
    from conftest import Redis

ODD = 'é日本🦜 \0 \r\n\u2028\u2029\x85\x1c "quotes" \\ {}\ufeff'


@pytest.fixture(scope="module")
def server(plain_server: EmbeddedServer) -> EmbeddedServer:
    """A server without a search module: history needs none."""
    return plain_server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where a file may be written."""
    return tmp_path / "session é.jsonl"


def test_a_session_comes_back_as_it_was(redis: Redis, path: Path) -> None:
    history = ChatHistory(redis.client, "s", ttl=100)
    odd = {"role": ODD, "content": ODD, ODD: [ODD]}
    redis.do(history.add_many([*WHOLE, odd]))
    put(redis, history.key, "9999999999999-18446744073709551614", "ahead")
    before = redis.do(history.messages())
    assert redis.do(history.export(path)) == len(before) == len(WHOLE) + 2
    lines = path.read_bytes().decode().split("\n")
    assert lines.pop() == ""
    assert [json.loads(line) for line in lines] == [
        {**message.to_dict(), "_stream_id": message.id} for message in before
    ]
    assert redis.do(history.messages()) == before
    other = ChatHistory(redis.client, "t")
    assert redis.do(other.import_(str(path))) == len(before)
    assert redis.do(other.messages()) == before
    assert left(redis, other) == -1
    redis.do(history.clear())
    assert redis.do(history.import_(path)) == len(before)
    assert redis.do(history.messages()) == before
    assert 90_000 < left(redis, history) <= 100_000
    assert place(redis.do(history.add("user", "next"))) > place(before[-1].id)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    messages=st.lists(
        st.tuples(
            st.text(min_size=1).filter(str.strip),
            JSON,
            st.dictionaries(
                st.text().filter(lambda k: k not in ("role", "content", "_stream_id")), JSON
            ),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_was_said_comes_back(
    client: Client, path: Path, messages: list[tuple[str, Any, dict[str, Any]]]
) -> None:
    given_ = [{**extra, "role": role, "content": content} for role, content, extra in messages]
    one, two = ChatHistory(client, "one"), ChatHistory(client, "two")
    one.clear()
    two.clear()
    one.add_many({**message, "id": str(i)} for i, message in enumerate(given_))
    assert [m.to_dict() for m in one.messages()] == [
        {**message, "id": str(i)} for i, message in enumerate(given_)
    ]
    one.export(path)
    two.import_(path)
    assert two.messages() == one.messages()


def test_2500_messages_come_back_in_order_with_their_times(redis: Redis, path: Path) -> None:
    history, other = ChatHistory(redis.client, "s"), ChatHistory(redis.client, "t")
    redis.do(history.add_many(said(*range(2500))))
    assert redis.do(history.export(path)) == 2500
    assert redis.do(other.import_(path)) == 2500
    assert redis.do(other.messages()) == redis.do(history.messages())


def test_lines_from_elsewhere_get_ids_of_their_own(redis: Redis, path: Path) -> None:
    lines = [{"role": "user", "content": i, "name": "é"} for i in range(1200)]
    text = "".join(
        f"{json.dumps(line, ensure_ascii=i % 2 == 0)}\r\n\n" for i, line in enumerate(lines)
    )
    path.write_bytes(text.encode())
    history = ChatHistory(redis.client, "s")
    assert redis.do(history.import_(path)) == 1200
    messages = redis.do(history.messages())
    assert [message.to_dict() for message in messages] == lines
    assert len({message.id for message in messages}) == 1200
    path.write_text(
        '{"role":"user","content":"old","_stream_id":"5-0"}\n{"role":"user","content":"new"}'
    )
    other = ChatHistory(redis.client, "t")
    assert redis.do(other.import_(path)) == 2
    old, new = redis.do(other.messages())
    assert (old.id, old.created, old.content) == ("5-0", 0.005, "old")
    assert (new.created > 1e9, new.content, new.extra) == (True, "new", {})


def test_what_was_imported_with_an_id_is_not_added_again(redis: Redis, path: Path) -> None:
    history = ChatHistory(redis.client, "s")
    first = redis.do(history.add("user", "x", id="mine"))
    redis.do(history.export(path))
    other = ChatHistory(redis.client, "t")
    redis.do(other.import_(path))
    assert redis.do(other.add("user", "x", id="mine")) == first
    assert redis.do(other.count()) == 1


def test_an_empty_session_is_an_empty_file(redis: Redis, path: Path) -> None:
    history = ChatHistory(redis.client, "s")
    path.write_text("what was there before")
    assert redis.do(history.export(path)) == 0
    assert path.read_bytes() == b""
    assert redis.do(history.import_(path)) == 0
    assert redis.do(redis.client.call("DBSIZE")) == 0


GOOD = '{"role":"user","content":"x"}'
BAD_LINES = [
    "text",
    "{",
    "[]",
    "null",
    "5",
    '"role"',
    "{}",
    '{"role":"user"}',
    '{"content":"x"}',
    '{"role":5,"content":"x"}',
    '{"role":null,"content":"x"}',
    '{"role":"","content":"x"}',
    '{"role":"user","content":NaN}',
    '{"role":"user","content":"\\ud800"}',
    f"{GOOD}{GOOD}",
    f"{GOOD},",
    f"\ufeff{GOOD}",
    '{"role":"user","content":"x","_stream_id":5}',
    '{"role":"user","content":"x","_stream_id":""}',
    '{"role":"user","content":"x","_stream_id":"5"}',
    '{"role":"user","content":"x","_stream_id":"*"}',
    '{"role":"user","content":"x","_stream_id":"5-*"}',
]


@pytest.mark.parametrize("line", BAD_LINES)
@pytest.mark.parametrize("before", [0, 1, 1500])
def test_a_bad_line_is_named_and_nothing_is_written(path: Path, line: str, before: int) -> None:
    path.write_text(f"{GOOD}\n" * before + f"{line}\n{GOOD}\n", encoding="utf-8")
    with (
        Client(NOBODY) as client,
        pytest.raises(ValueError, match=rf"line {before + 1}:") as caught,
    ):
        ChatHistory(client, "s").import_(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "line"),
    [
        (["5-0", "5-0"], 2),
        (["5-1", "5-0"], 2),
        (["5-0", "6-0", "5-9"], 3),
        (["10-0", "9-0"], 2),  # as numbers, not as text
        (["0-0"], 1),
        ([None, "5-0"], 2),
    ],
    ids=str,
)
def test_ids_that_do_not_rise_are_refused(path: Path, ids: list[str | None], line: int) -> None:
    messages = [{"role": "user", "content": "x", "_stream_id": id_} for id_ in ids]
    path.write_text("".join(f"{json.dumps(one)}\n" for one in messages))
    with Client(NOBODY) as client, pytest.raises(ValueError, match=f"line {line}:"):
        ChatHistory(client, "s").import_(path)


@pytest.mark.parametrize("id_", ["18446744073709551616-0", "5-99999999999999999999"])
def test_an_id_that_no_stream_can_have_is_refused_before_anything_is_written(
    redis: Redis, path: Path, id_: str
) -> None:
    path.write_text(
        f'{{"role":"u","content":1,"_stream_id":"4-0"}}\n{{"role":"u","content":2,"_stream_id":"{id_}"}}'
    )
    history = ChatHistory(redis.client, "s")
    with pytest.raises((ValueError, errors.ReplyError)) as caught:
        redis.do(history.import_(path))
    assert redis.do(history.count()) == 0
    assert isinstance(caught.value, ValueError)


def test_a_session_with_messages_takes_no_file(redis: Redis, path: Path) -> None:
    history = ChatHistory(redis.client, "s")
    redis.do(history.add("user", "there"))
    path.write_text(f"{GOOD}\n" * 1500)
    with pytest.raises(ValueError, match="has messages already"):
        redis.do(history.import_(path))
    assert contents(redis.do(history.messages())) == ["there"]
    redis.do(redis.client.call("SET", "chat:t", "no stream"))
    with pytest.raises(errors.WrongTypeError):
        redis.do(ChatHistory(redis.client, "t").import_(path))


@pytest.mark.parametrize("how", ["delete", "truncate", "truncate after"])
def test_a_session_whose_messages_were_deleted_takes_a_file(
    redis: Redis, path: Path, how: str
) -> None:
    history = ChatHistory(redis.client, "s")
    id_ = redis.do(history.add("user", "x"))
    before = redis.do(history.messages())
    redis.do(history.export(path))
    if how == "delete":
        redis.do(history.delete(id_))
    else:
        redis.do(history.truncate(0) if how == "truncate" else history.truncate(after="1-0"))
    assert redis.do(history.import_(path)) == 1
    assert redis.do(history.messages()) == before


def test_a_message_with_an_id_of_that_name_comes_back_whole(redis: Redis, path: Path) -> None:
    history, other = ChatHistory(redis.client, "s"), ChatHistory(redis.client, "t")
    redis.do(history.add("user", "x", _id="64b7f0", n=1))
    redis.do(history.export(path))
    redis.do(other.import_(path))
    assert redis.do(other.messages()) == redis.do(history.messages())


def test_an_import_is_whole_though_somebody_adds_meanwhile(client: Client, path: Path) -> None:
    old, history = ChatHistory(client, "old"), ChatHistory(client, "s")
    old.add_many(said(*range(2500)))
    old.export(path)
    waiting = ["meanwhile"]
    sent = 0

    def see(request: Any) -> None:
        nonlocal sent
        sent += "EVALSHA" in getattr(request, "name", "")
        if waiting and sent == 2:
            history.add("user", waiting.pop())

    imported: Any = client.run(watched(history.plan.import_(path), see))
    assert imported == 2500
    assert set(contents(history.messages())) >= set(range(2500))


def test_beyond_max_messages_the_oldest_of_a_file_go(redis: Redis, path: Path) -> None:
    path.write_text("".join(f'{{"role":"user","content":{i}}}\n' for i in range(1500)))
    history = ChatHistory(redis.client, "s", max_messages=3)
    redis.do(history.import_(path))
    assert contents(redis.do(history.messages())) == [1497, 1498, 1499]


def test_an_export_takes_the_place_of_a_file_when_it_is_whole(redis: Redis, path: Path) -> None:
    history = ChatHistory(redis.client, "s")
    redis.do(history.add_many(said(*range(3))))
    redis.do(history.export(path))
    before = path.read_bytes()
    with path.open("rb") as old:
        redis.do(history.add("user", "more"))
        assert redis.do(history.export(path)) == 4
        assert old.read() == before  # who reads the old file reads it to its end
    assert path.read_bytes().startswith(before)
    redis.do(redis.client.call("XADD", history.key, "*", "foreign", "entry"))
    whole = path.read_bytes()
    with pytest.raises(errors.UnexpectedReplyError):
        redis.do(history.export(path))
    with pytest.raises(errors.ConnectError):
        redis.do(ChatHistory(redis.connect(url=NOBODY), "s").export(path))
    assert path.read_bytes() == whole
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_place_that_is_none_is_the_systems_error(redis: Redis, path: Path) -> None:
    history = ChatHistory(redis.client, "s")
    redis.do(history.add("user", "x"))
    with pytest.raises(FileNotFoundError):
        redis.do(history.export(path / "in" / "no" / "folder"))
    with pytest.raises(FileNotFoundError):
        redis.do(history.import_(path))
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        redis.do(history.export(path))
    assert contents(redis.do(history.messages())) == ["x"]


def test_a_file_that_is_no_text_is_refused(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(1000))
    with Client(NOBODY) as client, pytest.raises(ValueError, match=r"line 1|decode"):
        ChatHistory(client, "s").import_(path)
