"""Lua scripts, sent by their digest where the server has them.

Must not import another ring.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from hashlib import sha1
from typing import Any

from ..errors import NoScriptError
from .operation import Command, Request

__all__ = ["Evaluation", "Script"]


class Evaluation(Command[Any]):
    """One run of a script, as an op or in a batch.

    Its source is sent instead of the digest where the server may not have the script: after
    NOSCRIPT, and the first time in a batch.
    """

    __slots__ = ("goes_first", "source")

    def __init__(
        self, source: str | bytes, args: tuple[Any, ...], *, goes_first: bool = False
    ) -> None:
        super().__init__(("EVALSHA", *args))
        self.source = source
        self.goes_first = goes_first

    def __iter__(self) -> Generator[Request, Any, Any]:
        try:
            return (yield Command(self.args))
        except NoScriptError as error:
            if "No matching script" not in error.message:  # the script's own words
                raise
            return (yield Command(self.in_full))

    @property
    def in_full(self) -> tuple[Any, ...]:
        """The arguments that bring the source along; the server keeps it under its digest."""
        return ("EVAL", self.source, *self.args[2:])


class Script:
    """A Lua script. Called, it gives one run of it, for `client.run()`, `gather()`, `pipeline()`.

    `client.run(script(keys, args))` sends the digest (EVALSHA), and the source only when the server
    does not know it. In a pipeline or transaction the first run of a script brings its source
    along, and the server has it for the later ones, unless it refused that first.

    In a cluster a run that `goes_first` is answered before other commands of its pipeline are sent
    to other nodes.

    Raises TypeError if `source` is neither str nor bytes.
    """

    def __init__(self, source: str | bytes, *, goes_first: bool = False) -> None:
        if not isinstance(source, (str, bytes)):
            raise TypeError(f"source must be str or bytes, not {type(source).__name__}")
        self.source = source
        self.goes_first = goes_first
        self.digest = sha1(source.encode() if isinstance(source, str) else source).hexdigest()  # noqa: S324 - the name that Redis gives it

    def __call__(self, keys: Sequence[Any] = (), args: Sequence[Any] = ()) -> Evaluation:
        """Return one run with these keys and arguments; its value is the script's reply."""
        for name, given in (("keys", keys), ("args", args)):
            if isinstance(given, (str, bytes)) or not hasattr(given, "__len__"):
                raise TypeError(f"{name} must be a list, not {type(given).__name__}")
        run = (self.digest, len(keys), *keys, *args)
        return Evaluation(self.source, run, goes_first=self.goes_first)
