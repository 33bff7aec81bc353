"""Hash slots: which of the 16,384 parts of a cluster a key is in, and who serves them.

Source: Redis Cluster specification, "Key distribution model" and "Hash tags". Must not import
another ring.
"""

from __future__ import annotations

from binascii import crc_hqx
from typing import Any, Final, NamedTuple

from ..errors import ClusterDownError, UnexpectedReplyError

SLOTS: Final = 16384


def key_slot(key: bytes) -> int:
    """Return a key's slot: CRC16 (XMODEM) of its hash tag, or of all of it, modulo 16,384.

    The tag is what stands between the first `{` and the first `}` behind it, unless that is
    nothing.
    """
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) & 0x3FFF


class SlotMap(NamedTuple):
    """Who serves what: for each slot its primary's `host:port` (None: nobody), and replicas."""

    owners: list[str | None]
    replicas: dict[str, tuple[str, ...]]  # by their primary


def slot_map(reply: Any, asked: str) -> SlotMap:
    """Return what CLUSTER SLOTS said; a node without a host is the one that was asked.

    CLUSTER SLOTS and not SHARDS, because every server has it, and because it names the port that
    is right for this connection, with TLS or without.

    Raises UnexpectedReplyError for what is none, ClusterDownError for one without slots.
    """
    owners: list[str | None] = [None] * SLOTS
    replicas: dict[str, tuple[str, ...]] = {}
    try:
        for first, last, primary, *others in reply:
            if not 0 <= first <= last < SLOTS:
                raise ValueError("slots beyond the last")
            name = _node(primary, asked)
            owners[first : last + 1] = [name] * (last + 1 - first)
            if name is not None:
                found = (_node(other, asked) for other in others)
                replicas[name] = tuple(dict.fromkeys(filter(None, found)))
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise UnexpectedReplyError(f"CLUSTER SLOTS: {error}") from error
    if not any(owners):
        raise ClusterDownError("the cluster has no slots yet", address=asked)
    return SlotMap(owners, replicas)


def _node(entry: Any, asked: str) -> str | None:
    """Return a node's name; None for one whose host its own cluster does not know."""
    host, port = entry[:2]
    if not isinstance(port, int):
        raise TypeError("a node without a port")
    text = host.decode() if host else ""
    return None if text == "?" else node_name(text or split_node(asked)[0], port)


def node_name(host: str, port: int) -> str:
    """Return the name of a node, `host:port`."""
    return f"{host}:{port}"


def split_node(name: str) -> tuple[str, int]:
    """Return a node's host and port; a host of IPv6 has colons of its own."""
    host, _, port = name.rpartition(":")
    return host, int(port)
