"""Which of the replicas works: the one that holds the Lease. The others wait, ready to take over.

A replica that loses the lease ends, and is started anew by its Deployment: it never has to forget what it believed as the leader.
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
    """Wait for the lease, then do ``work`` until it ends, the lease is lost, or ``stopped``; the reason of the end.

    ``work`` has ended when this returns, and only then is the lease given back. What ``work`` raises is raised.
    """
    stop = asyncio.ensure_future(stopped.wait())
    acquiring = asyncio.ensure_future(election.acquire())
    try:
        await asyncio.wait({stop, acquiring}, return_when=asyncio.FIRST_COMPLETED)
        if stop.done():
            return "it was told to stop"
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
        return f"the lease is lost: {holding.result()}" if holding.done() else "it was told to stop"
    finally:
        await cancel_and_wait(working)
        await cancel_and_wait(holding)
