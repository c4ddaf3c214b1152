"""The console: where output goes, how wide it is, and how this program is called in hints."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH: Final = 2_000


def stdout_console() -> "Console":
    """Returns a console on standard output; a pipe has no width, so nothing is cut there.

    Why: Rich is imported here because most commands answer before its import would end.
    """
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def program_name() -> str:
    """Returns the command that hints show: ``fairlead``, ``kubectl fairlead``, or a path that can
    be typed.
    """
    if Path(sys.argv[0]).name == "kubectl-fairlead":
        return "kubectl fairlead"
    installed = Path(sys.executable).with_name("fairlead")
    if shutil.which("fairlead"):
        return "fairlead"
    if not installed.exists():
        return f"{sys.executable} -m fairlead_cli"
    return str(installed.relative_to(Path.cwd())) if installed.is_relative_to(Path.cwd()) else str(installed)
