"""The fixed fleets of the comparison, and the result of each."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fairlead_bench.autoscaler.missed_share.prediction import PredictedShare

RATES_FILE = Path(__file__).with_name("fleet_rates.json")
MIN_SHARE, MAX_SHARE = 0.001, 0.1
"""Fleets that miss less or more are shown and not judged."""
ALLOWED_FACTOR: Final = 2.0


@dataclass(frozen=True, slots=True)
class FixedFleetCase:
    """A fleet of constant size at a constant rate.

    rate: requests per second of each replica.
    """

    plant: str
    traffic: str
    replicas: int
    rate: float

    def describe(self) -> str:
        """Returns the case as rows name it."""
        return f"{self.plant}, {self.traffic}, {self.replicas} replicas at {self.rate:g}/s each"


@dataclass(frozen=True, slots=True)
class FleetComparison:
    """The misses of one fleet, and the core's prediction of them.

    requests: those that count.
    late, slow: shares (0..1) that missed the TTFT target, and the TPOT target only.
    rate_ratio: the rate at which the step model predicts the measured share, divided by the true
        one.
    """

    case: FixedFleetCase
    requests: int
    late: float
    slow: float
    predicted: PredictedShare
    rate_ratio: float

    @property
    def measured(self) -> float:
        """The share (0..1) of requests that missed a target."""
        return self.late + self.slow

    @property
    def is_judged(self) -> bool:
        """Whether the measured share lies in the judged range."""
        return MIN_SHARE <= self.measured <= MAX_SHARE


def is_within(predicted: float, measured: float, factor: float = ALLOWED_FACTOR) -> bool:
    """Whether two shares differ by no more than the factor."""
    return predicted > 0.0 and measured > 0.0 and abs(math.log(predicted / measured)) <= math.log(factor) + 1e-9


def load_cases(
    plants: Sequence[str], replicas: Sequence[int], rates: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
) -> list[FixedFleetCase]:
    """Returns the cases of these plants and sizes.

    rates: by plant, traffic and number of replicas, as in ``fleet_rates.json``.
    """
    return [
        FixedFleetCase(plant, traffic, int(size), rate)
        for plant in plants
        for traffic, sizes in rates[plant].items()
        for size, of_size in sizes.items()
        if int(size) in replicas
        for rate in of_size
    ]


def committed_rates() -> Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]:
    """Returns the committed rates by plant, traffic and number of replicas."""
    rates: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]] = json.loads(
        RATES_FILE.read_text(encoding="utf-8")
    )["rates"]
    return rates
