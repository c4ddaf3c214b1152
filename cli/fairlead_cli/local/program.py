"""How this command line is called here: hints that can be typed as they stand."""

import shutil
import sys
from pathlib import Path


def program_name() -> str:
    """Its name where PATH has it, ``kubectl fairlead`` where that was typed, else where it lies."""
    if Path(sys.argv[0]).name == "kubectl-fairlead":
        return "kubectl fairlead"
    beside = Path(sys.executable).with_name("fairlead")
    if shutil.which("fairlead"):
        return "fairlead"
    if not beside.exists():
        return f"{sys.executable} -m fairlead_cli"
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)
