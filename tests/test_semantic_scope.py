"""Who may share an answer in the semantic cache: the same scope, model, embedder and context only.

Every question here lies at the same place and every threshold is the widest one, so that nothing
but the tags keeps the entries apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rawredis_llm import Client, EmbeddedServer, SemanticCache, extractor
from test_semantic_cache import FAR, NEAR, Circle, answer, at, make

if TYPE_CHECKING:
    from conftest import Redis

Q = at(0)
USER = {"role": "user", "content": Q}
SYSTEM = {"role": "system", "content": "Answer in French."}
EARLIER = [{"role": "user", "content": at(0, "a")}, {"role": "assistant", "content": "b"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module", params=["search", "plain"])
def server(
    request: pytest.FixtureRequest, server: EmbeddedServer, plain_server: EmbeddedServer
) -> EmbeddedServer:
    """Either server, so that all of this file runs on both."""
    return server if request.param == "search" else plain_server


def image(name: str) -> dict[str, Any]:
    """Return a part of a message that is an image."""
    return {"type": "image_url", "image_url": {"url": f"https://example.org/{name}.png"}}


@pytest.mark.parametrize("algorithm", ["flat", "hnsw"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_two_scopes_and_two_models_never_see_each_other(
    client: Client, algorithm: str, dtype: str
) -> None:
    def cache(scope: str) -> SemanticCache[Client]:
        made: dict[str, Any] = {"algorithm": algorithm, "dtype": dtype, "max_distance": 2}
        return SemanticCache(client, Circle(), scope=scope, **made)

    mine, theirs = cache("mine"), cache("theirs")
    for i in range(12):
        theirs.store(at(0, str(i)), "theirs", "m")
        mine.store(at(0, str(i)), "another model's", "m2")
    for prompt in (at(0, "0"), at(0, "new")):  # word for word, and by nearness
        assert mine.lookup(prompt, "m") is None
        assert theirs.lookup(prompt, "m2") is None
        assert answer(theirs.lookup(prompt, "m")) == "theirs"
    mine.store(at(FAR), "mine", "m")  # all that is near is another's
    assert answer(mine.lookup(at(0, "new"), "m")) == "mine"


CONTEXTS: list[tuple[Any, dict[str, Any] | None]] = [
    (Q, None),
    ([USER], None),
    ([SYSTEM, USER], None),
    ([{"role": "system", "content": "Answer in German."}, USER], None),
    ([{**SYSTEM, "role": "developer"}, USER], None),
    ([*EARLIER, USER], None),
    ([*EARLIER[:1], USER], None),
    ([*EARLIER[:1], {"role": "assistant", "content": "c"}, USER], None),
    ([SYSTEM, *EARLIER, USER], None),
    ([*EARLIER, SYSTEM, USER], None),
    ([USER, {"role": "assistant", "content": "So"}], None),
    ([{**USER, "name": "Ann"}], None),
    ([USER], {"temperature": 0}),
    ([USER], {"temperature": 1}),
    (Q, {"temperature": 1}),
    ([USER], {"tools": [TOOL]}),
    ([USER], {"tools": [{**TOOL, "function": {"name": "time"}}]}),
    ([USER], {"response_format": {"type": "json_object"}}),
    ([{"role": "user", "content": [{"type": "text", "text": Q}, image("a")]}], None),
    ([{"role": "user", "content": [{"type": "text", "text": Q}, image("b")]}], None),
    ([{"role": "user", "content": [{"type": "text", "text": Q}, image("a"), image("b")]}], None),
]


def test_the_same_last_turn_in_another_context_has_its_own_answer(redis: Redis) -> None:
    cache = make(redis, max_distance=2)
    for i, (messages, params) in enumerate(CONTEXTS):
        assert redis.do(cache.lookup(messages, params=params)) is None, CONTEXTS[i]
        redis.do(cache.store(messages, str(i), params=params))
    ops = [cache.plan.lookup(messages, params=params) for messages, params in CONTEXTS]
    found = redis.do(redis.client.gather(ops))
    assert [answer(hit) for hit in found] == [str(i) for i in range(len(CONTEXTS))]
    # The same by nearness: every word of the last turn is another one.
    ops = [cache.plan.lookup(moved(m), params=params) for m, params in CONTEXTS]
    found = redis.do(redis.client.gather(ops))
    assert [answer(hit) for hit in found] == [str(i) for i in range(len(CONTEXTS))]
    assert all(hit.distance == pytest.approx(0.02, abs=1e-3) for hit in found)


def moved(prompt: Any) -> Any:
    """Return a prompt whose last user turn has other words, a little farther on."""
    if isinstance(prompt, str):
        return at(NEAR)
    last = max(i for i, message in enumerate(prompt) if message["role"] == "user")
    content: Any = at(NEAR, "said otherwise ")
    if isinstance(prompt[last]["content"], list):
        content = [{"type": "text", "text": content}, *prompt[last]["content"][1:]]
    return [*prompt[:last], {**prompt[last], "content": content}, *prompt[last + 1 :]]


SHARED: list[tuple[Any, Any]] = [
    ([SYSTEM, USER], [{"content": SYSTEM["content"], "role": "system", "id": "msg_1"}, USER]),
    ([SYSTEM, USER], [{**SYSTEM, "name": None}, {**USER, "content": at(NEAR)}]),
    ([USER], [{"role": "user", "content": [{"type": "text", "text": at(NEAR)}]}]),
]


@pytest.mark.parametrize(("stored", "asked"), SHARED)
def test_the_same_context_shares_an_answer(redis: Redis, stored: Any, asked: Any) -> None:
    cache = make(redis)
    redis.do(cache.store(stored, "r", "m", params={"temperature": 1, "stream": True}))
    hit = redis.do(cache.lookup(asked, "m", params={"user": "ann", "temperature": 1.0}))
    assert answer(hit) == "r"
    assert redis.do(cache.lookup(asked, "m2", params={"temperature": 1})) is None


def test_tool_calls_are_the_same_by_their_order_and_not_by_their_ids(redis: Redis) -> None:
    cache = make(redis)

    def turns(call: str, result: str, said: float) -> list[dict[str, Any]]:
        calls = [{"id": call, "type": "function", "function": {"name": "f", "arguments": "{}"}}]
        return [
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": call, "content": result},
            {"role": "user", "content": at(said)},
        ]

    redis.do(cache.store(turns("call_1", "rain", 0), "r"))
    assert answer(redis.do(cache.lookup(turns("call_2", "rain", NEAR)))) == "r"
    assert redis.do(cache.lookup(turns("call_1", "sun", 0))) is None


# -- templates -----------------------------------------------------------------------------------


TEMPLATES = ["Translate: {prompt}", "Summarise: {prompt}", "{prompt} - in short", "{prompt}"]


def test_templates_with_the_same_core_never_share_an_answer(redis: Redis) -> None:
    caches = [make(redis, max_distance=2, extract=extractor(one)) for one in TEMPLATES]
    for cache, template in zip(caches, TEMPLATES, strict=True):
        assert redis.do(cache.lookup(template.replace("{prompt}", Q))) is None, template
        redis.do(cache.store(template.replace("{prompt}", Q), template))
    for core in (Q, at(NEAR, "said otherwise ")):
        asked = [template.replace("{prompt}", core) for template in TEMPLATES]
        found = [redis.do(c.lookup(text)) for c, text in zip(caches, asked, strict=True)]
        assert [answer(hit) for hit in found] == TEMPLATES


def test_another_templates_prompt_is_compared_whole_and_apart(redis: Redis) -> None:
    cache = make(redis, max_distance=2, extract=extractor("Translate: {prompt}"))
    redis.do(cache.store("Translate: hello @0", "bonjour"))
    assert answer(redis.do(cache.lookup("Translate:  good day @0"))) == "bonjour"
    assert redis.do(cache.lookup("Summarise: hello @0")) is None
    assert redis.do(cache.lookup("hello @0")) is None


def test_one_function_may_tell_several_templates_apart(redis: Redis) -> None:
    def split(prompt: Any) -> tuple[str, str]:
        task, _, core = prompt.partition(": ")
        return core, task

    cache = make(redis, max_distance=2, extract=split)
    redis.do(cache.store("Translate: @0", "translated"))
    assert redis.do(cache.lookup("Summarise: @0")) is None
    redis.do(cache.store("Summarise: @0", "summarised"))
    assert answer(redis.do(cache.lookup("Translate: again @0"))) == "translated"
    assert answer(redis.do(cache.lookup("Summarise: again @0"))) == "summarised"


def test_only_the_core_is_embedded_and_the_whole_prompt_comes_back(redis: Redis) -> None:
    embedder = Circle()
    cache = make(redis, embedder=embedder, extract=extractor("Translate: {prompt}"))
    redis.do(cache.store("Translate: @0", "r"))
    hit = redis.do(cache.lookup(f"Translate: @{NEAR}"))
    assert hit.prompt == "Translate: @0"
    assert embedder.calls == [["@0"], [f"@{NEAR}"]]
