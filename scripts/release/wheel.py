"""The wheel. It holds the product's packages and their data, no tests and no compiled code."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fairlead.distribution import WHEEL
from scripts.release.release_run import ReleaseError, ReleaseRun


def build_wheel(run: ReleaseRun) -> Iterator[Path]:
    """Builds the wheel with the locked hatchling: the same sources give the same bytes."""
    with tempfile.TemporaryDirectory(dir=run.folder) as work:
        run.run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", work)
        made = Path(work) / WHEEL
        if not made.exists():
            raise ReleaseError(f"the build wrote {[path.name for path in Path(work).iterdir()]} instead of {WHEEL}")
        yield made.replace(run.folder / WHEEL)
