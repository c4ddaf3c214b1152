"""Two operators that hand the lease over, by every way to end or stall, and two leaders at once.

The claim: no write differs from what the models ask for. Every change is taken from a watch, and
versions and managers of all objects are the same at the end.
"""

import asyncio
import signal
import time
from pathlib import Path

from fairlead.kube.resources import DEPLOYMENTS
from fairlead_bench.operator.trials.cluster_setup import TrialCluster, TrialVerdict, open_cluster
from fairlead_bench.operator.trials.recorder import owners, record_changes
from fairlead_testing.kube.api_server import ApiServer

MODELS = 5
LOOK_SECONDS = 8.0
"""Seconds for which a leader works undisturbed: its first list of all models, and some time after
it."""
HANDOVERS = (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP)


async def run_handovers(server: ApiServer, seconds: float, logs: Path) -> TrialVerdict:
    """Ends the leader of two operators by each signal in turn, at least once each and for
    ``seconds``."""
    found = TrialVerdict()
    async with open_cluster(server, "handover", logs, FAIRLEAD_RESYNC="5s", FAIRLEAD_LEASE="3s") as here:
        pair = [here.operators.start(), here.operators.start()]
        for number in range(MODELS):
            await here.model(f"m{number}")
        await here.leader(*pair)
        await here.until_settled()
        await here.until_rest(*pair)
        before = await owners(here.api, here.namespace)
        async with record_changes(here.api, here.namespace) as tape:
            end, ways = time.monotonic() + seconds, 0
            while ways < len(HANDOVERS) or time.monotonic() < end:
                pair = await _hand_over(here, pair, HANDOVERS[ways % len(HANDOVERS)], LOOK_SECONDS if seconds else 1.0)
                ways += 1
            await here.until_rest(*pair)
        after = await owners(here.api, here.namespace)
        found.check("no write but the models' own", not tape.lines, tape.lines[:10])
        found.check("versions and managers are the same", after == before)
        found.figures = {"seconds": round(seconds), "handovers": ways, "writes": len(tape.lines)}
    return found


async def _hand_over(here: TrialCluster, pair: list[int], way: signal.Signals, seconds: float) -> list[int]:
    """Ends the leader by a signal, lets the other take over and work, and starts a new one behind
    it."""
    leading = await here.leader(*pair)
    (other,) = (one for one in pair if one != leading)
    here.operators.send_signal(leading, way)
    await here.leader(other)
    if way is signal.SIGSTOP:  # and wakes up in the belief that it leads

        async def ended() -> bool:
            return not here.operators.is_alive(leading)

        here.operators.send_signal(leading, signal.SIGCONT)
        await here.until(ended, "who was stopped learns that it has lost the lease")
    await asyncio.sleep(seconds)
    return [other, here.operators.start()]


async def run_two_leaders(server: ApiServer, seconds: float, logs: Path) -> TrialVerdict:
    """Runs two leaders that do not know of each other for ``seconds``.

    Models change meanwhile and a scaler writes.
    """
    found = TrialVerdict()
    async with open_cluster(server, "both", logs, FAIRLEAD_RESYNC="5s") as here:
        pair = [here.operators.start(lease_namespace=name) for name in ("both", "default")]
        for one in pair:
            await here.leader(one)
        for number in range(MODELS):
            await here.model(f"m{number}")
        await here.until_settled()
        scale = {"spec": {"replicas": 3}}
        await here.api.patch_merge(DEPLOYMENTS, here.namespace, "m0-main", scale, "hpa", subresource="scale")
        for number in range(2):
            await here.model(f"m{number}", "--max-num-seqs=3")
        await here.until_settled()
        await here.until_rest(*pair)
        before = await owners(here.api, here.namespace)
        async with record_changes(here.api, here.namespace) as tape:
            await asyncio.sleep(seconds)
        after = await owners(here.api, here.namespace)
        scaled = await here.api.get(DEPLOYMENTS, here.namespace, "m0-main")
        found.check("no write while nothing changes", not tape.lines, tape.lines[:10])
        found.check("versions and managers are the same", after == before)
        found.check("the scaler's number stands", scaled["spec"]["replicas"] == 3, scaled["spec"]["replicas"])
        found.check("both led all the time", all(here.operators.is_leading(one) for one in pair))
        found.figures = {"seconds": round(seconds), "writes": len(tape.lines)}
    return found
