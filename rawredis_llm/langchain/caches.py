"""LangChain's answer cache; a hit is what the model returned, whole. Imports no numpy."""

from __future__ import annotations

from typing import Any

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache

from ..cache import CacheHit, LLMCache
from .link import Link, Linked, first
from .messages import generations_from, generations_to

__all__ = ["AnswerCache", "RedisCache"]


class AnswerCache(Linked, BaseCache):
    """What a cache does around one of ours, which each colour has bound to its client."""

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


class RedisCache(AnswerCache):
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
        self._cache: LLMCache[Any] = LLMCache(
            self.link.sync, namespace=namespace_of(prefix), ttl=ttl
        )
        self._twin = self._cache.bound_to(self.link.aio)

    def clear(self, **kwargs: Any) -> None:
        """Delete this cache's entries, with `llm_string=` those of one model only."""
        _cleared(self._cache, **kwargs)

    async def aclear(self, **kwargs: Any) -> None:
        """Do what `clear` does."""
        await _cleared(self._twin, **kwargs)


def _cleared(cache: Any, llm_string: str | None = None) -> Any:
    return cache.clear() if llm_string is None else cache.delete_model(llm_string)


def namespace_of(*parts: str) -> str:
    """Return the namespace that prefixes and names stand for."""
    return ":".join(dict.fromkeys(part.rstrip(":") for part in parts))
