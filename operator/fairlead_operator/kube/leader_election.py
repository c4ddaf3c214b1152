"""Runs the operator's work in the replica that holds the Lease. The others wait to take over.

A replica that loses the lease exits and is restarted by its Deployment. It never has to discard its
state as a leader.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fairlead.kube.leader_election import LeaderElector
from fairlead.runtime.tasks import end_with_first

LEASE_NAME = "fairlead-operator"


async def run_while_leading(
    election: LeaderElector,
    stopped: asyncio.Event,
    work: Callable[[], Coroutine[Any, Any, None]],
    log: Callable[[str], None],
) -> str:
    """Waits for the lease, then runs `work` until it ends, the lease is lost, or `stopped` is set.

    Returns the reason of the end, and raises the errors of `work`. The lease is given back only
    after `work` has ended.
    """
    acquiring = asyncio.ensure_future(election.acquire())
    try:
        await end_with_first(acquiring, stopped.wait())
        if stopped.is_set():
            return "stop requested"
        acquiring.result()
        log("leading: " + election.reason)
        return await _run_until_lost(election, stopped, work)
    finally:
        await election.release()


async def _run_until_lost(
    election: LeaderElector, stopped: asyncio.Event, work: Callable[[], Coroutine[Any, Any, None]]
) -> str:
    holding = asyncio.ensure_future(election.hold())
    working = asyncio.ensure_future(work())
    done = await end_with_first(working, holding, stopped.wait())
    if working in done:
        working.result()
        return "the work ended"
    return f"the lease is lost: {holding.result()}" if holding in done else "stop requested"
