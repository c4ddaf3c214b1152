"""What the gateway costs, beside its peers, in front of the same mock engines.

    python bench/gateway/run.py --quick      the near peers, 1–2 minutes
    python bench/gateway/run.py              everything, about an hour
    python bench/gateway/run.py --help

Writes out/bench/gateway.json and gateway.png. bench/gateway/README.md says what is measured and how.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what all benchmarks share

from gatewaybench.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
