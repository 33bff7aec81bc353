"""Semantic router: which of several routes a text is for, by the examples that it is nearest to.

An example is one hash in an index of the router's; what routes there are, and how near is near
enough for each, stands in one hash beside it, read in the same round trip.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .embedding import as_embedder
from .index.lazy import LazyIndex, owned_by
from .keys import (
    clear_matching,
    digest,
    distance_limit,
    escape_glob,
    from_json,
    indexed_key_part,
    require_text,
    to_json,
)
from .protocol import commands
from .protocol.operation import Batch, Bound, C_co, Op, Plan, operation
from .search.fields import Tag
from .search.query import MAX_RESULTS

__all__ = ["Route", "Routing", "SemanticRouter"]

_NEAREST: Final = 50  # examples that a choice is made of
_ROUNDING: Final = 1e-6  # what float32 leaves of the distance between equal vectors


@dataclass(slots=True)
class Route:
    """A route, or how near a text came to it.

    `distance` is that of its nearest example, `example`, which is near enough up to `max_distance`;
    `examples` are all of them, where `routes()` tells.
    """

    name: str
    max_distance: float
    distance: float | None = None
    example: str = ""
    examples: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Routing:
    """Where a text goes: `name`, or None if no route is near enough, and why.

    `considered` are the routes of the nearest 50 examples, nearest first: the first whose
    `distance` is at most its `max_distance` was chosen.
    """

    name: str | None
    distance: float | None
    example: str
    considered: list[Route]


class SemanticRouter(Bound[C_co]):
    """Chooses a route for a text, by cosine distance to the routes' examples.

    Routes are a namespace's: each process sees those that any one added with this embedder (any
    that `as_embedder` takes). `max_distance` (0 to 2) is for routes that were given none.
    """

    def __init__(
        self,
        client: C_co,
        embedder: Any,
        *,
        namespace: str = "router",
        max_distance: float = 0.3,
    ) -> None:
        self._bind(client)
        self._embedder = as_embedder(embedder)
        indexed_key_part("namespace", namespace)
        self._max_distance = distance_limit("max_distance", max_distance)
        self._scope = digest("router", namespace, self._embedder.fingerprint)
        self._index = LazyIndex(namespace, [Tag("route", case_sensitive=True)])
        self._limits = f"{namespace}:routes:{self._scope}"

    @property
    def plan(self) -> SemanticRouter[Plan]:
        """This router with methods that return ops, for `client.gather`."""
        planned: SemanticRouter[Plan] = self._planned()
        return planned

    @operation
    def add(
        self, name: str, examples: Sequence[str], *, max_distance: float | None = None
    ) -> Op[int]:
        """Add examples to a route, which comes into being with them; return how many.

        `max_distance` is the route's from now on (None: as it was, else the router's).
        """
        require_text("name", name)
        texts = _texts(examples)
        if not texts:
            raise ValueError("examples: none is given")
        limit = None if max_distance is None else distance_limit("max_distance", max_distance)
        kept = to_json("max_distance", limit)
        vectors = yield from self._embedder.documents(texts)
        label = _label(name)
        fields = [{"scope": self._scope, "route": label, "name": name, "text": t} for t in texts]
        ids = [f"{self._scope}:{label}:{digest(text)}" for text in texts]
        yield from self._index.write(ids, vectors, fields)
        verb = "HSETNX" if limit is None else "HSET"
        yield from Batch([(verb, self._limits, name, kept)])
        return len(texts)

    @operation
    def remove(self, name: str, examples: Sequence[str] | None = None) -> Op[int]:
        """Remove a route, or some of its examples; return how many examples there were."""
        label = _label(require_text("name", name))
        if examples is None:
            yield from Batch([("HDEL", self._limits, name)])
            return (yield from self._cleared(f"{self._scope}:{label}:"))
        start = f"{self._index.prefix}{self._scope}:{label}:"
        keys = [start + digest(text) for text in _texts(examples)]
        return (yield from commands.unlink(keys)) if keys else 0

    @operation
    def routes(self) -> Op[list[Route]]:
        """Return all routes with their examples, by name."""
        mine = owned_by(self._scope)
        rows = yield from self._index.matching(mine, ["name", "text"], limit=MAX_RESULTS)
        limits = yield from commands.hgetall(self._limits)
        found = {name: Route(name, limit) for name, limit in self._known(limits).items()}
        for row in rows:
            if row.fields["name"] in found:
                found[row.fields["name"]].examples.append(row.fields["text"])
        for route in found.values():
            route.examples.sort()
        return sorted(found.values(), key=lambda route: route.name)

    @operation
    def route(self, text: str, *, vector: Any = None) -> Op[Routing]:
        """Return where a text goes, in one round trip. `vector` is the text's, if it is known."""
        require_text("text", text)
        if vector is None:
            vector = (yield from self._embedder.queries([text]))[0]
        limits = commands.hgetall(self._limits)
        rows, known = yield from self._index.nearest(
            vector, _NEAREST, owned_by(self._scope), ["name", "text"], limits
        )
        considered: dict[str, Route] = {}
        limit_of = self._known(known)
        for row in rows:
            name = row.fields.get("name")
            if name in limit_of and name not in considered:
                text = row.fields.get("text", "")
                considered[name] = Route(name, limit_of[name], row.distance, text)
        for route in considered.values():
            if route.distance is not None and route.distance <= route.max_distance + _ROUNDING:
                chosen = (route.name, route.distance, route.example)
                return Routing(*chosen, list(considered.values()))
        return Routing(None, None, "", list(considered.values()))

    @operation
    def clear(self) -> Op[int]:
        """Remove all routes; return how many examples there were."""
        yield from commands.unlink([self._limits])
        return (yield from self._cleared(f"{self._scope}:"))

    def _cleared(self, start: str) -> Op[int]:
        """Delete the examples whose ids begin so, indexed or not; return how many."""
        return (yield from clear_matching(escape_glob(self._index.prefix + start) + "*"))

    def _known(self, limits: Mapping[bytes, bytes]) -> dict[str, float]:
        """Return the routes that there are, and how near is near enough for each."""
        found = {}
        for name, limit in limits.items():
            own = from_json(limit)
            is_number = isinstance(own, (int, float)) and not isinstance(own, bool)
            found[name.decode()] = float(own) if is_number else self._max_distance
        return found


def _texts(examples: Sequence[str]) -> list[str]:
    if isinstance(examples, str) or not isinstance(examples, Iterable):
        raise TypeError(f"examples must be a list of texts, not {type(examples).__name__}")
    return list(dict.fromkeys(require_text("examples", one) for one in examples))


def _label(name: str) -> str:
    """Return what stands for a route in keys and tags, which cannot hold any text."""
    return digest("route", name)
