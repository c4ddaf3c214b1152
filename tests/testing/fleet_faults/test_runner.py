"""Fault runs: some seeds of ``make nightly``, and faults that the invariant checker must find."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fairlead_gateway.routing import PRESETS, QUEUEING_PRESETS
from fairlead_sim.fleet.fleet_events import FleetEvent, FleetEventKind
from fairlead_sim.fleet.packet_simulator import NetworkFault, PacketSimulator
from fairlead_sim.seams import router
from fairlead_testing.fleet_faults.runner import (
    EXTERNAL_ROUTER,
    FAULT_SECONDS,
    GATEWAY_CLUSTER,
    REPLAY_COMMAND,
    SINGLE_GATEWAY,
    FaultScenario,
    NetworkPartition,
    RunReport,
    draw_router,
    engine_name,
    from_seed,
    run_scenario,
    run_seed,
)
from fairlead_testing.module_files import load_module
from fairlead_testing.pytest_hooks.nightly import shortened

SEED_BATCHES = shortened([range(first, first + 12) for first in range(0, 48, 12)], [(2, 4, 5, 9, 24, 49)])
"""`make test`: all three routers, kills, partitions and all kinds of events, in two seconds."""
VARIED_SEEDS = (4, 5, 35)
"""With every router and kind of fault between them."""
SCRIPT_SEEDS = shortened(4, 2)
SCRIPT = Path(__file__).parents[3] / "scripts" / "nightly_fleet.py"


@pytest.mark.parametrize("seeds", SEED_BATCHES)
def test_invariants_hold_under_every_fault_and_service_recovers(seeds: Sequence[int]) -> None:
    nights = [run_seed(seed) for seed in seeds]
    assert "\n".join([night.describe() for night in nights if night.violations]) == ""
    assert sum(night.checks for night in nights) > len(seeds) * 100
    assert sum(night.cut + night.retried for night in nights) > 0


def test_seeds_draw_every_kind_of_fault_and_equal_seeds_are_equal() -> None:
    first_seeds = {draw_router(Random(f"trouble {seed}"), seed)[1]: seed for seed in reversed(range(400))}
    scenes = [from_seed(seed) for seed in shortened(range(400), (*VARIED_SEEDS, *first_seeds.values()))]
    assert {scene.router for scene in scenes} == {SINGLE_GATEWAY, EXTERNAL_ROUTER, GATEWAY_CLUSTER}
    assert {scene.preset for scene in scenes} == set(PRESETS)
    assert {event.kind for scene in scenes for event in scene.fleet_events} == set(FleetEventKind)
    assert any(scene.partitions for scene in scenes if scene.router == GATEWAY_CLUSTER)
    assert any(scene.kills for scene in scenes if scene.preset in QUEUEING_PRESETS)
    assert any(spell.drop == 1.0 for scene in scenes for spell in scene.network_faults)
    lost = [{event.engine for event in scene.fleet_events if event.kind is FleetEventKind.LOSE} for scene in scenes]
    assert any(set(scene.engine_names) <= gone for scene, gone in zip(scenes, lost, strict=True)), "all at once"
    for scene in scenes:
        assert all(event.at <= FAULT_SECONDS for event in (*scene.fleet_events, *scene.partitions, *scene.kills))
        assert all(
            not last.unreachable for last in {partition.gateway: partition for partition in scene.partitions}.values()
        ), "all are mended"
    assert from_seed(7) == from_seed(7)
    assert run_seed(7) == run_seed(7)


def scene(**how: Any) -> FaultScenario:
    """Returns one gateway of the seam in front of four engines, one of which is lost."""
    quiet = replace(
        from_seed(1), router=EXTERNAL_ROUTER, preset="dual-hash", gateways=1, engines=4, shared=True, delay_seconds=0.0
    )
    lose = FleetEvent(20.0, FleetEventKind.LOSE, engine_name(1))
    return replace(replace(quiet, fleet_events=(lose,), partitions=(), kills=(), network_faults=()), **how)


class Wrong:
    """A production core with one fault."""

    def __init__(self, info: Mapping[str, Any], preset: str, seed: int) -> None:
        self._core = router(info, preset=preset, seed=seed)
        self._all = list(info["live"])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)


class ToTheLost(Wrong):
    def pick(self, request: Any, endpoints: Sequence[Any], now: float) -> Any:
        self._core.pick(request, endpoints, now)
        return self._all[1]


class ToNobody(Wrong):
    def pick(self, request: Any, endpoints: Sequence[Any], now: float) -> Any:
        return None if now > 30.0 else self._core.pick(request, endpoints, now)


class ToOne(Wrong):
    def pick(self, request: Any, endpoints: Sequence[Any], now: float) -> Any:
        return endpoints[0].id


class Keeps(Wrong):
    """A core that moves held requests to an absent engine."""

    def rebalance(self, endpoints: Sequence[Any], now: float) -> list[Any]:
        return [(request, "nowhere") for item in endpoints for request in item.held]


def found(core: type[Wrong], **how: Any) -> str:
    return " ".join(run_scenario(scene(**how), core).violations)


def test_a_quiet_scene_is_whole() -> None:
    assert found(Wrong) == ""


def test_the_checker_finds_a_request_sent_to_a_lost_engine() -> None:
    assert "not in service or not reachable" in found(ToTheLost, preset="round-robin")
    assert "is rejected by sim-1/0/0" in found(ToTheLost)  # which was held for it, and let go


def test_the_checker_finds_a_request_sent_to_an_unreachable_engine() -> None:
    assert "not reachable" in found(ToTheLost, partitions=(NetworkPartition(5.0, 0, frozenset({engine_name(1)})),))


def test_the_checker_finds_a_request_rejected_without_reason() -> None:
    assert "gets no engine" in found(ToNobody)


def test_the_checker_finds_a_request_held_for_an_absent_engine() -> None:
    assert found(Keeps, preset="dualmap") != ""


def test_liveness_is_checked_a_minute_after_the_last_fault() -> None:
    """All requests go to one engine, at five times its capacity."""
    crowd = tuple(replace(request, arrival=request.arrival / 8) for request in from_seed(1).traffic)
    late = tuple(replace(request, arrival=request.arrival + FAULT_SECONDS + 60.0) for request in crowd)
    assert "first tokens in time" in found(ToOne, traffic=late)


def test_a_violation_is_reported_with_its_seed_and_replay_command() -> None:
    report = RunReport(42, ("1.000 s: something",), 1, 0, 0, 0, 1, 1.0).describe()
    assert report.splitlines() == ["seed 42: 1 findings", "  1.000 s: something", f"  {REPLAY_COMMAND.format(42)}"]


def test_the_script_writes_its_report(tmp_path: Path) -> None:
    path = tmp_path / "fleet.json"
    words = ["--seeds", str(SCRIPT_SEEDS), "--first", "100", "--jobs", "2", "--out", str(path)]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(path.read_text())
    assert (report["first"], report["seeds"], report["found"]) == (100, SCRIPT_SEEDS, [])
    assert report["requests"] == sum(len(from_seed(seed).traffic) for seed in range(100, 100 + SCRIPT_SEEDS))


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Returns the script's `main` with these arguments, in this process."""
    script = load_module("nightly_fleet", SCRIPT)
    monkeypatch.setattr(script, "run_compiled", lambda: None)
    monkeypatch.setattr(script, "ProcessPoolExecutor", ThreadPoolExecutor)

    def main(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
        status: int = script.main()
        return status

    return main


def test_the_script_plays_one_seed_again(play: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert play(*REPLAY_COMMAND.format(101).split()[2:]) == 0
    assert capsys.readouterr().out.startswith(from_seed(101).describe())


def test_faulty_spells_lose_duplicate_and_delay_messages() -> None:
    weather = PacketSimulator([NetworkFault(10.0, 20.0, drop=0.3, duplicate=0.5, max_delay_seconds=2.0)], seed=1)
    assert weather.delivery_times(5.0, 0.1) == [5.1]
    assert weather.delivery_times(20.0, 0.1) == [20.1]
    deliveries = [weather.delivery_times(15.0, 0.1) for _ in range(2_000)]
    counts = [sum(len(times) == number for times in deliveries) / 2_000 for number in range(3)]
    assert counts == pytest.approx([0.3, 0.35, 0.35], abs=0.04)
    assert all(15.1 <= at <= 17.1 for times in deliveries for at in times)
    assert PacketSimulator([NetworkFault(0.0, 1.0, drop=1.0)]).delivery_times(0.5, 0.0) == []
