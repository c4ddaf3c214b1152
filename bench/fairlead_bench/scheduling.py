"""Benefit of admission before engines: two latency targets, long prompts among short ones, memory.

    python -m fairlead_bench scheduling [--out out/bench/scheduling.json] [--requests 6000]
                                        [--seeds 1,2,3]

Eight simulated engines (h100-llama8b) run behind the production router; prompts share nothing.
*Load* is the arriving prefill ÷ the prefill that the engines can compute alone.

- FCFS: each request goes to an engine at once, which serves by arrival.
- EDF queues by deadline; the gate has its own order, and places for long prompts.

The seeds differ from those of the development.
"""

import random
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import Model, SloTargets
from fairlead.limits import Limits
from fairlead_bench.results import Goals, ResultRow, load_goals, parse_options, write_results
from fairlead_gateway.admission.admission_policy import AdmissionPolicy
from fairlead_gateway.admission.output_lengths import OutputLengths
from fairlead_gateway.admission.request_queue import NextRequest, RequestQueue
from fairlead_gateway.routing import ModelRouter
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.simulation import FleetOptions, FleetSimulation
from fairlead_sim.gateways.admission_gate import AdmissionControlledGateway, RequestClasses
from fairlead_sim.gateways.single_gateway import MODEL, NAMESPACE, SingleGateway, instances_of
from fairlead_sim.workload.trace_prompts import TracePromptCache
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest

H100 = builtin_profile("h100-llama8b")
A100 = replace(builtin_profile("a100-qwen7b"), kv_tokens=120_000)
ENGINES = 8
SHORT_SECONDS, LONG_SECONDS = 0.25, 4.0
LAPS_SHORT_SECONDS = 0.4
SHARE = 0.9
_SECRET = b"bench"
_AMPLE_TOKENS = replace(Limits(), queued_requests=10**9, queued_bytes=10**15, queue_seconds=1e9)

SloOfRequest = Callable[[TraceRequest], float]


class DeadlineQueue(RequestQueue):
    """A queue by deadline, whether or not a request can still meet its target."""

    def peek(
        self, now: float, closed: Collection[bool] = (), passed_over: Collection[Hashable] = ()
    ) -> NextRequest | None:
        """Returns the request with the earliest deadline."""
        open_requests = (request for request in self.requests() if request.tenant not in passed_over)
        first = min(open_requests, key=lambda request: request.deadline, default=None)
        return None if first is None else NextRequest(first, "first", "is first by the order that is compared")


@dataclass(frozen=True, slots=True)
class SchedulingTraffic:
    """Prompt sizes as drawn, an objective for each, and how many tokens answers have."""

    sizes: Callable[[random.Random], int]
    objective: SloOfRequest

    def requests(self, load: float, seed: int, count: int) -> list[TraceRequest]:
        """Returns Poisson arrivals at a load of all engines' prefill."""
        draw = random.Random(seed)
        sizes = [self.sizes(draw) for _ in range(count)]
        rate = load * ENGINES * count / sum(H100.prefill_time(size) for size in sizes)
        return draw_arrivals(draw, rate, [(size, 16) for size in sizes])


def draw_arrivals(draw: random.Random, rate: float, sizes: Sequence[tuple[int, int]]) -> list[TraceRequest]:
    """Returns requests with these prompt and answer tokens at ``rate`` a second."""
    at, made = 0.0, []
    for number, (prompt, output) in enumerate(sizes):
        at += draw.expovariate(rate)
        made.append(TraceRequest(f"r{number}", at, prompt, output, ()))
    return made


def _two_classes(draw: random.Random) -> int:
    return draw.randint(200, 2_000) if draw.random() < 0.88 else draw.randint(8_000, 16_000)


def _lmsys(draw: random.Random) -> int:
    return draw.randint(32, 256) if draw.random() < 0.81 else draw.randint(257, 2_048)


def _laps(draw: random.Random) -> int:
    return 16_000 if draw.random() < 0.05 else _lmsys(draw)


TWO = SchedulingTraffic(_two_classes, lambda one: SHORT_SECONDS if one.prompt_tokens <= 2_000 else LONG_SECONDS)
LAPS = SchedulingTraffic(_laps, lambda one: LAPS_SHORT_SECONDS if one.prompt_tokens <= 2_048 else LONG_SECONDS)
LAPS_SHORT = SchedulingTraffic(_lmsys, lambda one: LAPS_SHORT_SECONDS)


@dataclass(frozen=True, slots=True)
class SchedulingFleet:
    """The engines of a run. ``max_tokens``: the output bound that clients set."""

    profile: EngineProfile = H100
    engines: int = ENGINES
    block_tokens: int = TRACE_BLOCK_TOKENS
    reserve_tokens: int | None = None
    max_tokens: int | None = None


def run(
    requests: list[TraceRequest],
    how: str,
    engines: SchedulingFleet = SchedulingFleet(),
    *,
    objective: SloOfRequest | None = None,
) -> list[RequestResult]:
    """Returns the results of one run.

    how: ``fcfs`` (at once), ``edf`` (a queue by deadline), or ``gate``.
    """
    names, profile = [f"sim-{number}/0/0" for number in range(engines.engines)], engines.profile
    model = Model(NAMESPACE, MODEL, SloTargets(ttft_seconds=LONG_SECONDS), "dual-hash")
    router = ModelRouter(secret=_SECRET)
    router.update(model, instances_of(names, profile))
    prompts = TracePromptCache(engines.block_tokens, secret=_SECRET, seed=model.key.encode())
    front: SingleGateway = SingleGateway(router, prompts.prefix_chain, {}, model, profile, never_queues=True)
    if how != "fcfs":
        gate = AdmissionPolicy(
            _AMPLE_TOKENS,
            DeadlineQueue() if how == "edf" else None,
            separate_long=how == "gate",
        )
        classes = RequestClasses(objective, max_tokens=engines.max_tokens)
        front = AdmissionControlledGateway(router, prompts.prefix_chain, model, profile, gate, classes)
    fleet = FleetOptions(names, profile, engines.block_tokens, reserve_tokens=engines.reserve_tokens)
    course = FleetSimulation(front, fleet, prompts=prompts)
    return course.run(requests)


def slo_attainment(
    traffic: SchedulingTraffic, how: str, load: float, seeds: Sequence[int], count: int
) -> tuple[float, float, float]:
    """Shares of the short and the long class within their objectives, means over seeds, and the
    longest wait in objectives."""
    shares: tuple[list[float], list[float]] = ([], [])
    stretch = 0.0
    for seed in seeds:
        requests = traffic.requests(load, seed, count)
        served = run(requests, how, objective=traffic.objective)
        within: tuple[list[bool], list[bool]] = ([], [])
        for request, one in list(zip(requests, served, strict=True))[count // 10 :]:
            wanted = traffic.objective(request)
            took = float("inf") if one.ttft_seconds is None else one.ttft_seconds
            within[wanted > 1.0].append(took <= wanted)
            stretch = max(stretch, took / wanted)
        for share, ones in zip(shares, within, strict=True):
            share.append(sum(ones) / len(ones))
    return sum(shares[0]) / len(seeds), sum(shares[1]) / len(seeds), stretch


def find_capacity(how: str, seeds: Sequence[int], count: int) -> float:
    """Returns the highest load at which both classes keep 90 % within their SLOs.

    It is exact to a hundredth.
    """
    low, high = 0.4, 1.2
    while high - low > 0.01:
        middle = (low + high) / 2
        short, long, _ = slo_attainment(TWO, how, middle, seeds, count)
        low, high = (middle, high) if min(short, long) >= SHARE else (low, middle)
    return low


def two_class_rows(wanted: Goals, seeds: Sequence[int], count: int) -> Iterator[ResultRow]:
    """Yields rows on capacities, and on the longest wait."""
    knees = {how: find_capacity(how, seeds, count) for how in ("gate", "fcfs", "edf")}
    for how, name in (("fcfs", "FCFS"), ("edf", "EDF")):
        metric = f"two objectives: highest load where both keep 90 %: gate ÷ {name}"
        yield wanted.ratio(metric, "load", knees["gate"], name, knees[how])
    for load in (knees["gate"], 1.0):
        short, long, stretch = slo_attainment(TWO, "gate", load, seeds, count)
        at = "at the knee" if load != 1.0 else "at load 1.0"
        yield wanted.value(f"two objectives: longest wait {at}, in objectives", "×", stretch)
        yield wanted.value(f"two objectives: short within theirs {at}", "share", short)
        yield wanted.value(f"two objectives: long within theirs {at}", "share", long)


def laps_rows(wanted: Goals, seeds: Sequence[int], count: int) -> Iterator[ResultRow]:
    """Yields rows of the short class among long ones against a fleet without long ones.

    The loads are equal.
    """
    for load in (0.5, 0.7, 0.8):
        mixed = _p90(LAPS, "gate", load, seeds, count)
        alone = _p90(LAPS_SHORT, "fcfs", load, seeds, count)
        metric = f"LAPS mix at load {load:g}: short p90 TTFT ÷ a short-only fleet's"
        yield wanted.ratio(metric, "s", mixed, "short only", alone)


def _p90(traffic: SchedulingTraffic, how: str, load: float, seeds: Sequence[int], count: int) -> float:
    found: list[float] = []
    for seed in seeds:
        requests = traffic.requests(load, seed, count)
        served = run(requests, how, objective=traffic.objective)
        pairs = list(zip(requests, served, strict=True))[count // 10 :]
        found += [one.ttft_seconds or 0.0 for request, one in pairs if request.prompt_tokens <= 2_048]
    return sorted(found)[int(0.9 * len(found))]


def answer_lengths(draw: random.Random) -> tuple[int, int]:
    """Returns prompt and answer tokens of a chat; 15 % reason at length.

    The maximum is 8,192 tokens.
    """
    prompt = min(8_000, max(16, int(draw.lognormvariate(6.6, 0.9))))
    output = draw.lognormvariate(7.6, 0.5) if draw.random() < 0.15 else draw.lognormvariate(5.0, 0.9)
    return prompt, max(1, min(8_192, int(output)))


def memory_rows(wanted: Goals, seeds: Sequence[int], count: int) -> Iterator[ResultRow]:
    """Yields rows of one engine of 120,000 tokens, with and without the gate.

    The engine admits by the prompt alone.
    """
    for rate in (3.5, 3.75, 4.0):
        found: dict[str, tuple[float, float]] = {}
        for how in ("fcfs", "gate"):
            preempted = good = total = 0
            for seed in seeds:
                draw = random.Random(seed)
                requests = draw_arrivals(draw, rate, [answer_lengths(draw) for _ in range(count)])
                one_engine = SchedulingFleet(A100, 1, block_tokens=16, reserve_tokens=0, max_tokens=8_192)
                served = run(requests, how, one_engine)[count // 10 :]
                preempted += sum(one.preemptions for one in served)
                good += sum(_meets_slo(one) for one in served)
                total += len(served)
            found[how] = preempted / total, good / total
        at = f"at {rate:g}/s"
        yield wanted.value(f"memory {at}: preemptions per request", "share", found["gate"][0])
        metric = f"memory {at}: preemptions: gate ÷ aggressive"
        yield wanted.ratio(metric, "share", found["gate"][0], "aggressive", found["fcfs"][0])
        metric = f"memory {at}: goodput: gate ÷ aggressive"
        yield wanted.ratio(metric, "share", found["gate"][1], "aggressive", found["fcfs"][1])


def _meets_slo(one: RequestResult) -> bool:
    """Returns whether the first token came within 5 s, and the others within 0.1 s each."""
    pace = one.tpot_seconds
    return one.ttft_seconds is not None and one.ttft_seconds <= 5.0 and (pace is None or pace <= 0.1)


def length_rows(wanted: Goals, seeds: Sequence[int]) -> Iterator[ResultRow]:
    """Yields rows on the forecast ninth decile: its distance from nine tenths after 500 answers."""
    covered = total = 0
    for seed in range(12 * len(seeds)):
        draw, lengths = random.Random(seed), OutputLengths(max_classes=64)
        for number in range(500):
            lengths.learn("chat", 900.0, answer_lengths(draw)[1], number * 0.5)
        bound = lengths.quantile(0.9, "chat", 900.0, 250.0)
        seen = [bound is not None and answer_lengths(draw)[1] <= bound for _ in range(4_000)]
        covered, total = covered + sum(seen), total + len(seen)
    metric = "length: ninth decile after 500 answers, points off"
    yield wanted.value(metric, "points", 100.0 * abs(covered / total - 0.9))


def main(arguments: list[str]) -> int:
    """Measures, writes and prints. A goal that does not hold stays in the table."""
    given = parse_options(
        "scheduling", "Scheduling before simulated engines.", arguments, requests=6000, seeds=[11, 12, 13]
    )
    seeds, wanted = given.seeds, load_goals("scheduling")
    rows = [
        *length_rows(wanted, seeds),
        *memory_rows(wanted, seeds, given.requests // 2),
        *laps_rows(wanted, seeds, given.requests),
        *two_class_rows(wanted, seeds, given.requests),
    ]
    write_results("scheduling", rows, seed=seeds[0], file=given.out)
    return 0
