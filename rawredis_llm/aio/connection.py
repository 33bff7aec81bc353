"""One socket, many tasks: replies are matched to requests by position.

The deque of slots belongs to the connection, not to the callers. A cancelled or timed-out task
leaves its slot behind; the reply that belongs there is read and dropped, and nobody else's moves.
All that tasks ask for in one turn of the event loop leaves in one write.

A connection is *busy* while it changes its slots or its bytes. An interrupt in the middle (Ctrl-C
in a notebook, whose loop goes on) leaves it busy, and whoever comes next closes it.

Must not import what is stored.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import os
from collections import deque
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, Concatenate, Final, ParamSpec, TypeAlias, TypeVar, cast

from .. import errors
from ..errors import RedisError, ReplyError
from ..protocol.handshake import Login, as_login, failure_of, greet, without_frames
from ..protocol.observing import tell_event
from ..protocol.resp import CHUNK, NOT_ENOUGH, Decoder, Portions, Push, encode_many, prove, sealed
from ..protocol.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")
Loop: TypeAlias = asyncio.AbstractEventLoop

LONGEST_SILENCE: Final = 20.0  # seconds; stands for a client's time limit where it has none


class _Slot:
    """The place of one exchange in the order of replies, and whom to tell."""

    __slots__ = ("deadline", "future", "nonce", "replies", "times", "width")

    def __init__(
        self,
        future: asyncio.Future[Any],
        deadline: float,
        nonce: bytes | None,
        times: list[float] | None,
    ) -> None:
        self.future = future
        self.deadline = deadline
        self.times = times
        self.width = 0
        self.nonce = nonce
        self.replies: list[Any] = []


def _whole(step: Callable[Concatenate[Connection, P], None]) -> Callable[..., None]:
    """Make a callback of the event loop one that runs whole, or ends the connection."""

    @functools.wraps(step)
    def guarded(self: Connection, *args: P.args, **kwargs: P.kwargs) -> None:
        if self.closed:
            return
        if self._busy:
            self.fail(_INTERRUPTED)
            return
        self._busy = True
        try:
            step(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - any failure in here ends this connection
            text = f"the reply could not be read: {error!r}"
            self.fail(
                errors.ProtocolError(error.message if isinstance(error, RedisError) else text)
            )
        except BaseException:
            self.fail(_INTERRUPTED)
            raise
        self._busy = False

    return guarded


class Connection(asyncio.Protocol):
    """A socket to one server, made by `connect()`.

    It is `usable` until it is `retired` (for that reason, not to be used for more calls) or closed
    (`ended` says why). A `listener` is given every frame that comes, and the error at the end.
    """

    def __init__(self, settings: Settings, loop: Loop) -> None:
        self.loop = loop
        self._process = os.getpid()
        self.usable = True
        self.closed = False
        self.retired = self.ended = ""
        self.listener: Callable[[Any], None] | None = None
        self.on_close: Callable[[Connection], None] | None = None
        self.on_readonly: Callable[[], None] | None = None
        self.lent = False  # to somebody who alone may use it
        self._greeted = self._proves = False
        self._busy = False
        self._settings = settings
        self._address = str(settings.address)
        self._decoder = Decoder(self._address)
        self._slots: deque[_Slot] = deque()
        self._out: list[bytes] = []
        self._single = False  # what was sent last was one request, and nobody else waited
        self._timed: list[list[float]] = []  # to note in when what is to be sent was sent
        # Portions to send once so many replies have come to a slot: neither the server nor we are
        # to hold all of a large pipeline at once. Whoever comes later waits behind them.
        self._backlog: deque[tuple[_Slot, int, bytes]] = deque()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wake = math.inf
        self._heard = loop.time()

    def request(
        self, portions: Portions, deadline: float, times: list[float] | None = None
    ) -> asyncio.Future[list[Any]]:
        """Send commands; the future's result is the list of their replies, errors in their slots.

        A portion is bytes and the number of commands in them. A future that is cancelled leaves its
        place in the order of replies, and what it asked for may happen all the same. Of `times`,
        six marks, those from the third on are set as it comes so far.
        """
        future = self.loop.create_future()
        if self._busy:
            self.fail(_INTERRUPTED)
        if self.closed:
            future.set_exception(
                errors.ConnectError("the connection was lost", address=self._address)
            )
            return future
        nonce = None
        if self._proves:
            portions, nonce = sealed(portions)
        self._busy = True
        at_once = False
        if not self._slots:
            self._heard = self.loop.time()  # silence counts from when somebody listens
            at_once = self._single and not self._out
        slot = _Slot(future, deadline, nonce, times)
        if times is not None:
            times[2] = monotonic()
            self._timed.append(times)
        for data, commands in portions:
            if self._backlog or slot.width:
                self._backlog.append((slot, slot.width, data))
            elif at_once:
                self._out.append(data)
            else:
                self.send(data)
            slot.width += commands
        self._slots.append(slot)
        if deadline < self._wake:
            self._set_timer(deadline)
        self._busy = False
        if at_once:
            # One task that asks and waits: nothing would join its request in the loop's next turn,
            # and that turn is a quarter of its call.
            self._flush()
        return future

    def send(self, data: bytes) -> None:
        """Send with all that is asked for in this turn of the loop."""
        if not self._out:
            self.loop.call_soon(self._flush)
        self._out.append(data)

    @property
    def refusals(self) -> list[ReplyError]:
        """The errors among the replies of the handshake."""
        return self._decoder.refusals

    @property
    def idle(self) -> bool:
        """Whether nobody waits for a reply."""
        return not self._slots

    @property
    def silence(self) -> float:
        """For how many seconds the server was not heard of."""
        return self.loop.time() - self._heard

    def greeted(self) -> None:
        """Go over from the handshake to calls."""
        self._greeted, self._proves = True, self._settings.integrity
        self._decoder.refusals.clear()
        if self._settings.observer is not None:
            tell_event(self._settings.observer, "opened")

    def retire(self, why: str) -> None:
        """Take no more calls, and close when those in flight are answered."""
        self.usable = False
        self.retired = self.retired or why
        if not self._slots:
            self.fail(errors.OutcomeUnknownError("the connection was replaced"))

    def close(self, why: str = "closed") -> None:
        """Close; calls in flight fail."""
        self.retired = self.retired or why
        self.fail(errors.OutcomeUnknownError("the connection was closed"))

    def pause(self) -> None:
        """Read no more until `resume()`: the listener has enough."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None and not self.closed:
            self._transport.resume_reading()

    @_whole
    def _flush(self) -> None:
        out, self._out = self._out, []
        self._single = len(out) == len(self._slots) == 1
        if self._transport is not None:
            self._transport.write(b"".join(out))
        if self._timed:
            now = monotonic()
            for times in self._timed:
                times[3] = now
            self._timed.clear()

    def _set_timer(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wake = deadline
        self._timer = None if deadline == math.inf else self.loop.call_at(deadline, self._expire)

    @_whole
    def _expire(self) -> None:
        """Time out what is due. One timer serves all slots: arming one per call costs 1.5 us."""
        self._timer = None
        now = self.loop.time()
        following = math.inf
        late = waiting = False
        for slot in self._slots:
            late = late or slot.deadline <= now  # cancelled ones, too, tell of a silent server
            if slot.future.done():
                continue
            if slot.deadline > now:
                following = min(following, slot.deadline)
                waiting = True
                continue
            slot.future.set_exception(
                errors.ReadTimeoutError("no answer in time", address=self._address)
            )
        self._set_timer(following)
        if late and now - self._heard >= min(self._settings.timeout, LONGEST_SILENCE) / 2:
            # A call timed out, and not a byte came for half of the time that a call may take: the
            # server or the way to it is gone, so nobody new is to wait here.
            self.retire("ReadTimeoutError")
            if not waiting:
                self.fail(errors.ReadTimeoutError("the server has fallen silent"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (called by the event loop)."""
        # Not isinstance(): uvloop's transports are no asyncio.Transport by descent.
        self._transport = cast("asyncio.Transport", transport)

    @_whole
    def data_received(self, data: bytes) -> None:
        """Hand replies to the slots they belong to (called by the event loop)."""
        self._heard = self.loop.time()
        if len(data) <= CHUNK:
            self._read(data)
        else:
            for start in range(0, len(data), CHUNK):
                self._read(data[start : start + CHUNK])

    def _read(self, data: bytes) -> None:
        decoder, slots = self._decoder, self._slots
        arrived = monotonic() if slots and slots[0].times is not None else 0.0
        gets = decoder.gets
        complete: list[_Slot] = []
        try:
            decoder.feed(data)
            while (reply := gets()) is not NOT_ENOUGH:
                if type(reply) is Push or self.listener is not None:
                    self._keep(reply)
                else:
                    if not slots:
                        raise errors.ProtocolError("the server sent a reply that nobody asked for")
                    slot = slots[0]
                    slot.replies.append(reply)
                    if len(slot.replies) == slot.width:
                        complete.append(slots.popleft())
                if decoder.settled():
                    break
            if reply is NOT_ENOUGH and not slots and self.listener is None:
                raise errors.ProtocolError("the server sent bytes that nobody asked for")
            if arrived or self._proves:
                self._look_at(complete, arrived, whole=reply is not NOT_ENOUGH)
        except Exception:
            # A surplus reply may be the first of those that came with it: nobody gets any.
            slots.extendleft(reversed(complete))
            raise
        for slot in complete:
            if not slot.future.done():
                slot.future.set_result(slot.replies)
        if self._backlog or decoder.refusals or self.retired:
            self._look_back()

    def _look_at(self, complete: list[_Slot], arrived: float, *, whole: bool) -> None:
        """Prove what is complete, and note when it arrived and was read.

        Without `whole` there is a part of a reply to the first of those that wait.
        """
        now = monotonic()
        arrived = arrived or now  # the first of those that were answered may be unobserved
        for slot in complete:
            if slot.nonce is not None:
                prove(slot.replies, slot.nonce)
            if slot.times is not None:
                slot.times[4] = slot.times[4] or arrived
                slot.times[5] = now
        if self._slots and (self._slots[0].replies or not whole):
            times = self._slots[0].times
            if times is not None:
                times[4] = times[4] or arrived

    def _look_back(self) -> None:
        """After replies, send on, and see whether this connection is still worth using."""
        while self._backlog and len(self._backlog[0][0].replies) >= self._backlog[0][1]:
            self.send(self._backlog.popleft()[2])
        refusals = self._decoder.refusals
        if self._greeted:
            if any(isinstance(refusal, errors.ReadOnlyError) for refusal in refusals):
                self.retire("READONLY")
                if self.on_readonly is not None:  # the primary is elsewhere, and all lead here
                    self.on_readonly()
            refusals.clear()
        if self.retired and not self._slots:
            self.retire(self.retired)

    def _keep(self, frame: Any) -> None:
        """Hand on what is no reply to a call; without a listener or a handler nobody wants it."""
        pushes = self._settings.pushes
        if self.listener is not None:
            self.listener(frame)
        elif pushes is not None:
            self.loop.call_soon(pushes.deliver)
            pushes.add(frame)

    def eof_received(self) -> bool:
        """Close when the server does (called by the event loop)."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is in flight (called by the event loop)."""
        if not self._slots:
            self.retired = self.retired or "ended while idle"
        reason = getattr(exc, "strerror", None) or "the server closed the connection"
        self.fail(errors.OutcomeUnknownError(reason))

    def fail(self, error: RedisError) -> None:
        """Close, and fail every call in flight with an error of this kind."""
        if self.closed:
            return
        self.closed, self.usable = True, False
        self.ended = self.retired or type(error).__name__
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        for slot in self._slots:
            if not slot.future.done():
                slot.future.set_exception(type(error)(error.message, address=self._address))
        self._slots.clear()
        self._backlog.clear()
        if self.listener is not None:
            self.listener(type(error)(error.message, address=self._address))
        if self.on_close is not None:
            self.on_close(self)
        if self._greeted and self._settings.observer is not None:
            tell_event(self._settings.observer, "closed")

    def belongs_to(self, loop: Loop) -> bool:
        """Whether this is the event loop, and the process, that it was made in."""
        return self.loop is loop and self._process == os.getpid()

    def end(self, here: Loop) -> None:
        """Close from wherever one is; a loop that runs elsewhere closes its own connections."""
        if self.loop.is_closed() or self._process != os.getpid():
            self.abandon()
        elif self.loop is here:
            self.close()
        else:
            self.loop.call_soon_threadsafe(self.close)

    def abandon(self) -> None:
        """Close this process' copy of the socket, past an event loop that is closed or not ours.

        After a fork the loop's epoll object is shared with the parent: `abort()` would take the
        parent's socket out of it.
        """
        self.closed, self.usable = True, False
        self._slots.clear()
        if self.on_close is not None:
            self.on_close(self)
        if self._transport is not None:
            wrapper = self._transport.get_extra_info("socket")
            sock = getattr(wrapper, "_sock", None)  # asyncio's; uvloop's cannot be closed by hand
            if sock is not None:
                sock.close()


_INTERRUPTED: Final = errors.OutcomeUnknownError("the event loop was interrupted")


async def connect(settings: Settings, deadline: float = math.inf) -> Connection:
    """Return an open connection that has shaken hands.

    Raises ConnectError or ConnectTimeoutError, or the server's refusal.
    """
    loop = asyncio.get_running_loop()
    limit = min(deadline, loop.time() + settings.connect_timeout)
    login = await _login(settings, loop, limit)
    connection = Connection(settings, loop)
    try:
        await _within(loop, _open(settings, connection), limit)
        await _greet(settings, connection, login, limit)
        connection.greeted()
    except ReplyError:
        connection.close()
        raise
    except (RedisError, OSError, UnicodeError) as error:
        connection.close()
        reason = failure_of(error, connection.refusals, str(settings.address))
        raise reason from without_frames(error)
    except BaseException as error:  # noqa: BLE001 - cancelled, or interrupted
        connection.close()
        raise without_frames(error) from None
    return connection


def left(loop: Loop, deadline: float) -> float | None:
    """Return the seconds until a deadline, as asyncio takes them."""
    return None if deadline == math.inf else max(deadline - loop.time(), 0)


async def _greet(settings: Settings, connection: Connection, login: Login, deadline: float) -> None:
    steps = greet(settings, login)
    replies: Any = None
    try:
        while True:
            replies = await connection.request(encode_many(steps.send(replies)), deadline)
    except StopIteration:
        return


async def _login(settings: Settings, loop: Loop, deadline: float) -> Login:
    """Return the credentials; the caller's own function is asked for each connection anew."""
    if settings.credentials is None:
        return as_login(settings, None)
    try:
        return as_login(settings, await _within(loop, _ask(settings.credentials), deadline))
    except _LateError:
        address = str(settings.address)
        raise errors.ConnectTimeoutError("no credentials in time", address=address) from None


class _LateError(TimeoutError):
    """The deadline passed: ours, not one of what we waited for."""


async def _within(loop: Loop, waiting: Coroutine[Any, Any, T], deadline: float) -> T:
    """Return what a coroutine does, or raise _LateError at the deadline.

    Not wait_for(), which before Python 3.12 loses a cancellation that comes with the result.
    """
    task = loop.create_task(waiting)
    try:
        await asyncio.wait([task], timeout=left(loop, deadline))
    finally:
        late = not task.done()
        if late:
            task.cancel()
            await asyncio.wait([task])
    if late:
        raise _LateError
    return task.result()


async def _ask(credentials: Callable[[], Any]) -> Any:
    if inspect.iscoroutinefunction(credentials):
        return await credentials()
    loop = asyncio.get_running_loop()
    given = await loop.run_in_executor(None, credentials)  # it may wait for a network
    return await given if inspect.isawaitable(given) else given


async def _open(settings: Settings, connection: Connection) -> None:
    address, loop = settings.address, connection.loop
    if address.path:
        await loop.create_unix_connection(lambda: connection, address.path)
        return
    transport, _ = await loop.create_connection(
        lambda: connection, address.host, address.port, ssl=settings.tls
    )
    sock = transport.get_extra_info("socket")
    if sock is not None:
        settings.tune(sock)
