#!/usr/bin/env python3
"""The indexer as a process before simulated engines, Redis and a mirror, and beside it a hash in Redis for each block.

    python bench/index/run.py                  everything, about half an hour on two cores
    python bench/index/run.py --share 0.1 --rounds 1 --without many
    python bench/index/run.py --help

Writes out/bench/index.json. bench/index/README.md says what is measured and how. ``truth.py`` measures the core alone.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what all benchmarks share

from indexbench.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
