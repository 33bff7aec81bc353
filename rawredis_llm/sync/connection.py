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
import struct
from collections.abc import Iterable
from time import monotonic
from typing import Any, Final

from ..errors import (
    ConnectError,
    ConnectTimeoutError,
    OutcomeUnknownError,
    ProtocolError,
    ReadTimeoutError,
    RedisError,
    ReplyError,
)
from ..protocol.resp import NOT_ENOUGH, Decoder, Push, encode_many
from ..protocol.settings import Settings

__all__ = ["Connection"]

CHUNK: Final = 65536  # bytes a read: the most that hiredis takes at once without slowing down
SLACK: Final = 0.02  # seconds: a socket's timeout is left as it is when it is this near


class Connection:
    """A socket to one server, opened by `open()`, closed for good by `close()`."""

    __slots__ = (
        "__weakref__",
        "_address",
        "_armed",
        "_decoder",
        "_gets",
        "_poll",
        "_settings",
        "_sock",
        "dirty",
        "received",
    )

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._address = str(settings.address)
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
            self._armed = 0.0
            poll = select.poll()
            poll.register(self._sock, select.POLLIN)
            self._poll = poll.poll
            self._decoder = Decoder(self._address)
            self._gets = self._decoder.gets
            replies = self.exchange(encode_many(settings.handshake()), limit)
        except (RedisError, OSError) as error:
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
        sock = self._sock
        assert sock is not None
        self._armed = 0.0
        try:
            sock.settimeout(0)
            try:
                data = sock.recv(CHUNK)
            finally:
                _set_timeout(sock, self._settings.timeout)
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

    def _arm(self, left: float) -> None:
        """Give the socket what is left of the call's time, in seconds."""
        if left == self._armed:  # no limit, both of them
            return
        if left <= 0:
            raise TimeoutError
        assert self._sock is not None
        _set_timeout(self._sock, left)
        self._armed = left

    def _send(self, data: bytes, deadline: float) -> None:
        assert self._sock is not None
        if len(data) <= CHUNK:  # a small write to a clean connection never blocks
            self._sock.sendall(data)
            return
        rest = memoryview(data)
        while rest:
            self._arm(deadline - monotonic())
            rest = rest[self._sock.send(rest) :]

    def _receive(self, deadline: float) -> None:
        assert self._sock is not None
        left = deadline - monotonic()
        if not -SLACK < left - self._armed < SLACK:
            self._arm(left)
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

    def _not_connected(self, error: RedisError | OSError) -> ConnectError:
        if isinstance(error, (TimeoutError, BlockingIOError)):
            return ConnectTimeoutError("no connection in time", address=self._address)
        if isinstance(error, RedisError):
            return ConnectError(error.message, address=self._address)
        return ConnectError(error.strerror or str(error), address=self._address)

    def _failed(self, error: Exception) -> RedisError:
        """Close, and return the error to raise for whatever broke the exchange."""
        self.close()
        kind: type[RedisError] = ProtocolError
        text = f"the reply could not be read: {error}"
        if isinstance(error, RedisError):
            kind, text = type(error), error.message
        elif isinstance(error, (TimeoutError, BlockingIOError)):
            kind, text = ReadTimeoutError, "no answer in time"
        elif isinstance(error, OSError):
            kind = OutcomeUnknownError
            text = f"the connection was lost: {error.strerror or error}"
        return kind(text, address=self._address)


def _set_timeout(sock: socket.socket, seconds: float) -> None:
    """Set the limit of each receive and send.

    By the kernel's own timeouts, on a blocking socket: `settimeout` makes Python call poll() before
    each of them, which costs a tenth of a GET. When the time is up they raise BlockingIOError.
    A TLS socket cannot do with them: OpenSSL would try again for ever.
    """
    if hasattr(sock, "cipher"):
        sock.settimeout(None if seconds == math.inf else seconds)
        return
    sock.settimeout(None)
    # Zero means "no limit" to the kernel.
    whole, part = (0, 0) if seconds == math.inf else divmod(max(int(seconds * 1e6), 1), 1_000_000)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", whole, part))


def _connect(settings: Settings, deadline: float) -> socket.socket:
    address = settings.address
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError
    timeout = None if left == math.inf else left
    if address.path:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    else:
        sock = socket.create_connection((address.host, address.port), timeout)
    try:
        if address.path:
            sock.settimeout(timeout)
            sock.connect(address.path)
            return sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        context = settings.tls()
        if context is None:
            return sock
        sock.settimeout(None if left == math.inf else max(deadline - monotonic(), SLACK))
        return context.wrap_socket(sock, server_hostname=address.host)
    except BaseException:
        sock.close()
        raise
