"""One socket, one request at a time.

A connection is *dirty* from before the first byte of a request until its last reply was parsed.
Only a clean connection goes back to the pool, so a timeout, a signal, an interrupt or a bug at any
line costs a connection and never sends a reply to the wrong caller.

Must not import asyncio, or what is stored; `ssl` only when the address asks for it.
"""

from __future__ import annotations

import math
import select
import socket
from collections.abc import Iterable
from time import monotonic
from typing import Any

from ..errors import (
    ConnectError,
    ConnectTimeoutError,
    OutcomeUnknownError,
    ProtocolError,
    ReadTimeoutError,
    RedisError,
    ReplyError,
)
from ..protocol.resp import CHUNK, NOT_ENOUGH, Decoder, Push, encode_many
from ..protocol.settings import Settings

__all__ = ["Connection"]


class Connection:
    """A socket to one server, opened by `open()`, closed for good by `close()`."""

    __slots__ = (
        "__weakref__",
        "_address",
        "_decoder",
        "_gets",
        "_poll",
        "_settings",
        "_sock",
        "_tls",
        "dirty",
        "received",
    )

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._address = str(settings.address)
        self._tls = settings.address.tls
        self._sock: socket.socket | None = None
        self.dirty = True
        self.received = 0

    def __del__(self) -> None:
        # A connection that an interrupt took from its owner closes here; the pool counts by
        # weak references, so its place is free again too.
        self.close()

    def open(self, deadline: float) -> None:
        """Connect and shake hands. Raises ConnectError, or the server's refusal."""
        settings = self._settings
        limit = min(deadline, monotonic() + settings.connect_timeout)
        try:
            self._sock = _connect(settings, limit)
            self._sock.settimeout(0)
            poll = select.poll()
            poll.register(self._sock, select.POLLIN)
            self._poll = poll.poll
            self._decoder = Decoder(self._address)
            self._gets = self._decoder.gets
            replies = self.exchange(encode_many(settings.handshake()), limit)
        except (RedisError, OSError, UnicodeError) as error:  # the last: no possible host name
            self.close()
            raise self._not_connected(error) from error
        for reply in replies:
            if isinstance(reply, ReplyError):
                self.close()
                raise reply
        if settings.observer is not None:
            settings.observer.connection("opened")

    @property
    def opened(self) -> bool:
        """Whether there is a socket."""
        return self._sock is not None

    def usable(self) -> bool:
        """Return True if nothing came, and nothing ended, while nobody was asking.

        By the socket's state, at 0.5 us, not by a PING: a reply that arrived in idle time would be
        taken for the next request's, and a server that has hung up is noticed before we send.
        """
        return not self._poll(0) or self._only_pushes()

    def _only_pushes(self) -> bool:
        assert self._sock is not None
        try:
            self._sock.settimeout(0)
            data = self._sock.recv(CHUNK)
            if not data:
                return False
            self._decoder.feed(data)
            while type(self._gets()) is Push:
                if self._decoder.settled():
                    return True
        except Exception as error:  # noqa: BLE001 - whatever it is, this connection is not usable
            # But for TLS: a record that held no data, such as a session ticket.
            return type(error).__name__ == "SSLWantReadError"
        return False

    def request(self, data: bytes, deadline: float) -> Any:
        """Send one command and return its reply; a server's error is returned, not raised."""
        self.dirty = True
        self.received = 0
        try:
            self._send(data, deadline)
            self._receive(deadline)
            reply = self._gets()
            while reply is NOT_ENOUGH or type(reply) is Push:  # a push that nobody asked for
                if reply is NOT_ENOUGH:
                    self._receive(deadline)
                reply = self._gets()
            if not self._decoder.settled():
                self._settle()
        except Exception as error:
            raise self._failed(error) from error
        self.dirty = False
        return reply

    def exchange(self, portions: Iterable[tuple[bytes, int]], deadline: float) -> list[Any]:
        """Send each portion in one write, then read its replies; return all, errors in their slots.

        A portion is bytes and the number of commands in them.
        """
        self.dirty = True
        self.received = 0
        replies: list[Any] = []
        gets = self._gets
        try:
            for data, width in portions:
                self._send(data, deadline)
                end = len(replies) + width
                while len(replies) < end:
                    reply = gets()
                    if reply is NOT_ENOUGH:
                        self._receive(deadline)
                    elif type(reply) is not Push:
                        replies.append(reply)
            if not self._decoder.settled():
                self._settle()
        except Exception as error:
            raise self._failed(error) from error
        self.dirty = False
        return replies

    def close(self) -> None:
        """Close the socket; harmless when it is closed."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self.dirty = True
        sock.close()
        if self._settings.observer is not None:
            self._settings.observer.connection("closed")

    def _send(self, data: bytes, deadline: float) -> None:
        assert self._sock is not None
        try:
            sent = 0 if self._tls else self._sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):  # TLS, or more than the kernel holds: wait for the server to read
            self._sock.settimeout(_left(deadline))
            self._sock.sendall(memoryview(data)[sent:])
            self._sock.settimeout(0)

    def _receive(self, deadline: float) -> None:
        assert self._sock is not None
        left = deadline - monotonic()
        # Not settimeout(), which has Python poll before each send, too; and not the kernel's own
        # time-outs, which begin anew with every signal that is handled meanwhile. But for TLS,
        # where a readable socket may hold only a part of what can be read.
        if self._tls:
            self._sock.settimeout(_left(deadline))
        elif left <= 0 or not self._poll(None if left == math.inf else left * 1000):
            raise TimeoutError
        data = self._sock.recv(CHUNK)
        if not data:
            raise OutcomeUnknownError("the server closed the connection")
        self.received += len(data)
        self._decoder.feed(data)

    def _settle(self) -> None:
        """Bytes are left after the last owed reply: they must be pushes, and whole."""
        while type(self._gets()) is Push:
            if self._decoder.settled():
                return
        raise ProtocolError("the server sent a reply that nobody asked for")

    def _not_connected(self, error: Exception) -> ConnectError:
        if isinstance(error, TimeoutError):
            return ConnectTimeoutError("no connection in time", address=self._address)
        if isinstance(error, RedisError):
            return ConnectError(error.message, address=self._address)
        text = getattr(error, "strerror", None) or str(error)
        return ConnectError(text, address=self._address)

    def _failed(self, error: Exception) -> RedisError:
        """Close, and return the error to raise for whatever broke the exchange."""
        self.close()
        kind: type[RedisError] = ProtocolError
        text = f"the reply could not be read: {error!r}"
        if isinstance(error, RedisError):
            kind, text = type(error), error.message
        elif isinstance(error, TimeoutError):
            kind, text = ReadTimeoutError, "no answer in time"
        elif isinstance(error, OSError):
            kind = OutcomeUnknownError
            text = f"the connection was lost: {error.strerror or error}"
        return kind(text, address=self._address)


def _left(deadline: float) -> float | None:
    """Return the seconds until a deadline, as a socket takes them; raise TimeoutError after it."""
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError
    return None if left == math.inf else left


def _connect(settings: Settings, deadline: float) -> socket.socket:
    address = settings.address
    if address.path:
        return _reach(socket.AF_UNIX, address.path, deadline)
    failure: OSError | None = None
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    for family, _, _, _, where in found:
        try:
            sock = _reach(family, where, deadline)
        except TimeoutError:
            raise
        except OSError as error:
            failure = error
            continue
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            context = settings.tls()
            if context is None:
                return sock
            sock.settimeout(_left(deadline))
            return context.wrap_socket(sock, server_hostname=address.host)
        except BaseException:
            sock.close()
            raise
    raise failure or OSError("the host has no address")


def _reach(family: int, where: Any, deadline: float) -> socket.socket:
    """Connect a socket within what is left of all addresses' common time."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(_left(deadline))
        sock.connect(where)
    except BaseException:
        sock.close()
        raise
    return sock
