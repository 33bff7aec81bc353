"""The contenders of the answer caches, and what they are filled with and asked.

* `ready bytes, socket + hiredis`: a bare socket that sends bytes made before the clock starts, the
  same that ours sends, and leaves the reply as hiredis makes it.
* `rawredis_llm, call alone`: the same command by our client's `call`: what a cache adds to that.
* `rawredis_llm`: the cache, by its public API; the embedder returns numpy arrays.
* `rawredis_llm, lists`: the same, of vectors that are lists of floats, as the rivals' are.
* `rawredis_llm, one by one`: many lookups in a loop, each with a round trip of its own.
* `rawredis_llm, exact alone` and `semantic alone`: the caches of which a tiered one is made.
* `langchain-redis`: `RedisCache` (which needs the server's JSON module) and `RedisSemanticCache`.
  `RedisCache` has no `alookup` of its own: langchain-core's runs `lookup` in a pool of threads.
* `redisvl`: `SemanticCache`, which keeps no models apart, so its query has no filter.

No embedder computes anything: each looks vectors up that were made, in the form it is to return
them, before the clock started. For the rivals that is a list of floats, as their types ask for.
All have the same threshold and flat indexes of their own, filled by their own methods.

All but the bare socket and `call alone` end with the answer's text in hand.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.calls import Bare, Looped
from bench.race import Contender, Run
from bench.results import OURS, installed
from bench.search import FLOOR
from rawredis_llm import AsyncClient, Client, LLMCache, SemanticCache, TieredCache
from rawredis_llm.protocol.operation import Batch, Command, steps_of
from rawredis_llm.protocol.resp import encode

MODEL = "gpt-4o-mini, temperature 0"
LIMIT = 0.1  # cosine distance, for all
EXACT = 200  # entries in each exact cache
NO_JSON = "The server has no JSON, which some of langchain-redis needs."


@dataclass(frozen=True)
class Question:
    """A prompt, its vector (float32), and the answer that a cache has to find."""

    prompt: str
    vector: Any
    answer: str


class Vectors:
    """An embedder of known prompts, in two forms; rivals try theirs with a text of their own."""

    def __init__(self, questions: Iterable[Question]) -> None:
        self._arrays: dict[str, Any] = {one.prompt: one.vector for one in questions}
        self._lists: dict[str, list[float]] = {
            prompt: vector.tolist() for prompt, vector in self._arrays.items()
        }
        self._any = next(iter(self._lists.values()))

    def arrays(self, texts: list[str]) -> list[Any]:
        return [self._arrays[text] for text in texts]

    def lists(self, texts: list[str]) -> list[list[float]]:
        return [self._lists[text] for text in texts]

    def one(self, text: str) -> list[float]:
        return self._lists.get(text, self._any)


@dataclass(frozen=True)
class Stock:
    """What all caches hold, and the embedder that knows it and what will be asked."""

    entries: list[Question]
    vectors: Vectors


class Cacher(Contender):
    """A cache, or what stands for one. Runs return what was found for each question, in order."""

    def fill(self, stock: Stock) -> None:
        """Store all entries; an exact cache the first of them."""

    def exact(self, questions: Sequence[Question]) -> Run | None:
        """Look prompts up, one after the other, that were stored."""
        return None

    def many(self, questions: Sequence[Question]) -> Run | None:
        """Look prompts up, all at once where that is possible, that were stored."""
        return None

    def tasks(self, key: str, tasks: int, calls: int, /) -> Run | None:
        """Look one stored prompt up in each of many asyncio tasks, `calls` times one by one."""
        return None

    def semantic(self, questions: Sequence[Question], *, given: bool) -> Run | None:
        """Find what was stored for a prompt near to this one, whose vector may be `given`."""
        return None

    def tiered(self, questions: Sequence[Question], *, given: bool) -> Run | None:
        """Find the same in a cache that looks for the exact prompt, too."""
        return None

    def tiered_exact(self, questions: Sequence[Question]) -> Run | None:
        """Find prompts that were stored in such a cache."""
        return None

    def answers(self, found: Any) -> list[str]:
        """Return the answers in what a run returned, which is mostly the answers themselves."""
        return list(found)


class _Floor(Bare, Cacher):
    """The bare socket; it is given ours' own bytes."""

    name = FLOOR

    def exact(self, questions: Sequence[Question]) -> Run:
        ready = [encode(_asked(_EXACT.plan.lookup(one.prompt, MODEL))) for one in questions]
        return lambda: [self.ask(request) for request in ready]

    def many(self, questions: Sequence[Question]) -> Run:
        prompts = [one.prompt for one in questions]
        request = encode(_asked(_EXACT.plan.lookup_many(prompts, MODEL)))
        return lambda: self.ask(request)

    def semantic(self, questions: Sequence[Question], *, given: bool) -> Run:
        ready = [encode(_searched(question)) for question in questions]
        return lambda: [self.ask(request) for request in ready]

    def answers(self, found: Any) -> list[str]:
        return _raw_answers(found)


class _CallAlone(Looped, Cacher):
    """Our client without a cache."""

    name = f"{OURS}, call alone"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._client = Client(url)
        self._tasks_client = AsyncClient(url)

    def exact(self, questions: Sequence[Question]) -> Run:
        ready = [_asked(_EXACT.plan.lookup(one.prompt, MODEL)) for one in questions]
        return lambda: [self._client.call(*args) for args in ready]

    def many(self, questions: Sequence[Question]) -> Run:
        args = _asked(_EXACT.plan.lookup_many([one.prompt for one in questions], MODEL))
        return lambda: self._client.call(*args)

    def tasks(self, key: str, tasks: int, calls: int) -> Run:
        args = _asked(_EXACT.plan.lookup(key, MODEL))
        return self.in_tasks(lambda: self._tasks_client.call(*args), tasks, calls)

    def semantic(self, questions: Sequence[Question], *, given: bool) -> Run:
        ready = [_searched(question) for question in questions]
        return lambda: [self._client.call(*args) for args in ready]

    def answers(self, found: Any) -> list[str]:
        return _raw_answers(found)

    def close(self) -> None:
        self._client.close()
        self.do(self._tasks_client.close())
        super().close()


class _Caches(Looped, Cacher):
    """Our caches, which share a client as an application's would; each form of ours uses some."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._client = Client(url)
        self._exact = LLMCache(self._client)
        self._semantic: SemanticCache[Client]

    def fill(self, stock: Stock) -> None:
        self._semantic = SemanticCache(self._client, self._embedder(stock), max_distance=LIMIT)

    def close(self) -> None:
        self._client.close()
        super().close()

    def _embedder(self, stock: Stock) -> Callable[[list[str]], Any]:
        return stock.vectors.arrays

    def _exactly(self, questions: Sequence[Question]) -> Run:
        return _asking(self._exact.lookup, questions)

    def _nearly(self, questions: Sequence[Question], *, given: bool) -> Run:
        return _asking(self._semantic.lookup, questions, given=given)


class _Ours(_Caches):
    """The caches as they are meant to be used; it fills them for the other forms."""

    name = OURS

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._tasks_client = AsyncClient(url)

    def fill(self, stock: Stock) -> None:
        super().fill(stock)
        pairs = [(entry.prompt, entry.answer) for entry in stock.entries[:EXACT]]
        self._exact.store_many(pairs, MODEL)
        for entry in stock.entries:
            self._semantic.store(entry.prompt, entry.answer, MODEL, vector=entry.vector)

    def exact(self, questions: Sequence[Question]) -> Run:
        return self._exactly(questions)

    def many(self, questions: Sequence[Question]) -> Run:
        lookup_many, prompts = self._exact.lookup_many, [one.prompt for one in questions]
        return lambda: [_text(hit) for hit in lookup_many(prompts, MODEL)]

    def tasks(self, key: str, tasks: int, calls: int) -> Run:
        lookup = LLMCache(self._tasks_client).lookup

        async def one() -> str:
            return _text(await lookup(key, MODEL))

        return self.in_tasks(one, tasks, calls)

    def semantic(self, questions: Sequence[Question], *, given: bool) -> Run:
        return self._nearly(questions, given=given)

    def tiered(self, questions: Sequence[Question], *, given: bool) -> Run:
        return _asking(TieredCache(self._exact, self._semantic).lookup, questions, given=given)

    def tiered_exact(self, questions: Sequence[Question]) -> Run:
        return self.tiered(questions, given=False)

    def close(self) -> None:
        self.do(self._tasks_client.close())
        super().close()


class _Lists(_Caches):
    name = f"{OURS}, lists"

    def semantic(self, questions: Sequence[Question], *, given: bool) -> Run:
        as_lists = [replace(one, vector=one.vector.tolist()) for one in questions]
        return self._nearly(as_lists, given=given)

    def _embedder(self, stock: Stock) -> Callable[[list[str]], Any]:
        return stock.vectors.lists


class _OneByOne(_Caches):
    name = f"{OURS}, one by one"

    def many(self, questions: Sequence[Question]) -> Run:
        return self._exactly(questions)


class _ExactAlone(_Caches):
    name = f"{OURS}, exact alone"

    def tiered_exact(self, questions: Sequence[Question]) -> Run:
        return self._exactly(questions)


class _SemanticAlone(_Caches):
    name = f"{OURS}, semantic alone"

    def tiered(self, questions: Sequence[Question], *, given: bool) -> Run:
        return self._nearly(questions, given=given)

    def tiered_exact(self, questions: Sequence[Question]) -> Run:
        return self._nearly(questions, given=False)


def _asking(
    lookup: Callable[..., Any], questions: Sequence[Question], *, given: bool = False
) -> Run:
    """Return what looks the questions up one after the other, in a cache of ours."""
    if not given:
        prompts = [one.prompt for one in questions]
        return lambda: [_text(lookup(prompt, MODEL)) for prompt in prompts]
    pairs = [(one.prompt, one.vector) for one in questions]
    return lambda: [_text(lookup(prompt, MODEL, vector=vector)) for prompt, vector in pairs]


class _LangChain(Looped, Cacher):
    """langchain-redis, its own defaults but for the threshold."""

    name = "langchain-redis"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._module = importlib.import_module("langchain_redis")
        self._generation = importlib.import_module("langchain_core.outputs").Generation
        self._url = url
        with Client(url) as client:
            self.has_json = client.call("COMMAND", "INFO", "JSON.GET") != [None]
        self.notes = () if self.has_json else (NO_JSON,)
        self._exact = self._module.RedisCache(redis_url=url, prefix="bench-langchain")
        self._semantic: Any = None

    def fill(self, stock: Stock) -> None:
        base: Any = importlib.import_module("langchain_core.embeddings").Embeddings

        class Known(base):  # type: ignore[misc]  # of a class that mypy may not see
            def embed_documents(self, texts: list[str]) -> list[list[float]]:
                return stock.vectors.lists(texts)

            def embed_query(self, text: str) -> list[float]:
                return stock.vectors.one(text)

        self._semantic = self._module.RedisSemanticCache(
            Known(), self._url, distance_threshold=LIMIT, name="bench-langchain-semantic"
        )
        for number, entry in enumerate(stock.entries):
            answer = [self._generation(text=entry.answer)]
            self._semantic.update(entry.prompt, MODEL, answer)
            if self.has_json and number < EXACT:
                self._exact.update(entry.prompt, MODEL, answer)

    def exact(self, questions: Sequence[Question]) -> Run | None:
        return self._asking(self._exact.lookup, questions) if self.has_json else None

    many = exact  # it has no way to look many up at once

    def tasks(self, key: str, tasks: int, calls: int) -> Run | None:
        alookup = self._exact.alookup

        async def one() -> str:
            text: str = (await alookup(key, MODEL))[0].text
            return text

        return self.in_tasks(one, tasks, calls) if self.has_json else None

    def semantic(self, questions: Sequence[Question], *, given: bool) -> Run | None:
        return None if given else self._asking(self._semantic.lookup, questions)

    def close(self) -> None:
        self._exact.redis.close()
        if self._semantic is not None:
            self._semantic.redis.close()
        self.do(self.loop.shutdown_default_executor())
        super().close()

    @staticmethod
    def _asking(lookup: Callable[..., Any], questions: Sequence[Question]) -> Run:
        prompts = [one.prompt for one in questions]
        return lambda: [lookup(prompt, MODEL)[0].text for prompt in prompts]


class _RedisVL(Cacher):
    """redisvl, its own defaults."""

    name = "redisvl"

    def __init__(self, url: str) -> None:
        self._url = url
        self._cache: Any = None

    def fill(self, stock: Stock) -> None:
        vectorizers = importlib.import_module("redisvl.utils.vectorize")
        caches = importlib.import_module("redisvl.extensions.cache.llm")
        self._cache = caches.SemanticCache(
            name="bench-redisvl",
            distance_threshold=LIMIT,
            vectorizer=vectorizers.CustomVectorizer(embed=stock.vectors.one),
            redis_url=self._url,
        )
        for entry in stock.entries:
            vector = stock.vectors.one(entry.prompt)
            self._cache.store(entry.prompt, entry.answer, vector=vector, metadata={"model": MODEL})

    def semantic(self, questions: Sequence[Question], *, given: bool) -> Run:
        check = self._cache.check
        prompts = [one.prompt for one in questions]
        if not given:
            return lambda: [check(prompt)[0]["response"] for prompt in prompts]
        vectors = [one.vector.tolist() for one in questions]
        return lambda: [check(vector=vector)[0]["response"] for vector in vectors]

    def close(self) -> None:
        if self._cache is not None:
            self._cache.disconnect()


def _text(hit: Any) -> str:
    """Return a hit's answer, so that nobody gains by putting off what the caller needs."""
    answer: str = hit.response
    return answer


_EXACT = LLMCache(Client())  # its client never connects: it is asked for plans alone


def _asked(op: Any) -> tuple[Any, ...]:
    """Return the first command that an op of ours sends."""
    request = next(steps_of(op))
    assert isinstance(request, Command), request
    return request.args


def _searched(question: Question) -> tuple[Any, ...]:
    """Return the search by which ours looks for the nearest entry, whatever it tries before."""
    cache = SemanticCache(_EXACT.client, Vectors([question]).arrays, max_distance=LIMIT)
    steps = steps_of(cache.plan.lookup(question.prompt, MODEL, vector=question.vector))
    request: Any = next(steps)
    while True:
        whole = isinstance(request, Batch)
        commands: list[Any] = (
            [getattr(one, "args", one) for one in request.members] if whole else []
        )
        for args in commands or [request.args]:
            if args[0] == "FT.SEARCH":
                steps.close()
                return tuple(args)
        missing = [[None] * (len(args) - 2) for args in commands or [request.args]]  # of an HMGET
        request = steps.send(missing if whole else missing[0])


def _raw_answers(found: Any) -> list[str]:
    """Return the answers in raw replies: of entries, or of searches."""
    texts = [
        one[b"results"][0][b"extra_attributes"][b"entry"] if isinstance(one, dict) else one
        for one in found
    ]
    return [json.loads(text)["response"] for text in texts]


_OURS = (_Ours, _Lists, _OneByOne, _ExactAlone, _SemanticAlone)


def cachers(url: str) -> list[Cacher]:
    """Return all that are installed, connected to a server."""
    rivals = {"langchain_redis": _LangChain, "redisvl": _RedisVL}
    there = [make(url) for module, make in rivals.items() if installed(module)]
    return [_Floor(url), _CallAlone(url), *(kind(url) for kind in _OURS), *there]
