"""A gateway whose worker is counted while scripts run against it, window after window."""

import argparse
import hashlib
import hmac
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fairlead_bench.gateway_instructions import callgrind
from fairlead_bench.gateway_instructions.cost_parts import Cost
from fairlead_bench.gateway_instructions.gateway_process import GatewayProcess
from fairlead_bench.gateway_instructions.scenarios import (
    KEY,
    Scenario,
    Script,
    cost_per_unit,
    cost_without_keys,
    scenarios,
    scenarios_without_keys,
)
from fairlead_bench.gateway_instructions.source_tree import SourceTree

_PEPPER = "bench-pepper"
KEY_DIGEST = hmac.new(_PEPPER.encode(), KEY.encode(), hashlib.sha256).hexdigest()
"""The digest of the clients' key."""
_PLAIN_BEFORE = 3_000
"""Plain requests before the first window. Of the first thousand answers a gateway learns more than
of later ones. Its decision log gets full, too (4,096 requests): from then on, each request drops
one, as in every gateway that has served for a while."""
_REST_SECONDS = 2.2
"""Seconds of rest at the end of a window. A worker does within two seconds what it defers, so a
window holds all that its requests caused. The cost of a rest without requests is subtracted."""
_RESTS = 3


PerUnit = Callable[[dict[str, float], dict[str, int]], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Callers:
    """The way in which a gateway knows its callers, and what is counted there.

    option, file: an option of the gateway and the text of its file; empty where it asks for no key.
    scenarios, cost_per_unit: the scripts, and the cost of each unit.
    is_priced: the models have a price.
    warm_up_seconds: before the first request.
    """

    option: str
    file: str
    scenarios: Callable[[Script], Mapping[str, Scenario]]
    cost_per_unit: PerUnit
    is_priced: bool = False
    warm_up_seconds: float = 0.0


WITH_KEYS = Callers("--keys", f'keys:\n  - {{name: bench, digest: "{KEY_DIGEST}"}}\n', scenarios, cost_per_unit)
WITHOUT_KEYS = Callers("", "", scenarios_without_keys, cost_without_keys)


class CountedGateway:
    """A gateway with the scripted engines. `folder` gets its logs."""

    def __init__(
        self, tree: SourceTree, copy: Path, folder: Path, *, callers: Callers, options: argparse.Namespace
    ) -> None:
        self._tree = tree
        self._copy = copy
        self._folder = folder
        self._callers = callers
        self._options = options

    def windows(self) -> Iterator[dict[str, Cost]]:
        """Warms up every script, then yields the cost of each unit, once for each window."""
        script, callers = Script(self._options.seed), self._callers
        runs = callers.scenarios(script)
        turns = {name: scenario.turns for name, scenario in runs.items()}
        self._folder.mkdir(parents=True)
        environ = {"FAIRLEAD_KEY_PEPPER": _PEPPER, "FAIRLEAD_HASH_SECRET": "bench-secret"}
        fleet = script.fleet(is_priced=callers.is_priced)
        with GatewayProcess(self._tree, self._folder, fleet, self._caller_options(), environ) as gateway:
            gateway.require_compiled(self._copy)
            keep_dumps = self._options.keep is not None
            counter = callgrind.Counter(gateway.worker_pid, self._folder, keep_dumps=keep_dumps)

            def count(run: Callable[[int], None], turns: int) -> Cost:
                def work() -> None:
                    with gateway.slow_clock():
                        run(turns)
                    time.sleep(_REST_SECONDS)

                script.open_connections()
                return counter.count(work)

            time.sleep(callers.warm_up_seconds)
            script.await_admission(gateway.port)
            script.connect(gateway.port)
            script.learn_lengths()
            counter.start()
            with gateway.slow_clock():
                script.plain(_PLAIN_BEFORE)
            for scenario in runs.values():
                count(scenario.run, scenario.turns)
            rest = _median([count(lambda _: None, 0) for _ in range(_RESTS)])
            for _ in range(self._options.windows):
                costs = {name: count(scenario.run, scenario.turns) for name, scenario in runs.items()}
                yield _per_unit(costs, rest, turns, callers.cost_per_unit)
            script.close()

    def _caller_options(self) -> list[str]:
        if not self._callers.option:
            return []
        file = self._folder / "callers.yaml"
        file.write_text(self._callers.file, encoding="utf-8")
        return [self._callers.option, str(file)]


def _per_unit(costs: dict[str, Cost], rest: Cost, turns: dict[str, int], per_unit: PerUnit) -> dict[str, Cost]:
    """Returns the cost of each unit, from those of the scripts and of a rest."""
    found: dict[str, Cost] = {}
    for name in sorted({name for cost in costs.values() for name in cost}):
        counted = {script: cost.get(name, 0) - rest.get(name, 0) for script, cost in costs.items()}
        for unit, value in per_unit(counted, turns).items():
            found.setdefault(unit, {})[name] = value
    return found


def _median(costs: list[Cost]) -> Cost:
    """Returns the cost with the median of instructions."""
    return sorted(costs, key=lambda cost: cost["instructions"])[len(costs) // 2]
