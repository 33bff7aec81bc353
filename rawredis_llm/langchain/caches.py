"""LangChain's answer caches: exact, and by meaning. A hit is what the model returned, whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.embeddings import Embeddings

from ..cache import CacheHit, LLMCache
from ..caching.guards import extractor
from ..caching.identity import Prompt
from ..semantic_cache import SemanticCache
from .link import Link, Linked, first
from .messages import generations_from, generations_to, said_in

__all__ = ["RedisCache", "RedisSemanticCache"]


class _Cache(Linked, BaseCache):
    """What both caches do around a cache of ours, which each colour has bound to its client."""

    _cache: Any
    _twin: Any

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """Return the generations stored for a prompt and a model's parameters, or None."""
        asked = self._asked(prompt)
        return None if asked is None else _answer(self._cache.lookup(asked, llm_string))

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """Return what `lookup` does."""
        asked = self._asked(prompt)
        return None if asked is None else _answer(await self._twin.lookup(asked, llm_string))

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Store generations. Raises TypeError, naming them, for values that JSON does not have."""
        asked = self._asked(prompt)
        if asked is not None:
            self._cache.store(asked, generations_to(return_val), llm_string)

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Do what `update` does."""
        asked = self._asked(prompt)
        if asked is not None:
            await self._twin.store(asked, generations_to(return_val), llm_string)

    def _asked(self, prompt: str) -> Any:
        """Return what the cache of ours is asked; None for what cannot be cached."""
        return prompt


def _answer(hit: CacheHit | None) -> RETURN_VAL_TYPE | None:
    return None if hit is None else generations_from(hit.response)


class RedisCache(_Cache):
    """Answers to exactly the same prompt of the same model with the same parameters.

    The first argument, `redis_` or `client` is a `Client` or `AsyncClient` of ours, or a URL;
    without them `redis_url` or the environment's REDIS_URL counts. `ttl` is in seconds, `prefix`
    keeps caches of one server apart. A server that is away is a miss, which is logged. Needs no
    search module.
    """

    def __init__(
        self,
        redis_: Any = None,
        ttl: float | None = None,
        prefix: str = "langchain",
        *,
        redis_url: str | None = None,
        client: Any = None,
        redis_client: Any = None,
    ) -> None:
        given = first(redis_, client, redis_client, of="redis_, client, redis_client")
        self.link = Link(given, redis_url)
        self._cache: LLMCache[Any] = LLMCache(self.link.sync, namespace=_namespace(prefix), ttl=ttl)
        self._twin = self._cache.bound_to(self.link.aio)

    def clear(self, **kwargs: Any) -> None:
        """Delete this cache's entries, with `llm_string=` those of one model only."""
        _cleared(self._cache, **kwargs)

    async def aclear(self, **kwargs: Any) -> None:
        """Do what `clear` does."""
        await _cleared(self._twin, **kwargs)


def _cleared(cache: Any, llm_string: str | None = None) -> Any:
    return cache.clear() if llm_string is None else cache.delete_model(llm_string)


class RedisSemanticCache(_Cache):
    """Answers to prompts that mean the same, of the same model with the same parameters.

    Of chat messages the last user turn is embedded, and all else must be the same; a prompt without
    text of a user's is not cached. Another `extract` takes a prompt, a text or messages with `role`
    and `content`, and returns (text to embed, what else must be the same).
    `distance_threshold`, or `score_threshold` by its older name, is the cosine distance, 0 to 2, up
    to which a prompt counts as the same (default 0.2). `name` and `prefix` keep caches of one
    server apart; `ttl` is in seconds, and a server that is away is a miss, which is logged.
    """

    def __init__(
        self,
        embeddings: Any = None,
        redis_url: Any = None,
        distance_threshold: float | None = None,
        ttl: float | None = None,
        name: str | None = "llmcache",
        prefix: str | None = "llmcache",
        *,
        embedding: Embeddings | None = None,
        score_threshold: float | None = None,
        client: Any = None,
        redis_client: Any = None,
        extract: Callable[[Prompt], tuple[str, str]] | None = None,
    ) -> None:
        embedder: Any = embeddings
        if isinstance(embeddings, str):  # the older order: redis_url, embedding, score_threshold
            embedder, redis_url = redis_url, embeddings
        embedder = first(embedder, embedding, of="embeddings and embedding")
        if embedder is None:
            raise TypeError("RedisSemanticCache needs embeddings")
        given = first(client, redis_client, of="client and redis_client")
        self.link = Link(given, redis_url)
        threshold = first(
            distance_threshold, score_threshold, of="distance_threshold and score_threshold"
        )
        self._has_text = extractor() if extract is None else None
        self._cache: SemanticCache[Any] = SemanticCache(
            self.link.sync,
            embedder,
            namespace=_namespace(prefix or "llmcache", name or "llmcache"),
            max_distance=0.2 if threshold is None else threshold,
            ttl=ttl,
            extract=extract,
        )
        self._twin = self._cache.bound_to(self.link.aio)

    def _asked(self, prompt: str) -> Any:
        asked = said_in(prompt)
        if self._has_text is None:  # an extract of theirs says what there is to compare
            return asked
        try:
            self._has_text(asked)
        except (TypeError, ValueError):
            return None
        return asked

    def clear(self, **kwargs: Any) -> None:
        """Delete this cache's entries; `llm_string=` is accepted, and changes nothing."""
        kwargs.pop("llm_string", None)
        self._cache.clear(**kwargs)

    async def aclear(self, **kwargs: Any) -> None:
        """Do what `clear` does."""
        kwargs.pop("llm_string", None)
        await self._twin.clear(**kwargs)


def _namespace(*parts: str) -> str:
    return ":".join(dict.fromkeys(part.rstrip(":") for part in parts))
