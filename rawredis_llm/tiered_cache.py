"""The exact and the semantic cache as one: both are asked in the same round trip.

Must not import a client.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from .cache import LLMCache
from .caching.entries import UNREACHABLE, CacheHit, Found
from .caching.identity import Prompt
from .caching.sources import as_sources
from .caching.upkeep import OUT_OF_REACH, TROUBLE
from .errors import IndexNotFoundError, SearchUnavailableError, WrongTypeError
from .protocol import commands
from .protocol.operation import Batch, Bound, C_co, Now, Op, Plan, operation, together
from .semantic_cache import SemanticCache

__all__ = ["TieredCache"]


class TieredCache(Bound[C_co]):
    """An exact cache before a semantic one, both of the same client.

    With `promote`, what the semantic one found for a question, within its own `max_distance`, is
    stored in the exact one, too, for as long as it lives there; it goes with its sources, and when
    `store` replaces what it came from.
    """

    def __init__(
        self, exact: LLMCache[C_co], semantic: SemanticCache[C_co], *, promote: bool = False
    ) -> None:
        if not isinstance(exact, LLMCache) or not isinstance(semantic, SemanticCache):
            raise TypeError("TieredCache takes an LLMCache and a SemanticCache")
        if exact.client is not semantic.client:
            raise ValueError("exact and semantic must have the same client")
        if exact.scope != semantic.scope:
            raise ValueError("exact and semantic must have the same scope")
        self._bind(exact.client)
        self.exact = exact
        self.semantic = semantic
        self._promotes = promote

    @property
    def plan(self) -> TieredCache[Plan]:
        """This cache with methods that return ops, for `client.gather`."""
        planned: TieredCache[Plan] = self._planned()
        return planned

    @operation
    def lookup(
        self,
        prompt: Prompt,
        model: str = "",
        *,
        params: Mapping[str, Any] | None = None,
        vector: Any = None,
        max_distance: float | None = None,
    ) -> Op[CacheHit | None]:
        """Return the answer to this question, else to the nearest one, or None.

        The parameters are as in `SemanticCache.lookup`. Each cache counts what it was asked.
        """
        exact, semantic = self.exact, self.semantic
        asked = exact.asked(prompt, model, params)
        question, terms = yield from semantic.asked(prompt, model, params, vector, max_distance)
        found, now, near = yield from self._both(asked, question, terms)
        exact.upkeep.count(found, now)
        hit: CacheHit | None = found.hit
        late = hit if hit is not None and hit.stale else None
        if hit is not None and hit.error is None and late is None:
            return hit
        found, now = yield from semantic.settled(near, question, terms)
        semantic.count(found, now)
        hit = found.hit
        if hit is not None and self._promotes and max_distance is None:
            yield from exact.promoted(asked, found, _origin(hit.id))
        return late if hit is None else hit

    def _both(self, asked: Any, question: Any, terms: Any) -> Op[tuple[Found, float, Any]]:
        """Ask both at once."""
        exact, semantic = self.exact, self.semantic
        if semantic.shelf.plain and not exact.refreshes:
            search = semantic.shelf.search(terms.vector, terms.k, question.tag)
            try:
                both = yield from exact.upkeep.ask(Batch([commands.get(asked.key), search]))
            except (IndexNotFoundError, SearchUnavailableError, WrongTypeError):
                pass  # each by itself knows what to make of it
            else:
                now = yield from Now()
                if both is OUT_OF_REACH:
                    return UNREACHABLE, now, both
                return exact.found(both[0], asked, now), now, both[1]
        (found, now), near = yield from together(
            [exact.look(asked), semantic.nearby(question, terms)]
        )
        return found, now, near

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
        """Store an answer in both, in one write; return its id in the semantic cache.

        The parameters are as in `SemanticCache.store`.
        """
        semantic = self.semantic
        of_both: dict[str, Any] = {"ttl": ttl, "metadata": metadata, "sources": as_sources(sources)}
        # First of all: what the semantic one refuses is not stored in the exact one either.
        question = semantic.question(prompt, model, params)
        entry = yield from semantic.prepared(
            question, response, vector=vector, category=category, fields=fields, **of_both
        )
        exact = self.exact.plan.store(prompt, response, model, params=params, **of_both)
        yield from together([exact, semantic.shelf.write(*entry)])
        if self._promotes and not self.exact.upkeep.health.until:
            with suppress(*TROUBLE):  # the stores have said what there is to say
                yield from self.exact.plan.delete_source(_origin(question.id))
        return question.id

    @operation
    def delete_source(self, source: str) -> Op[int]:
        """Delete every answer that was stored with this source, from both; return how many."""
        counts = yield from together(
            [self.exact.plan.delete_source(source), self.semantic.plan.delete_source(source)]
        )
        return sum(counts)

    @operation
    def clear(self) -> Op[int]:
        """Delete every entry of both; return how many."""
        return sum((yield from together([self.exact.plan.clear(), self.semantic.plan.clear()])))


def _origin(id: str) -> str:  # noqa: A002 - as elsewhere
    """Return the source that stands for an entry of the semantic cache."""
    return f"rawredis_llm:entry:{id}"
