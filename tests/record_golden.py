"""Writes tests/golden/*.resp: replies of a real RediSearch, byte by byte as they came.

`PYTHONPATH=. python tests/record_golden.py`, in the folder above `tests`, after a change of server.
Those that begin with `newer_` are not of this server: they were written by hand, see `NEWER`.
"""

from __future__ import annotations

import socket
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np

from rawredis_llm import Client, EmbeddedServer, VectorIndex
from rawredis_llm.protocol.resp import NOT_ENOUGH, Decoder, encode
from rawredis_llm.search.fields import Geo, GeoShape, Numeric, Tag, Text
from rawredis_llm.search.schema import Vector

FOLDER = Path(__file__).parent / "golden"

VECTOR = np.array([1.0, 0.0], "<f4").tobytes()
NEAR = ("PARAMS", 2, "vector", VECTOR, "SORTBY", "__distance", "LIMIT", 0, 4)
KNN = ("*=>[KNN 4 @vec $vector AS __distance]", *NEAR)
ROWS = ("RETURN", 3, "__distance", "body", "n", "DIALECT", 2)
SCORED = ("@body:(wine|river)", "WITHSCORES", "SCORER", "BM25STD", "LIMIT", 0, 4)
GROUPED: tuple[Any, ...] = (
    "LOAD",
    2,
    "@color",
    "@n",
    "GROUPBY",
    1,
    "@color",
    "REDUCE",
    "COUNT",
    0,
    "AS",
    "many",
)
GROUPED += ("REDUCE", "TOLIST", 1, "@n", "AS", "all")

COMMANDS: dict[str, tuple[Any, ...]] = {
    "search_knn": ("FT.SEARCH", "docs", *KNN, *ROWS),
    "search_nocontent": ("FT.SEARCH", "docs", "*", "NOCONTENT", "LIMIT", 0, 4, "DIALECT", 2),
    "search_count": ("FT.SEARCH", "docs", "*", "LIMIT", 0, 0, "DIALECT", 2),
    "search_withscores": ("FT.SEARCH", "docs", *SCORED, "RETURN", 2, "body", "n", "DIALECT", 2),
    "search_expired": ("FT.SEARCH", "dying", *KNN, *ROWS),
    "aggregate": ("FT.AGGREGATE", "docs", "*", *GROUPED, "WITHCURSOR", "COUNT", 9, "DIALECT", 2),
    "aggregate_cursor": (
        *("FT.AGGREGATE", "docs", "*", "LOAD", 1, "@n"),
        *("WITHCURSOR", "COUNT", 2, "DIALECT", 2),
    ),
    "info_hash": ("FT.INFO", "docs"),
    "info_json": ("FT.INFO", "json"),
    "info_all": ("FT.INFO", "all"),
    "profile_knn": ("FT.PROFILE", "docs", "SEARCH", "QUERY", *KNN, *ROWS),
    "profile_aggregate": (
        *("FT.PROFILE", "docs", "AGGREGATE", "QUERY", "@color:{red}", *GROUPED, "DIALECT", 2),
    ),
}

FLAT = Vector("vec", 2)
FIELDS = [Text("body"), Tag("color"), Numeric("n"), FLAT]
ALL = [
    Text("a", weight=2.5, nostem=True, sortable=True),
    Text("b", withsuffixtrie=True, indexempty=True, indexmissing=True),
    Tag("c", separator="|", case_sensitive=True, sortable=True),
    Tag("d", indexempty=True, withsuffixtrie=True),
    Numeric("e", sortable=True, indexmissing=True),
    Geo("f", sortable=True),
    GeoShape("g", coord_system="flat"),
    Vector("h", 3, algorithm="hnsw", metric="l2", dtype="float16", m=8, ef_construction=50),
]
DOCUMENTS: dict[str, list[Any]] = {
    "body": ["wine by the river", "wine bars", "a beach", None],
    "color": ["red", "red", "blue", None],
    "n": [1, 2.5, 3, None],
}
VECTORS = [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [-1.0, 0.0]]


def fill(client: Client) -> None:
    """Make the indexes that the commands speak of."""
    for name, on in (("docs", "hash"), ("dying", "hash"), ("json", "json")):
        index = VectorIndex(client, name, FIELDS, on=on)
        index.create()
        index.load(["a", "b", "c", "d"], VECTORS, DOCUMENTS)
        index.wait_until_indexed()
    client.call("HSET", "docs:bad", "vec", b"abc")  # which FT.INFO tells of
    client.call("PEXPIRE", "dying:b", 1)
    sleep(0.01)
    VectorIndex(
        client, "all", ALL, prefix=["p:", "q:"], language="german", stopwords=["der", "die"]
    ).create()
    VectorIndex(client, "other", FIELDS, filter_expression="@n > 1").create()


def reply(sock: socket.socket, command: tuple[Any, ...]) -> bytes:
    """Return the bytes that answer a command."""
    decoder, data = Decoder(), b""
    sock.sendall(encode(command))
    while True:
        piece = sock.recv(65536)
        data += piece
        decoder.feed(piece)
        if decoder.gets() is not NOT_ENOUGH:
            return data


# -- by hand -------------------------------------------------------------------------------------


def encoded(value: Any, protocol: int) -> bytes:
    """Return a value as a reply: maps as flat lists in RESP2, numbers as text there."""
    if isinstance(value, dict) and protocol == 3:
        parts = [encoded(part, protocol) for pair in value.items() for part in pair]
        return b"%%%d\r\n" % len(value) + b"".join(parts)
    if isinstance(value, dict):
        value = [part for pair in value.items() for part in pair]
    if isinstance(value, list):
        return b"*%d\r\n" % len(value) + b"".join(encoded(part, protocol) for part in value)
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, float) and protocol == 3:
        return b"," + repr(value).encode() + b"\r\n"
    data = value if isinstance(value, bytes) else str(value).encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)


HYBRID: dict[str, Any] = {
    "total_results": 3,
    "results": [
        {"__key": "docs:a", "__score": "0.0325224748810153", "body": "wine", "n": "1"},
        {"__key": "docs:c", "__score": "0.0161290322580645", "color": "blue"},
    ],
    "warnings": [],
    "execution_time": 0.75,
}
NEWER: dict[str, Any] = {
    "newer_hybrid": HYBRID,
    "newer_hybrid_warnings": {**HYBRID, "warnings": ["Timeout limit was reached (VSIM)"]},
    "newer_hybrid_empty": {**HYBRID, "total_results": 0, "results": []},
}
"""Replies of FT.HYBRID, which begins with RediSearch 8.4."""

ERRORS = {
    "newer_error_search": b"-No such index nope\r\n",
    "newer_error_info": b"-nope: no such index\r\n",
    "newer_error_cluster": b"-ERRCLUSTER Uninitialized cluster state\r\n",
    "newer_error_field": b"-Unknown field at offset 0 near nowhere\r\n",
}
"""Errors whose texts are others than those of RediSearch 2."""


def main() -> None:
    """Write all of them."""
    FOLDER.mkdir(exist_ok=True)
    with EmbeddedServer(extra=("--enable-debug-command", "yes")) as server:
        with Client(server.url) as client:
            client.call("DEBUG", "SET-ACTIVE-EXPIRE", 0)
            fill(client)
        for protocol in (2, 3):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(server.url.removeprefix("unix://"))
                reply(sock, ("HELLO", protocol))
                for name, command in COMMANDS.items():
                    data = reply(sock, command)
                    assert not data.startswith(b"-"), data
                    (FOLDER / f"{name}.{protocol}.resp").write_bytes(data)
    for protocol in (2, 3):
        for name, value in NEWER.items():
            (FOLDER / f"{name}.{protocol}.resp").write_bytes(encoded(value, protocol))
        for name, data in ERRORS.items():
            (FOLDER / f"{name}.{protocol}.resp").write_bytes(data)


if __name__ == "__main__":
    main()
