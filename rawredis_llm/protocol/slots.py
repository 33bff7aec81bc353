"""The slot of a key in a Redis Cluster.

Must not import another ring.
"""

from __future__ import annotations

from binascii import crc_hqx
from typing import Final

SLOTS: Final = 16384


def key_slot(key: bytes) -> int:
    """Return the slot of a key, 0 to 16383: that of its hash tag, if it has one.

    The tag stands between the first `{` and the first `}` behind it, and is not empty.
    """
    start = key.find(b"{") + 1
    if start:
        end = key.find(b"}", start)
        if end > start:
            key = key[start:end]
    return crc_hqx(key, 0) % SLOTS
