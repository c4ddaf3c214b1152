"""``python e2e/cluster up|down|status|build|assets``: a real Kubernetes without a container engine; see docs/guides/cluster.md."""

import sys
from pathlib import Path

# This folder is started, not imported: the modules find one another under its name.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cluster.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
