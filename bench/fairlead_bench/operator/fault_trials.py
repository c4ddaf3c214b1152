"""The API server is away, or silent: what is there stays, what was asked meanwhile comes about,
nothing is deleted on doubt.

SIGKILL to the whole process around each of its writes before a real API server; the next one
comes to the same end.

Two operators that hand the lease over, by every way to end or stall, and two leaders at once.

The claim: no write differs from what the models ask for. Every change is taken from a watch, and
versions and managers of all objects are the same at the end.

Setup of every trial: models, a supervisor like a Deployment, and timeouts.

Records of a namespace's objects: changes as a watch reports them, and the state without fields
that differ by nature.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from fairlead.errors import FairleadError
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Unreachable
from fairlead.kube.resources import (
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    MODEL_DEPLOYMENTS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Manifest,
    ObjectSelection,
    Resource,
    metadata_of,
    name_of,
    uid_of,
)
from fairlead.kube.watch_events import WatchEventType
from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_testing.http.links import cut_link
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.operator_harness import model_manifest
from fairlead_testing.kube.operator_process import (
    OPERATOR_MODULE,
    OperatorProcesses,
    apply_crds_and_namespaces,
    run_deployments,
)
from fairlead_testing.waiting import wait_until

TIMEOUT_SECONDS = 300.0

CHILDREN = (DEPLOYMENTS, SERVICES, SERVICE_ACCOUNTS, DISRUPTION_BUDGETS, CONTROLLER_REVISIONS)
KINDS = (*CHILDREN, MODEL_DEPLOYMENTS)
OWN_LABEL = "app.kubernetes.io/managed-by=fairlead"

MODELS = 6

SELF_KILL = ("-m", "fairlead_bench.operator.self_kill")
Step = str
STEPS: tuple[Step, ...] = ("create", "change", "rename")

HANDOVER_MODELS = 5
LOOK_SECONDS = 8.0
"""Seconds for which a leader works undisturbed: its first list of all models, and some time after
it."""
HANDOVERS = (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP)


@dataclass(slots=True)
class TrialVerdict:
    """Findings of a trial. ``broken``: the claims that failed; ``figures``: for the report."""

    figures: dict[str, Any] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def check(self, says: str, holds: bool, found: object = "") -> None:
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
        engine = {"type": "Sim", "args": list(args)}
        named = [{"name": pool, "acceleratorClassName": "cpu"} for pool in pools]
        manifest = model_manifest(name, self.namespace, **{"engine": engine, "pools": named, **spec})
        return await self.api.apply(manifest, "kubectl")

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
    conditions = {condition["type"]: condition["status"] for condition in status.get("conditions") or []}
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


class WatchRecorder:
    """Recorder of changes. ``lines`` are those since it was last cleared: ``MODIFIED Deployment
    qwen-main``."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def record(self, api: KubeApi, kind: Resource, namespace: str) -> None:
        """Records changes from now on until cancelled."""
        version = (await api.list(kind, namespace)).resource_version
        while True:
            try:
                async for change in api.watch(ObjectSelection(kind, namespace), resource_version=version):
                    version = str(metadata_of(change.object).get("resourceVersion") or version)
                    if change.type is not WatchEventType.BOOKMARK:
                        self.lines.append(f"{change.type} {kind.kind} {name_of(change.object)}")
            except Unreachable:
                await asyncio.sleep(0.2)


@asynccontextmanager
async def record_changes(api: KubeApi, namespace: str) -> AsyncIterator[WatchRecorder]:
    """Records all writes in ``namespace`` during the block."""
    tape = WatchRecorder()
    tasks = [asyncio.ensure_future(tape.record(api, kind, namespace)) for kind in KINDS]
    try:
        yield tape
    finally:
        for task in tasks:
            await cancel_and_wait(task)


async def own_objects(api: KubeApi, namespace: str) -> list[Manifest]:
    return [one for kind in CHILDREN for one in (await api.list(kind, namespace, OWN_LABEL)).items]


async def identities(api: KubeApi, namespace: str) -> dict[str, str]:
    """Returns the uid of every child, by kind and name."""
    return {
        f"{manifest['kind']} {name_of(manifest)}": uid_of(manifest) for manifest in await own_objects(api, namespace)
    }


async def owners(api: KubeApi, namespace: str) -> dict[str, Any]:
    """Returns version and managers of each of the operator's objects and of the models."""
    found = [*await own_objects(api, namespace), *(await api.list(MODEL_DEPLOYMENTS, namespace)).items]
    return {
        f"{manifest['kind']} {name_of(manifest)}": (
            metadata_of(manifest)["resourceVersion"],
            [
                {key: value for key, value in entry.items() if key != "time"}
                for entry in metadata_of(manifest)["managedFields"]
            ],
        )
        for manifest in found
    }


async def state(api: KubeApi, namespace: str) -> list[Any]:
    """Returns the state of all objects, equal for two namespaces with equal histories."""
    found: list[tuple[Any, ...]] = []
    for one in await own_objects(api, namespace):
        labels, notes = metadata_of(one).get("labels"), dict(metadata_of(one).get("annotations") or {})
        notes.pop("fairlead.io/applied", None)  # of the whole manifest, with the owner's uid
        spec = {key: value for key, value in (one.get("spec") or {}).items() if not key.startswith("clusterIP")}
        found.append((one["kind"], name_of(one), labels, notes, spec, one.get("data"), one.get("revision")))
    for one in (await api.list(MODEL_DEPLOYMENTS, namespace)).items:
        status = one.get("status") or {}
        conditions = [(each["type"], each["status"], each["reason"]) for each in status.get("conditions") or []]
        found.append((one["kind"], name_of(one), status.get("ready"), sorted(conditions)))
    return sorted(found, key=lambda one: one[:2])


async def run_api_outage(server: ApiServer, seconds: float, logs: Path) -> TrialVerdict:
    """Kills the API server for ``seconds``.

    The operator ends without its lease and is started again.
    """
    found = TrialVerdict()
    async with open_cluster(server, "away", logs) as here, keep_running(here) as started:
        for number in range(MODELS):
            await here.model(f"m{number}")
        await here.until_settled()
        before = await identities(here.api, here.namespace)
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(server.start)
        began = time.monotonic()
        for number in range(2):
            await here.model(f"m{number}", "--max-num-seqs=3")
        await here.api.delete(SERVICES, here.namespace, "m2-main")
        await here.api.delete(MODEL_DEPLOYMENTS, here.namespace, "m3")

        async def back() -> bool:
            there = await identities(here.api, here.namespace)
            return "Service m2-main" in there and len(_revisions(there)) == len(_revisions(before)) + 2

        await here.until(back, "what was asked and what was lost is there")
        await here.until_settled()
        after = await identities(here.api, here.namespace)
        lost = {name for name, uid in before.items() if after.get(name) != uid}
        found.check("nothing but the deleted Service was created again or deleted", lost == {"Service m2-main"}, lost)
        found.check("the operator was started again at most a few times", len(started) <= 2 + seconds / 5, len(started))
        found.figures = {
            "seconds_away": seconds,
            "seconds_to_converge": round(time.monotonic() - began, 1),
            "operator_starts": len(started),
        }
    return found


def _revisions(there: dict[str, str]) -> set[str]:
    return {name for name in there if name.startswith("ControllerRevision")}


async def run_silent_api(server: ApiServer, logs: Path, *, children: bool) -> TrialVerdict:
    """Silences the connections of all watches; new ones work.

    Models that come or change are found by the regular list. With ``children``, a deleted one
    is found once the silence is noticed (a minute and a half).
    """
    found = TrialVerdict()
    where = urlsplit(server.config().server)
    async with cut_link(where.hostname or "", where.port or 443) as gap:
        kubeconfig = _proxy(server, gap.port)
        settings = {"resync": "5s", "lease": "60s"}
        async with open_cluster(server, "silent", logs, kubeconfig, **settings) as here:
            which = here.operators.start()
            await here.leader(which)
            for number in range(MODELS):
                await here.model(f"m{number}", pools=("main", "other"))
            await here.until_settled()
            before = await identities(here.api, here.namespace)
            await asyncio.sleep(20.0)  # connections that are kept for the next request are closed after 15 s
            frozen = gap.freeze(spare=1)
            began = time.monotonic()
            async with record_changes(here.api, here.namespace) as tape:
                await here.model("new")
                await here.model("m0", "--max-num-seqs=3", pools=("main", "other"))

                async def known() -> bool:
                    there = await identities(here.api, here.namespace)
                    return "Deployment new-main" in there and len(_revisions(there)) == len(_revisions(before)) + 2

                await here.until(known, "what the watch of models missed is done")
                missed = time.monotonic() - began
                if children:
                    await here.api.delete(DEPLOYMENTS, here.namespace, "m1-main")

                    async def remade() -> bool:
                        return "Deployment m1-main" in await identities(here.api, here.namespace)

                    await here.until(remade, "a child that was deleted unseen is made again")
                    await here.until_settled()
            after = await identities(here.api, here.namespace)
            lost = {name for name, uid in before.items() if after.get(name) != uid}
            found.check("nothing else was deleted", lost == ({"Deployment m1-main"} if children else set()), lost)
            found.check("the same process did all this", here.operators.is_alive(which))
            deleted = [line for line in tape.lines if line.startswith("DELETED")]
            found.figures = {
                "connections_silenced": frozen,
                "seconds_to_missed_models": round(missed, 1),
                "seconds_in_all": round(time.monotonic() - began, 1),
                "deletions": len(deleted),
            }
    return found


def _proxy(server: ApiServer, port: int) -> Path:
    """Writes the administrator's kubeconfig for a proxy into the same folder, since it may name
    files."""
    content = yaml.safe_load(server.kubeconfig.read_text())
    for cluster in content["clusters"]:
        parts = urlsplit(cluster["cluster"]["server"])
        cluster["cluster"]["server"] = f"{parts.scheme}://127.0.0.1:{port}"
    file = server.run / "through.kubeconfig"
    file.write_text(yaml.safe_dump(content))
    file.chmod(0o600)
    return file


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
    async with open_cluster(server, namespace, logs, lease="3s") as here:
        before = STEPS[: STEPS.index(stage)]
        if before:
            which = here.operators.start()
            for one in before:
                await _step(here, one)
                await here.until_settled()
            here.operators.running[which].stop()
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


async def run_handovers(server: ApiServer, seconds: float, logs: Path) -> TrialVerdict:
    """Ends the leader of two operators by each signal in turn, at least once each and for
    ``seconds``."""
    found = TrialVerdict()
    async with open_cluster(server, "handover", logs, resync="5s", lease="3s") as here:
        pair = [here.operators.start(), here.operators.start()]
        for number in range(HANDOVER_MODELS):
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
    here.operators.running[leading].process.send_signal(way)
    await here.leader(other)
    if way is signal.SIGSTOP:  # and wakes up in the belief that it leads

        async def ended() -> bool:
            return not here.operators.is_alive(leading)

        here.operators.running[leading].process.send_signal(signal.SIGCONT)
        await here.until(ended, "who was stopped learns that it has lost the lease")
    await asyncio.sleep(seconds)
    return [other, here.operators.start()]


async def run_two_leaders(server: ApiServer, seconds: float, logs: Path) -> TrialVerdict:
    """Runs two leaders that do not know of each other for ``seconds``.

    Models change meanwhile and a scaler writes.
    """
    found = TrialVerdict()
    async with open_cluster(server, "both", logs, resync="5s") as here:
        pair = [here.operators.start(lease_namespace=name) for name in ("both", "default")]
        for one in pair:
            await here.leader(one)
        for number in range(HANDOVER_MODELS):
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
