r"""What an op sends, in words: the exact argv of each command, with binary arguments abbreviated.

`client.run(watched(cache.plan.lookup("p"), lambda request: print(*argv(request), sep="\n")))`
prints every command of a lookup while it is performed.
"""

from __future__ import annotations

import json
from typing import Any

from .protocol.operation import Batch, Command, Embed, Request

__all__ = ["argv", "shown"]


def argv(request: Request) -> list[str]:
    """Return one line for each command that a request sends; [] for one that sends none."""
    if isinstance(request, Command):
        return [" ".join(map(shown, request.args))]
    if isinstance(request, Batch):
        lines = []
        for member in request.members:
            lines += argv(Command(member) if isinstance(member, tuple) else member)
        return ["MULTI", *lines, "EXEC"] if request.atomic else lines
    if isinstance(request, Embed):
        return [f"(embed {len(request.texts)} text{'s' * (len(request.texts) != 1)})"]
    return []


def shown(arg: Any) -> str:
    """Return an argument as a shell would take it; bytes that are no text by their number."""
    if not isinstance(arg, (str, bytes, int, float)):
        return f"<{memoryview(arg).nbytes} bytes>"
    if isinstance(arg, bytes):
        try:
            arg = arg.decode()
        except UnicodeDecodeError:
            return f"<{len(arg)} bytes>"
    text = str(arg)
    plain = text and text.isprintable() and not set(text) & set(" \"'\\")
    return text if plain else json.dumps(text, ensure_ascii=False)
