"""What of a conversation fits into a context: whole exchanges, the newest, and all system messages.

The properties are held against a plain model that knows, from how a conversation was made, which
messages belong together; it looks at no message.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chats import contents, said
from counting import cost
from rawredis_llm import ChatHistory, Client, EmbeddedServer, Message
from rawredis_llm.conversation import answers, calls, tokens, windowed

if TYPE_CHECKING:
    from conftest import Redis


@pytest.fixture(scope="module")
def server(plain_server: EmbeddedServer) -> EmbeddedServer:
    """A server without a search module: history needs none."""
    return plain_server


def user(content: Any = "u", **extra: Any) -> Message:
    """Return what a user says."""
    return Message("user", content, extra=extra)


def system(content: Any = "s") -> Message:
    """Return a system message."""
    return Message("system", content)


def call(*ids: str, content: Any = None) -> Message:
    """Return an assistant's calls of tools, as OpenAI has them."""
    made = [
        {"id": id_, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id_ in ids
    ]
    return Message("assistant", content, extra={"tool_calls": made})


def result(id_: str, content: Any = "r") -> Message:
    """Return the result of one call, as OpenAI has it."""
    return Message("tool", content, extra={"tool_call_id": id_})


def use(*ids: str) -> Message:
    """Return an assistant's calls of tools, as Anthropic has them."""
    parts = [{"type": "tool_use", "id": id_, "name": "f", "input": {}} for id_ in ids]
    return Message("assistant", [{"type": "text", "text": "let me see"}, *parts])


def used(*ids: str, text: str = "") -> Message:
    """Return the results of calls, as Anthropic has them."""
    parts = [{"type": "tool_result", "tool_use_id": id_, "content": "r"} for id_ in ids]
    more = [{"type": "text", "text": text}] if text else []
    return Message("user", [*parts, *more])


def function(name: str) -> Message:
    """Return an assistant's call in OpenAI's older form, without an id."""
    return Message(
        "assistant", None, extra={"function_call": {"name": name, "arguments": '{"id": "x"}'}}
    )


def returned(name: str) -> Message:
    """Return the result of a call in the older form."""
    return Message("function", "r", extra={"name": name})


def one(_: Message) -> int:
    """Count each message as one token."""
    return 1


FORMS = {
    "one": [call("a"), result("a")],
    "parallel": [call("a", "b", "c"), result("b"), result("a"), result("c")],
    "with text": [call("a", content="let me see"), result("a")],
    "anthropic": [use("a"), used("a")],
    "anthropic parallel": [use("a", "b"), used("b", "a", text="and now?")],
    "anthropic one by one": [use("a", "b"), used("a"), used("b")],
    "older": [function("f"), returned("f")],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_call_and_its_results_stay_together(form: str) -> None:
    unit = FORMS[form]
    messages = [user("before"), *unit, Message("assistant", "so"), user("after")]
    size = len(unit)
    for limit in range(1, size + 5):
        if limit < 2:
            wanted = messages[-1:]
        elif limit < 2 + size:
            wanted = messages[-2:]
        else:
            wanted = messages[-2 - size :] if limit == 2 + size else messages
        assert windowed(messages, limit, one) == wanted
    assert windowed(unit, size, one) == unit
    assert windowed(unit, size - 1, one) == []


@pytest.mark.parametrize("form", FORMS)
def test_a_result_without_its_call_is_left_out(form: str) -> None:
    orphans = FORMS[form][1:]
    messages = [*orphans, user("a"), *orphans, user("b")]
    assert contents(windowed(messages, 100, one)) == ["a", "b"]
    assert contents(windowed([*orphans, *FORMS[form]], 100, one)) == contents(FORMS[form])
    assert windowed(orphans, 100, one) == []


@pytest.mark.parametrize("form", FORMS)
def test_what_is_said_within_an_exchange_divides_it_not(form: str) -> None:
    first, *rest = FORMS[form]
    messages = [first, user("meanwhile"), system(), *rest, user("after")]
    assert windowed(messages, 100, one) == messages
    fewer = windowed(messages, len(messages) - 1, one)
    assert fewer == [user("meanwhile"), system(), user("after")]


@pytest.mark.parametrize("form", FORMS)
def test_ids_that_are_used_again_belong_to_the_newest_call(form: str) -> None:
    unit = FORMS[form]
    messages = [*unit, user("1"), *unit, user("2")]
    assert windowed(messages, 2 + len(unit), one) == messages[len(unit) :]
    assert windowed(messages, 1 + 2 * len(unit), one) == messages[len(unit) :]
    assert windowed(messages, len(messages), one) == messages


def test_results_of_two_calls_in_one_message_keep_both_calls() -> None:
    messages = [use("a"), use("b"), used("a", "b"), user("after")]
    assert windowed(messages, 4, one) == messages
    assert windowed(messages, 3, one) == messages[-1:]
    assert windowed(messages, 2, one) == messages[-1:]


def test_a_call_that_waits_for_its_result_is_a_message_as_others() -> None:
    messages = [user("do it"), call("a", "b"), result("a")]
    assert windowed(messages, 3, one) == messages
    assert windowed(messages, 2, one) == messages[1:]
    assert windowed(messages, 1, one) == []


@pytest.mark.parametrize("role", ["system", "developer"])
def test_system_messages_stay_wherever_they_are(role: str) -> None:
    rules = [Message(role, i) for i in range(3)]
    messages = [rules[0], user("a"), rules[1], user("b"), user("c"), rules[2]]
    assert windowed(messages, 3, one) == rules
    assert windowed(messages, 4, one) == [*rules[:2], user("c"), rules[2]]
    assert windowed(messages, 5, one) == [*rules[:2], user("b"), user("c"), rules[2]]
    assert windowed(messages, 6, one) == messages
    with pytest.raises(ValueError, match="system messages alone"):
        windowed(messages, 2, one)


def test_nothing_older_than_what_does_not_fit_is_taken() -> None:
    sizes = [1, 1, 50, 2, 3]
    messages = [user(size) for size in sizes]
    assert contents(windowed(messages, 10, lambda m: m.content)) == [2, 3]
    assert contents(windowed(messages, 5, lambda m: m.content)) == [2, 3]
    assert contents(windowed(messages, 4, lambda m: m.content)) == [3]
    assert contents(windowed(messages, 2, lambda m: m.content)) == []
    assert contents(windowed(messages, 55, lambda m: m.content)) == [50, 2, 3]


def test_messages_may_count_nothing() -> None:
    messages = [system(), *[user(i) for i in range(9)]]
    assert windowed(messages, 1, lambda _: 0) == messages
    assert windowed([], 1, one) == []


@pytest.mark.parametrize("counted", [1.5, 2.0, None, "3", True, [1]], ids=repr)
@pytest.mark.parametrize("role", ["system", "user"])
def test_a_count_that_is_no_whole_number_is_refused(counted: Any, role: str) -> None:
    with pytest.raises(TypeError, match="count must return a whole number"):
        windowed([Message(role, "x")], 100, lambda _: counted)


def test_what_count_raises_is_raised() -> None:
    def count(message: Message) -> int:
        raise KeyError(message.content)

    with pytest.raises(KeyError, match="x"):
        windowed([user("x")], 5, count)


# -- properties ----------------------------------------------------------------------------------


class Made(NamedTuple):
    """A message and what it belongs to: an exchange, None (always kept), or nothing (left out)."""

    message: Message
    unit: int | None
    orphan: bool = False


@st.composite
def conversations(draw: st.DrawFn, *, again: bool = False) -> list[Made]:
    """Return conversations of all forms; with `again` complete exchanges use their ids again."""
    made: list[Made] = []
    cost = st.integers(0, 12)
    kinds = st.sampled_from(["plain", "system", "openai", "anthropic", "older", "orphan"])
    for unit in range(draw(st.integers(0, 9))):
        kind = draw(kinds)
        prefix = "" if again else f"{unit}."
        ids = [f"{prefix}{i}" for i in range(draw(st.integers(1, 3)))]
        block: list[Message]
        if kind == "plain":
            block = [Message(draw(st.sampled_from(["user", "assistant"])), "x")]
        elif kind == "system":
            role = draw(st.sampled_from(["system", "developer"]))
            made.append(Made(Message(role, "s"), None))
            block = []
        elif kind == "openai":
            results = draw(st.permutations(ids))
            missing = 0 if again else draw(st.integers(0, len(ids)))
            block = [call(*ids), *map(result, results[missing:])]
        elif kind == "anthropic":
            at = draw(st.integers(0, len(ids)))
            halves = [part for part in (ids[:at], ids[at:]) if part]
            block = [use(*ids), *(used(*part, text=draw(st.text(max_size=2))) for part in halves)]
        elif kind == "older":
            block = [function(f"f{prefix}"), returned(f"f{prefix}")]
        else:
            form: Any = draw(st.sampled_from([result, used, returned]))
            made.append(Made(form(f"nobody's {unit}"), 0, orphan=True))
            block = []
        first = len(made)
        for position, message in enumerate(block):
            made.append(Made(message, first))
            if position + 1 < len(block) and draw(st.integers(0, 5)) == 0:
                between = draw(st.sampled_from(["system", "user"]))
                own = None if between == "system" else len(made)
                made.append(Made(Message(between, "b"), own))
    for one_made in made:
        one_made.message.extra["tokens"] = draw(cost)
    return made


def size(message: Message) -> int:
    """Return how many tokens a message was made to have."""
    return int(message.extra["tokens"])


def expected(made: list[Made], limit: int) -> list[Message] | None:
    """Return what a window is to have, by trying each number of newest exchanges; None: error."""
    rules = sum(size(m.message) for m in made if m.unit is None)
    if rules > limit:
        return None
    units = list(dict.fromkeys(m.unit for m in made if m.unit is not None and not m.orphan))
    best: list[Message] = []
    for count in range(len(units) + 1):
        chosen = {None, *units[len(units) - count :]}
        window = [m.message for m in made if m.unit in chosen and not m.orphan]
        if sum(map(size, window)) > limit:
            break
        best = window
    return best


@given(conversations(), st.integers(1, 120))
def test_a_window_is_what_the_model_says(made: list[Made], limit: int) -> None:
    _check(made, limit)


@given(conversations(again=True), st.integers(1, 120))
def test_a_window_is_what_the_model_says_where_ids_are_used_again(
    made: list[Made], limit: int
) -> None:
    _check(made, limit)


def _check(made: list[Made], limit: int) -> None:
    messages = [one_made.message for one_made in made]
    wanted = expected(made, limit)
    if wanted is None:
        with pytest.raises(ValueError, match="system messages alone"):
            windowed(messages, limit, size)
        return
    found = windowed(messages, limit, size)
    assert list(map(id, found)) == list(map(id, wanted))


@given(conversations(), st.integers(1, 400))
def test_a_window_keeps_its_promises_by_the_default_count_too(made: list[Made], limit: int) -> None:
    messages = [one_made.message for one_made in made]
    rules = [m for m in messages if m.role in ("system", "developer")]
    if sum(map(tokens, rules)) > limit:
        with pytest.raises(ValueError, match="max_tokens"):
            windowed(messages, limit)
        return
    found = windowed(messages, limit)
    assert sum(map(tokens, found)) <= limit
    assert [m for m in found if m in rules] == rules
    kept = set(map(id, found))
    assert [m for m in messages if id(m) in kept] == found
    for unit in {m.unit for m in made}:
        together = [id(m.message) in kept for m in made if m.unit == unit and not m.orphan]
        assert len(set(together)) <= 1, "an exchange was split"
    assert not any(m.orphan and id(m.message) in kept for m in made)
    more = windowed(messages, limit + 50)
    assert kept <= set(map(id, more))


# -- tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (user(""), 4),
        (user(None), 4),
        (user("x"), 5),
        (user("x" * 4), 5),
        (user("x" * 5), 6),
        (user("x" * 4000), 1004),
        (user("日本" * 200), 104),
    ],
)
def test_a_text_has_a_quarter_of_its_characters_and_four(message: Message, wanted: int) -> None:
    assert tokens(message) == wanted


@given(st.text(max_size=50), st.text(max_size=50), st.text(max_size=50))
def test_what_is_no_text_counts_too(content: str, name: str, more: str) -> None:
    bare = tokens(user(content))
    assert bare == ceil(len(content) / 4) + 4
    assert tokens(user(content, tool_calls=[])) == bare
    assert tokens(user(content, name=name * 4, x={"y": more})) >= bare + len(name)
    parts = [{"type": "text", "text": content}, {"type": "text", "text": more}]
    assert tokens(user(parts)) >= (len(content) + len(more)) // 4 + 4


def test_calls_and_answers_are_read_in_each_form() -> None:
    for unit in FORMS.values():
        assert calls(unit[0])
        assert answers(unit[0]) == []
        assert sorted(one_ for m in unit[1:] for one_ in answers(m)) == sorted(calls(unit[0]))
        assert all(calls(m) == [] for m in unit[1:])


@pytest.mark.parametrize(
    "message",
    [
        user("tool_use"),
        user([]),
        user([None, 5, "tool_result", {"type": "text"}, {"type": "tool_result"}]),
        user({"type": "tool_result", "tool_use_id": "x"}),
        user(tool_calls=None, tool_call_id=None, function_call=None),
        user(tool_calls="x", tool_call_id=5, function_call="auto"),
        user(tool_calls=[None, {"id": None}, {"id": 5}, {}], function_call=[1]),
    ],
    ids=str,
)
def test_messages_of_no_known_form_are_plain_ones(message: Message) -> None:
    assert (calls(message), answers(message)) == ([], [])
    assert windowed([message, user()], 2, one) == [message, user()]


# -- of a stored session -------------------------------------------------------------------------


def test_a_stored_session_gives_the_same_window(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    assert redis.do(history.window(1)) == []
    messages = [system(), *[m for unit in FORMS.values() for m in [*unit, user("and?")]]]
    redis.do(history.add_many(messages))
    stored = redis.do(history.messages())
    for limit in (30, 60, 100, 200, 400, 10_000):
        found = redis.do(history.window(limit))
        assert found == windowed(stored, limit)
        assert sum(map(tokens, found)) <= limit
        assert found[0] == stored[0]
    assert redis.do(history.window(10_000)) == stored
    assert len(redis.do(history.window(3, one))) == 2  # the next exchange is of two
    assert len(redis.do(history.window(4, count=one))) == 4


def test_a_window_is_one_round_trip(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    redis.do(history.add_many(said(*range(50))))
    found = cost(redis, lambda: history.window(5, one))
    assert (found.round_trips, found.commands) == (1, {"XRANGE": 1})
    assert contents(found.result) == [45, 46, 47, 48, 49]


def test_a_window_that_cannot_be_is_an_error(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    redis.do(history.add("system", "x" * 400))
    redis.do(history.add("user", "x"))
    assert len(redis.do(history.window(104))) == 1
    with pytest.raises(ValueError, match=r"max_tokens.*104, not 103"):
        redis.do(history.window(103))
    bad: Any = lambda _: 0.5  # noqa: E731 - what a user may give
    with pytest.raises(TypeError, match="count"):
        redis.do(history.window(1000, bad))
    assert len(redis.do(history.messages())) == 2


def test_what_was_reset_behind_a_call_is_no_half_of_it(client: Client) -> None:
    history = ChatHistory(client, "s", max_messages=3)
    history.add_many([user("1"), call("a", "b"), result("a"), result("b"), user("2")])
    assert contents(history.messages()) == ["r", "r", "2"]
    assert contents(history.window(1000)) == ["2"]
