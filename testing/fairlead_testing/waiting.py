"""Waiting in asynchronous tests."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

PATIENCE_SECONDS = 120.0
_POLL_SECONDS = 0.005
_MAX_POLL_SECONDS = 0.05
_POLL_GROWTH = 1.1
"""Pauses grow, since most conditions that need half a second are requests to a process."""


async def wait_until(
    condition: Callable[[], bool | Awaitable[bool]],
    patience_seconds: float = PATIENCE_SECONDS,
    poll_seconds: float = _POLL_SECONDS,
    *,
    what: str = "",
) -> None:
    """Returns once other tasks have made `condition` true, which may be asynchronous. Raises
    AssertionError after `patience_seconds`, with `what` or else the source of the condition.
    """
    async with limited(
        patience_seconds, lambda: f"waited {patience_seconds:g} s in vain: {what or _describe(condition)}"
    ):
        while not await _truth(condition()):
            await asyncio.sleep(poll_seconds)
            poll_seconds = max(poll_seconds, min(poll_seconds * _POLL_GROWTH, _MAX_POLL_SECONDS))


async def _truth(value: bool | Awaitable[bool]) -> bool:
    return value if isinstance(value, bool) else await value


@asynccontextmanager
async def limited(seconds: float | None, describe: Callable[[], str]) -> AsyncIterator[None]:
    """Raises AssertionError with a text if the block takes longer.

    describe: called only then, since it may read a source.
    """
    try:
        async with asyncio.timeout(seconds) as timeout:
            yield
    except TimeoutError as error:
        if not timeout.expired():  # the block's own
            raise
        raise AssertionError(describe()) from error


def _describe(condition: Callable[[], object]) -> str:
    """Returns the source of a lambda in one line, or the name of another condition."""
    if not inspect.isfunction(condition):
        return repr(condition)
    if condition.__name__ != "<lambda>":
        return condition.__qualname__
    try:
        return " ".join(inspect.getsource(condition).split())
    except OSError:
        return repr(condition)
