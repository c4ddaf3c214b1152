#!/usr/bin/env python3
"""Routing presets in the fleet simulator: the bars, a grid of presets, and the traffic of ``fairlead demo``.

    python bench/routing/run.py [--trace FILE] [--live out/demo/report.json] [--only bars,grid,demo] [--seeds 11,12] [--jobs 2]

Writes out/bench/routing.json. What a cell found is kept beside it, so that a run that was ended goes on where it was.
bench/routing/README.md says what is measured and how.
"""

import sys
from pathlib import Path

from fairlead_sim.compiled import run_compiled

sys.path[:0] = [
    str(folder) for folder in Path(__file__).resolve().parents[:2]
]  # its own modules, and what all benchmarks share

if __name__ == "__main__":
    run_compiled()  # returns where it runs compiled already, or nothing is
    from routingbench.main import main

    sys.exit(main(sys.argv[1:]))
