"""Which exchanges may be repeated, after what, and how long to wait: tables and pure functions.

An exchange ends in one of three ways. *Not sent*: no connection could be made, so any command may
be tried again. *Answered*: a refusal stands, but for those that pass by themselves and before which
nothing was executed. *Sent and unanswered*: only what reads is asked again, or what the caller
calls idempotent; a write is sent at most once.

Must not sleep, and must not read a clock: the shells do.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .. import errors
from ..errors import RedisError, ReplyError
from .operation import Batch, Command, Sent
from .vetting import command_name

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Retry", "refusal"]

PASSING: Final[tuple[type[RedisError], ...]] = (
    errors.BusyError,
    errors.ClusterDownError,
    errors.LoadingError,
    errors.MasterDownError,
    errors.MaxClientsError,
    errors.TryAgainError,
    errors.WatchError,
)
"""After these nothing was executed, and waiting helps: they are tried until the deadline."""

_LASTING: Final = (errors.CertificateError, errors.NoPrimaryError)
"""Failures to connect that do not pass, or were waited for already."""

READS: Final = frozenset(
    """
    BITCOUNT BITFIELD_RO BITPOS DBSIZE DUMP ECHO EVALSHA_RO EVAL_RO EXISTS EXPIRETIME FCALL_RO
    FT.AGGREGATE FT.EXPLAIN FT.HYBRID FT.INFO FT.SEARCH FT.SPELLCHECK FT.TAGVALS FT._LIST GEODIST
    GEOHASH GEOPOS GEORADIUSBYMEMBER_RO GEORADIUS_RO GEOSEARCH GET GETBIT GETRANGE HEXISTS
    HEXPIRETIME HGET HGETALL HKEYS HLEN HMGET HPEXPIRETIME HPTTL HRANDFIELD HSCAN HSTRLEN HTTL HVALS
    INFO JSON.ARRLEN JSON.GET JSON.MGET JSON.OBJKEYS JSON.OBJLEN JSON.STRLEN JSON.TYPE KEYS LASTSAVE
    LCS LINDEX LLEN LOLWUT LPOS LRANGE MGET PEXPIRETIME PFCOUNT PING PTTL RANDOMKEY SCAN SCARD SDIFF
    SINTER SINTERCARD SISMEMBER SMEMBERS SMISMEMBER SORT_RO SRANDMEMBER SSCAN STRLEN SUBSTR SUNION
    TIME TTL TYPE XLEN XPENDING XRANGE XREAD XREVRANGE ZCARD ZCOUNT ZDIFF ZINTER ZINTERCARD
    ZLEXCOUNT ZMSCORE ZRANDMEMBER ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANK ZREVRANGE ZREVRANGEBYLEX
    ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE ZUNION
    """.split()  # noqa: SIM905 - a list to read
)
"""Commands that change nothing, whatever their arguments: they may be sent again when no answer
came. A plain SET is not among them: repeated late, it would undo what another client wrote."""


class _Figures(NamedTuple):
    attempts: int
    base: float
    cap: float


class Retry(_Figures):
    """How often a failed exchange is tried, and the waits between, all inside its one deadline.

    `attempts` (default 4) counts the first try, too; 1 is none but the first. Refusals that pass by
    themselves (LOADING, BUSY, TRYAGAIN, CLUSTERDOWN, MASTERDOWN, too many clients) are tried until
    the deadline however many there were, but for `attempts=1`. The n-th wait is a random time up
    to `base * 2**(n-1)`, at most `cap` (seconds; defaults 0.025 and 1): "full jitter", M. Brooker,
    Exponential Backoff and Jitter, AWS Architecture Blog, 2015.

    Raises TypeError for what is no number, ValueError for less than one attempt or a negative time.
    """

    __slots__ = ()

    def __new__(cls, attempts: int = 4, base: float = 0.025, cap: float = 1.0) -> Self:
        """Check the figures."""
        if {type(number) for number in (attempts, base, cap)} - {int, float} or attempts % 1:
            raise TypeError("retry: attempts must be an int, base and cap numbers of seconds")
        if attempts < 1 or not base >= 0 or not cap >= 0:
            raise ValueError("retry: attempts must be at least 1, base and cap at least 0 seconds")
        return super().__new__(cls, attempts, base, cap)

    def patient(self) -> Retry:
        """Return the same for what ends by its deadline alone; `attempts=1` stays as it is."""
        return self if self.attempts == 1 else self._replace(attempts=sys.maxsize)

    def pause(
        self, failure: BaseException, what: Sent, tried: int, *, idempotent: bool
    ) -> float | None:
        """Return how long to wait before the next try, in seconds, or None if there is none."""
        passes = isinstance(failure, PASSING)
        if tried >= self.attempts and (self.attempts == 1 or not passes):
            return None
        if isinstance(failure, errors.OutcomeUnknownError):
            again = idempotent or reads(what)
        else:  # a ReadOnlyError is a refusal: here it did not run, and the primary is elsewhere
            unsent = isinstance(failure, (errors.ConnectError, errors.ReadOnlyError))
            again = passes or (unsent and not isinstance(failure, _LASTING))
        if not again:
            return None
        import random  # noqa: PLC0415 - 1 ms that nobody needs until something fails

        # No cryptography: this keeps clients that failed together from coming back together.
        return random.uniform(0, min(self.cap, self.base * 2 ** min(tried - 1, 60)))  # noqa: S311


_CURSOR: Final = ("WITHCURSOR", b"WITHCURSOR")
_OWN: Final = (
    *("BUSY Redis is", "BUSY Valkey is", "LOADING Redis is", "LOADING Valkey is"),
    *("CLUSTERDOWN Hash slot", "CLUSTERDOWN The cluster", "TRYAGAIN Multiple keys request"),
)


def reads(what: Batch | Command[Any] | Sequence[Any]) -> bool:
    """Return whether what was sent only reads, so that it may be sent again."""
    if isinstance(what, Batch):
        return all(reads(member) for member in what.members)
    args = what.args if isinstance(what, Command) else what
    if any(arg.upper() in _CURSOR for arg in args if isinstance(arg, (str, bytes))):
        return False  # it would leave a second cursor
    return command_name(args) in READS


def refused_of(reply: Any, what: Sent) -> ReplyError | None:
    """Return a command's reply, or a whole transaction's, if it is an error.

    Those in the slots of a pipeline are not looked for.
    """
    if isinstance(what, Batch):
        reply = reply[-1] if what.atomic else None
    return reply if isinstance(reply, ReplyError) else None


def refusal(reply: Any, what: Sent) -> ReplyError | None:
    """Return the error by which the server refused a command or a whole batch: nothing of it ran.

    `reply` is a command's, or the list of a batch's.
    """
    if not isinstance(what, Batch):
        refused = isinstance(reply, ReplyError) and not may_be_a_scripts(reply, what)
        return reply if refused else None
    refused = isinstance(reply[-1], ReplyError) and (
        what.atomic or isinstance(reply[0], ReplyError)
    )
    if not refused or may_be_a_scripts(reply[0], what):
        return None
    refusals = [one for one in reply if isinstance(one, ReplyError)]
    if what.atomic and isinstance(reply[-1], errors.ExecAbortError):
        passing = (*PASSING, errors.ReadOnlyError)
        return next((one for one in refusals if isinstance(one, passing)), None)
    same = len(refusals) == len(reply) and len(set(map(type, refusals))) == 1
    return refusals[0] if same else None


def may_be_a_scripts(refusal: Any, what: Batch | Command[Any] | Sequence[Any]) -> bool:
    """Return True if a script, which may have done something, may have said this itself."""
    if isinstance(what, Batch):
        return any(may_be_a_scripts(refusal, member) for member in what.members)
    name = command_name(what.args if isinstance(what, Command) else what)
    own = str(getattr(refusal, "message", "")).startswith(_OWN)
    return name in {"EVAL", "EVALSHA", "FCALL"} and not own
