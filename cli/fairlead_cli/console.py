"""What is printed on: a terminal is as wide as it is, a pipe has no width, so nothing is cut there."""

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH: Final = 2_000


def stdout_console() -> "Console":
    """Standard output. Rich is imported only here: most commands answer before it would have been."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
