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
import threading
from contextlib import suppress
from time import monotonic
from typing import Any

from ..errors import OutcomeUnknownError, ProtocolError, ReadTimeoutError, RedisError, ReplyError
from ..protocol.handshake import Login, as_login, failure_of, greet, without_frames
from ..protocol.observing import tell_event
from ..protocol.resp import (
    CHUNK,
    NOT_ENOUGH,
    READ_ERRORS,
    Decoder,
    Portions,
    Push,
    encode_many,
    prove,
    sealed,
)
from ..protocol.settings import Settings


class Connection:
    """A socket to one server, opened by `open()`, closed for good by `close()`.

    `refusals` are the errors among the replies since somebody cleared it; `retired` says why it
    must not be used again although it is clean, `ended` why it was closed. While `timed` it
    notes when a request was sent, and when the first of the reply was there, which ends that.
    """

    __slots__ = (
        "__weakref__",
        "_address",
        "_decoder",
        "_gets",
        "_greeted",
        "_proves",
        "_settings",
        "_sock",
        "_tls",
        "dirty",
        "ended",
        "first_at",
        "idle_since",
        "poll",
        "received",
        "refusals",
        "retired",
        "sent_at",
        "timed",
    )

    def __init__(self, settings: Settings) -> None:
        self._sock: socket.socket | None = None  # first, for an interrupt of what follows
        self._lead_to(settings)
        self._proves = self._greeted = False
        self.dirty = True
        self.received = 0
        self.timed = False
        self.sent_at = self.first_at = 0.0
        self.idle_since = 0.0
        self.refusals: list[ReplyError] = []
        self.retired = self.ended = ""

    def _lead_to(self, settings: Settings) -> None:
        self._settings = settings
        self._address = str(settings.address)
        self._tls = settings.address.tls

    def __del__(self) -> None:
        # A connection that an interrupt took from its owner closes here; the pool counts by
        # weak references, so its place is free again too.
        self.close("abandoned")

    def open(self, deadline: float) -> None:
        """Connect and shake hands. Raises ConnectError, or the server's refusal."""
        settings = self._settings
        login = as_login(settings, settings.credentials and settings.credentials())
        limit = min(deadline, monotonic() + settings.connect_timeout)
        try:
            self._sock = _connect(settings, limit)
            self._sock.settimeout(0)
            poll = select.poll()
            poll.register(self._sock, select.POLLIN)
            self.poll = poll.poll
            self._decoder = Decoder(self._address)
            self._gets = self._decoder.gets
            self.refusals = self._decoder.refusals
            self._greet(login, limit)
        except ReplyError as error:
            self.close(type(error).__name__)
            raise
        except (RedisError, OSError, UnicodeError) as error:  # the last: no possible host name
            self.close("ConnectError")
            reason = failure_of(error, self.refusals, self._address)
            raise reason from without_frames(error)
        except BaseException as error:  # noqa: BLE001 - an interrupt, which shows frames as well
            raise without_frames(error) from None
        self._proves = settings.integrity
        self._greeted = True
        if settings.observer is not None:
            tell_event(settings.observer, "opened")

    def _greet(self, login: Login, limit: float) -> None:
        steps = greet(self._settings, login)
        replies: Any = None
        try:
            while True:
                replies = self.exchange(encode_many(steps.send(replies)), limit)
        except StopIteration:
            self.refusals.clear()

    @property
    def opened(self) -> bool:
        """Whether there is a socket."""
        return self._sock is not None

    def usable(self) -> bool:
        """Return True if nothing came, and nothing ended, while nobody was asking.

        By the socket's state, at 0.5 us, not by a PING: a reply that arrived in idle time would be
        taken for the next request's, and a server that has hung up is noticed before we send.
        """
        while self.poll(0):
            if not self._only_pushes():
                return False
        return True

    def _only_pushes(self) -> bool:
        """Take what has come; return True if it is one or more whole pushes."""
        assert self._sock is not None
        try:
            self._sock.settimeout(0)
            data = self._sock.recv(CHUNK)
            if not data:
                return False
            self._decoder.feed(data)
            while type(push := self._gets()) is Push:
                self._keep(push)
                if self._decoder.settled():
                    return True
        except READ_ERRORS as error:
            # Not usable, but for a TLS record that held no data, such as a session ticket.
            return type(error).__name__ == "SSLWantReadError"
        return False

    def request(self, data: bytes, deadline: float) -> Any:
        """Send one command and return its reply; a server's error is returned, not raised."""
        if self._proves:
            return self.exchange([(data, 1)], deadline)[0]
        self.dirty = True
        self.received = 0
        try:
            self._send(data, deadline)
            self._receive(deadline)
            reply = self._gets()
            while reply is NOT_ENOUGH or type(reply) is Push:
                if reply is NOT_ENOUGH:
                    self._receive(deadline)
                else:
                    self._keep(reply)
                reply = self._gets()
            if not self._decoder.settled():
                self._settle()
        except READ_ERRORS as error:
            raise self._failed(error) from error
        self.dirty = False
        return reply

    def exchange(self, portions: Portions, deadline: float) -> list[Any]:
        """Send each portion in one write, then read its replies; return all, errors in their slots.

        A portion is bytes and the number of commands in them.
        """
        return self.finish(self.begin(portions, deadline), deadline)

    def begin(self, portions: Portions, deadline: float) -> tuple[Portions, bytes | None]:
        """Send the first portion; what is returned is for `finish`, which must follow."""
        self.dirty = True
        self.received = 0
        nonce = None
        if self._proves:
            portions, nonce = sealed(portions)
        try:
            self._send(portions[0][0], deadline)
        except READ_ERRORS as error:
            raise self._failed(error) from error
        return portions, nonce

    def finish(self, begun: tuple[Portions, bytes | None], deadline: float) -> list[Any]:
        """Read what the first portion is owed, and do the same with the others."""
        ((_, width), *others), nonce = begun
        try:
            replies = self._read(width, deadline)
            for data, more in others:
                self._send(data, deadline)
                replies += self._read(more, deadline)
            if not self._decoder.settled():
                self._settle()
            if nonce is not None:
                prove(replies, nonce)
        except READ_ERRORS as error:
            raise self._failed(error) from error
        self.dirty = False
        return replies

    def _read(self, width: int, deadline: float) -> list[Any]:
        """Return so many replies; as one array, which takes hiredis half of the time."""
        gets = self._gets
        if not self._decoder.settled():  # it answered before it was asked
            self._settle()
        self._decoder.begin_array(width)
        while (found := gets()) is NOT_ENOUGH:
            self._receive(deadline)
        replies: list[Any] = found
        if Push in set(map(type, replies)):  # they took the places of replies
            replies = [reply for reply in found if type(reply) is not Push]
            for push in found:
                if type(push) is Push:
                    self._keep(push)
        while len(replies) < width:
            reply = gets()
            if reply is NOT_ENOUGH:
                self._receive(deadline)
            elif type(reply) is Push:
                self._keep(reply)
            else:
                replies.append(reply)
        return replies

    def send(self, data: bytes, deadline: float) -> None:
        """Send, and leave what comes of it to `next_frame`: for a subscriber, which is never clean.

        Raises as `request` does.
        """
        self.dirty = True
        try:
            self._send(data, deadline)
        except READ_ERRORS as error:
            raise self._failed(error) from error

    def next_frame(self, deadline: float) -> Any:
        """Return the next reply or push; NOT_ENOUGH when the deadline passes, which harms nothing.

        What is there already is taken whatever the deadline. Raises as `request` does.
        """
        try:
            limit = max(deadline, monotonic() + 1e-4)
            while (reply := self._gets()) is NOT_ENOUGH:
                self._receive(limit)
                limit = deadline
            self._decoder.settled()
        except TimeoutError:
            return NOT_ENOUGH
        except READ_ERRORS as error:
            raise self._failed(error) from error
        return reply

    def hang_up(self) -> None:
        """End the connection for a thread that waits for it, which then closes it."""
        sock = self._sock
        if sock is not None:
            with suppress(OSError):  # it is lost already
                sock.shutdown(socket.SHUT_RDWR)

    def close(self, why: str = "closed", *, tell: bool = True) -> None:
        """Close the socket; harmless when it is closed."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self.dirty = True
        self.ended = why
        sock.close()
        if tell and self._greeted and self._settings.observer is not None:
            tell_event(self._settings.observer, "closed")

    def _keep(self, push: Any) -> None:
        """Put aside what the server said unasked; nobody may want it."""
        if self._settings.pushes is not None:
            self._settings.pushes.add(push)

    def _send(self, data: bytes, deadline: float) -> None:
        sock = self._sock
        if sock is None:
            raise OutcomeUnknownError("the connection was closed")
        try:
            sent = 0 if self._tls else sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):  # TLS, or more than the kernel holds: wait for the server to read
            sock.settimeout(_left(deadline))
            sock.sendall(memoryview(data)[sent:])
            sock.settimeout(0)
        if self.timed:
            self.sent_at = monotonic()

    def _receive(self, deadline: float) -> None:
        sock = self._sock
        if sock is None:
            raise OutcomeUnknownError("the connection was closed")
        left = deadline - monotonic()
        # Not settimeout(), which has Python poll before each send, too; and not the kernel's own
        # time-outs, which begin anew with every signal that is handled meanwhile. But for TLS,
        # where a readable socket may hold only a part of what can be read.
        if self._tls:
            sock.settimeout(_left(deadline))
        elif left <= 0 or not self.poll(None if left == math.inf else left * 1000):
            raise TimeoutError
        data = sock.recv(CHUNK)
        if self.timed:
            self.first_at = monotonic()
            self.timed = False
        if not data:
            raise OutcomeUnknownError("the server closed the connection")
        self.received += len(data)
        self._decoder.feed(data)

    def _settle(self) -> None:
        """Bytes are left after the last owed reply: they must be pushes, and whole."""
        while type(push := self._gets()) is Push:
            self._keep(push)
            if self._decoder.settled():
                return
        raise ProtocolError("the server sent a reply that nobody asked for")

    def _failed(self, error: Exception) -> RedisError:
        """Close, and return the error to raise for whatever broke the exchange."""
        kind: type[RedisError] = ProtocolError
        text = f"the reply could not be read: {error!r}"
        if isinstance(error, (ProtocolError, OutcomeUnknownError)):
            kind, text = type(error), error.message
        elif isinstance(error, RedisError):  # of another client, that a signal handler uses
            kind = OutcomeUnknownError
        elif isinstance(error, TimeoutError):
            kind, text = ReadTimeoutError, "no answer in time"
        elif isinstance(error, OSError):
            kind = OutcomeUnknownError
            text = f"the connection was lost: {error.strerror or error}"
        self.close(kind.__name__)
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
    found = _resolve(address.host, address.port, deadline)
    for number, (family, _, _, _, where) in enumerate(found):
        now = monotonic()
        try:  # each has its share of what is left, so a silent one does not use up all
            sock = _reach(family, where, now + (deadline - now) / (len(found) - number))
        except OSError as error:
            failure = error
            continue
        try:
            settings.tune(sock)
            if settings.tls is None:
                return sock
            sock.settimeout(_left(deadline))
            return settings.tls.wrap_socket(sock, server_hostname=address.host)
        except BaseException:
            sock.close()
            raise
    raise failure or OSError("the host has no address")


def _resolve(host: str, port: int, deadline: float) -> list[Any]:
    """Return a host's addresses; a name is looked up in a thread, as that has no time limit."""
    if ":" in host or host.replace(".", "").isdigit():
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found: list[Any] = []

    def look_up() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that asked
            found.append(error)

    looking = threading.Thread(target=look_up, daemon=True)
    looking.start()
    looking.join(_left(deadline))
    if not found:
        raise TimeoutError
    if isinstance(found[0], Exception):
        raise found[0]
    addresses: list[Any] = found[0]
    return addresses


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
