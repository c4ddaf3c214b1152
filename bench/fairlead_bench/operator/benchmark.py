"""The command line: an API server of its own for each subject, one after the other."""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random

from fairlead_bench.operator.measurement import ROOT, OperatorFigures, measure
from fairlead_bench.operator.result_rows import rows
from fairlead_bench.operator.subject_process import COMMANDS
from fairlead_bench.results import write_results
from fairlead_testing.kube.api_server import running_api_server


def main(arguments: Sequence[str]) -> int:
    """Returns 0 when every goal holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1_000)
    parser.add_argument("--rest", type=float, default=60.0, help="seconds of steady state")
    parser.add_argument("--seed", type=int, default=7, help="of the order in which models are applied")
    parser.add_argument("--only", choices=sorted(COMMANDS), action="append", help="one subject; both without it")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "operator.json")
    options = parser.parse_args(arguments)
    names = [f"m{number:04d}" for number in range(options.models)]
    Random(options.seed).shuffle(names)
    found: dict[str, OperatorFigures] = {}
    before = os.getloadavg()[0]
    for name in options.only or COMMANDS:
        with tempfile.TemporaryDirectory() as folder, running_api_server(Path(folder) / "run") as server:
            log = Path(folder) / "operator.log"
            try:
                found[name] = asyncio.run(measure(server, name, names, options.rest, log))
            except BaseException:
                print(log.read_text()[-4_000:], file=sys.stderr)
                raise
    made = rows(found)
    write_results("operator", made, seed=options.seed, file=options.out)
    content = json.loads(options.out.read_text())
    content["load_average_before"] = round(before, 2)  # of others: above 0.5, processor times are too high
    content["figures"] = {name: figures.plain() for name, figures in found.items()}
    options.out.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if all(row.holds for row in made) else 1
