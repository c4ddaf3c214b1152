"""Measures cells side by side, each once, and keeps what was found in a file.

What a cell found is written as soon as it is there, under the cell's own words and the state of the
sources that it depends on: a run that was ended goes on, and nothing that was measured before a
change is taken for what is.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

C = TypeVar("C")
Measured = Mapping[str, float]


class MeasurementCache(Generic[C]):
    """A cache of measurements in a file. ``measure`` must be importable by name, since worker
    processes call it; cells are frozen dataclasses of plain values. ``state`` names the sources
    that a cell depends on."""

    def __init__(
        self,
        keep: Path,
        measure: Callable[[C], Measured],
        state: Callable[[C], str],
        *,
        jobs: int,
        said: Callable[[str], None],
    ) -> None:
        self._keep = keep
        self._measure = measure
        self._state = state
        self._jobs = jobs
        self._said = said
        self._found: dict[tuple[str, str], Measured] = {}
        if keep.exists():
            for line in keep.read_text(encoding="utf-8").splitlines():
                told = json.loads(line)
                self._found[told["state"], told["cell"]] = told["found"]

    def __call__(self, cells: Iterable[C]) -> dict[C, Measured]:
        """Returns the measurement of each cell."""
        wanted = list(dict.fromkeys(cells))
        missing = [cell for cell in wanted if self._key(cell) not in self._found]
        if missing:
            self._keep.parent.mkdir(parents=True, exist_ok=True)
            with ProcessPoolExecutor(self._jobs) as pool, self._keep.open("a", encoding="utf-8") as file:
                runs = {pool.submit(self._measure, cell): cell for cell in missing}
                for number, run in enumerate(as_completed(runs), 1):
                    state, cell = self._key(runs[run])
                    found = self._found[state, cell] = run.result()
                    file.write(json.dumps({"state": state, "cell": cell, "found": found}) + "\n")
                    file.flush()
                    self._said(f"{number} of {len(missing)}: {self.name(runs[run])}")
        return {cell: self._found[self._key(cell)] for cell in wanted}

    def name(self, cell: C) -> str:
        return self._key(cell)[1]

    def _key(self, cell: C) -> tuple[str, str]:
        words: Any = cell
        return self._state(cell), json.dumps(asdict(words), sort_keys=True)


def print_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
