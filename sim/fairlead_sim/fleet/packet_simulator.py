"""What becomes of messages on their way: most come when they are due; in a spell some are lost, come twice, or come later.

Those that come later are delayed apart, so they also come out of order. A ``Weather`` draws from a seed, in the order of asking.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final


@dataclass(frozen=True, slots=True)
class NetworkFault:
    """From ``begin`` to before ``end`` (seconds) these shares (0..1) of messages are ``lost`` or come ``twice``, and each comes up to
    ``late_seconds`` later."""

    begin: float
    end: float
    drop: float = 0.0
    duplicate: float = 0.0
    max_delay_seconds: float = 0.0


class PacketSimulator:
    """Of spells that may overlap: the first of them counts."""

    def __init__(self, faults: Sequence[NetworkFault] = (), seed: int = 0) -> None:
        self._faults = tuple(faults)
        self._random = Random(f"weather {seed}")

    def delivery_times(self, now: float, delay_seconds: float) -> list[float]:
        """When a message sent now comes: once, twice, or never."""
        for fault in self._faults:
            if fault.begin <= now < fault.end:
                if self._random.random() < fault.drop:
                    return []
                copies = 2 if self._random.random() < fault.duplicate else 1
                return [now + delay_seconds + self._random.uniform(0.0, fault.max_delay_seconds) for _ in range(copies)]
        return [now + delay_seconds]


NO_FAULTS: Final = PacketSimulator()
