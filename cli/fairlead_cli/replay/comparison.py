"""The comparison of ``fairlead demo``: the same requests under several presets, live and simulated.

Each preset gets a new, cold stack. A run with doubts, such as loop lag, is repeated once if there
is time. Doubts about the last run make it invalid. The simulator gets the same requests, instances
and hash secret, so that it computes the same homes.
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
  model: {{uri: "hf://Qwen/Qwen2.5-7B-Instruct"}}
  pools:
    - acceleratorClassName: npu-910b4
      minReplicas: {engines}
  slo: {{ttft: {ttft:g}s, tpot: {itl:g}s}}
"""


@dataclass(frozen=True, slots=True)
class PresetComparison:
    """The presets and traffic to compare. Rates and latency targets are in simulated seconds."""

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
    """A run is repeated only this soon after the start: the whole should end within twelve minutes.
    """

    def run(self, on_progress: Callable[[str], None], clock: Clock) -> ReplayReport:
        """Runs all presets one after the other. Raises Unavailable or LeftoverProcesses when a
        stack fails to start or stop.
        """
        builder = PromptBuilder(Tokenizer())
        policies: dict[str, PolicyResult] = {}
        light: dict[str, PolicyResult] = {}
        lags: dict[str, float | None] = {}
        invalid: list[str] = []
        started = clock.now()
        light_traffic = self.traffic.with_rate(self.light_rate)
        for preset in self.presets:
            live = self._measure(preset, builder, on_progress)
            if live.doubts and clock.now() - started < self.repeat_within_seconds:
                on_progress(f"{preset}: {live.doubts[0]}; measuring it once more")
                live = self._measure(preset, builder, on_progress)
            feedback_delay = transport_seconds(live.measurement.results, live.rerun)
            median_run = live.simulation.run_median(self.traffic.requests, feedback_delay_seconds=feedback_delay)
            light_results = live.simulation.run(light_traffic.requests, feedback_delay_seconds=feedback_delay)
            policies[preset] = PolicyResult(*map(self._summarize, (live.measurement.results, median_run, live.rerun)))
            light[preset] = PolicyResult(simulated=self._summarize(light_results))
            lags |= {f"{preset}: {name}": lag for name, lag in live.measurement.lags.items()}
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

    def _measure(self, preset: str, builder: PromptBuilder, on_progress: Callable[[str], None]) -> "_LiveMeasurement":
        """Replays the traffic once on a new stack, and simulates it on the choices of that run."""
        options = MeasuredStackOptions(
            manifest=self.write_manifest(),
            preset=preset,
            speed=self.speed,
            secret=self.secret,
            log=self.folder / f"up-{preset}.log",
            engines=self.engines,
        )
        on_progress(f"{preset}: starting {self.engines} engines and a gateway")
        with MeasuredStack(options) as stack:
            model, instances = stack.only_model()
            target = ReplayTarget(stack.addresses.url, model=model.name)
            planned = plan_requests(self.traffic.requests, target, speed=self.speed, builder=builder)
            measurement = measure(
                target, planned, speed=self.speed, title=preset, manage=stack.addresses.manage, instances=instances
            )
        errors = [result.error for result in measurement.results if result.error is not None]
        if errors:
            on_progress(f"{preset}: {len(errors)} of {len(planned)} requests failed, the first with: {errors[0]}")
        simulation = self._simulation(preset, instances, model.key, builder)
        return _LiveMeasurement(
            measurement, simulation, simulation.run_on_choices(self.traffic.requests, measurement.results)
        )

    def _simulation(
        self, preset: str, instances: Sequence[Instance], key: str, builder: PromptBuilder
    ) -> FleetSimulation:
        secret = self.secret.encode()
        return FleetSimulation(
            profile=self.profile,
            instance_ids=[instance.id for instance in instances],
            preset=preset,
            objectives=self.objectives,
            secret=secret,
            chain=prefix_chains(builder, secret=secret, model_key=key),
        )

    def _summarize(self, results: Sequence[ReplayResult]) -> RunSummary:
        return RunSummary.from_results(results, objectives=self.objectives, instances=self.engines)

    def write_manifest(self) -> Path:
        """Writes the manifest of the stack into the folder of the report."""
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
    """A measurement, a simulation of its fleet, and simulated results on the measured choices."""

    measurement: Measurement
    simulation: FleetSimulation
    rerun: Sequence[ReplayResult]

    @property
    def doubts(self) -> list[str]:
        """Reasons why the measurement is not valid."""
        return [*self.measurement.doubts, *timing_doubts(self.measurement.results, self.rerun)]
