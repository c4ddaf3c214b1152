"""Tests that are coroutine functions: each runs on an event loop of its own.

With the marker `simulated` it is a `SimulatedLoop`: time jumps to the next timer, and no connection
leaves the loop. Other tests have the event loop of a real gateway, and so do tests with the marker
`sockets` in a simulated module. `FAIRLEAD_TEST_LOOPS=real` gives it to all tests; both loops must
agree.
"""

import asyncio
import inspect
import os
from collections.abc import Coroutine, Generator
from typing import Any, Final, TypeVar

import pytest

from fairlead.runtime.event_loop import loop_factory
from fairlead_testing.simulated.event_loop import run_simulated
from fairlead_testing.waiting import limited

REAL_LOOPS: Final = os.environ.get("FAIRLEAD_TEST_LOOPS") == "real"

T = TypeVar("T")
_simulated = False
"""True while a test runs whose loop is simulated."""
_limit_seconds: float | None = None
"""The time limit of the test that runs. Why here too: uvloop ignores that of pytest-timeout."""


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on the event loop of the current test."""
    if _simulated:
        return run_simulated(main)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_limited(main))


async def _limited(main: Coroutine[Any, Any, T]) -> T:
    async with limited(_limit_seconds, lambda: f"the test took longer than {_limit_seconds:g} s"):
        return await main


def time_limit(item: pytest.Item) -> float | None:
    """Returns the seconds that a test may take, as pytest-timeout reads them."""
    marker = item.get_closest_marker("timeout")
    given = item.config.getoption("timeout", None)
    default = item.config.getini("timeout") if given is None else given
    return float(marker.args[0] if marker and marker.args else default or 0) or None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Chooses the event loop of a test."""
    global _simulated, _limit_seconds
    _limit_seconds = time_limit(item)
    markers = {marker.name for marker in item.iter_markers()}
    _simulated = not REAL_LOOPS and "simulated" in markers and "sockets" not in markers
    try:
        return (yield)
    finally:
        _simulated = False


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a coroutine function with its fixtures. Leaves other tests to pytest."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    run_async(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True
