"""Lanes of the end-to-end tests: tests of one lane run one after another in one process, lanes run
side by side.

A test names its lane by ``@pytest.mark.lane(NAME, position=N)``; all others are local. Lower
positions run first.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

LOCAL = "local"
CHANGES = "changes"
"""Tests that change or remove the installation, which each of them has alone. Last, when the other
lanes need it less and less."""
LANES = ("installation", "models", "engines", "requests", "dashboards", "release", LOCAL, CHANGES)
_POSITION = 50


class LaneMarker(Protocol):
    """Fields of a ``lane`` marker (pytest.Mark)."""

    @property
    def args(self) -> Sequence[object]: ...
    @property
    def kwargs(self) -> Mapping[str, object]: ...


def lane(marker: LaneMarker | None) -> str:
    """The name of a test's lane. Raises ValueError for an unknown one."""
    name = LOCAL if marker is None else str(marker.args[0])
    if name not in LANES:
        raise ValueError(f"no lane is called {name!r}; known: {', '.join(LANES)}")
    return name


def lane_position(marker: LaneMarker | None) -> tuple[int, int]:
    position = _POSITION if marker is None else int(str(marker.kwargs.get("position", _POSITION)))
    return LANES.index(lane(marker)), position
