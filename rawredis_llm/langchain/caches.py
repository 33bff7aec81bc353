"""LangChain's answer cache; a hit is what the model returned, whole. Imports no numpy."""

from __future__ import annotations

import logging
from typing import Any

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache

from ..cache import CacheHit, LLMCache
from ..keys import key_segment
from .link import Link, Linked, first
from .messages import UNREADABLE, generations_from, generations_to

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

    def clear(self, **kwargs: Any) -> None:
        """Delete this cache's entries, with `llm_string=` those of one model only."""
        _cleared(self._cache, **kwargs)

    async def aclear(self, **kwargs: Any) -> None:
        """Do what `clear` does."""
        await _cleared(self._twin, **kwargs)

    def _asked(self, prompt: str) -> Any:
        """Return what the cache of ours is asked; None for what cannot be cached."""
        return prompt if prompt.strip() else None


def _answer(hit: CacheHit | None) -> RETURN_VAL_TYPE | None:
    """Return the generations in a hit; what another version may have written is a miss."""
    if hit is None:
        return None
    try:
        return generations_from(hit.response)
    except UNREADABLE as error:
        logging.getLogger("rawredis_llm").warning("an entry that cannot be read: %r", error)
        return None


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


def _cleared(cache: Any, llm_string: str | None = None) -> Any:
    return cache.clear() if llm_string is None else cache.delete_model(llm_string)


def namespace_of(*parts: str) -> str:
    """Return the namespace that prefixes and names stand for, another one for others."""
    return ":".join(key_segment(part.removesuffix(":")) for part in parts)
