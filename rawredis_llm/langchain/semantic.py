"""LangChain's semantic answer cache: what is compared is what the user said last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.embeddings import Embeddings

from ..caching.guards import extractor
from ..caching.identity import Prompt
from ..semantic_cache import SemanticCache
from .caches import AnswerCache, namespace_of
from .link import Link, first
from .messages import said_in

__all__ = ["RedisSemanticCache"]


class RedisSemanticCache(AnswerCache):
    """Answers to prompts that mean the same, of the same model with the same parameters.

    Of chat messages the last user turn is embedded, and all else must be the same; a prompt without
    text of a user's is not cached. Another `extract` takes a prompt, a text or messages with `role`
    and `content`, and returns (text to embed, what must be the same beside the other turns).
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
            namespace=namespace_of(prefix or "llmcache", name or "llmcache"),
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
