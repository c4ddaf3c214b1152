"""The comparison of the autoscaler's benchmark on seeds on which nothing was chosen.

Fairlead's settings were chosen on seeds 1 and 2, and the best knob of each preset on seed 1. This
benchmark runs the same controllers with the same knobs on other seeds. It writes one table per
seed, in the form of ``autoscaler.json``.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairlead_bench.autoscaler.measurement import FAIRLEAD, AutoscalerCell, measure, source_digest
from fairlead_bench.autoscaler.result_rows import ALL_SCENARIOS, TARGET, TunedPreset
from fairlead_bench.measurement_cache import Measured, MeasurementCache, print_progress
from fairlead_bench.results import write_results

NAME = "autoscaler-seeds"
SEEDS = (101, 102)
COMPARED_PRESETS = (
    "hpa-concurrency",
    "kpa-concurrency",
    "keda-request-rate",
    "apa-concurrency",
    "wva-saturation",
    "dynamo",
)
"""One preset per project, as that project ships it: the signal that keeps the SLO most often."""
TUNED = Path("bench/results/autoscaler.json")


def tuned_presets(table: dict[str, Any], presets: Sequence[str]) -> list[TunedPreset]:
    """Returns these presets with the knobs of the committed run, best and fixed."""
    found = []
    for name in table:
        preset, _, rest = name.partition(" at ")
        if preset in presets:
            knob, kind = rest.split()
            found.append(TunedPreset(preset, float(knob), kind == "(best)"))
    return found


def main(arguments: list[str]) -> int:
    """Returns 0: the benchmark measures, and tests judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--traces", type=Path, help="a folder with the published traces")
    parser.add_argument("--presets", default=",".join(COMPARED_PRESETS), help="empty for Fairlead alone")
    parser.add_argument("--scenarios", default=",".join(ALL_SCENARIOS), help="without the smooth days, minutes suffice")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(f"out/bench/{NAME}.json"))
    given = parser.parse_args(arguments)
    traces = "" if given.traces is None or not given.traces.is_dir() else str(given.traces)
    cache = MeasurementCache(
        given.out.with_name("autoscaler-cells.jsonl"), measure, source_digest, jobs=given.jobs, said=print_progress
    )
    scenarios = given.scenarios.split(",")
    tables = {}
    controllers = [
        TunedPreset(FAIRLEAD, 0.0, True),
        *tuned_presets(json.loads(TUNED.read_text())["table"], given.presets.split(",")),
    ]
    for seed in map(int, given.seeds.split(",")):
        cells = {
            (one, scenario): AutoscalerCell(
                scenario, seed, one.preset, None if one.preset == FAIRLEAD else one.knob, traces
            )
            for scenario in scenarios
            for one in controllers
        }
        found = cache(cells.values())
        tables[str(seed)] = {
            FAIRLEAD if one.preset == FAIRLEAD else one.name: {
                scenario: _figures(found[cells[one, scenario]]) for scenario in scenarios
            }
            for one in controllers
        }
    more = {"traces": traces != "", "target": TARGET, "tables": tables}
    write_results(NAME, [], seed=int(given.seeds.split(",")[0]), file=given.out, more=more)
    return 0


def _figures(cell: Measured) -> dict[str, float]:
    """Returns the figures of the table. With windows without metrics, one is the least share in
    one of them.
    """
    places = {"attainment": 5, "servable": 5, "unservable": 1, "cost": 3, "window_attainment": 5}
    return {name: round(cell[name], digits) for name, digits in places.items() if name in cell}
