"""One controller through scenarios, printed a line each; compiled where ``scripts/compile.py --sim`` has been run.

    python -m fairlead_sim.scaling [SCENARIO ...] [--preset NAME | --controller MODULE:NAME | --replicas N] [--set NAME=VALUE ...]
                                      [--seed N] [--traces FOLDER] [--oracles FILE] [--series] [--preempting]

Without a controller it is our core, of which ``--set`` changes a setting (``spread_sigmas=1.5``); of a preset it turns a knob
(``target=10``). ``MODULE:NAME`` is called with the scenario's ``ScaledModel`` and gives an object with ``step(observation) -> Plan``.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from fairlead.errors import BadInput, FairleadError
from fairlead_autoscaler.presets import PRESETS, build
from fairlead_autoscaler.replaying import changes_of
from fairlead_autoscaler.scaling import Core, ScaledModel, ScalingSettings
from fairlead_sim.compiled import run_compiled
from fairlead_sim.scaling.known import Known
from fairlead_sim.scaling.loop import Controller, Outcome, Schedule, run
from fairlead_sim.scaling.plant import Engines, Scenario
from fairlead_sim.scaling.scenarios import KINDS

EXAMPLE = "step-warm"
"""Before any scenario is made and run, a controller is tried on the model of this one."""


def main(arguments: Sequence[str]) -> int:
    """0; wrong arguments end in argparse's way."""
    parser = argparse.ArgumentParser(prog="python -m fairlead_sim.scaling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(KINDS)}; all when none is named"
    )
    wanted = parser.add_mutually_exclusive_group()
    wanted.add_argument("--preset", metavar="NAME", help=f"another's controller: {', '.join(PRESETS)}")
    wanted.add_argument("--controller", metavar="MODULE:NAME")
    wanted.add_argument("--replicas", type=int, help="a fixed number in each pool instead of a controller")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="changes", help="can be given again"
    )
    parser.add_argument(
        "--preempting",
        action="store_true",
        help="engines that admit more than their memory may bear in the end, as vLLM does; slow",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--traces", type=Path, help="a folder with the published traces")
    parser.add_argument("--oracles", type=Path, help="schedules that were found (bench/autoscaler), for cost ÷ oracle")
    parser.add_argument("--series", action="store_true", help="replicas and attainment every five minutes, too")
    given = parser.parse_args(arguments)
    for name in given.scenarios:
        if name not in KINDS:
            parser.error(f"no scenario is called {name!r}")
    try:
        make = _maker(given)
        make(KINDS[EXAMPLE](1, None).model)
    except (FairleadError, ImportError, AttributeError) as error:
        parser.error(str(error))
    engines = Engines.PREEMPTING if given.preempting else Engines.AGGREGATED
    for name in given.scenarios or KINDS:
        scenario = KINDS[name](given.seed, given.traces)
        begun = time.monotonic()
        outcome = run(scenario, _controller(given, scenario, make), engines=engines)
        seconds = time.monotonic() - begun
        oracle = None if given.oracles is None else Known(given.oracles).found(scenario)
        _show(outcome, None if oracle is None else oracle.cost, seconds)
        if given.series:
            _show_series(scenario, outcome)
    return 0


def _controller(given: argparse.Namespace, scenario: Scenario, make: Callable[[ScaledModel], Controller]) -> Controller:
    if given.replicas is not None:
        return Schedule([(0.0, {setup.facts.name: given.replicas for setup in scenario.pools})])
    return make(scenario.model)


def _maker(given: argparse.Namespace) -> Callable[[ScaledModel], Controller]:
    """What makes a controller for a model. Raises FairleadError for a preset, a knob or a setting that there is not."""
    if given.changes and (given.controller or given.replicas is not None):
        raise BadInput("--set is for our core and for presets", field="--set")
    if given.controller is not None:
        module, _, name = given.controller.partition(":")
        made: Callable[[ScaledModel], Controller] = getattr(import_module(module), name)
        return made
    if given.preset is not None:
        knobs = dict([_knob(text) for text in given.changes])
        return lambda model: build(given.preset, model, **knobs)
    changes = changes_of(given.changes)
    return lambda model: Core(replace(model, **changes.model), ScalingSettings(**changes.settings))


def _knob(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise BadInput(
            f"--set: {text!r} gives {name} no number", field="--set", hint="write it like target=10"
        ) from None


def _show(outcome: Outcome, oracle: float | None, seconds: float) -> None:
    ratio = "" if oracle is None else f" = {outcome.cost / oracle:.3f} x oracle"
    hours = " ".join(f"{name} {value:.2f} h" for name, value in outcome.replica_hours.items())
    print(
        f"{outcome.scenario:16} {100 * outcome.attainment:6.2f} % of {outcome.requests:7}  cost {outcome.cost:8.2f}{ratio} ({hours}) "
        f" abandoned {outcome.abandoned} lost {outcome.lost}  changes/h {outcome.changes_per_hour:.1f} "
        f"turns/h {outcome.turns_per_hour:.1f}  {seconds:.1f} s",
        flush=True,
    )


def _show_series(scenario: Scenario, outcome: Outcome) -> None:
    for look in outcome.looks:
        if look.now % 300.0 == 0.0:
            within = outcome.within(look.now - 300.0, look.now)
            share = "     –" if within is None else f"{100 * within:6.2f}"
            print(f"  {look.now:8.0f} s  ready {look.ready}  desired {look.desired}  {share} %")


if __name__ == "__main__":
    run_compiled()  # returns where it runs compiled already, or nothing is
    sys.exit(main(sys.argv[1:]))
