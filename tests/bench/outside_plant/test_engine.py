"""The engine in closed form agrees with one that computes step by step, and counts what it did."""

import math
import random
from collections import deque

import pytest

from fairlead_bench.outside_plant.engine import Engine
from fairlead_bench.outside_plant.scenario import LARGE, SMALL, EngineProfile, RequestList, Role

EDGES = ([0.5, 1.0, 3.0], [0.02, 0.05, 0.15])
TIGHT = EngineProfile(0.02, 1e-4, 1e-6, 2e-4, 128, 4, 3_000)


def random_requests(seed: int, count: int, gap_seconds: float, max_prompt: int) -> RequestList:
    draw = random.Random(seed)
    arrivals, now = [], 0.0
    for _ in range(count):
        now += draw.expovariate(1.0 / gap_seconds)
        arrivals.append(now)
    prompts = [draw.randint(1, max_prompt) for _ in range(count)]
    return RequestList(arrivals, prompts, [draw.choice([1, 2, draw.randint(3, 200)]) for _ in range(count)])


def run_by_phases(engine: Engine, log: RequestList) -> None:
    for request, arrival in enumerate(log.arrivals):
        while engine.phase_end <= arrival:
            engine.end_phase()
            engine.begin_phase(engine.phase_end)
        engine.enqueue(request, arrival)
    while not engine.is_idle:
        engine.end_phase()
        engine.begin_phase(engine.phase_end)


def run_by_steps(profile: EngineProfile, log: RequestList) -> tuple[list[float], list[float]]:
    """Returns TTFT and mean gap of each request, from one step after another."""
    count = len(log)
    ttft, gap = [math.inf] * count, [0.0] * count
    waiting: deque[int] = deque()
    answering: dict[int, int] = {}
    first: dict[int, float] = {}
    prompt, left, now, arrived = -1, 0, 0.0, 0
    resident = {}
    while arrived < count or waiting or answering or prompt >= 0:
        if not (waiting or answering or prompt >= 0):
            now = max(now, log.arrivals[arrived])
        while arrived < count and log.arrivals[arrived] <= now:
            waiting.append(arrived)
            arrived += 1
        if prompt < 0 and waiting and len(answering) < profile.max_seqs:
            held = sum(log.prompts[request] + log.answers[request] for request in answering)
            head = waiting[0]
            if held + log.prompts[head] + log.answers[head] <= profile.kv_tokens:
                prompt, left = waiting.popleft(), log.prompts[head]
                resident[prompt] = 0
        tokens = min(left, profile.chunk) if prompt >= 0 else 0
        sequences = len(answering) + (prompt >= 0)
        now += (
            profile.base
            + profile.per_seq * sequences
            + profile.per_kv_token * sum(resident.values())
            + profile.per_prompt_token * tokens
        )
        for request in list(answering):
            answering[request] -= 1
            resident[request] += 1
            if not answering[request]:
                gap[request] = (now - first[request]) / (log.answers[request] - 1)
                del answering[request], resident[request]
        if prompt >= 0:
            left -= tokens
            resident[prompt] += tokens
            if not left:
                ttft[prompt], first[prompt] = now - log.arrivals[prompt], now
                if log.answers[prompt] > 1:
                    answering[prompt] = log.answers[prompt] - 1
                else:
                    del resident[prompt]
                prompt = -1
    return ttft, gap


@pytest.mark.parametrize(
    ("profile", "gap_seconds", "max_prompt"),
    [(SMALL, 1.1, 3_000), (SMALL, 0.4, 900), (LARGE, 0.7, 9_000), (TIGHT, 0.8, 1_500)],
)
def test_phases_agree_with_single_steps(profile: EngineProfile, gap_seconds: float, max_prompt: int) -> None:
    log = random_requests(7, 150, gap_seconds, max_prompt)
    engine = Engine(profile, Role.BOTH, log, EDGES)
    run_by_phases(engine, log)
    ttft, gap = run_by_steps(profile, log)
    assert log.ttft == pytest.approx(ttft, abs=1e-6)
    assert log.gap == pytest.approx(gap, abs=1e-6)
    assert (engine.inflight, engine.resident_tokens, engine.reserved_tokens, engine.backlog_tokens) == (0, 0, 0, 0)


@pytest.mark.parametrize("is_per_gap", [False, True])
def test_counters_add_up_however_often_they_are_read(is_per_gap: bool) -> None:
    log = random_requests(3, 80, 0.6, 2_000)
    engine = Engine(SMALL, Role.BOTH, log, EDGES, is_per_gap=is_per_gap)
    total = {"prompt": 0, "generated": 0, "first": 0, "finished": 0}
    seconds, gaps, ttfts = 0.0, 0, 0
    arrived, look = 0, 0.0
    while arrived < len(log) or not engine.is_idle:
        look += 0.37
        while arrived < len(log) or not engine.is_idle:
            arrival = log.arrivals[arrived] if arrived < len(log) else math.inf
            if min(arrival, engine.phase_end) > look:
                break
            if arrival <= engine.phase_end:
                engine.enqueue(arrived, arrival)
                arrived += 1
            else:
                engine.end_phase()
                engine.begin_phase(engine.phase_end)
        engine.synchronize(look)
        counters = engine.take_counters()
        assert all(count >= 0 for count in [counters.prompt, counters.generated, *counters.gap_histogram])
        for name in total:
            total[name] += getattr(counters, name)
        seconds += counters.generated_seconds
        gaps, ttfts = gaps + sum(counters.gap_histogram), ttfts + sum(counters.ttft_histogram)
    single_gaps = sum(log.answers) - len(log)
    assert total == {"prompt": sum(log.prompts), "generated": sum(log.answers), "first": 80, "finished": 80}
    assert seconds == pytest.approx(
        sum(gap * (answer - 1) for gap, answer in zip(log.gap, log.answers, strict=True)), abs=1e-5
    )
    assert ttfts == 80
    assert gaps == (single_gaps if is_per_gap else sum(answer > 1 for answer in log.answers))


def test_full_chunk_beside_answers_takes_longer_than_the_gap_target() -> None:
    log = RequestList([0.0, 0.1], [512, 512 * 20], [100, 2])
    run_by_phases(Engine(SMALL, Role.BOTH, log, EDGES), log)
    assert log.ttft[0] == pytest.approx(0.197, abs=0.001)
    assert log.gap[0] < 0.15
    log = RequestList([0.0, 0.1], [512, 512 * 60], [20, 2])
    run_by_phases(Engine(SMALL, Role.BOTH, log, EDGES), log)
    assert log.gap[0] > 0.19


def test_slow_engine_takes_longer_by_its_factor() -> None:
    log = random_requests(5, 1, 1.0, 2_000)
    run_by_phases(Engine(SMALL, Role.BOTH, log, EDGES), log)
    quick = log.ttft[0], log.gap[0]
    log.reset()
    engine = Engine(SMALL, Role.BOTH, log, EDGES)
    engine.slowness = 2.5
    run_by_phases(engine, log)
    assert (log.ttft[0], log.gap[0]) == pytest.approx((2.5 * quick[0], 2.5 * quick[1]))


def test_prefill_engine_hands_over_and_decode_engine_goes_on() -> None:
    log = RequestList([0.0, 0.0], [1000, 600], [50, 1])
    prefill, decode = Engine(SMALL, Role.PREFILL, log, EDGES), Engine(SMALL, Role.DECODE, log, EDGES)
    run_by_phases(prefill, log)
    assert prefill.outgoing == [0]
    assert prefill.inflight == prefill.reserved_tokens == 0
    assert log.is_over == [False, True]
    decode.enqueue(0, 5.0)
    assert decode.backlog_tokens == 0
    while not decode.is_idle:
        decode.end_phase()
        decode.begin_phase(decode.phase_end)
    assert log.gap[0] > (5.0 - log.first_at[0]) / 49
    assert decode.inflight == decode.resident_tokens == decode.reserved_tokens == 0
