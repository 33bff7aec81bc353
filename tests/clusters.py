"""Real clusters for the tests, formed by our own client's commands."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rawredis_llm import Client, EmbeddedServer, errors

SLOTS = 16384


def free_port() -> int:
    """Return a port that is free, and whose bus port is.

    Both are below those that the kernel gives to clients, so that none takes one meanwhile.
    """
    while True:
        port = _RANDOM.randrange(10_000, 22_000)
        try:
            with (
                socket.create_server(("127.0.0.1", port)),
                socket.create_server(("127.0.0.1", port + 10_000)),
            ):
                return port
        except OSError:
            continue


_RANDOM = random.SystemRandom()  # which nobody seeds: several suites may run at once


def until(condition: Callable[[], Any], what: str, limit: float = 30.0) -> Any:
    """Wait until a condition holds, and return its value."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{what}: not within {limit} seconds")


class Node:
    """A server of a cluster, and a plain client of it."""

    def __init__(self, folder: Path, *, search: bool, extra: tuple[str, ...] = ()) -> None:
        self.port = free_port()
        self.name = f"127.0.0.1:{self.port}"
        self.url = f"redis://{self.name}"
        options: tuple[str, ...] = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
        options += ("--cluster-replica-validity-factor", "0", "--appendfsync", "no")
        options += ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        self.server = EmbeddedServer(
            port=self.port, persist_to=folder, search=search, extra=(*options, *extra)
        ).start()
        self.client = Client(self.url, timeout=10.0)
        self.id = self.client.call("CLUSTER", "MYID").decode()

    def call(self, *args: Any) -> Any:
        return self.client.call(*args)

    @property
    def pid(self) -> int:
        assert self.server._process is not None
        return self.server._process.pid

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self.server._process is not None
        os.kill(self.pid, signal.SIGCONT)
        self.server._process.kill()
        self.server._process.wait()

    def stop(self) -> None:
        self.client.close()
        if self.server._process is not None and self.server._process.poll() is None:
            os.kill(self.pid, signal.SIGCONT)
        self.server.stop()


class Cluster:
    """Primaries, each with so many replicas, and the slots in equal parts."""

    def __init__(
        self, folder: Path, primaries: int = 3, replicas: int = 0, *, search: bool = False
    ) -> None:
        self.folder, self.search = folder, search
        self.nodes: list[Node] = []
        try:
            self._form(primaries, replicas)
        except BaseException:
            self.stop()
            raise

    def _form(self, primaries: int, replicas: int) -> None:
        for _ in range(primaries * (1 + replicas)):
            self.add()
        share = SLOTS / primaries
        for number, node in enumerate(self.nodes[:primaries]):
            node.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            first, last = round(number * share), round((number + 1) * share) - 1
            node.call("CLUSTER", "ADDSLOTSRANGE", first, last)
        for node in self.nodes[1:]:
            self.nodes[0].call("CLUSTER", "MEET", "127.0.0.1", node.port)
        until(lambda: all(len(self.known(node)) == len(self.nodes) for node in self.nodes), "met")
        for number, node in enumerate(self.nodes[primaries:]):
            until(lambda n=node: self._replicate(n, self.nodes[number % primaries]), "a replica")  # type: ignore[misc]  # noqa: B023 - it runs here
        self.settle()

    def _replicate(self, node: Node, primary: Node) -> bool:
        try:
            node.call("CLUSTER", "REPLICATE", primary.id)
        except errors.ReplyError:  # it has not heard of it yet
            return False
        return True

    def add(self) -> Node:
        """Start one more server, which knows nobody yet."""
        node = Node(self.folder / str(len(self.nodes)), search=self.search)
        self.nodes.append(node)
        return node

    def known(self, node: Node) -> list[list[str]]:
        """Return the lines of CLUSTER NODES, each as its words."""
        return [line.split() for line in node.call("CLUSTER", "NODES").decode().splitlines()]

    def settle(self) -> None:
        """Wait until all nodes that answer agree that all is well."""

        def well() -> bool:
            maps = set()
            for node in self.nodes:
                try:
                    info = node.call("CLUSTER", "INFO").decode()
                    role = node.call("ROLE")
                    maps.add(str([entry[:3] for entry in sorted(node.call("CLUSTER", "SLOTS"))]))
                except errors.RedisError:
                    continue
                if "cluster_state:ok" not in info:
                    return False
                if role[0] == b"slave" and role[3] != b"connected":
                    return False
            return len(maps) == 1

        until(well, "the cluster agrees")

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    def owners(self, slot: int) -> list[Node]:
        """Return the nodes that are said to serve a slot, by those that answer."""
        ports = set()
        for node in self.nodes:
            try:
                entries = node.call("CLUSTER", "SLOTS")
            except errors.RedisError:
                continue
            ports |= {entry[2][1] for entry in entries if entry[0] <= slot <= entry[1]}
        return [node for node in self.nodes if node.port in ports]

    def owner(self, slot: int) -> Node:
        """Return the node that serves a slot, once all that answer say so."""
        until(lambda: len(self.owners(slot)) == 1, f"who serves {slot}")
        return self.owners(slot)[0]

    def begin_move(self, slot: int, target: Node) -> Node:
        """Open a slot to be moved; return where it is."""
        source = self.owner(slot)
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        return source

    def move_keys(self, slot: int, source: Node, target: Node, most: int = 10**6) -> int:
        """Move keys of an open slot; return how many."""
        moved = 0
        while moved < most:
            keys = source.call("CLUSTER", "GETKEYSINSLOT", slot, min(100, most - moved))
            if not keys:
                break
            place = ("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            source.call(*place)
            moved += len(keys)
        return moved

    def end_move(self, slot: int, source: Node, target: Node) -> None:
        """Say that a slot has moved: to the target, to the source, to the other primaries."""
        # A target that has not heard of the source's last epoch takes no higher one, and then loses
        # the slot again, to nobody.
        until(lambda: self._epoch(target, source) == self._epoch(source, source), "the epoch")
        others = [node for node in self.nodes if node not in (source, target)]
        for node in (target, source, *others):
            try:
                node.call("CLUSTER", "SETSLOT", slot, "NODE", target.id)
            except errors.RedisError:  # a replica, which will hear of it
                continue

    def _epoch(self, asked: Node, about: Node) -> str:
        return next(line[6] for line in self.known(asked) if line[0] == about.id)

    def move(self, slot: int, target: Node) -> None:
        """Move a slot, with its keys."""
        source = self.begin_move(slot, target)
        if source is not target:
            self.move_keys(slot, source, target)
            self.end_move(slot, source, target)

    def flush(self) -> None:
        """Empty all primaries."""
        for node in self.nodes:
            if node.call("ROLE")[0] == b"master":
                node.call("FLUSHALL")

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()
