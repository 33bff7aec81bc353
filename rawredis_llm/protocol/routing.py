"""The way of commands through a cluster: what goes to which node, and what to do about its answer.

`Exchange.steps()` is a generator that yields what
is to be done next, and is sent what came of it, until every command has its reply:

=================  =========================================  ====================================
It yields          what the shell does                        what it sends back
=================  =========================================  ====================================
a list of `Part`   sends all of them at once, each to a node  for each its replies, or its error
a number           waits so many seconds                      False if the deadline is before that
`LOOK`             asks the nodes anew who serves what        None
=================  =========================================  ====================================

Commands with one key go to who serves it, those of a transaction together. Of several keys, MGET,
DEL and their like are taken apart; others are refused unless all keys are in one slot. What has no
key goes to any primary, or to each of them where only all know the answer (DBSIZE, FLUSHALL, ...).

Order: commands of one slot keep it, whatever happens: one that was refused is not sent again once
a later one of its slot was executed. What has no key waits for what was to be written before, and
keeps waiting what is to be written after. Between keys of different nodes there is no order.

Must not import sockets, asyncio, numpy, or another ring; nor read a clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final

from .. import errors
from ..errors import RedisError, ReplyError
from .fetching import Fetch
from .keyed import keys_of, one_slot, slots_of
from .operation import Batch, Command, Sent, name_of
from .resp import encode, key_bytes
from .retry import PASSING, Retry
from .routes import Routes
from .scattered import scatter
from .slots import key_slot, node_name, split_node
from .units import ELSEWHERE, REDIRECTED, Item, Outcome, Part, Steps, Unit
from .vetting import command_name, vet

LOOK: Final = "look"  # see above

_ALL: Final[dict[str, Callable[[list[Any]], Any]]] = {
    "DBSIZE": sum,
    "KEYS": lambda replies: [key for reply in replies for key in reply],
    **dict.fromkeys(("FLUSHALL", "FLUSHDB", "FUNCTION", "SCRIPT"), lambda replies: replies[0]),
}
"""Commands that each primary is sent, and what their replies are made one of by."""

_APART: Final = {"DEL", "EXISTS", "JSON.MGET", "MGET", "TOUCH", "UNLINK"}
"""Commands of several keys that mean the same for each of them alone."""

_KEPT: Final = (
    "with search='per-node' documents are not deleted with their index: delete them first, then"
    " drop the index alone"
)
_LONGEST_PAUSE: Final = 0.1  # seconds
_HOMELESS: Final = "nobody serves this slot"
_PARTIAL: Final = (
    "this cluster's search module has no coordinator: a search would find one node's documents"
    ' and say nothing of the others. Choose search="per-node", which asks every node, or'
    ' search="one-slot", by which an index and its documents share a {tag} and so a node'
)


class Exchange:
    """A command, or a batch of them, on its way through a cluster.

    Raises as `Batch.encode` does for what cannot be sent; `waits` are the seconds that its commands
    may wait in the server.
    """

    def __init__(
        self, routes: Routes, what: Sent, retry: Retry, *, idempotent: bool = False
    ) -> None:
        self._routes = routes
        # Who serves a slot changes within a second or so, and is looked for often until then.
        self._retry = retry.patient()._replace(cap=min(retry.cap, _LONGEST_PAUSE))
        self._idempotent = idempotent
        self._lost: RedisError | None = None
        self._what = what
        self.waits = 0.0
        self._items: list[Item] = []
        self._searches: list[tuple[int, Sequence[Any]]] = []
        self._number = -1
        if not isinstance(what, Batch):
            self._add(what)
        elif what.atomic:
            self._add_transaction(what)
        else:
            self._add_batch(what)

    # -- what there is to send -----------------------------------------------------------------

    def _add_batch(self, batch: Batch) -> None:
        for member in batch.members:
            self._number += 1
            try:
                if isinstance(member, Batch):
                    self._number -= 1
                    add = self._add_transaction if member.atomic else self._add_batch
                    add(member)
                elif isinstance(member, Command):
                    self._add(member.args, member)
                else:
                    self._add(member)
            except (TypeError, ValueError) as error:
                raise _numbered(error, self._number) from None

    def _add(self, args: Sequence[Any], command: Command[Any] | None = None) -> None:
        self.waits += vet(args)
        data = encode(args)
        name = command_name(args)
        routes = self._routes
        if name.startswith("FT.") and not name.startswith("FT.SUG"):
            self._searches.append((len(self._items), args))
            self._items.append(Item([Unit([args])]))  # which may say what is wrong with it
            return
        if name == "SCAN":
            self._items.append(_scan(routes, args))
            return
        if name in _ALL:
            units = [Unit([args], slot, loose=True) for slot in routes.homes()]
            self._items.append(Item(units, _ALL[name]))
            return
        keys = keys_of(args)
        slots = slots_of(keys)
        if len(slots) > 1 and name in _APART:
            self._items.append(_apart(name, args, keys))
            return
        unit = Unit([args], *slots, data=data) if len(slots) < 2 else _refused(args, name)
        if command is not None and command.source is not None:
            unit.source = command
            unit.first = command.goes_first  # type: ignore[attr-defined]  # it is an Evaluation
        self._items.append(Item([unit]))

    def _add_transaction(self, batch: Batch) -> None:
        """Add commands that run together, and so have to be in one slot."""
        if not batch.width:
            return
        batch.encode()  # which refuses what cannot be in there
        commands = list(batch._commands(set()))  # noqa: SLF001 - our own ring
        try:
            slot = one_slot(commands)
        except errors.CrossSlotError as error:
            error.command = batch.name
            raise
        self._items.append(Item([Unit(commands, slot)]))

    def _place_searches(self) -> Generator[Any, Any, None]:
        """Say where the FT.* commands go, which may have to be asked first."""
        routes = self._routes
        if routes.search is None and routes.coordinator is None:
            probe = Unit([("COMMAND", "INFO", "FT.SEARCH")])
            yield from self._settle([probe])
            routes.coordinator = coordinates(probe.replies)
        for at, args in self._searches:
            unit = self._items[at].units[0]
            tagged = b"{" in b"".join(map(key_bytes, _index(args)))
            if routes.search == "one-slot" or (routes.search == "per-node" and tagged):
                _check_prefixes(args)
                unit.slot = next(iter(slots_of(_index(args))), None)
                unit.loose = unit.slot is None
            elif routes.search == "per-node":
                self._items[at] = _everywhere(routes, args)
            elif routes.search is None and routes.coordinator is False:
                raise errors.UnsupportedError(_PARTIAL, command=command_name(args))
            elif _stays(args):  # a cursor is known to the node that opened it
                unit.slot = next(iter(slots_of(_index(args))), None)

    # -- sending it ----------------------------------------------------------------------------

    def steps(self, known: Sequence[tuple[Part, Outcome]] = ()) -> Steps:
        """Yield what is to be done; return all replies, errors in their places.

        `known` is what the short way has sent already, and what came of it.
        """
        if self._searches:
            yield from self._place_searches()
        units = [unit for item in self._items for unit in item.units if unit.replies is None]
        for stage in staged(units):
            yield from self._settle(stage, known)
            known = ()
            if self._lost is not None:
                raise self._as_it_is(self._lost)
        if any(item.ends() for item in self._items if item.last):
            yield LOOK  # whether the map has changed meanwhile
        replies: list[Any] = []
        for item in self._items:
            if item.fetch is not None:
                item.fetch.note([unit.replies[0] for unit in item.units if unit.replies])
            found = item.replies()
            if item.fetch is not None:
                found = [(yield from self._fetched(item.fetch, found[0]))]
            replies += found
        return replies

    def _fetched(self, fetch: Fetch, reply: Any) -> Generator[Any, Any, Any]:
        """Return the reply of a search with what its rows lack."""
        keys = fetch.lacking(reply)
        if not keys:
            return reply
        units = [[Unit([args], key_slot(key)) for args in fetch.commands(key)] for key in keys]
        yield from self._settle([unit for both in units for unit in both])
        if self._lost is not None:
            raise self._lost
        found = {
            key: [unit.replies[0] for unit in both if unit.replies]
            for key, both in zip(keys, units, strict=True)
        }
        return fetch.filled(reply, found)

    def _as_it_is(self, error: RedisError) -> RedisError:
        """Return an error; one that says that nothing was sent only if that is true of all."""
        sent = [
            unit for item in self._items for unit in item.units if unit.replies and not unit.reads
        ]
        if not sent or not isinstance(error, errors.ConnectError):
            return error
        text = f"only a part of it was sent: {error.message}"
        return errors.OutcomeUnknownError(text, command=name_of(self._what), address=error.address)

    def as_sent(
        self, nodes: Sequence[str], outcomes: dict[str, Outcome]
    ) -> list[tuple[Part, Outcome]]:
        """Return what the short way has sent, each command to its node, and what came of it."""
        groups: dict[str, list[Unit]] = {}
        for item, node in zip(self._items, nodes, strict=True):
            groups.setdefault(node, []).extend(item.units)
        return [(Part(node, units), outcomes[node]) for node, units in groups.items()]

    def _settle(
        self, units: list[Unit], known: Sequence[tuple[Part, Outcome]] = ()
    ) -> Generator[Any, Any, None]:
        tried = 0
        while units:
            homeless: list[Unit] = []
            if known:
                outcomes, known = list(known), ()
            else:
                parts, homeless = self._parted(units)
                outcomes = list(zip(parts, (yield parts) if parts else (), strict=True))
            look = bool(homeless)
            for unit in homeless:
                unit.why = errors.ClusterDownError(_HOMELESS)
            again = homeless
            for part, outcome in outcomes:
                left, looks = self._judge(part, outcome)
                again += left
                look = look or looks
            left_over = set(map(id, again))
            units = [unit for unit in units if id(unit) in left_over]
            tried += 1
            if look and units:
                yield LOOK
            if units and not (yield from self._pause(units, tried)):
                self._give_up(units)
                return

    def _pause(self, units: list[Unit], tried: int) -> Generator[float, bool, bool]:
        """Wait before the next try, until the deadline; return whether there is one."""
        if tried < 4 and all(isinstance(unit.why, REDIRECTED) for unit in units):
            return True  # no more than this in a row, while nodes do not agree
        # Whatever it was, it passes, or another node takes the place of this one.
        pause = self._retry.pause(errors.TryAgainError(), (), tried, idempotent=True)
        return pause is not None and (yield pause)

    def _give_up(self, units: list[Unit]) -> None:
        """Leave refusals as replies; for what was not answered, raise what it failed of."""
        for unit in units:
            if isinstance(unit.why, ReplyError):
                unit.replies = [unit.why] * len(unit.commands)
            elif unit.why is not None:
                self._lose(unit.why)

    def _lose(self, error: RedisError) -> None:
        self._lost = self._lost or error

    def _parted(self, units: list[Unit]) -> tuple[list[Part], list[Unit]]:
        """Return who is to be sent what, and the units of slots that nobody serves."""
        routes = self._routes
        groups: dict[str, list[Unit]] = {}
        homeless = []
        anyone = random.choice(routes.primaries) if routes.primaries else None  # noqa: S311
        for unit in units:
            node = unit.asking or anyone
            if not unit.asking and unit.slot is not None:
                reads = unit.reads and not unit.home and not unit.executes
                node = routes.reader(unit.slot) if reads else routes.owners[unit.slot]
            if node is None:
                homeless.append(unit)
            else:
                groups.setdefault(node, []).append(unit)
        # In this order, for who takes several connections at once: see the sync shell.
        return [Part(node, group) for node, group in sorted(groups.items())], homeless

    def _judge(self, part: Part, outcome: Outcome) -> tuple[list[Unit], bool]:
        """Settle what was answered; return what is to be sent again, and whether to look."""
        if not isinstance(outcome, list):
            return self._failed(part, outcome)
        again: list[Unit] = []
        look = False
        executed: set[int | None] = set()
        at = len(outcome)
        for unit in reversed(part.units):
            replies = outcome[at - len(unit.commands) : at]
            at -= len(unit.commands) + bool(unit.asking)
            why = unit.refusal(replies)
            if why is None or not isinstance(why, ELSEWHERE) or unit.slot in executed:
                executed.add(unit.slot)
                executed.discard(None)
                unit.replies = replies
                continue
            if not self._retries(why):
                unit.replies = replies
                continue
            look = self._redirect(unit, why, part.node) or look
            unit.why = why
            again.append(unit)
        return again, look

    def _retries(self, why: ReplyError) -> bool:
        return isinstance(why, REDIRECTED) or self._retry.attempts > 1

    def _redirect(self, unit: Unit, why: ReplyError, asked: str) -> bool:
        """Take note of where a unit is to go now; return whether to look at the whole map."""
        if isinstance(why, errors.TryAgainError):
            return False
        unit.asking, unit.home = "", True
        if not isinstance(why, REDIRECTED):
            return True  # the node has no say any more, or the cluster is down
        _, slot, place = why.message.split()[:3]
        host, port = split_node(place)
        node = node_name(host or split_node(asked)[0], port)
        unit.slot = int(slot)  # ours may have been a guess
        if isinstance(why, errors.AskError):
            unit.asking = node
            return False
        return self._routes.moved(unit.slot, node)

    def _failed(self, part: Part, error: RedisError) -> tuple[list[Unit], bool]:
        """See what to do about units of which there is no reply."""
        unsent = isinstance(error, (errors.ConnectError, *PASSING))
        again: list[Unit] = []
        if isinstance(error, errors.CertificateError) or self._retry.attempts == 1:
            unsent = False
        elif isinstance(error, errors.OutcomeUnknownError):
            again = [unit for unit in part.units if unit.reads or self._idempotent]
        if unsent:
            again = list(part.units)
        for unit in again:
            unit.asking, unit.home, unit.why = "", True, error
        if len(again) < len(part.units):
            self._lose(error)
        return again, True


def staged(units: list[Unit]) -> list[list[Unit]]:
    """Return units in groups, each of which is to be answered before the next is sent.

    See the top of this module. What goes first (a script that says so) is a group of its own.
    """
    stages: list[list[Unit]] = [[]]
    loose = wrote = False
    for unit in sorted(units, key=lambda unit: not unit.first):
        free, writes = unit.loose, not unit.reads
        begins = (free and (wrote or (writes and stages[-1]))) or (loose and writes)
        if begins or (stages[-1] and stages[-1][-1].first and not unit.first):
            stages.append([])
            loose = wrote = False
        stages[-1].append(unit)
        loose, wrote = loose or free, wrote or writes
    return stages


def _numbered(error: Exception, number: int) -> Exception:
    text = str(error)
    return error if text.startswith("command ") else type(error)(f"command {number}: {text}")


def _refused(args: Sequence[Any], name: str) -> Unit:
    """Return a unit that is settled already: by the error that a node would give it."""
    unit = Unit([args])
    text = "the keys of one command must be in one slot: give them one {tag}"
    unit.replies = [errors.CrossSlotError(f"CROSSSLOT {text}", command=name)]
    return unit


def _apart(name: str, args: Sequence[Any], keys: Sequence[Any]) -> Item:
    """Take a command of several keys apart, by their slots."""
    slots: dict[int, list[int]] = {}
    for at, key in enumerate(keys):
        slots.setdefault(key_slot(key_bytes(key)), []).append(at)
    tail = args[1 + len(keys) :]
    units = [
        Unit([(args[0], *(keys[at] for at in ats), *tail)], slot) for slot, ats in slots.items()
    ]

    def join(replies: list[Any]) -> Any:
        if not name.endswith("MGET"):
            return sum(replies)
        found = [None] * len(keys)
        for ats, reply in zip(slots.values(), replies, strict=True):
            for at, value in zip(ats, reply, strict=True):
                found[at] = value
        return found

    return Item(units, join)


# -- SCAN --------------------------------------------------------------------------------------


def _scan(routes: Routes, args: Sequence[Any]) -> Item:
    """Send SCAN to the node that its cursor names, and have the reply's name the next one.

    A cursor is `<digest of the map>-<number of the node>-<the node's own cursor>`. Where the map
    has changed since, the scan begins anew: keys come twice, and none is missed that was there all
    the time, unless it moved while nobody noticed.
    """
    homes = routes.homes()
    number, cursor, *tail = 0, b"0", *args[2:]
    parts = key_bytes(args[1]).split(b"-") if len(args) > 1 else []
    if len(parts) == 3 and parts[0] == routes.digest and parts[1].isdigit():
        number, cursor = int(parts[1]), parts[2]
    elif len(parts) != 3 and parts != [b"0"]:
        return Item([Unit([args])])  # the server says what is wrong
    slot = homes[number] if number < len(homes) else None
    unit = Unit([(args[0], cursor, *tail)], slot, loose=True)
    began, last = routes.digest, number + 1 >= len(homes)

    def join(replies: list[Any]) -> list[Any]:
        [[following, keys]] = replies
        at = number
        if following == b"0":
            at += 1
            if last and began == routes.digest:
                return [b"0", keys]
        return [b"-".join((began, b"%d" % at, following)), keys]

    return Item([unit], join, last)


# -- search ------------------------------------------------------------------------------------


def coordinates(replies: Any) -> bool | None:
    """Return whether the search module can search a whole cluster, by COMMAND INFO FT.SEARCH.

    Then FT.SEARCH has no key (Redis 8); without a coordinator its first "key" is the index. True
    where there is no search module at all: the server says so.
    """
    [reply] = replies
    if isinstance(reply, ReplyError):
        raise reply
    return not reply or reply[0] is None or reply[0][3] == 0


def _everywhere(routes: Routes, args: Sequence[Any]) -> Item:
    """Have every node asked for the documents that it has, by the index of its own."""
    if command_name(args) == "FT.DROPINDEX" and len(args) > 2:
        # It would drop the index and leave the documents of other slots: see fetching.py.
        raise errors.UnsupportedError(_KEPT, command="FT.DROPINDEX")
    homes = routes.homes()
    asked = scatter(args, len(homes))
    units = [Unit([asked.args_for(slot)], slot, loose=True) for slot in homes]
    fetch = Fetch(args) if asked.command == "FT.SEARCH" else None
    return Item(units, asked.join, fetch=fetch, judges=True)


def _index(args: Sequence[Any]) -> Sequence[Any]:
    """Return the name of the index that an FT.* command is about."""
    at = 2 if command_name(args) in {"FT.CURSOR", "FT.ALIASADD", "FT.ALIASUPDATE"} else 1
    return args[at : at + 1]


def _stays(args: Sequence[Any]) -> bool:
    words = {arg.upper() for arg in args[2:] if isinstance(arg, (str, bytes)) and len(arg) < 16}
    return command_name(args) == "FT.CURSOR" or not words.isdisjoint({"WITHCURSOR", b"WITHCURSOR"})


def _check_prefixes(args: Sequence[Any]) -> None:
    """Raise ValueError for an index of documents that are not in its own slot: it finds nothing."""
    if command_name(args) != "FT.CREATE":
        return
    words = [arg.upper() if isinstance(arg, str) else arg for arg in args]
    at = words.index("PREFIX") if "PREFIX" in words else 0
    prefixes = args[at + 2 : at + 2 + int(args[at + 1])] if at else ("",)
    for prefix in prefixes:
        tagged = _tagged(key_bytes(prefix))
        if tagged is None or {key_slot(tagged)} != slots_of(_index(args)):
            raise ValueError(
                f"index {args[1]!r}: with search='one-slot' its name and its prefix need the same"
                f" {{tag}}; the prefix is {prefix!r}"
            )


def _tagged(prefix: bytes) -> bytes | None:
    """Return a prefix if all keys that begin by it are in its own slot."""
    start = prefix.find(b"{")
    end = prefix.find(b"}", start + 1)
    return prefix if 0 <= start < end - 1 else None
