"""Progress of a replay: a bar on a terminal, a line every ten seconds elsewhere."""

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fairlead_cli.replay.client.open_loop_client import ProgressCounts

_LINE_SECONDS = 10.0


class ProgressView:
    """A progress display. Use as a context manager; the client calls ``update`` about twice a
    second.
    """

    def __init__(self, title: str, *, terminal: bool | None = None, say: Callable[[str], None] = print) -> None:
        self._title = title
        self._say = say
        self._said = 0.0
        self._bar: Progress | None = None
        if sys.stdout.isatty() if terminal is None else terminal:
            # No refresh thread: it would take the interpreter from the loop that is being measured.
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} answered, {task.fields[flight]} in flight{task.fields[bad]}"),
                TimeElapsedColumn(),
                console=Console(),
                auto_refresh=False,
            )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task(self._title, total=None, flight=0, bad="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, counts: ProgressCounts) -> None:
        """Shows the counts."""
        in_flight = counts.sent - counts.answered
        bad = f", {counts.failed} failed" if counts.failed else ""
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(
                task, total=counts.total, completed=counts.answered, flight=in_flight, bad=bad, refresh=True
            )
            return
        is_finished = counts.answered == counts.total
        if is_finished or counts.seconds - self._said >= _LINE_SECONDS:
            self._said = counts.seconds
            self._say(
                f"{self._title}: {counts.seconds:.0f} s, {counts.answered}/{counts.total} answered, {in_flight} in flight{bad}"
            )
