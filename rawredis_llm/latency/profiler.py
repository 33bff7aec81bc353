"""Where the time of a client's calls goes, for the length of a `with` block.

Must not import sockets or asyncio: a client of either colour is used through its own methods.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RedisError
from ..protocol.operation import Op, Runner
from .recorder import Recorder, SlowCall
from .report import Report, ServerShare
from .server_share import Snapshot, search_profile, share, snapshot

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..aio.client import AsyncClient
    from ..protocol.settings import ConnectionFigures
    from ..sync.client import Client
    from .tables import Comparison

__all__ = ["Profile", "profile"]


def profile(
    client: Client | AsyncClient,
    *,
    server: bool = True,
    prefixes: Sequence[str] = (),
    slow_after: float | None = None,
    on_slow: Callable[[SlowCall], object] | None = None,
) -> Profile:
    """Return what times every call of a client while one is inside of it.

        with profile(client) as p:
            ...
        print(p.table())

    `async with` for an `AsyncClient`. The server's own counts are asked for before and after, by
    the same client, unless `server=False`; then `with` will do for both. The other parameters are
    those of a `Recorder`.
    """
    recorder = Recorder(prefixes=prefixes, slow_after=slow_after, on_slow=on_slow)
    return Profile(client, recorder, server=server)


class Profile:
    """What `profile` returns: it records inside of the block, and can be read there and after."""

    def __init__(self, client: Client | AsyncClient, recorder: Recorder, *, server: bool) -> None:
        self.client = client
        self._server = server
        self._recorder = recorder
        self._before = Snapshot()
        self._figures: ConnectionFigures = client.connections
        self._share: ServerShare | None = None
        self._report: Report | None = None  # once the block was left

    def __enter__(self) -> Self:
        if self._server:
            if not isinstance(self.client, Runner):
                raise TypeError("use `async with` for an AsyncClient, or server=False")
            self._before = self.client.run(_asked())
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if self._server and isinstance(self.client, Runner):
            self._close(self.client.run(_asked()))

    async def __aenter__(self) -> Self:
        if self._server:
            if isinstance(self.client, Runner):
                raise TypeError("use `with` for a Client")
            self._before = await self.client.run(_asked())
        self._begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end()
        if self._server and not isinstance(self.client, Runner):
            self._close(await self.client.run(_asked()))

    def report(self) -> Report:
        """Return what was recorded: all of the block, or, inside of it, what there is so far."""
        report = self._report or self._recorded()
        report.server = self._share
        return report

    def table(self) -> str:
        """Return it as plain text for a terminal."""
        return self.report().table()

    def to_json(self) -> str:
        """Return it as JSON; `Report.from_json` reads it back."""
        return self.report().to_json()

    def to_html(self, path: str | Path) -> None:
        """Write it as one HTML file that needs nothing else."""
        self.report().to_html(path)

    def compare(self, before: Profile | Report) -> Comparison:
        """Return what changed from another profile, of before, to this one; `str()` is a table."""
        return self.report().compare(before if isinstance(before, Report) else before.report())

    def search_profile(self, *args: Any) -> Any:
        """Run an FT.SEARCH or FT.AGGREGATE under FT.PROFILE; return what the server says of it.

        With an `AsyncClient`, a coroutine of that. The report keeps it, too. Raises ValueError for
        another command.
        """
        return self.client.run(self._search_profile(args))

    def _search_profile(self, args: tuple[Any, ...]) -> Op[dict[str, Any]]:
        found = yield from search_profile(*args)
        self._share = self._share or ServerShare()
        self._share.searches.append(found)
        return found

    def _begin(self) -> None:
        self._report = None
        self._share = None
        self._figures = self.client.connections
        self._recorder.reset()
        self.client.observe(self._recorder)

    def _end(self) -> None:
        self.client.unobserve(self._recorder)
        self._report = self._recorded()

    def _close(self, after: Snapshot) -> None:
        searches = self._share.searches if self._share is not None else []
        self._share = share(self._before, after)
        self._share.searches = searches

    def _recorded(self) -> Report:
        then, now = self._figures, self.client.connections
        report = self._recorder.report()
        report.connections = {
            "opened": now.created - then.created,
            "closed": sum(now.dropped.values()) - sum(then.dropped.values()),
            "waited for": now.waited - then.waited,
        }
        report.about = {"server": self.client.place[0], **versions()}
        return report


def versions() -> dict[str, str]:
    """Return what a report was taken with."""
    from .. import __version__  # noqa: PLC0415 - the package imports this module when asked

    python = f"{platform.python_implementation()} {platform.python_version()}"
    return {"rawredis_llm": __version__, "hiredis": version("hiredis"), "python": python}


def _asked() -> Op[Snapshot]:
    """Ask for the server's counts; that nobody answers is told, and no failure of the block."""
    try:
        return (yield from snapshot())
    except RedisError as error:
        return Snapshot(missing={"commands": str(error)})
