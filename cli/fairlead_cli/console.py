"""What is printed on: a terminal is as wide as it is, a pipe has no width, so nothing is cut there."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH: Final = 2_000


def stdout_console() -> "Console":
    """Standard output. Rich is imported only here: most commands answer before it would have been."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


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
