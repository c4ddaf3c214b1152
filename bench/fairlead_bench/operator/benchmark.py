"""The operator before an API server of its own: alone, a crowd created, a crowd changed, rest,
deleted children, a restart.

One process under test, as the kernel sees it; and what the API server says was asked of it.
"""

import asyncio
import os
import random
import re
import ssl
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import yaml

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import NotFound
from fairlead.kube.resources import (
    DEPLOYMENTS,
    MODEL_DEPLOYMENTS,
    Manifest,
    ObjectSelection,
    Resource,
    metadata_of,
    name_of,
)
from fairlead.kube.transport.credentials import ClusterCredentials
from fairlead.runtime.clock import SystemClock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_bench.results import ResultRow, load_goals, parse_options, write_results
from fairlead_testing.kube.api_server import ApiServer, running_api_server
from fairlead_testing.kube.operator_harness import model_manifest
from fairlead_testing.kube.operator_process import OperatorProcess, start_operator
from fairlead_testing.processes import cpu_seconds, memory_bytes
from fairlead_testing.waiting import wait_until

CHILDREN = (
    "deployments",
    "services",
    "serviceaccounts",
    "poddisruptionbudgets",
    "controllerrevisions",
    "networkpolicies",
)
_WRITES = ("APPLY", "PATCH", "POST", "PUT", "DELETE")
_LINE = re.compile(r"^apiserver_request_total\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
RequestCounts = Counter[tuple[str, str, str]]
"""Requests by verb, resource and subresource."""

ROOT = Path(__file__).parents[3]


def api_requests(server: ApiServer) -> RequestCounts:
    """Returns the requests that the API server has answered so far."""
    access = server.config()
    context = ClusterCredentials(access, SystemClock(), 0.0).tls_context()
    assert isinstance(context, ssl.SSLContext)
    with urllib.request.urlopen(f"{access.server}/metrics", context=context, timeout=60.0) as answer:
        text = answer.read().decode()
    found: RequestCounts = Counter()
    for labels, value in _LINE.findall(text):
        named = dict(_LABEL.findall(labels))
        found[named["verb"], named["resource"], named["subresource"]] += int(float(value))
    return found


def writes(requests: RequestCounts) -> int:
    """Returns the number of the operator's writes: to children, and to models except those of the
    benchmark, which are applied without a subresource."""
    return sum(
        count
        for (verb, resource, subresource), count in requests.items()
        if verb in _WRITES
        and (resource in CHILDREN or (resource == "modeldeployments" and (subresource or verb != "APPLY")))
    )


def reads(requests: RequestCounts) -> int:
    """Returns the reads of single objects."""
    return sum(
        count
        for (verb, resource, _), count in requests.items()
        if verb == "GET" and resource in (*CHILDREN, "modeldeployments")
    )


NAMESPACE, CONCURRENT_MODELS, SINGLE_MODELS, DELETED_CHILDREN = "bench", 50, 30, 20
TIMEOUT_SECONDS, QUIET_SECONDS, AGAIN_SECONDS = 900.0, 2.0, 30.0


@dataclass(frozen=True, slots=True)
class BatchFigures:
    """Figures of all models together."""

    models: int
    done: int
    seconds: float
    cpu_seconds: float
    writes: int
    reads: int

    @property
    def cpu_ms(self) -> float:
        return 1e3 * self.cpu_seconds / self.models

    @property
    def writes_each(self) -> float:
        return self.writes / self.models


@dataclass(frozen=True, slots=True)
class OperatorFigures:
    """Figures of the operator."""

    alone_seconds: list[float] = field(default_factory=list)
    created: BatchFigures | None = None
    changed: BatchFigures | None = None
    rest_writes: int | None = None
    rest_cpu_seconds: float | None = None
    made_again: int | None = None
    restart_writes: int | None = None
    memory_idle: float | None = None
    memory: float | None = None

    @property
    def alone(self) -> float | None:
        return statistics.median(self.alone_seconds) if self.alone_seconds else None

    def plain(self) -> dict[str, Any]:
        return {**asdict(self), "alone_seconds": [round(second, 4) for second in self.alone_seconds]}


class ObjectWatch:
    """Follows all objects of one kind by a watch: their last states, by name."""

    def __init__(self, api: KubeApi, kind: Resource) -> None:
        self.items: dict[str, Manifest] = {}
        self._api, self._kind = api, kind

    async def follow(self) -> None:
        """Follows the watch until cancelled."""
        version = ""

        async def listed() -> bool:
            """Lists, with retries: a new kind is known before it is served."""
            nonlocal version
            try:
                found = await self._api.list(self._kind, NAMESPACE)
            except NotFound:
                return False
            self.items, version = {name_of(one): one for one in found.items}, found.resource_version
            return True

        await wait_until(listed)
        while True:
            async for change in self._api.watch(ObjectSelection(self._kind, NAMESPACE), resource_version=version):
                version = str(metadata_of(change.object).get("resourceVersion") or version)
                if change.type == "DELETED":
                    self.items.pop(name_of(change.object), None)
                elif change.type != "BOOKMARK":
                    self.items[name_of(change.object)] = change.object


class OperatorBenchmark:
    """One run. ``names`` are the models, in the order in which they are
    applied."""

    def __init__(self, server: ApiServer, api: KubeApi, begin: Callable[[], OperatorProcess], names: list[str]) -> None:
        self._server, self._api, self._begin, self._names = server, api, begin, names
        self._models, self._children = ObjectWatch(api, MODEL_DEPLOYMENTS), ObjectWatch(api, DEPLOYMENTS)

    async def run(self, rest_seconds: float) -> OperatorFigures:
        """Runs all phases."""
        eyes = [asyncio.ensure_future(eye.follow()) for eye in (self._models, self._children)]
        subject = self._begin()
        try:
            await self._alone("warm", 3)
            idle = memory_bytes(subject.process.pid) / 1e6
            alone = await self._alone("one", SINGLE_MODELS)
            created = await self._crowd(subject)
            changed = await self._crowd(subject, "--max-num-seqs=3")
            rest = await self._rest(subject, rest_seconds)
            memory, again = memory_bytes(subject.process.pid, "VmHWM") / 1e6, await self._lose()
        finally:
            await asyncio.to_thread(subject.stop)
        before = await self._counted()
        subject = self._begin()
        try:
            await self._api.apply(model("last"), "kubectl")
            await wait_until(lambda: self._has_status("last"), TIMEOUT_SECONDS)
            await self._quiet()
            restart = writes(await self._counted() - before)
            memory = max(memory, memory_bytes(subject.process.pid, "VmHWM") / 1e6)
        finally:
            await asyncio.to_thread(subject.stop)
            for eye in eyes:
                await cancel_and_wait(eye)
        own = round(created.writes_each)  # of the model that shows that it has looked
        return OperatorFigures(alone, created, changed, *rest, again, max(0, restart - own), idle, memory)

    async def _alone(self, prefix: str, count: int) -> list[float]:
        found = []
        for number in range(count):
            name = f"{prefix}{number:03d}"
            began = time.monotonic()
            await self._api.apply(model(name), "kubectl")
            await self._until_there(f"{name}-main")
            found.append(time.monotonic() - began)
            await wait_until(lambda name=name: self._has_status(name), TIMEOUT_SECONDS)  # type: ignore[misc]
        return found

    async def _until_there(self, child: str) -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while child not in self._children.items:  # noqa: ASYNC110  # looked at more often than the clock's error matters
                await asyncio.sleep(0.0005)

    async def _crowd(self, subject: OperatorProcess, *args: str) -> BatchFigures:
        """Applies all models, and waits until each has a status and writes have ended."""
        before, cpu, began = await self._counted(), cpu_seconds(subject.process.pid), time.monotonic()
        room = asyncio.Semaphore(CONCURRENT_MODELS)

        async def put(name: str) -> None:
            async with room:
                made = await self._api.apply(model(name, *args), "kubectl")
                wanted[name] = made["metadata"]["generation"]

        wanted: dict[str, int] = {}
        await asyncio.gather(*(put(name) for name in self._names))
        await wait_until(lambda: all(self._has_status(name, of) for name, of in wanted.items()), TIMEOUT_SECONDS)
        seconds = time.monotonic() - began
        await self._quiet()
        spent, requests = cpu_seconds(subject.process.pid) - cpu, await self._counted() - before
        done = sum(f"{name}-main" in self._children.items for name in self._names)
        return BatchFigures(len(self._names), done, seconds, spent, writes(requests), reads(requests))

    async def _rest(self, subject: OperatorProcess, seconds: float) -> tuple[int, float]:
        before, cpu = await self._counted(), cpu_seconds(subject.process.pid)
        await asyncio.sleep(seconds)
        return writes(await self._counted() - before), cpu_seconds(subject.process.pid) - cpu

    async def _lose(self) -> int:
        """Deletes some Deployments; returns the number that exist again after a while."""
        lost = {
            f"{name}-main": model_uid(self._children.items[f"{name}-main"]) for name in self._names[:DELETED_CHILDREN]
        }
        for name in lost:
            await self._api.delete(DEPLOYMENTS, NAMESPACE, name)

        def again() -> int:
            return sum(
                model_uid(self._children.items.get(name) or {}) not in ("", before) for name, before in lost.items()
            )

        try:
            await wait_until(lambda: again() == len(lost), AGAIN_SECONDS)
        except AssertionError:
            pass  # that is the finding
        return again()

    def _has_status(self, name: str, generation: int = 1) -> bool:
        status = (self._models.items.get(name) or {}).get("status") or {}
        return int(status.get("observedGeneration") or 0) >= generation

    async def _counted(self) -> RequestCounts:
        return await asyncio.to_thread(api_requests, self._server)

    async def _quiet(self) -> None:
        """Waits until the API server has counted no write for a while."""
        while True:
            before = writes(await self._counted())
            await asyncio.sleep(QUIET_SECONDS)
            if writes(await self._counted()) == before:
                return


def model(name: str, *args: str) -> Manifest:
    engine = {"type": "Sim", "args": list(args)}
    return model_manifest(name, NAMESPACE, engine=engine, pools=[{"acceleratorClassName": "cpu"}])


def model_uid(manifest: Manifest) -> str:
    """Returns the uid; empty without a model."""
    return str(metadata_of(manifest).get("uid", ""))


async def measure(server: ApiServer, names: list[str], rest_seconds: float, log: Path) -> OperatorFigures:
    """Returns the figures of the operator."""
    async with KubeApi(server.config(), SystemClock(), random.random) as api:
        for path in sorted((ROOT / "crds").glob("*.yaml")):
            await api.apply(yaml.safe_load(path.read_text()), "bench")
        await api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}, "bench")
        served: Callable[[], Awaitable[bool]] = lambda: api.has_resource(MODEL_DEPLOYMENTS)  # noqa: E731
        await wait_until(served)
        return await OperatorBenchmark(
            server, api, lambda: start_operator(server.kubeconfig, log, lease="60s"), names
        ).run(rest_seconds)


BASE_MS, WRITE_MS = 1.0, 0.6
_BUDGET = f"{BASE_MS:g} ms + {WRITE_MS:g} ms × writes"


def rows(ours: OperatorFigures) -> Iterator[ResultRow]:
    """Yields the rows of measured figures; a goal without its figure does not hold."""
    wanted = load_goals("operator")

    row = wanted.value
    yield row("models of 1,000 with their objects and a status", "", _batch_rows(ours.created, lambda one: one.done))
    yield row("create → children, alone: p50", "s", ours.alone)
    for metric, crowd in (("created", ours.created), ("changed", ours.changed)):
        name = f"CPU per model {metric} ÷ ({_BUDGET})"
        budget = _batch_rows(crowd, lambda one: BASE_MS + WRITE_MS * one.writes_each)
        yield wanted.ratio(name, "ms", _batch_rows(crowd, lambda one: one.cpu_ms), _BUDGET, budget)
    yield row("writes in a minute of steady state", "", ours.rest_writes)
    yield row("writes of a restarted operator", "", ours.restart_writes)
    yield row("memory with 1,000 models, at most", "MB", ours.memory)


def _batch_rows(crowd: BatchFigures | None, figure: Callable[[BatchFigures], float]) -> float | None:
    return None if crowd is None else figure(crowd)


def main(arguments: Sequence[str]) -> int:
    """Returns 0 when every goal holds."""
    options = parse_options(
        "operator",
        __doc__,
        arguments,
        models=1000,
        rest=(60.0, "seconds of steady state"),
        seed=(7, "of the order in which models are applied"),
        out=ROOT / "bench" / "results" / "operator.json",
    )
    names = [f"m{number:04d}" for number in range(options.models)]
    Random(options.seed).shuffle(names)
    before = os.getloadavg()[0]  # of others: above 0.5, processor times are too high
    with tempfile.TemporaryDirectory() as folder, running_api_server(Path(folder) / "run") as server:
        log = Path(folder) / "operator.log"
        try:
            found = asyncio.run(measure(server, names, options.rest, log))
        except BaseException:
            print(log.read_text()[-4_000:], file=sys.stderr)
            raise
    more = {"load_average_before": round(before, 2), "figures": found.plain()}
    return write_results("operator", rows(found), seed=options.seed, file=options.out, more=more)
