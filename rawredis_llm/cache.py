"""The exact answer cache: one string key per (scope, model, prompt), JSON inside.

Needs no search module and imports no numpy. A wrong answer is worse than none: an entry repeats its
identity, and one that does not match what was asked for is a miss.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from hashlib import blake2b, sha1
from typing import Any, Final, NamedTuple

from .caching.entries import (
    ABSENT,
    DAMAGED,
    EXPIRED,
    SHARED,
    UNREACHABLE,
    CacheHit,
    Found,
    as_lifetime,
    check_metadata,
    check_response,
    details,
    hit_of,
    packed,
    unpacked,
)
from .caching.flight import Entry, Flight, response_of, single_flight
from .caching.identity import Prompt, canonical, telling
from .caching.sources import as_sources, delete_noted, notes
from .caching.upkeep import OUT_OF_REACH, CacheStats, Upkeep
from .errors import RedisError, WrongTypeError
from .keys import clear_entries, digest, framed, from_json, milliseconds, require_text, to_json
from .protocol import commands
from .protocol.client import iterated
from .protocol.operation import Batch, Bound, C_co, Member, Now, Op, Plan, operation
from .protocol.script import Script

_RENEW: Final = Script("""
local entry = redis.call('GET', KEYS[1])
if entry and redis.sha1hex(entry) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
""")
"""Renews the time to live of the very entry that was hit; another may stand there by now."""

__all__ = ["CacheHit", "CacheStats", "LLMCache"]


class Question(NamedTuple):
    """What is asked: `prompt` as it is stored, the entry's `id`, and its key."""

    prompt: str
    model: str
    id: str
    key: str


class LLMCache(Bound[C_co]):
    """Answers by exactly the same question, kept apart by `scope` (a tenant, a user) and model.

    A question is a text, or chat messages with the call's `params` (see `fingerprint`). `ttl`
    (seconds; None: for ever) is the default for `store`; `jitter` takes up to that share (0 to
    below 1) off it, another for each entry, so that they do not go all at once. `refresh="on_hit"`
    gives an entry that was hit its own ttl anew. With `stale_for`, an answer past its ttl stays for
    so many seconds, as a hit marked stale. A failure of `get_or_compute` is kept for `error_ttl`
    seconds (None: not at all). Entries of more than `compress_above` characters are compressed.

    `on_error="miss"` turns a server that cannot be reached into misses, which are logged; "raise"
    raises. Works on any Redis.
    """

    def __init__(
        self,
        client: C_co,
        *,
        namespace: str = "llm",
        scope: str = "",
        ttl: float | None = None,
        jitter: float = 0.0,
        refresh: str = "never",
        stale_for: float | None = None,
        error_ttl: float | None = None,
        compress_above: int | None = None,
        on_error: str = "miss",
    ) -> None:
        self._bind(client)
        require_text("namespace", namespace)
        self.scope = require_text("scope", scope, empty=True)
        self._lifetime = as_lifetime(ttl, stale_for, jitter)
        if refresh not in ("never", "on_hit"):
            raise ValueError(f'refresh must be "never" or "on_hit", not {refresh!r}')
        self.refreshes = refresh == "on_hit"
        milliseconds("error_ttl", error_ttl)
        self._error_ttl = error_ttl
        if compress_above is not None and (type(compress_above) is not int or compress_above < 0):
            raise ValueError(f"compress_above must be a number of characters: {compress_above!r}")
        self._compress_above = compress_above
        self._namespace = namespace
        self._owner = digest("exact", namespace, scope)
        self._prefix = f"{namespace}:x:{self._owner}:"
        self._sources = f"{namespace}:o:{self._owner}:"
        # A model's part of an identity costs as much as the prompt's, and is mostly the same.
        self._seeds = lru_cache(maxsize=64)(partial(_seed, self._owner, self._prefix))
        self.upkeep = Upkeep(client, f"{namespace}:c:{self._owner}", on_error)

    @property
    def plan(self) -> LLMCache[Plan]:
        """This cache with methods that return ops, for `client.gather`."""
        planned: LLMCache[Plan] = self._planned()
        return planned

    # -- looking up --------------------------------------------------------------------------------

    @operation
    def lookup(
        self, prompt: Prompt, model: str = "", *, params: Mapping[str, Any] | None = None
    ) -> Op[CacheHit | None]:
        """Return the answer stored for this prompt, scope and model, or None.

        A hit whose `error` is not None is a failure that was stored, and has no response.
        """
        question = self.asked(prompt, model, params)
        found, now = yield from self.look(question)
        self.upkeep.count(found, now)
        return found.hit

    @operation
    def lookup_many(
        self,
        prompts: Sequence[Prompt],
        model: str = "",
        *,
        params: Mapping[str, Any] | None = None,
    ) -> Op[list[CacheHit | None]]:
        """Look up many prompts in one round trip; one answer or None for each, in order."""
        if isinstance(prompts, str):
            raise TypeError("prompts must be a list of texts, not one text")
        questions = [self.asked(prompt, model, params) for prompt in prompts]
        if not questions:
            return []
        keys = [question.key for question in questions]
        left: Sequence[int | None] = [None] * len(keys)
        data = yield from self.upkeep.ask(
            Batch([commands.mget(keys), *(("PTTL", key) for key in keys)])
            if self.refreshes
            else commands.mget(keys)
        )
        now = yield from Now()
        if data is OUT_OF_REACH:
            for _ in keys:
                self.upkeep.count(UNREACHABLE, now)
            return [None] * len(keys)
        if self.refreshes:
            data, *left = data
        found = [
            self.found(one, question, now, ttl)
            for one, question, ttl in zip(data, questions, left, strict=True)
        ]
        yield from self._renew(zip(questions, found, data, strict=True))
        for one in found:
            self.upkeep.count(one, now)
        return [one.hit for one in found]

    def look(self, question: Question) -> Op[tuple[Found, float]]:
        """Return what there is, uncounted, and the time; an op, not an operation."""
        get = commands.get(question.key)
        left = None
        data: Any
        try:
            if self.refreshes:
                data = yield from self.upkeep.ask(Batch([get, ("PTTL", question.key)]))
                if data is not OUT_OF_REACH:
                    data, left = data
            elif self.upkeep.calm:  # nearly always
                data = yield from get
            else:
                data = yield from self.upkeep.ask(get)
        except WrongTypeError:
            data = b""
        except RedisError as error:
            data = yield from self.upkeep.forgive(error)
        now = yield from Now()
        if data is OUT_OF_REACH:
            return UNREACHABLE, now
        found = self.found(data, question, now, left)
        if self.refreshes:
            yield from self._renew([(question, found, data)])
        return found, now

    def found(
        self, data: bytes | None, question: Question, now: float, left: int | None = None
    ) -> Found:
        """Return what a key's value comes to; a value, not an operation."""
        if data is None:
            return ABSENT
        entry = unpacked(data)
        if type(entry) is dict:
            get = entry.get
            model = get("model") == question.model
            if model and get("id") == question.id and get("scope") == self.scope:
                hit = hit_of(entry, question.id, now, left)
                if hit is not None:
                    return Found(hit, "", entry)
        return DAMAGED

    def _renew(self, found: Iterable[tuple[Question, Found, bytes | None]]) -> Op[None]:
        """Give entries that were hit their own time to live anew, and their sources' notes."""
        if not self.refreshes:
            return
        renewed: list[Member] = []
        for question, (hit, _, entry, _), data in found:
            px = entry.get("px")
            if hit is None or data is None or px is None or hit.stale or hit.error is not None:
                continue
            if "promoted" not in entry:
                renewed += notes(self._sources, entry.get("sources", ()), question.key, px)
                renewed.append(_RENEW([question.key], [sha1(data).hexdigest(), px]))  # noqa: S324 - the server has no other
                hit.ttl = entry.get("fresh", px) / 1000
        if renewed:
            yield from self.upkeep.ask(Batch(renewed))

    # -- storing -----------------------------------------------------------------------------------

    @operation
    def store(
        self,
        prompt: Prompt,
        response: Any,
        model: str = "",
        *,
        params: Mapping[str, Any] | None = None,
        ttl: float | None = None,
        metadata: dict[str, Any] | None = None,
        sources: Iterable[str] = (),
    ) -> Op[str]:
        """Store an answer, replacing what was there; return the entry's id.

        `response` is text, or what JSON has as a dict or list, such as chat messages, kept whole.
        `ttl` in seconds (default: the cache's). `metadata` is anything JSON can hold; its numbers
        `seconds` and `tokens` are counted as saved by each hit. `sources` names the documents that
        the answer was made of, for `delete_source`. Raises ValueError or TypeError naming the
        argument that cannot be stored.
        """
        question = self.asked(prompt, model, params)
        names = as_sources(sources)
        now = yield from Now()
        content = {"response": response}
        entry = self._entry(question, content, now, ttl=ttl, metadata=metadata, sources=names)
        yield from self.upkeep.ask(Batch(_writes(question, entry)))
        return question.id

    @operation
    def store_many(
        self,
        entries: Iterable[tuple[Prompt, Any]],
        model: str = "",
        *,
        params: Mapping[str, Any] | None = None,
        ttl: float | None = None,
        metadata: dict[str, Any] | None = None,
        sources: Iterable[str] = (),
    ) -> Op[list[str]]:
        """Store many (prompt, response) pairs in one round trip; return their ids, in order."""
        pairs = list(entries)
        for pair in pairs:
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise TypeError("entries must be pairs of texts: (prompt, response)")
        names = as_sources(sources)
        check_metadata(metadata)
        milliseconds("ttl", ttl)
        questions = [self.asked(prompt, model, params) for prompt, _ in pairs]
        now = yield from Now()
        writes: list[Member] = []
        for question, (_, response) in zip(questions, pairs, strict=True):
            content = {"response": response}
            entry = self._entry(question, content, now, ttl=ttl, metadata=metadata, sources=names)
            writes += _writes(question, entry)
        if writes:
            yield from self.upkeep.ask(Batch(writes))
        return [question.id for question in questions]

    @operation
    def store_error(
        self,
        prompt: Prompt,
        error: str,
        model: str = "",
        *,
        params: Mapping[str, Any] | None = None,
        ttl: float | None = None,
    ) -> Op[str]:
        """Store that there is no answer, and why; return the entry's id.

        `ttl` in seconds (default: the cache's `error_ttl`, without one 10).
        """
        question = self.asked(prompt, model, params)
        require_text("error", error)
        now = yield from Now()
        yield from self.upkeep.ask(
            Batch(_writes(question, self._failure(question, error, ttl, now)))
        )
        return question.id

    def _failure(self, question: Question, error: str, ttl: float | None, now: float) -> Entry:
        kept = 10.0 if self._error_ttl is None else self._error_ttl
        px = milliseconds("ttl", kept if ttl is None else ttl)
        entry: dict[str, Any] = {"id": question.id, "scope": self.scope, "model": question.model}
        entry |= {"prompt": question.prompt, "error": error, "created": now, "px": px}
        return Entry(packed(entry, self._compress_above), px)

    def _entry(
        self,
        question: Question,
        content: dict[str, Any],
        now: float,
        *,
        ttl: float | None,
        metadata: dict[str, Any] | None,
        sources: list[str],
        took: float | None = None,
    ) -> Entry:
        check_response(content["response"])
        px, fresh = self._lifetime.of(question.id, ttl)
        if "promoted" in content:  # it lives as long as what it was promoted from, and no longer
            px, fresh = milliseconds("ttl", ttl), None
        entry: dict[str, Any] = {"id": question.id, "scope": self.scope, "model": question.model}
        entry |= {"prompt": question.prompt, **content, "created": now, "px": px}
        if fresh is not None:
            entry["fresh"] = fresh
        entry |= details(metadata, sources, took)
        before = tuple(notes(self._sources, sources, question.key, px))
        return Entry(packed(entry, self._compress_above), px, before)

    # -- computing ---------------------------------------------------------------------------------

    @operation
    def get_or_compute(
        self,
        prompt: Prompt,
        compute: Callable[..., Any],
        model: str = "",
        *,
        params: Mapping[str, Any] | None = None,
        ttl: float | None = None,
        metadata: dict[str, Any] | None = None,
        sources: Iterable[str] = (),
        lease: float = 10.0,
    ) -> Op[Any]:
        """Return the answer; if there is none, one of all who ask for it computes and stores it.

        `compute` is called with the prompt if it takes an argument; with an `AsyncClient` it may be
        asynchronous, else it runs in a thread. Meanwhile others, in this process or another one,
        wait for it, or have the stale answer if there is one. Should its process die, another takes
        over after `lease` seconds (default 10), which are renewed while it computes.

        Raises what `compute` raised, which is not stored unless the cache has an `error_ttl`; then
        CachedFailureError until that has passed. Where the server is out of reach (and `on_error`
        is "miss") each process computes. Cannot be planned.
        """
        if isinstance(self.client, Plan):
            raise TypeError("get_or_compute cannot be planned: it waits for others")
        question = self.asked(prompt, model, params)
        if not callable(compute):
            raise TypeError(f"compute must be a function, not {type(compute).__name__}")
        check_metadata(metadata)
        milliseconds("ttl", ttl)
        names = as_sources(sources)
        period = milliseconds("lease", lease)
        if period is None:
            raise TypeError("lease must be a number of seconds, not None")
        entry = partial(self._entry, question, ttl=ttl, metadata=metadata, sources=names)
        caller = partial(_caller, compute, prompt)
        return (yield from self._once(question, caller, entry, period))

    def _lock(self, question: Question) -> str:
        """Return the key of the lease, in the slot of the entry's key: one script needs both."""
        tag = question.id if "{" in self._namespace else f"{{{question.key}}}"
        return f"{self._namespace}:f:{tag}"

    def _once(
        self,
        question: Question,
        caller: Callable[[], Callable[[], Any]],
        entry: Callable[..., Entry],
        lease: int,
    ) -> Op[Any]:
        """Return the answer that is there, or have it computed by one of all who ask."""
        found, now = yield from self.look(question)
        hit = found.hit
        if hit is not None and not hit.stale:
            self.upkeep.count(found, now)
            return response_of(hit)

        def failed(error: Exception, now: float) -> Entry:
            if self._error_ttl is None:
                return Entry()
            text = f"{type(error).__name__}: {error}".encode(errors="replace").decode()
            return self._failure(question, text, None, now)

        flight = Flight(
            place=getattr(self.client, "place", None),
            key=question.key,
            lock=self._lock(question),
            lease=lease,
            upkeep=self.upkeep,
            judge=lambda data, now: self.found(data, question, now).hit,
            answered=lambda response, now, took: entry({"response": response}, now, took=took),
            failed=failed,
            compute=caller(),
            stale=hit,
        )
        whence = "computed"
        try:
            response, whence = yield from single_flight(flight)
        finally:
            if whence == "computed" and hit is not None:
                found = EXPIRED
            if whence in ("shared", "exact"):
                found = SHARED
            self.upkeep.count(found, now)
        return response

    @iterated
    def stream(
        self,
        prompt: Prompt,
        produce: Callable[..., Any],
        model: str = "",
        *,
        params: Mapping[str, Any] | None = None,
        ttl: float | None = None,
        metadata: dict[str, Any] | None = None,
        sources: Iterable[str] = (),
        pace: float = 0.0,
    ) -> Any:
        """Iterate over an answer's chunks: those that were stored, or those of `produce`.

        `produce` (called with the prompt if it takes an argument) returns an iterator, with an
        `AsyncClient` an asynchronous one. Chunks, texts or what JSON has, are passed on as they
        come; only when the last one was, the answer is stored, a joined text or a list. Stored
        chunks come `pace` seconds apart (default 0).
        """
        question = self.asked(prompt, model, params)
        if not callable(produce):
            raise TypeError(f"produce must be a function, not {type(produce).__name__}")
        check_metadata(metadata)
        milliseconds("ttl", ttl)
        if pace:
            milliseconds("pace", pace)
        names = as_sources(sources)

        def find() -> Op[list[Any] | None]:
            found, now = yield from self.look(question)
            if found.hit is not None and found.hit.stale:
                found = EXPIRED
            self.upkeep.count(found, now)
            return None if found.hit is None or found.hit.error is not None else _chunks(found)

        def keep(chunks: list[Any]) -> Op[None]:
            if not chunks:
                return  # nothing came: that is no answer
            now = yield from Now()
            content = {"response": chunks, "chunks": True}
            if all(isinstance(chunk, str) for chunk in chunks):
                content = {"response": "".join(chunks), "chunks": [len(chunk) for chunk in chunks]}
            entry = self._entry(question, content, now, ttl=ttl, metadata=metadata, sources=names)
            yield from self.upkeep.ask(Batch(_writes(question, entry)))

        return self.client.relay(find, _caller(produce, prompt), _chunk, keep, pace)  # type: ignore[union-attr]

    # -- deleting, counting ------------------------------------------------------------------------

    @operation
    def delete(
        self, prompt: Prompt, model: str = "", *, params: Mapping[str, Any] | None = None
    ) -> Op[bool]:
        """Delete the answer to a prompt; return whether there was one."""
        return (yield from commands.delete(self.asked(prompt, model, params).key)) > 0

    @operation
    def delete_model(self, model: str) -> Op[int]:
        """Delete every answer of a model in this scope; return how many."""
        prefix = f"{self._prefix}{_model_digest(require_text('model', model, empty=True))}:"
        return (yield from clear_entries(prefix))

    @operation
    def delete_source(self, source: str) -> Op[int]:
        """Delete every answer of this scope that was stored with this source; return how many.

        A question's later answer, stored without it, goes, too.
        """
        return (yield from delete_noted(self._sources, source))

    @operation
    def clear(self) -> Op[int]:
        """Delete every entry of this namespace and scope, and nothing else; return how many."""
        deleted = yield from clear_entries(self._prefix, digests=2)
        yield from clear_entries(self._sources)
        return deleted

    @operation
    def stats(self, *, reset: bool = False) -> Op[CacheStats]:
        """Return what all processes asked this cache (of this namespace and scope), and its hits.

        With `reset`, counting begins anew. Raises what the server's trouble raises.
        """
        return (yield from self.upkeep.stats(reset=reset))

    def promoted(self, question: Question, found: Found, origin: str) -> Op[None]:
        """Store what a semantic cache found, under the question that it answers.

        An op, not an operation. It lives as long as the entry it comes from, `origin` is deleted as
        a source, and is not renewed.
        """
        hit = found.hit
        assert hit is not None
        if hit.ttl is not None and hit.ttl < 0.001:
            return
        now = yield from Now()
        entry = self._entry(
            question,
            {"response": hit.response, "promoted": True},
            now,
            ttl=hit.ttl,
            metadata=hit.metadata,
            sources=[*found.entry.get("sources", ()), origin],
        )
        yield from self.upkeep.ask(Batch(_writes(question, entry)))

    def asked(self, prompt: Prompt, model: str, params: Mapping[str, Any] | None) -> Question:
        """Return what is asked, checked; a value, not an operation."""
        if type(model) is not str:  # what cannot be hashed cannot be looked up
            require_text("model", model, empty=True)
        state, prefix = self._seeds(model)
        if isinstance(prompt, str) and (params is None or not telling(params)):
            identity = framed(state.copy(), require_text("prompt", prompt)).hexdigest()
        else:
            if isinstance(prompt, str):
                require_text("prompt", prompt)
            prompt = canonical(prompt, params)
            identity = framed(framed(state.copy(), "chat"), prompt).hexdigest()
        return Question(prompt, model, identity, prefix + identity)


def _seed(owner: str, prefix: str, model: str) -> tuple[blake2b, str]:
    """Return the state of a digest, and the start of a key, that a model's entries share."""
    require_text("model", model, empty=True)
    state = framed(framed(blake2b(digest_size=16), owner), model)
    return state, f"{prefix}{_model_digest(model)}:"


def _model_digest(model: str) -> str:
    return digest("model", model)


def _writes(question: Question, entry: Entry) -> list[Member]:
    return [*entry.before, commands.set_value(question.key, entry.value, entry.px)]


def _caller(function: Callable[..., Any], prompt: Prompt) -> Callable[[], Any]:
    """Return a function without parameters: theirs, or theirs with the prompt where it wants it."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # one that does not tell
        return function
    wanted = [
        one
        for one in parameters
        if one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    return partial(function, prompt) if wanted else function


def _chunk(item: Any) -> Any:
    """Return a chunk as it will come again; raise for what is neither text nor JSON."""
    return item if isinstance(item, str) else from_json(to_json("chunk", item))


def _chunks(found: Found) -> list[Any]:
    """Return an answer as it came: in its chunks, or in one where none are known."""
    assert found.hit is not None
    response, lengths = found.hit.response, found.entry.get("chunks")
    if lengths is True and isinstance(response, list):
        return response
    if isinstance(lengths, list) and set(map(type, lengths)) == {int} and isinstance(response, str):
        parts, start = [], 0
        for length in lengths:
            parts.append(response[start : start + length])
            start += length
        if "".join(parts) == response:
            return parts
    return [response]
