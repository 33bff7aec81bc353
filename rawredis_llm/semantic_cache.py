"""The semantic answer cache: one hash per entry, found by nearness within its scope and model.

Scope, model and embedder are digested into the key *and* into tags of the KNN pre-filter, so a
nearer entry of another tenant can neither be returned nor hide one's own. The threshold is applied
here, on the nearest entries, because VECTOR_RANGE on HNSW misses near-duplicates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from .caching.entries import (
    ABSENT,
    DAMAGED,
    EXPIRED,
    UNREACHABLE,
    CacheHit,
    Found,
    check_response,
    details,
    hit_of,
    packed,
    unpacked,
)
from .caching.guards import Guard, as_guards, extractor, veto
from .caching.identity import Prompt, canonical, telling, without_last_turn
from .caching.shelf import OWN, Near, Shelf
from .caching.sources import as_sources, delete_noted, notes
from .caching.upkeep import CacheStats, OutOfReach, Upkeep
from .embedding import as_embedder
from .explain import argv
from .keys import (
    clear_entries,
    digest,
    distance_limit,
    escape_glob,
    framed,
    indexed_key_part,
    milliseconds,
    require_text,
)
from .protocol import commands
from .protocol.operation import (
    Batch,
    Bound,
    C_co,
    Call,
    Embed,
    Member,
    Now,
    Op,
    Plan,
    Request,
    operation,
    watched,
)
from .search.fields import Field
from .search.filters import Filter, whole_number
from .search.schema import Vector
from .search.vectors import as_vector, similarity

if TYPE_CHECKING:
    from .caching.calibration import Calibration

__all__ = ["Candidate", "Lookup", "SemanticCache"]


def _seed(owner: str, embedder: str, model: str, *context: str) -> tuple[str, blake2b]:
    """Return the tag of all that must be the same, and the state of an identity's digest."""
    tag = digest(owner, embedder, require_text("model", model, empty=True), *context)
    return tag, framed(blake2b(digest_size=16), tag)


_LAST_TURN: Final = extractor()
_MORE: Final = 64  # entries to look at where all the nearest ones had expired
_EXPLAINED: Final = 5  # entries that an explanation shows at least


@dataclass(slots=True)
class Candidate:
    """An entry that was near: its distance, and why it was refused (None: it was the hit)."""

    id: str
    prompt: str
    distance: float
    refused: str | None


@dataclass(slots=True)
class Lookup:
    """How a lookup went: its hit, or why there is none, and all that led to it.

    `gate` is "hit" or the reason of the miss; `nearest` are the entries looked at, nearest first;
    `max_distance` the threshold that holds where an entry's category has none; `argv` the commands
    as a shell would take them; `phases` seconds spent on "server", "embed" and "judge".
    """

    hit: CacheHit | None
    gate: str
    nearest: list[Candidate]
    max_distance: float
    scope: str
    model: str
    argv: list[str] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)


class Question(NamedTuple):
    """What is asked: `prompt` as it is stored, `text` as it is embedded and compared.

    `tag` stands for all that must be the same: model, embedder, and what came before the text.
    """

    prompt: str
    text: str
    model: str
    tag: str
    id: str


class Terms(NamedTuple):
    """Where a lookup looks, and how far; `k` entries."""

    vector: Any
    limit: float | None
    category: str | None
    condition: Filter | None
    k: int


class SemanticCache(Bound[C_co]):
    """Answers by a question that means the same, kept apart by `scope` and model.

    A stored question counts as the same up to `max_distance` (cosine distance, 0 to 2), or that of
    its category in `categories`. Of chat messages the last user turn is compared, all before it and
    the call's `params` must be the same. `embedder` is any that `as_embedder` takes; `dim` is
    learnt from its first vector unless given. `algorithm` is flat (exact; up to some 10,000
    entries) or hnsw, `dtype` as in `Vector`. `fields` are further ones that lookups filter by.

    `guards` veto near hits: any of "numbers", "negations", "names" (see `caching.guards`), or
    functions (asked, stored) -> why not, or None. `judge` (asked, stored) -> bool, plain or with an
    `AsyncClient` asynchronous, decides on hits farther than `judge_from`. `extract` takes a prompt
    apart (see `extractor`). `k` nearest entries are looked at (default 1, with guards or a judge
    5), until one passes. With `max_entries` the least recently used of a scope go first.

    `ttl` and `on_error` as in `LLMCache`. On a server without a search module lookups compare with
    all of a scope's entries here, 1,000 at most.
    """

    def __init__(
        self,
        client: C_co,
        embedder: Any,
        *,
        namespace: str = "semantic",
        scope: str = "",
        max_distance: float = 0.1,
        categories: Mapping[str, float] | None = None,
        ttl: float | None = None,
        dim: int | None = None,
        algorithm: str = "flat",
        dtype: str = "float32",
        fields: Sequence[Field] = (),
        guards: Iterable[str | Guard] = (),
        judge: Callable[[str, str], Any] | None = None,
        judge_from: float = 0.0,
        extract: Callable[[Prompt], tuple[str, str]] | None = None,
        k: int | None = None,
        max_entries: int | None = None,
        on_error: str = "miss",
    ) -> None:
        self._bind(client)
        self._embedder = as_embedder(embedder)
        indexed_key_part("namespace", namespace)
        self.scope = require_text("scope", scope, empty=True)
        self._max_distance = distance_limit("max_distance", max_distance)
        self._categories = {
            require_text("categories", name): distance_limit("categories", limit)
            for name, limit in (categories or {}).items()
        }
        self._ttl = milliseconds("ttl", ttl)
        self._guards = as_guards(guards)
        for role, function in (("judge", judge), ("extract", extract)):
            if function is not None and not callable(function):
                raise TypeError(f"{role} must be a function, not {type(function).__name__}")
        self._judge = judge
        self._judge_from = distance_limit("judge_from", judge_from)
        self._extract = extract
        careful = self._guards or judge is not None
        self._k = (5 if careful else 1) if k is None else whole_number("k", k)
        self._namespace = namespace
        self._owner = digest("semantic", namespace, scope)
        self._sources = f"{namespace}:o:{self._owner}:"
        # What a model's questions share of their digests.
        named = (self._owner, self._embedder.fingerprint)
        self._seeds = lru_cache(maxsize=64)(partial(_seed, *named))
        self.upkeep = Upkeep(client, f"{namespace}:c:{self._owner}", on_error)
        self.shelf = Shelf(
            namespace,
            self._owner,
            self.upkeep,
            vector=Vector("vector", 1 if dim is None else dim, algorithm=algorithm, dtype=dtype),
            dim=dim,
            fields=fields,
            embedder=self._embedder.fingerprint,
            max_entries=max_entries,
        )

    @property
    def plan(self) -> SemanticCache[Plan]:
        """This cache with methods that return ops, for `client.gather`."""
        planned: SemanticCache[Plan] = self._planned()
        return planned

    # -- looking up --------------------------------------------------------------------------------

    @operation
    def lookup(
        self,
        prompt: Prompt,
        model: str = "",
        *,
        params: Mapping[str, Any] | None = None,
        vector: Any = None,
        max_distance: float | None = None,
        category: str | None = None,
        filter: Filter | None = None,  # noqa: A002 - the API's name
    ) -> Op[CacheHit | None]:
        """Return the answer to the nearest stored question of this scope and model, or None.

        A question that was stored word for word is found without the embedder, but for a planned
        lookup, which takes one round trip. `vector` is the prompt's, shape (dim,), if it is known;
        `max_distance` replaces the cache's and the categories'. With `category` or `filter` only
        entries that match are looked at.
        """
        question = self.question(prompt, model, params)
        terms = self._terms(vector, max_distance, category, filter, self._k)
        found, now = yield from self._look(question, terms)
        self.count(found, now)
        return found.hit

    @operation
    def explain(
        self,
        prompt: Prompt,
        model: str = "",
        *,
        params: Mapping[str, Any] | None = None,
        vector: Any = None,
        max_distance: float | None = None,
        category: str | None = None,
        filter: Filter | None = None,  # noqa: A002 - the API's name
    ) -> Op[Lookup]:
        """Look up, uncounted, and return how it went: see `Lookup`."""
        question = self.question(prompt, model, params)
        wanted = max(self._k, _EXPLAINED)
        terms = self._terms(vector, max_distance, category, filter, wanted)
        limit = self._max_distance if terms.limit is None else terms.limit
        told = Lookup(None, "", [], limit, self.scope, model)

        def took(request: Request, seconds: float) -> None:
            kind = {Embed: "embed", Call: "judge"}.get(type(request), "server")
            told.phases[kind] = told.phases.get(kind, 0.0) + seconds

        look = self._look(question, terms, told.nearest)
        found, _ = yield from watched(look, lambda request: told.argv.extend(argv(request)), took)
        told.hit, told.gate = found.hit, found.miss or "hit"
        return told

    def _look(
        self, question: Question, terms: Terms, seen: list[Candidate] | None = None
    ) -> Op[tuple[Found, float]]:
        """Return what there is, uncounted, and the time; what was looked at is added to `seen`."""
        elsewhere = False
        if terms.vector is None:
            # Planned, it shares its round trip with others, and the embedder its call.
            if terms.condition is None and not isinstance(self.client, Plan):
                exact = yield from self.shelf.exact(self.shelf.prefix + question.id)
                now = yield from Now()
                if isinstance(exact, OutOfReach):
                    return UNREACHABLE, now
                found = self._exact(exact, question, terms, seen, now)
                if found.hit is not None:
                    return found, now
                elsewhere = found.miss == "category"
            terms = terms._replace(vector=(yield from self._vector(question.text)))
        near = yield from self.nearby(question, terms)
        found, now = yield from self.settled(near, question, terms, seen)
        return (Found(None, "category") if elsewhere and found is ABSENT else found), now

    def asked(
        self,
        prompt: Prompt,
        model: str,
        params: Mapping[str, Any] | None,
        vector: Any,
        max_distance: float | None,
    ) -> Op[tuple[Question, Terms]]:
        """Return what is asked, with its vector; an op, not an operation."""
        question = self.question(prompt, model, params)
        terms = self._terms(vector, max_distance, None, None, self._k)
        if vector is None:
            terms = terms._replace(vector=(yield from self._vector(question.text)))
        return question, terms

    def nearby(self, question: Question, terms: Terms) -> Op[list[Near] | OutOfReach]:
        """Return the nearest entries, whatever they are; an op, not an operation."""
        vector, _, category, condition, k = terms
        narrowed = "" if category is None else f' @category:{{"{digest(category)}"}}'
        return (yield from self.shelf.nearest(vector, k, question.tag, narrowed, condition))

    def settled(
        self,
        near: list[Near] | OutOfReach,
        question: Question,
        terms: Terms,
        seen: list[Candidate] | None = None,
    ) -> Op[tuple[Found, float]]:
        """Return what the nearest entries come to, and the time; an op, not an operation."""
        now = yield from Now()
        if isinstance(near, OutOfReach):
            return UNREACHABLE, now
        found = yield from self._chosen(near, question, terms, seen, now)
        expired = sum(one.fields is None for one in near)
        if found.hit is not None or not expired:
            return found, now
        # Entries that expired and are still indexed may hide what lives.
        more = yield from self.nearby(question, terms._replace(k=_MORE))
        if isinstance(more, OutOfReach):
            return UNREACHABLE, now
        known = {one.key for one in near}
        hidden = [one for one in more if one.fields is not None and one.key not in known]
        further = yield from self._chosen(hidden[:expired], question, terms, seen, now)
        return (found if further.hit is None else further), now

    def _exact(
        self, near: Near, question: Question, terms: Terms, seen: list[Candidate] | None, now: float
    ) -> Found:
        """Return the entry of the very question; but for its category there is nothing to ask."""
        found, _ = self._read(near, question, now, exact=True)
        if found.hit is not None:
            same = terms.category in (None, found.entry.get("category"))
            refused = None if same else "category"
            if seen is not None:
                seen.append(Candidate(found.hit.id, found.hit.prompt, near.distance, refused))
            if refused is not None:
                return Found(None, refused)
        return found

    def _chosen(
        self,
        near: Sequence[Near],
        question: Question,
        terms: Terms,
        seen: list[Candidate] | None,
        now: float,
    ) -> Op[Found]:
        """Return the first of the entries that passes every gate, or why the first did not."""
        first = ABSENT
        for place, one in enumerate(near):
            found, text = self._read(one, question, now)
            if found.hit is None:
                first = found if first is ABSENT else first
                continue
            refused = None
            if not one.distance <= self._limit(terms, found):  # NaN, too, is far
                refused = "far"
            elif found.hit.id == question.id:
                pass  # the very question: nobody need be asked
            elif why := veto(self._guards, question.text, text) if self._guards else None:
                refused = f"guard: {why}"
            elif place >= self._k:
                refused = "beyond k"  # an explanation shows more than a lookup takes
            elif self._judge is not None and one.distance > self._judge_from:
                refused = yield from self._judged(question.text, text, counted=seen is None)
            if seen is not None:
                seen.append(Candidate(found.hit.id, found.hit.prompt, one.distance, refused))
            if refused is None:
                return found
            if first is ABSENT:
                first = Found(None, refused.partition(":")[0])
        return first

    def _limit(self, terms: Terms, found: Found) -> float:
        """Return up to which distance an entry counts as the same."""
        if terms.limit is not None:
            return terms.limit
        category = found.entry.get("category")
        if isinstance(category, str):
            return self._categories.get(category, self._max_distance)
        return self._max_distance

    def _judged(self, asked: str, stored: str, *, counted: bool) -> Op[str | None]:
        """Return "judge" if it refuses, or None."""
        assert self._judge is not None
        verdict = yield from Call(self._judge, asked, stored)
        if type(verdict) is not bool:
            getattr(verdict, "close", int)()
            raise TypeError(f"judge must return a bool, not {type(verdict).__name__}")
        if counted:
            self.upkeep.tally.add(self.upkeep.key, f"judged:{'yes' if verdict else 'no'}")
        return None if verdict else "judge"

    def _read(
        self, near: Near, question: Question, now: float, *, exact: bool = False
    ) -> tuple[Found, str]:
        """Return the hit in an entry, and the text that it is compared by."""
        key, distance, fields = near
        if fields is None:
            return (ABSENT if exact else EXPIRED), ""
        identity = key[-32:].decode(errors="replace")
        entry = unpacked(fields.get(b"entry"))
        if (
            type(entry) is not dict
            or fields.get(b"model") != question.tag.encode()
            or fields.get(b"scope") != self._owner.encode()
            or key != (self.shelf.prefix + identity).encode()
            or entry.get("model") != question.model
            or (exact and entry.get("prompt") != question.prompt)
        ):
            return DAMAGED, ""
        hit = hit_of(entry, identity, now, None, distance, similarity(distance, "cosine"))
        if hit is None:
            return DAMAGED, ""
        text = entry.get("text", hit.prompt)
        found = Found(hit, "", entry, "exact" if exact else "semantic")
        return found, text if isinstance(text, str) else hit.prompt

    def count(self, found: Found, now: float) -> None:
        """Count a lookup, and take notice of the entry's use."""
        if found.hit is not None:
            self.shelf.touch(found.hit.id, now)
        self.upkeep.count(found, now)

    # -- storing -----------------------------------------------------------------------------------

    @operation
    def store(
        self,
        prompt: Prompt,
        response: Any,
        model: str = "",
        *,
        params: Mapping[str, Any] | None = None,
        vector: Any = None,
        ttl: float | None = None,
        metadata: dict[str, Any] | None = None,
        sources: Iterable[str] = (),
        category: str | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> Op[str]:
        """Store an answer, replacing that of the same prompt whole; return the entry's id.

        `vector` is the prompt's, shape (dim,), if it is known. `response`, `ttl`, `metadata` and
        `sources` are as in `LLMCache.store`; `fields` are values of the cache's own ones. The index
        is created when first needed. Raises IndexMismatchError if there is one of other fields,
        another size, or another embedder.
        """
        question = self.question(prompt, model, params)
        entry = yield from self.prepared(
            question,
            response,
            vector=vector,
            ttl=ttl,
            metadata=metadata,
            sources=sources,
            category=category,
            fields=fields,
        )
        yield from self.shelf.write(*entry)
        return question.id

    def prepared(
        self,
        question: Question,
        response: Any,
        *,
        vector: Any,
        ttl: float | None,
        metadata: dict[str, Any] | None,
        sources: Iterable[str],
        category: str | None,
        fields: Mapping[str, Any] | None,
    ) -> Op[tuple[str, dict[str, Any], int | None, float, list[Member]]]:
        """Return what `shelf.write` takes, all of it checked; an op, not an operation."""
        check_response(response)
        px = self._ttl if ttl is None else milliseconds("ttl", ttl)
        names = as_sources(sources)
        beside = details(metadata, names)
        now = yield from Now()
        entry: dict[str, Any] = {"model": question.model, "prompt": question.prompt}
        entry |= {"response": response, "created": now, "px": px, **beside}
        if question.text != question.prompt:
            entry["text"] = question.text
        stored: dict[str, Any] = {"scope": self._owner, "model": question.tag}
        if category is not None:
            entry["category"] = require_text("category", category)
            stored["category"] = digest(category)
        stored |= self._own(fields or {})
        stored["entry"] = packed(entry)
        stored["vector"] = yield from self._vector(question.text, vector)
        noted = notes(self._sources, names, self.shelf.prefix + question.id, px)
        return question.id, stored, px, now, noted

    def _own(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of the user's fields as they are stored."""
        known = self.shelf.schema.fields
        for name in values:
            if name not in known or name in (*OWN, "vector"):
                raise ValueError(f"fields: the cache was given no field {name!r}")
        return {name: known[name].stored(value) for name, value in values.items()}

    # -- deleting, counting ------------------------------------------------------------------------

    @operation
    def delete(self, id: str) -> Op[bool]:  # noqa: A002 - the API's own name
        """Delete an entry of this scope by its id; return whether there was one."""
        if not re.fullmatch("[0-9a-f]{32}", require_text("id", id)):
            raise ValueError("id must be one that store() returned")
        return (yield from self.shelf.remove([id])) > 0

    @operation
    def delete_source(self, source: str) -> Op[int]:
        """Delete every answer of this scope that was stored with this source; return how many.

        A question's later answer, stored without it, goes, too.
        """
        return (yield from delete_noted(self._sources, source))

    @operation
    def delete_where(self, filter: Filter, dry_run: bool = False) -> Op[int]:  # noqa: A002, FBT001, FBT002 - the API's name
        """Delete the scope's entries that match; return how many, with `dry_run` without it.

        Raises IndexNotFoundError where there are entries and somebody dropped their index.
        """
        if not isinstance(filter, Filter):
            raise TypeError("filter must be a Filter; all go by clear()")
        names = yield from self.shelf.matching(filter)
        return len(names) if dry_run else (yield from self.shelf.remove(names))

    @operation
    def delete_model(self, model: str) -> Op[int]:
        """Delete every answer of a model in this scope; return how many. Reads all of them."""
        require_text("model", model, empty=True)
        deleted, cursor = 0, b"0"
        while True:
            pattern = escape_glob(self.shelf.prefix) + "*"
            cursor, keys = yield from commands.scan(cursor, pattern, 1000)
            entries = yield from Batch([("HGET", key, "entry") for key in keys])
            names = [
                key[-32:].decode()
                for key, entry in zip(keys, entries, strict=True)
                if (unpacked(entry) or {}).get("model") == model
            ]
            deleted += yield from self.shelf.remove(names)
            if cursor == b"0":
                return deleted

    @operation
    def clear(self) -> Op[int]:
        """Delete every entry of this namespace and scope, and nothing else; return how many."""
        deleted = yield from clear_entries(self.shelf.prefix)
        yield from commands.unlink([f"{self._namespace}:u:{self._owner}"])
        yield from clear_entries(self._sources)
        return deleted

    @operation
    def drop(self) -> Op[int]:
        """Drop the index, the entries and the counts of *all* scopes of this namespace.

        Returns how many entries there were.
        """
        yield from self.shelf.drop()
        deleted = yield from clear_entries(self.shelf.all, digests=2)
        yield from clear_entries(f"{self._namespace}:u:")
        yield from clear_entries(f"{self._namespace}:o:", digests=2)
        yield from clear_entries(f"{self._namespace}:c:")
        return deleted

    @operation
    def stats(self, *, reset: bool = False) -> Op[CacheStats]:
        """Return what all processes asked this cache (of this namespace and scope), and its hits.

        With `reset`, counting begins anew. Raises what the server's trouble raises.
        """
        return (yield from self.upkeep.stats(reset=reset))

    @operation
    def calibrate(self, pairs: Iterable[Any], target_false_hits: float = 0.01) -> Op[Calibration]:
        """Return what each threshold would do to labelled pairs, and the one for a target.

        `pairs` are (text, other text, whether they may share an answer), or dicts with `a`, `b` and
        `same`. The cache's guards are asked, too; a judge is not. Nothing is stored.
        """
        from .caching.calibration import calibration  # noqa: PLC0415 - lookups do without it

        rows = [
            (pair["a"], pair["b"], pair["same"]) if isinstance(pair, Mapping) else tuple(pair)
            for pair in pairs
        ]
        if not rows or not all(len(row) == 3 for row in rows):
            raise ValueError("pairs must be (text, text, same), and there must be some")
        texts = [[self.question(row[side], "", None).text for row in rows] for side in (0, 1)]
        distances: list[float] = []
        for start in range(0, len(rows), 1000):
            part = [side[start : start + 1000] for side in texts]
            vectors = yield from self._embedder.documents([*part[0], *part[1]])
            matrix = np.asarray(vectors, np.float64)
            matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
            half = len(part[0])
            distances += (1 - np.einsum("ij,ij->i", matrix[:half], matrix[half:])).tolist()
        vetoed = [veto(self._guards, a, b) is not None for a, b in zip(*texts, strict=True)]
        same = [bool(row[2]) for row in rows]
        return calibration(distances, same, vetoed=vetoed, target_false_hits=target_false_hits)

    # -- of both -----------------------------------------------------------------------------------

    def question(self, prompt: Prompt, model: str, params: Mapping[str, Any] | None) -> Question:
        """Return what is asked, checked; a value, not an operation."""
        if type(model) is not str:  # what cannot be hashed cannot be looked up
            require_text("model", model, empty=True)
        params = None if params is None else telling(params) or None
        if self._extract is None and params is None and isinstance(prompt, str):
            text = whole = require_text("prompt", prompt)
            tag, state = self._seeds(model)
        else:
            text, taken = (self._extract or _LAST_TURN)(prompt)
            whole, rest = "", ""
            if params is not None or not isinstance(prompt, str):
                others = "" if isinstance(prompt, str) else without_last_turn(prompt)
                whole, rest = canonical(prompt, params), canonical(others, params)
            tag, state = self._seeds(model, rest, taken)
            whole = whole or str(prompt)
        return Question(whole, text, model, tag, framed(state.copy(), whole).hexdigest())

    def _terms(
        self,
        vector: Any,
        max_distance: float | None,
        category: str | None,
        condition: Filter | None,
        k: int,
    ) -> Terms:
        limit = None if max_distance is None else distance_limit("max_distance", max_distance)
        if category is not None:
            require_text("category", category)
        if condition is not None:
            self.shelf.schema.check_filter(condition)
        if vector is not None:
            vector = as_vector(vector, self.shelf.dim, dtype=self.shelf.dtype)
        return Terms(vector, limit, category, condition, k)

    def _vector(self, text: str, vector: Any = None) -> Op[Any]:
        """Return a text's vector, checked, as an array of the index's type."""
        if vector is None:
            vector = (yield from self._embedder.documents([text]))[0]
        return as_vector(vector, self.shelf.dim, dtype=self.shelf.dtype)
