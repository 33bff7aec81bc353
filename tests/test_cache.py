"""The exact answer cache, on a server with search and on one without: it needs none."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from time import sleep
from typing import TYPE_CHECKING, Any

import pytest

from counting import cost
from rawredis_llm import CacheHit, Client, EmbeddedServer, LLMCache, errors

if TYPE_CHECKING:
    from conftest import Redis

NOBODY = "redis://127.0.0.1:1/0"
"""An address where no server listens: any I/O raises ConnectError."""


@pytest.fixture(scope="module", params=["search", "plain"])
def server(
    request: pytest.FixtureRequest, server: EmbeddedServer, plain_server: EmbeddedServer
) -> EmbeddedServer:
    """Either server, so that all of this file runs on both."""
    return server if request.param == "search" else plain_server


def keys(redis: Redis) -> list[bytes]:
    """Return every key there is but for the counts, sorted."""
    found = redis.do(redis.client.call("KEYS", "*"))
    return sorted(key for key in found if not re.search(rb":c:[0-9a-f]{32}\Z", key))


def responses(hits: list[CacheHit | None]) -> list[str | None]:
    """Return what each of a list of hits answers."""
    return [None if hit is None else hit.response for hit in hits]


# -- found, replaced, deleted --------------------------------------------------------------------


def test_miss_store_hit_delete_miss(redis: Redis) -> None:
    cache = LLMCache(redis.client)
    assert redis.do(cache.lookup("why?", "m")) is None
    id_ = redis.do(cache.store("why?", "because", "m", metadata={"tokens": 3, "who": ["é", None]}))
    hit = redis.do(cache.lookup("why?", "m"))
    assert 0 <= hit.age < 60
    assert hit == CacheHit(
        response="because",
        prompt="why?",
        model="m",
        id=id_,
        metadata={"tokens": 3, "who": ["é", None]},
        age=hit.age,
    )
    assert redis.do(cache.delete("why?", "m")) is True
    assert redis.do(cache.lookup("why?", "m")) is None
    assert redis.do(cache.delete("why?", "m")) is False


@pytest.mark.parametrize(
    "text", ["\0", "日本語 🦜 \r\n", '"quotes" \\ {}', " spaced ", "x" * 200_000, "NaN"]
)
def test_any_text_comes_back_as_it_was(redis: Redis, text: str) -> None:
    cache = LLMCache(redis.client, scope=text)
    redis.do(cache.store("p" + text, text, text, metadata={"m": text}))
    hit = redis.do(cache.lookup("p" + text, text))
    assert (hit.response, hit.prompt, hit.model) == (text, "p" + text, text)
    assert hit.metadata == {"m": text}


def test_metadata_cannot_overwrite_what_is_ours(redis: Redis) -> None:
    cache = LLMCache(redis.client, scope="s")
    names = (
        "id",
        "scope",
        "model",
        "prompt",
        "response",
        "created",
        "px",
        "metadata",
        "ttl",
        "age",
    )
    metadata: dict[str, Any] = dict.fromkeys(names, "theirs")
    redis.do(cache.store("p", "r", "m", metadata=metadata))
    hit = redis.do(cache.lookup("p", "m"))
    assert (hit.response, hit.prompt, hit.model, hit.ttl) == ("r", "p", "m", None)
    assert hit.metadata == metadata


def test_an_empty_answer_is_an_answer(redis: Redis) -> None:
    cache = LLMCache(redis.client)
    redis.do(cache.store("p", ""))
    assert redis.do(cache.lookup("p")).response == ""


def test_prompts_differ_by_every_character(redis: Redis) -> None:
    cache = LLMCache(redis.client)
    prompts = ["p", "P", "p ", " p", "p\n", "p?", "é", "e\u0301"]
    redis.do(cache.store_many((prompt, str(i)) for i, prompt in enumerate(prompts)))
    assert responses(redis.do(cache.lookup_many(prompts))) == [str(i) for i in range(len(prompts))]


def test_a_key_shows_nothing_of_prompt_scope_or_model(redis: Redis) -> None:
    redis.do(LLMCache(redis.client, scope="acme").store("secret", "r", "gpt"))
    [key] = keys(redis)
    assert re.fullmatch(rb"llm:x(:[0-9a-f]{32}){3}", key)


APART = [
    # namespace, scope, model, prompt: joined without framing, many of these are the same text.
    ("llm", "", "", "p"),
    ("llm", "", "a", "p"),
    ("llm", "", "b", "p"),
    ("llm", "a", "", "p"),
    ("llm", "A", "", "p"),
    ("llm", "a ", "", "p"),
    ("llm", "a:b", "c", "p"),
    ("llm", "a", "b:c", "p"),
    ("llm", "a", "b", "c:p"),
    ("llm", "a", "", "b:c:p"),
    ("llm", "", "pm", "p"),
    ("llm", "", "p", "mp"),
    ("llm:a", "", "", "p"),
    ("llm", ":a", "", "p"),
    ("llm", "", "\0", "p"),
    ("llm", "\0", "", "p"),
    ("llm", "", "p", "p"),
    ("llm", "1", "1", "1"),
    ("llm", "1:1", "", "1"),
]


def test_namespace_scope_and_model_keep_identical_prompts_apart(redis: Redis) -> None:
    caches = [LLMCache(redis.client, namespace=n, scope=s) for n, s, _, _ in APART]
    asked = [(prompt, model) for _, _, model, prompt in APART]
    for i, (cache, (prompt, model)) in enumerate(zip(caches, asked, strict=True)):
        assert redis.do(cache.lookup(prompt, model)) is None, APART[i]
        redis.do(cache.store(prompt, str(i), model))
    found = [redis.do(c.lookup(p, m)).response for c, (p, m) in zip(caches, asked, strict=True)]
    assert found == [str(i) for i in range(len(APART))]
    assert redis.do(caches[0].delete(*asked[0]))
    left = [redis.do(c.lookup(p, m)) for c, (p, m) in zip(caches, asked, strict=True)]
    assert [hit is None for hit in left] == [True] + [False] * (len(APART) - 1)


# -- time to live --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("default", "own", "seconds"),
    [(None, None, None), (100, None, 100), (100, 500.5, 500.5), (None, 0.5, 0.5), (100, 1e9, 1e9)],
)
def test_ttl_is_the_entrys_own_else_the_caches(
    redis: Redis, default: float | None, own: float | None, seconds: float | None
) -> None:
    cache = LLMCache(redis.client, ttl=default)
    redis.do(cache.store("p", "r", ttl=own))
    hit = redis.do(cache.lookup("p"))
    left = redis.do(redis.client.call("PTTL", keys(redis)[0]))
    if seconds is None:
        assert (left, hit.ttl) == (-1, None)
    else:
        assert 0 < left <= seconds * 1000
        assert left > seconds * 1000 - 60_000
        assert hit.ttl == pytest.approx(left / 1000, abs=1)
        assert hit.age + hit.ttl == pytest.approx(seconds, abs=0.01)


def test_age_and_ttl_pass(redis: Redis) -> None:
    cache = LLMCache(redis.client, ttl=100)
    redis.do(cache.store("p", "r"))
    [key] = keys(redis)
    entry = json.loads(redis.do(redis.client.call("GET", key)))
    entry["created"] -= 40
    redis.do(redis.client.call("SET", key, json.dumps(entry), "KEEPTTL"))
    hit = redis.do(cache.lookup("p"))
    assert (hit.age, hit.ttl) == (pytest.approx(40, abs=1), pytest.approx(60, abs=1))
    entry["created"] += 1000  # a clock that went back
    redis.do(redis.client.call("SET", key, json.dumps(entry)))
    assert redis.do(cache.lookup("p")).age == 0


def test_an_entry_past_its_time_is_a_miss(redis: Redis) -> None:
    cache = LLMCache(redis.client)
    redis.do(cache.store("p", "r", ttl=1e-9))  # rounds up to a millisecond
    sleep(0.01)
    assert redis.do(cache.lookup("p")) is None
    assert redis.do(cache.lookup_many(["p"])) == [None]


def test_a_hit_leaves_the_time_to_live_alone(redis: Redis) -> None:
    cache = LLMCache(redis.client, ttl=1000)
    redis.do(cache.store("p", "r", ttl=100))
    redis.do(cache.lookup("p"))
    assert redis.do(redis.client.call("PTTL", keys(redis)[0])) <= 100_000


def test_an_entry_is_replaced_whole(redis: Redis) -> None:
    cache = LLMCache(redis.client)
    first = redis.do(cache.store("p", "old", ttl=50, metadata={"a": 1, "b": 2}))
    assert redis.do(cache.store("p", "new", metadata={"b": 3})) == first
    hit = redis.do(cache.lookup("p"))
    assert (hit.response, hit.metadata, hit.ttl) == ("new", {"b": 3}, None)
    assert redis.do(redis.client.call("PTTL", keys(redis)[0])) == -1
    redis.do(cache.store("p", "newer", ttl=70))
    hit = redis.do(cache.lookup("p"))
    assert (hit.response, hit.metadata) == ("newer", {})
    assert hit.ttl == pytest.approx(70, abs=1)
    assert len(keys(redis)) == 1


# -- clear ---------------------------------------------------------------------------------------

NAMESPACES = ["llm", "llm:x", "ll", "llmx", "l*", "*", "l?m", "[l]lm", "[", "]", "\\", "^-", "a-z"]


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_clear_removes_its_own_scope_and_namespace_only(redis: Redis, namespace: str) -> None:
    caches = {
        (name, scope): LLMCache(redis.client, namespace=name, scope=scope)
        for name in NAMESPACES
        for scope in ("", "*", "t")
    }
    own = caches[namespace, "t"]
    redis.do(own.store("q", "r", "m"))
    [key] = keys(redis)
    scope_part = key[: -len(":".join(["0" * 32] * 2))]
    foreign = [key + b"0", key[:-1], key[:-1] + b"G", b"x" + key, key + b":y", key[:-33], b"other"]
    for name in foreign:
        redis.do(redis.client.call("SET", name, "theirs"))
    for cache in caches.values():
        redis.do(cache.store("p", "r"))
    before = set(keys(redis))
    mine = {name for name in before if name.startswith(scope_part) and name not in foreign}
    assert redis.do(own.clear()) == len(mine) == 2
    assert set(keys(redis)) == before - mine
    assert redis.do(own.clear()) == 0


def test_clear_reaches_every_page(redis: Redis) -> None:
    cache = LLMCache(redis.client)
    redis.do(cache.store_many((f"p{i}", "r") for i in range(2500)))
    assert redis.do(cache.clear()) == 2500
    assert keys(redis) == []


# -- many at once --------------------------------------------------------------------------------


def test_many_are_stored_and_found_in_order(redis: Redis) -> None:
    cache = LLMCache(redis.client, ttl=100)
    ids = redis.do(cache.store_many([("a", "1"), ("b", "2")], "m", metadata={"x": 1}))
    hits = redis.do(cache.lookup_many(["b", "nowhere", "a", "b"], "m"))
    assert responses(hits) == ["2", None, "1", "2"]
    assert [hit and hit.id for hit in hits] == [ids[1], None, ids[0], ids[1]]
    assert all(hit.metadata == {"x": 1} and 90 < hit.ttl <= 100 for hit in hits if hit)
    assert redis.do(cache.lookup_many(["a", "b"])) == [None, None]  # another model


def test_many_cost_one_round_trip(redis: Redis) -> None:
    cache = LLMCache(redis.client)
    entries = [(f"p{i}", "r") for i in range(20)]
    stored = cost(redis, lambda: cache.store_many(entries))
    assert (stored.round_trips, stored.commands) == (1, {"SET": 20})
    found = cost(redis, lambda: cache.lookup_many([prompt for prompt, _ in entries]))
    assert (found.round_trips, found.commands) == (1, {"MGET": 1})
    assert responses(found.result) == ["r"] * 20


def test_an_entry_and_its_ttl_are_one_command(redis: Redis) -> None:
    cache = LLMCache(redis.client)
    assert cost(redis, lambda: cache.store("p", "r", ttl=5)).commands == {"SET": 1}


def test_none_of_many_needs_no_server() -> None:
    with Client(NOBODY) as client:
        cache = LLMCache(client, on_error="raise")
        assert cache.lookup_many([]) == []
        assert cache.store_many([]) == []


# -- what lies under our key and is not ours -----------------------------------------------------

DAMAGED: dict[str, Any] = {
    "no text": b"\xff\xfe",
    "empty": b"",
    "no JSON": b"hello",
    "cut": b'{"id":',
    "deep": b"[" * 100_000,
    "null": None,
    "a list": [],
    "a text": "r",
    "a number": 1,
    "no entry": {},
    **{
        f"{name}={value!r:.20}": {name: value}
        for name, value in (
            ("id", "0" * 32),
            ("id", None),
            ("scope", "other"),
            ("scope", 1),
            ("model", "other"),
            ("model", None),
            ("response", None),
            ("response", 5),
            ("prompt", None),
            ("metadata", []),
            ("metadata", "x"),
            ("created", math.nan),
            ("created", -math.inf),
            ("created", 10**400),
            ("px", 10**400),
            ("px", -1),
            ("created", None),
            ("created", "now"),
            ("px", "1"),
            ("px", 1.5),
        )
    },
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_or_foreign_value_is_a_miss(redis: Redis, damage: Any) -> None:
    cache = LLMCache(redis.client, scope="s", on_error="raise")
    redis.do(cache.store("p", "r", "m"))
    [key] = keys(redis)
    entry = json.loads(redis.do(redis.client.call("GET", key)))
    if isinstance(damage, dict):
        damage = {**entry, **damage} if damage else {}
    value = damage if isinstance(damage, bytes) else json.dumps(damage)
    redis.do(redis.client.call("SET", key, value))
    assert redis.do(cache.lookup("p", "m")) is None
    assert redis.do(cache.lookup_many(["p"], "m")) == [None]


@pytest.mark.parametrize("field", ["id", "scope", "model", "response", "prompt", "created", "px"])
def test_an_entry_that_lacks_a_part_is_a_miss_or_whole(redis: Redis, field: str) -> None:
    cache = LLMCache(redis.client, scope="s")
    redis.do(cache.store("p", "r", "m"))
    [key] = keys(redis)
    entry = json.loads(redis.do(redis.client.call("GET", key)))
    del entry[field]
    redis.do(redis.client.call("SET", key, json.dumps(entry)))
    hit = redis.do(cache.lookup("p", "m"))
    assert hit is None if field != "px" else hit.ttl is None


@pytest.mark.parametrize("refresh", ["never", "on_hit"])
def test_a_key_of_another_kind_is_a_miss(redis: Redis, refresh: str) -> None:
    cache = LLMCache(redis.client, on_error="raise", refresh=refresh)
    redis.do(cache.store("p", "r"))
    [key] = keys(redis)
    redis.do(redis.client.call("DEL", key))
    redis.do(redis.client.call("LPUSH", key, "x"))
    assert redis.do(cache.lookup("p")) is None
    assert redis.do(cache.lookup_many(["p"])) == [None]
    assert redis.do(cache.stats()).misses == {"damaged": 1, "absent": 1}
    redis.do(cache.store("p", "r"))
    assert redis.do(cache.lookup("p")).response == "r"


def test_another_entry_moved_under_our_key_is_a_miss(redis: Redis) -> None:
    theirs, ours = (LLMCache(redis.client, scope=scope) for scope in ("theirs", "ours"))
    redis.do(theirs.store("p", "their secret"))
    [their_key] = keys(redis)
    redis.do(ours.store("p", "r"))
    [our_key] = [key for key in keys(redis) if key != their_key]
    redis.do(redis.client.call("COPY", their_key, our_key, "REPLACE"))
    assert redis.do(ours.lookup("p")) is None


# -- the caller's mistakes -----------------------------------------------------------------------

Use = Callable[[LLMCache[Client]], object]


def storing(*args: Any, **options: Any) -> Use:
    """Return a use of `store` of which the type checker shall know nothing."""
    return lambda cache: cache.store(*args, **options)


BAD_CALLS: list[tuple[str, type[Exception], str, Use]] = [
    ("prompt empty", ValueError, "prompt", storing("", "r")),
    ("prompt blank", ValueError, "prompt", storing(" \n", "r")),
    ("prompt None", TypeError, "prompt", storing(None, "r")),
    ("prompt bytes", TypeError, "prompt", storing(b"p", "r")),
    ("prompt surrogate", ValueError, "prompt", storing("\ud800", "r")),
    ("model None", TypeError, "model", storing("p", "r", None)),
    ("model surrogate", ValueError, "model", storing("p", "r", "\ud800")),
    ("response None", TypeError, "response", storing("p", None)),
    ("response surrogate", ValueError, "response", storing("p", "\ud800")),
    *(
        (f"ttl {ttl!r}", error, "ttl", storing("p", "r", ttl=ttl))
        for ttl, error in (
            (0, ValueError),
            (-1, ValueError),
            (math.nan, ValueError),
            (math.inf, ValueError),
            (1e300, ValueError),
            (True, TypeError),
            ("5", TypeError),
        )
    ),
    *(
        (f"metadata {bad!r:.30}", error, "metadata", storing("p", "r", metadata=bad))
        for bad, error in (
            ([1], TypeError),
            ("x", TypeError),
            ({"x": {1}}, TypeError),
            ({"x": b"y"}, TypeError),
            ({("a",): 1}, TypeError),
            ({"x": math.nan}, ValueError),
            ({"x": "\ud800"}, ValueError),
        )
    ),
    ("many: one bad", ValueError, "prompt", lambda c: c.store_many([("p", "r"), ("", "r")])),
    ("many: answer", TypeError, "response", lambda c: c.store_many([("p", "r"), ("q", 5)])),
    ("lookup empty", ValueError, "prompt", lambda c: c.lookup("")),
    ("lookup model", TypeError, "model", lambda c: c.lookup("p", 5)),  # type: ignore[arg-type]
    ("lookup_many text", TypeError, "prompts", lambda c: c.lookup_many("pq")),
    ("lookup_many empty", ValueError, "prompt", lambda c: c.lookup_many(["p", ""])),
    ("delete None", TypeError, "prompt", lambda c: c.delete(None)),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(
    ("error", "argument", "use"), [row[1:] for row in BAD_CALLS], ids=[row[0] for row in BAD_CALLS]
)
def test_a_bad_argument_is_named_and_nothing_is_written(
    client: Client, error: type[Exception], argument: str, use: Use
) -> None:
    with pytest.raises(error, match=argument) as caught:
        use(LLMCache(client, ttl=5))
    assert type(caught.value) is error
    assert client.call("DBSIZE") == 0


def test_a_bad_argument_is_refused_before_any_io() -> None:
    with Client(NOBODY) as client:
        cache = LLMCache(client, on_error="raise")
        for _, error, argument, use in BAD_CALLS:
            with pytest.raises(error, match=argument):
                use(cache)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"namespace": ""}, ValueError),
        ({"namespace": None}, TypeError),
        ({"scope": None}, TypeError),
        ({"scope": 5}, TypeError),
        ({"ttl": 0}, ValueError),
        ({"ttl": -1}, ValueError),
        ({"ttl": math.nan}, ValueError),
        ({"ttl": True}, TypeError),
        ({"on_error": "ignore"}, ValueError),
        ({"on_error": None}, ValueError),
    ],
    ids=str,
)
def test_a_bad_option_is_named(options: dict[str, Any], error: type[Exception]) -> None:
    with Client(NOBODY) as client, pytest.raises(error, match=next(iter(options))):
        LLMCache(client, **options)


def test_a_text_is_no_pair_to_store(client: Client) -> None:
    for entries in (["ab"], [("p",)], [5], [("p", "r", "m")], {"ab": "cd"}):
        with pytest.raises((TypeError, ValueError), match="entries"):
            LLMCache(client).store_many(entries)  # type: ignore[arg-type]
    assert client.call("DBSIZE") == 0


# -- no server, or one that says no --------------------------------------------------------------


def test_a_server_out_of_reach_is_a_miss_that_is_logged(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    cache = LLMCache(redis.connect(url=NOBODY))
    assert redis.do(cache.lookup("secret")) is None
    assert redis.do(cache.lookup_many(["secret", "q"])) == [None, None]
    assert len(redis.do(cache.store("secret", "r"))) == 32
    assert len(redis.do(cache.store_many([("secret", "r"), ("q", "r")]))) == 2
    # Who did not ask, because another one just had no answer, has nothing to say.
    assert 1 <= len(caplog.records) <= 4
    assert all(record.name == "rawredis_llm" for record in caplog.records)
    assert "127.0.0.1:1" in caplog.text
    assert "secret" not in caplog.text


def test_a_server_out_of_reach_raises_if_told_so(redis: Redis) -> None:
    cache = LLMCache(redis.connect(url=NOBODY), on_error="raise")
    calls: list[Callable[[], Any]] = [
        lambda: cache.lookup("p"),
        lambda: cache.lookup_many(["p"]),
        lambda: cache.store("p", "r"),
        lambda: cache.store_many([("p", "r")]),
    ]
    for call in calls:
        with pytest.raises(errors.ConnectionError):
            redis.do(call())


@pytest.mark.parametrize("on_error", ["miss", "raise"])
def test_deletions_never_pretend_to_have_happened(redis: Redis, on_error: str) -> None:
    cache = LLMCache(redis.connect(url=NOBODY), on_error=on_error)
    with pytest.raises(errors.ConnectionError):
        redis.do(cache.delete("p"))
    with pytest.raises(errors.ConnectionError):
        redis.do(cache.clear())


def test_a_refusal_raises_whatever_the_policy(redis: Redis) -> None:
    stranger = LLMCache(redis.connect(username="nobody", password="wrong"), on_error="miss")
    with pytest.raises(errors.AuthenticationError):
        redis.do(stranger.lookup("p"))
    with pytest.raises(errors.AuthenticationError):
        redis.do(stranger.store("p", "r"))


def test_the_client_works_on_after_a_refusal(redis: Redis) -> None:
    cache = LLMCache(redis.client)
    redis.do(cache.store("p", "r"))
    redis.do(redis.client.call("SET", "n", "text"))
    with pytest.raises(errors.WrongTypeError):
        redis.do(redis.client.call("LPUSH", "n", "x"))
    assert redis.do(cache.lookup("p")).response == "r"
