"""Packet simulator: drops, duplicates and delays messages between gateways and engines.

Delays are drawn per message, so that delayed messages also reorder. All draws come from one seed,
in call order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final


@dataclass(frozen=True, slots=True)
class NetworkFault:
    """A stretch of simulated time in which messages are lost, duplicated or late.

    - begin, end: seconds; ``end`` is outside.
    - drop, duplicate: shares (0..1) of the messages.
    - max_delay_seconds: upper bound of the further delay.
    """

    begin: float
    end: float
    drop: float = 0.0
    duplicate: float = 0.0
    max_delay_seconds: float = 0.0


class PacketSimulator:
    """The network faults of one run. Faults may overlap; the first in the list applies."""

    def __init__(self, faults: Sequence[NetworkFault] = (), seed: int = 0) -> None:
        self._faults = tuple(faults)
        self._random = Random(f"weather {seed}")

    def delivery_times(self, now: float, delay_seconds: float) -> list[float]:
        """Returns when a message sent at ``now`` arrives: once, twice or never."""
        for fault in self._faults:
            if fault.begin <= now < fault.end:
                if self._random.random() < fault.drop:
                    return []
                copies = 2 if self._random.random() < fault.duplicate else 1
                return [now + delay_seconds + self._random.uniform(0.0, fault.max_delay_seconds) for _ in range(copies)]
        return [now + delay_seconds]


NO_FAULTS: Final = PacketSimulator()
