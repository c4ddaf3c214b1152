"""Runs one controller through scenarios and prints a line for each.

    python -m fairlead_sim.autoscaling [SCENARIO ...] [--set NAME=VALUE ...] [--seed N]
        [--preset NAME | --controller MODULE:NAME | --replicas N]
        [--traces FOLDER] [--oracles FILE] [--series] [--preempting | --fleet]

The default controller is the production core; ``--set`` changes one of its settings
(``goal_usual=0.8``), or a parameter of a preset (``target=10``). ``MODULE:NAME`` is called with
the scenario's ``ModelSpec`` and returns an object with ``step(observation)``. The command runs
compiled after ``scripts/compile.py --sim``.
"""

import argparse
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from fairlead.errors import BadInput, FairleadError
from fairlead_autoscaler.core import ModelSpec, ScalingCore, ScalingSettings
from fairlead_autoscaler.history.replay import parse_changes
from fairlead_sim.autoscalers import PRESETS, Controller, build
from fairlead_sim.autoscaling.closed_loop import ControllerOutcome, ScheduleController, run_controller
from fairlead_sim.autoscaling.fleet_plant.plant import FleetPlant
from fairlead_sim.autoscaling.offline_optimum import OptimumCache
from fairlead_sim.autoscaling.plant import AutoscalingScenario, EngineModelKind, Plant, SimulatedPlant
from fairlead_sim.autoscaling.scenarios import SCENARIOS, WIDER_SCENARIOS
from fairlead_sim.autoscaling.unservable_requests import find_unservable, servable_share
from fairlead_sim.compiled import run_compiled

EXAMPLE_SCENARIO = "step-warm"
"""A controller is tried on the model of this scenario before any scenario is built."""


def main(arguments: Sequence[str]) -> int:
    """Runs the scenarios and returns 0. Wrong arguments exit as argparse does."""
    parser = argparse.ArgumentParser(
        prog="python -m fairlead_sim.autoscaling", description=(__doc__ or "").splitlines()[0]
    )
    known = {**SCENARIOS, **WIDER_SCENARIOS}
    parser.add_argument(
        "scenarios",
        nargs="*",
        metavar="SCENARIO",
        help=f"any of {', '.join(known)}; default: all but the last {len(WIDER_SCENARIOS)}",
    )
    controllers = parser.add_mutually_exclusive_group()
    controllers.add_argument(
        "--preset", metavar="NAME", help=f"a preset in place of the production core: {', '.join(PRESETS)}"
    )
    controllers.add_argument("--controller", metavar="MODULE:NAME")
    controllers.add_argument("--replicas", type=int, help="a fixed number in each pool instead of a controller")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="changes",
        help="a setting or parameter; may be repeated",
    )
    plants = parser.add_mutually_exclusive_group()
    plants.add_argument(
        "--fleet",
        action="store_true",
        help="the fleet simulator: conversations, prefix caches and the gateway's router; 5 to 10 times slower",
    )
    plants.add_argument(
        "--preempting",
        action="store_true",
        help="engines that admit prompts without reserving memory for the output, as vLLM does; slow",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--traces", type=Path, help="a folder with the published traces")
    parser.add_argument("--oracles", type=Path, help="a file of offline optima (bench/autoscaler), for cost ÷ optimum")
    parser.add_argument("--series", action="store_true", help="also print replicas and attainment every five minutes")
    options = parser.parse_args(arguments)
    for name in options.scenarios:
        if name not in known:
            parser.error(f"no scenario is called {name!r}")
    try:
        make_controller = _controller_factory(options)
        make_controller(SCENARIOS[EXAMPLE_SCENARIO](1, None).model)
    except (FairleadError, ImportError, AttributeError) as error:
        parser.error(str(error))
    for name in options.scenarios or SCENARIOS:
        scenario = known[name](options.seed, options.traces)
        started = time.monotonic()
        try:
            plant = _make_plant(options, scenario)
        except FairleadError as error:
            parser.error(str(error))
        outcome = run_controller(scenario, _controller_for(options, scenario, make_controller), plant=plant)
        seconds = time.monotonic() - started
        oracle = None if options.oracles is None else OptimumCache(options.oracles).get(scenario)
        _print_outcome(outcome, None if oracle is None else oracle.cost, seconds)
        if not options.fleet:
            _print_servable(outcome, find_unservable(scenario, engine_model=_engine_model(options)))
        if isinstance(plant, FleetPlant):
            print(f"  cached {100 * plant.cached_share:.1f} % of the prompt tokens", flush=True)
        if options.series:
            _print_series(scenario, outcome)
    return 0


def _make_plant(options: argparse.Namespace, scenario: AutoscalingScenario) -> SimulatedPlant:
    if options.fleet:
        return FleetPlant(scenario)
    return Plant(scenario, engine_model=_engine_model(options))


def _engine_model(options: argparse.Namespace) -> EngineModelKind:
    return EngineModelKind.PREEMPTING if options.preempting else EngineModelKind.AGGREGATED


def _controller_for(
    options: argparse.Namespace, scenario: AutoscalingScenario, make_controller: Callable[[ModelSpec], Controller]
) -> Controller:
    if options.replicas is not None:
        return ScheduleController([(0.0, {setup.facts.name: options.replicas for setup in scenario.pools})])
    return make_controller(scenario.model)


def _controller_factory(options: argparse.Namespace) -> Callable[[ModelSpec], Controller]:
    """Returns a function that makes the controller of a model.

    Raises FairleadError for an unknown preset, parameter or setting.
    """
    if options.changes and (options.controller or options.replicas is not None):
        raise BadInput("--set cannot be combined with --controller or --replicas", field="--set")
    if options.controller is not None:
        module, _, name = options.controller.partition(":")
        factory: Callable[[ModelSpec], Controller] = getattr(import_module(module), name)
        return factory
    if options.preset is not None:
        knobs = dict([_parse_parameter(text) for text in options.changes])
        return lambda model: build(options.preset, model, **knobs)
    changes = parse_changes(options.changes)
    return lambda model: ScalingCore(replace(model, **changes.model), ScalingSettings().with_values(changes.settings))


def _parse_parameter(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise BadInput(
            f"--set: the value in {text!r} is not a number", field="--set", hint="write it like target=10"
        ) from None


def _print_outcome(outcome: ControllerOutcome, oracle: float | None, seconds: float) -> None:
    ratio = "" if oracle is None else f" = {outcome.cost / oracle:.3f} x optimum"
    hours = " ".join(f"{name} {value:.2f} h" for name, value in outcome.replica_hours.items())
    print(
        f"{outcome.scenario:16} {100 * outcome.attainment:6.2f} % of {outcome.requests:7}  cost {outcome.cost:8.2f}{ratio} ({hours}) "
        f" abandoned {outcome.abandoned} lost {outcome.lost}  changes/h {outcome.changes_per_hour:.1f} "
        f"turns/h {outcome.reversals_per_hour:.1f}  {seconds:.1f} s",
        flush=True,
    )


def _print_servable(outcome: ControllerOutcome, unservable: Collection[int]) -> None:
    if unservable:
        share = servable_share(outcome, unservable).share
        print(f"  without {len(unservable)} requests that no start could have served: {100 * share:.2f} %", flush=True)


def _print_series(scenario: AutoscalingScenario, outcome: ControllerOutcome) -> None:
    for sample in outcome.samples:
        if sample.now % 300.0 == 0.0:
            attainment = outcome.attainment_between(sample.now - 300.0, sample.now)
            share = "     –" if attainment is None else f"{100 * attainment:6.2f}"
            print(f"  {sample.now:8.0f} s  ready {sample.ready}  desired {sample.desired}  {share} %")


if __name__ == "__main__":
    run_compiled()  # returns if it runs compiled already, or cannot
    sys.exit(main(sys.argv[1:]))
