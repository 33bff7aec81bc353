"""What an observer of a client is told of each exchange: when it was where, and what it moved.

Must not import sockets, asyncio, numpy, or another ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from .pushes import complain
from .resp import Portions

if TYPE_CHECKING:
    from .operation import Sent

PHASES: Final[tuple[str, ...]] = ("encode", "acquire", "send", "wait", "read", "resume")
"""The parts of an exchange, in order, each from one of the first seven `Marks` to the next:

=======  =====================================================================================
encode   arguments to bytes
acquire  until there was a connection, with all earlier attempts and the pauses between them
send     until the last byte was given to the kernel; in asyncio, after the turn of the event loop
         that it takes, to the transport, which keeps what the kernel has no room for
wait     until the first byte of the reply was there, or of a push before it: the network, and the
         server
read     until all was read and made Python values of; with what is sent in further portions
resume   until the caller had it: in asyncio, until the event loop came to the task again
=======  =====================================================================================
"""


class Marks(NamedTuple):
    """One exchange. Times are seconds of the monotonic clock, of the last attempt if several.

    What was not reached, because of an error, has the time of the end. `out` counts the commands'
    bytes, without what `integrity="echo"` adds. `received` is nan where one socket carried replies
    to several calls at once. `commands` is the depth of a pipeline, 1 for a
    single command.
    """

    began: float
    encoded: float
    acquired: float
    sent: float
    first: float
    read: float
    ended: float
    out: int
    received: float
    commands: int
    attempts: int


class Observer(Protocol):
    """What is told of every exchange. Its methods are called in line: keep them short."""

    def exchange(
        self, what: Sent, marks: tuple[float, ...], error: BaseException | None, /
    ) -> None:
        """Take note of one exchange: a command's arguments, or a batch.

        `Marks(*marks)` names the marks, which here are a plain tuple because that costs each call
        a tenth of a microsecond less. `error` is what the call raises; errors in the slots of a
        batch are not told.
        """

    def connection(self, event: str) -> None:
        """Take note of a connection: `opened` or `closed`."""


class Several:
    """Observers as one; what one of them raises keeps nothing from the others."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = tuple(observers)

    def exchange(
        self, what: Sent, marks: tuple[float, ...], error: BaseException | None, /
    ) -> None:
        """Tell each."""
        for observer in self.observers:
            tell(observer, what, marks, error)

    def connection(self, event: str) -> None:
        """Tell each."""
        for observer in self.observers:
            tell_event(observer, event)


def tell(
    observer: Observer, what: Sent, marks: tuple[float, ...], error: BaseException | None
) -> None:
    """Tell an observer of an exchange; what it raises is printed, and the call goes on."""
    try:
        observer.exchange(what, marks, error)
    except Exception:  # noqa: BLE001 - it is no part of the call
        complain("the observer")


def tell_event(observer: Observer, event: str) -> None:
    """Tell an observer of a connection; what it raises is printed."""
    try:
        observer.connection(event)
    except Exception:  # noqa: BLE001 - it is no part of the call
        complain("the observer")


def reached(times: Sequence[float], ended: float) -> list[float]:
    """Return the first seven marks of an exchange; 0 stands for what was not reached."""
    return [time or ended for time in times] + [ended] * (7 - len(times))


def moved(portions: Portions) -> tuple[int, int]:
    """Return how many bytes, and how many commands, portions hold."""
    if len(portions) == 1:
        [(data, commands)] = portions
        return len(data), commands
    return sum(len(data) for data, _ in portions), sum(width for _, width in portions)
