"""Which questions are the same one: chat messages, call parameters, texts."""

from __future__ import annotations

import base64
import copy
import json
import math
import random
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawredis_llm import Client, LLMCache, fingerprint
from rawredis_llm.caching.identity import LEFT_OUT, canonical
from rawredis_llm.keys import digest_of
from stored import keys

if TYPE_CHECKING:
    from conftest import Redis

NOBODY = "redis://127.0.0.1:1/0"
"""An address where no server listens: any I/O raises ConnectError."""

Chat = list[dict[str, Any]]


def user(content: Any) -> Chat:
    """Return a conversation of one turn."""
    return [{"role": "user", "content": content}]


def called(one: str, two: str, *, last: str | None = None, field: str = "tool_call_id") -> Chat:
    """Return a conversation with two tool calls, by these ids, and their results."""
    function = {"name": "weather", "arguments": '{"city": "Bonn"}'}
    return [
        *user("How is the weather?"),
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": one, "type": "function", "function": function},
                {"id": two, "type": "function", "function": function},
            ],
        },
        {"role": "tool", field: one, "content": "rain"},
        {"role": "tool", field: two if last is None else last, "content": "sun"},
    ]


def used(id_: str, link: str, **tool: Any) -> Chat:
    """Return a conversation in which a tool is called, as Anthropic's have it."""
    call = {"type": "tool_use", "id": id_, "name": "f", "input": tool}
    result = {"type": "tool_result", "tool_use_id": link, "content": "done"}
    return [{"role": "assistant", "content": [call]}, *user([result])]


def image(data: Any) -> Chat:
    """Return a question about an image."""
    return user([{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": data}])


# -- the same question ---------------------------------------------------------------------------

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"a": 1, "b": 2}}}]
SAME: dict[str, tuple[Any, Any]] = {
    "order of keys": (
        ([{"role": "user", "content": "x"}], {"temperature": 1, "top_p": 0.5}),
        ([{"content": "x", "role": "user"}], {"top_p": 0.5, "temperature": 1}),
    ),
    "order of keys inside of tools": (
        ("x", {"tools": TOOLS}),
        ("x", {"tools": json.loads(json.dumps(TOOLS).replace('"a": 1, "b": 2', '"b": 2, "a": 1'))}),
    ),
    "a None of a message": (
        ([{"role": "user", "content": "x", "name": None}], {}),
        (user("x"), {}),
    ),
    "a None of the parameters": (("x", {"temperature": None}), ("x", {})),
    "a message's id": (([{"role": "user", "content": "x", "id": "m1"}], {}), (user("x"), {})),
    "1 and 1.0": (("x", {"temperature": 1}), ("x", {"temperature": 1.0})),
    "0 and -0.0": (("x", {"temperature": 0}), ("x", {"temperature": -0.0})),
    "a tuple": ((tuple(user("x")), {"stop": ("a",)}), (user("x"), {"stop": ["a"]})),
    "ids of calls": ((called("a", "b"), {}), (called("call_9", "call_1"), {})),
    "ids of uses": ((used("a", "a", n=1), {}), (used("toolu_7", "toolu_7", n=1), {})),
    "a text and one turn": (("x", {}), (user("x"), {})),
    "kinds of bytes": ((image(b"abc"), {}), (image(bytearray(b"abc")), {})),
    **{f"{name} is left out": (("x", {name: "1"}), ("x", {name: "2"})) for name in LEFT_OUT},
    **{f"{name} or none": (("x", {name: "1"}), ("x", {})) for name in LEFT_OUT},
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_the_same_question(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    assert fingerprint(one[0], "m", one[1]) == fingerprint(other[0], "m", other[1])


# -- another question ----------------------------------------------------------------------------

LONG = "A" * 300
OTHER: dict[str, tuple[Any, Any]] = {
    "order of messages": (
        ([*user("a"), *user("b")], {}),
        ([*user("b"), *user("a")], {}),
    ),
    "order of tools": (("x", {"tools": [1, 2]}), ("x", {"tools": [2, 1]})),
    "role": ((user("x"), {}), ([{"role": "system", "content": "x"}], {})),
    "case": ((user("x"), {}), (user("X"), {})),
    "Unicode form": ((user("\u00e9"), {}), (user("e\u0301"), {})),
    "name": (([{"role": "user", "content": "x", "name": "a"}], {}), (user("x"), {})),
    "True and 1": (("x", {"logprobs": True}), ("x", {"logprobs": 1})),
    "True and 1.0": (("x", {"logprobs": True}), ("x", {"logprobs": 1.0})),
    "1 and the text": (("x", {"n": 1}), ("x", {"n": "1"})),
    "0.1 and 0.2": (("x", {"temperature": 0.1}), ("x", {"temperature": 0.2})),
    "None inside": (("x", {"a": [None]}), ("x", {"a": []})),
    "a None of a part": (
        (user([{"type": "text", "text": "x", "citations": None}]), {}),
        (user([{"type": "text", "text": "x"}]), {}),
    ),
    "an id of the caller's": (("x", {"id": "1"}), ("x", {"id": "2"})),
    "swapped results": ((called("a", "b"), {}), (called("a", "b", last="a"), {})),
    "swapped links": (
        (called("a", "b"), {}),
        ([*called("a", "b")[:2], *called("b", "a")[2:]], {}),
    ),
    "an unknown link": ((used("a", "a"), {}), (used("a", "b"), {})),
    "a tool's input": ((used("a", "a", n=1), {}), (used("a", "a", n=2), {})),
    "an image's bytes": ((image(b"abc"), {}), (image(b"abd"), {})),
    "an image's URL": (
        (image({"url": f"data:image/png;base64,{LONG}"}), {}),
        (image({"url": f"data:image/png;base64,{LONG[1:]}B"}), {}),
    ),
    "a digest's text": ((image(b"abc"), {}), (image(f"\0{digest_of(b'abc')}"), {})),
    "a digest's digest": (
        (image({"url": LONG}), {}),
        (image({"url": f"\0{digest_of(LONG.encode())}"}), {}),
    ),
    "a link's number": (
        (used("a", "a", n="\0000"), {}),
        (used("a", "a", n="0"), {}),
    ),
    "text in place of a part": ((user("x"), {}), (user([{"type": "text", "text": "x"}]), {})),
    "content or parameter": (("x", {"y": "z"}), ("x", {"z": "y"})),
    "two messages or one": (([*user("a"), *user("b")], {}), (user("ab"), {})),
    "JSON in a text": ((user('x"},{"role":"user"'), {}), ([*user("x"), *user("")], {})),
    **{
        name: (("x", {name: value}), ("x", {}))
        for name, value in (
            ("temperature", 0.0),
            ("tools", TOOLS),
            ("response_format", {"type": "json_object"}),
            ("seed", 1),
            ("max_tokens", 5),
            ("tool_choice", "auto"),
            ("system", "Be kind."),
        )
    },
}


@pytest.mark.parametrize(("one", "other"), OTHER.values(), ids=OTHER)
def test_another_question(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    assert fingerprint(one[0], "m", one[1]) != fingerprint(other[0], "m", other[1])


def test_model_and_framing_tell_questions_apart() -> None:
    asked = [("", "a"), ("a", "x"), ("ab", "c"), ("a", "bc"), ("", "abc"), ("abc", "")]
    asked += [("chat", "x"), ("4:chat", "x"), ("", 'x",{}]'), ('["', "x")]
    assert len({fingerprint(text, model) for model, text in asked}) == len(asked)


# -- the property --------------------------------------------------------------------------------

TEXTS = ("", "a", "b", "1", "true", "\0", "\0000", LONG, f"\0{digest_of(LONG.encode())}", "text")
SCALARS = (0, 1, 1.0, 0.5, True, False, None, 2**60, "image_url", *TEXTS)
NAMES = ("a", "b", "type", "id", "text", "content", "\0", "tool_use")
values = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=2)
    ),
    max_leaves=4,
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "tool"]), "content": values},
    optional={"name": values, "id": st.just("random")},
)
questions = st.tuples(
    st.lists(messages, min_size=1, max_size=2) | st.sampled_from(TEXTS),
    st.sampled_from(["", "m", "n"]),
    st.dictionaries(st.sampled_from(["top_p", "user", "stop"]), values, max_size=2),
)


def form(value: Any) -> Any:
    """Return what makes a value the same as another, by other means than JSON and digests."""
    if isinstance(value, dict):
        if value.get("type") == "tool_use":
            value = {name: part for name, part in value.items() if name != "id"}
        return "object", frozenset((name, form(part)) for name, part in value.items())
    if isinstance(value, list):
        return "list", tuple(form(part) for part in value)
    if isinstance(value, bool) or value is None:
        return "word", value
    return ("text", value) if isinstance(value, str) else ("number", Fraction(value))


def form_of(question: tuple[Any, str, dict[str, Any]]) -> Any:
    """Return the same of a question."""
    said, model, params = question
    said = user(said) if isinstance(said, str) else said
    given = [{k: v for k, v in one.items() if v is not None and k != "id"} for one in said]
    kept = {k: v for k, v in params.items() if v is not None and k != "user"}
    return model, form(given), form(kept)


@given(st.lists(questions, min_size=2, max_size=8))
def test_questions_are_the_same_if_and_only_if_their_forms_are(asked: list[Any]) -> None:
    prints = [fingerprint(*question) for question in asked]
    forms = [form_of(question) for question in asked]
    for one, other in combinations(range(len(asked)), 2):
        # Where ids are numbered, what is left of them depends on the others.
        if "tool_use" not in repr((asked[one], asked[other])):
            assert (prints[one] == prints[other]) == (forms[one] == forms[other])
        elif forms[one] != forms[other]:
            assert prints[one] != prints[other]


def shuffled(value: Any, seed: random.Random) -> Any:
    """Return a value whose dicts list their keys in another order."""
    if isinstance(value, dict):
        items = [(name, shuffled(part, seed)) for name, part in value.items()]
        seed.shuffle(items)
        return dict(items)
    return [shuffled(part, seed) for part in value] if isinstance(value, list) else value


@given(questions, st.randoms(use_true_random=False))
def test_the_order_of_keys_never_matters(question: Any, seed: random.Random) -> None:
    said, model, params = question
    before = copy.deepcopy(question)
    found = fingerprint(shuffled(said, seed), model, shuffled(params, seed))
    assert found == fingerprint(said, model, params)
    assert question == before  # what was given is left as it was


# -- what cannot be asked ------------------------------------------------------------------------

DEEP: Any = []
for _ in range(100_000):
    DEEP = [DEEP]
BAD: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "NaN": (user("x"), {"temperature": math.nan}, ValueError, "prompt or params"),
    "infinity": (user("x"), {"temperature": math.inf}, ValueError, "prompt or params"),
    "NaN in a message": (user([{"x": math.nan}]), None, ValueError, "prompt or params"),
    "a key that is a number": (user("x"), {1: 2}, TypeError, "key must be a str, not int"),
    "a key of bytes": (user([{b"a": 1}]), None, TypeError, "key must be a str, not bytes"),
    "a key that is None": (user([{None: 1}]), None, TypeError, "key must be a str"),
    "a set": (user("x"), {"stop": {"a"}}, TypeError, "prompt or params"),
    "an object": (user([object()]), None, TypeError, "prompt or params"),
    "a surrogate": (user("\ud800"), None, ValueError, "Unicode"),
    "deep parameters": (user("x"), {"tools": DEEP}, ValueError, "too deeply"),
    "no message": ([], None, TypeError, "not empty"),
    "a dict": ({"role": "user", "content": "x"}, None, TypeError, "list of messages"),
    "texts": (["x"], None, TypeError, "a dict with a role"),
    "no role": ([{"content": "x"}], None, TypeError, "a dict with a role"),
    "a role that is a number": ([{"role": 1}], None, TypeError, "a dict with a role"),
    "params of another kind": (user("x"), [("n", 1)], TypeError, "params must be a dict"),
}


@pytest.mark.parametrize(("said", "params", "error", "text"), BAD.values(), ids=BAD)
def test_what_cannot_be_asked_is_named_before_any_io(
    said: Any, params: Any, error: type[Exception], text: str
) -> None:
    with Client(NOBODY) as client:
        cache = LLMCache(client, on_error="raise")
        uses: list[Callable[[], Any]] = [
            lambda: fingerprint(said, "m", params),
            lambda: cache.lookup(said, "m", params=params),
            lambda: cache.lookup_many([said], "m", params=params),
            lambda: cache.store(said, "r", "m", params=params),
            lambda: cache.get_or_compute(said, lambda: "r", "m", params=params),
            lambda: cache.stream(said, lambda: ["r"], "m", params=params),
            lambda: cache.delete(said, "m", params=params),
        ]
        for use in uses:
            with pytest.raises(error, match=text) as caught:
                use()
            assert type(caught.value) is error


# -- in a cache ----------------------------------------------------------------------------------


def test_a_cache_tells_chats_texts_and_parameters_apart(redis: Redis) -> None:
    cache = LLMCache(redis.client)
    asked: list[tuple[Any, Any]] = [
        ("hi", None),
        (user("hi"), None),
        ("hi", {"temperature": 0}),
        (user("hi"), {"temperature": 0}),
        (canonical(user("hi")), None),
        (user("hi"), {"temperature": 1}),
        ([*user("hi"), {"role": "assistant", "content": "hello"}], None),
    ]
    for number, (prompt, params) in enumerate(asked):
        assert redis.do(cache.lookup(prompt, params=params)) is None
        redis.do(cache.store(prompt, f"{number}", params=params))
    found = [redis.do(cache.lookup(p, params=params)).response for p, params in asked]
    assert found == [f"{number}" for number in range(len(asked))]
    assert redis.do(cache.delete(user("hi"))) is True
    assert redis.do(cache.lookup("hi")).response == "0"
    assert redis.do(cache.lookup(user("hi"))) is None
    assert redis.do(cache.lookup(user("hi"), params={"temperature": 1.0})).response == "5"


def test_a_thousand_questions_that_are_nearly_equal(redis: Redis) -> None:
    cache = LLMCache(redis.client)
    long = "x" * 500
    asked: list[Any] = [user(f"{long}{number}") for number in range(500)]
    asked += [f"{long}{number}" for number in range(500)]
    for model in ("m", "n"):
        redis.do(cache.store_many(((p, f"{model}{i}") for i, p in enumerate(asked)), model))
    for model in ("m", "n"):
        hits = redis.do(cache.lookup_many(asked, model))
        assert [hit.response for hit in hits] == [f"{model}{i}" for i in range(1000)]
    assert len(keys(redis)) == 2000


def test_an_image_is_stored_by_its_digest(redis: Redis) -> None:
    cache = LLMCache(redis.client)
    picture = random.Random(1).randbytes(200_000)
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    for number, data in enumerate([picture, {"url": url}, {"url": url + "A"}, picture[1:]]):
        assert redis.do(cache.lookup(image(data))) is None
        redis.do(cache.store(image(data), f"{number}"))
        hit = redis.do(cache.lookup(image(data)))
        assert (hit.response, "What?" in hit.prompt) == (f"{number}", True)
    for key in keys(redis):
        assert redis.do(redis.client.call("STRLEN", key)) < 1000


# -- what must not come back ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["call_id", "tool_call_id", "tool_use_id"])
def test_what_a_tool_was_called_with_is_no_link(name: str) -> None:
    one, other = used("a", "a", **{name: "Alice"}), used("a", "a", **{name: "Bob"})
    assert fingerprint(one) != fingerprint(other)


def test_what_is_inside_of_a_tools_input_is_no_link() -> None:
    one, other = ({"type": "function", "id": name} for name in ("Alice", "Bob"))
    assert fingerprint(used("a", "a", x=one)) != fingerprint(used("a", "a", x=other))


def test_a_parameter_is_no_link() -> None:
    assert fingerprint("x", "", {"call_id": "a"}) != fingerprint("x", "", {"call_id": "b"})


def test_the_order_of_keys_never_matters_below_the_name_of_a_link() -> None:
    one = {"tools": [{"properties": {"call_id": {"type": "string", "title": "x"}}}]}
    other = {"tools": [{"properties": {"call_id": {"title": "x", "type": "string"}}}]}
    assert fingerprint("x", "", one) == fingerprint("x", "", other)


@pytest.mark.parametrize("data", [b"A" * 300, b"\0abc"], ids=["long", "NUL"])
def test_bytes_are_not_their_text(data: bytes) -> None:
    assert fingerprint(image(data)) != fingerprint(image(data.decode()))


def test_messages_that_are_nested_too_deeply_are_refused() -> None:
    with pytest.raises(ValueError, match="too deeply"):
        fingerprint(user(DEEP))


@pytest.mark.parametrize("params", [{}, {"stream": True}, {"temperature": None}], ids=str)
def test_a_text_is_the_same_with_parameters_that_do_not_count(
    client: Client, params: dict[str, Any]
) -> None:
    cache = LLMCache(client)
    cache.store("hi", "r")
    assert cache.lookup("hi", params=params) is not None


def test_an_empty_text_is_refused_with_parameters_too() -> None:
    with Client(NOBODY) as client, pytest.raises(ValueError, match="prompt"):
        LLMCache(client, on_error="raise").lookup(" ", params={"temperature": 0})
