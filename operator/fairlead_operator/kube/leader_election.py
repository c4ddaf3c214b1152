"""Runs the operator's work in the replica that holds the Lease. The others wait to take over.

A replica that loses the lease exits and is restarted by its Deployment. It never has to discard its
state as a leader.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fairlead.kube.leader_election import LeaderElector
from fairlead.runtime.tasks import cancel_and_wait

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
    stop = asyncio.ensure_future(stopped.wait())
    acquiring = asyncio.ensure_future(election.acquire())
    try:
        await asyncio.wait({stop, acquiring}, return_when=asyncio.FIRST_COMPLETED)
        if stop.done():
            return "stop requested"
        acquiring.result()
        log("leading: " + election.reason)
        return await _run_until_lost(election, stop, work)
    finally:
        await cancel_and_wait(acquiring)
        await cancel_and_wait(stop)
        await election.release()


async def _run_until_lost(
    election: LeaderElector, stop: "asyncio.Task[Any]", work: Callable[[], Coroutine[Any, Any, None]]
) -> str:
    holding = asyncio.ensure_future(election.hold())
    working = asyncio.ensure_future(work())
    try:
        await asyncio.wait({stop, holding, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return "the work ended"
        return f"the lease is lost: {holding.result()}" if holding.done() else "stop requested"
    finally:
        await cancel_and_wait(working)
        await cancel_and_wait(holding)
