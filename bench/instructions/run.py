"""Counts the instructions that the compiled gateway executes per request, chunk and routing decision, beside an older commit.

    python bench/instructions/run.py                  this checkout beside the base commit
    python bench/instructions/run.py --base HEAD~3    beside another one
    python bench/instructions/run.py --help

Writes out/bench/gateway-instructions.json. bench/instructions/README.md says what is counted and how.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # results and goals, which all benchmarks share

from instructionsbench.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
