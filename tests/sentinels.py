"""A primary, its replicas and the sentinels that watch them, as real processes."""

from __future__ import annotations

import os
import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

from clusters import free_port, until
from rawredis_llm import Client, EmbeddedServer, errors
from rawredis_llm.server import _find_server

SERVICE = "main"


class Member:
    """A server that sentinels watch."""

    def __init__(self, *extra: str) -> None:
        self.port = free_port()
        self.name = f"redis://127.0.0.1:{self.port}/0"
        self.server = EmbeddedServer(port=self.port, search=False, extra=extra).start()
        # By its own socket, which no sentinel hangs up on for long, and without a password.
        self.login: dict[str, Any] = {}

    def call(self, *args: Any) -> Any:
        with Client(self.name, **self.login) as client:
            return client.call(*args)

    def role(self) -> str:
        try:
            return str(self.call("ROLE")[0].decode())
        except errors.RedisError:
            return ""

    def kill(self) -> None:
        assert self.server._process is not None
        self.server._process.kill()
        self.server._process.wait()


class Sentinel:
    """One sentinel."""

    def __init__(self, folder: Path, primary: Member, number: int, *more: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        file = folder / f"sentinel-{number}.conf"
        # Were all three to stand for election at once, each would vote for itself, again and again:
        # the last one is slower to see that a primary is down, and votes for who asks it.
        patience = 4000 if number == 2 else 500
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f'dir "{folder}"',
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 2",
            f"sentinel down-after-milliseconds {SERVICE} {patience}",
            f"sentinel failover-timeout {SERVICE} 2000",
            *more,
        ]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        binary = _find_server(None, search=False)
        self.process = subprocess.Popen(
            [binary, file, "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def stop(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)
        self.process.kill()
        self.process.wait()


class Watched:
    """A primary with two replicas, and three sentinels."""

    def __init__(self, folder: Path, *, password: str = "", sentinel_password: str = "") -> None:
        keys = ("--requirepass", password, "--masterauth", password) if password else ()
        options = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", *keys)
        self.members = [Member(*options) for _ in range(3)]
        self.sentinels: list[Sentinel] = []
        self.login: dict[str, Any] = {"password": sentinel_password} if sentinel_password else {}
        try:
            for member in self.members:
                member.login = {"password": password} if password else {}
            for member in self.members[1:]:
                member.call("REPLICAOF", "127.0.0.1", self.members[0].port)
            more = [f"sentinel auth-pass {SERVICE} {password}"] if password else []
            if sentinel_password:
                more += [f"requirepass {sentinel_password}"]
            for number in range(3):
                self.sentinels.append(Sentinel(folder, self.members[0], number, *more))
            for sentinel in self.sentinels:  # they look at the others every ten seconds by default
                until(partial(self._hurry, sentinel), "a sentinel")
            until(self.well, "the sentinels see all")
        except BaseException:
            self.stop()
            raise

    def _hurry(self, sentinel: Sentinel) -> bool:
        # Not PING-PERIOD: replicas unheard of for five of these are no candidates.
        periods: list[Any] = ["INFO-PERIOD", 200, "ASK-PERIOD", 100]
        try:
            return bool(self.ask(sentinel, "DEBUG", *periods, "PUBLISH-PERIOD", 200))
        except errors.ConnectionError:
            return False

    @property
    def urls(self) -> list[str]:
        return [sentinel.url for sentinel in self.sentinels]

    def ask(self, sentinel: Sentinel, *args: Any) -> Any:
        with Client(sentinel.url, protocol=2, timeout=1, **self.login) as client:
            return client.call("SENTINEL", *args)

    def well(self) -> bool:
        """Whether every sentinel sees a primary, two replicas that follow, and two others."""
        try:
            for sentinel in self.sentinels:
                replies = self.ask(sentinel, "REPLICAS", SERVICE)
                replicas = [dict(zip(one[::2], one[1::2], strict=True)) for one in replies]
                flags = {one[b"flags"] for one in replicas}
                links = {one[b"master-link-status"] for one in replicas}
                if len(replicas) != 2 or flags != {b"slave"} or links != {b"ok"}:
                    return False
                reply = self.ask(sentinel, "MASTER", SERVICE)
                told = dict(zip(reply[::2], reply[1::2], strict=True))
                if told[b"flags"] != b"master" or told[b"num-other-sentinels"] != b"2":
                    return False
        except errors.RedisError:
            return False
        return sorted(member.role() for member in self.members) == ["master", "slave", "slave"]

    def primary(self) -> Member:
        found: Member = until(
            lambda: next((member for member in self.members if member.role() == "master"), None),
            "a primary",
        )
        return found

    def fail_over(self) -> Member:
        """Have the sentinels make another one the primary; return the one that was it."""
        until(self.well, "all is well")
        before = self.primary()

        def asked() -> bool:
            try:
                self.ask(self.sentinels[0], "FAILOVER", SERVICE)
            except errors.ReplyError:  # one is under way, or has just been
                return before.role() != "master"
            return True

        until(asked, "a failover begins")
        until(lambda: before.role() == "slave", "it follows another one")
        return before

    def stop(self) -> None:
        for sentinel in self.sentinels:
            sentinel.stop()
        for member in self.members:
            member.server.stop()
