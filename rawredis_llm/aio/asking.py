"""What an op asks of its user's own functions: asynchronous ones here, plain ones in a thread.

Must not import numpy, or what is stored.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from ..protocol.operation import Call, Embed


async def called(request: Call) -> Any:
    """Call a function: an asynchronous one here, a plain one in a thread."""
    if inspect.iscoroutinefunction(request.function):
        return await request.function(*request.args)

    def plain() -> Any:
        try:
            return request.function(*request.args)
        except StopIteration as error:  # which no future takes: it would never end
            raise RuntimeError("the function raised StopIteration") from error

    result = await asyncio.to_thread(plain)
    return await result if inspect.isawaitable(result) else result


async def embed(request: Embed) -> Any:
    """Embed by the asynchronous function, or by the plain one in a thread."""
    if request.acall is not None:
        return await request.acall(request.texts)
    assert request.call is not None
    loop = asyncio.get_running_loop()
    vectors = await loop.run_in_executor(None, request.call, request.texts)
    return await vectors if inspect.isawaitable(vectors) else vectors
