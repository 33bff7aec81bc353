"""The exact answer cache: one string key per (scope, model, prompt), JSON inside.

Needs no search module and imports no numpy. A wrong answer is worse than none: an entry repeats its
identity, and one that does not match what was asked for is a miss.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .errors import ConnectionError, TimeoutError  # noqa: A004 - ours, not the builtins
from .keys import clear_entries, digest, from_json, milliseconds, require_text, to_json
from .protocol import commands
from .protocol.operation import Batch, Bound, C_co, Now, Op, Plan, operation

__all__ = ["CacheHit", "LLMCache"]


@dataclass(slots=True)
class CacheHit:
    """An answer found in a cache.

    `age` is seconds since it was stored, `ttl` seconds that are left (None: for ever). `distance`
    (cosine, 0 to 2) and `similarity` (0 to 1) are None for an exact hit. `stale` is True only where
    a cache was told to serve entries past their time.
    """

    response: str
    prompt: str
    model: str
    id: str
    metadata: dict[str, Any] = field(default_factory=dict)
    age: float = 0.0
    ttl: float | None = None
    stale: bool = False
    distance: float | None = None
    similarity: float | None = None


def forgiven(error: Exception, on_error: str) -> None:
    """Raise `error`, or under the policy "miss" log it, so that the caller goes on without."""
    if on_error == "raise":
        raise error
    import logging  # noqa: PLC0415 - only a failure needs it

    logging.getLogger("rawredis_llm").warning("the cache is out of reach: %s", error)


def check_policy(on_error: str) -> str:
    """Return the policy for an unreachable server if it is one."""
    if on_error not in ("miss", "raise"):
        raise ValueError(f'on_error must be "miss" or "raise", not {on_error!r}')
    return on_error


def require_metadata(metadata: Any) -> None:
    """Raise TypeError unless it is a dict or None."""
    if not isinstance(metadata, (dict, type(None))):
        raise TypeError(f"metadata must be a dict or None, not {type(metadata).__name__}")


TROUBLE: Final = (ConnectionError, TimeoutError)
"""What on_error="miss" forgives: the server cannot be reached or does not answer. A refusal (wrong
password, no permission, no search module) is the user's to see and always raises."""


class LLMCache(Bound[C_co]):
    """Answers by exactly the same question, kept apart by `scope` (a tenant, a user) and model.

    `ttl` (seconds; None: for ever) is the default for `store`. `on_error="miss"` turns a server
    that cannot be reached into misses, which are logged; "raise" raises. Works on any Redis.
    """

    def __init__(
        self,
        client: C_co,
        *,
        namespace: str = "llm",
        scope: str = "",
        ttl: float | None = None,
        on_error: str = "miss",
    ) -> None:
        self._bind(client)
        require_text("namespace", namespace)
        self._scope = require_text("scope", scope, empty=True)
        self._ttl = milliseconds("ttl", ttl)
        self._on_error = check_policy(on_error)
        self._owner = digest("exact", namespace, scope)
        self._prefix = f"{namespace}:x:{self._owner}:"

    @property
    def plan(self) -> LLMCache[Plan]:
        """This cache with methods that return ops, for `client.gather`."""
        planned: LLMCache[Plan] = self._planned()
        return planned

    @operation
    def lookup(self, prompt: str, model: str = "") -> Op[CacheHit | None]:
        """Return the answer stored for this prompt, scope and model, or None."""
        identity = self._identity(prompt, model)
        try:
            data = yield from commands.get(self._prefix + identity)
        except TROUBLE as error:
            forgiven(error, self._on_error)
            return None
        if data is None:
            return None
        return self._hit(data, identity, model, (yield from Now()))

    @operation
    def lookup_many(self, prompts: Sequence[str], model: str = "") -> Op[list[CacheHit | None]]:
        """Look up many prompts in one round trip; one answer or None for each, in order."""
        if isinstance(prompts, str):
            raise TypeError("prompts must be a list of texts, not one text")
        identities = [self._identity(prompt, model) for prompt in prompts]
        if not identities:
            return []
        try:
            found = yield from commands.mget([self._prefix + name for name in identities])
        except TROUBLE as error:
            forgiven(error, self._on_error)
            return [None] * len(identities)
        now = yield from Now()
        return [
            None if data is None else self._hit(data, identity, model, now)
            for data, identity in zip(found, identities, strict=True)
        ]

    @operation
    def store(
        self,
        prompt: str,
        response: str,
        model: str = "",
        *,
        ttl: float | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Op[str]:
        """Store an answer, replacing what was there; return the entry's id.

        `ttl` in seconds (default: the cache's). `metadata` is anything JSON can hold. Raises
        ValueError or TypeError naming the argument that cannot be stored.
        """
        ids = yield from self._store([(prompt, response)], model, ttl, metadata)
        return ids[0]

    @operation
    def store_many(
        self,
        entries: Iterable[tuple[str, str]],
        model: str = "",
        *,
        ttl: float | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Op[list[str]]:
        """Store many (prompt, response) pairs in one round trip; return their ids, in order."""
        pairs = list(entries)
        for pair in pairs:
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise TypeError("entries must be pairs of texts: (prompt, response)")
        return (yield from self._store(pairs, model, ttl, metadata))

    @operation
    def delete(self, prompt: str, model: str = "") -> Op[bool]:
        """Delete the answer to a prompt; return whether there was one."""
        return (yield from commands.delete(self._prefix + self._identity(prompt, model))) > 0

    @operation
    def clear(self) -> Op[int]:
        """Delete every entry of this namespace and scope, and nothing else; return how many."""
        return (yield from clear_entries(self._prefix))

    def _identity(self, prompt: str, model: str) -> str:
        require_text("prompt", prompt)
        require_text("model", model, empty=True)
        return digest(self._owner, model, prompt)

    def _store(
        self,
        entries: list[tuple[str, str]],
        model: str,
        ttl: float | None,
        metadata: dict[str, Any] | None,
    ) -> Op[list[str]]:
        px = self._ttl if ttl is None else milliseconds("ttl", ttl)
        require_metadata(metadata)
        identities = [self._identity(prompt, model) for prompt, _ in entries]
        created = yield from Now()
        writes = []
        for identity, (prompt, response) in zip(identities, entries, strict=True):
            require_text("response", response, empty=True)
            entry = {"id": identity, "scope": self._scope, "model": model, "prompt": prompt}
            entry |= {"response": response, "created": created, "px": px}  # type: ignore[dict-item]  # JSON
            if metadata:
                entry["metadata"] = metadata  # type: ignore[assignment]  # JSON
            value = to_json("metadata", entry)
            writes.append(commands.set_value(self._prefix + identity, value, px))
        try:
            yield from Batch(writes)
        except TROUBLE as error:
            forgiven(error, self._on_error)
        return identities

    def _hit(self, data: bytes, identity: str, model: str, now: float) -> CacheHit | None:
        entry = from_json(data)
        if not isinstance(entry, dict):
            return None
        expected = (identity, self._scope, model)
        if (entry.get("id"), entry.get("scope"), entry.get("model")) != expected:
            return None
        return hit_of(entry, identity, now)


_FAR: Final = 2**53  # beyond any time of ours, and below what a float could not hold


def hit_of(
    entry: dict[str, Any],
    identity: str,
    now: float,
    distance: float | None = None,
    similarity: float | None = None,
) -> CacheHit | None:
    """Return the hit in an entry of ours, None if it is damaged."""
    response, prompt, created = entry.get("response"), entry.get("prompt"), entry.get("created")
    px, metadata = entry.get("px"), entry.get("metadata", {})
    if not (isinstance(response, str) and isinstance(prompt, str) and isinstance(metadata, dict)):
        return None
    if not isinstance(created, (int, float)) or not isinstance(px, (int, type(None))):
        return None
    if not 0 <= created < _FAR or not 0 <= (px or 0) < _FAR:  # NaN, too, is damage
        return None
    return CacheHit(
        response=response,
        prompt=prompt,
        model=entry["model"],
        id=identity,
        metadata=metadata,
        age=max(now - created, 0.0),
        ttl=None if px is None else max(created + px / 1000 - now, 0.0),
        distance=distance,
        similarity=similarity,
    )
