"""The state that local mode writes for the autoscaler, and the targets that it applies."""

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fairlead import management_api as api
from fairlead.engine_profile import builtin_profile
from fairlead.errors import BadInput
from fairlead.fleet.hung_engines import EjectionReport
from fairlead.fleet.model import Instance, Model, Role
from fairlead.manifests.loader import load_manifests
from fairlead.runtime.clock import ManualClock
from fairlead_autoscaler.core import ReplicaState, SleepTier, WakeTiming
from fairlead_autoscaler.local.state_files import DESIRED_FILE, STATE_FILE, DesiredPool, DesiredPools, write_file
from fairlead_autoscaler.local.target import LocalTarget
from fairlead_cli.exit_codes import StackUnreachable
from fairlead_cli.local.processes.child_process import ProcessCommand
from fairlead_cli.local.processes.managed_process import ManagedProcess, ProcessPhase
from fairlead_cli.local.stack.engine_plan import EnginePlan, PlanOptions, ScaledModelSpec, plan_engines
from fairlead_cli.local.stack.engine_process import EnginePoolSpec, EngineProcess, SleepState
from fairlead_cli.local.stack.stack_run import AutoscalerSync, HungEngineWatch

MANIFEST = """\
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {name: tiny}
spec:
  model: {uri: "hf://org/tiny"}
  pools: [{acceleratorClassName: nvidia-l4, minReplicas: 0, maxReplicas: 6}]
  slo: {ttft: 2s}
  autoscaling: {mode: Auto, stabilizationWindow: 2m}
"""
KEY = "default/tiny"


def make_plan(directory: Path, text: str = MANIFEST, **options: Any) -> EnginePlan:
    (directory / "m.yaml").write_text(text)
    return plan_engines(load_manifests([directory / "m.yaml"]), PlanOptions(**options), find_program=lambda name: name)


def test_scaled_model_may_start_with_zero_engines(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    assert plan.engines == 0
    (scaled,) = plan.scaled_models
    assert (scaled.key, scaled.policy) == (KEY, {"mode": "Auto", "stabilizationWindow": "2m"})
    (pool,) = scaled.pools
    assert (pool.name, pool.role, pool.minimum, pool.maximum) == ("main", Role.SERVE, 0, 6)
    assert pool.profile == builtin_profile("l4-qwen8b")
    assert plan.pools[0].model.wakes
    with pytest.raises(BadInput, match="no pool has a replica"):
        make_plan(
            tmp_path,
            MANIFEST.replace("autoscaling: {mode: Auto, stabilizationWindow: 2m}", "autoscaling: {mode: Disabled}"),
        )


def test_autoscaler_spec_is_independent_of_speed(tmp_path: Path) -> None:
    assert make_plan(tmp_path, speed=10.0).scaled_models == make_plan(tmp_path).scaled_models


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        (MANIFEST.replace("minReplicas: 0", "minReplicas: 1") + "  replicas: 2\n", {}, "spec.replicas sets the number"),
        (
            MANIFEST.replace("minReplicas: 0", "minReplicas: 4"),
            {"engines_per_process": 2},
            "its engines share processes",
        ),
    ],
)
def test_unscaled_model_becomes_a_note(tmp_path: Path, text: str, options: dict[str, Any], reason: str) -> None:
    plan = make_plan(tmp_path, text, **options)
    assert (plan.scaled_models, plan.notes) == ((), (f"tiny: not scaled, since {reason}",))


class FakeSupervisor:
    """A supervisor that records scale calls, with engines in chosen phases."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        template = Instance("", "default", "tiny", "main", "", engine="sim")
        self.pool = EnginePoolSpec(Model("default", "tiny"), "main", 1, template, lambda *_: ProcessCommand(()), "main")
        self.engines: list[EngineProcess] = []
        self.desired_replicas = {(KEY, "main"): 1}
        self.desired_asleep = {(KEY, "main"): 0}
        self.scale_calls: list[tuple[str, str, int, tuple[str, ...]]] = []
        self.events: list[str] = []
        self.fails = False
        self.clock = ManualClock(1_000.0)
        self.on_change = lambda: None

    async def scale(self, key: str, pool: str, replicas: int, leaving: tuple[str, ...] = (), asleep: int = 0) -> None:
        if self.fails:
            raise BadInput("no ports")
        self.desired_replicas[key, pool], self.desired_asleep[key, pool] = replicas, asleep
        self.scale_calls.append((key, pool, replicas, leaving))

    def add_engine(self, number: int, phase: ProcessPhase, started: float, ready: float | None = None) -> EngineProcess:
        engine = EngineProcess(self.pool, number, (9_000 + number,))
        engine.process = SimpleNamespace(phase=phase, started_at=started, ready_at=ready)  # type: ignore[assignment]  # the attributes in use
        self.engines.append(engine)
        return engine

    def sync(self, scaled: ScaledModelSpec) -> AutoscalerSync:
        return AutoscalerSync(self.directory, [scaled], self, self.clock, self.events.append)  # type: ignore[arg-type]  # the attributes in use


async def test_state_has_engine_times_and_dead_engines_as_pending(tmp_path: Path) -> None:
    (scaled,) = make_plan(tmp_path).scaled_models
    supervisor = FakeSupervisor(tmp_path)
    supervisor.add_engine(0, ProcessPhase.READY, 900.0, 905.0)
    supervisor.add_engine(1, ProcessPhase.WAITING, 950.0, 955.0)
    supervisor.add_engine(2, ProcessPhase.READY, 980.0, 985.0).is_draining = True
    supervisor.sync(scaled).write_state()
    state = (await LocalTarget(tmp_path / STATE_FILE, supervisor.clock, 5.0).observe())[KEY]
    assert state.policy.stabilization_window == "2m"
    pool = state.pools["main"]
    assert pool.desired == 1
    assert [(replica.id, replica.state, replica.age_seconds, replica.startup_seconds) for replica in pool.replicas] == [
        ("main-0", ReplicaState.READY, 100.0, 5.0),
        ("main-1", ReplicaState.PENDING, 50.0, None),
        ("main-2", ReplicaState.DRAINING, 20.0, 5.0),
    ]
    assert pool.replicas[0].instances == ("main-0/9000/0",)


def synced(directory: Path, text: str = MANIFEST) -> tuple[FakeSupervisor, AutoscalerSync]:
    supervisor = FakeSupervisor(directory)
    return supervisor, supervisor.sync(*make_plan(directory, text).scaled_models)


async def apply(sync: AutoscalerSync, directory: Path, target: DesiredPool) -> None:
    write_file(directory / DESIRED_FILE, DesiredPools({KEY: {"main": target}}))
    sync.apply_targets()
    await asyncio.sleep(0)


async def test_target_is_applied_once(tmp_path: Path) -> None:
    supervisor, sync = synced(tmp_path)
    sync.apply_targets()  # there is no target yet
    write_file(
        tmp_path / DESIRED_FILE,
        DesiredPools({KEY: {"main": DesiredPool(3, ("main-0",))}, "default/gone": {"main": DesiredPool(9)}}),
    )
    for _ in range(3):
        sync.apply_targets()
        await asyncio.sleep(0)
    await apply(sync, tmp_path, DesiredPool(3))
    await sync.stop()
    assert supervisor.scale_calls == [(KEY, "main", 3, ("main-0",))]


async def test_unreadable_or_impossible_target_is_reported(tmp_path: Path) -> None:
    supervisor, sync = synced(tmp_path)
    (tmp_path / DESIRED_FILE).write_text("{")
    for _ in range(2):
        sync.apply_targets()
    supervisor.fails = True
    await apply(sync, tmp_path, DesiredPool(3))
    await sync.stop()
    assert len(supervisor.events) == 2
    assert supervisor.events[0].startswith("the autoscaler's targets cannot be read: ")
    assert supervisor.events[1] == f"main of {KEY} cannot be brought to 3: no ports"


@pytest.mark.parametrize("replicas", [-1, 0, 7, 4_000])
async def test_target_outside_all_bounds_is_rejected(tmp_path: Path, replicas: int) -> None:
    hours = 'schedules: [{name: day, begin: "08:00", end: "20:00", minReplicas: 2, maxReplicas: 6}]'
    text = MANIFEST.replace("minReplicas: 0, maxReplicas: 6", "minReplicas: 1, maxReplicas: 4").replace(
        "stabilizationWindow: 2m", hours
    )
    supervisor, sync = synced(tmp_path, text)
    for number in (replicas, 6):
        await apply(sync, tmp_path, DesiredPool(number))
    await sync.stop()
    assert supervisor.events == [f"main of {KEY} stays as it is: {replicas} are wanted of it, and 1 to 6 are allowed"]
    assert supervisor.scale_calls == [(KEY, "main", 6, ())]


def test_unchanged_state_is_not_rewritten(tmp_path: Path) -> None:
    (scaled,) = make_plan(tmp_path).scaled_models
    supervisor = FakeSupervisor(tmp_path)
    engine = supervisor.add_engine(0, ProcessPhase.READY, 900.0, 905.0)
    sync = supervisor.sync(replace(scaled))
    sync.write_state()
    first = (tmp_path / STATE_FILE).stat().st_mtime_ns, (tmp_path / STATE_FILE).stat().st_ino
    sync.write_state()
    assert ((tmp_path / STATE_FILE).stat().st_mtime_ns, (tmp_path / STATE_FILE).stat().st_ino) == first
    engine.is_draining = True
    sync.write_state()
    assert (tmp_path / STATE_FILE).stat().st_ino != first[1]


TIERED = MANIFEST.replace("stabilizationWindow: 2m", "sleep: {min: 1, max: 2, level: 2, after: 1h}")


async def test_state_has_sleeping_engines_with_wake_times(tmp_path: Path) -> None:
    (scaled,) = make_plan(tmp_path, TIERED).scaled_models
    assert scaled.pools[0].tier == SleepTier(2, 1, 2, 3_600.0)
    supervisor = FakeSupervisor(tmp_path)
    supervisor.pool = replace(supervisor.pool, sleep_level=2)
    supervisor.desired_asleep[KEY, "main"] = 1
    sleep_states = (SleepState.AWAKE, SleepState.FALLING_ASLEEP, SleepState.ASLEEP, SleepState.WAKING)
    for number, sleep_state in enumerate(sleep_states):
        supervisor.add_engine(number, ProcessPhase.READY, 900.0, 905.0).sleep_state = sleep_state
    supervisor.engines[0].wake_count, supervisor.engines[0].wake_seconds = 3, 1.5
    supervisor.sync(scaled).write_state()
    pool = (await LocalTarget(tmp_path / STATE_FILE, supervisor.clock, 5.0, speed=2.0).observe())[KEY].pools["main"]
    assert (pool.desired, pool.asleep) == (1, 1)
    assert [replica.state.value for replica in pool.replicas] == ["ready", "falling-asleep", "asleep", "waking"]
    assert pool.replicas[0].last_wake == WakeTiming(2, 3, 3.0)
    assert pool.replicas[1].last_wake is None


@pytest.mark.parametrize(
    ("target", "is_applied"),
    [(DesiredPool(1, (), 2), True), (DesiredPool(1, (), 3), False), (DesiredPool(5, (), 2), False)],
)
async def test_sleep_target_is_limited_by_the_manifest(tmp_path: Path, target: DesiredPool, is_applied: bool) -> None:
    supervisor, sync = synced(tmp_path, TIERED)
    await apply(sync, tmp_path, target)
    await sync.stop()
    assert bool(supervisor.scale_calls) is is_applied
    assert supervisor.desired_asleep[KEY, "main"] == (2 if is_applied else 0)
    if not is_applied:
        assert supervisor.events[0].endswith(" asleep")


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
        self.on_event = self.events.append
        self.watch = HungEngineWatch(self, self, ManualClock(1_000.0))

    def set_phase(self, engine: EngineProcess, phase: ProcessPhase, ready_at: float = 0.0) -> None:
        engine.process = cast(ManagedProcess, SimpleNamespace(phase=phase, ready_at=ready_at))

    async def fleet(self) -> api.FleetOut:
        if not self.is_gateway_up:
            raise StackUnreachable("no gateway")
        instances = [
            api.InstanceOut(id=engine.instance_ids()[0], ejection=self.reports.get(engine)) for engine in self.engines
        ]
        return api.FleetOut(
            version=1, models=[api.ModelOut(key="default/m", namespace="default", name="m", instances=instances)]
        )

    async def restart_engine(self, engine: EngineProcess) -> None:
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
