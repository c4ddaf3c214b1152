"""The demo's work: the same requests under several routing presets, live and simulated, side by side.

Each preset gets a stack of its own, started cold. A run whose loops lagged is repeated once; what lags again is reported
as not valid. The simulator gets the same requests, instances and hash secret, so that it computes the same homes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Instance, SloTargets
from fairlead.runtime.clock import Clock
from fairlead_cli.replay.client.prompts import PromptBuilder, ReplayTarget, plan_requests, prefix_chains
from fairlead_cli.replay.client.replay_result import ReplayResult
from fairlead_cli.replay.fleet_simulation import FleetSimulation, timing_doubts, transport_seconds
from fairlead_cli.replay.measurement import Measurement, measure
from fairlead_cli.replay.report.report import PolicyResult, ReplayReport, RunSummary
from fairlead_cli.replay.stack_process import MeasuredStack, MeasuredStackOptions
from fairlead_cli.replay.traffic import ReplayTraffic
from fairlead_sim.engine.tokenizer import Tokenizer

MANIFEST_TEMPLATE = """\
# What `fairlead demo` serves: eight simulated engines of the profile that the routing studies use.
apiVersion: serving.fairlead.io/v1alpha1
kind: AcceleratorClass
metadata: {{name: npu-910b4}}
spec:
  profile: {{preset: {profile}}}
---
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {{name: demo}}
spec:
  model: {{source: "hf://Qwen/Qwen2.5-7B-Instruct"}}
  pools:
    - accelerator: npu-910b4
      replicas: {{min: {engines}}}
  objectives: {{ttft: {ttft:g}s, itl: {itl:g}s}}
"""


@dataclass(frozen=True, slots=True)
class PresetComparison:
    """What is compared on what. Rates and objectives are in simulated seconds."""

    traffic: ReplayTraffic
    presets: Sequence[str]
    profile: EngineProfile
    engines: int
    objectives: SloTargets
    speed: float
    light_rate: float
    folder: Path
    secret: str = "fairlead demo"
    repeat_within_seconds: float = 300.0
    """A run that lagged is repeated only this soon after the start: the whole shall end within twelve minutes."""

    def run(self, on_progress: Callable[[str], None], clock: Clock) -> ReplayReport:
        """Everything, one preset after the other. Raises Unavailable or LeftOver when a stack does not come or go well."""
        builder = PromptBuilder(Tokenizer())
        policies: dict[str, PolicyResult] = {}
        light: dict[str, PolicyResult] = {}
        lags: dict[str, float | None] = {}
        invalid: list[str] = []
        begun = clock.now()
        slow = self.traffic.with_rate(self.light_rate)
        for preset in self.presets:
            live = self._live(preset, builder, on_progress)
            if live.doubts and clock.now() - begun < self.repeat_within_seconds:
                on_progress(f"{preset}: {live.doubts[0]}; measuring it once more")
                live = self._live(preset, builder, on_progress)
            hearing = transport_seconds(live.measured.results, live.retraced)
            typical = live.simulation.run_median(self.traffic.requests, hearing_seconds=hearing)
            unhurried = live.simulation.run(slow.requests, hearing_seconds=hearing)
            policies[preset] = PolicyResult(*map(self._side, (live.measured.results, typical, live.retraced)))
            light[preset] = PolicyResult(simulated=self._side(unhurried))
            lags |= {f"{preset}: {name}": lag for name, lag in live.measured.lags.items()}
            invalid += [f"{preset}: {doubt}" for doubt in live.doubts]
        return ReplayReport(
            trace=self.traffic.name,
            objectives=self.objectives,
            speed=self.speed,
            rate=self.traffic.rate,
            requests=len(self.traffic.requests),
            policies=policies,
            lags=lags,
            invalid_reasons=invalid,
            ideal_reuse=self.traffic.ideal_reuse,
            light_rate=self.light_rate,
            light=light,
        )

    def _live(self, preset: str, builder: PromptBuilder, say: Callable[[str], None]) -> "_LiveMeasurement":
        """A fresh stack, the whole traffic, and the stack gone again."""
        wish = MeasuredStackOptions(
            manifest=self.write_manifest(),
            preset=preset,
            speed=self.speed,
            secret=self.secret,
            log=self.folder / f"up-{preset}.log",
            engines=self.engines,
        )
        say(f"{preset}: starting {self.engines} engines and a gateway")
        with MeasuredStack(wish) as local:
            model, instances = local.only_model()
            target = ReplayTarget(local.addresses.url, model=model.name)
            planned = plan_requests(self.traffic.requests, target, speed=self.speed, builder=builder)
            measured = measure(
                target, planned, speed=self.speed, title=preset, manage=local.addresses.manage, instances=instances
            )
        failed = [outcome.error for outcome in measured.results if outcome.error is not None]
        if failed:
            say(f"{preset}: {len(failed)} of {len(planned)} requests failed, the first with: {failed[0]}")
        simulation = self._like(preset, instances, model.key, builder)
        return _LiveMeasurement(
            measured, simulation, simulation.run_on_choices(self.traffic.requests, measured.results)
        )

    def _like(self, preset: str, instances: Sequence[Instance], key: str, builder: PromptBuilder) -> FleetSimulation:
        secret = self.secret.encode()
        return FleetSimulation(
            profile=self.profile,
            instance_ids=[one.id for one in instances],
            preset=preset,
            objectives=self.objectives,
            secret=secret,
            chain=prefix_chains(builder, secret=secret, model_key=key),
        )

    def _side(self, outcomes: Sequence[ReplayResult]) -> RunSummary:
        return RunSummary.from_results(outcomes, objectives=self.objectives, instances=self.engines)

    def write_manifest(self) -> Path:
        """What ``fairlead up`` is given; it stays beside the report."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "model.yaml"
        file.write_text(
            MANIFEST_TEMPLATE.format(
                profile=self.profile.name,
                engines=self.engines,
                ttft=self.objectives.ttft_seconds,
                itl=self.objectives.itl_seconds,
            ),
            encoding="utf-8",
        )
        return file


@dataclass(frozen=True, slots=True)
class _LiveMeasurement:
    """A measurement, the simulation that is like it, and what that makes of the measurement's own choices."""

    measured: Measurement
    simulation: FleetSimulation
    retraced: Sequence[ReplayResult]

    @property
    def doubts(self) -> list[str]:
        """Why not to believe it."""
        return [*self.measured.doubts, *timing_doubts(self.measured.results, self.retraced)]
