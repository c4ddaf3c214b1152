"""A flooding tenant and steady ones on processes, compared with one ideal queue.

    python -m fairlead_bench flood [--seconds 80] [--parts flood,weights,overload]

- `flood`: one tenant keeps 100 requests in flight, two others send less than their shares.
- `weights`: two floods with weights 1 and 3.
- `overload`: goodput where more is offered than the engines can do.

Each with one gateway and with three, and with engines bound by sequences and by memory. The first
two compare the processes with the simulator, which plans no memory, at engines bound by sequences.

A flooding tenant and steady ones, on processes: gateways with one Redis, engines, and a client.

Two steady tenants send less than their shares, by Poisson. A flood keeps 100 requests in flight.
The engines are simulated ones over HTTP that compute eight requests at a time: by their sequences,
or by their memory. They are slow, so that a machine of two cores is less than half busy.

In each run, the same requests go through one ideal queue (`ideal_queue`). It takes the decode
times that this run measured, and the time to a first token that one request alone takes.

The flood of `flood_processes` in the simulator: the same engines, tenants and arrivals.

Requests of steady tenants arrive when those of the processes did. Floods are closed loops, as
there. A message of an engine takes a millisecond here, and nothing else takes time.

One ideal queue before all sequences of the engines: what fairness costs at least.

A sequence that ends takes the next request of the caller that was served least for its weight, at
once. A request that has begun is never interrupted. The ideal knows what no gateway knows before:
how long each request takes.

Source: the counters of VTC (arXiv 2401.00588), at one dispatcher and with true lengths.
"""

import asyncio
import heapq
import json
import os
import random
import re
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count, cycle
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.file import write_fleet_file
from fairlead.fleet.model import SloTargets
from fairlead_bench.fairness.fair_cluster import FairCluster
from fairlead_bench.results import Goals, ResultRow, load_goals, parse_options, write_results
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.simulation import FleetOptions, FleetSimulation
from fairlead_sim.gateways.admission_gate import TenantClass
from fairlead_sim.gateways.gateway_cluster import ClusterOptions
from fairlead_sim.gateways.single_gateway import RoutingOptions
from fairlead_sim.workload.traces import TraceRequest
from fairlead_testing.engines.disaggregated import engine_processes
from fairlead_testing.gateway.gateway_process import gateway_process
from fairlead_testing.gateway.running_gateway import fleet_of, with_profile
from fairlead_testing.gateway.tenant_keys import tenant_document
from fairlead_testing.http.raw_client import get_request, post_request, send
from fairlead_testing.redis.valkey import running_valkey

PEPPER = "the pepper of this benchmark"

IN_FLIGHT = 100
STEADY_RATE = 1.5
PROMPT_WORDS = 150
PROMPT_TOKENS = 310
"""As the engines count such a prompt."""
OUTPUT_TOKENS = (24, 36, 48)
WARM_UP_SECONDS = 20.0
"""A flood that begins at once finds gateways that know neither lengths nor one another."""

_MEMORY_PER_REQUEST = 23 * 16
"""Tokens of a prompt and the longest answer, in whole blocks."""
BOUNDS = ("sequences", "memory")
_OFFERING = 4
_TOKEN = re.compile(rb'^data: .*"content": ?"(?!")')

_BLOCK_TOKENS = 16
_HOP_SECONDS = 0.001
"""From an engine to a gateway: what ends with a step is known after the next one has begun."""

PARTS = ("flood", "weights", "overload")
GATEWAYS = (1, 3)
LOADS = (0.5, 1.0, 2.0, 3.0)
"""Offered load, as a multiple of what the engines can do."""
_NAME = "flood"


@dataclass(frozen=True, slots=True)
class QueuedWork:
    """A request: when it comes, and how many seconds it takes a sequence."""

    arrival: float
    caller: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """A caller that has so many requests in flight at all times, until `end`.

    seconds: of its requests, over and over.
    """

    caller: str
    in_flight: int
    seconds: Sequence[float]
    end: float


@dataclass(slots=True)
class IdealRun:
    """Waits and service of all requests.

    waits: arrival and seconds until it began of each request, by caller.
    served: seconds of sequences by caller, of what ended before the end.
    """

    waits: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    served: dict[str, float] = field(default_factory=dict)


def ideal_run(
    sequences: int, arrivals: Sequence[QueuedWork], floods: Sequence[ClosedLoop], weights: Mapping[str, float]
) -> IdealRun:
    """Returns what one queue before so many sequences does with the requests."""
    run = IdealRun()
    order = count()
    counts = dict.fromkeys(weights, 0.0)
    waiting: dict[str, deque[QueuedWork]] = {}
    loops = {flood.caller: flood for flood in floods}
    used = dict.fromkeys(loops, 0)
    # Time, number, and what comes (a request) or ends (the request of a sequence).
    events: list[tuple[float, int, QueuedWork, bool]] = []
    free = sequences

    def again(flood: ClosedLoop, now: float) -> None:
        seconds = flood.seconds[used[flood.caller] % len(flood.seconds)]
        used[flood.caller] += 1
        if now < flood.end:
            heapq.heappush(events, (now, next(order), QueuedWork(now, flood.caller, seconds), False))

    for work in arrivals:
        heapq.heappush(events, (work.arrival, next(order), work, False))
    for flood in floods:
        for _ in range(flood.in_flight):
            again(flood, 0.0)
    while events:
        now, _, work, has_ended = heapq.heappop(events)
        if has_ended:
            free += 1
            run.served[work.caller] = run.served.get(work.caller, 0.0) + work.seconds
            if work.caller in loops:
                again(loops[work.caller], now)
        else:
            if work.caller not in waiting:  # no caller saves up what it did not ask for
                others = [counts[caller] for caller in waiting]
                counts[work.caller] = max([counts[work.caller], *([min(others)] if others else [])])
            waiting.setdefault(work.caller, deque()).append(work)
        while free and waiting:
            caller = min(waiting, key=lambda name: counts[name])
            begun = waiting[caller].popleft()
            if not waiting[caller]:
                del waiting[caller]
            free -= 1
            counts[caller] += begun.seconds / weights[caller]
            run.waits.setdefault(caller, []).append((begun.arrival, now - begun.arrival))
            heapq.heappush(events, (now + begun.seconds, next(order), begun, True))
    return run


FLOOD, STEADY = "flood", ("steady-1", "steady-2")
ENGINES, PER_ENGINE = 2, 8
_STEP_SECONDS, _PREFILL_TOKEN_SECONDS = 0.044, 1e-4


def engine_profile(bound: str) -> EngineProfile:
    """Returns the profile of engines that compute eight requests at a time."""
    profile = EngineProfile("flood", _PREFILL_TOKEN_SECONDS, step_seconds=_STEP_SECONDS, step_tokens=2_048)
    if bound == "sequences":
        return replace(profile, max_sequences=PER_ENGINE, kv_tokens=170 * _MEMORY_PER_REQUEST)
    return replace(profile, max_sequences=256, kv_tokens=int((PER_ENGINE + 0.5) * _MEMORY_PER_REQUEST))


@dataclass(slots=True)
class Answer:
    """One request: seconds since the run began."""

    tenant: str
    tokens: int
    sent_at: float
    first_at: float = 0.0
    done_at: float = 0.0
    status: int = 0


@dataclass(slots=True)
class FloodRun:
    """A run: what tenants got, and what an ideal queue would have given them.

    queued: requests in the queues of the engines, at each sample.
    busy: share of the machine that was busy.
    """

    answers: list[Answer]
    ideal: IdealRun
    alone_seconds: float
    seconds: float
    queued: list[float] = field(default_factory=list)
    busy: float = 0.0

    def first_tokens(self, tenants: Sequence[str]) -> list[float]:
        """Returns the seconds to the first token after the warm-up."""
        return [
            answer.first_at - answer.sent_at
            for answer in self.answers
            if answer.tenant in tenants and answer.status == 200 and WARM_UP_SECONDS <= answer.sent_at < self.seconds
        ]

    def ideal_first_tokens(self, tenants: Sequence[str]) -> list[float]:
        """Returns the same of the ideal queue."""
        return [
            wait + self.alone_seconds
            for tenant in tenants
            for arrival, wait in self.ideal.waits.get(tenant, ())
            if WARM_UP_SECONDS <= arrival < self.seconds
        ]

    def throughput(self) -> float:
        """Returns the tokens a second of complete answers after the warm-up."""
        return sum(self.served(tenant) for tenant in {answer.tenant for answer in self.answers}) / (
            self.seconds - WARM_UP_SECONDS
        )

    def ideal_throughput(self) -> float:
        """Returns the tokens a second if all sequences computed such answers all the time."""
        done = [answer for answer in self.answers if answer.status == 200 and answer.done_at]
        taken = sum(self.alone_seconds + one.done_at - one.first_at for one in done)
        return ENGINES * PER_ENGINE * sum(one.tokens for one in done) / taken

    def mean_queue(self) -> float:
        return sum(self.queued) / max(1, len(self.queued))

    def served(self, tenant: str) -> float:
        """Returns the tokens that a tenant got between warm-up and end."""
        found = [answer for answer in self.answers if answer.tenant == tenant and answer.status == 200]
        return sum(one.tokens for one in found if WARM_UP_SECONDS <= one.done_at < self.seconds)


@asynccontextmanager
async def _installation(
    profile: EngineProfile, gateways: int, weights: Mapping[str, float]
) -> AsyncIterator[tuple[list[str], list[str]]]:
    """Runs engines and gateways; yields the URLs of both."""
    os.environ["FAIRLEAD_KEY_PEPPER"] = PEPPER
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = stack.enter_context(running_valkey(folder))
        written = json.dumps({slot: getattr(profile, slot) for slot in profile.__slots__})
        options = ["--profile", written, "--num-gpu-blocks-override", str(profile.kv_tokens // 16)]
        options += ["--answer-length", "100000", "--block-tokens", "16", "--max-model-len", "2048"]
        engines = await stack.enter_async_context(engine_processes(ENGINES, *options))
        write_fleet_file(folder / "fleet.yaml", with_profile(fleet_of([engine.url for engine in engines]), profile))
        tenants = folder / "tenants.yaml"
        tenants.write_text("---\n".join(tenant_document(name, PEPPER, weight=one) for name, one in weights.items()))
        arguments = ("--tenants", str(tenants), "--redis", redis.url, "--workers", "1")
        running = [
            await stack.enter_async_context(gateway_process(folder / "fleet.yaml", *arguments)) for _ in range(gateways)
        ]
        yield [one.url for one in running], [engine.url for engine in engines]


class _Client:
    """Sends the requests of all tenants to the gateways in turn, over a connection each."""

    def __init__(self, urls: Sequence[str], seed: int) -> None:
        self._urls = [urlsplit(url) for url in urls]
        self._random = random.Random(seed)
        self._number = 0
        self.begun = time.monotonic()
        self.answers: list[Answer] = []

    def now(self) -> float:
        return time.monotonic() - self.begun

    async def send(self, tenant: str) -> Answer:
        """Streams one answer."""
        self._number += 1
        tokens, url = self._random.choice(OUTPUT_TOKENS), self._urls[self._number % len(self._urls)]
        text = f"{tenant} {self._number} " + "word " * PROMPT_WORDS
        body = {"model": "tiny", "stream": True, "max_tokens": tokens, "messages": [{"role": "user", "content": text}]}
        more = f"authorization: Bearer {tenant}\r\ncontent-type: application/json\r\n"
        answer = Answer(tenant, tokens, self.now())
        self.answers.append(answer)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        try:
            writer.write(post_request(body, more=more))
            answer.status = int((await reader.readline()).split()[1])
            while line := await reader.readline():
                if not answer.first_at and _TOKEN.search(line) is not None:
                    answer.first_at = self.now()
        finally:
            writer.close()
        answer.done_at = self.now()
        return answer

    async def steady(self, tenant: str, rate: float, seconds: float) -> None:
        """Sends by Poisson until the end, and waits for the answers."""
        random_, at = random.Random(f"{tenant} {rate}"), 0.0
        tasks = []
        while (at := at + random_.expovariate(rate)) < seconds:
            await asyncio.sleep(max(0.0, at - self.now()))
            tasks.append(asyncio.create_task(self.send(tenant)))
        await asyncio.gather(*tasks)

    async def flood(self, tenant: str, seconds: float) -> None:
        """Sends one request after the other until the end."""
        while self.now() < seconds:
            answer = await self.send(tenant)
            if answer.status != 200:
                await asyncio.sleep(0.2)


async def _sample_queues(engines: Sequence[str], client: _Client, seconds: float, found: list[float]) -> None:
    """Notes how many requests wait in the engines, twice a second."""
    while client.now() < seconds:
        waiting = 0.0
        for engine in engines:
            (page,) = await send(engine, get_request("/metrics"))
            lines = [line for line in page.body.splitlines() if line.startswith(b"vllm:num_requests_waiting{")]
            waiting += sum(float(line.split()[-1]) for line in lines)
        if client.now() >= WARM_UP_SECONDS:
            found.append(waiting)
        await asyncio.sleep(0.5)


async def flood_run(
    bound: str,
    gateways: int,
    seconds: float,
    seed: int,
    weights: Mapping[str, float],
    floods: Mapping[str, int],
) -> FloodRun:
    """Returns a run with the flood and the steady tenants, or with several floods alone.

    floods: how many requests each keeps in flight; other callers of `weights` are steady.
    """
    steady = [tenant for tenant in weights if tenant not in floods]
    async with _installation(engine_profile(bound), gateways, weights) as (urls, engines):
        client = _Client(urls, seed)
        for tenant in [*weights] * 3:  # alone: the time to a first token without others
            await client.send(tenant)
        alone = median(answer.first_at - answer.sent_at for answer in client.answers[len(weights) :])
        client.answers.clear()
        client.begun = time.monotonic()
        queued: list[float] = []
        before = _busy_seconds()
        await asyncio.gather(
            *(client.steady(tenant, STEADY_RATE, seconds) for tenant in steady),
            *(client.flood(tenant, seconds) for tenant, number in floods.items() for _ in range(number)),
            _sample_queues(engines, client, seconds, queued),
        )
        busy = (_busy_seconds() - before) / client.now() / (os.cpu_count() or 1)
    answers = client.answers
    done = [answer for answer in answers if answer.status == 200 and answer.done_at]
    return FloodRun(answers, _ideal(done, alone, seconds, weights, floods), alone, seconds, queued, busy)


async def offered_run(bound: str, gateways: int, seconds: float, seed: int, load: float) -> FloodRun:
    """Returns a run in which four equal tenants offer a multiple of what the engines can do."""
    tenants = [f"tenant-{number}" for number in range(_OFFERING)]
    per_second = ENGINES * PER_ENGINE / (_STEP_SECONDS * (1 + sum(OUTPUT_TOKENS) / len(OUTPUT_TOKENS)))
    async with _installation(engine_profile(bound), gateways, dict.fromkeys(tenants, 1.0)) as (urls, _):
        client = _Client(urls, seed)
        sending = [
            asyncio.create_task(client.steady(tenant, load * per_second / _OFFERING, seconds)) for tenant in tenants
        ]
        await asyncio.sleep(seconds)
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
    return FloodRun(client.answers, IdealRun(), 0.0, seconds)


def _ideal(
    done: Sequence[Answer], alone: float, seconds: float, weights: Mapping[str, float], floods: Mapping[str, int]
) -> IdealRun:
    def taken(one: Answer) -> float:
        return alone + one.done_at - one.first_at

    arrivals = [QueuedWork(one.sent_at, one.tenant, taken(one)) for one in done if one.tenant not in floods]
    loops = [
        ClosedLoop(tenant, number, [taken(one) for one in done if one.tenant == tenant] or [1.0], seconds)
        for tenant, number in floods.items()
    ]
    return ideal_run(ENGINES * PER_ENGINE, arrivals, loops, weights)


def _busy_seconds() -> float:
    fields = [int(part) for part in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def simulated_waits(answers: Sequence[Answer], floods: Mapping[str, int], gateways: int, seconds: float) -> list[float]:
    """Returns the waits of steady tenants' requests for an engine, after the warm-up, in seconds.

    answers: of the processes, at engines bound by sequences.
    """
    requests = [
        replace(_request(number, answer.tenant, answer.tokens), arrival=answer.sent_at)
        for number, answer in enumerate(answers)
        if answer.tenant not in floods
    ]
    tenants = {answer.tenant for answer in answers}
    results = _run(requests, floods, dict.fromkeys(tenants, 1.0), gateways, seconds)
    alone = engine_profile("sequences").prefill_time(PROMPT_TOKENS)
    return [
        result.ttft_seconds - alone
        for result in results[: len(requests)]
        if WARM_UP_SECONDS <= result.arrival < seconds and result.ttft_seconds is not None
    ]


def simulated_service(
    weights: Mapping[str, float], floods: Mapping[str, int], gateways: int, seconds: float
) -> dict[str, float]:
    """Returns the tokens that floods alone got between warm-up and end, by tenant.

    floods: requests that each keeps in flight.
    """
    served = dict.fromkeys(floods, 0.0)

    def count_end(request: TraceRequest, now: float) -> None:
        if WARM_UP_SECONDS <= now < seconds:
            served[request.tenant or ""] += request.output_tokens

    _run([], floods, weights, gateways, seconds, count_end)
    return served


def _run(
    steady: Sequence[TraceRequest],
    floods: Mapping[str, int],
    weights: Mapping[str, float],
    gateways: int,
    seconds: float,
    count_end: Callable[[TraceRequest, float], None] = lambda *_: None,
) -> list[RequestResult]:
    """Runs requests at their times, and floods that send the next request after each end."""
    fleet = FleetOptions(
        [f"e-{number}" for number in range(ENGINES)],
        engine_profile("sequences"),
        _BLOCK_TOKENS,
        feedback_delay_seconds=_HOP_SECONDS,
    )
    classes = {tenant: TenantClass(weight=weight) for tenant, weight in weights.items()}
    routing, options = RoutingOptions(SloTargets(), b"flood"), ClusterOptions(gateways=gateways)
    cluster = FairCluster(fleet, routing, options, classes=classes)
    simulation = FleetSimulation(cluster, fleet)
    numbers, lengths = count(len(steady)), cycle(OUTPUT_TOKENS)

    def on_end(request: TraceRequest, now: float) -> None:
        count_end(request, now)
        if request.tenant in floods and now < seconds:
            cluster.schedule(now, lambda at: simulation.arrive(next_of(request.tenant or ""), at))

    def next_of(tenant: str) -> TraceRequest:
        return _request(next(numbers), tenant, next(lengths))

    cluster.on_end = on_end
    return simulation.run([*steady, *(next_of(tenant) for tenant, number in floods.items() for _ in range(number))])


def _request(number: int, tenant: str, output_tokens: int) -> TraceRequest:
    return TraceRequest(f"{tenant}/{number}", 0.0, PROMPT_TOKENS, output_tokens, (number,), None, tenant)


_LIGHT, _HEAVY = "weight-1", "weight-3"


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark, prints the table and writes it; returns 1 if a goal is missed."""
    given = parse_options(
        _NAME, __doc__, arguments, parts=list(PARTS), seconds=(100.0, "of each run, the warm-up included"), seed=1
    )
    goals, rows = load_goals(_NAME), list[ResultRow]()
    for part, measure in (("flood", _flood_rows), ("weights", _weight_rows)):
        for bound in BOUNDS if part in given.parts else ():
            for gateways in GATEWAYS:
                rows += measure(bound, gateways, given.seconds, given.seed, goals)
    for bound in BOUNDS if "overload" in given.parts else ():
        rows += _overload_rows(bound, given.seconds, given.seed, goals)
    return write_results(_NAME, rows, seed=given.seed, file=given.out)


def _title(bound: str, gateways: int) -> str:
    return f"engines bound by {bound}, {gateways} gateway{'s' if gateways > 1 else ''}"


def _flood_rows(bound: str, gateways: int, seconds: float, seed: int, goals: Goals) -> list[ResultRow]:
    weights = {FLOOD: 1.0, **dict.fromkeys(STEADY, 1.0)}
    run = asyncio.run(flood_run(bound, gateways, seconds, seed, weights, {FLOOD: IN_FLIGHT}))
    title, rows = _title(bound, gateways), list[ResultRow]()
    for name, share in (("median", 0.5), ("p99", 0.99)):
        metric = f"TTFT of the steady tenants, {name}: {title}"
        real, ideal = (percentile(found, share) for found in (run.first_tokens(STEADY), run.ideal_first_tokens(STEADY)))
        rows.append(goals.ratio(metric, "s", real, "one ideal queue", ideal))
    metric = f"throughput: {title}"
    rows.append(goals.ratio(metric, "tokens/s", run.throughput(), "all sequences busy", run.ideal_throughput()))
    metric = f"refused or failed requests of the steady tenants: {title}"
    lost = float(sum(answer.status != 200 for answer in run.answers if answer.tenant in STEADY))
    rows.append(goals.value(metric, "requests", lost))
    if bound == "sequences":
        simulated = simulated_waits(run.answers, {FLOOD: IN_FLIGHT}, gateways, seconds)
        waits = [wait - run.alone_seconds for wait in run.first_tokens(STEADY)]
        metric = f"wait of the steady tenants, median, processes ÷ simulator: {title}"
        rows.append(goals.ratio(metric, "s", percentile(waits, 0.5), "simulator", percentile(simulated, 0.5)))
    rows.append(goals.value(f"requests in the engines' own queues, mean: {title}", "requests", run.mean_queue()))
    rows.append(goals.value(f"busy share of the machine: {title}", "share", run.busy))
    return rows


def _weight_rows(bound: str, gateways: int, seconds: float, seed: int, goals: Goals) -> list[ResultRow]:
    weights, floods = {_LIGHT: 1.0, _HEAVY: 3.0}, {_LIGHT: IN_FLIGHT // 2, _HEAVY: IN_FLIGHT // 2}
    run: FloodRun = asyncio.run(flood_run(bound, gateways, seconds, seed, weights, floods))
    light, heavy, title = run.served(_LIGHT), run.served(_HEAVY), _title(bound, gateways)
    rows = [goals.ratio(f"service of weight 3: {title}", "tokens", heavy, "3 × that of weight 1", 3 * light)]
    if bound == "sequences":
        simulated = simulated_service(weights, floods, gateways, seconds)
        metric = f"share of weight 3, processes ÷ simulator: {title}"
        versus = simulated[_HEAVY] / sum(simulated.values())
        rows.append(goals.ratio(metric, "share", heavy / (light + heavy), "simulator", versus))
    return rows


def _overload_rows(bound: str, seconds: float, seed: int, goals: Goals) -> list[ResultRow]:
    found = {load: asyncio.run(offered_run(bound, 3, seconds, seed, load)).throughput() for load in LOADS}
    best = max(found.values())
    rows: list[ResultRow] = []
    for load, tokens in found.items():
        metric = f"goodput at {load:g} × capacity: {_title(bound, 3)}"
        rows.append(goals.ratio(metric, "tokens/s", tokens, "the best of all loads", best))
    return rows
