"""A proxy between a client and the server that does one harm to its first connection.

Of that connection it passes on so many bytes of one direction and then cuts, stalls, delays or
splits it. Every later connection is passed on as it is, so a client that comes back finds all well.
One thread serves each connection, so that nobody else holds a socket that is to be reset.
"""

from __future__ import annotations

import math
import select
import socket
import struct
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Literal

from rawredis_llm.protocol.address import parse_url

TO_SERVER, TO_CLIENT = 0, 1
# fin, rst: both sides lose the connection. stall: no byte of this direction arrives any more.
# pause: the bytes after the offset arrive that much later.
Kind = Literal["fin", "rst", "stall", "pause"]


@dataclass(frozen=True)
class Fault:
    """What happens once `offset` bytes were passed on in one direction of a connection."""

    kind: Kind
    direction: int
    offset: int
    pause: float = 0.0


class Proxy:
    """Listens until closed, on TCP or on a unix socket; the first connection gets the fault."""

    def __init__(self, upstream: str, fault: Fault | None = None, *, unix: bool = False) -> None:
        self._upstream = parse_url(upstream)
        self._fault = fault
        self._links: list[_Link] = []
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name, "proxy.sock")
        if unix:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self._listener.listen()
            self.url = f"unix://{path}"
        else:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self) -> Proxy:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def passed(self) -> list[int]:
        """How many bytes the first connection brought, to the server and to the client."""
        return list(self._links[0].passed)

    @property
    def fired(self) -> bool:
        """Whether the fault has happened."""
        return self._links[0].fired if self._links else False

    def arm(self, kind: Kind, direction: int) -> None:
        """Do a harm to the newest connection, in place of what this direction brings next."""
        link = self._links[-1]
        link.fault = Fault(kind, direction, link.passed[direction])

    def close(self) -> None:
        """End all; on return the server has done, or thrown away, whatever reached it."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # close() alone wakes no accept()
        self._listener.close()
        self._accepting.join()
        for link in self._links:
            link.join(2)
            if link.is_alive():  # the client has left its socket open
                with suppress(OSError):
                    link.front.shutdown(socket.SHUT_RDWR)
                link.join()
        self._folder.cleanup()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                front, _ = self._listener.accept()
                try:
                    back = self._connect()
                except OSError:
                    front.close()
                    raise
                link = _Link(front, back, None if self._links else self._fault)
                self._links.append(link)
                link.start()

    def _connect(self) -> socket.socket:
        if not self._upstream.path:
            return socket.create_connection((self._upstream.host, self._upstream.port))
        back = socket.socket(socket.AF_UNIX)
        back.connect(self._upstream.path)
        return back


class _Link(threading.Thread):
    """One connection: the client in front, the server at the back."""

    def __init__(self, front: socket.socket, back: socket.socket, fault: Fault | None) -> None:
        super().__init__(daemon=True)
        self.front = front
        self.passed = [0, 0]
        self.fired = False
        self._sources = [front, back]
        self.fault = fault
        self._stalled: int | None = None
        for sock in self._sources:
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self) -> None:
        front, back = self._sources
        with front, back:
            with suppress(OSError, EOFError):
                if self.fault is not None and self.fault.offset == 0:
                    self._strike(self.fault, b"")
                self._flow([front, back], math.inf)
            front.close()
            with suppress(OSError):  # until the server has read to the end, and hangs up
                back.shutdown(socket.SHUT_WR)
                while back.recv(65536):
                    pass

    def _flow(self, sources: list[socket.socket], until: float) -> None:
        while (left := until - monotonic()) > 0:
            ready, _, _ = select.select(sources, [], [], None if left == math.inf else left)
            for source in ready:
                data = source.recv(65536)
                if not data:
                    raise EOFError
                self._pass_on(data, self._sources.index(source))

    def _pass_on(self, data: bytes, direction: int) -> None:
        if direction == self._stalled:
            return
        self.passed[direction] += len(data)
        fault, target = self.fault, self._sources[1 - direction]
        beyond = self.passed[direction] - fault.offset if fault is not None else -1
        if fault is None or fault.direction != direction or self.fired or beyond < 0:
            target.sendall(data)
            return
        target.sendall(data[: len(data) - beyond])
        self._strike(fault, data[len(data) - beyond :])

    def _strike(self, fault: Fault, rest: bytes) -> None:
        self.fired = True
        if fault.kind == "fin":
            self.front.shutdown(socket.SHUT_WR)  # close() would reset if there is more to read
            while self.front.recv(65536):
                pass
            raise EOFError
        if fault.kind == "rst":
            self.front.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.front.close()
            raise EOFError
        if fault.kind == "stall":
            self._stalled = fault.direction
            return
        self._flow([self._sources[1 - fault.direction]], monotonic() + fault.pause)
        self._sources[1 - fault.direction].sendall(rest)
