#!/usr/bin/env python3
"""The indexer as a process before simulated engines, Redis and a mirror, and beside it a hash in Redis for each block.

    python bench/index/run.py                  everything, some eight minutes on two quiet cores
    python bench/index/run.py --share 0.1 --rounds 1 --without many
    python bench/index/run.py --help

Writes out/bench/index.json. bench/index/README.md says what is measured and how. ``truth.py`` measures the core alone.
"""

import os
import sys
from pathlib import Path

from fairlead.runtime.compiled_build import worker_environment

sys.path[:0] = [
    str(folder) for folder in Path(__file__).resolve().parents[:2]
]  # its own modules, and what all benchmarks share

if __name__ == "__main__":
    environ = worker_environment(os.environ)
    if environ != os.environ:  # all of it runs compiled, as in the images
        os.execve(sys.executable, [sys.executable, __file__, *sys.argv[1:]], environ)
    from indexbench.main import main

    sys.exit(main(sys.argv[1:]))
