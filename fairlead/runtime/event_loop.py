"""Chooses the event loop implementation: uvloop if installed, else asyncio's own."""

import asyncio
import importlib
from collections.abc import Callable


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Returns a loop factory for `asyncio.Runner`.

    Why: uvloop saves about a quarter of the CPU time of a stream chunk or of a request over TLS.
    """
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        return asyncio.new_event_loop
    return factory
