"""LangChain's byte store: values under keys, for what caches embeddings or keeps documents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.stores import ByteStore

from ..keys import escape_glob, key_segment, milliseconds, require_text
from ..protocol import commands
from ..protocol.operation import Batch, Op
from .link import Link, Linked, first

__all__ = ["RedisStore"]


class RedisStore(Linked, ByteStore):
    """Bytes under texts. `namespace` keeps stores of one server apart, `ttl` is in seconds.

    `client` or `redis_url` as in the other classes. Needs no search module.
    """

    def __init__(
        self,
        *,
        client: Any = None,
        redis_client: Any = None,
        redis_url: str | None = None,
        namespace: str = "langchain.store",
        ttl: float | None = None,
    ) -> None:
        given = first(client, redis_client, of="client and redis_client")
        self.link = Link(given, redis_url)
        self._prefix = f"{key_segment(require_text('namespace', namespace))}:"
        self._px = milliseconds("ttl", ttl)

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values of keys, None for each that is missing."""
        return self.link.run(self._get(keys))

    async def amget(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values of keys, None for each that is missing."""
        return await self.link.arun(self._get(keys))

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Set values, in one write."""
        self.link.run(self._set(key_value_pairs))

    async def amset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Set values, in one write."""
        await self.link.arun(self._set(key_value_pairs))

    def mdelete(self, keys: Sequence[str]) -> None:
        """Delete keys, if they are there."""
        self.link.run(self._delete(keys))

    async def amdelete(self, keys: Sequence[str]) -> None:
        """Delete keys, if they are there."""
        await self.link.arun(self._delete(keys))

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """Iterate over the keys, or those that begin so, each once, in no order."""
        seen: set[bytes] = set()
        for key in self.link.sync.scan(self._pattern(prefix), count=1000):
            if key not in seen:
                seen.add(key)
                yield self._name(key)

    async def ayield_keys(  # pyright: ignore[reportIncompatibleMethodOverride] - as all others
        self, *, prefix: str | None = None
    ) -> AsyncIterator[str]:
        """Iterate over the keys, or those that begin so, each once, in no order."""
        seen: set[bytes] = set()
        async for key in self.link.aio.scan(self._pattern(prefix), count=1000):
            if key not in seen:
                seen.add(key)
                yield self._name(key)

    def _get(self, keys: Sequence[str]) -> Op[list[bytes | None]]:
        return (yield from commands.mget(self._keys(keys))) if keys else []

    def _set(self, pairs: Sequence[tuple[str, bytes]]) -> Op[None]:
        for _, value in pairs:
            if not isinstance(value, bytes):
                raise TypeError(f"a value must be bytes, not {type(value).__name__}")
        keys = self._keys([key for key, _ in pairs])
        yield from Batch(
            commands.set_value(key, value, self._px)
            for key, (_, value) in zip(keys, pairs, strict=True)
        )

    def _delete(self, keys: Sequence[str]) -> Op[None]:
        if keys:
            yield from commands.unlink(self._keys(keys))

    def _keys(self, keys: Sequence[str]) -> list[str]:
        if isinstance(keys, str):
            raise TypeError("keys must be a list of texts, not one text")
        return [self._prefix + require_text("keys", key) for key in keys]

    def _pattern(self, prefix: str | None) -> str:
        return escape_glob(self._prefix + (prefix or "")) + "*"

    def _name(self, key: bytes) -> str:
        return key.decode()[len(self._prefix) :]
