"""What a client knows of its cluster: who serves which slot, and so who is to be sent what.

Must not import sockets, asyncio, numpy, or another ring.
"""

from __future__ import annotations

import random
import zlib
from binascii import crc_hqx
from collections.abc import Sequence
from itertools import repeat
from typing import Any, Final, NamedTuple

from .keyed import SINGLE, single
from .operation import Batch, Command
from .resp import key_bytes
from .retry import READS
from .slots import SLOTS, SlotMap, key_slot
from .vetting import HARMLESS, command_name


class Routes:
    """Which node serves which slot, as far as is known; nodes are `host:port`.

    `version` changes with every change. `coordinator` tells whether the search module can search
    the whole cluster: None until it was asked.
    """

    def __init__(self, *, replicas: bool = False, search: str | None = None) -> None:
        self.owners: list[str | None] = [None] * SLOTS
        self._by_crc = self.owners * 4  # as CRC16 is taken modulo the number of slots
        self.primaries: tuple[str, ...] = ()
        self.search = search
        self.coordinator: bool | None = True if search == "coordinator" else None
        self.version = 0
        self._replicas: dict[str, tuple[str, ...]] = {}
        self._reads = replicas
        self._digest = (0, b"")

    def learn(self, found: SlotMap) -> None:
        """Take over what a node said of all slots."""
        if found.owners != self.owners or found.replicas != self._replicas:
            self._replicas = found.replicas
            self.owners = found.owners
            self._by_crc = found.owners * 4
            self.primaries = tuple(sorted({owner for owner in found.owners if owner is not None}))
            self.version += 1

    def moved(self, slot: int, node: str) -> bool:
        """Take over what a node said of one slot; return whether it named a primary unknown yet."""
        unknown = node not in self.primaries
        if unknown:
            self.primaries = tuple(sorted((*self.primaries, node)))
        if self.owners[slot] != node:
            self.owners[slot] = node
            self._by_crc[slot::SLOTS] = [node] * 4
            self.version += 1
        return unknown

    @property
    def known(self) -> list[str]:
        """All nodes, in random order."""
        nodes = {*self.primaries, *(one for some in self._replicas.values() for one in some)}
        return random.sample(sorted(nodes), len(nodes))

    def homes(self) -> list[int]:
        """Return one slot of each primary."""
        return [self.owners.index(node) for node in self.primaries if node in self.owners]

    @property
    def digest(self) -> bytes:
        """What tells this distribution of slots from another one."""
        version = self.version
        if self._digest[0] != version:
            text = ",".join(owner or "" for owner in self.owners)
            self._digest = (version, b"%x" % zlib.crc32(text.encode()))
        return self._digest[1]

    def node_of(self, args: Sequence[Any]) -> str | None:
        """Return who is to be sent a command of one key: the short way. None: take the long one."""
        name = args[0]
        if type(name) not in _WORDS or len(args) < 2 or not (SINGLE.get(name) or single(name)):
            return None
        key = args[1]
        if type(key) is str:
            key = key.encode()
        elif type(key) is not bytes:
            key = key_bytes(key)
        slot = crc_hqx(key, 0) & 0x3FFF if b"{" not in key else key_slot(key)
        return self.reader(slot) if self._reads and _is_read(name) else self.owners[slot]

    def reader(self, slot: int) -> str | None:
        """Return a replica of a slot's primary, or that one if it has none."""
        owner = self.owners[slot]
        replicas = self._replicas.get(owner or "") if self._reads else ()
        return random.choice(replicas) if replicas else owner  # noqa: S311 - who shares the load

    def server_of(self, slot: int | None) -> str:
        """Return who serves a slot, as far as that is known; else anyone."""
        owner = None if slot is None else self.owners[slot]
        return owner or random.choice(self.primaries)  # noqa: S311 - as above

    def split(self, batch: Batch) -> Split | None:
        """Return which of many commands go to whom, if each has one key: the short way.

        None: take the long one.
        """
        if self._reads or batch.atomic or not batch.kinds <= _PLAIN:
            return None
        members: Any = batch.members
        if batch.kinds != {tuple}:
            members = [member if type(member) is tuple else member.args for member in members]
        try:
            heads = {args[0] for args in members}
            if not heads <= HARMLESS.keys() or not all(map(single, heads)):
                return None
            keys: list[Any] = [args[1] for args in members]
            kinds = {*map(type, keys)}
            if kinds == {str}:
                keys = [*map(str.encode, keys)]
            elif kinds != {bytes}:
                keys = [*map(key_bytes, keys)]
        except (IndexError, TypeError, ValueError):  # the long way says what is wrong
            return None
        if b"{" in b"".join(keys):
            nodes = [self.owners[key_slot(key)] for key in keys]
        else:
            nodes = [*map(self._by_crc.__getitem__, map(crc_hqx, keys, repeat(0)))]
        found: dict[Any, list[Any]] = {node: [] for node in {*nodes}}
        if None in found:
            return None
        adds = {node: commands.append for node, commands in found.items()}
        for add, args in zip(map(adds.__getitem__, nodes), members, strict=True):
            add(args)
        parts = {node: Batch(found[node]) for node in sorted(found)}
        return Split(nodes, parts)  # type: ignore[arg-type]  # None is not among them


_WORDS: Final[set[type]] = {str, bytes}
_PLAIN: Final[set[type]] = {tuple, Command}


class Split(NamedTuple):
    """Many commands of one key each: to whom each goes, and what goes to each node."""

    nodes: list[str]
    parts: dict[str, Batch]

    def joined(self, replies: dict[str, Any]) -> list[Any]:
        """Return the replies in the order of the commands."""
        takes = {node: iter(found) for node, found in replies.items()}
        return [*map(next, map(takes.__getitem__, self.nodes))]


def _is_read(name: str | bytes) -> bool:
    return command_name((name,)) in READS
