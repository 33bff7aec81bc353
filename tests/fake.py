"""A server that answers each command as a test says, from the first word of the handshake on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import hiredis

__all__ = ["Answer", "Fake", "polite", "script"]

Answer = Callable[[int, str], "bytes | None"]


class Fake:
    """Answers each command by `answer(connection, line)`: bytes, or None to hang up.

    Connections are counted from 1, and a line is a command's words with blanks between. `writes`
    are the pieces in which they came, `lines` the commands, `accepted` the number of connections.
    With a `greeting`, that is sent to each connection unasked, before it is hung up.
    """

    def __init__(self, answer: Answer, *, port: int = 0, greeting: bytes = b"") -> None:
        self._answer = answer
        self._greeting = greeting
        self._listener = socket.create_server(("127.0.0.1", port))
        self._socks: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self.accepted = 0
        self.writes: list[bytes] = []
        self.lines: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Fake:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        for sock in [self._listener, *self._socks]:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # close() alone wakes nobody
        self._listener.close()

    def sent(self, name: str) -> int:
        """Return how often a command came."""
        return sum(line.split(" ")[0] == name for line in self.lines)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.accepted += 1
                self._socks.append(sock)
                serve = threading.Thread(target=self._serve, args=(sock, self.accepted))
                serve.daemon = True
                serve.start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        reader = hiredis.Reader()
        with sock, suppress(OSError, hiredis.ProtocolError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while not self._greeting and (data := sock.recv(1 << 20)):
                self.writes.append(data)
                reader.feed(data)
                while (words := reader.gets()) is not False:
                    line = b" ".join(words).decode(errors="replace")
                    self.lines.append(line)
                    reply = self._answer(number, line)
                    if reply is None:
                        return
                    sock.sendall(reply)
            sock.sendall(self._greeting)


def polite(line: str) -> bytes:
    """Return the answer to a command of the handshake."""
    return {"HELLO": b"%0\r\n", "PING": b"+PONG\r\n"}.get(
        line.split(" ", maxsplit=1)[0], b"+OK\r\n"
    )


def script(*replies: bytes | None) -> Answer:
    """Return an answer: the handshake is welcome, and the commands behind get these in turn.

    All that come after the last of them get the last.
    """
    left = list(replies)

    def answer(_: int, line: str) -> bytes | None:
        if line.split(" ", maxsplit=1)[0] in {"HELLO", "CLIENT", "SELECT", "AUTH", "PING"}:
            return polite(line)
        return left.pop(0) if len(left) > 1 else left[0]

    return answer
