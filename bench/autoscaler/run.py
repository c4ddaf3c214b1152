#!/usr/bin/env python3
"""The autoscaler and the presets of others in the closed-loop simulator: bars, a table of all, pictures.

    python bench/autoscaler/run.py [--traces FOLDER] [--seed 1] [--jobs 2] [--presets kpa-concurrency,dynamo]

Writes out/bench/autoscaler.json and two pictures. bench/autoscaler/README.md says what is measured and how.
"""

import sys
from pathlib import Path

from fairlead_sim.compiled import run_compiled

sys.path[:0] = [
    str(folder) for folder in Path(__file__).resolve().parents[:2]
]  # its own modules, and what all benchmarks share

if __name__ == "__main__":
    run_compiled()  # returns where it runs compiled already, or nothing is
    from autoscalerbench.main import main

    sys.exit(main(sys.argv[1:]))
