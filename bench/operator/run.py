"""The operator and a thousand models before a real API server, and beside it the same with kopf's own handlers.

    python bench/operator/run.py              both, about five minutes
    python bench/operator/run.py --help

Writes bench/results/operator.json. bench/operator/README.md says what is measured and how.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what all benchmarks share

from operatorbench.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
