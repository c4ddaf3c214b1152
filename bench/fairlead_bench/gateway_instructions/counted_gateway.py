"""A gateway whose worker is counted while scripts run against it, window after window."""

import argparse
import hashlib
import hmac
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fairlead_bench.gateway_instructions import callgrind
from fairlead_bench.gateway_instructions.cost_parts import Cost
from fairlead_bench.gateway_instructions.gateway_process import GatewayProcess
from fairlead_bench.gateway_instructions.scenarios import (
    KEY,
    Script,
    cost_per_unit,
    cost_without_keys,
    scenarios,
    scenarios_without_keys,
)
from fairlead_bench.gateway_instructions.source_tree import SourceTree

_PEPPER = "bench-pepper"
_PLAIN_BEFORE = 3_000
"""Plain requests before the first window. Of the first thousand answers a gateway learns more than
of later ones. Its decision log gets full, too (4,096 requests): from then on, each request drops
one, as in every gateway that has served for a while."""
_REST_SECONDS = 2.2
"""Seconds of rest at the end of a window. A worker does within two seconds what it defers, so a
window holds all that its requests caused. The cost of a rest without requests is subtracted."""
_RESTS = 3


class CountedGateway:
    """A gateway with the scripted engines. `folder` gets its logs; with ``keys`` it asks for API
    keys."""

    def __init__(self, tree: SourceTree, copy: Path, folder: Path, *, keys: bool, options: argparse.Namespace) -> None:
        self._tree = tree
        self._copy = copy
        self._folder = folder
        self._keys = keys
        self._options = options

    def windows(self) -> Iterator[dict[str, Cost]]:
        """Warms up every script, then yields the cost of each unit, once for each window."""
        script = Script(self._options.seed)
        runs = scenarios(script) if self._keys else scenarios_without_keys(script)
        turns = {name: scenario.turns for name, scenario in runs.items()}
        per_unit = cost_per_unit if self._keys else cost_without_keys
        self._folder.mkdir(parents=True)
        environ = {"FAIRLEAD_KEY_PEPPER": _PEPPER, "FAIRLEAD_HASH_SECRET": "bench-secret"}
        with GatewayProcess(self._tree, self._folder, script.fleet(), self._key_options(), environ) as gateway:
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
                yield _per_unit(costs, rest, turns, per_unit)
            script.close()

    def _key_options(self) -> list[str]:
        if not self._keys:
            return []
        digest = hmac.new(_PEPPER.encode(), KEY.encode(), hashlib.sha256).hexdigest()
        file = self._folder / "keys.yaml"
        file.write_text(f'keys:\n  - {{name: bench, digest: "{digest}"}}\n', encoding="utf-8")
        return ["--keys", str(file)]


PerUnit = Callable[[dict[str, float], dict[str, int]], dict[str, float]]


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
