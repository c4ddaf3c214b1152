"""Setup of every trial: models, a supervisor like a Deployment, and timeouts."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.errors import FairleadError
from fairlead.kube.client import KubeApi
from fairlead.kube.resources import MODEL_DEPLOYMENTS, Manifest
from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.operators import OperatorProcesses, apply_crds_and_namespaces, run_deployments
from fairlead_testing.waiting import wait_until

TIMEOUT_SECONDS = 300.0


@dataclass(slots=True)
class TrialVerdict:
    """Findings of a trial. ``broken``: the claims that failed; ``figures``: for the report."""

    figures: dict[str, Any] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def check(self, says: str, holds: bool, found: object = "") -> None:
        """Records one claim."""
        if not holds:
            self.broken.append(f"{says}: {found}")


@dataclass(slots=True)
class TrialCluster:
    """A namespace on an API server, with the operators that work there."""

    server: ApiServer
    api: KubeApi
    namespace: str
    operators: OperatorProcesses

    async def model(self, name: str, *args: str, pools: tuple[str, ...] = ("main",), **spec: Any) -> Manifest:
        """Applies a model, as users do."""
        return await self.api.apply(
            {
                "apiVersion": MODEL_DEPLOYMENTS.api_version,
                "kind": "ModelDeployment",
                "metadata": {"name": name, "namespace": self.namespace},
                "spec": {
                    "model": {"uri": "hf://Qwen/Qwen3-8B"},
                    "engine": {"type": "Sim", "args": list(args)},
                    "pools": [{"name": pool, "acceleratorClassName": "cpu"} for pool in pools],
                    **spec,
                },
            },
            "kubectl",
        )

    async def settled(self) -> bool:
        """Controllers have done their part, and every model is Ready at its generation."""
        await run_deployments(self.api, self.namespace)
        models = (await self.api.list(MODEL_DEPLOYMENTS, self.namespace)).items
        return all(_ready(one) for one in models)

    async def until_settled(self) -> None:
        """Raises TimeoutError with the operators' logs."""
        await self.until(self.settled, "every model is Ready")

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        """Waits for a condition; errors of an API server that is away are ignored."""

        async def holds() -> bool:
            try:
                return await condition()
            except FairleadError:
                return False

        try:
            await wait_until(holds, TIMEOUT_SECONDS)
        except AssertionError:
            raise TimeoutError(f"{what}: not within {TIMEOUT_SECONDS:g} s\n{self.operators.logs()}") from None

    async def until_rest(self, *among: int) -> None:
        """Waits until all leading operators have reconciled everything and no event is pending."""

        def resting() -> bool:
            leading = [one for one in among if self.operators.is_alive(one) and self.operators.is_leading(one)]
            return bool(leading) and all(self.operators.is_idle(one) for one in leading)

        async def rests() -> bool:
            for _ in range(3):
                if not await asyncio.to_thread(resting):
                    return False
                await asyncio.sleep(0.3)
            return True

        await self.until(rests, "the leader rests")

    async def leader(self, *among: int) -> int:
        """Returns the leading operator as soon as there is one."""
        found = -1

        async def leads() -> bool:
            nonlocal found
            living = [which for which in among if self.operators.is_alive(which)]
            leading = [which for which in living if await asyncio.to_thread(self.operators.is_leading, which)]
            found = leading[0] if leading else -1
            return bool(leading)

        await self.until(leads, "an operator leads")
        return found


def _ready(model: Manifest) -> bool:
    status = model.get("status") or {}
    conditions = {one["type"]: one["status"] for one in status.get("conditions") or []}
    return conditions == {"Ready": "True"} and status.get("observedGeneration") == model["metadata"]["generation"]


@asynccontextmanager
async def open_cluster(
    server: ApiServer, namespace: str, logs: Path, kubeconfig: Path | None = None, **settings: str
) -> AsyncIterator[TrialCluster]:
    """Yields a new namespace; its operators end with the block."""
    limits = Limits(kube_attempts=2)
    async with KubeApi(server.config(), SystemClock(), lambda: 0.5, limits=limits) as api:
        await apply_crds_and_namespaces(api, namespace)
        operators = OperatorProcesses(kubeconfig or server.kubeconfig, namespace, logs, settings)
        try:
            yield TrialCluster(server, api, namespace, operators)
        finally:
            await asyncio.to_thread(operators.close)


@asynccontextmanager
async def keep_running(one: TrialCluster) -> AsyncIterator[list[int]]:
    """Restarts an operator whenever it ends, as its Deployment would."""
    started = [one.operators.start()]

    async def watch() -> None:
        while True:
            await asyncio.sleep(0.2)
            if not one.operators.is_alive(started[-1]):
                started.append(one.operators.start())

    task = asyncio.ensure_future(watch())
    try:
        yield started
    finally:
        await cancel_and_wait(task)
