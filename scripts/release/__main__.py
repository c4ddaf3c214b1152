"""``python scripts/release``: writes what a release consists of; see scripts/release/cli.py."""

import sys
from pathlib import Path

# The folder is run by its path: the package is found from the repository root.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from scripts.release.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
