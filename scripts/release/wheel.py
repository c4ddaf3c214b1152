"""The wheel. It holds the product's packages and their data, no tests and no compiled code."""

import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from cyclonedx.model.component import ComponentType

from fairlead import __version__
from fairlead.distribution import DISTRIBUTION, WHEEL
from scripts.generators.image_locks import lock_part
from scripts.release.images.bill_of_materials import bill_of_materials, locked_packages
from scripts.release.release_run import ReleaseError, ReleaseRun

OLDEST_PYTHON = "3.11.0"


def build_wheel(run: ReleaseRun) -> Iterator[Path]:
    """Builds the wheel with the locked hatchling: the same sources give the same bytes."""
    with tempfile.TemporaryDirectory(dir=run.folder) as work:
        run.run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", work)
        made = Path(work) / WHEEL
        if not made.exists():
            raise ReleaseError(f"the build wrote {[path.name for path in Path(work).iterdir()]} instead of {WHEEL}")
        yield made.replace(run.folder / WHEEL)
    folder = run.folder / "sbom"
    folder.mkdir(exist_ok=True)
    bill = folder / f"{WHEEL.removesuffix('.whl')}.cdx.json"
    bill.write_text(wheel_bill(run.root))
    yield bill


def wheel_bill(root: Path) -> str:
    """Returns the bill of materials of the wheel: the packages that it brings, as locked."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    lock = lock_part((root / "requirements" / "dev.txt").read_text(), project["dependencies"])
    packages = locked_packages(lock, OLDEST_PYTHON)
    return bill_of_materials(f"{DISTRIBUTION}:{__version__}", [], packages, kind=ComponentType.LIBRARY)
