"""What goes to a node of a cluster as one, and what a command of the caller's is taken apart into.

Must not import sockets, asyncio, numpy, or another ring.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from .. import errors
from ..errors import RedisError, ReplyError
from .fetching import Fetch
from .operation import Batch, Ready
from .resp import PORTION, Portions, encode
from .retry import PASSING, READS, may_be_a_scripts
from .vetting import command_name


class Unit:
    """What goes to one node as one: a command, or a transaction from MULTI to EXEC.

    It goes to who serves its `slot`; None: to any primary. It is `loose` if it has no key, whatever
    slot it was given. `replies` are None until it is settled.
    """

    __slots__ = (
        "asking",
        "commands",
        "data",
        "first",
        "home",
        "loose",
        "reads",
        "replies",
        "slot",
        "source",
        "why",
    )

    def __init__(
        self,
        commands: Sequence[Sequence[Any]],
        slot: int | None = None,
        *,
        loose: bool = False,
        data: bytes | None = None,
    ) -> None:
        self.commands = commands
        self.slot = slot
        self.loose = loose or slot is None
        self.asking = ""  # the node that is to be asked, once, although the slot is another's
        self.home = False  # to the primary, whatever it does
        self.why: RedisError | None = None  # it is to be sent again
        self.data = b"".join(map(encode, commands)) if data is None else data
        self.reads = all(command_name(args) in READS or args[0] in _FRAME for args in commands)
        self.replies: list[Any] | None = None
        self.source: Any = None  # of the script that it runs: an `Evaluation`
        self.first = False

    @property
    def executes(self) -> bool:
        """Whether it is a transaction."""
        return len(self.commands) > 1

    def refusal(self, replies: list[Any]) -> ReplyError | None:
        """Return the error by which the node refused it: nothing of it ran."""
        last = replies[-1]
        if not isinstance(last, ReplyError):
            return None
        if self.executes:  # EXECABORT says only that one was refused; that one says why
            refusals = (one for one in replies if isinstance(one, ReplyError))
            return next((one for one in refusals if isinstance(one, ELSEWHERE)), last)
        if may_be_a_scripts(last, self.commands[0]) and not self._redirects(last):
            return None
        return last

    def _redirects(self, refusal: ReplyError) -> bool:
        """Return whether a node says where this unit's slot is, which no script would know."""
        words = refusal.message.split()
        return isinstance(refusal, REDIRECTED) and words[1:2] == [str(self.slot)]


_FRAME: Final = ("MULTI", "EXEC")
REDIRECTED: Final[tuple[type[RedisError], ...]] = (errors.MovedError, errors.AskError)
ELSEWHERE: Final[tuple[type[RedisError], ...]] = (*REDIRECTED, *PASSING, errors.ReadOnlyError)
"""Refusals after which a unit is sent again, to another node or later."""


class Part(NamedTuple):
    """What one node is sent at once."""

    node: str
    units: list[Unit]

    def ready(self) -> Batch:
        """Return it as a batch whose bytes are made."""
        commands = [
            args
            for unit in self.units
            for args in ((_ASKING, *unit.commands) if unit.asking else unit.commands)
        ]
        names = [command_name(args) for args in commands]
        return Ready(self._portions(), names, lambda: map(tuple, commands))

    def _portions(self) -> Portions:
        """Return the bytes, in portions of about 1 MiB.

        The first run of each script brings its source along, and the node has it for the others.
        """
        found: Portions = []
        pieces: list[bytes] = []
        size = width = 0
        seen: set[Any] = set()
        for unit in self.units:
            data = unit.data
            if unit.source is not None and unit.source.source not in seen:
                seen.add(unit.source.source)
                data = encode(unit.source.in_full)
            if unit.asking:
                pieces.append(_ASKING_DATA)
                width += 1
            pieces.append(data)
            width += len(unit.commands)
            size += len(data)
            if size > PORTION:
                found.append((b"".join(pieces), width))
                pieces.clear()
                size = width = 0
        if pieces:
            found.append((b"".join(pieces), width))
        return found


_ASKING: Final = ("ASKING",)
_ASKING_DATA: Final = encode(_ASKING)
Outcome: TypeAlias = "list[Any] | RedisError"
Steps: TypeAlias = Generator["list[Part] | float | str", Any, list[Any]]


class Item(NamedTuple):
    """A command of the caller's: the units it was taken apart into, and what joins the replies."""

    units: list[Unit]
    join: Callable[[list[Any]], Any] | None = None
    last: bool = False  # it is the last node that SCAN comes to
    fetch: Fetch | None = None  # what rows lack
    judges: bool = False  # `join` is given errors, too; else the first of them is the reply

    def ends(self) -> bool:
        """Return whether SCAN has come to its end."""
        reply = (self.units[0].replies or [None])[0]
        return isinstance(reply, list) and reply[0] == b"0"

    def replies(self) -> list[Any]:
        """Return its reply (those of a transaction) once all its units are settled."""
        if self.join is None:
            return self.units[0].replies or []
        replies = [unit.replies[0] for unit in self.units if unit.replies is not None]
        failed = next((reply for reply in replies if isinstance(reply, ReplyError)), None)
        return [self.join(replies) if failed is None or self.judges else failed]
