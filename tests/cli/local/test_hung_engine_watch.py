"""The watch over engines that hang: which engine it restarts, and when."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from fairlead.fleet.hung_engines import EjectionReport
from fairlead.fleet.model import Instance, Model
from fairlead.runtime.clock import ManualClock
from fairlead_cli.exit_codes import StackUnreachable
from fairlead_cli.local.processes.child_process import ProcessCommand
from fairlead_cli.local.processes.managed_process import ManagedProcess, ProcessPhase
from fairlead_cli.local.stack.engine_process import EnginePoolSpec, EngineProcess, SleepState
from fairlead_cli.local.stack.stack_run import HungEngineHooks, HungEngineWatch
from fairlead_cli.management import api_types

HUNG = EjectionReport(75.0, "3 timeouts", failed_probes=2, workers=1)


class WatchFixture:
    """A watch over three engines without processes, which are up since 0 s; it is 1,000 s now."""

    def __init__(self, ports: int = 1) -> None:
        template = Instance("", "default", "m", "main", "", engine="sim")
        pool = EnginePoolSpec(
            Model("default", "m"), "main", 3, template, lambda ports, first: ProcessCommand(()), "main"
        )
        self.engines = [EngineProcess(pool, n, tuple(range(9000 + 10 * n, 9000 + 10 * n + ports))) for n in range(3)]
        for engine in self.engines:
            self.set_phase(engine, ProcessPhase.READY)
        self.reports: dict[EngineProcess, EjectionReport] = {}
        self.is_gateway_up = True
        self.restarted: list[EngineProcess] = []
        self.events: list[str] = []
        hooks = HungEngineHooks(lambda: self.engines, self.fleet, self.restart, self.events.append)
        self.watch = HungEngineWatch(hooks, ManualClock(1_000.0))

    def set_phase(self, engine: EngineProcess, phase: ProcessPhase, ready_at: float = 0.0) -> None:
        engine.process = cast(ManagedProcess, SimpleNamespace(phase=phase, ready_at=ready_at))

    async def fleet(self) -> api_types.Fleet:
        if not self.is_gateway_up:
            raise StackUnreachable("no gateway")
        instances = [
            api_types.Instance(engine.instance_ids()[0], ejection=self.reports.get(engine)) for engine in self.engines
        ]
        return api_types.Fleet(1, [api_types.Model("default/m", "default", "m", instances=instances)])

    async def restart(self, engine: EngineProcess) -> None:
        self.restarted.append(engine)
        self.set_phase(engine, ProcessPhase.STARTING)

    def poll(self) -> None:
        asyncio.run(self.watch.poll())


def test_engine_that_hangs_is_restarted_with_a_line_that_says_why() -> None:
    fixture = WatchFixture()
    fixture.reports = {fixture.engines[1]: HUNG}
    fixture.poll()
    assert fixture.restarted == [fixture.engines[1]]
    assert fixture.events == [
        "main-1 hangs and is restarted: 2 probes failed (gateway: no answer for 1m15s since 3 timeouts)"
    ]


@pytest.mark.parametrize("report", [None, replace(HUNG, seconds=59.0), replace(HUNG, failed_probes=1)])
def test_engine_is_left_alone_within_the_grace_or_without_two_failed_probes(report: EjectionReport | None) -> None:
    fixture = WatchFixture()
    fixture.reports = {} if report is None else {fixture.engines[1]: report}
    fixture.poll()
    assert (fixture.restarted, fixture.events) == ([], [])


def test_second_engine_is_restarted_only_when_the_first_is_up_again() -> None:
    fixture = WatchFixture()
    first, second, _ = fixture.engines
    fixture.reports = {first: HUNG, second: HUNG}
    fixture.poll()
    fixture.poll()
    assert fixture.restarted == [first]
    fixture.set_phase(first, ProcessPhase.READY, ready_at=990.0)
    fixture.poll()
    assert fixture.restarted == [first, second]


def test_report_older_than_the_process_restarts_no_engine_again() -> None:
    fixture = WatchFixture()
    fixture.set_phase(fixture.engines[0], ProcessPhase.READY, ready_at=950.0)
    fixture.reports = {fixture.engines[0]: HUNG}
    fixture.poll()
    assert fixture.restarted == []


@pytest.mark.parametrize("state", ["starting", "draining", "asleep", "no process"])
def test_engine_that_does_not_serve_is_not_restarted(state: str) -> None:
    fixture = WatchFixture()
    engine = fixture.engines[0]
    fixture.reports = {engine: HUNG}
    if state == "starting":
        fixture.set_phase(engine, ProcessPhase.STARTING)
    elif state == "draining":
        engine.is_draining = True
    elif state == "asleep":
        engine.sleep_state = SleepState.ASLEEP
    else:
        engine.process = None
    fixture.poll()
    assert fixture.restarted == []


def test_engines_that_share_a_process_are_not_restarted() -> None:
    fixture = WatchFixture(ports=2)
    fixture.reports = {fixture.engines[0]: HUNG}
    fixture.poll()
    assert fixture.restarted == []


def test_watch_waits_while_the_gateway_does_not_answer() -> None:
    fixture = WatchFixture()
    fixture.reports = {fixture.engines[0]: HUNG}
    fixture.is_gateway_up = False
    fixture.poll()
    assert fixture.restarted == []
    fixture.is_gateway_up = True
    fixture.poll()
    assert fixture.restarted == [fixture.engines[0]]
