"""``python e2e/cluster up|down|status|build|assets``: a real Kubernetes without a container engine;
see docs/contributing/cluster-from-source.md."""

import sys
from pathlib import Path

# The folder is run by its path: the package is found from the repository root.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from e2e.cluster.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
