"""The operator for minutes before an API server that fails it, and killed around every write; bench/results/operator-soak.json.

    python bench/operator/soak.py             all of it, about half an hour
    python bench/operator/soak.py --help

`make test` runs the same for seconds (tests/operator/test_fault_trials.py).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from operatorbench.soak import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
