"""Which of the replicas works: the one that holds the Lease. The others wait, ready to take over.

A replica that loses the lease ends, and is started anew by its Deployment: it never has to forget what it believed as the leader.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fairlead.kube.lease import Election
from fairlead.tasks import ended

LEASE = "fairlead-operator"


async def while_leading(
    election: Election,
    stopped: asyncio.Event,
    work: Callable[[], Coroutine[Any, Any, None]],
    say: Callable[[str], None],
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
        say("leading: " + election.reason)
        return await _hold(election, stop, work)
    finally:
        await ended(acquiring)
        await ended(stop)
        await election.release()


async def _hold(election: Election, stop: "asyncio.Task[Any]", work: Callable[[], Coroutine[Any, Any, None]]) -> str:
    holding = asyncio.ensure_future(election.hold())
    working = asyncio.ensure_future(work())
    try:
        await asyncio.wait({stop, holding, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return "the work ended"
        return f"the lease is lost: {holding.result()}" if holding.done() else "it was told to stop"
    finally:
        await ended(working)
        await ended(holding)
