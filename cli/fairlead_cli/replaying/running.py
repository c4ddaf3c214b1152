"""A gateway that already runs: where it is, what is known of its fleet, and one replay against it."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fairlead import fleetfile
from fairlead.errors import BadInput
from fairlead.fleet import Instance, InstanceState, Model, Objectives
from fairlead_cli.local.rundir import Stack, newest_stack, running_stacks
from fairlead_cli.replaying.measure import measure
from fairlead_cli.replaying.prompts import PromptBuilder, Target, live_chains, plan
from fairlead_cli.replaying.report import Policy, Report, Side
from fairlead_cli.replaying.simulated import JITTER_SECONDS, Simulation, timing_doubts, way_seconds
from fairlead_cli.replaying.summary import on_clock
from fairlead_cli.replaying.traffic import Traffic
from fairlead_sim.tokenizer import Tokenizer

UNKNOWN_PRESET = "gateway"
SECRET_VARIABLE = "FAIRLEAD_HASH_SECRET"
KEY_VARIABLE = "FAIRLEAD_API_KEY"


@dataclass(frozen=True, slots=True)
class Place:
    """Where to send requests. ``known`` and ``instances`` are in the gateway's wall seconds; None and () when not known."""

    url: str
    model: str
    manage: str | None = None
    known: Model | None = None
    instances: tuple[Instance, ...] = ()


def find(*, url: str | None, manage: str | None, fleet_file: Path | None, model: str | None) -> Place:
    """The place that flags name, or that of this user's running stack. Raises NoStack or BadInput."""
    stack = newest_stack() if url is None else _stack_of(url)
    if stack is not None:
        url, manage = stack.url, manage or stack.manage
        fleet_file = fleet_file or (Path(stack.fleet_file) if stack.fleet_file else None)
    assert url is not None
    if fleet_file is None:
        if model is None:
            raise BadInput("which model to ask is not known", field="model", hint="give --model, or --fleet FILE")
        return Place(url, model, manage)
    try:
        text = fleet_file.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{fleet_file}: the fleet file cannot be read: {error.strerror}", field="fleet") from error
    fleet = fleetfile.parse(text, file=str(fleet_file))
    key = fleet.resolve(model) if model is not None else (next(iter(fleet.models)) if len(fleet.models) == 1 else None)
    if key is None:
        known = ", ".join(fleet.models)
        raise BadInput(f"the fleet has no one model {model or ''}".strip(), field="model", hint=f"it has {known}")
    ready = tuple(one for one in fleet.instances.get(key, ()) if one.state is InstanceState.READY)
    return Place(url, key, manage, fleet.models[key], ready)


def _stack_of(url: str) -> Stack | None:
    return next((one for one in running_stacks() if one.url.rstrip("/") == url.rstrip("/")), None)


def replay_once(traffic: Traffic, place: Place, *, speed: float, say: Callable[[str], None]) -> Report:
    """Replay ``traffic`` live; simulate it too where the fleet's profiles are known. Seconds of the report are simulated."""
    builder = PromptBuilder(Tokenizer())
    target = Target(place.url, model=place.model, key=os.environ.get(KEY_VARIABLE))
    planned = plan(traffic.requests, target, speed=speed, builder=builder)
    measured = measure(target, planned, speed=speed, title="replay", manage=place.manage, instances=place.instances)
    objectives = _slower(place.known.objectives, speed) if place.known is not None else Objectives()
    name = place.known.preset if place.known is not None else UNKNOWN_PRESET
    count = len(place.instances)
    live = Side.of(measured.outcomes, objectives=objectives, instances=count)
    policy = Policy(live)
    invalid = list(measured.doubts)
    simulation = _simulation(place, builder, say)
    if simulation is not None:
        # The fleet file's profiles are on the wall's clock, so the simulation is too, and its seconds are stretched afterwards.
        wall = [replace(request, arrival=request.arrival / speed) for request in traffic.requests]
        retraced = on_clock(simulation.retraced(wall, measured.outcomes), speed)
        invalid += timing_doubts(measured.outcomes, retraced)
        hearing = way_seconds(measured.outcomes, retraced) / speed
        typical = simulation.typical(wall, hearing_seconds=hearing, jitter_seconds=JITTER_SECONDS / speed)
        policy = Policy(
            live,
            Side.of(on_clock(typical, speed), objectives=objectives, instances=count),
            Side.of(retraced, objectives=objectives, instances=count),
        )
    return Report(
        trace=traffic.name,
        objectives=objectives,
        speed=speed,
        rate=traffic.rate,
        requests=len(traffic.requests),
        policies={name: policy},
        lags=measured.lags,
        invalid=invalid,
        ideal_reuse=traffic.ideal_reuse,
    )


def _simulation(place: Place, builder: PromptBuilder, say: Callable[[str], None]) -> Simulation | None:
    """The fleet as the simulator would have it; None, and said why, when too little is known of it."""
    profiles = {one.profile for one in place.instances}
    profile = next(iter(profiles)) if len(profiles) == 1 else None
    if place.known is None or profile is None:
        say("not simulated: the instances' profile is not known, or they have different ones")
        return None
    secret = os.environ.get(SECRET_VARIABLE, "")
    if not secret:
        say(f"simulated with other homes than the gateway's: {SECRET_VARIABLE} is not set here")
    return Simulation(
        profile=profile,
        instance_ids=[one.id for one in place.instances],
        preset=place.known.preset,
        objectives=place.known.objectives,
        secret=secret.encode(),
        chain=live_chains(builder, secret=secret.encode(), model_key=place.known.key),
    )


def _slower(objectives: Objectives, speed: float) -> Objectives:
    """What the gateway promises in wall seconds, in simulated ones."""
    ttft, itl = objectives.ttft_seconds, objectives.itl_seconds
    return replace(
        objectives,
        ttft_seconds=None if ttft is None else ttft * speed,
        ttft_per_kilo_token_seconds=objectives.ttft_per_kilo_token_seconds * speed,
        itl_seconds=None if itl is None else itl * speed,
    )
