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

    def __init__(
        self, title: str, *, is_terminal: bool | None = None, print_line: Callable[[str], None] = print
    ) -> None:
        self._title = title
        self._print_line = print_line
        self._printed_at_seconds = 0.0
        self._bar: Progress | None = None
        if sys.stdout.isatty() if is_terminal is None else is_terminal:
            # No refresh thread: it would take the interpreter from the loop that is being measured.
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn(
                    "{task.completed}/{task.total} answered, {task.fields[in_flight]} in flight{task.fields[failed]}"
                ),
                TimeElapsedColumn(),
                console=Console(),
                auto_refresh=False,
            )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task(self._title, total=None, in_flight=0, failed="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, counts: ProgressCounts) -> None:
        """Shows the counts."""
        in_flight = counts.sent - counts.answered
        failed = f", {counts.failed} failed" if counts.failed else ""
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(
                task, total=counts.total, completed=counts.answered, in_flight=in_flight, failed=failed, refresh=True
            )
            return
        is_finished = counts.answered == counts.total
        if is_finished or counts.seconds - self._printed_at_seconds >= _LINE_SECONDS:
            self._printed_at_seconds = counts.seconds
            self._print_line(
                f"{self._title}: {counts.seconds:.0f} s, {counts.answered}/{counts.total} answered, {in_flight} in flight{failed}"
            )
