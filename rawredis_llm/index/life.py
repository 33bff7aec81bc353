"""The life of an index: created, compared, changed, renamed by an alias, dropped.

Beside an index whose embedder is known stands a manifest, a string key of JSON, that names the
embedder: vectors of two embedders may have the same size, and no distance tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..embedding import as_embedder
from ..errors import (
    IndexExistsError,
    IndexMismatchError,
    IndexNotFoundError,
    NoPermissionError,
    TimeoutError,  # noqa: A004 - the field's own name
    UnsupportedError,
)
from ..keys import from_json, indexed_key_part, key_segment, to_json
from ..protocol import commands
from ..protocol.handshake import ServerInfo, server_info
from ..protocol.operation import Bound, C_co, Command, Now, Op, Pause, operation
from ..protocol.settings import seconds
from ..search import query
from ..search.fields import Field
from ..search.replies import IndexInfo
from ..search.schema import Schema

MANIFESTS = "rawredis_llm:manifest:"


@dataclass(slots=True)
class Known:
    """What was learnt of the server and the index; one object for an index and its plans.

    `settled`: the index was seen complete, so that a search need not ask whether it is being built.
    """

    server: ServerInfo | None = None
    settled: bool = False


class Life(Bound[C_co]):
    """An index by its name, its schema and its prefixes."""

    def __init__(
        self,
        client: C_co,
        name: str,
        schema: Schema,
        *,
        prefix: str | Sequence[str] | None = None,
        embedder: Any = None,
    ) -> None:
        self._bind(client)
        self.name = indexed_key_part("name", name)
        self.schema = schema
        given = [f"{key_segment(name)}:"] if prefix is None else prefix
        given = [given] if isinstance(given, str) else list(given)
        self.prefixes = [indexed_key_part("prefix", one) for one in given]
        if not self.prefixes or set("\r\n") & set("".join(self.prefixes)):
            raise ValueError(
                "prefix must not be an empty list, nor hold line breaks (default: the name)"
            )
        # With several, none is the one that an id could do without.
        self.prefix = self.prefixes[0] if len(self.prefixes) == 1 else ""
        self.embedder = ""
        if embedder is not None:
            named = embedder if isinstance(embedder, str) else as_embedder(embedder).fingerprint
            if not named:
                raise ValueError("embedder: it has no fingerprint, name or model to know it by")
            self.embedder = named
        self._known = Known()

    def to_dict(self) -> dict[str, Any]:
        """Return the index as plain values, for JSON or YAML; see `from_dict`."""
        named = {"name": self.name, "prefix": self.prefixes, **self.schema.to_dict()}
        return {**named, "embedder": self.embedder} if self.embedder else named

    @operation
    def create(self, exist_ok: bool = False) -> Op[None]:  # noqa: FBT001, FBT002 - as os.makedirs
        """Create the index; documents already under the prefix are indexed in the background.

        Raises IndexExistsError if there is one of this name; with `exist_ok`, only
        IndexMismatchError, if it has another prefix, other fields, or another embedder. Raises
        UnsupportedError, before anything is sent, for what the server's version does not have.
        """
        yield from self._require_support()
        self._known.settled = False
        try:
            there: IndexInfo | None = yield from query.info(self.name)
        except IndexNotFoundError:
            there = None
        if there is not None and exist_ok:
            yield from self._compare(there)
            return
        if there is not None and there.name != self.name:  # whose place the new index would take
            raise IndexMismatchError(f"{self.name!r} is an alias of the index {there.name!r}")
        try:
            yield from query.create_index(self.name, self.prefixes, self.schema)
        except IndexExistsError:
            if not exist_ok:
                raise
            # Somebody else was as far; what they wrote down of their embedder stays.
            yield from self._compare((yield from query.info(self.name)))
            return
        if self.embedder:
            yield from commands.set_value(MANIFESTS + self.name, manifest(self.embedder))
        else:
            yield from self._drop_manifest()

    @operation
    def drop(self, delete_documents: bool = False) -> Op[None]:  # noqa: FBT001, FBT002 - see above
        """Drop the index, and its documents only if told so. Raises IndexNotFoundError."""
        self._known.settled = False
        yield from query.drop_index(self.name, documents=delete_documents)
        yield from self._drop_manifest()

    @operation
    def exists(self) -> Op[bool]:
        """Return whether there is an index of this name."""
        try:
            yield from query.info(self.name)
        except IndexNotFoundError:
            return False
        return True

    @operation
    def info(self) -> Command[IndexInfo]:
        """Return what the server says of the index. Raises IndexNotFoundError."""
        return query.info(self.name)

    @operation
    def check(self) -> Op[None]:
        """Compare with the live index, field by field, and with the embedder that it was made for.

        Raises IndexMismatchError, which says what differs, and IndexNotFoundError.
        """
        yield from self._compare((yield from query.info(self.name)))

    def _compare(self, info: IndexInfo) -> Op[None]:
        differences = self.schema.differences(info, self.prefixes)
        embedder = (yield from read_manifest(info.name)) if self.embedder else ""
        query.refuse_differences(
            self.name, differences + embedder_differences(embedder, self.embedder)
        )

    @operation
    def wait_until_indexed(
        self, timeout: float = 60.0, *, progress: Callable[[float], object] | None = None
    ) -> Op[None]:
        """Wait until documents that were there before the index are in it.

        `timeout` in seconds; `progress(share)` is told now and then how much is done, 0 to 1.
        Raises TimeoutError when the time is up, and IndexNotFoundError.
        """
        yield from self._until_whole(seconds("timeout", timeout), progress)

    def _until_whole(self, limit: float, progress: Callable[[float], object] | None) -> Op[None]:
        until = (yield from Now()) + limit
        pause = 0.005
        while True:
            info = yield from query.info(self.name)
            if progress is not None:
                progress(info.percent_indexed)
            if info.whole:
                self._known.settled = True
                return
            if (yield from Now()) + pause > until:
                done = f"{info.percent_indexed:.1%}"
                raise TimeoutError(f"index {self.name!r}: {done} done after {limit:g} s")
            yield from Pause(pause)
            pause = min(pause * 1.5, 0.5)

    @operation
    def alter(self, fields: Sequence[Field]) -> Op[None]:
        """Add fields to the index; documents that have them are indexed anew in the background.

        A field cannot be changed or taken away: that takes `reindex`.
        """
        added = list(fields)
        if not added:
            raise ValueError("fields: none is given")
        grown = Schema([*self.schema.fields.values(), *added], **self.schema.options())
        yield from self._require_support(added)
        yield from Command(("FT.ALTER", self.name, "SCHEMA", "ADD", *grown.declarations(added)))
        self._known.settled = False
        # The schema object itself learns of it, as plans of this index share it.
        self.schema.fields.update({field.name: field for field in added})
        self._altered()

    def _altered(self) -> None:
        """Take notice of fields that came to the schema."""

    @operation
    def alias(self, name: str, *, move: bool = False) -> Command[bytes]:
        """Give the index a second name; with `move`, take it at once from the one that has it.

        Whoever searches by the alias sees the one index or the other, never none. Raises ReplyError
        if another index has it and `move` was not said.
        """
        verb = "FT.ALIASUPDATE" if move else "FT.ALIASADD"
        return Command((verb, indexed_key_part("name", name), self.name))

    @operation
    def drop_alias(self, name: str) -> Command[bytes]:
        """Take an alias away. Raises ReplyError if there is none of this name."""
        return Command(("FT.ALIASDEL", indexed_key_part("name", name)))

    def _drop_manifest(self) -> Op[None]:
        with suppress(NoPermissionError):  # a user of this prefix only
            yield from commands.unlink([MANIFESTS + self.name])

    def _wait_until_whole(self) -> Op[None]:
        """Wait for an index that is being built: it would show a part only."""
        if not self._known.settled:
            with suppress(NoPermissionError):  # then it cannot be known
                yield from self._until_whole(60.0, None)

    def _server(self) -> Op[ServerInfo]:
        if self._known.server is None:
            self._known.server = yield from server_info()
        return self._known.server

    def _require_support(self, fields: Sequence[Field] | None = None) -> Op[None]:
        """Raise UnsupportedError for what the server does not have; ask it only if need be."""
        needs = (
            self.schema.required() if fields is None else [n for f in fields for n in f.required()]
        )
        if not needs and not self.schema.json:
            return
        server = yield from self._server()
        found = "has no search" if server.search is None else f"is {server.search}"
        if self.schema.json and not server.json:
            raise UnsupportedError(f"documents in JSON: {server.name} {server.version} has no JSON")
        for what, version in needs:
            # A version of 0 is one that is not told: then the server itself says what it lacks.
            if server.search is None or 0 < server.search < version:
                raise UnsupportedError(
                    f"{what} needs RediSearch {version // 10000}.{version // 100 % 100}, the"
                    f" server's {found} ({server.name} {server.version})"
                )


def manifest(embedder: str) -> str:
    """Return what is written down of an index."""
    return to_json("embedder", {"embedder": embedder})


def embedder_in(data: bytes | None) -> str:
    """Return the fingerprint that a manifest names, '' if there is none."""
    written = from_json(data)
    return str(written.get("embedder", "")) if isinstance(written, dict) else ""


def embedder_differences(written: str, ours: str) -> list[str]:
    """Return what is to be said where an index is for another embedder; '' is any."""
    if not written or not ours or written == ours:
        return []
    return [f"its vectors are by the embedder {written!r}, not {ours!r}"]


def read_manifest(name: str) -> Op[str]:
    """Return the fingerprint of the embedder that an index is for, '' if nobody wrote it down."""
    try:
        return embedder_in((yield from commands.get(MANIFESTS + name)))
    except NoPermissionError:  # a user of this prefix only: nobody could have written it either
        return ""
