"""Waiting in asynchronous tests."""

import asyncio
from collections.abc import Awaitable, Callable

PATIENCE_SECONDS = 120.0
_POLL_SECONDS = 0.005


async def wait_until(
    condition: Callable[[], bool], patience_seconds: float = PATIENCE_SECONDS, poll_seconds: float = _POLL_SECONDS
) -> None:
    """Returns once other tasks have made `condition` true. Raises TimeoutError after
    `patience_seconds`.
    """

    async def _holds() -> bool:
        return condition()

    await wait_until_async(_holds, patience_seconds, poll_seconds)


async def wait_until_async(
    condition: Callable[[], Awaitable[bool]],
    patience_seconds: float = PATIENCE_SECONDS,
    poll_seconds: float = _POLL_SECONDS,
) -> None:
    """Like `wait_until`, for an asynchronous condition."""
    async with asyncio.timeout(patience_seconds):
        while not await condition():  # noqa: ASYNC110  # the condition belongs to another system
            await asyncio.sleep(poll_seconds)
