"""A replay against a running gateway: its address, its fleet, and one measurement."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fairlead.errors import BadInput
from fairlead.fleet import file
from fairlead.fleet.model import Instance, InstanceState, Model, SloTargets
from fairlead_cli.local.run_directory import RunningStack, newest_stack, running_stacks
from fairlead_cli.replay.client.prompts import PromptBuilder, ReplayTarget, plan_requests, prefix_chains
from fairlead_cli.replay.fleet_simulation import JITTER_SECONDS, FleetSimulation, timing_doubts, transport_seconds
from fairlead_cli.replay.measurement import measure
from fairlead_cli.replay.report.report import PolicyResult, ReplayReport, RunSummary
from fairlead_cli.replay.report.summary import scale_times
from fairlead_cli.replay.traffic import ReplayTraffic
from fairlead_sim.engine.tokenizer import Tokenizer

UNKNOWN_PRESET = "gateway"
SECRET_VARIABLE = "FAIRLEAD_HASH_SECRET"
KEY_VARIABLE = "FAIRLEAD_API_KEY"


@dataclass(frozen=True, slots=True)
class GatewayTarget:
    """The gateway and model to send requests to.

    fleet_model and instances: in the gateway's wall seconds; None and () when unknown.
    """

    url: str
    model: str
    manage: str | None = None
    fleet_model: Model | None = None
    instances: tuple[Instance, ...] = ()


def find_gateway(*, url: str | None, manage: str | None, fleet_file: Path | None, model: str | None) -> GatewayTarget:
    """Returns the gateway of the options, or of this user's running stack. Raises StackUnreachable
    or BadInput.
    """
    stack = newest_stack() if url is None else _find_stack(url)
    if stack is not None:
        url, manage = stack.url, manage or stack.manage
        fleet_file = fleet_file or (Path(stack.fleet_file) if stack.fleet_file else None)
    assert url is not None
    if fleet_file is None:
        if model is None:
            raise BadInput("the model to query is not known", field="model", hint="give --model, or --fleet FILE")
        return GatewayTarget(url, model, manage)
    try:
        fleet_text = fleet_file.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{fleet_file}: the fleet file cannot be read: {error.strerror}", field="fleet") from error
    fleet = file.parse_fleet_file(fleet_text, file=str(fleet_file))
    key = (
        fleet.resolve_model(model)
        if model is not None
        else (next(iter(fleet.models)) if len(fleet.models) == 1 else None)
    )
    if key is None:
        names = ", ".join(fleet.models)
        raise BadInput(
            f"the fleet has no single model {model or ''}".strip(), field="model", hint=f"models of the fleet: {names}"
        )
    ready = tuple(instance for instance in fleet.instances.get(key, ()) if instance.state is InstanceState.READY)
    return GatewayTarget(url, key, manage, fleet.models[key], ready)


def _find_stack(url: str) -> RunningStack | None:
    return next((stack for stack in running_stacks() if stack.url.rstrip("/") == url.rstrip("/")), None)


def replay_once(
    traffic: ReplayTraffic, gateway: GatewayTarget, *, speed: float, on_progress: Callable[[str], None]
) -> ReplayReport:
    """Replays the traffic live, and simulates it when the profiles are known. The report is in
    simulated seconds.
    """
    builder = PromptBuilder(Tokenizer())
    target = ReplayTarget(gateway.url, model=gateway.model, key=os.environ.get(KEY_VARIABLE))
    planned = plan_requests(traffic.requests, target, speed=speed, builder=builder)
    measurement = measure(
        target, planned, speed=speed, title="replay", manage=gateway.manage, instances=gateway.instances
    )
    objectives = (
        _simulated_objectives(gateway.fleet_model.objectives, speed)
        if gateway.fleet_model is not None
        else SloTargets()
    )
    name = gateway.fleet_model.preset if gateway.fleet_model is not None else UNKNOWN_PRESET
    instance_count = len(gateway.instances)
    live = RunSummary.from_results(measurement.results, objectives=objectives, instances=instance_count)
    policy = PolicyResult(live)
    invalid_reasons = list(measurement.doubts)
    simulation = _simulation(gateway, builder, on_progress)
    if simulation is not None:
        # The fleet file's profiles are in wall seconds, so the simulation is too.
        wall_requests = [replace(request, arrival=request.arrival / speed) for request in traffic.requests]
        rerun = scale_times(simulation.run_on_choices(wall_requests, measurement.results), speed)
        invalid_reasons += timing_doubts(measurement.results, rerun)
        feedback_delay = transport_seconds(measurement.results, rerun) / speed
        median_run = simulation.run_median(
            wall_requests, feedback_delay_seconds=feedback_delay, jitter_seconds=JITTER_SECONDS / speed
        )
        policy = PolicyResult(
            live,
            RunSummary.from_results(scale_times(median_run, speed), objectives=objectives, instances=instance_count),
            RunSummary.from_results(rerun, objectives=objectives, instances=instance_count),
        )
    return ReplayReport(
        trace=traffic.name,
        objectives=objectives,
        speed=speed,
        rate=traffic.rate,
        requests=len(traffic.requests),
        policies={name: policy},
        lags=measurement.lags,
        invalid_reasons=invalid_reasons,
        ideal_reuse=traffic.ideal_reuse,
    )


def _simulation(
    gateway: GatewayTarget, builder: PromptBuilder, on_progress: Callable[[str], None]
) -> FleetSimulation | None:
    """Returns the simulation of the fleet; None, with a message, when too little is known."""
    profiles = {instance.profile for instance in gateway.instances}
    profile = next(iter(profiles)) if len(profiles) == 1 else None
    if gateway.fleet_model is None or profile is None:
        on_progress("not simulated: the instances' profile is not known, or they have different ones")
        return None
    secret = os.environ.get(SECRET_VARIABLE, "")
    if not secret:
        on_progress(f"simulated with other homes than the gateway's: {SECRET_VARIABLE} is not set here")
    return FleetSimulation(
        profile=profile,
        instance_ids=[instance.id for instance in gateway.instances],
        preset=gateway.fleet_model.preset,
        objectives=gateway.fleet_model.objectives,
        secret=secret.encode(),
        chain=prefix_chains(builder, secret=secret.encode(), model_key=gateway.fleet_model.key),
    )


def _simulated_objectives(objectives: SloTargets, speed: float) -> SloTargets:
    """Converts latency targets from wall to simulated seconds."""
    ttft, itl = objectives.ttft_seconds, objectives.itl_seconds
    return replace(
        objectives,
        ttft_seconds=None if ttft is None else ttft * speed,
        ttft_per_kilo_token_seconds=objectives.ttft_per_kilo_token_seconds * speed,
        itl_seconds=None if itl is None else itl * speed,
    )
