"""The screen of ``fairlead up``: a live view on a terminal, plain lines elsewhere."""

import sys
from typing import Protocol, TextIO

from fairlead_cli.local.view.banner import StackSummary, autoscaler_lines, curl_lines, headline, plain_lines, sdk_lines


class Screen(Protocol):
    """The interface of a screen. ``draw`` is called about once a second."""

    is_live: bool

    def show_event(self, line: str) -> None:
        """Shows one event as it happens."""
        ...

    def show_ready(self, stack: StackSummary) -> None:
        """Shows the banner once the stack is ready."""
        ...

    def draw(self, frame: object) -> None:
        """Shows the present state."""
        ...

    def close(self) -> None:
        """Restores the terminal."""
        ...


class PlainScreen:
    """A screen of plain lines: one for each event. Exactly one line begins with ``ready``."""

    is_live = False

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show_event(self, line: str) -> None:
        """Prints the line."""
        print(line, file=self._out, flush=True)

    def show_ready(self, stack: StackSummary) -> None:
        """Prints the banner."""
        print("\n".join(plain_lines(stack)), file=self._out, flush=True)

    def draw(self, frame: object) -> None:
        """Does nothing: plain output consists of events only."""

    def close(self) -> None:
        """Does nothing: there is no view to remove."""


class LiveScreen:
    """A view that is redrawn in place below the banner."""

    is_live = True

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._live.start()

    def show_event(self, line: str) -> None:
        """Prints the event once the view is closed; before, the view shows it."""
        if not self._live.is_started:
            self._console.print(line, style="dim", markup=False)

    def show_ready(self, stack: StackSummary) -> None:
        """Prints the banner, which stays when the view is closed."""
        from rich.text import Text

        show = self._console.print
        show(Text(headline(stack), "bold"))
        show(Text.assemble("\n  OpenAI API   ", (f"{stack.url}/v1", "cyan")))
        show(Text.assemble("  status page  ", (f"{stack.manage}/", "cyan")))
        for line in autoscaler_lines(stack):
            show(Text(f"  {line}"))
        show()
        for line in (*curl_lines(stack), "", *sdk_lines(stack)):
            show(Text(f"  {line}" if line else "", "dim"), soft_wrap=True)
        chat, status = f"{stack.program} chat {stack.models[0]}", f"{stack.program} local status"
        show(Text.assemble("\n  in another terminal: ", (chat, "cyan"), " · ", (status, "cyan"), "\n"))
        for note in stack.notes:
            show(Text(f"  note: {note}", "yellow"))

    def draw(self, frame: object) -> None:
        """Redraws the view."""
        from fairlead_cli.local.view.live_view import Frame, render_frame

        assert isinstance(frame, Frame)
        width, height = self._console.size
        self._live.update(render_frame(frame, height, width), refresh=True)

    def close(self) -> None:
        """Removes the view; the lines above it stay."""
        self._live.stop()


def choose_screen(out: TextIO, *, plain: bool) -> Screen:
    """Returns the live screen for a capable terminal, unless ``plain`` is set."""
    import os

    if plain or not out.isatty() or os.environ.get("TERM", "dumb") == "dumb" or out is not sys.stdout:
        return PlainScreen(out)
    return LiveScreen()
