#!/usr/bin/env python3
"""The core with a tier of sleeping replicas beside the same without.

    python bench/autoscaler/asleep.py [--seeds 1,2,3] [--traces FOLDER] [--out out/bench/asleep.json]

Replicas start in 60 to 300 s and wake in 10. What one that sleeps costs is counted twice: a tenth of one that serves (the host's
memory; its device serves others meanwhile), and as much as one that serves (nothing else may use its device).
"""

import sys
from pathlib import Path

from fairlead_sim.compiled import run_compiled

sys.path[:0] = [
    str(folder) for folder in Path(__file__).resolve().parents[:2]
]  # its own modules, and what all benchmarks share

if __name__ == "__main__":
    run_compiled()  # returns where it runs compiled already, or nothing is
    from autoscalerbench.asleep import main

    sys.exit(main(sys.argv[1:]))
