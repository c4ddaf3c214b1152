"""SIGKILL to the whole process around each of its writes before a real API server; the next one
comes to the same end."""

import asyncio
import signal
from pathlib import Path

from fairlead.kube.resources import MODEL_DEPLOYMENTS
from fairlead_bench.operator.trials.cluster_setup import TrialCluster, TrialVerdict, open_cluster
from fairlead_bench.operator.trials.recorder import state
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.operators import OPERATOR_MODULE

SELF_KILL = ("-m", "fairlead_bench.operator.self_kill")
Step = str
STEPS: tuple[Step, ...] = ("create", "change", "rename")


async def run_crash_points(server: ApiServer, stages: tuple[Step, ...], most: int, logs: Path) -> TrialVerdict:
    """Kills the operator before each of its writes in each stage, and after the last.

    ``most`` bounds the kills.
    """
    found = TrialVerdict()
    count = 0
    for stage in stages:
        wanted, _ = await _run_steps(server, f"kill-{stage}", stage, None, logs)
        number = 0
        while number < most:
            number += 1
            when = ("before", number)
            ended, killed = await _run_steps(server, f"kill-{stage}-{number}", stage, when, logs)
            if not killed:  # it has no such write any more: the last one was the one before
                break
            count += 1
            found.check(f"{stage}: killed before write {number} it comes to the same end", ended == wanted)
        after = ("after", number - 1 if number > 1 else 1)
        ended, killed = await _run_steps(server, f"kill-{stage}-last", stage, after, logs)
        count += killed
        found.check(f"{stage}: killed after its last write it comes to the same end", ended == wanted)
    found.figures = {"stages": len(stages), "kills": count}
    return found


async def _run_steps(
    server: ApiServer, namespace: str, stage: Step, kill: tuple[str, int] | None, logs: Path
) -> tuple[object, bool]:
    """Runs the stages up to ``stage``, in which the operator is killed.

    Returns the final state, and whether the kill happened.
    """
    async with open_cluster(server, namespace, logs, FAIRLEAD_LEASE="3s") as here:
        before = STEPS[: STEPS.index(stage)]
        if before:
            which = here.operators.start()
            for one in before:
                await _step(here, one)
                await here.until_settled()
            here.operators.stop(which)
        await _step(here, stage)
        command = OPERATOR_MODULE if kill is None else (*SELF_KILL, kill[0], str(kill[1]))
        which = here.operators.start(command=command)
        killed = False

        async def over() -> bool:
            if not here.operators.is_alive(which):
                return True
            return await here.settled() and await asyncio.to_thread(here.operators.is_idle, which)

        for _ in range(3):  # the last writes answer to news that comes after the first rest
            await here.until(over, "the operator has been killed, or is done")
            await asyncio.sleep(0.3)
        if not here.operators.is_alive(which):
            died = here.operators.running[which].process.returncode
            assert died == -signal.SIGKILL, f"it was to be killed, and ended with {died}:\n{here.operators.logs()}"
            killed = True
            which = here.operators.start()
        await here.until_settled()
        await here.until_rest(which)
        ended = await state(here.api, namespace)
        await here.api.delete(MODEL_DEPLOYMENTS, namespace, "qwen")
        return ended, killed


async def _step(here: TrialCluster, step: Step) -> None:
    if step == "create":
        await here.model("qwen")
    elif step == "change":
        await here.model("qwen", "--max-num-seqs=3")
    else:
        await here.model("qwen", "--max-num-seqs=3", pools=("other",))
