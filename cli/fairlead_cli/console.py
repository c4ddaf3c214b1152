"""The console: where output goes, how wide it is, and how this program is called in hints.

What a cluster, an engine or a file says may hold escape sequences, which control a terminal. What
people read goes through `terminal_text` before it is printed. JSON, YAML and replies that go into a
pipe do not: programs need them unchanged.
"""

import codecs
import shutil
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH: Final = 2_000
_ERROR_HANDLER: Final = "fairlead-ascii"
_REPLACED: Final = {
    code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
}
"""Control characters, except line feed and tab, and what replaces them."""


_ASCII: Final = {
    **dict.fromkeys("─━", "-"),
    **dict.fromkeys("│┃", "|"),
    **dict.fromkeys("├└┌┐┘╭╮╰╯", "+"),
    **dict.fromkeys("█▉▊▋▌▍▎▏", "#"),
    "→": "->",
    "·": "-",
    "×": "x",
    "…": "...",
    "≤": "<=",
    "≥": ">=",
    "√": "*",
    "÷": "/",
    "‼": "!",
    "µ": "u",
    "–": "-",
    "−": "-",
    "±": "+-",
    "²": "2",
    "σ": "s",
    "Σ": "sum ",
    "●": "o",
    "○": "o",
    "↻": "@",
    "é": "e",
}
"""Characters that this program prints → what replaces them where only ASCII can be printed."""


def allow_any_encoding() -> None:
    """Lets standard output and error print what their encoding lacks: as ASCII, or as `?`."""

    def replace(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        return "".join(_ASCII.get(char, "?") for char in error.object[error.start : error.end]), error.end

    codecs.register_error(_ERROR_HANDLER, replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors in ("strict", "backslashreplace"):
            stream.reconfigure(errors=_ERROR_HANDLER)


def terminal_text(text: str) -> str:
    return text.translate(_REPLACED)


def stdout_console() -> "Console":
    """Returns a console on standard output. In a pipe, lines are not wrapped.

    Why Rich is imported here: most commands do not need it, and its import is slow.
    """
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
    from rich.segment import Segment

    class TerminalSafe:
        def __init__(self, shown: ConsoleRenderable) -> None:
            self._shown = shown

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for text, style, control in console.render(self._shown, options):
                yield Segment(text if control else terminal_text(text), style, control)

    class SafeHook(RenderHook):
        def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
            return [TerminalSafe(one) for one in renderables]

    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.push_render_hook(SafeHook())
    return console


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
