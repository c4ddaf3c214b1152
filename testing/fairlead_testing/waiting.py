"""Waiting in asynchronous tests: for a condition, with a patience that only a hanging test ever reaches."""

import asyncio
from collections.abc import Awaitable, Callable

PATIENCE_SECONDS = 120.0


async def wait_until(condition: Callable[[], bool], patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Return as soon as the loop's other tasks have made ``condition`` true; TimeoutError when they do not."""

    async def _asked() -> bool:
        return condition()

    await wait_until_async(_asked, patience_seconds)


async def wait_until_async(
    condition: Callable[[], Awaitable[bool]], patience_seconds: float = PATIENCE_SECONDS
) -> None:
    """The same for a condition that must itself be awaited."""
    async with asyncio.timeout(patience_seconds):
        while not await condition():  # noqa: ASYNC110  # the condition is another system's, which sets no Event of ours
            await asyncio.sleep(0.005)
