"""What becomes of messages on their way: most come when they are due; in a spell some are lost, come twice, or come later.

Those that come later are delayed apart, so they also come out of order. A ``Weather`` draws from a seed, in the order of asking.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final


@dataclass(frozen=True, slots=True)
class Spell:
    """From ``begin`` to before ``end`` (seconds) these shares (0..1) of messages are ``lost`` or come ``twice``, and each comes up to
    ``late_seconds`` later."""

    begin: float
    end: float
    lost: float = 0.0
    twice: float = 0.0
    late_seconds: float = 0.0


class Weather:
    """Of spells that may overlap: the first of them counts."""

    def __init__(self, spells: Sequence[Spell] = (), seed: int = 0) -> None:
        self._spells = tuple(spells)
        self._draw = Random(f"weather {seed}")

    def arrivals(self, now: float, usual_seconds: float) -> list[float]:
        """When a message sent now comes: once, twice, or never."""
        for spell in self._spells:
            if spell.begin <= now < spell.end:
                if self._draw.random() < spell.lost:
                    return []
                times = 2 if self._draw.random() < spell.twice else 1
                return [now + usual_seconds + self._draw.uniform(0.0, spell.late_seconds) for _ in range(times)]
        return [now + usual_seconds]


CALM: Final = Weather()
