"""A runner without a server: it knows which request comes next, and what to answer.

Any other request, and one too few, fails the test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from rawredis_llm.errors import ReplyError, reply_error
from rawredis_llm.protocol.operation import (
    Batch,
    Command,
    Embed,
    Now,
    Op,
    Request,
    Runnable,
    Runner,
)

T = TypeVar("T")
REFUSAL = reply_error("ERR no", address="host:1")
WRONG_TYPE = reply_error("WRONGTYPE no", address="host:1")


def shape(request: Request | tuple[Any, ...]) -> Any:
    """Return a request in the short form that scripts are written in."""
    if isinstance(request, Command):
        return request.args
    if isinstance(request, Batch):
        return [shape(member) for member in request.members]
    if isinstance(request, Embed):
        return (request.call, *request.texts)
    return request if isinstance(request, tuple) else Now


class Script(Runner):
    """Expects requests in this order and answers each: by raw replies, vectors, or an error."""

    def __init__(self, *exchanges: tuple[Any, Any]) -> None:
        self.left = list(exchanges)

    def run(self, op: Runnable[T]) -> T:
        """Run the op to its end, which must be the script's end too."""
        steps = iter(op)
        resume: Callable[[Any], Request] = steps.send
        value: Any = None
        while True:
            try:
                request = resume(value)
            except StopIteration as stop:
                assert self.left == [], "the op ended early"
                result: T = stop.value
                return result
            assert self.left, f"nothing was expected after this, but {shape(request)}"
            expected, reply = self.left.pop(0)
            assert shape(request) == expected
            try:
                resume, value = steps.send, self._answer(request, reply)
            except Exception as error:  # noqa: BLE001 - it is the op's to handle
                resume, value = steps.throw, error

    def _answer(self, request: Request, reply: Any) -> Any:
        if isinstance(reply, Exception) and not isinstance(reply, ReplyError):
            raise reply
        if not isinstance(request, (Command, Batch)):
            return reply
        Batch([request]).encode()  # as a client does first: it raises for what cannot be sent
        if isinstance(request, Command):
            return request.result([reply])
        assert isinstance(reply, list)
        return request.result(reply)


def get(*keys: Any) -> Op[list[Any]]:
    """Get keys one after the other; the first is what the others hang on."""
    values = []
    for key in keys:
        value: Any = yield from Command(("GET", key))
        values.append(value)
    return values
