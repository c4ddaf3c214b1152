"""The second plant: its engine and its pools."""

import math
import random
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean, pstdev
from typing import Any

import pytest

from fairlead_bench.outside_plant.engine import Engine
from fairlead_bench.outside_plant.offline_optimum import cut
from fairlead_bench.outside_plant.plant import (
    GatewayCounters,
    Plant,
    PlantOptions,
    RescuedReplay,
    ScheduledSize,
    WorkRule,
    least_resident,
    least_work,
)
from fairlead_bench.outside_plant.scenario import (
    FAMILIES,
    LARGE,
    SMALL,
    Crash,
    EngineProfile,
    MetricFault,
    MetricWindow,
    PoolSetup,
    RequestList,
    Role,
    Scenario,
    Slowdown,
    noisy_chat,
    prefill_decode,
    startup_times,
)
from fairlead_testing.pytest_hooks.nightly import shortened

HOURS = [name for name in FAMILIES if name != "chat-day"]


class ScriptedController:
    """Wants the sizes of a script by time, and keeps its observations."""

    def __init__(self, script: Mapping[float, int]) -> None:
        self._script = script
        self.observations: list[Mapping[str, Any]] = []

    def step(self, observation: Mapping[str, Any]) -> Mapping[str, int]:
        self.observations.append(observation)
        size = self._script.get(observation["t"])
        return {} if size is None else {"main": size}


def small_scenario(requests: RequestList, initial: int, seconds: float = 600.0) -> Scenario:
    pool = PoolSetup("main", Role.BOTH, SMALL, initial, minimum=0)
    return Scenario("small", 1, seconds, requests, (pool,), 3.0, 0.15)


def test_start_is_paid_from_the_order() -> None:
    plant = Plant(small_scenario(RequestList([], [], []), 1), PlantOptions())
    record = plant.run(ScriptedController({100.0: 2}))
    assert record.replica_hours * 3600 == pytest.approx(600.0 + 500.0)
    assert record.changes == 1


def test_schedule_orders_ahead_and_pays_for_it() -> None:
    plant = Plant(small_scenario(RequestList([], [], []), 1), PlantOptions())
    record = plant.run(None, [ScheduledSize(300.0, "main", 2), ScheduledSize(400.0, "main", 1)])
    assert record.replica_hours * 3600 == pytest.approx(600.0 + 100.0 + startup_times(1, "main", 1)[0])


def test_cancelled_start_costs_until_it_is_cancelled() -> None:
    plant = Plant(small_scenario(RequestList([], [], []), 1), PlantOptions())
    record = plant.run(ScriptedController({100.0: 3, 120.0: 1}))
    assert record.replica_hours * 3600 == pytest.approx(600.0 + 2 * 20.0)


def test_draining_replica_ends_its_answer_and_is_paid_until_then() -> None:
    requests = RequestList([1.0], [500], [300])
    plant = Plant(small_scenario(requests, 1), PlantOptions())
    record = plant.run(ScriptedController({5.0: 0}))
    end = requests.first_at[0] + requests.gap[0] * 299
    assert end > 6.0
    assert record.replica_hours * 3600 == pytest.approx(end)


def test_client_leaves_after_its_patience_and_later_ones_are_served() -> None:
    requests = RequestList([1.0, 200.0], [500, 500], [10, 10])
    plant = Plant(small_scenario(requests, 0), PlantOptions())
    controller = ScriptedController({10.0: 1})
    startup = startup_times(1, "main", 1)[0]
    assert startup > 60.0
    record = plant.run(controller)
    assert record.abandoned == 1
    assert requests.ttft[0] == math.inf
    assert requests.ttft[1] < max(1.0, 10.0 + startup - 200.0 + 1.0)
    assert sum(seen["gateway"]["d_abandoned"] for seen in controller.observations) == 1
    assert max(seen["gateway"]["held"] for seen in controller.observations) == 1


def test_crash_loses_answers_moves_prompts_and_starts_another_replica() -> None:
    requests = RequestList([0.1, 10.0, 10.2], [500, 4000, 4000], [1000, 10, 10])
    scenario = replace(small_scenario(requests, 2), crashes=(Crash(10.5, 0.0),))
    controller = ScriptedController({})
    record = Plant(scenario, PlantOptions("resident")).run(controller)
    assert record.lost == 1
    assert requests.gap[0] == math.inf
    assert max(requests.ttft[1:]) < 10.0
    at_fifteen = controller.observations[2]["pools"]["main"]
    assert (at_fifteen["desired"], at_fifteen["ready"], at_fifteen["pending"]) == (2, 1, 1)


def test_slow_replica_makes_answers_slower() -> None:
    requests = RequestList([10.0 * number for number in range(50)], [500] * 50, [100] * 50)
    scenario = replace(small_scenario(requests, 1), slowdowns=(Slowdown(200.0, 300.0, 2.5),))
    Plant(scenario, PlantOptions()).run(None)
    assert requests.gap[22] == pytest.approx(2.5 * requests.gap[5], rel=0.01)
    assert requests.gap[40] == pytest.approx(requests.gap[5], rel=0.01)


def test_metric_windows_hide_counters_and_gauges() -> None:
    requests = RequestList([0.5 * number for number in range(200)], [500] * 200, [50] * 200)
    windows = (
        MetricWindow(20.0, 30.0, MetricFault.MISSING),
        MetricWindow(40.0, 50.0, MetricFault.ZERO_COUNTERS),
        MetricWindow(60.0, 70.0, MetricFault.ZERO_ALL),
    )
    controller = ScriptedController({})
    Plant(replace(small_scenario(requests, 1), windows=windows), PlantOptions()).run(controller)
    by_time = {seen["t"]: seen for seen in controller.observations}
    assert by_time[20.0]["pools"]["main"]["replicas"][0]["d_prompt"] > 0
    assert by_time[25.0]["gateway"] is None
    assert by_time[25.0]["pools"]["main"]["replicas"] is None
    assert by_time[25.0]["pools"]["main"]["ready"] == 1
    for time, has_gauges in ((45.0, True), (65.0, False)):
        replica = by_time[time]["pools"]["main"]["replicas"][0]
        assert by_time[time]["gateway"]["d_arrivals"] == replica["d_prompt"] == sum(replica["itl_hist"]) == 0
        assert (replica["running"] > 0) is has_gauges
    assert by_time[35.0]["gateway"]["d_arrivals"] == 10


def test_every_request_is_seen_and_ends_in_two_pools() -> None:
    scenario = cut(prefill_decode(1), 0.0, 300.0)
    plant = Plant(scenario, PlantOptions())
    controller = ScriptedController({})
    plant.run(controller)
    requests = scenario.requests
    assert len(requests) > 1000
    assert max(requests.gap) < math.inf
    looks = [seen["pools"] for seen in controller.observations]
    handed = sum(replica["d_finished"] for look in looks for replica in look["prefill"]["replicas"])
    answered = sum(replica["d_finished"] for look in looks for replica in look["decode"]["replicas"])
    assert 0 < answered < handed <= len(requests)
    assert all(replica["d_prompt"] == 0 for look in looks for replica in look["decode"]["replicas"])


def test_rules_choose_by_prompt_work_or_by_memory() -> None:
    log = RequestList([0.0] * 12, [3000] + [100] * 11, [10] + [900] * 11)
    busy, full = (Engine(SMALL, Role.BOTH, log, ([1.0], [1.0])) for _ in range(2))
    for request in range(1, 12):
        full.enqueue(request, 0.0)
    while full.backlog_tokens:
        full.end_phase()
        full.begin_phase(full.phase_end)
    busy.enqueue(0, full.phase_start)
    source = random.Random(1)
    assert least_resident([busy, full], full.phase_start, source) is full
    assert least_work([busy, full], full.phase_start, source) is full
    assert least_work([busy, full], full.phase_start + 1.5, source) is busy


def test_replay_orders_the_maximum_after_a_sudden_change_only() -> None:
    scenario = replace(small_scenario(RequestList([], [], []), 1), shocks=(100.0,))
    replay = RescuedReplay(scenario, [(2,)] * 200)
    assert [replay.step({"t": time})["main"] for time in (100.0, 105.0, 430.0, 435.0)] == [2, 60, 60, 2]


@pytest.mark.parametrize("family", shortened(HOURS, HOURS[:8:4]))
def test_seed_decides_the_traffic_of_a_family(family: str) -> None:
    first, again, other = (FAMILIES[family](seed).requests for seed in (4, 4, 5))
    assert (first.arrivals, first.prompts, first.answers) == (again.arrivals, again.prompts, again.answers)
    assert first.arrivals != other.arrivals
    assert first.arrivals == sorted(first.arrivals)
    assert 0 < min(first.prompts) <= max(first.prompts) <= 126_000


def test_gateway_counts_anew_after_each_look() -> None:
    counters = GatewayCounters()
    counters.arrivals, counters.prompt_tokens = 3, 900
    assert counters.observation(2, None) == {"d_arrivals": 3, "d_prompt": 900, "held": 2, "d_abandoned": 0}
    assert counters.observation(0, None) == {"d_arrivals": 0, "d_prompt": 0, "held": 0, "d_abandoned": 0}


def test_work_rule_grows_with_work_and_holds_for_five_minutes() -> None:
    rule = WorkRule(small_scenario(RequestList([], [], []), 1), 0.5)

    def wanted(prompt_tokens: int, held: int = 0) -> int:
        replicas = [{"d_gen": 0}]
        gateway = {"d_prompt": prompt_tokens, "held": held}
        return rule.step({"gateway": gateway, "pools": {"main": {"replicas": replicas}}})["main"]

    work = SMALL.per_prompt_token + SMALL.base / SMALL.chunk
    tokens = round(5.0 * 5.0 / work)
    assert wanted(tokens) == 10
    assert [wanted(0) for _ in range(59)] == [10] * 59
    assert [wanted(0) for _ in range(120)][-1] == 0
    assert wanted(0, held=41) == 3
    assert rule.step({"gateway": None, "pools": {}}) == {}


def test_noisy_hour_has_the_mix_and_the_scatter_of_its_source() -> None:
    requests = noisy_chat(1).requests
    blocks = [requests.prompts[start : start + 50] for start in range(0, len(requests) - 49, 50)]
    means = [fmean(block) for block in blocks]
    chance = pstdev(requests.prompts) / fmean(requests.prompts) / 50**0.5
    scatter = pstdev(means) / fmean(means)
    assert fmean(requests.prompts) == pytest.approx(1144, rel=0.05)
    assert fmean(requests.answers) == pytest.approx(200, rel=0.1)
    assert (scatter**2 - chance**2) ** 0.5 == pytest.approx(0.17, abs=0.03)
    minutes = Counter(int(arrival / 60) for arrival in requests.arrivals)
    assert 8 <= min(minutes.values()) / 60 <= max(minutes.values()) / 60 <= 27


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
