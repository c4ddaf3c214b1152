"""``--watch``: shows the answer of a command again and again, until Ctrl-C."""

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any, Final, TextIO, cast

from cyclopts import Parameter

from fairlead.errors import BadInput
from fairlead_cli.output import OutputFormat, is_document

WATCH_SECONDS: Final = 2.0
_CLEAR: Final = "\x1b[H\x1b[2J"

WatchFlag = Annotated[
    bool, Parameter(name=["--watch", "-w"], negative=(), help="Show it again every two seconds, until Ctrl-C.")
]
"""The flag ``--watch``."""


def show_repeatedly(
    show: Callable[[], int], *, watch: bool, output: OutputFormat, pause: Callable[[float], None] = time.sleep
) -> int:
    """Returns the exit code of ``show``; with ``watch``, calls it until KeyboardInterrupt.

    In a terminal, each answer replaces the last one when it is there. In a pipe, an empty line is
    between them.

    pause: waits for so many seconds.

    Raises BadInput for a document, which has one end.
    """
    if not watch:
        return show()
    if is_document(output):
        raise BadInput(
            f"--watch shows text, and -o {output} is a document", field="--watch", hint="leave out one of them"
        )
    while True:
        with contextlib.redirect_stdout(cast(TextIO, _Replacing(sys.stdout)) if sys.stdout.isatty() else sys.stdout):
            show()
        if not sys.stdout.isatty():
            print(flush=True)
        pause(WATCH_SECONDS)


class _Replacing:
    """A terminal that is cleared when the first text is written to it."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._is_cleared = False

    def write(self, text: str) -> int:
        if not self._is_cleared:
            self._is_cleared = True
            self._terminal.write(_CLEAR)
        return self._terminal.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._terminal, name)
